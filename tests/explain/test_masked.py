"""Methods that leave parts out: by hand, by the literal formulas, and what must not change them."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import reference
from captures import (
    A1,
    CASES,
    D1,
    D2,
    PAPER,
    RERUN,
    STRICT,
    Itself,
    by_hand,
    captured,
    distance,
    lively,
    raw,
    score_of,
)
from segproof.errors import ModelError
from segproof.explain.api import normalise
from segproof.explain.forward_pass import capture
from segproof.explain.masked import (
    occlusion,
    occlusion_windows,
    representatives,
    rise,
    rise_masks,
    score_cam,
)
from segproof.explain.methods import CHANNELWISE
from segproof.explain.target import Target
from segproof.models.contract import SegmentationModel
from segproof.perturb.seeding import seeded
from toys import LAYERS, Shallow, toy_images, toy_model


def remade(seed: int, order: Tensor, scale: Tensor) -> tuple[SegmentationModel, SegmentationModel]:
    """A network, and the same with its last block's channels mixed and rescaled."""
    model, other = toy_model(seed % 11), toy_model(seed % 11)
    head = other.net.get_submodule("segmentation_head")
    assert isinstance(head.weight, Tensor)
    with torch.no_grad():
        head.weight.copy_(head.weight[:, order] / scale)
    block = other.net.get_submodule(LAYERS[1])
    plain = block.forward  # the layer itself is another one: a hook would be behind it
    block.forward = lambda *given: plain(*given)[:, order] * scale
    return model, other


