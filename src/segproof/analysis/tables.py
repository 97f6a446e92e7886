"""Computes the tables of tasks 1 to 3 from the rows of a study; images are averaged only here.

Every function takes the `Basis` of a study and returns a data frame with one line per cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from segproof.analysis import statistics as stats
from segproof.analysis.basis import ALPHA, Basis, judged_by_fill, measure_cells, with_flags
from segproof.analysis.cells import Cells, average, control_rows, over_levels, with_intervals
from segproof.analysis.names import (
    HEADLINE_MEASURES,
    KEYS,
    REMOVING,
    SHORT,
    higher_is_better,
    measure_of,
)
from segproof.measures import BOUNDARY
from segproof.perturb import STRATEGIES, control_id

__all__ = [
    "auc",
    "best",
    "faithfulness",
    "heatmap_scores",
    "layers",
    "m3_gain",
    "originals",
    "ranking",
    "ranking_by_iou_drop",
    "statuses",
    "sweep",
]

NOT_OK = ("all_zero", "constant", "non_finite", "empty_region")


# --- task 1 -----------------------------------------------------------------------------------


def sweep(basis: Basis) -> pd.DataFrame:
    """Task 1: the judging measure of every cell with its interval.

    One line per layer x method x binarisation x level x strategy x reference x fill (controls
    included, layer ""). Columns besides these keys: measure (M1, M2, M3), column (what is
    averaged), mean, low, high, n, area, coverage, confidence, entropy, kept, certainty, iou,
    boundary_f, boundary_f_prediction (means over ok images; NaN where not asked for), all_zero,
    constant, non_finite, empty_region (images), not_ok, valid_fill, struck, ranked, beats_random,
    beats_p_c.
    """
    parts = []
    for strategy in STRATEGIES:
        chosen = basis.rows[
            (basis.rows["strategy"] == strategy) & (basis.rows["binarisation"] != "")
        ]
        column, _ = measure_of(strategy, basis.preset)
        part = with_intervals(average(chosen, column, KEYS, basis.samples))
        parts.append(part.assign(measure=SHORT[strategy], column=column))
    frame = pd.concat(parts, ignore_index=True)
    swept = basis.rows[basis.rows["strategy"].isin(STRATEGIES) & (basis.rows["binarisation"] != "")]
    described = ["area", "coverage", "confidence", "entropy", "kept", "certainty", "iou"]
    described += [name for name in BOUNDARY if name in swept]
    grouped = swept[swept["status"] == "ok"].groupby(KEYS, sort=False, observed=True)
    frame = frame.merge(grouped[described].mean().reset_index(), on=KEYS, how="left", sort=False)
    failed = swept[swept["status"] != "ok"].drop_duplicates([*KEYS, "sample", "status"])
    if len(failed):
        counts = failed.groupby([*KEYS, "status"], sort=False).size().unstack("status")
        frame = frame.merge(counts.reset_index(), on=KEYS, how="left", sort=False)
    for name in NOT_OK:
        count = frame[name] if name in frame else pd.Series(0, index=frame.index)
        frame[name] = count.fillna(0).astype(int)
    frame["not_ok"] = frame[list(NOT_OK)].sum(axis=1).astype(int)
    frame = judged_by_fill(basis, frame, frame["strategy"] == "background_only")
    return with_flags(basis, frame)


def best(basis: Basis) -> pd.DataFrame:
    """Task 1: the best method of every layer x binarisation x level x strategy x reference x fill.

    Columns besides these keys: measure, best, mean, low, high, n, runner_up, runner_up_mean,
    runner_up_p (Holm), tied (methods not distinguishable, best left out, ", " between), decidable,
    needed (images), valid_fill, struck, ranked, beats_random, beats_p_c (of the best).
    """
    methods = basis.methods[basis.methods["binarisation"] != ""]
    by = ["strategy", "layer", "binarisation", "level", "reference", "fill"]
    lines: list[dict[str, Any]] = []
    for strategy in STRATEGIES:
        chosen = methods[methods["strategy"] == strategy]
        column, higher = measure_of(strategy, basis.preset)
        cells = average(chosen, column, [*by, "method"], basis.samples)
        lines += _bests(cells, by, higher, {"measure": SHORT[strategy]})
    return _best_frame(basis, lines, by)


def auc(basis: Basis) -> pd.DataFrame:
    """Task 1: area under the sweep per method, over thresholds and over matched areas.

    Each image's values are integrated over the levels (trapezoid) and divided by their range, so
    the unit is the measure's. Columns: strategy, binarisation, reference, fill, layer, method,
    mean, low, high, n, measure, rank, p_vs_best, in_best_group, decidable, needed and the flags.
    """
    methods = basis.methods[basis.methods["binarisation"] != ""]
    by = ["strategy", "binarisation", "reference", "fill", "layer"]
    parts = []
    for strategy in STRATEGIES:
        column, higher = measure_of(strategy, basis.preset)
        chosen = methods[methods["strategy"] == strategy]
        cells = over_levels(average(chosen, column, [*by, "method", "level"], basis.samples), "auc")
        parts.append(_ranked(cells, by, higher).assign(measure=SHORT[strategy]))
    frame = pd.concat(parts, ignore_index=True)
    frame = judged_by_fill(basis, frame, frame["strategy"] == "background_only")
    return with_flags(basis, frame)


def _bests(
    cells: Cells, by: Sequence[str], higher: bool, extra: dict[str, Any]
) -> list[dict[str, Any]]:
    """One line per group of `by`: the best method, its runner-up, and the methods that tie."""
    lines = []
    for key, members in cells.groups(by):
        block = cells.matrix[:, members]
        if not np.isfinite(block).any():
            continue
        names = cells.keys["method"].to_numpy()[members]
        compared = stats.against_best(block, higher, alpha=ALPHA)
        interval = stats.interval(block[:, compared.best])
        line: dict[str, Any] = dict(zip(by, key, strict=True)) | extra
        line |= {"best": names[compared.best], "mean": interval.mean, "low": interval.low}
        line |= {"high": interval.high, "n": interval.n, "runner_up": "", "runner_up_mean": np.nan}
        line |= {"runner_up_p": np.nan}
        if compared.runner_up is not None:
            line["runner_up"] = names[compared.runner_up]
            line["runner_up_mean"] = float(compared.means[compared.runner_up])
            line["runner_up_p"] = float(compared.p[compared.runner_up])
        line["tied"] = ", ".join(str(names[j]) for j in compared.group if j != compared.best)
        lines.append(line | {"decidable": compared.decidable, "needed": compared.needed})
    return lines


def _best_frame(basis: Basis, lines: list[dict[str, Any]], by: Sequence[str]) -> pd.DataFrame:
    names = [*by, "measure", "best", "mean", "low", "high", "n", "runner_up", "runner_up_mean"]
    names += ["runner_up_p", "tied", "decidable", "needed"]
    frame = pd.DataFrame(lines, columns=names)
    frame = judged_by_fill(basis, frame, frame["strategy"] == "background_only")
    # The flags are joined by the name of the method, which stands in the column `best` here.
    joined = with_flags(basis, frame.rename(columns={"best": "method"}))
    return joined.rename(columns={"method": "best"})


def _ranked(cells: Cells, by: Sequence[str], higher: bool) -> pd.DataFrame:
    """Means, intervals and ranks within each group; rank = 1 + number of clearly better methods."""
    frame = with_intervals(cells)
    size = len(frame)
    rank, p, group = np.full(size, np.nan), np.full(size, np.nan), np.zeros(size, dtype=bool)
    decidable, needed = np.zeros(size, dtype=bool), np.zeros(size, dtype=int)
    is_best = np.zeros(size, dtype=bool)
    for _, members in cells.groups(by):
        block = cells.matrix[:, members]
        if not np.isfinite(block).any():
            continue
        compared = stats.against_best(block, higher, alpha=ALPHA)
        score = compared.means if higher else -compared.means
        # better[i, j]: method j is clearly better than method i
        with np.errstate(invalid="ignore"):
            better = (compared.pairs < ALPHA) & (score[None, :] > score[:, None])
        # `members` are places among all cells, those of `compared` places within this group
        rank[members] = np.where(np.isfinite(score), 1 + better.sum(axis=1), np.nan)
        p[members] = np.where(np.isfinite(score), compared.p, np.nan)
        group[members[list(compared.group)]] = True
        is_best[members[compared.best]] = True
        decidable[members], needed[members] = compared.decidable, compared.needed
    return frame.assign(
        rank=rank,
        p_vs_best=p,
        is_best=is_best,
        in_best_group=group,
        decidable=decidable,
        needed=needed,
    )


# --- task 2 ------------------------------------------------------------------------------------


def faithfulness(basis: Basis) -> pd.DataFrame:
    """Task 2: methods ranked by IoU drop (mean over the levels of each image), layer by layer.

    One line per binarisation (area is the headline) x reference x fill x layer x method; random
    blobs and p_c stand below with layer "" and no rank. Columns: mean, low, high, n, rank
    (1 + number of methods that are clearly better, so ties share a rank), p_vs_best (Holm),
    in_best_group, decidable, needed, undefined (images where both masks are empty), measure,
    valid_fill, struck, ranked, beats_random, beats_p_c.
    """
    rows = basis.rows
    chosen = rows[(rows["strategy"] == "background_only") & (rows["binarisation"] != "")]
    by = ["binarisation", "reference", "fill", "layer"]
    control = control_rows(chosen)
    ours = over_levels(
        average(chosen[~control], "iou_drop", [*by, "method", "level"], basis.samples)
    )
    others = over_levels(
        average(chosen[control], "iou_drop", [*by, "method", "level"], basis.samples)
    )
    frame = _ranked(ours, by, True)
    if len(others.keys):
        below = with_intervals(others).assign(rank=np.nan, p_vs_best=np.nan, is_best=False)
        below = below.assign(in_best_group=False, decidable=False, needed=0)
        frame = pd.concat([frame, below], ignore_index=True) if len(frame) else below
    frame = frame.merge(_undefined(chosen, [*by, "method"]), on=[*by, "method"], how="left")
    frame["undefined"] = frame["undefined"].fillna(0).astype(int)
    frame = judged_by_fill(basis, frame.assign(measure="iou_drop"), True)
    frame.loc[~frame["ranked"], "rank"] = np.nan
    return with_flags(basis, frame)


def _undefined(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Count images whose IoU is undefined at some level although the heatmap is ok."""
    missing = rows[(rows["status"] == "ok") & rows["iou_delta"].isna()]
    counted = missing[[*by, "sample"]].drop_duplicates().groupby(by, sort=False).size()
    return counted.rename("undefined").reset_index()


