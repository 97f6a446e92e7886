"""Measure our maps against those of other tools and write parity.md.

python docs/_make/parity.py
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from rich.progress import track

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import peers  # noqa: E402
from peers import NETWORKS, PEERS, PLACES, Cell, Place  # noqa: E402
from segproof import METHODS  # noqa: E402
from segproof.analysis import method_label  # noqa: E402
from segproof.explain.methods import LAYERLESS  # noqa: E402

PAGE = Path(__file__).resolve().parents[1] / "evidence" / "parity.md"
INTRO = """\
# Parity with other tools

```
python docs/_make/parity.py      # measure every figure and write this page (some minutes)
```

The greatest difference of any pixel between our heatmap and the peer's, both in [0, 1]: same
network, same layer, same target, same normalisation. Where definitions agree a figure is at most
{tolerance:.0e}, and the worst of the layers is shown; `tests/explain/test_parity.py` asserts it.
"differs" is another definition, measured and explained below the table; a dash is a method that the
peer does not have or, with a number, cannot be compared. Networks have random weights and running
statistics that fit; the picture is small.

With grad-cam and attribution-quality the preset is `paper`: their target is the sum of p_c · m,
and their guards (1e-6, 1e-7) are those of the published protocol. With captum and torchcam it is
`strict`: the mean of z_c over the region; torchcam's Score-CAM, a softmax, again `paper`.
Eigen-CAM and Eigen-Grad-CAM are compared up to the sign, which peers leave to the SVD.
Kernel-Weighted Contribution reads p_c over the region in either preset. Figures with \\* are in
float64: in float32 either the peer rounds each Y before it subtracts or takes a softmax
(Ablation-CAM and Score-CAM of grad-cam), or denominators of signed activations cancel
(Grad-CAM++ and XGrad-CAM).

Versions: {versions}.
"""
QUANTUS = """\
## Measures: Quantus 0.6.0

Quantus judges classifiers. A dense network is wrapped to one number, the mean of p_c over R, and its measures are
given the same map of one band, on a network of convolutions (`tests/measures/test_quantus.py`). Where definitions agree:

| ours | theirs | within |
| --- | --- | --- |
| `gini` | Sparseness | 2e-5: they add 1e-7 to each value |
| `pointing_game` | PointingGame | the same |
| `relevance_rank` | RelevanceRankAccuracy | the same |
| `relevance_mass` | RelevanceMassAccuracy | 1e-6 |
| `deletion`, the points of its curve | PixelFlipping | 2e-6; theirs begins after the first step, its AUC is not divided by the steps |
| `max_sensitivity`, for the same perturbed pictures | MaxSensitivity | a relative 1e-5 |

Where they do not:

- Infidelity: each square stays black while the next one goes, and nothing is scaled; ours hides one square at a time
  and takes the best scale, so a map's unit does not matter.
- PointingGame takes any of several equal maxima for a hit; ours draws one.
- "black" is the least value of the picture there, 0 here.
- A dense network that is not wrapped gives no error: PixelFlipping returns H x W numbers for each step, and `softmax`
  goes over the last dimension, which is the picture's width.

Quantus asks for opencv-python (74 MB), which overwrites the headless build that grad-cam brings, so it is no part of the
extra `test`; `make test` installs it without what it asks for, 2.5 MB (`pip install --no-deps quantus==0.6.0 cachetools`).
Without it these tests are skipped and say so.
"""  # noqa: E501 - rows of a table
SIGNS = "¹²³⁴⁵⁶⁷⁸⁹"


class Footnotes:
    """Numbered texts, each once."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def sign(self, text: str) -> str:
        """The number of a text."""
        if text not in self.texts:
            self.texts.append(text)
        return SIGNS[self.texts.index(text)]

    def lines(self) -> list[str]:
        """One a line, in order."""
        return [f"{sign} {text}.  " for sign, text in zip(SIGNS, self.texts, strict=False)]


def cell_text(
    figures: Mapping[Cell, float], peer: str, method: str, places: list[Place], notes: Footnotes
) -> str:
    if method not in PEERS[peer].methods:
        return "—"
    asked = [cell for cell in figures if (cell.peer, cell.method) == (peer, method)]
    asked = [cell for cell in asked if cell.place in places]
    agree = [cell for cell in asked if not cell.note]
    differ = [cell for cell in asked if cell.note]
    text = "differs" if differ else "—"
    if agree:
        star = "\\*" if any(cell.exact for cell in agree) else ""
        text = f"{max(figures[cell] for cell in agree):.1e}{star}"
    signs = []
    for note in dict.fromkeys(cell.note for cell in differ):
        at = ", ".join(
            f"`{cell.place.layer}` {figures[cell]:.2g}" for cell in differ if cell.note == note
        )
        signs.append(notes.sign(f"Differs at {at}: {peers.NOTES[note]}"))
    for reason in peers.CANNOT:
        missing = [place.layer for place in places if peers.cannot(peer, method, place) == reason]
        if missing:
            at = ", ".join(f"`{layer}`" for layer in missing)
            signs.append(notes.sign(f"Not at {at}: {peer} {peers.CANNOT[reason]}"))
    return " ".join([text, *signs])


def section(figures: Mapping[Cell, float], network: str) -> str:
    places = [place for place in PLACES if place.network == network]
    side, notes = NETWORKS[network].side, Footnotes()
    rows = [["method", *PEERS], ["---"] * (1 + len(PEERS))]
    for method in (name for name in METHODS if name not in LAYERLESS):
        cells = [cell_text(figures, peer, method, places, notes) for peer in PEERS]
        rows.append([method_label(method), *cells])
    layers = ", ".join(f"`{place.layer}`" for place in places)
    return "\n".join(
        [
            f"## {NETWORKS[network].title}",
            "",
            f"{side} x {side} pixels. Layers: {layers}.",
            "",
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            *notes.lines(),
        ]
    ).rstrip()


def page(figures: Mapping[Cell, float]) -> str:
    tools = [*(peer.distribution for peer in PEERS.values()), "torch", "torchvision"]
    tools += ["segmentation-models-pytorch", "transformers"]
    versions = ", ".join(f"{tool} {version(tool)}" for tool in tools)
    intro = INTRO.format(tolerance=peers.TOLERANCE, versions=versions)
    parts = [section(figures, network) + "\n" for network in NETWORKS]
    return "\n".join([intro, *parts, QUANTUS])


def main() -> None:
    torch.set_num_threads(1)
    figures = {cell: peers.measure(cell) for cell in track(peers.CELLS, "Comparing")}
    PAGE.write_text(page(figures), encoding="utf-8")
    wrong = [
        f"{cell.id} {figures[cell]:.1e}" for cell in peers.CELLS if not cell.holds(figures[cell])
    ]
    if wrong:
        raise SystemExit("not as the table says: " + ", ".join(wrong))


if __name__ == "__main__":
    main()
