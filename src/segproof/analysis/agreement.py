"""Measures how firm the order of the candidates is: agreement, mean ranks, tiles needed.

A candidate is one method at one layer. Controls are no candidates; they only mark.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from segproof.analysis import statistics as stats
from segproof.analysis.basis import ALPHA, Basis, judged_by_fill, measure_cells, with_flags
from segproof.analysis.cells import Cells, control_rows, over_levels, samples_of
from segproof.analysis.names import HEADLINE_MEASURES, JOINED, REMOVING

__all__ = ["agreement", "fill_agreement", "mean_ranks", "measure_agreement", "precision"]


def fill_agreement(basis: Basis) -> pd.DataFrame:
    """Kendall tau between the method rankings under each two fills that are not invalid.

    Columns: measure, reference, layer, fill_a, fill_b, tau, methods (how many were ranked).
    """
    at = basis.headline
    lines = []
    for measure in HEADLINE_MEASURES:
        cells, _ = measure_cells(
            basis.methods, measure, basis.preset, at.binarisation, basis.samples
        )
        folded = over_levels(cells)
        mean = stats.intervals(folded.matrix, resamples=1)[0]
        frame = folded.keys.assign(mean=mean)
        for (reference, layer), part in frame.groupby(["reference", "layer"], sort=False):
            wide = part.pivot(index="method", columns="fill", values="mean")
            fills = [f for f in part["fill"].unique() if (reference, f) not in basis.invalid]
            for a, b in combinations(fills, 2):
                tau = stats.kendall_tau(wide[a].to_numpy(), wide[b].to_numpy())
                count = int(wide[[a, b]].notna().all(axis=1).sum())
                lines.append((measure, reference, layer, a, b, tau, count))
    names = ["measure", "reference", "layer", "fill_a", "fill_b", "tau", "methods"]
    return pd.DataFrame(lines, columns=names)


def _at_headline(basis: Basis, measure: str, rows: pd.DataFrame) -> tuple[Cells, bool]:
    """Cells layer x method x level of `measure` at the headline cell, and the direction."""
    at = basis.headline
    chosen = rows[(rows["reference"] == at.reference) & (rows["fill"] == at.fill)]
    return measure_cells(chosen, measure, basis.preset, at.binarisation, samples_of(rows))


def _takes_part(basis: Basis, measure: str, valid: bool | None) -> bool:
    """Whether a measure may rank under a fill: those of removal only under one that is valid."""
    return measure not in REMOVING or valid is not False or basis.preset == "paper"


def mean_ranks(basis: Basis) -> pd.DataFrame:
    """Friedman test and mean ranks of all layer x method candidates, measure by measure.

    One line per headline measure x candidate at the headline cell, best rank first; an image's
    values are means over the levels. Columns: reference, fill, mean_rank (1 = best),
    groups (letters, " " between; candidates with a letter in common are not distinguishable),
    statistic, p, critical_difference (Nemenyi, 5 % family-wise), candidates, n (images with every
    candidate), valid_fill, struck, ranked and the flags. A candidate with fewer than half of the
    images of the fullest has NaN and takes no part. Controls are no candidates; they mark.
    """
    parts = []
    for measure in HEADLINE_MEASURES:
        cells, higher = _at_headline(basis, measure, basis.methods)
        folded = over_levels(cells)
        images, columns = stats.complete_blocks(folded.matrix)
        test = stats.friedman(folded.matrix[np.ix_(images, columns)], higher, alpha=ALPHA)
        # The test numbers the candidates that take part 0, 1, 2, ...; `places` are their columns.
        places = np.flatnonzero(columns)
        ranks = np.full(len(columns), np.nan)
        ranks[places] = test.ranks
        groups = np.full(len(columns), "", dtype=object)
        for number, clique in enumerate(test.cliques):
            groups[places[list(clique)]] += f" {_letter(number)}"
        frame = folded.keys.assign(
            measure=measure,
            mean_rank=ranks,
            groups=[text.strip() for text in groups],
            statistic=test.statistic,
            p=test.p,
            critical_difference=test.critical_difference,
            candidates=len(places),
            n=test.n,
        )
        parts.append(frame.sort_values("mean_rank", kind="stable"))
    frame = pd.concat(parts, ignore_index=True)
    struck = frame["measure"].isin(REMOVING)
    frame = judged_by_fill(basis, frame, struck)
    return with_flags(basis, frame)


def _letter(number: int) -> str:
    """Name of a group: a ... z, aa ... zz, aaa ..."""
    return chr(ord("a") + number % 26) * (1 + number // 26)


def _oriented(cells: Cells, higher: bool) -> pd.DataFrame:
    """Means over images, one line per cell; higher is better whatever the measure."""
    mean = stats.intervals(cells.matrix, resamples=1)[0]
    return cells.keys.assign(score=mean if higher else -mean)


def _by_measure(basis: Basis) -> pd.DataFrame:
    """Scores with one line per candidate and one column per measure that takes part."""
    parts = []
    for measure in HEADLINE_MEASURES:
        if _takes_part(basis, measure, basis.headline.valid):
            cells, higher = _at_headline(basis, measure, basis.methods)
            parts.append(_oriented(over_levels(cells), higher).assign(measure=measure))
    frame = pd.concat(parts, ignore_index=True)
    wide = frame.pivot(index=["layer", "method"], columns="measure", values="score")
    return wide[[name for name in HEADLINE_MEASURES if name in wide.columns]]


def _by_fill(basis: Basis) -> pd.DataFrame:
    """Scores with one line per candidate, one column per fill under which the measure ranks."""
    at, measure = basis.headline, basis.measure
    chosen = basis.methods[basis.methods["reference"] == at.reference]
    if not _takes_part(basis, measure, False):
        failed = [fill for reference, fill in basis.invalid if reference == at.reference]
        chosen = chosen[~chosen["fill"].isin(failed)]
    samples = samples_of(basis.methods)
    cells, higher = measure_cells(chosen, measure, basis.preset, at.binarisation, samples)
    frame = _oriented(over_levels(cells), higher)
    return frame.pivot(index=["layer", "method"], columns="fill", values="score")


def measure_agreement(basis: Basis) -> pd.DataFrame:
    """Kendall tau between the rankings of all candidates by each two headline measures.

    At the headline cell; every measure is turned so that higher is better. Columns: reference,
    fill, measure_a, measure_b, tau, candidates. Measures of removal are missing where the fill is
    not valid (strict).
    """
    at = basis.headline
    wide = _by_measure(basis)
    lines = []
    for a, b in combinations(wide.columns, 2):
        tau = stats.kendall_tau(wide[a].to_numpy(), wide[b].to_numpy())
        count = int(wide[[a, b]].notna().all(axis=1).sum())
        lines.append((at.reference, at.fill, a, b, tau, count))
    names = ["reference", "fill", "measure_a", "measure_b", "tau", "candidates"]
    return pd.DataFrame(lines, columns=names)


def agreement(basis: Basis) -> pd.DataFrame:
    """Kendall's W: how far the order of all candidates stays when one thing changes.

    One line per factor: fills (those under which the measure ranks), areas (thresholds where no
    area was studied), measures (all that rank, less the contrast, which is made of two of them),
    images; the rest stays at the headline cell and measure. Columns: factor, measure, compared
    (what the rankings belong to), w (1 = the same order, 0 = nothing in common), rankings,
    candidates (that all rankings hold), p. p exists for images alone: rankings made from the same
    images are not independent. Controls are no candidates: that random blobs come last everywhere
    would pass for agreement.
    """
    measure = basis.measure
    cells, higher = _at_headline(basis, measure, basis.methods)
    folded = over_levels(cells)
    fills = _by_fill(basis)
    levels = _oriented(cells, higher)
    by_level = levels.pivot(index=["layer", "method"], columns="level", values="score")
    measures = _by_measure(basis).drop(columns=JOINED, errors="ignore")
    kind = f"{basis.headline.binarisation}s"
    # Each factor with its scores, one row per ranking and one column per candidate.
    factors = [
        ("fills", measure, ", ".join(map(str, fills.columns)), fills.to_numpy().T),
        (kind, measure, ", ".join(f"{x:g}" for x in by_level.columns), by_level.to_numpy().T),
        ("measures", "", ", ".join(map(str, measures.columns)), measures.to_numpy().T),
        ("images", measure, "", folded.matrix),  # W does not mind the direction
    ]
    lines = []
    for factor, name, compared, scores in factors:
        kept, columns = stats.complete_blocks(scores)
        if factor != "images":  # few rankings, each a mean over images: rather lose a candidate
            kept = np.isfinite(scores).any(axis=1)
            columns = np.isfinite(scores[kept]).all(axis=0) & bool(kept.any())
        concordance = stats.kendall_w(scores[np.ix_(kept, columns)])
        p = concordance.p if factor == "images" else float("nan")
        numbers = (concordance.w, concordance.rankings, concordance.candidates, p)
        lines.append((factor, name, compared, *numbers))
    names = ["factor", "measure", "compared", "w", "rankings", "candidates", "p"]
    return pd.DataFrame(lines, columns=names)


def precision(basis: Basis) -> pd.DataFrame:
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
    measure = basis.measure
    cells, higher = _at_headline(basis, measure, basis.rows)
    folded = over_levels(cells)
    frame = folded.keys.assign(measure=measure, control=control_rows(folded.keys))
    score = folded.matrix if higher else -folded.matrix
    ours = np.flatnonzero(~frame["control"].to_numpy(bool))  # columns of the candidates
    values = [score[:, j] for j in range(score.shape[1])]
    present = np.isfinite(score)
    differences = [np.full(len(score), np.nan) for _ in values]
    best, runner_up = -1, -1
    if present[:, ours].any():
        compared = stats.against_best(score[:, ours], True, alpha=ALPHA)
        best = int(ours[compared.best])
        runner_up = -1 if compared.runner_up is None else int(ours[compared.runner_up])
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
    frame = judged_by_fill(basis, frame, measure in REMOVING)
    frame = with_flags(basis, frame)
    order = ["control", "is_best", "runner_up", "mean"]
    ascending = [True, False, False, not higher]
    frame = frame.sort_values(order, ascending=ascending, na_position="last", kind="stable")
    return frame.drop(columns="control").reset_index(drop=True)