def ranking(basis: Basis, measure: str = "") -> pd.DataFrame:
    """Rank all layer x method pairs together at the headline cell, best first, by `measure` ("":
    the one that the answer goes by).

    Columns: reference, fill, layer, method, mean, low, high, n, rank (1 + number of pairs that are
    clearly better), p_vs_best (Holm), is_best, in_best_group, decidable, needed, measure,
    binarisation, valid_fill, struck, ranked, beats_random, beats_p_c.
    """
    at = basis.headline
    measure = measure or basis.measure
    higher = higher_is_better(measure, basis.preset)
    methods = basis.methods
    methods = methods[(methods["reference"] == at.reference) & (methods["fill"] == at.fill)]
    cells, _ = measure_cells(methods, measure, basis.preset, at.binarisation, basis.samples)
    frame = _ranked(over_levels(cells), ["reference", "fill"], higher)
    frame = frame.assign(measure=measure, binarisation=at.binarisation)
    frame = with_flags(basis, judged_by_fill(basis, frame, measure in REMOVING))
    # The compared best comes first even where a method with very few images has a better mean.
    return frame.sort_values(
        ["is_best", "rank", "mean"], ascending=[False, True, not higher], na_position="last"
    ).reset_index(drop=True)


def ranking_by_iou_drop(basis: Basis) -> pd.DataFrame:
    """Rank all layer x method pairs together by IoU drop; see `ranking`."""
    return ranking(basis, "iou_drop")