def remade_maps(method: str, seed: int, order: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    maps = []
    for model in remade(seed, order, scale):
        seen = capture(model, toy_images(seed), STRICT, LAYERS)
        maps.append(raw(method, seen, LAYERS[1], model).values)
    assert lively(*maps)
    return maps[0], maps[1]


def test_score_cam_by_hand() -> None:
    """Masks [[0,1],[0,0]] and [[0,0],[0,1]]: gains 1/2 and 3/2; a constant channel is free."""
    A = [[[0.0, 1.0], [0.0, 0.0]], [[2.0, 2.0], [2.0, 4.0]], [[5.0, 5.0], [5.0, 5.0]]]
    model = SegmentationModel(Itself(), classes=["roof"]).double()
    seen = by_hand(A, A)
    result = raw("score_cam", seen, "layer", model)
    np.testing.assert_allclose(result.values[0], [[1.5, 1.75], [1.5, 3.0]], atol=1e-12)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert result.effective_channels is not None
    assert float(result.effective_channels[0]) == pytest.approx(math.exp(entropy))
    assert result.forwards == 3  # b, and two channels that say something
    published = score_cam(seen, "layer", model, weights="softmax").values[0]
    w = np.exp([0.5, 1.5, 0.0]) / np.exp([0.5, 1.5, 0.0]).sum()
    expected = w[0] * np.array(A[0]) + w[1] * np.array(A[1]) + w[2] * np.array(A[2])
    np.testing.assert_allclose(published, expected, atol=1e-6)


def test_score_cam_of_some_channels_by_hand() -> None:
    """Channels 1 and 3 are alike once scaled: the louder stands for both, and the map is exact."""
    A = [[[0.0, 1.0], [0.0, 0.0]], [[2.0, 2.0], [2.0, 4.0]], [[1.0, 4.0], [1.0, 1.0]]]
    model = SegmentationModel(Itself(), classes=["roof"]).double()
    seen = by_hand(A, A)
    exact, short = (score_cam(seen, "layer", model, channels=count) for count in (None, 2))
    np.testing.assert_allclose(short.values, exact.values, atol=1e-12)
    assert (exact.forwards, short.forwards) == (4, 3)
    # gains 1/2 and 3/2: with one channel all weigh alike, whatever they show
    alone = score_cam(seen, "layer", model, channels=1)
    assert alone.forwards == 2
    np.testing.assert_allclose(alone.values[0], np.mean(A, axis=0), atol=1e-12)
    assert torch.equal(score_cam(seen, "layer", model, channels=3).values, exact.values)


@pytest.mark.parametrize("seed", range(5))
def test_representatives_are_the_least_squares_ones(seed: int) -> None:
    """Nine channels mixed from five, so that some say nearly what others do."""
    draw = np.random.default_rng(seed)
    base = draw.normal(size=(5, 6, 7))
    mixed = np.einsum("ij,jhw->ihw", draw.normal(size=(9, 5)), base)
    A = mixed * draw.uniform(0.1, 50, (9, 1, 1)) + 0.05 * draw.normal(size=(9, 6, 7))
    for count in (1, 3, 6):
        chosen, owner = representatives(torch.tensor(A), count)
        expected = reference.representatives(A, count)
        assert (chosen.tolist(), owner.tolist()) == expected
        assert len(set(chosen.tolist())) == count


def test_score_cam_counts_gains_over_the_baseline_only() -> None:
    """A mask that lowers Y below Y(b) weighs nothing; a shifted baseline shifts the gains."""
    A = [[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]
    model = SegmentationModel(Itself(), classes=["roof"]).double()
    seen = by_hand(A, A)
    seen = replace(seen, baseline=torch.full_like(seen.images, 2.0))
    # mask 1 puts 1 where 2 was (-1/2), mask 2 puts 3 where 2 was (+1/2)
    result = raw("score_cam", seen, "layer", model)
    np.testing.assert_allclose(result.values[0], A[1], atol=1e-12)
    assert result.effective_channels is not None
    assert float(result.effective_channels[0]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        # x = [[1, 1], [1, 3]]; A = x and 4 - x, z = 2 A1 + A2 + bias; on R their means are 2, 2
        (0.0, [[5 / 3, 5 / 3], [5 / 3, 7 / 3]]),  # Y = 6: weights 4/6 and 2/6
        (-16.0, [[1.0, 1.0], [1.0, 1.4]]),  # Y = -10: 4/10 and 2/10, not their opposite
        (-6.0, [[10.0, 10.0], [10.0, 14.0]]),  # Y = 0: nothing to divide by
    ],
)
def test_ablation_cam_by_hand(bias: float, expected: list[list[float]]) -> None:
    net = Shallow([1.0, -1.0], [0.0, 4.0], [2.0, 1.0], bias)
    model = SegmentationModel(net, classes=["roof"]).double()
    seen = by_hand([[[1.0, 1.0], [1.0, 3.0]], [[3.0, 3.0], [3.0, 1.0]]], [D1, D2])
    result = raw("ablation_cam", seen, "layer", model)
    np.testing.assert_allclose(result.values[0], expected, atol=1e-12)
    assert result.forwards == 3
    assert result.effective_channels is None


def test_ablation_cam_spends_nothing_on_empty_channels() -> None:
    net = Shallow([1.0, 0.0, -1.0], [0.0, 0.0, 4.0], [2.0, 9.0, 1.0], 0.0)
    model = SegmentationModel(net, classes=["roof"]).double()
    seen = capture(
        model,
        by_hand([A1], [D1]).images,
        Target("roof", "truth"),
        ["layer"],
        torch.tensor([[[False, True], [False, True]]]),
    )
    result = raw("ablation_cam", seen, "layer", model)
    assert result.forwards == 3
    np.testing.assert_allclose(result.values[0], [[5 / 3, 5 / 3], [5 / 3, 7 / 3]], atol=1e-6)


def test_kernel_weighted_by_hand() -> None:
    """With p = sigmoid(2 A1 + A2 - 5), A1 = x, A2 = 4 - x; R has one x = 1 and one x = 3."""
    net = Shallow([1.0, -1.0, 0.0], [0.0, 4.0, 0.0], [2.0, 1.0, 5.0], -5.0)
    model = SegmentationModel(net, classes=["roof"]).double()
    A = [[[1.0, 1.0], [1.0, 3.0]], [[3.0, 3.0], [3.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]
    result = raw("kernel_weighted", by_hand(A, [D1, D2, D1]), "layer", model)
    z_whole, z_first, z_second = (0.0, 2.0), (-3.0, 1.0), (-2.0, -4.0)  # both, A1 alone, A2 alone
    o, first, second = (
        [1 / (1 + math.exp(-z)) for z in pair] for pair in (z_whole, z_first, z_second)
    )
    # no p rises when a channel goes, so the minima change nothing
    w1 = (sum(o) - sum(second)) * sum(first) / sum(o)
    w2 = (sum(o) - sum(first)) * sum(second) / sum(o)
    expected = w1 * np.array(A[0]) + w2 * np.array(A[1])
    np.testing.assert_allclose(result.values[0], expected, atol=1e-12)
    assert result.forwards == 5  # the clean one, and two for each channel that is not zero
    assert result.effective_channels is None


def test_kernel_weighted_counts_no_gain_and_no_surplus() -> None:
    """With z = A1 - A2 - A3 / 4, A1 = A3 = x, A2 = -x / 2 - 1: A3 speaks against the class, so it
    loses nothing and weighs nothing; negative activations count by their size.
    """
    net = Shallow([1.0, -0.5, 1.0], [0.0, -1.0, 0.0], [1.0, -1.0, -0.25], 0.0)
    model = SegmentationModel(net, classes=["roof"]).double()
    x = np.array([[1.0, 1.0], [1.0, 3.0]])
    A = [x.tolist(), (-x / 2 - 1).tolist(), x.tolist()]
    got = raw("kernel_weighted", by_hand(A, [D1, D2, D1]), "layer", model).values[0]

    def p(*z: float) -> Any:
        return 1 / (1 + np.exp(-np.array(z)))

    # on R x is 1 and 3: z = x + (x / 2 + 1) - x / 4
    o = p(2.25, 4.75)
    w1 = (o - p(1.25, 1.75)).sum() * p(1.0, 3.0).sum() / o.sum()
    w2 = (o - p(0.75, 2.25)).sum() * p(1.5, 2.5).sum() / o.sum()
    # the third channel lowers p: without it p is larger than o, which counts as no loss
    np.testing.assert_allclose(got, w1 * x + w2 * (x / 2 + 1), atol=1e-12)
    bare = Shallow([1.0], [0.0], [1.0], 2.0)
    model = SegmentationModel(bare, classes=["roof"]).double()
    only = raw("kernel_weighted", by_hand([x.tolist()], [D1]), "layer", model).values[0]
    o = p(3.0, 5.0)
    np.testing.assert_allclose(only, (o - p(2.0, 2.0)).sum() * x, atol=1e-12)


def test_effective_channels_are_exp_of_the_entropy() -> None:
    model, seen = captured(23)
    for layer in LAYERS:
        A = seen.activations[layer][0].numpy()
        assert seen.baseline is not None
        x, b = seen.images[0].numpy(), seen.baseline[0].numpy()

        def score(image: Any) -> float:
            with torch.no_grad():
                return float(seen.bound.score(model(torch.from_numpy(image)[None]))[0])

        w = reference.score_weights(A, x, b, score, weights="increase")
        assert w.sum() == pytest.approx(1)
        result = raw("score_cam", seen, layer, model)
        assert result.effective_channels is not None
        expected = reference.effective_channels(w)
        assert 1 < expected <= len(w)
        assert float(result.effective_channels[0]) == pytest.approx(expected, rel=1e-9)


def test_no_gain_anywhere_is_an_all_zero_map() -> None:
    A = [[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]
    model = SegmentationModel(Itself(), classes=["roof"]).double()
    seen = by_hand(A, A)
    seen = replace(seen, baseline=torch.full_like(seen.images, 9.0))
    result = raw("score_cam", seen, "layer", model)
    assert normalise(result.values[0], (2, 2))[1] == "all_zero"
    assert result.effective_channels is not None
    assert float(result.effective_channels[0]) == 0


def test_score_cam_needs_a_baseline() -> None:
    model, seen = captured(0)
    with pytest.raises(ModelError, match="baseline"):
        raw("score_cam", replace(seen, baseline=None), LAYERS[0], model)


@pytest.mark.parametrize("weights", ["increase", "softmax"])
def test_score_cam_does_not_depend_on_the_chunk(weights: str) -> None:
    model, seen = captured(5, n=2, dtype=torch.float32)
    for layer in LAYERS:
        maps = [
            score_cam(
                replace(seen, batch=batch),
                layer,
                model,
                weights="softmax" if weights == "softmax" else "increase",
            )
            for batch in (1, 2, 3, 100)
        ]
        assert lively(maps[0].values)
        for other in maps[1:]:
            assert distance(maps[0].values, other.values) < 2e-5
            assert other.forwards == maps[0].forwards


@pytest.mark.parametrize("method", RERUN)
@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ablating_a_layer_without_influence_is_an_all_zero_map(
    dtype: torch.dtype, batch: int, method: str
) -> None:
    """Also where the rounding of a forward depends on how many pictures it has."""
    model = toy_model(3).to(dtype)
    skipped = nn.Conv2d(3, 4, 3, padding=1).to(dtype)

    class Beside(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net, self.skipped = net, skipped

        def forward(self, images: Tensor) -> Tensor:
            self.skipped(images)
            result: Tensor = self.net(images)
            return result

    model = SegmentationModel(Beside(model.net), classes=["roof"]).eval()
    images = toy_images(3).to(dtype)
    seen = capture(model, images, STRICT, ["skipped"], batch=batch)
    result = raw(method, seen, "skipped", model)
    assert result.forwards == 1 + 4 * CHANNELWISE[method]
    assert normalise(result.values[0], (16, 16))[1] == "all_zero"


@pytest.mark.parametrize("method", RERUN)
def test_ablating_does_not_depend_on_the_chunk(method: str) -> None:
    model, seen = captured(5, n=2, dtype=torch.float32)
    for layer in LAYERS:
        results = [raw(method, replace(seen, batch=batch), layer, model) for batch in (1, 2, 3, 99)]
        assert lively(results[0].values)
        for other in results[1:]:
            assert distance(results[0].values, other.values) < 2e-5
            assert other.forwards == results[0].forwards


@settings(max_examples=16)
@given(CASES, st.sampled_from(RERUN))
def test_ablating_knows_no_order_of_channels(seed: int, method: str) -> None:
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    plain, mixed = remade_maps(method, seed, order, torch.ones(5, 1, 1).double())
    assert distance(plain, mixed) < 1e-9


@settings(max_examples=12)
@given(CASES, st.sampled_from(LAYERS), st.sampled_from(["relu", "silu"]))
def test_kernel_weighted_never_speaks_against(seed: int, layer: str, act: str) -> None:
    """Losses and rests are not negative, so neither is the map; and they read p_c, not Y."""
    model, seen = captured(seed, act=act)
    values = raw("kernel_weighted", seen, layer, model).values
    assert lively(values)
    assert values.min() >= 0
    margin = replace(seen, bound=replace(seen.bound, space="margin"))
    assert torch.equal(values, raw("kernel_weighted", margin, layer, model).values)


@pytest.mark.parametrize("method", RERUN)
def test_ablating_does_depend_on_the_units_of_a_channel(method: str) -> None:
    """A stated limit: weights say what a channel is worth, activations how large it is drawn."""
    scale = torch.tensor([1.0, 1.0, 20.0, 1.0, 1.0]).double().view(-1, 1, 1)
    plain, loud = remade_maps(method, 23, torch.arange(5), scale)
    first, second = normalise(plain[0], (16, 16))[0], normalise(loud[0], (16, 16))[0]
    assert (first - second).abs().max() > 0.01


@pytest.mark.parametrize("target", [STRICT, PAPER], ids=["strict", "paper"])
def test_rise_is_the_literal_formula(target: Target) -> None:
    model, seen = captured(23, target=target, n=2)
    how: dict[str, Any] = {"masks": 9, "cells": 3, "keep": 0.4, "seed": 5}
    drawn = [mask.double().numpy() for mask in rise_masks((16, 16), **how)]
    assert seen.baseline is not None
    for centred in (True, False):
        result = rise(seen, "", model, centred=centred, **how)
        assert result.forwards == 18
        for n in range(2):
            x, b = seen.images[n].numpy(), seen.baseline[n].numpy()
            score = score_of(model, seen, n)
            if centred:
                expected = reference.rise_centred(x, b, score, drawn)
            else:
                expected = reference.rise(x, b, score, drawn, keep=0.4)
            assert lively(result.values)
            np.testing.assert_allclose(result.values[n], expected, atol=1e-9)


def test_rise_masks_are_smooth_random_and_seeded() -> None:
    how: dict[str, Any] = {"masks": 400, "cells": 4, "keep": 0.3}
    masks = torch.stack(list(rise_masks((20, 13), **how, seed=1)))
    assert masks.shape == (400, 20, 13)
    assert 0 <= masks.min() < 0.01
    assert 0.99 < masks.max() <= 1
    # each pixel is shown with the chance 0.3, also at the border: mean of 400 within 4 deviations
    assert (masks.mean(dim=0) - 0.3).abs().max() < 4 * 0.46 / 20
    # cells of 5 x 4 px: neighbours are alike, pixels two cells apart are not
    assert (masks[:, 1:] - masks[:, :-1]).abs().max() <= 1 / 5 + 1e-6
    apart = torch.corrcoef(torch.stack([masks[:, 2, 6], masks[:, 17, 6]]))[0, 1]
    assert apart.abs() < 0.2
    again = torch.stack(list(rise_masks((20, 13), **how, seed=1)))
    other = torch.stack(list(rise_masks((20, 13), **how, seed=2)))
    assert torch.equal(masks, again)
    assert not torch.equal(masks, other)


def test_rise_masks_are_shifted_grids_of_one_cell_more() -> None:
    """Literally: 3 + 1 cells of 4 x 3 px a side, upsampled, cut out at a random place."""
    generator = seeded("rise", 5)
    for found in rise_masks((11, 9), masks=3, cells=3, keep=0.5, seed=5):
        grid = (torch.rand(4, 4, generator=generator) < 0.5).double().numpy()
        top = int(torch.randint(4, (1,), generator=generator))
        left = int(torch.randint(3, (1,), generator=generator))
        wide = reference.resize(grid, (16, 12), align_corners=False)
        np.testing.assert_allclose(found, wide[top : top + 11, left : left + 9], atol=1e-6)


def test_rise_sees_what_matters() -> None:
    """Z = x, read at one pixel: there the map is highest, and far away about 0."""
    model = SegmentationModel(Itself(), classes=["roof"]).double()
    images = torch.ones(1, 1, 24, 24, dtype=torch.float64)
    seen = capture(
        model, images, Target("roof", "points:4,18"), [], baseline=torch.zeros_like(images)
    )
    found = rise(seen, "", model, masks=600).values[0]
    assert int(found.argmax()) // 24 in (17, 18, 19)
    assert int(found.argmax()) % 24 in (3, 4, 5)
    # E[Y | shown] - E[Y] = Var(M) / E[M]; M mixes cells of 3 px by thirds: (1 + 5/9 + 5/9) / 3
    assert float(found[18, 4]) == pytest.approx(0.25 * (19 / 27) ** 2 / 0.5, abs=0.04)
    assert found[:8, 12:].abs().max() < 0.15


@pytest.mark.parametrize(
    ("window", "stride", "count"), [(None, None, 15**2), (5, 4, 4**2), (16, 9, 1), (40, 40, 1)]
)
def test_occlusion_is_the_literal_formula(
    window: int | None, stride: int | None, count: int
) -> None:
    model, seen = captured(23, n=2)
    result = occlusion(seen, "", model, window=window, stride=stride)
    assert result.forwards == 2 * count
    size, step = min(window or 2, 16), min(stride or 1, 16)
    assert seen.baseline is not None
    for n in range(2):
        x, b = seen.images[n].numpy(), seen.baseline[n].numpy()
        expected = reference.occlusion(x, b, score_of(model, seen, n), size, min(step, size))
        np.testing.assert_allclose(result.values[n], expected, atol=1e-9)
    assert lively(result.values) or count == 1


def test_occlusion_by_hand() -> None:
    """Z = x = [[1, 1], [1, 3]], Y the mean of the right column, b = 0: windows of one pixel."""
    model = SegmentationModel(Itself(), classes=["roof"]).double()
    result = occlusion(by_hand([A1], [D1]), "", model, window=1)
    np.testing.assert_allclose(result.values[0], [[0, 0.5], [0, 1.5]], atol=1e-12)
    assert result.forwards == 4


def test_occlusion_covers_every_pixel() -> None:
    for size in ((7, 12), (12, 7), (1, 9), (512, 512), (33, 40)):
        for window, stride in ((None, None), (3, 3), (4, 9), (5, 2)):
            count = torch.zeros(size, dtype=torch.int)
            for rows, columns in occlusion_windows(size, window, stride):
                count[rows, columns] += 1
            assert count.min() >= 1
    assert len(occlusion_windows((512, 512))) == 15**2


@pytest.mark.parametrize("method", ["rise", "occlusion"])
def test_masked_input_methods_need_a_baseline(method: str) -> None:
    model, seen = captured(3)
    with pytest.raises(ModelError, match="baseline"):
        raw(method, replace(seen, baseline=None), "", model)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_masked_input_methods_do_not_depend_on_the_chunk(batch: int) -> None:
    model, seen = captured(5, dtype=torch.float32)
    for call in (functools.partial(rise, masks=10), occlusion):
        one = call(seen, "", model).values
        other = call(replace(seen, batch=batch), "", model).values
        assert lively(one)
        assert distance(one, other) < 2e-5
