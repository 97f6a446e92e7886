"""Computes what every table of a study rests on: valid fills, the headline cell, the controls.

A number that a fill makes meaningless (M1, IoU drop and the contrast under a fill that is not valid
for the model) stays in the tables with `struck` set and, in the strict preset, takes no part in a
ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from segproof.analysis import statistics as stats
from segproof.analysis.cells import (
    Array,
    Cells,
    average,
    control_rows,
    over_levels,
    samples_of,
)
from segproof.analysis.names import HEADLINE_MEASURES, JOINED, REMOVING, definition_of
from segproof.perturb import CONTROLS, FILLS, control_id

if TYPE_CHECKING:
    from segproof.explain import Preset

__all__ = [
    "ALPHA",
    "VALID_DROP",
    "Basis",
    "Headline",
    "candidates",
    "headline",
    "headline_measure",
    "judged_by_fill",
    "measure_cells",
    "with_flags",
]

ALPHA = 0.05
VALID_DROP = 0.5
# Controls that a method has to beat before it is believed.
RIVALS = tuple(name for name, control in CONTROLS.items() if control.rival)


@dataclass(frozen=True)
class Headline:
    """Where the one-sentence answer is read: one binarisation, one reference, one fill."""

    binarisation: str
    reference: str
    fill: str
    valid: bool | None  # None: the control that tests the fill was not run


@dataclass(frozen=True, eq=False, repr=False)
class Basis:
    """The rows of a study and what all its tables share, each computed once and kept.

    `rows` has one line per measured input. `at` names the cell in which the answer is read, where
    it shall not be the headline of these rows (two runs that are compared share one cell).
    """

    rows: pd.DataFrame
    preset: Preset = "strict"
    at: Headline | None = None

    @cached_property
    def samples(self) -> pd.Index[Any]:
        """The images, sorted by name."""
        return samples_of(self.rows)

    @cached_property
    def methods(self) -> pd.DataFrame:
        """The rows of methods: controls are left out."""
        return self.rows[~control_rows(self.rows)]

    @cached_property
    def validity(self) -> pd.DataFrame:
        """Every fill with what happens when exactly the target is removed; see `_validity`."""
        return _validity(self.rows)

    @cached_property
    def headline(self) -> Headline:
        """The cell in which the answer is read."""
        return _headline(self.rows, self.validity) if self.at is None else self.at

    @cached_property
    def measure(self) -> str:
        """The measure that the answer goes by; see `headline_measure`."""
        return headline_measure(self.rows, self.preset, at=self.headline)

    @cached_property
    def against_controls(self) -> pd.DataFrame:
        """Every method and layer against random blobs and p_c; see `_against_controls`."""
        return _against_controls(self)

    @cached_property
    def invalid(self) -> set[tuple[str, str]]:
        """The (reference, fill) pairs that were tested and failed."""
        failed = self.validity[~self.validity["valid"].astype(bool)]
        return set(zip(failed["reference"], failed["fill"], strict=True))


# --- fills and the headline -------------------------------------------------------------------


def _validity(rows: pd.DataFrame) -> pd.DataFrame:
    """Judge every fill by what happens when exactly the target is removed.

    Columns: reference, fill, mean_drop, min_drop (relative drop of confidence,
    1 - confidence / confidence of the original), n, valid (mean_drop >= 0.5).
    """
    columns = ["reference", "fill", "mean_drop", "min_drop", "n", "valid"]
    original = rows[rows["method"] == control_id("original")]
    removed = rows[rows["method"] == control_id("target_removed")]
    if original.empty or removed.empty:
        return pd.DataFrame(columns=columns)
    samples = samples_of(rows)
    base = average(original, "confidence", ["reference"], samples)
    cells = average(removed, "confidence", ["reference", "fill"], samples)
    column = {name: j for j, name in enumerate(base.keys["reference"])}
    lines = []
    for j, (reference, fill) in enumerate(cells.keys.itertuples(index=False)):
        if reference not in column:
            continue
        before = base.matrix[:, column[reference]]
        usable = np.isfinite(before) & np.isfinite(cells.matrix[:, j]) & (before > 0)
        drop = 1 - cells.matrix[usable, j] / before[usable]
        mean = float(drop.mean()) if drop.size else float("nan")
        lowest = float(drop.min()) if drop.size else float("nan")
        lines.append((reference, fill, mean, lowest, int(drop.size), bool(mean >= VALID_DROP)))
    return pd.DataFrame(lines, columns=columns)


def judged_by_fill(basis: Basis, frame: pd.DataFrame, removing: Any) -> pd.DataFrame:
    """Add valid_fill (False only if tested and failed), struck and ranked.

    `removing` says, for all lines or line by line, whether the measure is one of removal.
    """
    pairs = zip(frame["reference"], frame["fill"], strict=True)
    ok = np.array([pair not in basis.invalid for pair in pairs], dtype=bool)
    struck = ~ok & np.asarray(removing, dtype=bool)
    return frame.assign(valid_fill=ok, struck=struck, ranked=~struck | (basis.preset == "paper"))


def headline(rows: pd.DataFrame) -> Headline:
    """Choose the headline cell: matched area if there, the commonest reference, a valid fill.

    The paper preset knows no matched area: its headline is at the thresholds, as published.
    Among valid fills the first of FILLS is taken, natural ones first; without a valid one the first
    tried.
    """
    return _headline(rows, _validity(rows))


def _headline(rows: pd.DataFrame, validity: pd.DataFrame) -> Headline:
    methods = rows[~control_rows(rows)]
    source = methods if len(methods) else rows
    kinds = set(source["binarisation"].unique())
    published = "preset" in source and (source["preset"] == "paper").any()
    order_of_kinds = ("threshold", "area") if published else ("area", "threshold")
    binarisation = next((kind for kind in order_of_kinds if kind in kinds), "area")
    counts = source["reference"].value_counts()
    reference = str(counts.index[0]) if len(counts) else ""
    used = [str(fill) for fill in source.loc[source["reference"] == reference, "fill"].unique()]
    order = [*(fill for fill in FILLS if fill in used), *sorted(set(used) - {*FILLS})]
    table = validity[validity["reference"] == reference]
    valid_of = dict(zip(table["fill"], table["valid"].astype(bool), strict=True))
    for valid in (True, None, False):  # a fill that was not tested comes before one that failed
        for fill in order:
            if valid_of.get(fill) is valid:
                return Headline(binarisation, reference, fill, valid)
    return Headline(binarisation, reference, "", None)


def headline_measure(
    rows: pd.DataFrame, preset: Preset = "strict", *, at: Headline | None = None
) -> str:
    """The measure that the answer goes by: verdict, overall ranking, agreement, precision.

    strict: the contrast, of the headline measures the one that agrees with the known truth
    (docs/evidence/known-truth.md); IoU drop where no M2 was measured, M3 where no fill is valid.
    paper: IoU drop, as published.
    """
    at = headline(rows) if at is None else at
    if preset == "paper":
        return "iou_drop"
    if at.valid is False:
        return "M3"
    kept = (rows["strategy"] == "highlighted_only").to_numpy(dtype=bool) & ~control_rows(rows)
    return JOINED if kept.any() else "iou_drop"


# --- values of the headline measures ----------------------------------------------------------


def measure_cells(
    rows: pd.DataFrame, measure: str, preset: Preset, binarisation: str, samples: pd.Index[Any]
) -> tuple[Cells, bool]:
    """Per-level cells of a headline measure, controls included, and whether higher is better."""
    strategy, column, higher = definition_of(measure, preset)
    by = ["reference", "fill", "layer", "method", "level"]
    cut = rows[rows["binarisation"] == binarisation]
    if measure == JOINED:
        # controls that are removed alone have no M2
        kept = cut[cut["strategy"] == strategy]
        shown = average(kept, "confidence", by, samples)
        removed = cut[cut["strategy"] == "background_only"]
        removed = removed[removed["method"].isin(kept["method"].unique())]
        hidden = average(removed, "confidence", by, samples)
        place = {key: j for j, key in enumerate(hidden.keys.itertuples(index=False, name=None))}
        # The last column stands for regions of which M1 was not shown: place -1 finds it.
        values = np.column_stack([hidden.matrix, np.full(len(samples), np.nan)])
        order = [place.get(key, -1) for key in shown.keys.itertuples(index=False, name=None)]
        return Cells(shown.keys, shown.matrix - values[:, order], samples), higher
    return average(cut[cut["strategy"] == strategy], column, by, samples), higher


def candidates(
    rows: pd.DataFrame,
    measure: str,
    preset: Preset,
    at: Headline,
    samples: pd.Index[Any],
    controls: Sequence[str] = (),
) -> dict[tuple[str, str], Array]:
    """Values of a headline measure of each (layer, method) at the headline cell, one for each of
    `samples`, mean over levels; NaN where a tile has none. `controls` are added, with layer "".
    """
    chosen = ~control_rows(rows) | rows["method"].isin(list(controls)).to_numpy(bool)
    methods = rows[chosen & rows["sample"].isin(samples)]
    methods = methods[(methods["reference"] == at.reference) & (methods["fill"] == at.fill)]
    folded = over_levels(measure_cells(methods, measure, preset, at.binarisation, samples)[0])
    pairs = zip(folded.keys["layer"], folded.keys["method"], strict=True)
    return {(layer, method): folded.matrix[:, k] for k, (layer, method) in enumerate(pairs)}


# --- controls ---------------------------------------------------------------------------------


def _against_controls(basis: Basis) -> pd.DataFrame:
    """Compare every method x layer with random blobs and with p_c, at matched area, by image.

    One line per headline measure x reference x fill x layer x method. For each of `random` and
    `p_c`: X_difference (positive = the method is better) with X_low, X_high, X_n, the
    Wilcoxon X_p (Holm over methods and layers), beats_X and X_decided. beats_X is better mean and
    p < 0.05; where too few images can decide, the interval lies above 0 and X_decided is False;
    NA where the control was not run.
    """
    parts = []
    kinds = set(basis.methods["binarisation"].unique())
    binarisation = "area" if "area" in kinds or not kinds else "threshold"
    for measure in HEADLINE_MEASURES:
        cells, higher = measure_cells(
            basis.rows, measure, basis.preset, binarisation, basis.samples
        )
        for (reference, fill), members in cells.groups(["reference", "fill"]):
            block = cells.at(members)
            ours = block.where(~control_rows(block.keys))
            if ours.keys.empty:
                continue
            lines = ours.keys[["layer", "method"]].drop_duplicates().reset_index(drop=True)
            lines.insert(0, "measure", measure)
            lines.insert(1, "reference", reference)
            lines.insert(2, "fill", fill)
            for name in RIVALS:
                control = block.where((block.keys["method"] == control_id(name)).to_numpy(bool))
                lines = lines.assign(**_versus(name, ours, control, higher, len(lines)))
            parts.append(lines)
    if not parts:
        names = ["measure", "reference", "fill", "layer", "method", "beats_random", "beats_p_c"]
        return judged_by_fill(basis, pd.DataFrame(columns=names), [])
    frame = pd.concat(parts, ignore_index=True)
    return judged_by_fill(basis, frame, frame["measure"].isin(REMOVING))


def _versus(name: str, ours: Cells, control: Cells, higher: bool, lines: int) -> dict[str, Any]:
    """Columns of the comparison with one control, in the order of the methods."""
    empty = np.full(lines, np.nan)
    levels = sorted(set(ours.keys["level"]) & set(control.keys["level"]))
    if not levels:
        missing = pd.array([pd.NA] * lines, dtype="boolean")
        numbers = {f"{name}_{part}": empty for part in ("difference", "low", "high", "p")}
        return numbers | {f"{name}_n": 0, f"beats_{name}": missing, f"{name}_decided": False}
    a = over_levels(ours, levels=levels).matrix
    b = over_levels(control, levels=levels).matrix[:, :1]  # one column against all methods
    difference = (a - b) if higher else (b - a)
    mean, low, high, n = stats.intervals(difference)
    raw = [
        stats.paired_p(difference[:, j], np.zeros(len(difference))) if n[j] else np.nan
        for j in range(lines)
    ]
    p = stats.holm(raw)
    decided = n >= stats.smallest_n(int(np.isfinite(raw).sum()), ALPHA)
    beats = np.where(decided, (mean > 0) & (p < ALPHA), low > 0)
    return {
        f"{name}_difference": mean,
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_n": n.astype(int),
        f"{name}_p": p,
        f"beats_{name}": pd.array(beats.astype(bool), dtype="boolean"),
        f"{name}_decided": decided,
    }


def with_flags(basis: Basis, frame: pd.DataFrame) -> pd.DataFrame:
    """Join beats_random and beats_p_c on measure, reference, fill, layer and method."""
    by = ["measure", "reference", "fill", "layer", "method"]
    flags = basis.against_controls[[*by, "beats_random", "beats_p_c"]]
    joined = frame.merge(flags, on=by, how="left", sort=False)
    for name in ("beats_random", "beats_p_c"):
        joined[name] = joined[name].astype("boolean")
    return joined
