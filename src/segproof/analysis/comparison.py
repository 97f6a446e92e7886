"""Compares two runs: did the evidence for a model's explanations get better or worse?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from segproof.analysis import statistics as stats
from segproof.analysis.basis import Basis, Headline, candidates, headline, headline_measure
from segproof.analysis.names import HEADLINE_MEASURES, higher_is_better, measure_label, method_label
from segproof.analysis.tables import ranking
from segproof.choices import MARGIN
from segproof.errors import StudyError
from segproof.explain import Preset
from segproof.perturb import control_id

__all__ = ["RunComparison", "compare"]

ALPHA = 0.05


@dataclass(frozen=True)
class RunComparison:
    """Run B against run A, paired by tile.

    `table` has a line for each measure and candidate: measure, layer, method ("" and "prediction"
    for the network's own IoU), a, b (means over the common tiles), difference (positive: B is
    better), low, high (95 %), n, p (Wilcoxon, Holm over all lines), verdict (better | worse |
    same). `worse` says whether a line that counts is worse: the prediction, or `measure`, which
    judges, of a candidate that was not distinguishable from the best of A.
    """

    table: pd.DataFrame
    measure: str
    worse: bool
    sentence: str


def compare(
    first: pd.DataFrame, second: pd.DataFrame, *, preset: Preset = "strict", margin: float = MARGIN
) -> RunComparison:
    """Compare the rows of run A and run B on the tiles that both studied.

    "worse" is a difference whose whole 95 % interval lies below -`margin`; "better" above it.

    Raises:
        StudyError: no common tile, region, fill, level or candidate; a margin below 0.
    """
    if margin < 0:
        raise StudyError(f"margin {margin:g}", "0 or more, in the measure's unit", "check --margin")
    at = _common_headline(first, second)
    common = sorted(set(first["sample"]) & set(second["sample"]))
    if not common:
        raise StudyError("two runs without a common tile", "runs on the same data", "name others")
    samples: pd.Index[str] = pd.Index(common, dtype=object)
    measures = {headline_measure(rows, preset, at=at) for rows in (first, second)}
    headed = measures.pop() if len(measures) == 1 else "iou_drop"  # one of them has no M2
    lines: list[dict[str, object]] = []
    columns: list[tuple[np.ndarray, np.ndarray]] = []
    original = [_original(rows, at.reference, samples) for rows in (first, second)]
    lines.append({"measure": "IoU", "layer": "", "method": "prediction"})
    columns.append((original[0], original[1]))
    for measure in HEADLINE_MEASURES:
        sides = [candidates(rows, measure, preset, at, samples) for rows in (first, second)]
        for key in sides[0]:
            if key not in sides[1]:
                continue
            higher = higher_is_better(measure, preset)
            sign = 1.0 if higher else -1.0
            lines.append({"measure": measure, "layer": key[0], "method": key[1]})
            columns.append((sides[0][key], sides[1][key]))
            lines[-1]["sign"] = sign
    if len(lines) == 1:
        raise StudyError(
            "two runs without a common method and layer", "one at least", "study both alike"
        )
    table = _table(lines, columns, margin)
    ranked = ranking(Basis(first, preset, at), headed)
    group = ranked[ranked["in_best_group"].astype(bool)]
    counted = set(zip(group["layer"], group["method"], strict=True))
    matters = (table["method"] == "prediction") | (
        (table["measure"] == headed)
        & pd.Series([pair in counted for pair in zip(table["layer"], table["method"], strict=True)])
    )
    bad = table[matters & (table["verdict"] == "worse")]
    return RunComparison(table, headed, bool(len(bad)), _sentence(table, matters, bad, len(common)))


def _common_headline(first: pd.DataFrame, second: pd.DataFrame) -> Headline:
    """The cell of A's headline, if B has it too."""
    at = headline(first)
    there = second[(second["reference"] == at.reference) & (second["fill"] == at.fill)]
    levels = set(there.loc[there["binarisation"] == at.binarisation, "level"])
    mine = first[(first["binarisation"] == at.binarisation) & (first["fill"] == at.fill)]
    if not levels & set(mine["level"]):
        raise StudyError(
            "two runs with different regions, fills or levels",
            f"region {at.reference}, fill {at.fill} and levels by {at.binarisation} in both",
            "study the second model with the settings of the first (--fills, --areas, --region)",
        )
    return at


def _original(rows: pd.DataFrame, reference: str, samples: pd.Index[str]) -> np.ndarray:
    chosen = rows[(rows["method"] == control_id("original")) & (rows["reference"] == reference)]
    values = chosen.drop_duplicates("sample").set_index("sample")["iou"]
    return values.reindex(samples).to_numpy(dtype=np.float64)


def _table(
    lines: list[dict[str, object]],
    columns: list[tuple[np.ndarray, np.ndarray]],
    margin: float,
) -> pd.DataFrame:
    signs = np.array([float(str(line.pop("sign", 1.0))) for line in lines])
    a = np.stack([one for one, _ in columns], axis=1)
    b = np.stack([other for _, other in columns], axis=1)
    difference = (b - a) * signs
    mean, low, high, n = stats.intervals(difference)
    p = stats.holm([stats.paired_p(b[:, k], a[:, k]) for k in range(a.shape[1])])
    both = np.isfinite(difference)
    sums = [np.where(both, side, 0.0).sum(axis=0) for side in (a, b)]
    with np.errstate(invalid="ignore"):
        means = [total / both.sum(axis=0) for total in sums]
    verdict = np.where(high < -margin, "worse", np.where(low > margin, "better", "same"))
    return pd.DataFrame(lines).assign(
        a=means[0],
        b=means[1],
        difference=mean,
        low=low,
        high=high,
        n=n.astype(int),
        p=p,
        verdict=verdict,
    )


def _sentence(table: pd.DataFrame, matters: pd.Series[bool], bad: pd.DataFrame, tiles: int) -> str:
    where = f"On the {tiles} tile{'' if tiles == 1 else 's'} that both runs studied"
    counted = table[matters]
    if len(bad):
        said = [
            f"{_name(line)} by {-float(line['difference']):.3f}"
            f" ({-float(line['high']):.3f} to {-float(line['low']):.3f})"
            for _, line in bad.iterrows()
        ]
        return f"{where}, the evidence got worse: {'; '.join(said)}."
    good = [_name(line) for _, line in counted.iterrows() if line["verdict"] == "better"]
    if good:
        return (
            f"{where}, the evidence got better: {', '.join(good)}; nothing that counts got worse."
        )
    unclear = int((counted["n"] < 2).sum())
    text = f"{where}, nothing that counts got worse by more than the margin."
    return text + (
        f" {unclear} of {len(counted)} lines have fewer than two tiles." if unclear else ""
    )


def _name(line: Any) -> str:
    if line["method"] == "prediction":
        return "IoU of the prediction"
    measure = measure_label(str(line["measure"])).split(" (")[0]
    return f"{measure} of {method_label(str(line['method']))} at {line['layer']}"