# --- task 3 ------------------------------------------------------------------------------------


def layers(basis: Basis) -> pd.DataFrame:
    """Task 3: paired differences between layers, method by method, at the headline binarisation.

    Columns: measure, reference, fill, method, layer_a, layer_b, mean_a, mean_b, difference (a - b,
    in the measure's unit), low, high, n, p (Wilcoxon, Holm over methods and layer pairs), better
    (layer name, "" if not distinguishable), decidable, needed, valid_fill, struck, ranked.
    """
    parts = []
    for measure in HEADLINE_MEASURES:
        cells, higher = measure_cells(
            basis.methods, measure, basis.preset, basis.headline.binarisation, basis.samples
        )
        folded = over_levels(cells)
        for (reference, fill), members in folded.groups(["reference", "fill"]):
            part = _layer_pairs(folded, members, higher)
            if part is not None:
                part.insert(0, "measure", measure)
                part.insert(1, "reference", reference)
                part.insert(2, "fill", fill)
                parts.append(part)
    if not parts:
        names = ["measure", "reference", "fill", "method", "layer_a", "layer_b", "difference"]
        return judged_by_fill(basis, pd.DataFrame(columns=[*names, "p", "better"]), [])
    frame = pd.concat(parts, ignore_index=True)
    return judged_by_fill(basis, frame, frame["measure"].isin(REMOVING))


