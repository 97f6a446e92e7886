"""Measures against the literal formulas, scikit-learn, and values known exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor

import reference
from segproof.errors import DataError
from segproof.explain.target import BoundTarget, hard_mask
from segproof.measures import pictures as measures
from segproof.measures.records import MEASURES

SEEDS = st.integers(0, 10_000)
HEADS = st.sampled_from([("softmax", 2), ("softmax", 4), ("sigmoid", 2), ("sigmoid", 3)])
ONES = torch.ones(1, 6, 7, dtype=torch.bool)


def bound_of(
    region: Tensor, activation: str = "softmax", c: int = 1, valid: Tensor | None = None
) -> BoundTarget:
    inside = region.double()
    return BoundTarget(
        class_index=c,
        activation="sigmoid" if activation == "sigmoid" else "softmax",
        space="logit",
        weights=inside / inside.sum(dim=(1, 2), keepdim=True).clamp(min=1),
        region=region,
        prediction=region.roll(1, dims=2),
        valid=torch.ones_like(region) if valid is None else valid,
    )


def case(seed: int, head: tuple[str, int], n: int = 2) -> tuple[Tensor, BoundTarget, Tensor]:
    """Random probabilities [n, K, 6, 7] (some exactly 0 or 1), a region and a truth."""
    activation, K = head
    generator = torch.Generator().manual_seed(seed)
    z = 4 * torch.randn(n, K, 6, 7, generator=generator, dtype=torch.float64)
    z[:, 0, 0] = 800.0
    p = z.softmax(dim=1) if activation == "softmax" else z.sigmoid()
    region = torch.rand(n, 6, 7, generator=generator) > 0.5
    region[:, 3, 3] = True
    truth = torch.rand(n, 6, 7, generator=generator) > 0.4
    valid = torch.rand(n, 6, 7, generator=generator) > 0.1
    valid[:, 3, 3] = True
    return p, bound_of(region & valid, activation, K - 1, valid), truth


@settings(max_examples=40)
@given(SEEDS, HEADS)
def test_measures_are_the_literal_formulas(seed: int, head: tuple[str, int]) -> None:
    p, bound, truth = case(seed, head)
    c, act = bound.class_index, bound.activation
    for n in range(len(p)):
        pn, R = p[n].numpy(), bound.region[n].numpy()
        G, V, P = truth[n].numpy(), bound.valid[n].numpy(), bound.prediction[n].numpy()
        new = reference.decided(pn, c, act)
        expected = {
            measures.confidence: reference.confidence(pn, c, R),
            measures.entropy: reference.entropy(pn, c, R, act),
            measures.kept: reference.kept(pn, c, R, act),
            measures.entropy_kept: reference.entropy_kept(pn, c, R, act),
            measures.certainty: reference.certainty(pn, c, R, act),
            measures.entropy_paper: reference.entropy_paper(pn, c, G & V),
            measures.iou: reference.iou(new, G, V),
            measures.iou_prediction: reference.iou(new, P, V),
            measures.dice: reference.dice(new, G, V),
        }
        for measure, value in expected.items():
            got = measure(p, bound, truth)
            assert got.shape == (2,)
            assert got.dtype == torch.float64
            assert float(got[n]) == pytest.approx(value, abs=1e-12, nan_ok=True), measure.__name__


@settings(max_examples=20)
@given(SEEDS, HEADS)
def test_one_target_serves_many_pictures(seed: int, head: tuple[str, int]) -> None:
    """A bound target of one picture broadcasts over its variants; batching changes nothing."""
    p, bound, truth = case(seed, head, n=1)
    variants = torch.cat([p, p.flip(2), p.flip(3)])
    for info in MEASURES.values():
        together = info.function(variants, bound, truth)
        alone = torch.cat([info.function(variants[k : k + 1], bound, truth) for k in range(3)])
        assert torch.equal(together.nan_to_num(-1), alone.nan_to_num(-1))


@pytest.mark.parametrize("K", [2, 3, 7])
def test_entropy_of_uniform_is_one_and_of_certain_zero(K: int) -> None:
    bound = bound_of(ONES)
    uniform = torch.full((1, K, 6, 7), 1 / K, dtype=torch.float64)
    assert float(measures.entropy(uniform, bound)[0]) == pytest.approx(1, abs=1e-12)
    for k in range(K):
        certain = torch.zeros(1, K, 6, 7, dtype=torch.float64)
        certain[:, k] = 1
        assert float(measures.entropy(certain, bound)[0]) == 0
        assert float(measures.certainty(certain, bound)[0]) == (1 if k == 1 else 0)


def test_entropy_of_independent_channels_reads_the_class_alone() -> None:
    p = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 6, 7)
    assert float(measures.entropy(p, bound_of(ONES, "sigmoid"))[0]) == pytest.approx(1, abs=1e-12)


def test_certainty_cannot_reward_a_collapse() -> None:
    """Nothing of the roof is seen any more: certain, low paper entropy, and certainty is 0."""
    p1 = torch.full((1, 6, 7), 0.03, dtype=torch.float64)
    p = torch.stack([1 - p1, p1], dim=1)
    bound = bound_of(ONES)
    assert float(measures.certainty(p, bound)[0]) == 0
    assert float(measures.kept(p, bound)[0]) == 0
    assert math.isnan(float(measures.entropy_kept(p, bound)[0]))
    sure = torch.stack([p1 + 0.12, 1 - p1 - 0.12], dim=1)
    assert float(measures.entropy_paper(p, bound)[0]) < float(
        measures.entropy_paper(sure, bound)[0]
    )
    assert float(measures.certainty(sure, bound)[0]) > 0.3


def test_paper_entropy_divides_by_all_pixels_and_the_strict_one_by_the_region() -> None:
    p = torch.full((1, 2, 6, 7), 0.5, dtype=torch.float64)
    small = torch.zeros_like(ONES)
    small[0, 0, :3] = True
    assert float(measures.entropy_paper(p, bound_of(small))[0]) == pytest.approx(0.5 * 3 / 42)
    assert float(measures.entropy(p, bound_of(small))[0]) == pytest.approx(1)


@settings(max_examples=40)
@given(SEEDS, HEADS)
def test_iou_and_dice_are_scikit_learns(seed: int, head: tuple[str, int]) -> None:
    p, bound, truth = case(seed, head, n=1)
    now = hard_mask(p, bound.class_index, bound.activation)[0]
    V = bound.valid[0]
    one, other = truth[0][V].numpy(), now[V].numpy()
    assert one.any()
    theirs = float(jaccard_score(one, other))
    assert float(measures.iou(p, bound, truth)[0]) == pytest.approx(theirs, abs=1e-12)
    theirs = float(f1_score(one, other))
    assert float(measures.dice(p, bound, truth)[0]) == pytest.approx(theirs, abs=1e-12)


def test_both_empty_is_undefined_and_one_empty_is_zero() -> None:
    nothing = torch.zeros_like(ONES)
    p = torch.zeros(1, 2, 6, 7, dtype=torch.float64)
    p[:, 0] = 1
    bound = bound_of(nothing)
    for measure in (measures.iou, measures.dice, measures.iou_prediction):
        assert math.isnan(float(measure(p, bound, nothing)[0]))
        assert float(measure(p.flip(1), bound, nothing)[0]) == 0
    assert float(measures.iou(p, bound, ONES)[0]) == 0
    for measure in (measures.confidence, measures.entropy, measures.kept, measures.certainty):
        assert math.isnan(float(measure(p, bound, nothing)[0]))


@settings(max_examples=20)
@given(SEEDS, HEADS)
def test_stated_ranges_hold_and_are_reached(seed: int, head: tuple[str, int]) -> None:
    p, bound, truth = case(seed, head)
    for name, info in MEASURES.items():
        got = info.function(p, bound, truth)
        got = got[~got.isnan()]
        assert ((got >= info.low) & (got <= info.high)).all(), name


def test_truth_measures_ask_for_truth() -> None:
    p, bound, _ = case(0, ("softmax", 2))
    with pytest.raises(DataError, match="iou_prediction"):
        measures.iou(p, bound, None)


@pytest.mark.parametrize("n", [1, 2])
def test_float64_decides_also_for_float32_probabilities(n: int) -> None:
    p, bound, truth = case(8, ("softmax", 4), n=n)
    single = p.float()
    for name, info in MEASURES.items():
        got = info.function(single, bound, truth)
        assert got.dtype == torch.float64, name
        assert torch.equal(got, info.function(single.double(), bound, truth)), name


def test_float32_probabilities_are_good_to_1e6() -> None:
    p, bound, truth = case(8, ("softmax", 4))
    for name, info in MEASURES.items():
        exact = info.function(p, bound, truth).numpy()
        single = info.function(p.float(), bound, truth).numpy()
        np.testing.assert_allclose(single, exact, atol=1e-6, err_msg=name)


# --- outlines -----------------------------------------------------------------------------------
def masks(now: Tensor, other: Tensor, valid: Tensor) -> tuple[Tensor, BoundTarget]:
    """Probabilities whose hard mask is `now`, and a target whose prediction is `other`."""
    p = torch.stack([~now, now], dim=1).double() * 0.8 + 0.1
    return p, replace(bound_of(valid & other, valid=valid), prediction=other & valid)


@pytest.mark.parametrize("seed", range(6))
def test_boundary_f_is_the_literal_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(4, 5, 6, generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    now, other = drawn[:2] > 0.6, drawn[2:] > 0.75
    valid = torch.rand(2, 20, 24, generator=generator) > (0.1 if seed % 2 else -1.0)
    p, bound = masks(now, other, valid)
    got, same = measures.boundary_f(p, bound, other), measures.boundary_f_prediction(p, bound)
    expected = [
        reference.boundary_f(now[n].numpy(), other[n].numpy(), valid[n].numpy()) for n in range(2)
    ]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)
    assert torch.equal(got, same)
    assert all(0 < value < 1 for value in expected)


def test_boundary_f_by_hand() -> None:
    everywhere = torch.ones(1, 20, 20, dtype=torch.bool)
    square = torch.zeros_like(everywhere)
    square[:, 5:12, 5:12] = True

    def score(now: Tensor, other: Tensor) -> float:
        return float(measures.boundary_f(*masks(now, other, everywhere), other)[0])

    assert score(square, square) == 1
    assert score(square.roll(3, dims=2), square) == 1  # 3 px are near
    assert 0 < score(square.roll(4, dims=2), square) < 1
    # one pixel each, 3 px apart in both directions: 4.2 px is not near; 2 and 2 is
    dot = torch.zeros_like(everywhere)
    dot[:, 10, 10] = True
    assert score(dot.roll((3, 3), dims=(1, 2)), dot) == 0
    assert score(dot.roll((2, 2), dims=(1, 2)), dot) == 1
    # P = 1, R = 1 of 2 pixels
    assert score(dot, dot | dot.roll(9, dims=1)) == pytest.approx(2 / 3)
    nothing = torch.zeros_like(everywhere)
    assert score(nothing, square) == score(square, nothing) == 0
    assert math.isnan(score(nothing, nothing))
    # where the picture ends there is no outline
    assert math.isnan(score(everywhere, everywhere))
    half = everywhere.clone()
    half[:, :, 10:] = False
    # outlines: column 9; columns 2 and 11, one of which is near
    assert score(half, half.roll(2, dims=2)) == pytest.approx(2 / 3)
    assert score(half, half) == 1
    with pytest.raises(DataError, match="truth"):
        measures.boundary_f(*masks(square, square, everywhere), None)


def test_boundary_f_sees_no_outline_where_valid_pixels_end() -> None:
    valid = torch.ones(1, 20, 20, dtype=torch.bool)
    valid[:, :, 10:] = False
    half = valid.clone()
    p, bound = masks(half, half, valid)
    assert math.isnan(float(measures.boundary_f(p, bound, half)[0]))


def test_one_target_serves_many_pictures_also_for_outlines() -> None:
    generator = torch.Generator().manual_seed(0)
    now = torch.rand(3, 24, 24, generator=generator) > 0.98
    other = torch.rand(1, 24, 24, generator=generator) > 0.98
    valid = torch.ones_like(other)
    p, bound = masks(now, other, valid)
    singles = [float(measures.boundary_f(p[n : n + 1], bound, other)[0]) for n in range(3)]
    assert measures.boundary_f(p, bound, other).tolist() == singles
    assert len(set(singles)) == 3
