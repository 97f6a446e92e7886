"""Intervals, paired tests and rank agreement: pure functions on numpy arrays.

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
    "Interval",
    "against_best",
    "holm",
    "interval",
    "intervals",
    "kendall_tau",
    "paired_p",
    "smallest_n",
]

Array = npt.NDArray[np.float64]

# Beyond this many pairs the normal approximation is as good as the exact distribution.
EXACT_LIMIT = 50


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
