"""Renew the tables and figures of trial.md from finished runs.

python docs/_make/trial.py WHU_RUN JONKOPING_RUN BANEPA_RUN [MISSES_RUN]

`python docs/_make/trial.py --shrink FROM TO SIDE` makes smaller tiles: pictures are
averaged by area, masks take the nearest pixel.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from page import renew
from PIL import Image
from real_tiles import IMAGES, _flag, lines, table

from segproof import Results
from segproof.analysis import (
    JOINED,
    Analysis,
    candidates,
    measure_label,
    method_label,
    strategy_label,
)
from segproof.analysis.statistics import interval
from segproof.report import figures as plot, png

PAGE = Path(__file__).resolve().parents[1] / "evidence" / "trial.md"
SETS = ("whu", "jonkoping", "banepa")
READ = (
    *("control:original", "control:target_only", "control:random", "control:p_c"),
    *("hires_cam", "grad_cam", "eigen_cam"),
)
SIZE = 0.2
MEASURES = (JOINED, "iou_drop", "M1", "M2", "M3")  # the one that judges comes first


def shrink(source: Path, target: Path, side: int) -> None:
    """Tiles of a folder images/ + masks/ as PNG of side x side pixels."""
    for name, how in (("images", Image.Resampling.BOX), ("masks", Image.Resampling.NEAREST)):
        (target / name).mkdir(parents=True, exist_ok=True)
        for path in sorted((source / name).iterdir()):
            small = Image.open(path).resize((side, side), how)
            small.save(target / name / path.with_suffix(".png").name)


def sets(runs: dict[str, Results]) -> str:
    body = []
    for name, run in runs.items():
        counts, first = run.manifest["tiles"], _originals(run)
        body.append(
            [
                name,
                f"{counts['ok']}",
                f"{counts['skipped']}",
                f"{first['iou'].mean():.3f}",
                f"{first['confidence'].mean():.3f}",
                f"{run.manifest['forwards']:,}",
                str(run.manifest["kernels"]["taken"]),
            ]
        )
    head = ["set", "tiles", "skipped", "IoU, mean over tiles", "confidence", "forwards", "kernels"]
    return table(head, body)


def _originals(run: Results) -> pd.DataFrame:
    return run.rows[run.rows["method"] == "control:original"]


def validity(runs: dict[str, Results]) -> str:
    found = {name: {row.fill: row for row in lines(run.validity())} for name, run in runs.items()}
    fills = dict.fromkeys(fill for rows in found.values() for fill in rows)
    body = [
        [fill, *(_drop(found[name].get(fill)) for name in runs)] for fill in fills
    ]  # fmt: skip
    return table(["fill", *runs], body)


def _drop(row: object) -> str:
    if row is None:
        return ""
    text = f"{row.mean_drop:.2f} ({row.min_drop:.2f})"  # type: ignore[attr-defined]
    return text if row.valid else f"~~{text}~~"  # type: ignore[attr-defined]


def ranking(made: Analysis, rows: pd.DataFrame) -> str:
    """All layer x method pairs together, greatest contrast first, with the other measures, and the
    controls; of 1 - S only M1 is shown, so that it has no contrast.
    """
    others = {}
    for name in MEASURES[1:]:
        ranked = made.ranked_by(name)
        others[name] = {(row.layer, row.method): row for row in lines(ranked)}
    body = []
    for row in lines(made.ranking):
        key = (row.layer, row.method)
        body.append(
            [
                row.layer,
                method_label(row.method),
                f"{_mean(row)} (#{row.rank:.0f})",
                *(_with_place(others[name][key]) for name in MEASURES[1:]),
                _flag(row.beats_random),
                _flag(row.beats_p_c),
            ]
        )
    body += _controls(made, rows)
    names = [measure_label(name, made.preset) for name in MEASURES]
    names[0] += ", 95 %"
    return table(["layer", "method", *names, "beats random", "beats p_c"], body)


def _controls(made: Analysis, rows: pd.DataFrame) -> list[list[str]]:
    names = [name for name in rows["method"].unique() if name.startswith("control:")]
    samples = pd.Index(rows["sample"].unique())
    values = {
        measure: candidates(rows, measure, made.preset, made.headline, samples, names)
        for measure in MEASURES
    }
    body = []
    for name in names:
        cells = [values[measure].get(("", name)) for measure in MEASURES]
        found = [None if cell is None else interval(cell) for cell in cells]
        if any(found):
            texts = ["" if cell is None else f"{cell.mean:.3f}" for cell in found]
            if found[0] is not None:
                texts[0] = _mean(found[0])
            place = math.inf if found[0] is None else -found[0].mean
            body.append((place, ["control", method_label(name), *texts, "", ""]))
    return [line for _, line in sorted(body)]


def _mean(row: Any) -> str:
    return f"{row.mean:+.3f} ({row.low:+.3f} to {row.high:+.3f})"


def _with_place(row: object) -> str:
    return f"{row.mean:.3f} (#{row.rank:.0f})"  # type: ignore[attr-defined]


def agreement(made: dict[str, Analysis]) -> str:
    """Kendall tau of the orders of layer x method pairs that two sets have in common."""
    body = []
    for measure in MEASURES:
        means = {}
        for name in made:
            ranked = made[name].ranked_by(measure)
            means[name] = ranked.set_index(["layer", "method"])["mean"]
        cells = []
        for first, second in (SETS[:2], SETS[1:], SETS[::2]):
            both = pd.concat([means[first], means[second]], axis=1, join="inner")
            tau = float(both.corr(method="kendall").to_numpy()[0, 1])
            cells.append(f"{tau:+.2f} ({len(both)})")
        body.append([measure_label(measure), *cells])
    head = ["measure", *(f"{a}, {b}" for a, b in (SETS[:2], SETS[1:], SETS[::2]))]
    return table(head, body)


def layers(made: Analysis) -> str:
    """Paired differences between the coarsest block and the others, by the measure that judges."""
    frame = made.layers[made.layers["fill"] == made.headline.fill]
    frame = frame[frame["measure"] == made.measure]
    frame = frame[frame["layer_a"].isin(["decoder:1"]) | frame["layer_b"].isin(["decoder:1"])]
    return table(
        ["method", "layers", "difference", "95 % interval", "p (Holm)", "better"],
        [
            [
                method_label(row.method),
                f"{row.layer_a} - {row.layer_b}",
                f"{row.difference:+.3f}",
                f"{row.low:+.3f} to {row.high:+.3f}",
                "" if pd.isna(row.p) else "< .001" if row.p < 0.001 else f"{row.p:.3f}",
                row.better or "tie",
            ]
            for row in lines(frame)
        ],
    )


def misses(run: Results) -> str:
    """Confidence on the missed roofs, under each fill: alone, without and with what maps show."""
    rows = run.rows[run.rows["status"] == "ok"]
    shown = rows["method"].isin(READ) & rows["layer"].isin(["", "decoder:2"])
    shown &= ~(rows["level"] < SIZE)
    body = []
    for key, part in rows[shown].groupby(["method", "strategy"], sort=False):
        method, strategy = (str(item) for item in key)
        cells = []
        for fill in run.manifest["fills"]:
            found = part[part["fill"].isin([fill, ""])].groupby("sample")["confidence"].mean()
            at = interval(found.to_numpy())
            cells.append(f"{at.mean:.3f} ({at.low:.3f} to {at.high:.3f})")
        body.append([method_label(method), strategy_label(strategy), *cells])
    return table(["", "shown", *run.manifest["fills"]], body)


def main(folders: list[str]) -> None:
    runs = {
        name: Results.load(folder).finished() for name, folder in zip(SETS, folders, strict=False)
    }
    made = {name: Analysis(run.rows, run.preset) for name, run in runs.items()}
    found = {
        "sets": sets(runs),
        "validity": validity(runs),
        "agreement": agreement(made),
    }
    for name, run in runs.items():
        found[f"verdict-{name}"] = f"> {made[name].verdict}"
        found[f"ranking-{name}"] = ranking(made[name], run.rows)
        found[f"layers-{name}"] = layers(made[name])
    if len(folders) > len(SETS):
        found["misses"] = misses(Results.load(folders[len(SETS)]).finished())
    renew(PAGE, found)
    for name in runs:
        at = made[name].headline
        pairs = made[name].layers
        # layers and methods in one order in all pictures
        order = made[name].auc[["layer", "method"]].drop_duplicates()
        figure = plot.layers(
            pairs[(pairs["layer_a"] == "decoder:1") & (pairs["layer_b"] == "decoder:2")],
            order.merge(made[name].ranking, on=["layer", "method"]),
            measure=made[name].measure,
            reference=at.reference,
            fill=at.fill,
        )
        (IMAGES / f"trial-{name}.png").write_bytes(png(figure))
        print(name, made[name].verdict)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--shrink"]:
        shrink(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main(sys.argv[1:])
