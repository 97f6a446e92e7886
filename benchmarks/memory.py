"""Peak memory: Score-CAM beside grad-cam's, and a study of many tiles beside one of few.

    python benchmarks/memory.py [--repeats N] [--quick]

Each in a process of its own (Linux), with the shared network. Score-CAM at the coarsest decoder
block, 256 channels, 512 x 512: greatest resident memory less that before the first forward; ours in
batches of 4 with freed blocks kept, grad-cam's in its own batches of 16, and in batches of 4 beside
it. The study is our command on the tiles of 256 px of kampala. Asked: at most 25 % of grad-cam's;
64 tiles at most 1.05 of 8.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.progress import track

from bench import Figure, options, parsed, ratios, report
from gradcam import heatmap
from processes import MB, alone, own_peak, peak_of
from segproof import explain
from segproof.models.precision import keep_blocks
from subjects import LITE0, SIDE, subjects

LAYER = "decoder.blocks.0"
BATCH = 4
SCORERS = {"ours": BATCH, "grad-cam": 16, f"grad-cam, batches of {BATCH}": BATCH}
FEW, MANY = 8, 64
STUDY = (
    *("--class", "building", "--methods", "grad_cam,eigen_cam"),
    *("--layers", "decoder:-2,decoder:-1", "--thresholds", "0.3", "--areas", "0.2"),
    *("--fills", "neutral", "--controls", "none", "--outline", "fixed"),
)


def score_cam(who: str, given: argparse.Namespace) -> float:
    """Peak memory of one Score-CAM in this process, bytes, less what was there before it."""
    [subject] = subjects(given)
    model, image, truth = subject.model, subject.image(0), subject.truth(0)
    before = own_peak()
    if who == "ours":
        keep_blocks()
        explain(
            model, image, method="score_cam", layer=LAYER, target=subject.target, truth=truth,
            fill="neutral", batch=BATCH,
        )  # fmt: skip
    else:
        shown = ((image - model.mean) / model.std)[None]
        heatmap(model, shown, truth, LAYER, "score_cam", SCORERS[who])
    return own_peak() - before


def study_peak(tiles: int, shared: Path) -> float:
    """Peak memory of `segproof study` on so many tiles, bytes."""
    with tempfile.TemporaryDirectory() as folder:
        where = ["--model", f"smp:{shared / LITE0}", "--data", str(shared / "kampala")]
        return peak_of(
            [sys.executable, "-m", "segproof", "study", *where, *STUDY, "--limit", str(tiles),
             "--out", str(Path(folder) / "run")]
        )  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = options(__doc__)
    parser.add_argument("--worker", choices=list(SCORERS), help=argparse.SUPPRESS)
    given = parsed(parser)
    given.networks = "lite0"
    if given.worker:
        print(score_cam(given.worker, given))
        return
    if not (given.shared / LITE0).is_dir():
        raise SystemExit(f"no {given.shared / LITE0}; this needs the shared network: --shared DIR")
    peaks: dict[str, list[float]] = {who: [] for who in SCORERS}
    tiles: dict[int, list[float]] = {FEW: [], MANY: []}
    for _ in track(range(given.repeats), "Peaks"):
        for who, found in peaks.items():
            words = ["--worker", who, "--shared", str(given.shared)]
            found.append(float(alone(__file__, *words)) / MB)
        for count, each in tiles.items():
            each.append(study_peak(count, given.shared) / MB)
    middle = {f"MB, {who}": sorted(found)[len(found) // 2] for who, found in peaks.items()}
    grown = {f"MB, {count} tiles": sorted(each)[len(each) // 2] for count, each in tiles.items()}
    report(
        "memory",
        [
            Figure(
                "memory-score_cam",
                ratios(peaks["ours"], peaks["grad-cam"]),
                notes={**middle, "layer": f"{LAYER}, 256 channels, {SIDE} px"},
            ),
            Figure("memory-tiles", ratios(tiles[MANY], tiles[FEW]), notes=grown),
        ],
        given,
    )


if __name__ == "__main__":
    main()