def _layer_pairs(cells: Cells, members: npt.NDArray[np.intp], higher: bool) -> pd.DataFrame | None:
    """Paired differences between each two layers of each method; None where there is no pair."""
    names = cells.keys["layer"].to_numpy()
    methods = cells.keys["method"].to_numpy()
    pairs = [
        (methods[i], names[i], names[j], i, j)
        for i, j in combinations(members.tolist(), 2)
        if methods[i] == methods[j]
    ]
    if not pairs:
        return None
    order = {name: k for k, name in enumerate(dict.fromkeys(methods))}
    pairs.sort(key=lambda pair: order[pair[0]])  # stable: layers stay in their order
    first = cells.matrix[:, [pair[3] for pair in pairs]]
    second = cells.matrix[:, [pair[4] for pair in pairs]]
    difference = first - second
    mean, low, high, n = stats.intervals(difference)
    both = np.isfinite(difference)
    raw = [stats.paired_p(first[:, k], second[:, k]) if n[k] else np.nan for k in range(len(pairs))]
    p = stats.holm(raw)
    needed = stats.smallest_n(int(np.isfinite(raw).sum()), ALPHA)
    frame = pd.DataFrame([pair[:3] for pair in pairs], columns=["method", "layer_a", "layer_b"])
    # The two means are over the images that have both, so that they differ by `difference`.
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


# --- further tables ----------------------------------------------------------------------------


def m3_gain(basis: Basis) -> pd.DataFrame:
    """certainty(Keep(B and R)) - certainty(Keep(R)): what the highlighted region adds to R alone.

    Columns: binarisation, reference, fill, layer, method, mean, low, high, n (mean over levels).
    """
    by = ["binarisation", "reference", "fill", "layer", "method"]
    names = [*by, "mean", "low", "high", "n"]
    alone = basis.rows[basis.rows["method"] == control_id("target_only")]
    base = average(alone, "certainty", by[1:3], basis.samples)
    chosen = basis.methods[basis.methods["strategy"] == "highlighted_and_target"]
    chosen = chosen[chosen["binarisation"] != ""]
    if chosen.empty or base.keys.empty:
        return pd.DataFrame(columns=names)
    cells = over_levels(average(chosen, "certainty", [*by, "level"], basis.samples))
    column = {key: j for j, key in enumerate(base.keys.itertuples(index=False, name=None))}
    places = [
        column.get(key, -1)
        for key in cells.keys[["reference", "fill"]].itertuples(index=False, name=None)
    ]
    # The last column stands for targets that were not shown alone: place -1 finds it.
    padded = np.concatenate([base.matrix, np.full((len(basis.samples), 1), np.nan)], axis=1)
    gain = Cells(cells.keys, cells.matrix - padded[:, places], basis.samples)
    return with_intervals(gain)[names]


