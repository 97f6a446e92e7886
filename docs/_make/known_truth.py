"""Renew the tables and figures of evidence.md, and the cards that ship, from a finished run.

segproof evidence --out RUN && python docs/_make/known_truth.py RUN
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from page import renew

from segproof.analysis import method_label
from segproof.evidence.of_measures import CUT_MEASURES, TRIED_FILLS, WHOLE

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "evidence" / "known-truth.md"
IMAGES = ROOT / "docs" / "images"
CARDS = ROOT / "src" / "segproof" / "assets" / "evidence" / "cards.json"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def lines(frame: pd.DataFrame) -> list[Any]:
    return list(frame.itertuples(index=False))


def tau(row: Any) -> str:
    return f"{row.tau:.2f} ({row.low:.2f} to {row.high:.2f})"


def measures(cards: pd.DataFrame) -> str:
    """Measures of cut maps at matched area, tier by tier, under the study's usual fill."""
    part = cards[(cards["kind"] == "all") & (cards["fill"] == TRIED_FILLS[-1])]
    part = part[part["measure"].isin(list(CUT_MEASURES))]
    at = {(row.tier, row.measure, row.binarisation): row for row in lines(part)}
    best = part[part["binarisation"] == "area"].groupby("measure")["tau"].min()
    made = []
    for measure in best.sort_values(ascending=False).index:
        for tier in sorted(part["tier"].unique()):
            row, cut = at[tier, measure, "area"], at[tier, measure, "threshold"]
            sees = f"{row.sees_cue:.0%}"
            share = [f"{row.oracle_first:.0%}", f"{row.random_upper:.0%}", sees, f"{row.ties:.0%}"]
            note = "" if pd.isna(row.label) else row.label
            made.append([f"`{measure}`", tier, tau(row), f"{cut.tau:.2f}", *share, note])
    head = ["measure", "tier", "tau, matched area", "tau, thresholds", "oracle first"]
    return table([*head, "random above", "sees the cue", "maps that tie", ""], made)


def kinds(cards: pd.DataFrame) -> str:
    """The headline measures and the contrast network by network, at matched area."""
    part = cards[(cards["binarisation"] == "area") & (cards["fill"] == TRIED_FILLS[-1])]
    part = part[part["kind"] != "all"]
    names = ["m1_confidence", "m2_confidence", "m3_certainty", "iou_drop", "contrast"]
    wide = part.pivot_table(index=["tier", "kind"], columns="measure", values="tau", sort=False)
    rows = [
        [str(key[0]), str(key[1]), *(f"{row[name]:.2f}" for name in names)]
        for key, row in zip(wide.index, wide.to_dict("records"), strict=True)
    ]
    return table(["tier", "network", *(f"`{name}`" for name in names)], rows)


def whole(cards: pd.DataFrame) -> str:
    part = cards[(cards["kind"] == "all") & (cards["binarisation"] == WHOLE)]
    at = {(row.tier, row.measure): row for row in lines(part)}
    order = part.groupby("measure")["tau"].min().sort_values(ascending=False).index
    tiers = sorted(part["tier"].unique())
    made = []
    for measure in order:
        rows = [at[tier, measure] for tier in tiers]
        notes = dict.fromkeys(f"{row.label} ({row.tier})" for row in rows if not pd.isna(row.label))
        first = ", ".join(f"{row.oracle_first:.0%}" for row in rows)
        made.append([f"`{measure}`", *map(tau, rows), first, ", ".join(notes)])
    return table(["measure", *(f"tau, tier {t}" for t in tiers), "oracle first", ""], made)


def methods(found: pd.DataFrame, tier: str) -> str:
    """Each method at its best layer for the cue, and at its best decoder block."""
    part = found[(found["kind"] == "all") & (found["tier"] == tier)]
    best = part.sort_values("cue_recall", ascending=False, kind="stable")
    decoder = best[best["layer"].str.startswith("decoder")].groupby("method")["cue_recall"].max()
    made = []
    for row in lines(best.groupby("method", sort=False).head(1)):
        low, high = row.cue_recall_low, row.cue_recall_high
        blind = f"{decoder[row.method]:.2f}" if row.method in decoder else "–"
        twin = "–" if pd.isna(row.twin_cue) else f"{row.twin_cue:.2f}"
        where = "control" if pd.isna(row.layer) or not row.layer else f"`{row.layer}`"
        scores = [f"{row.precision:.2f}", f"{row.cue_mass:.2f}", twin, f"{row.forwards}"]
        recall = f"{row.cue_recall:.2f} ({low:.2f} to {high:.2f})"
        made.append([method_label(row.method), where, recall, blind, *scores])
    head = ["method", "best layer", "cue recall", "at decoder blocks", "precision", "cue mass"]
    return table([*head, "twin difference", "forwards"], made)


def layers(found: pd.DataFrame) -> str:
    """Cue recall of gradient methods by layer and network, tier b."""
    part = found[(found["tier"] == "b") & (found["method"].isin(["grad_cam", "hires_cam"]))]
    part = part[(part["kind"] != "all") & part["cue_recall"].notna()]
    wide = part.pivot_table(index=["kind", "method"], columns="layer", values="cue_recall")
    rows = [
        [
            str(kind),
            method_label(str(method)),
            *("–" if pd.isna(v) else f"{v:.2f}" for v in r),
        ]
        for (kind, method), r in zip(wide.index, wide.to_numpy().tolist(), strict=True)
    ]
    return table(["network", "method", *(f"`{name}`" for name in wide.columns)], rows)


def factors(found: pd.DataFrame) -> str:
    """Shapley values of the factors: the least and the greatest over scenes."""
    rows = []
    for (tier, kind), part in found.groupby(["tier", "kind"], sort=False):
        cells = []
        for name in ("object", "cue", "decoys", "other"):
            # + 0.0: no minus before a rounded zero
            values = part.loc[part["factor"] == name, "value"].round(3) + 0.0
            cells.append(f"{values.min():.3f} to {values.max():.3f}" if len(values) else "–")
        rows.append([str(tier), str(kind), *cells])
    return table(["tier", "network", "object", "cue", "decoys", "ground"], rows)


def main(run: Path) -> None:
    cards = pd.read_csv(run / "measures.csv")
    found = pd.read_csv(run / "methods.csv", keep_default_na=True).fillna({"layer": ""})
    made = {
        "measures": measures(cards),
        "kinds": kinds(cards),
        "whole": whole(cards),
        "methods a": methods(found, "a"),
        "methods b": methods(found, "b"),
        "layers": layers(found),
        "shapley": factors(pd.read_csv(run / "shapley.csv")),
    }
    renew(PAGE, made)
    CARDS.parent.mkdir(exist_ok=True)
    shutil.copyfile(run / "cards.json", CARDS)
    IMAGES.mkdir(exist_ok=True)
    for name in ("measures", "maps", "methods-b"):
        shutil.copyfile(run / f"{name}.png", IMAGES / f"evidence-{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
