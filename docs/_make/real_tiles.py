"""Renew the tables and figures of real-tiles.md from two finished runs.

python docs/_make/real_tiles.py STRICT_RUN PAPER_RUN
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from page import renew

from segproof import Results
from segproof.analysis import SHORT, Analysis, measure_label, method_label
from segproof.report import figures as plot, png

PAGE = Path(__file__).resolve().parents[1] / "evidence" / "real-tiles.md"
IMAGES = Path(__file__).resolve().parents[1] / "images"
PUBLISHED = "2_566"  # the tile of the published figures
# gizzini2023extending and its notebook; confidence, entropy of M3 at t = 0.4, coarsest block
PRINTED = {
    "control:original": (0.9125, 0.001430),
    "grad_cam": (0.0335, 0.001117),
    "grad_cam_pp": (0.0380, 0.001131),
    "xgrad_cam": (0.0337, 0.001117),
    "score_cam": (0.7580, 0.001983),
    "eigen_cam": (0.0428, 0.001307),
}
# best per threshold 0.1 ... 0.5: method, confidence, entropy
PRINTED_BEST = {
    "M1": "Grad-CAM++ .0902/.00108, Score-CAM .0324/.00029, Score-CAM .0399/.00066,"
    " Score-CAM .1970/.00165, Score-CAM .5355/.00297",
    "M2": "Score-CAM .9044/.00142, Score-CAM .8985/.00135, Score-CAM .8693/.00145,"
    " Grad-CAM .7251/.00261, Grad-CAM .7682/.00297",
    "M3": "Grad-CAM++ .9017/.00139, Score-CAM .9050/.00138, Grad-CAM .0351/.00118,"
    " XGrad-CAM .0337/.00112, Grad-CAM++ .0335/.00112",
}
PRINTED_DELTA = {
    "score_cam": -0.3058,
    "grad_cam_pp": -0.2407,
    "grad_cam": -0.2386,
    "xgrad_cam": -0.2386,
    "eigen_cam": 0.0273,
}
FIVE = list(PRINTED_DELTA)


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def lines(frame: pd.DataFrame) -> list[Any]:
    return list(frame.itertuples(index=False))


def validity(strict: Results) -> str:
    found = strict.validity()
    return table(
        ["fill", "relative drop, mean", "lowest", "tiles", ""],
        [
            [
                row.fill,
                f"{row.mean_drop:.2f}",
                f"{row.min_drop:.2f}",
                f"{row.n}",
                "valid" if row.valid else "misleads",
            ]
            for row in lines(found)
        ],
    )


def one_tile(rows: pd.DataFrame, strategy: str, level: float, layer: str) -> Any:
    chosen = rows[(rows["sample"] == PUBLISHED) & (rows["strategy"] == strategy)]
    chosen = chosen[(chosen["binarisation"] == "threshold") & (chosen["level"] == level)]
    return chosen[chosen["layer"] == layer].set_index("method")


def third(paper: Results) -> str:
    rows = paper.rows
    original = rows[(rows["sample"] == PUBLISHED) & (rows["method"] == "control:original")]
    shown = pd.concat(
        [
            original.set_index("method"),
            one_tile(rows, "highlighted_and_target", 0.4, "decoder:1"),
        ]
    )
    return table(
        ["", "published: confidence", "entropy", "ours: confidence", "entropy", "area"],
        [
            [
                "original" if name.startswith("control") else method_label(name),
                f"{printed[0]:.4f}",
                f"{printed[1]:.6f}",
                *_measured(shown, name),
            ]
            for name, printed in PRINTED.items()
        ],
    )


def _measured(shown: pd.DataFrame, name: str) -> list[str]:
    row = shown.loc[name]
    if row["status"] != "ok":
        return [str(row["status"]), "", ""]
    area = "" if name.startswith("control") else f"{row['area']:.3f}"
    return [f"{row['confidence']:.4f}", f"{row['entropy']:.6f}", area]


def best_of_one(paper: Results) -> str:
    body = []
    for strategy, short in SHORT.items():
        cells = []
        for level in (0.1, 0.2, 0.3, 0.4, 0.5):
            part = one_tile(paper.rows, strategy, level, "decoder:1")
            part = part.loc[[name for name in FIVE if name in part.index]]
            part = part[part["status"] == "ok"]
            # as published: M1 lowest and M2 highest confidence, M3 lowest entropy
            order = {"M1": "confidence", "M2": "confidence", "M3": "entropy"}[short]
            name = part[order].idxmax() if short == "M2" else part[order].idxmin()
            row = part.loc[name]
            found = f"{row['confidence']:.4f}/{row['entropy']:.5f}"
            cells.append(f"{method_label(str(name))} {found}")
        body.append([short, "published", *re.split(r", (?=[A-Z])", PRINTED_BEST[short])])
        body.append(["", "ours", *cells])
    return table(["", "", "t = 0.1", "0.2", "0.3", "0.4", "0.5"], body)


def deltas(paper: Results) -> str:
    body = []
    for name, printed in PRINTED_DELTA.items():
        cells = []
        for level in (0.1, 0.2, 0.3, 0.4, 0.5):
            part = one_tile(paper.rows, "background_only", level, "decoder:1")
            row = part.loc[name]
            ok = row["status"] == "ok"
            found = f"{row['iou_delta']:+.3f} ({row['area']:.2f})"
            cells.append(found if ok else str(row["status"]))
        body.append([method_label(name), f"{printed:+.4f}", *cells])
    head = ["", "published", *(f"t = {level}" for level in (0.1, 0.2, 0.3, 0.4, 0.5))]
    return table(head, body)


def ranking(made: Analysis, binarisation: str) -> str:
    frame = made.faithfulness
    frame = frame[(frame["fill"] == made.headline.fill) & (frame["binarisation"] == binarisation)]
    frame = frame.assign(control=frame["layer"] == "")
    body = []
    order = ["control", "layer", "mean"]
    for row in lines(frame.sort_values(order, ascending=[True, True, False])):
        mean = f"~~{row.mean:+.3f}~~" if row.struck else f"{row.mean:+.3f}"
        body.append(
            [
                row.layer or "control",
                method_label(row.method),
                mean,
                f"{row.low:+.3f} to {row.high:+.3f}",
                f"{row.n}",
                "" if not row.layer else _flag(row.beats_random),
                "" if not row.layer else _flag(row.beats_p_c),
            ]
        )
    head = ["layer", "method", "IoU drop", "95 % interval", "tiles", "beats random", "beats p_c"]
    return table(head, body)


def _flag(value: Any) -> str:
    return "undecided" if value is None or pd.isna(value) else "yes" if value else "no"


def best(made: Analysis, binarisation: str) -> str:
    frame = made.best
    frame = frame[(frame["fill"] == made.headline.fill) & (frame["binarisation"] == binarisation)]
    body = []
    for (layer, level), part in frame.groupby(["layer", "level"]):
        cells = {row.measure: row for row in lines(part)}
        shown = []
        for short in ("M1", "M2", "M3"):
            row = cells[short]
            digits = 5 if abs(row.mean) < 0.01 else 3
            value = f"{method_label(row.best)} {row.mean:.{digits}f}"
            ties = len(row.tied.split(", ")) if row.tied else 0
            shown.append(
                (f"~~{value}~~" if row.struck else value) + (f" (+{ties})" if ties else "")
            )
        body.append([str(layer), f"{level:g}", *shown])
    names = [measure_label(short, made.preset) for short in ("M1", "M2", "M3")]
    return table(["layer", binarisation, *names], body)


def layers(made: Analysis) -> str:
    frame = made.layers[made.layers["fill"] == made.headline.fill]
    return table(
        ["measure", "method", "decoder:1 - decoder:2", "95 % interval", "p (Holm)", "better"],
        [
            [
                row.measure,
                method_label(row.method),
                f"{row.difference:+.3f}",
                f"{row.low:+.3f} to {row.high:+.3f}",
                "" if pd.isna(row.p) else f"{row.p:.2f}",
                row.better or "tie",
            ]
            for row in lines(frame)
        ],
    )


def sizes(made: Analysis) -> str:
    frame = made.sweep
    frame = frame[(frame["strategy"] == "background_only") & (frame["fill"] == made.headline.fill)]
    frame = frame[(frame["binarisation"] == "threshold") & (frame["layer"] != "")]
    wide = frame.pivot_table(index=["layer", "method"], columns="level", values="area", sort=False)
    head = ["layer", "method", *(f"t = {level:g}" for level in wide.columns)]
    body = [
        [layer, method_label(method), *(f"{value:.3f}" for value in values)]
        for (layer, method), values in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    return table(head, body)


def main(strict_folder: str, paper_folder: str) -> None:
    strict, paper = (Results.load(folder).finished() for folder in (strict_folder, paper_folder))
    ours = {run.preset: Analysis(run.rows, run.preset) for run in (strict, paper)}
    found = {
        "validity": validity(strict),
        "third": third(paper),
        "best-of-one": best_of_one(paper),
        "deltas": deltas(paper),
        "verdict": f"> {ours['strict'].verdict}",
        "verdict-paper": f"> {ours['paper'].verdict}",
        "best-area": best(ours["strict"], "area"),
        "ranking": ranking(ours["strict"], "area"),
        "ranking-paper": ranking(ours["paper"], "threshold"),
        "best-paper": best(ours["paper"], "threshold"),
        "layers": layers(ours["strict"]),
        "layers-paper": layers(ours["paper"]),
        "sizes": sizes(ours["strict"]),
    }
    renew(PAGE, found)
    IMAGES.mkdir(exist_ok=True)
    at = ours["strict"].headline
    figures = {
        "real-sweep.png": plot.sweep(
            ours["strict"].sweep, binarisation="area", reference=at.reference, fill=at.fill,
            preset="strict",
        ),
        "real-validity.png": plot.validity(ours["strict"].validity),
    }  # fmt: skip
    for name, figure in figures.items():
        (IMAGES / name).write_bytes(png(figure))


if __name__ == "__main__":
    main(*sys.argv[1:3])