def statuses(basis: Basis) -> pd.DataFrame:
    """Count images by status for every layer x method.

    Columns: layer, method, images, ok, all_zero, constant, non_finite, empty_region.
    """
    methods = basis.methods
    keys = ["layer", "method"]
    counted = methods[[*keys, "sample", "status"]].drop_duplicates()
    out = methods[keys].drop_duplicates().reset_index(drop=True)
    images = counted.drop_duplicates([*keys, "sample"]).groupby(keys, sort=False).size()
    out = out.merge(images.rename("images").reset_index(), on=keys, how="left")
    # An image with a failed level counts as failed, not as ok as well.
    failed = counted[counted["status"] != "ok"]
    bad = failed.drop_duplicates([*keys, "sample"]).groupby(keys, sort=False).size()
    out = out.merge(bad.rename("bad").reset_index(), on=keys, how="left")
    out["ok"] = out["images"] - out.pop("bad").fillna(0).astype(int)
    for name in NOT_OK:
        part = failed[failed["status"] == name].groupby(keys, sort=False).size()
        out = out.merge(part.rename(name).reset_index(), on=keys, how="left")
        out[name] = out[name].fillna(0).astype(int)
    return out


def originals(basis: Basis) -> pd.DataFrame:
    """Means of the inputs that need no heatmap: original, empty, target only, target removed.

    Columns: reference, fill, method, confidence, entropy, kept, certainty, iou, boundary_f,
    boundary_f_prediction, n.
    """
    names = ["original", "empty", "target_only", "target_removed"]
    ids = [control_id(name) for name in names]
    chosen = basis.rows[basis.rows["method"].isin(ids) & (basis.rows["status"] == "ok")]
    measured = ["confidence", "entropy", "kept", "certainty", "iou"]
    measured += [name for name in BOUNDARY if name in chosen]
    grouped = chosen.groupby(["reference", "fill", "method"], sort=False)
    frame = grouped[measured].mean().assign(n=grouped["sample"].nunique()).reset_index()
    order = frame["method"].map({name: k for k, name in enumerate(ids)})
    return frame.iloc[np.lexsort((frame["fill"].to_numpy(str), order.to_numpy()))].reset_index(
        drop=True
    )


def heatmap_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Average measures of whole heatmaps over tiles.

    Columns: measure, fill, layer, method, mean, low, high (95 %), n, undefined (tiles without a
    number), reasons ("flat map (2), ...").
    """
    by = ["measure", "fill", "layer", "method"]
    names = [*by, "mean", "low", "high", "n", "undefined", "reasons"]
    if scores.empty:
        return pd.DataFrame(columns=names)
    table = with_intervals(average(scores.assign(status="ok"), "value", by))
    failed = scores[scores["reason"] != ""].groupby([*by, "reason"], sort=False).size()
    counted: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    for *key, reason, count in failed.reset_index(name="count").itertuples(index=False, name=None):
        counted.setdefault(tuple(key), []).append((str(reason), int(count)))
    lines = [counted.get(key, []) for key in table[by].itertuples(index=False, name=None)]
    return table.assign(
        undefined=[sum(count for _, count in line) for line in lines],
        reasons=[", ".join(f"{reason} ({count})" for reason, count in line) for line in lines],
    )[names]
