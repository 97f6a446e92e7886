"""Statistics: hand-computed toys, parity with scipy, and the promised error rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats as sps

from segproof.stats import (
    against_best,
    holm,
    interval,
    intervals,
    kendall_tau,
    paired_p,
    smallest_n,
)

wilcoxon: Any = sps.wilcoxon
permutation: Any = sps.PermutationMethod


def coverage(draw: Any, mean: Any, simulations: Any, n: Any, seed: Any) -> Any:
    """Share of simulated samples whose 95 % interval holds the true mean."""
    data = draw(np.random.default_rng(seed), (n, simulations))
    _, low, high, _ = intervals(data, resamples=4000, seed=1)
    return float(np.mean((low <= mean) & (mean <= high)))


def normal(rng: Any, size: Any) -> Any:
    return rng.normal(0.4, 0.2, size)


def bounded(rng: Any, size: Any) -> Any:
    return rng.beta(3, 2, size)


@pytest.mark.parametrize("n", [10, 20, 60])
@pytest.mark.parametrize(("draw", "mean"), [(normal, 0.4), (bounded, 0.6)])
def test_interval_covers_93_to_97_percent(draw: Any, mean: Any, n: Any) -> None:
    assert 0.93 <= coverage(draw, mean, 2000, n, seed=n) <= 0.97


def test_interval_is_wider_than_the_plain_percentile_interval() -> None:
    values = np.random.default_rng(0).normal(size=8)
    ours = interval(values)
    plain = sps.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1))
    t = sps.t.interval(0.95, 7, values.mean(), sps.sem(values))
    assert ours.low < plain.confidence_interval.low
    assert ours.high > plain.confidence_interval.high
    assert ours.high - ours.low == pytest.approx(t[1] - t[0], rel=0.15)


def test_interval_of_two_values_is_their_range() -> None:
    found = interval([0.2, 0.6])
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((0.4, 0.2, 0.6, 2))


def test_interval_of_a_constant_is_that_constant() -> None:
    found = interval([0.3] * 7)
    assert (found.low, found.high) == (found.mean, found.mean)


@pytest.mark.parametrize(("values", "n"), [([], 0), ([np.nan], 0), ([0.5], 1), ([0.5, np.nan], 1)])
def test_too_few_values_give_no_bounds(values: Any, n: Any) -> None:
    found = interval(values)
    assert found.n == n
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    assert np.isnan(found.mean) == (n == 0)


def test_cells_do_not_depend_on_their_neighbours() -> None:
    matrix = np.random.default_rng(2).random((12, 600))
    matrix[np.random.default_rng(3).random(matrix.shape) < 0.1] = np.nan
    table = intervals(matrix, resamples=300)
    for column in (0, 17, 599):
        alone = interval(matrix[:, column], resamples=300)
        assert table[:, column] == pytest.approx([alone.mean, alone.low, alone.high, alone.n])


def test_seed_repeats_and_level_is_checked() -> None:
    values = np.random.default_rng(0).random(9)
    assert interval(values, seed=4) == interval(values, seed=4)
    assert interval(values, seed=4) != interval(values, seed=5)
    with pytest.raises(ValueError, match="level"):
        interval(values, level=1.0)


def test_paired_p_by_hand() -> None:
    # Five differences of one sign: 2 of 32 sign patterns are as extreme.
    assert paired_p([1, 2, 3, 4, 5], [0, 0, 0, 0, 0]) == pytest.approx(2 / 32)
    # Ranks 1, 2, 3 with the smallest negative: W- = 1, patterns {}, {1} on either side: 4 of 8.
    assert paired_p([-1, 2, 3], [0, 0, 0]) == pytest.approx(4 / 8)
    # Two tied differences of opposite sign: every pattern is as extreme.
    assert paired_p([1, -1], [0, 0]) == 1.0
    assert paired_p([1, 2], [1, 2]) == 1.0


@pytest.mark.parametrize("n", [6, 13, 30, 50, 80])
def test_paired_p_is_scipys(n: Any) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.3, 1, n), rng.normal(0, 1, n)
    method = "exact" if n <= 50 else "asymptotic"
    expected = wilcoxon(a, b, method=method, correction=True).pvalue
    assert paired_p(a, b) == pytest.approx(expected, abs=1e-12)
    assert paired_p([*a, np.nan], [*b, 1.0]) == pytest.approx(expected, abs=1e-12)


def test_paired_p_with_ties_is_the_permutation_test() -> None:
    d = np.array([1, 1, 2, -1, 3, 3, -2, 4, 5.0])
    every = permutation(n_resamples=np.inf)
    assert paired_p(d, 0 * d) == pytest.approx(wilcoxon(d, method=every).pvalue, abs=1e-12)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, np.nan, 0.9])[[0, 2]] == pytest.approx([1.0, 1.0])
    assert np.isnan(holm([0.6, np.nan])[1])


def test_smallest_n_is_the_first_that_can_decide() -> None:
    for tests in (1, 4, 10, 45):
        n = smallest_n(tests)
        assert tests * 2 / 2**n < 0.05 <= tests * 2 / 2 ** (n - 1)


def test_clear_order_is_found() -> None:
    matrix = np.array([0.9, 0.5, 0.1]) + np.random.default_rng(0).normal(0, 0.01, (15, 3))
    high, low = against_best(matrix, True), against_best(matrix, False)
    assert (high.best, high.runner_up, high.group) == (0, 1, (0,))
    assert (low.best, low.runner_up, low.group) == (2, 1, (2,))
    assert high.p[0] == 1
    assert (high.p[1:] < 0.05).all()


def test_identical_methods_tie() -> None:
    column = np.random.default_rng(0).random((20, 1))
    found = against_best(np.repeat(column, 4, axis=1), True)
    assert found.group == (0, 1, 2, 3)
    assert (found.p == 1).all()


def test_too_few_images_are_said() -> None:
    matrix = np.array([1.0, 0.0, 0.5]) + np.random.default_rng(0).normal(0, 0.01, (5, 3))
    found = against_best(matrix, True)
    assert not found.decidable
    assert found.group == (0, 1, 2)
    assert found.needed == 7  # three pairs: 3 * 2 / 2**7 = .047
    enough = against_best(np.concatenate([matrix, matrix + 0.01]), True)
    assert enough.decidable
    assert enough.group == (0,)


def test_a_method_with_few_images_is_not_best() -> None:
    matrix = np.full((10, 2), 0.5)
    matrix[:, 1] = [0.9] * 2 + [np.nan] * 8
    assert against_best(matrix, True).best == 0
    with pytest.raises(ValueError, match="no finite value"):
        against_best(np.full((3, 2), np.nan), True)


def test_one_method_has_no_runner_up() -> None:
    found = against_best([[0.1], [0.2]], True)
    assert (found.best, found.runner_up, found.group) == (0, None, (0,))


@pytest.mark.parametrize("n", [9, 20])
def test_false_alarms_stay_below_6_percent(n: Any) -> None:
    rng = np.random.default_rng(n)
    simulations = 500
    alarms = 0
    for _ in range(simulations):
        shared = rng.random((n, 1))  # images differ far more than methods, as in real studies
        found = against_best(shared + rng.normal(0, 0.1, (n, 5)), True)
        alarms += len(found.group) < 5
    assert alarms / simulations <= 0.06


def test_kendall_tau_by_hand() -> None:
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    assert kendall_tau([1, 2, np.nan], [1, 2, 0]) == 1
    assert np.isnan(kendall_tau([1, 1], [1, 2]))
    assert np.isnan(kendall_tau([1], [1]))
