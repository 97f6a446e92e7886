"""Computes intervals, paired tests and rank agreement: pure functions on numpy arrays.

Images are the units: rows of every matrix are images, columns are cells or methods that were
measured on the same images. A missing number is NaN; it lowers `n` and is never read as 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import ceil, log2, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats as sps

__all__ = [
    "Comparison",
    "Concordance",
    "Friedman",
    "Interval",
    "against_best",
    "complete_blocks",
    "friedman",
    "half_width",
    "holm",
    "interval",
    "intervals",
    "kendall_tau",
    "kendall_w",
    "paired_p",
    "required_n",
    "smallest_n",
    "tiles_to_tell_apart",
]

Array = npt.NDArray[np.float64]

# Beyond this many pairs the normal approximation is as good as the exact distribution.
EXACT_LIMIT = 50
# Below this many images or methods the chi-squared and the studentized range say nothing.
LEAST_IMAGES, LEAST_METHODS = 5, 3
# Efficiency of the Wilcoxon test relative to the t test where differences are normal: 3 / pi.
WILCOXON_ARE = 0.955


@dataclass(frozen=True)
class Interval:
    """Mean with its interval; `low` and `high` are NaN below two values."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """All methods against the best one, as column indices into the matrix that was compared.

    `p[j]` is the Holm-adjusted p of method j against the best (1 for the best itself);
    `pairs[i, j]` the same for every pair. `group` holds the methods not distinguishable from the
    best (p >= alpha), the best included. `decidable` says whether `n` images could have given a
    p below alpha at all; `needed` is the smallest number of images that can.
    """

    best: int
    runner_up: int | None
    means: Array
    p: Array
    pairs: Array
    group: tuple[int, ...]
    decidable: bool
    n: int
    needed: int


@dataclass(frozen=True)
class Friedman:
    """Friedman's test of equal methods, and Nemenyi's groups; columns as in the matrix.

    `ranks[j]` is the mean rank of method j over the `n` complete images, 1 = best (NaN where
    n = 0). Two methods whose ranks differ by `critical_difference` or more differ (family-wise
    alpha). `cliques` are the largest sets without such a pair, best first, of two methods at
    least; one set of all where the Friedman test itself finds nothing (p >= alpha). `statistic`,
    `p` and `critical_difference` are NaN, `cliques` empty, below 5 images or 3 methods.
    """

    statistic: float
    p: float
    ranks: Array
    critical_difference: float
    cliques: tuple[tuple[int, ...], ...]
    n: int


@dataclass(frozen=True)
class Concordance:
    """Kendall's W in [0, 1] of `rankings` complete rankings of `candidates`; NaN if undefined.

    `p` is that of independent rankings in random order; NaN below 5 rankings or 3 candidates.
    """

    w: float
    p: float
    rankings: int
    candidates: int


def interval(
    values: npt.ArrayLike, *, level: float = 0.95, resamples: int = 5000, seed: int = 0
) -> Interval:
    """Return the bootstrap interval of the mean of `values` [n]; see `intervals`."""
    column = np.asarray(values, dtype=np.float64).reshape(-1, 1)
    table = intervals(column, level=level, resamples=resamples, seed=seed)
    return Interval(float(table[0, 0]), float(table[1, 0]), float(table[2, 0]), int(table[3, 0]))


def intervals(
    matrix: npt.ArrayLike, *, level: float = 0.95, resamples: int = 5000, seed: int = 0
) -> Array:
    """Return mean, low, high and n as [4, cells] for `matrix` [images, cells] with NaN = missing.

    Images are drawn with replacement; the quantiles are those of the expanded percentile
    interval, alpha' / 2 = Phi(-sqrt(n / (n - 1)) t_{alpha/2, n-1}), which undoes the narrowness of
    the plain percentile interval in small samples. A cell's result does not depend on its
    neighbours. Bounds are NaN where n < 2. Raises ValueError for a level outside (0, 1).
    Source: hesterberg2015bootstrap.
    """
    if not 0 < level < 1:
        raise ValueError(f"found level {level}; expected a number in (0, 1); pass e.g. 0.95")
    data = np.asarray(matrix, dtype=np.float64)
    present = np.isfinite(data)
    count = present.sum(axis=0)
    out = np.full((4, data.shape[1]), np.nan)
    out[3] = count
    patterns = _patterns(present)
    for columns in patterns:
        rows = present[:, columns[0]]
        n = int(rows.sum())
        if n == 0:
            continue
        block = data[np.ix_(rows, columns)]
        out[0, columns] = block.mean(axis=0)
        if n < 2:
            continue
        t = sps.t.ppf((1 + level) / 2, n - 1)
        tail = float(sps.norm.cdf(-sqrt(n / (n - 1)) * t))
        for start in range(0, len(columns), 256):  # bounded memory: resamples x 256 means at once
            part = block[:, start : start + 256]
            means = _resampled_means(part, resamples, seed)
            low, high = np.quantile(means, [tail, 1 - tail], axis=0)
            out[1, columns[start : start + 256]] = low
            out[2, columns[start : start + 256]] = high
    return out


def _patterns(present: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.intp]]:
    """Group the columns that miss the same images."""
    if present.shape[1] == 0:
        return []
    if present.all():
        return [np.arange(present.shape[1])]
    packed = np.packbits(present, axis=0).T.copy()
    _, inverse = np.unique(packed, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    return [np.flatnonzero(inverse == k) for k in range(int(inverse.max()) + 1)]


def _resampled_means(block: Array, resamples: int, seed: int) -> Array:
    """Means [resamples, cells] of images drawn with replacement from `block` [n, cells]."""
    n = block.shape[0]
    shift = block.mean(axis=0)
    centred = block - shift  # so that a constant column gives exactly its constant
    means = np.empty((resamples, block.shape[1]))
    step = max(1, min(resamples, 2_000_000 // n))
    for part, start in enumerate(range(0, resamples, step)):
        counts = _counts(n, min(step, resamples - start), seed, part)
        means[start : start + len(counts)] = counts @ centred / n
    return np.asarray(means + shift)


@lru_cache(maxsize=2)  # the cells of a table share their number of images
def _counts(n: int, size: int, seed: int, part: int) -> Array:
    """How often each of `n` images is drawn, in `size` resamples: [size, n]."""
    rng = np.random.default_rng([seed, n, part])
    drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
    return counts.astype(np.float64)


def paired_p(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return the two-sided p of the Wilcoxon signed-rank test on pairs, NaN pairs left out.

    Equal pairs are dropped (as scipy's `zero_method="wilcox"`); p is 1 if none is left. Up to 50
    pairs the distribution is exact, also with tied differences; beyond that scipy's normal
    approximation with continuity correction. Source: wilcoxon1945.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    # Rounding keeps float noise from splitting ties and from making equal pairs differ.
    difference = np.round(difference[np.isfinite(difference)], 12)
    difference = difference[difference != 0]
    n = difference.size
    if n == 0:
        return 1.0
    if n > EXACT_LIMIT:
        wilcoxon: Any = sps.wilcoxon
        return float(wilcoxon(difference, correction=True, method="asymptotic").pvalue)
    doubled = np.rint(2 * sps.rankdata(np.abs(difference))).astype(np.int64)
    positive = int(doubled[difference > 0].sum())
    cumulative = _signed_rank_distribution(tuple(np.sort(doubled).tolist()))
    low = min(positive, int(doubled.sum()) - positive)
    return float(min(1.0, 2 * cumulative[low]))


@lru_cache(maxsize=1024)
def _signed_rank_distribution(doubled: tuple[int, ...]) -> Array:
    """P(W+ <= w) for doubled ranks, every sign pattern equally likely."""
    mass = np.zeros(sum(doubled) + 1)
    mass[0] = 1.0
    for rank in doubled:
        shifted = np.zeros_like(mass)
        shifted[rank:] = mass[:-rank]
        mass = (mass + shifted) / 2
    return np.asarray(np.cumsum(mass))


def holm(p: npt.ArrayLike) -> Array:
    """Return Holm's adjusted p values, in the order given (NaN stays NaN). holm1979."""
    values = np.asarray(p, dtype=np.float64)
    out = np.full(values.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    out[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return out


def smallest_n(tests: int, alpha: float = 0.05) -> int:
    """Smallest number of images with which the first of `tests` Holm steps can fall below alpha."""
    n = max(1, ceil(1 + log2(max(tests, 1) / alpha)))
    return n if max(tests, 1) * 2.0 ** (1 - n) < alpha else n + 1


def against_best(
    matrix: npt.ArrayLike, higher_is_better: bool, *, alpha: float = 0.05
) -> Comparison:
    """Compare every column of `matrix` [images, methods] with the best one, paired by image.

    The best has the best mean; a method with fewer than half of the images that the fullest
    column has cannot be it. Which method is best is read from the same data, so Holm runs over
    *all* pairs: over the pairs with the best alone, the family-wise false-alarm rate of five equal
    methods is 8 % (simulated, n = 20). Raises ValueError if no column holds a number.
    """
    data = np.asarray(matrix, dtype=np.float64)
    present = np.isfinite(data)
    count = present.sum(axis=0)
    methods = data.shape[1]
    if methods == 0 or count.max() == 0:
        raise ValueError("found no finite value; expected one method with one image at least")
    means = np.full(methods, np.nan)
    for j in np.flatnonzero(count).tolist():
        means[j] = data[present[:, j], j].mean()
    score = means if higher_is_better else -means
    eligible = np.where(2 * count >= count.max(), score, -np.inf)
    best = int(np.argmax(eligible))
    rest = np.where(np.arange(methods) == best, -np.inf, eligible)
    runner_up = int(np.argmax(rest)) if np.isfinite(rest).any() else None
    index = list(combinations(range(methods), 2))
    usable = [bool((present[:, i] & present[:, j]).any()) for i, j in index]
    raw = [
        paired_p(data[:, i], data[:, j]) if ok else np.nan
        for (i, j), ok in zip(index, usable, strict=True)
    ]
    pairs = np.ones((methods, methods))
    for (i, j), value in zip(index, holm(raw), strict=True):
        pairs[i, j] = pairs[j, i] = value
    p = pairs[best].copy()
    needed = smallest_n(max(1, sum(usable)), alpha)
    group = tuple(int(j) for j in np.flatnonzero((p >= alpha) & (count > 0)))
    n = int(count.max())
    return Comparison(best, runner_up, means, p, pairs, group, n >= needed, n, needed)


def kendall_tau(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return Kendall's tau-b of two score lists; NaN below two common entries or without spread.

    Source: kendall1938.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 2 or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
        return float("nan")
    result: Any = sps.kendalltau(a[both], b[both])
    return float(result.statistic)


def complete_blocks(
    matrix: npt.ArrayLike,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which rows and which columns of `matrix` [images, methods] make a gapless block.

    Columns with fewer than half of the numbers that the fullest has go first, so that one method
    that failed nearly everywhere does not take all images with it; then every row with a gap.
    """
    present = np.isfinite(np.asarray(matrix, dtype=np.float64))
    count = present.sum(axis=0)
    columns = (2 * count >= count.max(initial=0)) & (count > 0)
    rows = np.asarray(present[:, columns].all(axis=1) & columns.any(), dtype=np.bool_)
    return rows, columns


def _row_ranks(block: Array) -> tuple[Array, float]:
    """Mid-ranks within each row, 1 = lowest, and the sum of t^3 - t over all groups of ties."""
    # Rounding as in `paired_p`: float noise must not split ties.
    ranks = np.asarray(sps.rankdata(np.round(block, 12), axis=1), dtype=np.float64)
    # Within a group of t equal values the ranks 1..t lose (t^3 - t) / 12 of their sum of squares.
    k = block.shape[1]
    lost = block.shape[0] * k * (k + 1) * (2 * k + 1) / 6 - float((ranks**2).sum())
    return ranks, 12 * lost


def friedman(matrix: npt.ArrayLike, higher_is_better: bool, *, alpha: float = 0.05) -> Friedman:
    """Friedman test over the methods of `matrix` [images, methods], images as blocks.

    Only images with every method count; methods equal on an image share the mean of their ranks,
    and the statistic is divided by 1 - sum(t^3 - t) / (n k (k^2 - 1)), as scipy's. Methods equal
    on every image give statistic 0 and p 1. Critical difference of Nemenyi: q sqrt(k (k + 1) /
    (6 n)) with q the quantile of the studentized range (k, infinity) over sqrt(2); it knows no
    correction for ties, which makes it wider than it need be.
    Source: friedman1937, nemenyi1963, demsar2006.
    """
    data = np.asarray(matrix, dtype=np.float64)
    block = data[np.isfinite(data).all(axis=1)]
    n, k = block.shape
    nan = float("nan")
    if n == 0 or k == 0:
        return Friedman(nan, nan, np.full(k, nan), nan, (), 0)
    ranks, ties = _row_ranks(-block if higher_is_better else block)
    mean = ranks.mean(axis=0)
    if n < LEAST_IMAGES or k < LEAST_METHODS:
        return Friedman(nan, nan, mean, nan, (), n)
    statistic, p = 0.0, 1.0
    if ties < n * (k**3 - k):
        test: Any = sps.friedmanchisquare
        result = test(*ranks.T)
        statistic, p = float(result.statistic), float(result.pvalue)
    q = float(sps.studentized_range.ppf(1 - alpha, k, np.inf)) / sqrt(2)
    difference = q * sqrt(k * (k + 1) / (6 * n))
    if p >= alpha:
        cliques: tuple[tuple[int, ...], ...] = (tuple(np.argsort(mean, kind="stable").tolist()),)
    else:
        cliques = _cliques(mean, difference)
    return Friedman(statistic, p, mean, difference, cliques, n)


def _cliques(ranks: Array, difference: float) -> tuple[tuple[int, ...], ...]:
    """Largest runs of neighbours by rank that span less than `difference`."""
    order = np.argsort(ranks, kind="stable")
    in_order = ranks[order]
    out: list[tuple[int, ...]] = []
    reached = 0
    for start in range(len(order)):
        end = int(np.searchsorted(in_order, in_order[start] + difference - 1e-9))
        if end - start > 1 and end > reached:
            out.append(tuple(order[start:end].tolist()))
            reached = end
    return tuple(out)


def kendall_w(matrix: npt.ArrayLike) -> Concordance:
    """Kendall's coefficient of concordance of `matrix` [rankings, candidates] of scores.

    W = 12 S / (m^2 (k^3 - k) - m sum(t^3 - t)), S the squared deviations of the rank sums from
    their mean, t the sizes of the groups of ties; 1 = the same order in all, 0 = none in common.
    Rankings with a gap are left out (see `complete_blocks`). NaN below two rankings or candidates,
    or where all candidates tie in all rankings. p: chi-squared m (k - 1) W, k - 1 degrees of
    freedom, for rankings that are independent of each other. Source: kendall1939.
    """
    data = np.asarray(matrix, dtype=np.float64)
    block = data[np.isfinite(data).all(axis=1)]
    m, k = block.shape
    nan = float("nan")
    if m < 2 or k < 2:
        return Concordance(nan, nan, m, k)
    ranks, ties = _row_ranks(block)
    sums = ranks.sum(axis=0)
    spread = m**2 * (k**3 - k) - m * ties
    if spread <= 1e-9 * m**2 * k**3:
        return Concordance(nan, nan, m, k)
    w = min(1.0, 12 * float(((sums - sums.mean()) ** 2).sum()) / spread)
    enough = m >= LEAST_IMAGES and k >= LEAST_METHODS
    return Concordance(w, float(sps.chi2.sf(m * (k - 1) * w, k - 1)) if enough else nan, m, k)


def half_width(values: npt.ArrayLike, level: float = 0.95) -> float:
    """Half-width of the t interval of the mean of `values` [n]; NaN below two values."""
    data = np.asarray(values, dtype=np.float64)
    data = data[np.isfinite(data)]
    n = data.size
    if n < 2:
        return float("nan")
    return float(sps.t.ppf((1 + level) / 2, n - 1) * data.std(ddof=1) / sqrt(n))


def required_n(values: npt.ArrayLike, half_width: float, level: float = 0.95) -> float:
    """Smallest number of images whose t interval of the mean is at most +-`half_width`.

    The spread is that of `values` [n] (one number per image, or the paired differences of two
    methods): smallest n >= 2 with t_{(1 + level) / 2, n - 1} s / sqrt(n) <= half_width. NaN for
    one value or no spread. Raises ValueError for a width or level out of range.
    """
    if not half_width > 0:
        raise ValueError(f"found half-width {half_width}; expected > 0; pass e.g. 0.05")
    if not 0 < level < 1:
        raise ValueError(f"found level {level}; expected a number in (0, 1); pass e.g. 0.95")
    spread = _spread(values)
    if np.isnan(spread):
        return spread
    tail = (1 + level) / 2
    # The normal quantile gives too few; t needs a handful more.
    n = max(2, ceil((float(sps.norm.ppf(tail)) * spread / half_width) ** 2))
    while float(sps.t.ppf(tail, n - 1)) * spread / sqrt(n) > half_width * (1 + 1e-12):
        n += 1
    return float(n)


def tiles_to_tell_apart(
    differences: npt.ArrayLike, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Images with which a paired Wilcoxon test shows the observed difference, with this power.

    n = (((a + z_power) s / d)^2 + a^2 / 2) / 0.955, a = z_{1 - alpha / 2}, d and s the mean and
    the deviation of `differences` [n]: the normal approximation of the t test (a^2 / 2: s is
    estimated) over the Wilcoxon test's asymptotic relative efficiency, 3 / pi for normal
    differences; never below the number with which p < alpha is possible at all, where the power
    is lower. NaN for one value, no spread or no difference. Source: guenther1981, hodges1956.
    """
    spread = _spread(differences)
    data = np.asarray(differences, dtype=np.float64)
    mean = float(data[np.isfinite(data)].mean()) if np.isfinite(spread) else 0.0
    if abs(mean) < 1e-12:
        return float("nan")
    z = float(sps.norm.ppf(1 - alpha / 2))
    t_test = ((z + float(sps.norm.ppf(power))) * spread / mean) ** 2 + z**2 / 2
    return float(max(ceil(t_test / WILCOXON_ARE), smallest_n(1, alpha)))


def _spread(values: npt.ArrayLike) -> float:
    """Standard deviation of the values that are there; NaN for one value or rounding noise."""
    data = np.asarray(values, dtype=np.float64)
    data = data[np.isfinite(data)]
    if data.size < 2:
        return float("nan")
    spread = float(data.std(ddof=1))
    return spread if spread > 1e-12 else float("nan")
