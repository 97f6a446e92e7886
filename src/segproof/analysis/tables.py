"""The tables of tasks 1-3, made from the rows of a study; images are averaged only here.

Rows whose status is not `ok` are counted and never averaged. A number that a fill makes
meaningless (M1, IoU drop and the contrast under a fill that is not valid for the model) stays in
the tables with `struck` set and, in the strict preset, takes no part in a ranking.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from segproof.analysis import statistics as stats
from segproof.errors import UnknownNameError
from segproof.perturb import FILLS, STRATEGIES

__all__ = [
    "Headline",
    "Tables",
    "against_controls",
    "agreement",
    "auc",
    "best",
    "candidates",
    "combinations_ranked",
    "faithfulness",
    "fill_agreement",
    "headline",
    "higher_is_better",
    "judged",
    "judging",
    "layers",
    "m3_gain",
    "make",
    "mean_ranks",
    "measure_agreement",
    "measure_label",
    "measure_of",
    "method_label",
    "originals",
    "precision",
    "statuses",
    "strategy_label",
    "sweep",
    "validity",
    "verdict",
]

Preset = Literal["strict", "paper"]
Array = npt.NDArray[np.float64]
ALPHA = 0.05
VALID_DROP = 0.5
SHORT = {"background_only": "M1", "highlighted_only": "M2", "highlighted_and_target": "M3"}
JOINED = "contrast"  # M2 - M1: M1 cannot see a part missing, M2 ties poor maps
MEASURES = ("M1", "M2", "M3", "iou_drop", JOINED)
REMOVING = ("M1", "iou_drop", JOINED)  # under a fill that is not valid they measure outlines
LABELS = {
    "grad_cam": "Grad-CAM",
    "grad_cam_pp": "Grad-CAM++",
    "xgrad_cam": "XGrad-CAM",
    "score_cam": "Score-CAM",
    "eigen_cam": "Eigen-CAM",
    "hires_cam": "HiRes-CAM",
    "layer_cam": "Layer-CAM",
    "grad_cam_elementwise": "Grad-CAM element-wise",
    "seg_xres_cam": "Seg-XRes-CAM",
    "seg_eigen_cam": "Seg-Eigen-CAM",
    "eigen_grad_cam": "Eigen-Grad-CAM",
    "ablation_cam": "Ablation-CAM",
    "kernel_weighted": "Kernel-Weighted",
    "rise": "RISE",
    "occlusion": "Occlusion",
    "input_x_gradient": "Gradient \N{MULTIPLICATION SIGN} input",
    "integrated_gradients": "Integrated gradients",
    "control:random": "random blobs",
    "control:p_c": "probability map",
    "control:edges": "image edges",
    "control:truth": "truth as heatmap",
    "control:uniform": "uniform (scattered pixels)",
    "control:inverse": "1 \N{MINUS SIGN} S of all maps",
}
# Where several fills are valid the headline uses the first of these: in-distribution ones first.
FILL_ORDER = tuple(FILLS)
KEYS = ["layer", "method", "binarisation", "level", "strategy", "reference", "fill"]
BOUNDARY = ("boundary_f", "boundary_f_prediction")  # where a study made them
NOT_OK = ("all_zero", "constant", "non_finite", "empty_region")


def method_label(method: str) -> str:
    """Name of a method or control as people write it."""
    return LABELS.get(method, method.removeprefix("control:"))


def strategy_label(strategy: str) -> str:
    """Name of a strategy with its published number, e.g. `M1 background_only`."""
    return f"{SHORT[strategy]} {strategy}" if strategy in SHORT else strategy


def measure_label(measure: str, preset: Preset = "strict") -> str:
    """Name of a headline measure with the direction that is better."""
    third = "M3 certainty (higher is better)"
    if preset == "paper":
        third = "M3 entropy (lower is better)"
    return {
        "M1": "M1 confidence (lower is better)",
        "M2": "M2 confidence (higher is better)",
        "M3": third,
        "iou_drop": "IoU drop (higher is better)",
        JOINED: "contrast M2 \N{MINUS SIGN} M1 (higher is better)",
    }.get(measure, measure)


def measure_of(strategy: str, preset: Preset = "strict") -> tuple[str, bool]:
    """Return the column that judges `strategy` and whether higher is better."""
    match strategy:
        case "background_only":
            return "confidence", False
        case "highlighted_only":
            return "confidence", True
        case "highlighted_and_target":
            return ("entropy", False) if preset == "paper" else ("certainty", True)
    raise UnknownNameError.of("strategy", strategy, STRATEGIES)


def _definition(measure: str, preset: Preset) -> tuple[str, str, bool]:
    """Strategy, column and direction (higher is better) of a headline measure."""
    if measure == "iou_drop":
        return "background_only", "iou_drop", True
    if measure == JOINED:
        return "highlighted_only", JOINED, True
    strategy = next(name for name, short in SHORT.items() if short == measure)
    return strategy, *measure_of(strategy, preset)


# --- cells: image x cell matrices, made once per table without a loop over rows ---------------


@dataclass(frozen=True)
class _Cells:
    """`matrix[i, j]` = value of image i in cell j; `keys` has one line per cell."""

    keys: pd.DataFrame
    matrix: Array
    samples: pd.Index[Any]

    def where(self, chosen: npt.NDArray[np.bool_]) -> _Cells:
        return _Cells(
            self.keys.loc[chosen].reset_index(drop=True), self.matrix[:, chosen], self.samples
        )

    def groups(self, by: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], npt.NDArray[np.intp]]]:
        """Yield (key values, cell numbers), in order of first appearance."""
        if self.keys.empty:
            return
        number = self.keys.groupby(list(by), sort=False, dropna=False).ngroup().to_numpy()
        order = np.argsort(number, kind="stable")
        for cells in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
            first = self.keys.iloc[int(cells[0])]
            yield tuple(first[name] for name in by), cells


def _values(rows: pd.DataFrame, column: str) -> Array:
    """`column` as float, NaN where the row's status is not ok."""
    if column == "iou_drop":
        values = -rows["iou_delta"].to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        values = rows[column].to_numpy(dtype=np.float64, na_value=np.nan).copy()
    values[(rows["status"] != "ok").to_numpy(dtype=bool)] = np.nan
    return values


def _cells(
    rows: pd.DataFrame, column: str, by: Sequence[str], samples: pd.Index[Any] | None = None
) -> _Cells:
    """Average `column` per image and cell (over the seeds of random blobs, say).

    Cells are sorted by their keys: numbers by size, names in the order in which they appear.
    """
    if samples is None:
        samples = _samples(rows)
    if rows.empty:
        return _Cells(rows[list(by)].reset_index(drop=True), np.empty((len(samples), 0)), samples)
    codes, sizes = [], []
    for name in by:
        code, names = pd.factorize(rows[name], sort=name == "level", use_na_sentinel=False)
        codes.append(code)
        sizes.append(len(names))
    flat = np.ravel_multi_index(tuple(codes), tuple(sizes))
    cell_ids, first, cell = np.unique(flat, return_index=True, return_inverse=True)
    keys = rows.iloc[first][list(by)].reset_index(drop=True)
    image = samples.get_indexer(pd.Index(rows["sample"].astype(object)))
    values = _values(rows, column)
    finite = np.isfinite(values)
    place = image[finite] * len(cell_ids) + cell[finite]
    shape = (len(samples), len(cell_ids))
    size = shape[0] * shape[1]
    total = np.bincount(place, weights=values[finite], minlength=size)
    count = np.bincount(place, minlength=size)
    with np.errstate(invalid="ignore"):
        matrix = (total / count).reshape(shape)
    return _Cells(keys, matrix, samples)


