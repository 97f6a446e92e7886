"""The scalar that is explained, against literal float64 formulas, and what freezing it means."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from segproof.errors import DataError, ModelError, UnknownNameError
from segproof.explain.target import BoundTarget, Target, hard_mask
from segproof.models.contract import SegmentationModel
from toys import toy_images, toy_model

Array = NDArray[np.float64]
CLASSES = ("ground", "roof", "road")
N, H, W = 3, 5, 4


class Names:
    """The part of a model that a target reads."""

    def __init__(self, activation: Literal["softmax", "sigmoid"] = "softmax") -> None:
        self.activation: Literal["softmax", "sigmoid"] = activation

    def class_index(self, name: int | str) -> int:
        if name not in CLASSES:
            raise UnknownNameError.of("class", name, CLASSES)
        return CLASSES.index(str(name))


def drawn(seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(N, channels, H, W, generator=generator, dtype=torch.float64)


def some(seed: int, share: float = 0.6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(N, H, W, generator=generator) < share


# --- literal formulas, one pixel at a time --------------------------------------------------------
def literal_probability(z: Array, c: int, activation: str) -> float:
    if activation == "sigmoid":
        return float(1 / (1 + np.exp(-z[c])))
    return float(np.exp(z[c]) / sum(np.exp(value) for value in z))


def literal_quantity(z: Array, c: int, activation: str, space: str) -> float:
    if space == "logit":
        return float(z[c])
    if space == "margin":
        return float(z[c] - max(value for k, value in enumerate(z) if k != c))
    p = literal_probability(z, c, activation)
    return p if space == "probability" else float(np.log(p))


def literal_decided(z: Array, c: int, activation: str) -> bool:
    if activation == "sigmoid":
        return literal_probability(z, c, activation) >= 0.5
    return max(range(len(z)), key=lambda k: z[k]) == c


def literal_score(
    z: Tensor, region: Tensor, c: int, activation: str, space: str, reduce: str
) -> list[float]:
    scores = []
    for n in range(N):
        inside = [
            literal_quantity(z[n, :, i, j].numpy(), c, activation, space)
            for i, j in itertools.product(range(H), range(W))
            if region[n, i, j]
        ]
        total = sum(inside)
        scores.append(total / len(inside) if reduce == "mean" and inside else float(total))
    return scores


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("space", ["logit", "probability", "log_probability", "margin"])
@pytest.mark.parametrize("region", ["prediction", "truth"])
def test_strict_is_the_formula(region: Any, space: Any, reduce: Any, activation: Any) -> None:
    logits, truth, valid = drawn(), some(1), some(2, 0.8)
    target = Target("roof", region=region, space=space, reduce=reduce)
    bound = target.bind(logits, truth, model=Names(activation), valid=valid)
    decided = torch.zeros(N, H, W, dtype=torch.bool)
    for n, i, j in itertools.product(range(N), range(H), range(W)):
        decided[n, i, j] = literal_decided(logits[n, :, i, j].numpy(), 1, activation)
    assert 0 < (decided & valid).sum() < valid.sum()
    assert torch.equal(bound.prediction, decided & valid)
    assert torch.equal(bound.region, (decided if region == "prediction" else truth) & valid)
    assert torch.equal(bound.valid, valid)
    for other in (logits, drawn(9)):  # read from other pictures with the same region
        expected = literal_score(other, bound.region, 1, activation, space, reduce)
        assert np.abs(bound.score(other).numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_paper_is_the_published_sum(activation: Any) -> None:
    """Y = sum over truth of p_c * detach(p_c)."""
    logits, truth, valid = drawn(), some(1), some(2, 0.8)
    # space, reduce and region are fixed there
    target = Target("roof", "prediction", "margin", "mean", preset="paper")
    bound = target.bind(logits, truth, model=Names(activation), valid=valid)
    assert torch.equal(bound.region, truth & valid)
    other = drawn(9)
    expected = [0.0] * N
    for n, i, j in itertools.product(range(N), range(H), range(W)):
        if truth[n, i, j] and valid[n, i, j]:
            clean, now = (
                literal_probability(z[n, :, i, j].numpy(), 1, activation) for z in (logits, other)
            )
            expected[n] += clean * now
    assert np.abs(bound.score(other).numpy() - expected).max() < 1e-12


def test_paper_weights_are_detached() -> None:
    """dY/dz = p dp/dz for p = sigmoid: with p^2 the slope would be twice as steep."""
    logits = drawn().requires_grad_()
    truth = some(1)
    bound = Target("roof", preset="paper").bind(logits, truth, model=Names("sigmoid"))
    assert not bound.weights.requires_grad
    [slope] = torch.autograd.grad(bound.score(logits).sum(), logits)
    p = logits.detach()[:, 1].sigmoid()
    assert (slope[:, 1] - p * p * (1 - p) * truth).abs().max() < 1e-12
    assert slope[:, 1].abs().max() > 0.1
    assert not slope[:, [0, 2]].any()


def test_the_slope_of_the_mean_logit_is_the_share_of_the_region() -> None:
    logits = drawn().requires_grad_()
    bound = Target("road").bind(logits, model=Names())
    [slope] = torch.autograd.grad(bound.score(logits).sum(), logits)
    for n in range(N):
        inside = bound.region[n]
        assert inside.any()
        assert (slope[n, 2] - inside / inside.sum()).abs().max() < 1e-15
    assert not slope[:, :2].any()


@pytest.mark.parametrize("space", ["probability", "log_probability", "margin"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_slopes_are_finite_differences(space: Any, activation: Any) -> None:
    logits = drawn()
    bound = Target("roof", space=space).bind(logits, model=Names(activation))
    assert torch.autograd.gradcheck(bound.score, (logits.requires_grad_(),))


@pytest.mark.parametrize("space", ["log_probability", "probability"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_extreme_logits_stay_finite(space: Any, activation: Any) -> None:
    logits = torch.tensor([-3e4, 3e4]).view(1, 2, 1, 1)
    names = Names(activation)
    bound = Target("ground", "truth", space).bind(
        logits, torch.ones(1, 1, 1, dtype=torch.bool), model=names
    )
    wide = -6e4 if activation == "softmax" else -3e4
    assert bound.score(logits).tolist() == [wide if space == "log_probability" else 0.0]


# --- regions --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "target",
    [
        Target("roof", reduce=reduce, space=space)
        for reduce in ("mean", "sum")  # type: Literal["mean", "sum"]
        for space in ("logit", "margin")  # type: Literal["logit", "margin"]
    ]
    + [Target("roof", "truth"), Target("roof", preset="paper")],
)
def test_an_empty_region_gives_zero(target: Target) -> None:
    logits = drawn()
    logits[1, 1] = -50  # never predicted in the second picture
    truth = some(1)
    truth[1] = False
    bound = target.bind(logits, truth, model=Names())
    scores = bound.score(logits)
    assert bound.region.flatten(1).any(dim=1).tolist() == [True, False, True]
    assert scores[1] == 0
    assert (scores[[0, 2]] != 0).all()
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("region", ["prediction", "truth"])
def test_regions_stay_within_valid(region: Any) -> None:
    logits, truth = drawn(), some(1)
    valid = some(2, 0.5)
    names = Names()
    bound = Target("roof", region).bind(logits, truth, model=names, valid=valid)
    everywhere = Target("roof", region).bind(logits, truth, model=names)
    assert everywhere.valid.all()
    assert (everywhere.region & ~valid).any()
    assert torch.equal(bound.region, everywhere.region & valid)
    assert torch.equal(bound.prediction, everywhere.prediction & valid)
    changed = logits.clone()
    changed[~valid[:, None].expand_as(logits)] = 77.0
    assert torch.equal(bound.score(changed), bound.score(logits))


def test_prediction_needs_no_truth_and_ignores_it() -> None:
    logits = drawn()
    with_truth = Target("roof").bind(logits, some(1), model=Names())
    assert torch.equal(with_truth.region, Target("roof").bind(logits, model=Names()).region)


def test_ties_are_decided_as_argmax_does() -> None:
    levels = torch.tensor([0.0, 1.0])
    grid = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 2, 4)
    first = torch.tensor(
        [[[max(range(3), key=lambda k: grid[0, k, i, j]) for j in range(4)] for i in range(2)]]
    )
    for index in range(3):
        assert torch.equal(hard_mask(grid, index, "softmax"), first == index)
    assert torch.equal(hard_mask(grid / 2, 1, "sigmoid"), grid[:, 1] == 1)  # 0.5 counts


# --- errors ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite(value: float) -> None:
    logits = drawn()
    logits[2, 0, 4, 3] = value
    with pytest.raises(ModelError, match="logits that are not finite"):
        Target("roof").bind(logits, model=Names())


@pytest.mark.parametrize("target", [Target("roof", "truth"), Target("roof", preset="paper")])
def test_missing_truth(target: Target) -> None:
    with pytest.raises(DataError, match="no truth mask for region truth"):
        target.bind(drawn(), model=Names())


@pytest.mark.parametrize("name", ["truth", "valid"])
@pytest.mark.parametrize(
    "mask", [some(0)[:2], some(0)[:, :-1], some(0)[0], some(0).long(), some(0).float()]
)
def test_masks_of_another_shape_or_type(name: str, mask: Tensor) -> None:
    masks = {"truth": some(1), "valid": some(2)} | {name: mask}
    with pytest.raises(DataError, match=f"a {name} mask") as got:
        Target("roof").bind(drawn(), masks["truth"], model=Names(), valid=masks["valid"])
    assert got.value.expected == f"bool {(N, H, W)}"


@pytest.mark.parametrize(
    ("how", "near"),
    [
        ({"region": "predicted"}, "prediction"),
        ({"space": "logits"}, "logit"),
        ({"reduce": "mena"}, "mean"),
        ({"preset": "papers"}, "paper"),
    ],
)
def test_unknown_options_name_the_near_one(how: dict[str, Any], near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean {near}"):
        Target("roof", **how)


def test_unknown_class() -> None:
    with pytest.raises(UnknownNameError, match="did you mean roof"):
        Target("rof").bind(drawn(), model=Names())


# --- one picture of many --------------------------------------------------------------------------
@pytest.mark.parametrize("preset", ["strict", "paper"])
def test_the_target_of_one_picture_reads_any_number_of_variants(preset: Any) -> None:
    logits, truth, valid = drawn(), some(1), some(2, 0.8)
    bound = Target("roof", preset=preset).bind(logits, truth, model=Names(), valid=valid)
    for n in range(N):
        one = bound.picture(n)
        assert isinstance(one, BoundTarget)
        assert one.region.shape == (1, H, W)
        for name in ("weights", "region", "prediction", "valid"):
            assert torch.equal(getattr(one, name)[0], getattr(bound, name)[n])
        assert torch.equal(one.score(logits[n : n + 1]), bound.score(logits)[n : n + 1])
        variants = drawn(5)
        together = one.score(variants)
        alone = [one.score(variant[None])[0] for variant in variants]
        assert torch.equal(together, torch.stack(alone))


def test_binding_is_frozen_on_the_clean_picture() -> None:
    model: SegmentationModel = toy_model()
    with torch.no_grad():
        logits = model(toy_images(n=2))
        bound = Target("roof").bind(logits, model=model)
        region = bound.region.clone()
        logits.zero_()  # what the caller does with them afterwards
        bound.score(model(toy_images(5, n=2)))
    assert region.any()
    assert torch.equal(bound.region, region)
    with pytest.raises(AttributeError):
        bound.region = region  # type: ignore[misc]