def _over_levels(
    cells: _Cells, reduce: Literal["mean", "auc"] = "mean", levels: Iterable[float] | None = None
) -> _Cells:
    """Fold the levels of each image into one value; an image lacking one level is missing.

    `mean` is the plain mean; `auc` the trapezoid area divided by the range of the levels, so that
    it stays in the measure's unit.
    """
    if levels is not None:
        cells = cells.where(cells.keys["level"].isin(list(levels)).to_numpy(dtype=bool))
    by = [name for name in cells.keys.columns if name != "level"]
    keys, columns = [], []
    for _, members in cells.groups(by):
        block = cells.matrix[:, members]
        level = cells.keys["level"].to_numpy(dtype=np.float64)[members]
        if reduce == "auc" and len(members) > 1:
            columns.append(np.trapezoid(block, level, axis=1) / (level[-1] - level[0]))
        else:
            columns.append(block.mean(axis=1))
        keys.append(int(members[0]))
    frame = cells.keys.iloc[keys][by].reset_index(drop=True)
    matrix = np.stack(columns, axis=1) if columns else np.empty((len(cells.samples), 0))
    return _Cells(frame, matrix, cells.samples)


def _with_intervals(cells: _Cells) -> pd.DataFrame:
    mean, low, high, n = stats.intervals(cells.matrix)
    return cells.keys.assign(mean=mean, low=low, high=high, n=n.astype(int))


def _is_control(rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
    return rows["method"].str.startswith("control:").to_numpy(dtype=bool)


def _samples(rows: pd.DataFrame) -> pd.Index[Any]:
    names: pd.Index[Any] = pd.Index(sorted(rows["sample"].unique()), dtype=object)
    return names


# --- fills and the headline -------------------------------------------------------------------


def validity(rows: pd.DataFrame) -> pd.DataFrame:
    """Judge every fill by what happens when exactly the target is removed.

    Columns: reference, fill, mean_drop, min_drop (relative drop of confidence,
    1 - confidence / confidence of the original), n, valid (mean_drop >= 0.5).
    """
    columns = ["reference", "fill", "mean_drop", "min_drop", "n", "valid"]
    original = rows[rows["method"] == "control:original"]
    removed = rows[rows["method"] == "control:target_removed"]
    if original.empty or removed.empty:
        return pd.DataFrame(columns=columns)
    samples = _samples(rows)
    base = _cells(original, "confidence", ["reference"], samples)
    cells = _cells(removed, "confidence", ["reference", "fill"], samples)
    column = {name: j for j, name in enumerate(base.keys["reference"])}
    out = []
    for j, (reference, fill) in enumerate(cells.keys.itertuples(index=False)):
        if reference not in column:
            continue
        before = base.matrix[:, column[reference]]
        usable = np.isfinite(before) & np.isfinite(cells.matrix[:, j]) & (before > 0)
        drop = 1 - cells.matrix[usable, j] / before[usable]
        mean = float(drop.mean()) if drop.size else float("nan")
        lowest = float(drop.min()) if drop.size else float("nan")
        out.append((reference, fill, mean, lowest, int(drop.size), bool(mean >= VALID_DROP)))
    return pd.DataFrame(out, columns=columns)


def _judged(frame: pd.DataFrame, valid: pd.DataFrame, struck: Any, preset: Preset) -> pd.DataFrame:
    """Add valid_fill (False only if tested and failed), struck and ranked."""
    bad = set(zip(valid["reference"], valid["fill"], strict=True)) if len(valid) else set()
    if len(valid):
        wrong = valid[~valid["valid"].astype(bool)]
        bad = set(zip(wrong["reference"], wrong["fill"], strict=True))
    pairs = zip(frame["reference"], frame["fill"], strict=True)
    ok = np.array([pair not in bad for pair in pairs], dtype=bool)
    marked = ~ok & np.asarray(struck, dtype=bool)
    return frame.assign(valid_fill=ok, struck=marked, ranked=~marked | (preset == "paper"))


@dataclass(frozen=True)
class Headline:
    """Where the one-sentence answer is read: one binarisation, one reference, one fill."""

    binarisation: str
    reference: str
    fill: str
    valid: bool | None  # None: the control that tests the fill was not run


def headline(rows: pd.DataFrame) -> Headline:
    """Choose the headline cell: matched area if there, the commonest reference, a valid fill.

    The paper preset knows no matched area: its headline is at the thresholds, as published.
    Among valid fills the first of FILL_ORDER is taken; without a valid one the first tried.
    """
    methods = rows[~_is_control(rows)]
    source = methods if len(methods) else rows
    kinds = set(source["binarisation"].unique())
    published = "preset" in source and (source["preset"] == "paper").any()
    wanted_kinds = ("threshold", "area") if published else ("area", "threshold")
    binarisation = next((kind for kind in wanted_kinds if kind in kinds), "area")
    counts = source["reference"].value_counts()
    reference = str(counts.index[0]) if len(counts) else ""
    used = [str(fill) for fill in source.loc[source["reference"] == reference, "fill"].unique()]
    order = [*(fill for fill in FILL_ORDER if fill in used), *sorted(set(used) - {*FILL_ORDER})]
    table = validity(rows)
    table = table[table["reference"] == reference]
    known = dict(zip(table["fill"], table["valid"].astype(bool), strict=True))
    for wanted in (True, None, False):
        for fill in order:
            if known.get(fill) is wanted:
                return Headline(binarisation, reference, fill, wanted)
    return Headline(binarisation, reference, "", None)


def judging(rows: pd.DataFrame, preset: Preset = "strict", *, at: Headline | None = None) -> str:
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
    kept = (rows["strategy"] == "highlighted_only").to_numpy(dtype=bool) & ~_is_control(rows)
    return JOINED if kept.any() else "iou_drop"


# --- controls ---------------------------------------------------------------------------------


def _measure_cells(
    rows: pd.DataFrame, measure: str, preset: Preset, binarisation: str, samples: pd.Index[Any]
) -> tuple[_Cells, bool]:
    """Per-level cells of a headline measure, controls included."""
    strategy, column, higher = _definition(measure, preset)
    by = ["reference", "fill", "layer", "method", "level"]
    cut = rows[rows["binarisation"] == binarisation]
    if measure == JOINED:
        # controls that are removed alone have no M2
        kept = cut[cut["strategy"] == strategy]
        shown = _cells(kept, "confidence", by, samples)
        removed = cut[cut["strategy"] == "background_only"]
        removed = removed[removed["method"].isin(kept["method"].unique())]
        hidden = _cells(removed, "confidence", by, samples)
        place = {key: j for j, key in enumerate(hidden.keys.itertuples(index=False, name=None))}
        # the last column stands for regions of which M1 was not shown
        values = np.column_stack([hidden.matrix, np.full(len(samples), np.nan)])
        order = [place.get(key, -1) for key in shown.keys.itertuples(index=False, name=None)]
        return _Cells(shown.keys, shown.matrix - values[:, order], samples), higher
    return _cells(cut[cut["strategy"] == strategy], column, by, samples), higher


def against_controls(rows: pd.DataFrame, preset: Preset = "strict") -> pd.DataFrame:
    """Compare every method x layer with random blobs and with p_c, at matched area, by image.

    One line per measure of MEASURES x reference x fill x layer x method. For each of `random` and
    `p_c`: X_difference (positive = the method is better) with X_low, X_high, X_n, the
    Wilcoxon X_p (Holm over methods and layers), beats_X and X_decided. beats_X is better mean and
    p < 0.05; where too few images can decide, the interval lies above 0 and X_decided is False;
    NA where the control was not run.
    """
    samples = _samples(rows)
    parts = []
    control = _is_control(rows)
    kinds = set(rows.loc[~control, "binarisation"].unique())
    binarisation = "area" if "area" in kinds or not kinds else "threshold"
    for measure in MEASURES:
        cells, higher = _measure_cells(rows, measure, preset, binarisation, samples)
        for (reference, fill), members in cells.groups(["reference", "fill"]):
            block = _Cells(
                cells.keys.iloc[members].reset_index(drop=True), cells.matrix[:, members], samples
            )
            is_control = _is_control(block.keys)
            ours = block.where(~is_control)
            if ours.keys.empty:
                continue
            line = ours.keys[["layer", "method"]].drop_duplicates().reset_index(drop=True)
            line.insert(0, "measure", measure)
            line.insert(1, "reference", reference)
            line.insert(2, "fill", fill)
            for name in ("random", "p_c"):
                other = block.where((block.keys["method"] == f"control:{name}").to_numpy(bool))
                line = line.assign(**_versus(name, ours, other, higher, len(line)))
            parts.append(line)
    if not parts:
        names = ["measure", "reference", "fill", "layer", "method", "beats_random", "beats_p_c"]
        return _judged(pd.DataFrame(columns=names), validity(rows), [], preset)
    frame = pd.concat(parts, ignore_index=True)
    struck = frame["measure"].isin(REMOVING)
    return _judged(frame, validity(rows), struck, preset)


def _versus(name: str, ours: _Cells, other: _Cells, higher: bool, lines: int) -> dict[str, Any]:
    """Columns of the comparison with one control, in the order of the methods."""
    empty = np.full(lines, np.nan)
    levels = sorted(set(ours.keys["level"]) & set(other.keys["level"]))
    if not levels:
        missing = pd.array([pd.NA] * lines, dtype="boolean")
        numbers = {f"{name}_{part}": empty for part in ("difference", "low", "high", "p")}
        return numbers | {f"{name}_n": 0, f"beats_{name}": missing, f"{name}_decided": False}
    a = _over_levels(ours, levels=levels).matrix
    b = _over_levels(other, levels=levels).matrix[:, :1]
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


def _flagged(frame: pd.DataFrame, against: pd.DataFrame) -> pd.DataFrame:
    """Join beats_random and beats_p_c on measure, reference, fill, layer and method."""
    by = ["measure", "reference", "fill", "layer", "method"]
    flags = against[[*by, "beats_random", "beats_p_c"]]
    joined = frame.merge(flags, on=by, how="left", sort=False)
    for name in ("beats_random", "beats_p_c"):
        joined[name] = joined[name].astype("boolean")
    return joined


# --- task 1 -----------------------------------------------------------------------------------


def sweep(
    rows: pd.DataFrame, preset: Preset = "strict", *, against: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Task 1: the judging measure of every cell with its interval.

    One line per layer x method x binarisation x level x strategy x reference x fill (controls
    included, layer ""). Columns besides these keys: measure (M1, M2, M3), column (what is
    averaged), mean, low, high, n, area, coverage, confidence, entropy, kept, certainty, iou,
    boundary_f, boundary_f_prediction (means over ok images; NaN where not asked for), all_zero,
    constant, non_finite, empty_region (images), not_ok, valid_fill, struck, ranked, beats_random,
    beats_p_c.
    """
    samples = _samples(rows)
    parts = []
    for strategy in STRATEGIES:
        chosen = rows[(rows["strategy"] == strategy) & (rows["binarisation"] != "")]
        column, _ = measure_of(strategy, preset)
        part = _with_intervals(_cells(chosen, column, KEYS, samples))
        parts.append(part.assign(measure=SHORT[strategy], column=column))
    frame = pd.concat(parts, ignore_index=True)
    swept = rows[rows["strategy"].isin(STRATEGIES) & (rows["binarisation"] != "")]
    described = ["area", "coverage", "confidence", "entropy", "kept", "certainty", "iou"]
    described += [name for name in BOUNDARY if name in swept]
    grouped = swept[swept["status"] == "ok"].groupby(KEYS, sort=False, observed=True)
    frame = frame.merge(grouped[described].mean().reset_index(), on=KEYS, how="left", sort=False)
    failed = swept[swept["status"] != "ok"].drop_duplicates([*KEYS, "sample", "status"])
    if len(failed):
        counts = failed.groupby([*KEYS, "status"], sort=False).size().unstack("status")
        frame = frame.merge(counts.reset_index(), on=KEYS, how="left", sort=False)
    for name in NOT_OK:
        found = frame[name] if name in frame else pd.Series(0, index=frame.index)
        frame[name] = found.fillna(0).astype(int)
    frame["not_ok"] = frame[list(NOT_OK)].sum(axis=1).astype(int)
    frame = _judged(frame, validity(rows), frame["strategy"] == "background_only", preset)
    return _flagged(frame, against_controls(rows, preset) if against is None else against)


def best(
    rows: pd.DataFrame, preset: Preset = "strict", *, against: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Task 1: the best method of every layer x binarisation x level x strategy x reference x fill.

    Columns besides these keys: measure, best, mean, low, high, n, runner_up, runner_up_mean,
    runner_up_p (Holm), tied (methods not distinguishable, best left out, ", " between), decidable,
    needed (images), valid_fill, struck, ranked, beats_random, beats_p_c (of the best).
    """
    samples = _samples(rows)
    methods = rows[~_is_control(rows) & (rows["binarisation"] != "").to_numpy(bool)]
    by = ["strategy", "layer", "binarisation", "level", "reference", "fill"]
    out: list[dict[str, Any]] = []
    for strategy in STRATEGIES:
        chosen = methods[methods["strategy"] == strategy]
        column, higher = measure_of(strategy, preset)
        cells = _cells(chosen, column, [*by, "method"], samples)
        out += _bests(cells, by, higher, {"measure": SHORT[strategy]})
    return _best_frame(out, by, rows, preset, against)


def auc(
    rows: pd.DataFrame, preset: Preset = "strict", *, against: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Task 1: area under the sweep per method, over thresholds and over matched areas.

    Each image's values are integrated over the levels (trapezoid) and divided by their range, so
    the unit is the measure's. Columns: strategy, binarisation, reference, fill, layer, method,
    mean, low, high, n, measure, rank, p_vs_best, in_best_group, decidable, needed and the flags.
    """
    samples = _samples(rows)
    methods = rows[~_is_control(rows) & (rows["binarisation"] != "").to_numpy(bool)]
    by = ["strategy", "binarisation", "reference", "fill", "layer"]
    parts = []
    for strategy in STRATEGIES:
        column, higher = measure_of(strategy, preset)
        chosen = methods[methods["strategy"] == strategy]
        cells = _over_levels(_cells(chosen, column, [*by, "method", "level"], samples), "auc")
        parts.append(_ranked(cells, by, higher).assign(measure=SHORT[strategy]))
    frame = pd.concat(parts, ignore_index=True)
    frame = _judged(frame, validity(rows), frame["strategy"] == "background_only", preset)
    return _flagged(frame, against_controls(rows, preset) if against is None else against)


def _bests(
    cells: _Cells, by: Sequence[str], higher: bool, extra: dict[str, Any]
) -> list[dict[str, Any]]:
    out = []
    for key, members in cells.groups(by):
        block = cells.matrix[:, members]
        if not np.isfinite(block).any():
            continue
        names = cells.keys["method"].to_numpy()[members]
        found = stats.against_best(block, higher, alpha=ALPHA)
        shown = stats.interval(block[:, found.best])
        line: dict[str, Any] = dict(zip(by, key, strict=True)) | extra
        line |= {"best": names[found.best], "mean": shown.mean, "low": shown.low}
        line |= {"high": shown.high, "n": shown.n, "runner_up": "", "runner_up_mean": np.nan}
        line |= {"runner_up_p": np.nan}
        if found.runner_up is not None:
            line["runner_up"] = names[found.runner_up]
            line["runner_up_mean"] = float(found.means[found.runner_up])
            line["runner_up_p"] = float(found.p[found.runner_up])
        line["tied"] = ", ".join(str(names[j]) for j in found.group if j != found.best)
        out.append(line | {"decidable": found.decidable, "needed": found.needed})
    return out


def _best_frame(
    out: list[dict[str, Any]],
    by: Sequence[str],
    rows: pd.DataFrame,
    preset: Preset,
    against: pd.DataFrame | None,
) -> pd.DataFrame:
    names = [*by, "measure", "best", "mean", "low", "high", "n", "runner_up", "runner_up_mean"]
    names += ["runner_up_p", "tied", "decidable", "needed"]
    frame = pd.DataFrame(out, columns=names)
    frame = _judged(frame, validity(rows), frame["strategy"] == "background_only", preset)
    flags = against_controls(rows, preset) if against is None else against
    joined = _flagged(frame.rename(columns={"best": "method"}), flags)
    return joined.rename(columns={"method": "best"})


def _ranked(cells: _Cells, by: Sequence[str], higher: bool) -> pd.DataFrame:
    """Means, intervals and ranks within each group; rank = 1 + number of clearly better methods."""
    frame = _with_intervals(cells)
    size = len(frame)
    rank, p, group = np.full(size, np.nan), np.full(size, np.nan), np.zeros(size, dtype=bool)
    decidable, needed = np.zeros(size, dtype=bool), np.zeros(size, dtype=int)
    is_best = np.zeros(size, dtype=bool)
    for _, members in cells.groups(by):
        block = cells.matrix[:, members]
        if not np.isfinite(block).any():
            continue
        found = stats.against_best(block, higher, alpha=ALPHA)
        score = found.means if higher else -found.means
        with np.errstate(invalid="ignore"):
            better = (found.pairs < ALPHA) & (score[None, :] > score[:, None])
        rank[members] = np.where(np.isfinite(score), 1 + better.sum(axis=1), np.nan)
        p[members] = np.where(np.isfinite(score), found.p, np.nan)
        group[members[list(found.group)]] = True
        is_best[members[found.best]] = True
        decidable[members], needed[members] = found.decidable, found.needed
    return frame.assign(
        rank=rank,
        p_vs_best=p,
        is_best=is_best,
        in_best_group=group,
        decidable=decidable,
        needed=needed,
    )


# --- task 2 -----------------------------------------------------------------------------------


def faithfulness(
    rows: pd.DataFrame, preset: Preset = "strict", *, against: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Task 2: methods ranked by IoU drop (mean over the levels of each image), layer by layer.

    One line per binarisation (area is the headline) x reference x fill x layer x method; random
    blobs and p_c stand below with layer "" and no rank. Columns: mean, low, high, n, rank
    (1 + number of methods that are clearly better, so ties share a rank), p_vs_best (Holm),
    in_best_group, decidable, needed, undefined (images where both masks are empty), measure,
    valid_fill, struck, ranked, beats_random, beats_p_c.
    """
    chosen = rows[(rows["strategy"] == "background_only") & (rows["binarisation"] != "")]
    by = ["binarisation", "reference", "fill", "layer"]
    control = _is_control(chosen)
    samples = _samples(rows)
    ours = _over_levels(_cells(chosen[~control], "iou_drop", [*by, "method", "level"], samples))
    others = _over_levels(_cells(chosen[control], "iou_drop", [*by, "method", "level"], samples))
    frame = _ranked(ours, by, True)
    if len(others.keys):
        below = _with_intervals(others).assign(rank=np.nan, p_vs_best=np.nan, is_best=False)
        below = below.assign(in_best_group=False, decidable=False, needed=0)
        frame = pd.concat([frame, below], ignore_index=True) if len(frame) else below
    frame = frame.merge(_undefined(chosen, [*by, "method"]), on=[*by, "method"], how="left")
    frame["undefined"] = frame["undefined"].fillna(0).astype(int)
    frame = _judged(frame.assign(measure="iou_drop"), validity(rows), True, preset)
    frame.loc[~frame["ranked"], "rank"] = np.nan
    return _flagged(frame, against_controls(rows, preset) if against is None else against)


def _undefined(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Count images whose IoU is undefined at some level although the heatmap is ok."""
    gone = rows[(rows["status"] == "ok") & rows["iou_delta"].isna()]
    counted = gone[[*by, "sample"]].drop_duplicates().groupby(by, sort=False).size()
    return counted.rename("undefined").reset_index()


def combinations_ranked(
    rows: pd.DataFrame,
    preset: Preset = "strict",
    *,
    measure: str = "",
    at: Headline | None = None,
    against: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Rank all layer x method pairs together at the headline cell, best first, by `measure` ("":
    the one that judges).
    """
    at = headline(rows) if at is None else at
    measure = measure or judging(rows, preset, at=at)
    _, _, higher = _definition(measure, preset)
    methods = rows[~_is_control(rows)]
    methods = methods[(methods["reference"] == at.reference) & (methods["fill"] == at.fill)]
    cells, _ = _measure_cells(methods, measure, preset, at.binarisation, _samples(rows))
    frame = _ranked(_over_levels(cells), ["reference", "fill"], higher)
    frame = frame.assign(measure=measure, binarisation=at.binarisation)
    frame = _judged(frame, validity(rows), measure in REMOVING, preset)
    frame = _flagged(frame, against_controls(rows, preset) if against is None else against)
    # The compared best comes first even where a method with very few images has a better mean.
    return frame.sort_values(
        ["is_best", "rank", "mean"], ascending=[False, True, not higher], na_position="last"
    ).reset_index(drop=True)


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
    ours = ~_is_control(rows) | rows["method"].isin(list(controls)).to_numpy(bool)
    methods = rows[ours & rows["sample"].isin(samples)]
    methods = methods[(methods["reference"] == at.reference) & (methods["fill"] == at.fill)]
    folded = _over_levels(_measure_cells(methods, measure, preset, at.binarisation, samples)[0])
    pairs = zip(folded.keys["layer"], folded.keys["method"], strict=True)
    return {(layer, method): folded.matrix[:, k] for k, (layer, method) in enumerate(pairs)}


def higher_is_better(measure: str, preset: Preset = "strict") -> bool:
    """Direction of a headline measure: M1, M2, M3, iou_drop or contrast."""
    return _definition(measure, preset)[2]


# --- task 3 -----------------------------------------------------------------------------------


def layers(rows: pd.DataFrame, preset: Preset = "strict") -> pd.DataFrame:
    """Task 3: paired differences between layers, method by method, at the headline binarisation.

    Columns: measure, reference, fill, method, layer_a, layer_b, mean_a, mean_b, difference (a - b,
    in the measure's unit), low, high, n, p (Wilcoxon, Holm over methods and layer pairs), better
    (layer name, "" if not distinguishable), decidable, needed, valid_fill, struck, ranked.
    """
    at = headline(rows)
    methods = rows[~_is_control(rows)]
    parts = []
    for measure in MEASURES:
        cells, higher = _measure_cells(methods, measure, preset, at.binarisation, _samples(rows))
        folded = _over_levels(cells)
        for (reference, fill), members in folded.groups(["reference", "fill"]):
            part = _layer_pairs(folded, members, higher)
            if part is not None:
                part.insert(0, "measure", measure)
                part.insert(1, "reference", reference)
                part.insert(2, "fill", fill)
                parts.append(part)
    if not parts:
        names = ["measure", "reference", "fill", "method", "layer_a", "layer_b", "difference"]
        return _judged(pd.DataFrame(columns=[*names, "p", "better"]), validity(rows), [], preset)
    frame = pd.concat(parts, ignore_index=True)
    return _judged(frame, validity(rows), frame["measure"].isin(REMOVING), preset)


def _layer_pairs(cells: _Cells, members: npt.NDArray[np.intp], higher: bool) -> pd.DataFrame | None:
    names = cells.keys["layer"].to_numpy()
    methods = cells.keys["method"].to_numpy()
    found = [
        (methods[i], names[i], names[j], i, j)
        for i, j in combinations(members.tolist(), 2)
        if methods[i] == methods[j]
    ]
    if not found:
        return None
    order = {name: k for k, name in enumerate(dict.fromkeys(methods))}
    found.sort(key=lambda item: order[item[0]])
    first = cells.matrix[:, [item[3] for item in found]]
    second = cells.matrix[:, [item[4] for item in found]]
    difference = first - second
    mean, low, high, n = stats.intervals(difference)
    both = np.isfinite(difference)
    raw = [stats.paired_p(first[:, k], second[:, k]) if n[k] else np.nan for k in range(len(found))]
    p = stats.holm(raw)
    needed = stats.smallest_n(int(np.isfinite(raw).sum()), ALPHA)
    frame = pd.DataFrame([item[:3] for item in found], columns=["method", "layer_a", "layer_b"])
    sums = [np.where(both, block, 0.0).sum(axis=0) for block in (first, second)]
    with np.errstate(invalid="ignore"):
        mean_a, mean_b = (total / both.sum(axis=0) for total in sums)
    a_wins = (mean > 0) if higher else (mean < 0)
    better = np.where(a_wins, frame["layer_a"].to_numpy(object), frame["layer_b"].to_numpy(object))
    return frame.assign(
        mean_a=mean_a,
        mean_b=mean_b,
        difference=mean,
        low=low,
        high=high,
        n=n.astype(int),
        p=p,
        better=np.where(p < ALPHA, better, ""),
        decidable=n >= needed,
        needed=needed,
    )


# --- further tables ---------------------------------------------------------------------------


def m3_gain(rows: pd.DataFrame) -> pd.DataFrame:
    """certainty(Keep(B and R)) - certainty(Keep(R)): what the highlighted region adds to R alone.

    Columns: binarisation, reference, fill, layer, method, mean, low, high, n (mean over levels).
    """
    by = ["binarisation", "reference", "fill", "layer", "method"]
    names = [*by, "mean", "low", "high", "n"]
    samples = _samples(rows)
    base = _cells(rows[rows["method"] == "control:target_only"], "certainty", by[1:3], samples)
    chosen = rows[(rows["strategy"] == "highlighted_and_target") & (rows["binarisation"] != "")]
    chosen = chosen[~_is_control(chosen)]
    if chosen.empty or base.keys.empty:
        return pd.DataFrame(columns=names)
    cells = _over_levels(_cells(chosen, "certainty", [*by, "level"], samples))
    column = {key: j for j, key in enumerate(base.keys.itertuples(index=False, name=None))}
    wanted = [
        column.get(key, -1)
        for key in cells.keys[["reference", "fill"]].itertuples(index=False, name=None)
    ]
    padded = np.concatenate([base.matrix, np.full((len(samples), 1), np.nan)], axis=1)
    gain = _Cells(cells.keys, cells.matrix - padded[:, wanted], samples)
    return _with_intervals(gain)[names]


def fill_agreement(rows: pd.DataFrame, preset: Preset = "strict") -> pd.DataFrame:
    """Kendall tau between the method rankings under each two fills that are not invalid.

    Columns: measure, reference, layer, fill_a, fill_b, tau, methods (how many were ranked).
    """
    at = headline(rows)
    table = validity(rows)
    bad = table[~table["valid"].astype(bool)]
    invalid = set(zip(bad["reference"], bad["fill"], strict=True))
    methods = rows[~_is_control(rows)]
    out = []
    for measure in MEASURES:
        cells, _ = _measure_cells(methods, measure, preset, at.binarisation, _samples(rows))
        folded = _over_levels(cells)
        mean = stats.intervals(folded.matrix, resamples=1)[0]
        frame = folded.keys.assign(mean=mean)
        for (reference, layer), part in frame.groupby(["reference", "layer"], sort=False):
            wide = part.pivot(index="method", columns="fill", values="mean")
            fills = [fill for fill in part["fill"].unique() if (reference, fill) not in invalid]
            for a, b in combinations(fills, 2):
                tau = stats.kendall_tau(wide[a].to_numpy(), wide[b].to_numpy())
                count = int(wide[[a, b]].notna().all(axis=1).sum())
                out.append((measure, reference, layer, a, b, tau, count))
    names = ["measure", "reference", "layer", "fill_a", "fill_b", "tau", "methods"]
    return pd.DataFrame(out, columns=names)


# --- how firm the order is ---------------------------------------------------------------------


def _candidates(
    rows: pd.DataFrame, measure: str, preset: Preset, at: Headline
) -> tuple[_Cells, bool]:
    """Cells layer x method x level of `measure` at the headline cell, controls included."""
    chosen = rows[(rows["reference"] == at.reference) & (rows["fill"] == at.fill)]
    return _measure_cells(chosen, measure, preset, at.binarisation, _samples(rows))


def _takes_part(measure: str, valid: bool | None, preset: Preset) -> bool:
    """Whether a measure may rank under a fill: those of removal only under one that is valid."""
    return measure not in REMOVING or valid is not False or preset == "paper"


def mean_ranks(
    rows: pd.DataFrame,
    preset: Preset = "strict",
    *,
    at: Headline | None = None,
    against: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Friedman test and mean ranks of all layer x method candidates, measure by measure.

    One line per measure of MEASURES x candidate at the headline cell, best rank first; an image's
    values are means over the levels. Columns: reference, fill, mean_rank (1 = best),
    groups (letters, " " between; candidates with a letter in common are not distinguishable),
    statistic, p, critical_difference (Nemenyi, 5 % family-wise), candidates, n (images with every
    candidate), valid_fill, struck, ranked and the flags. A candidate with fewer than half of the
    images of the fullest has NaN and takes no part. Controls are no candidates; they mark.
    """
    at = headline(rows) if at is None else at
    parts = []
    for measure in MEASURES:
        cells, higher = _candidates(rows[~_is_control(rows)], measure, preset, at)
        folded = _over_levels(cells)
        images, columns = stats.complete_blocks(folded.matrix)
        found = stats.friedman(folded.matrix[np.ix_(images, columns)], higher, alpha=ALPHA)
        places = np.flatnonzero(columns)
        ranks = np.full(len(columns), np.nan)
        ranks[places] = found.ranks
        groups = np.full(len(columns), "", dtype=object)
        for number, clique in enumerate(found.cliques):
            groups[places[list(clique)]] += f" {_letter(number)}"
        frame = folded.keys.assign(
            measure=measure,
            mean_rank=ranks,
            groups=[text.strip() for text in groups],
            statistic=found.statistic,
            p=found.p,
            critical_difference=found.critical_difference,
            candidates=len(places),
            n=found.n,
        )
        parts.append(frame.sort_values("mean_rank", kind="stable"))
    frame = pd.concat(parts, ignore_index=True)
    struck = frame["measure"].isin(REMOVING)
    frame = _judged(frame, validity(rows), struck, preset)
    return _flagged(frame, against_controls(rows, preset) if against is None else against)


def _letter(number: int) -> str:
    """Name of a group: a ... z, aa ... zz, aaa ..."""
    return chr(ord("a") + number % 26) * (1 + number // 26)


def _oriented(cells: _Cells, higher: bool) -> pd.DataFrame:
    """Means over images, candidates in rows; higher is better whatever the measure."""
    mean = stats.intervals(cells.matrix, resamples=1)[0]
    return cells.keys.assign(score=mean if higher else -mean)


def _by_measure(rows: pd.DataFrame, preset: Preset, at: Headline) -> pd.DataFrame:
    """Scores with one line per candidate and one column per measure that takes part."""
    parts = []
    for measure in MEASURES:
        if _takes_part(measure, at.valid, preset):
            cells, higher = _candidates(rows[~_is_control(rows)], measure, preset, at)
            parts.append(_oriented(_over_levels(cells), higher).assign(measure=measure))
    frame = pd.concat(parts, ignore_index=True)
    wide = frame.pivot(index=["layer", "method"], columns="measure", values="score")
    return wide[[name for name in MEASURES if name in wide.columns]]


def measure_agreement(
    rows: pd.DataFrame, preset: Preset = "strict", *, at: Headline | None = None
) -> pd.DataFrame:
    """Kendall tau between the rankings of all candidates by each two headline measures.

    At the headline cell; every measure is turned so that higher is better. Columns: reference,
    fill, measure_a, measure_b, tau, candidates. Measures of removal are missing where the fill is
    not valid (strict).
    """
    at = headline(rows) if at is None else at
    wide = _by_measure(rows, preset, at)
    out = []
    for a, b in combinations(wide.columns, 2):
        tau = stats.kendall_tau(wide[a].to_numpy(), wide[b].to_numpy())
        count = int(wide[[a, b]].notna().all(axis=1).sum())
        out.append((at.reference, at.fill, a, b, tau, count))
    names = ["reference", "fill", "measure_a", "measure_b", "tau", "candidates"]
    return pd.DataFrame(out, columns=names)


def agreement(
    rows: pd.DataFrame, preset: Preset = "strict", *, at: Headline | None = None
) -> pd.DataFrame:
    """Kendall's W: how far the order of all candidates stays when one thing changes.

    One line per factor: fills (those under which the measure ranks), areas (thresholds where no
    area was studied), measures (all that rank, less the contrast, which is made of two of them),
    images; the rest stays at the headline cell and measure. Columns: factor, measure, compared
    (what the rankings belong to), w (1 = the same order, 0 = nothing in common), rankings,
    candidates (that all rankings hold), p. p exists for images alone: rankings made from the same
    images are not independent. Controls are no candidates: that random blobs come last everywhere
    would pass for agreement.
    """
    at = headline(rows) if at is None else at
    measure = judging(rows, preset, at=at)
    methods = rows[~_is_control(rows)]
    cells, higher = _candidates(methods, measure, preset, at)
    folded = _over_levels(cells)
    fills = _by_fill(methods, measure, preset, at, validity(rows))
    levels = _oriented(cells, higher)
    by_level = levels.pivot(index=["layer", "method"], columns="level", values="score")
    measures = _by_measure(rows, preset, at).drop(columns=JOINED, errors="ignore")
    kind = f"{at.binarisation}s"
    out = [
        ("fills", measure, ", ".join(map(str, fills.columns)), fills.to_numpy().T),
        (kind, measure, ", ".join(f"{x:g}" for x in by_level.columns), by_level.to_numpy().T),
        ("measures", "", ", ".join(map(str, measures.columns)), measures.to_numpy().T),
        ("images", measure, "", folded.matrix),  # W does not mind the direction
    ]
    lines = []
    for factor, judged, compared, scores in out:
        kept, columns = stats.complete_blocks(scores)
        if factor != "images":  # few rankings, each a mean over images: rather lose a candidate
            kept = np.isfinite(scores).any(axis=1)
            columns = np.isfinite(scores[kept]).all(axis=0) & bool(kept.any())
        found = stats.kendall_w(scores[np.ix_(kept, columns)])
        p = found.p if factor == "images" else float("nan")
        lines.append((factor, judged, compared, found.w, found.rankings, found.candidates, p))
    names = ["factor", "measure", "compared", "w", "rankings", "candidates", "p"]
    return pd.DataFrame(lines, columns=names)


def _by_fill(
    methods: pd.DataFrame, measure: str, preset: Preset, at: Headline, valid: pd.DataFrame
) -> pd.DataFrame:
    """Scores with one line per candidate and one column per fill under which `measure` ranks."""
    chosen = methods[methods["reference"] == at.reference]
    if not _takes_part(measure, False, preset):
        bad = valid[~valid["valid"].astype(bool) & (valid["reference"] == at.reference)]
        chosen = chosen[~chosen["fill"].isin(bad["fill"])]
    cells, higher = _measure_cells(chosen, measure, preset, at.binarisation, _samples(methods))
    frame = _oriented(_over_levels(cells), higher)
    return frame.pivot(index=["layer", "method"], columns="fill", values="score")


def precision(
    rows: pd.DataFrame,
    preset: Preset = "strict",
    *,
    at: Headline | None = None,
    against: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """How exact the headline measure is, and how many images would make it exact enough.

    One line per candidate at the headline cell, best first, then the controls (layer ""). Columns:
    measure, reference, fill, mean, n, half_width (of the 95 % t interval), tiles_05 and tiles_02
    (images for +-0.05 and +-0.02, from the spread seen), difference (the best minus this one,
    paired, positive), tiles_apart (images that show this difference at 80 % power in a Wilcoxon
    test of this pair alone, two-sided 5 %), tiles_apart_all (at 5 % over the number of pairs, as
    the first step of Holm needs), runner_up and the flags. NaN for one image or no spread, and
    where the difference is not positive. The difference seen between the two best is uncertain
    itself, so the number is an order of magnitude; see `stats.tiles_to_tell_apart`.
    """
    at = headline(rows) if at is None else at
    measure = judging(rows, preset, at=at)
    cells, higher = _candidates(rows, measure, preset, at)
    folded = _over_levels(cells)
    frame = folded.keys.assign(measure=measure, control=_is_control(folded.keys))
    score = folded.matrix if higher else -folded.matrix
    ours = np.flatnonzero(~frame["control"].to_numpy(bool))
    values = [score[:, j] for j in range(score.shape[1])]
    present = np.isfinite(score)
    differences = [np.full(len(score), np.nan) for _ in values]
    best, runner_up = -1, -1
    if present[:, ours].any():
        found = stats.against_best(score[:, ours], True, alpha=ALPHA)
        best = int(ours[found.best])
        runner_up = -1 if found.runner_up is None else int(ours[found.runner_up])
        differences = [score[:, best] - column for column in values]
    pairs = max(1, len(ours) * (len(ours) - 1) // 2)
    apart, gaps = np.full((2, len(values)), np.nan), np.full(len(values), np.nan)
    for j, difference in enumerate(differences):
        if j == best or not np.isfinite(difference).any():
            continue
        gaps[j] = float(np.nanmean(difference))
        if gaps[j] > 0:
            alphas = (ALPHA, ALPHA / pairs)
            apart[:, j] = [stats.tiles_to_tell_apart(difference, alpha=a) for a in alphas]
    mean = stats.intervals(folded.matrix, resamples=1)[0]
    place = np.arange(len(values))
    frame = frame.assign(
        mean=mean,
        n=present.sum(axis=0).astype(int),
        half_width=[stats.half_width(column) for column in values],
        tiles_05=[stats.required_n(column, 0.05) for column in values],
        tiles_02=[stats.required_n(column, 0.02) for column in values],
        difference=gaps,
        tiles_apart=apart[0],
        tiles_apart_all=apart[1],
        is_best=place == best,
        runner_up=place == runner_up,
    )
    frame = _judged(frame, validity(rows), measure in REMOVING, preset)
    frame = _flagged(frame, against_controls(rows, preset) if against is None else against)
    order = ["control", "is_best", "runner_up", "mean"]
    ascending = [True, False, False, not higher]
    frame = frame.sort_values(order, ascending=ascending, na_position="last", kind="stable")
    return frame.drop(columns="control").reset_index(drop=True)


def statuses(rows: pd.DataFrame) -> pd.DataFrame:
    """Count images by status for every layer x method.

    Columns: layer, method, images, ok, all_zero, constant, non_finite, empty_region.
    """
    methods = rows[~_is_control(rows)]
    keys = ["layer", "method"]
    seen = methods[[*keys, "sample", "status"]].drop_duplicates()
    out = methods[keys].drop_duplicates().reset_index(drop=True)
    images = seen.drop_duplicates([*keys, "sample"]).groupby(keys, sort=False).size()
    out = out.merge(images.rename("images").reset_index(), on=keys, how="left")
    # An image with a failed level counts as failed, not as ok as well.
    failed = seen[seen["status"] != "ok"]
    bad = failed.drop_duplicates([*keys, "sample"]).groupby(keys, sort=False).size()
    out = out.merge(bad.rename("bad").reset_index(), on=keys, how="left")
    out["ok"] = out["images"] - out.pop("bad").fillna(0).astype(int)
    for name in NOT_OK:
        part = failed[failed["status"] == name].groupby(keys, sort=False).size()
        out = out.merge(part.rename(name).reset_index(), on=keys, how="left")
        out[name] = out[name].fillna(0).astype(int)
    return out


def originals(rows: pd.DataFrame) -> pd.DataFrame:
    """Means of the inputs that need no heatmap: original, empty, target only, target removed.

    Columns: reference, fill, method, confidence, entropy, kept, certainty, iou, boundary_f,
    boundary_f_prediction, n.
    """
    names = ["original", "empty", "target_only", "target_removed"]
    ids = [f"control:{name}" for name in names]
    chosen = rows[rows["method"].isin(ids) & (rows["status"] == "ok")]
    measured = ["confidence", "entropy", "kept", "certainty", "iou"]
    measured += [name for name in BOUNDARY if name in chosen]
    grouped = chosen.groupby(["reference", "fill", "method"], sort=False)
    frame = grouped[measured].mean().assign(n=grouped["sample"].nunique()).reset_index()
    order = frame["method"].map({name: k for k, name in enumerate(ids)})
    return frame.iloc[np.lexsort((frame["fill"].to_numpy(str), order.to_numpy()))].reset_index(
        drop=True
    )


def judged(scores: pd.DataFrame) -> pd.DataFrame:
    """Average measures of whole heatmaps over tiles.

    Columns: measure, fill, layer, method, mean, low, high (95 %), n, undefined (tiles without a
    number), reasons ("flat map (2), ...").
    """
    by = ["measure", "fill", "layer", "method"]
    names = [*by, "mean", "low", "high", "n", "undefined", "reasons"]
    if scores.empty:
        return pd.DataFrame(columns=names)
    frame = scores.assign(status="ok")
    table = _with_intervals(_cells(frame, "value", by))
    gone = scores[scores["reason"] != ""].groupby([*by, "reason"], sort=False).size()
    counted: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    for *key, reason, count in gone.reset_index(name="count").itertuples(index=False, name=None):
        counted.setdefault(tuple(key), []).append((str(reason), int(count)))
    lines = [counted.get(key, []) for key in table[by].itertuples(index=False, name=None)]
    return table.assign(
        undefined=[sum(count for _, count in line) for line in lines],
        reasons=[", ".join(f"{reason} ({count})" for reason, count in line) for line in lines],
    )[names]


# --- the answer -------------------------------------------------------------------------------


def _p(value: float) -> str:
    return (
        "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.01 else f"p = {value:.2f}"
    )


def _listed(items: Sequence[str], limit: int = 4) -> str:
    shown = list(items[:limit])
    if len(items) > limit:
        shown.append(f"{len(items) - limit} more")
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def verdict(rows: pd.DataFrame, preset: Preset = "strict") -> str:
    """Say in plain sentences which method and layer deserve trust for this model and data."""
    return _verdict(rows, preset, against_controls(rows, preset), validity(rows))


def _verdict(rows: pd.DataFrame, preset: Preset, against: pd.DataFrame, valid: pd.DataFrame) -> str:
    at = headline(rows)
    if rows[~_is_control(rows)].empty:
        return "No verdict: no method was measured, only controls."
    judged, reason = judging(rows, preset, at=at), ""
    if at.valid is False:
        lowest = valid[(valid["reference"] == at.reference) & (valid["fill"] == at.fill)]
        drop = float(lowest["mean_drop"].iloc[0])
        change = (
            f"lowers its confidence by only {100 * drop:.0f} %"
            if drop >= 0
            else (f"raises its confidence by {-100 * drop:.0f} %")
        )
        what = "M1 and IoU drop" if preset == "paper" else "M1, IoU drop and the contrast"
        reason = (
            f"No fill that was used is valid for this model: removing exactly the target with "
            f"{at.fill} {change}, so {what} measure outlines"
        )
        if preset == "strict":
            reason += " and rank nothing; judged by M3 instead. "
        else:
            reason += "; ranked all the same, as published. "
    elif judged == "iou_drop" and preset == "strict":
        reason = (
            "No M2 was measured, so judged by IoU drop, which cannot see that a part of the cause "
            "is missing. "
        )
    ranked = combinations_ranked(rows, preset, measure=judged, at=at, against=against)
    ranked = ranked[ranked["n"] > 0]
    if ranked.empty:
        return reason + "No verdict: no heatmap could be judged (see the counts of statuses)."
    return reason + _sentence(ranked, at, judged) + _caveats(at, preset)


def _sentence(ranked: pd.DataFrame, at: Headline, judged: str) -> str:
    """The winner, those not distinguishable from it, and those that fail the controls."""
    top = ranked.iloc[0]
    several = ranked["layer"].nunique() > 1

    def name(line: Any) -> str:
        return method_label(line["method"]) + (f" at {line['layer']}" if several else "")

    value = f"{measure_label(judged).split(' (')[0]} {top['mean']:.3f}"
    if np.isfinite(top["low"]):
        value += f", 95 % interval {top['low']:.3f} to {top['high']:.3f}"
    tiles = f"{int(top['n'])} tile" + ("" if top["n"] == 1 else "s")
    where = f"For this model on {'this' if top['n'] == 1 else 'these'} {tiles}, "
    kind = "at matched area" if at.binarisation == "area" else "at fixed thresholds"
    failed = _is_false(top["beats_random"])
    if failed:
        beats = "beats" if bool(top["decidable"]) else "is shown to beat"
        text = (
            f"{where}no method {beats} the controls: the best, {name(top)} ({value}, {kind}, fill "
            f"{at.fill}), is not shown to be better than random blobs of the same size."
        )
    else:
        claim = "ranks first" if judged == "M3" else "is the most faithful"
        if not bool(top["decidable"]):
            claim = "leads"
        text = f"{where}{name(top)} {claim} ({value}, {kind}, fill {at.fill})."
    others = [
        f"{name(line)} ({_p(line['p_vs_best'])})"
        for _, line in ranked.iloc[1:].iterrows()
        if line["in_best_group"]
    ]
    if not bool(top["decidable"]):
        text += (
            f" {tiles[:1].upper() + tiles[1:]} cannot tell the {len(ranked)} candidates apart "
            f"({int(top['needed'])} would be needed), so the order is not settled."
        )
    elif others:
        verb = "is" if len(others) == 1 else "are"
        text += f" Not distinguishable from it {verb} {_listed(others)}."
    if not failed:
        for flag, what in (
            ("beats_random", "random blobs of the same size"),
            ("beats_p_c", "the model's own probability map"),
        ):
            lost = [name(line) for _, line in ranked.iterrows() if _is_false(line[flag])]
            text += _lost(lost, len(ranked), what)
    return text


def _is_false(flag: Any) -> bool:
    """True for False, but not for NA: an untested control is not a lost one."""
    return bool(pd.notna(flag)) and not flag


def _lost(lost: list[str], total: int, what: str) -> str:
    if not lost:
        return ""
    if len(lost) == total:
        return f" No candidate beats {what}."
    if len(lost) > 4:
        return f" {len(lost)} of the {total} candidates do not beat {what}."
    return f" {_listed(lost)} {'does' if len(lost) == 1 else 'do'} not beat {what}."


def _caveats(at: Headline, preset: Preset) -> str:
    text = ""
    if at.binarisation != "area":
        text += " The size of the regions was not controlled."
    if at.valid is None:
        text += " Whether the fill is valid for this model was not tested."
    if preset == "paper":
        text += " This is the published protocol, faults included."
    return text


# --- all at once ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tables:
    """Every table of a study, made once for the terminal and the report.

    `measure` is the one that judges; `ranking` goes by it, `by_iou_drop` by IoU drop, both over all
    layers and methods.
    """

    preset: Preset
    at: Headline
    measure: str
    verdict: str
    sweep: pd.DataFrame
    best: pd.DataFrame
    auc: pd.DataFrame
    faithfulness: pd.DataFrame
    ranking: pd.DataFrame
    by_iou_drop: pd.DataFrame
    layers: pd.DataFrame
    validity: pd.DataFrame
    against_controls: pd.DataFrame
    m3_gain: pd.DataFrame
    fill_agreement: pd.DataFrame
    mean_ranks: pd.DataFrame
    agreement: pd.DataFrame
    measure_agreement: pd.DataFrame
    precision: pd.DataFrame
    statuses: pd.DataFrame
    originals: pd.DataFrame


def make(rows: pd.DataFrame, preset: Preset = "strict") -> Tables:
    """Make all tables from the rows of a study."""
    against, valid, at = against_controls(rows, preset), validity(rows), headline(rows)
    measure = judging(rows, preset, at=at)
    return Tables(
        preset=preset,
        at=at,
        measure=measure,
        verdict=_verdict(rows, preset, against, valid),
        sweep=sweep(rows, preset, against=against),
        best=best(rows, preset, against=against),
        auc=auc(rows, preset, against=against),
        faithfulness=faithfulness(rows, preset, against=against),
        ranking=combinations_ranked(rows, preset, measure=measure, at=at, against=against),
        by_iou_drop=combinations_ranked(rows, preset, measure="iou_drop", at=at, against=against),
        layers=layers(rows, preset),
        validity=valid,
        against_controls=against,
        m3_gain=m3_gain(rows),
        fill_agreement=fill_agreement(rows, preset),
        mean_ranks=mean_ranks(rows, preset, at=at, against=against),
        agreement=agreement(rows, preset, at=at),
        measure_agreement=measure_agreement(rows, preset, at=at),
        precision=precision(rows, preset, at=at, against=against),
        statuses=statuses(rows),
        originals=originals(rows),
    )
