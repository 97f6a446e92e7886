"""All methods: values by hand, the literal formulas, invariants, and nothing left behind."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import reference
from segproof.errors import ModelError, SegproofError
from segproof.explain.api import Explanation, fuse, normalise
from segproof.explain.cam import RawMap, seg_xres_cam
from segproof.explain.forward_pass import Capture, capture
from segproof.explain.input_gradients import integrated_gradients
from segproof.explain.masked import (
    occlusion,
    occlusion_windows,
    representatives,
    rise,
    rise_masks,
    score_cam,
)
from segproof.explain.methods import CHANNELWISE, LAYERLESS, METHODS, PAPER_METHODS, reads_baseline
from segproof.explain.target import BoundTarget, Target
from segproof.models.contract import SegmentationModel
from segproof.perturb.seeding import seeded
from sideeffects import Fails, facts, told, unsettle
from toys import LAYERS, Shallow, toy_images, toy_model, toy_truth

FIVE = ("grad_cam", "grad_cam_pp", "xgrad_cam", "score_cam", "eigen_cam")
ALL = (
    *FIVE,
    "hires_cam",
    "layer_cam",
    "grad_cam_elementwise",
    "seg_xres_cam",
    "seg_eigen_cam",
    "eigen_grad_cam",
    "ablation_cam",
    "kernel_weighted",
)
RERUN = ("ablation_cam", "kernel_weighted")  # the network behind the layer runs for each channel
NETLESS = tuple(method for method in ALL if method not in RERUN)  # A and D are enough
# linear in D and added up over channels
LINEAR = ("grad_cam", "xgrad_cam", "hires_cam", "seg_xres_cam", "layer_cam", "grad_cam_elementwise")
GRADIENT = (*LINEAR, "grad_cam_pp", "seg_eigen_cam", "eigen_grad_cam")
SEEDS = st.integers(0, 10_000)
# networks and pictures on which no method's map is flat, so that every case shows something
LIVELY = (1, 3, 4, 5, 7, 12, 14, 16, 18, 23, 25, 27, 29, 34, 36, 38, 45, 47, 48, 49, 51, 53, 56)
CASES = st.sampled_from(LIVELY)
STRICT, PAPER = Target("roof"), Target("roof", preset="paper")


def raw(method: str, seen: Capture, layer: str, model: SegmentationModel, **how: Any) -> RawMap:
    result = METHODS[method](seen, layer, model, **how)
    return result if isinstance(result, RawMap) else RawMap(result)


def captured(
    seed: int,
    *,
    target: Target = STRICT,
    n: int = 1,
    act: str = "relu",
    dtype: torch.dtype = torch.float64,
    batch: int = 4,
    images: Tensor | None = None,
    truth: Tensor | None = None,
) -> tuple[SegmentationModel, Capture]:
    model = toy_model(seed % 11, act=act).to(dtype)
    images = toy_images(seed, n).to(dtype) if images is None else images
    truth = toy_truth(seed, n) if truth is None else truth
    strict_b = 0.3 * torch.ones_like(images) + 0.1 * toy_images(seed + 7, len(images)).to(dtype)
    baseline = model.neutral.expand_as(images) if target.preset == "paper" else strict_b
    return model, capture(model, images, target, LAYERS, truth, baseline=baseline, batch=batch)


def lively(*maps: Tensor) -> bool:
    """Not flat: a test on flat maps shows nothing."""
    return all(float(m.std(dim=(-2, -1)).min()) > 1e-9 * float(m.abs().max()) > 0 for m in maps)


def distance(one: Tensor, other: Tensor) -> float:
    """Greatest difference as a share of the greatest value."""
    return float((one - other).abs().max() / one.abs().max())


# --- by hand ------------------------------------------------------------------------------------
class Itself(nn.Module):
    """z = x: Y is then the mean of the picture over R."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def by_hand(A: list[list[list[float]]], D: list[list[list[float]]]) -> Capture:
    """Two by two; R = P = the right column; x = [[1, 1], [1, 3]], b = 0."""
    region = torch.tensor([[[False, True], [False, True]]])
    x = torch.tensor([[[[1.0, 1.0], [1.0, 3.0]]]], dtype=torch.float64)
    bound = BoundTarget(
        class_index=1,
        activation="softmax",
        space="logit",
        weights=region.double() / 2,
        region=region,
        prediction=region,
        valid=torch.ones_like(region),
    )
    return Capture(
        images=x,
        logits=torch.cat([torch.zeros_like(x), x], dim=1),
        bound=bound,
        activations={"layer": torch.tensor([A], dtype=torch.float64)},
        gradients={"layer": torch.tensor([D], dtype=torch.float64)},
        baseline=torch.zeros_like(x),
    )


A1, A2 = [[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [2.0, 1.0]]
D1, D2 = [[0.5, 0.0], [0.0, 0.5]], [[-1.0, 1.0], [0.0, -2.0]]
BY_HAND = {
    # means of D: 1/4 and -1/2
    "grad_cam": [[0.25, 0.0], [-0.25, 0.5]],
    # A1: 2 * 0.5 / (2 + 10 * 0.5) = 1/7; A2: only D = 1 counts, 1 / (2 + 4) = 1/6
    "grad_cam_pp": [[1 / 7, 2 / 7 + 1 / 6], [3 / 7 + 2 / 6, 4 / 7 + 1 / 6]],
    # A1: (0.5 + 2) / 10 = 1/4; A2: (1 - 2) / 4 = -1/4
    "xgrad_cam": [[0.25, 0.25], [0.25, 0.75]],
    # D1 A1 = [[1/2, 0], [0, 2]], D2 A2 = [[0, 1], [0, -2]]
    "hires_cam": [[0.5, 1.0], [0.0, 0.0]],
    "layer_cam": [[0.5, 1.0], [0.0, 2.0]],
    "grad_cam_elementwise": [[0.5, 1.0], [0.0, 2.0]],
    # one window cut by both edges: the means of D, as in Grad-CAM
    "seg_xres_cam": [[0.25, 0.0], [-0.25, 0.5]],
}


@pytest.mark.parametrize("method", sorted(BY_HAND))
def test_gradient_methods_by_hand(method: str) -> None:
    model = SegmentationModel(Itself(), classes=["roof"])
    got = raw(method, by_hand([A1, A2], [D1, D2]), "layer", model).values[0]
    np.testing.assert_allclose(got, BY_HAND[method], atol=1e-12)
    seen = by_hand([A1, A2], [D1, D2])
    paper = PAPER_METHODS[method](seen, "layer", model)
    values = paper.values if isinstance(paper, RawMap) else paper
    np.testing.assert_allclose(values[0], BY_HAND[method], atol=3e-6)


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


@pytest.mark.parametrize("name", METHODS)
def test_who_reads_the_baseline(name: str) -> None:
    """A fill is made for those alone that would fail without it."""
    model, images = toy_model(), toy_images(1)
    seen = capture(model, images, Target("roof"), LAYERS)
    if reads_baseline(METHODS[name]) and name != "integrated_gradients":
        with pytest.raises(ModelError, match="without a baseline"):
            METHODS[name](seen, LAYERS[0], model)
        return
    bare, filled = (
        METHODS[name](one, LAYERS[0], model)
        for one in (seen, replace(seen, baseline=torch.rand(images.shape)))
    )
    assert isinstance(bare, RawMap)
    assert isinstance(filled, RawMap)
    assert torch.equal(bare.values, filled.values) is not reads_baseline(METHODS[name])


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


@pytest.mark.parametrize(("flip", "sign"), [(False, 1.0), (True, -1.0)])
def test_eigen_cam_by_hand(flip: bool, sign: float) -> None:
    """Channels 3T and 4T: the direction is (3, 4)/5 and the map 5 (T - mean T), its sign P's."""
    T = np.array([[0.0, 0.0], [0.0, 4.0]])
    seen = by_hand([(3 * T).tolist(), (4 * T + 7).tolist()], [D1, D2])
    P = torch.tensor([[[False, False], [False, True]]])
    seen = replace(seen, bound=replace(seen.bound, prediction=~P if flip else P))
    got = raw("eigen_cam", seen, "layer", SegmentationModel(Itself(), classes=["roof"])).values[0]
    np.testing.assert_allclose(got, sign * np.array([[-5.0, -5.0], [-5.0, 15.0]]), atol=1e-12)


def test_elementwise_counts_two_negatives_and_layer_cam_does_not() -> None:
    model = SegmentationModel(Itself(), classes=["roof"])
    seen = by_hand([[[-1.0, 2.0], [3.0, -4.0]]], [[[-2.0, -1.0], [1.0, 1.0]]])
    found = {name: raw(name, seen, "layer", model).values[0].tolist() for name in ALL[5:8]}
    assert found["hires_cam"] == [[2, -2], [3, -4]]
    assert found["layer_cam"] == [[0, 0], [3, -4]]
    assert found["grad_cam_elementwise"] == [[2, 0], [3, 0]]


@pytest.mark.parametrize(("sides", "sign"), [((1.0, -1.0), 1.0), ((-1.0, 1.0), -1.0)])
def test_eigen_methods_with_gradients_by_hand(sides: tuple[float, float], sign: float) -> None:
    """D A and |D| A are (3T, 4T) up to sign: 5 (T - mean T), the sign from P or from the map."""
    T = np.array([[0.0, 0.0], [0.0, 4.0]])
    ones = np.ones((2, 2))
    A = [(3 * T).tolist(), (4 * T).tolist()]
    seen = by_hand(A, [(sides[0] * ones).tolist(), (sides[0] * ones).tolist()])
    P = torch.tensor([[[False, False], [False, True]]])
    seen = replace(seen, bound=replace(seen.bound, prediction=P if sign > 0 else ~P))
    model = SegmentationModel(Itself(), classes=["roof"])
    expected = np.array([[-5.0, -5.0], [-5.0, 15.0]])
    graded = raw("eigen_grad_cam", seen, "layer", model).values[0]
    np.testing.assert_allclose(graded, sign * expected, atol=1e-12)
    # the larger excursion is positive, wherever P is
    for negative in (A, (-np.array(A)).tolist()):
        turned = replace(seen, activations={"layer": torch.tensor([negative]).double()})
        found = raw("seg_eigen_cam", turned, "layer", model).values[0]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_eigen_methods_are_three() -> None:
    """Channel 1 is loud without influence, 2 and 3 are seen through D: three different maps."""
    T, U = np.array([[0.0, 1.0], [2.0, 9.0]]), np.array([[5.0, 0.0], [1.0, 0.0]])
    A = [(10 * T).tolist(), U.tolist(), [[1.0, 2.0], [0.0, 4.0]]]
    zero = [[0.0, 0.0], [0.0, 0.0]]
    seen = by_hand(A, [zero, [[2.0, 1.0], [-3.0, 1.0]], [[1.0, -1.0], [1.0, -2.0]]])
    model = SegmentationModel(Itself(), classes=["roof"])
    maps = [
        raw(name, seen, "layer", model).values[0]
        for name in ("eigen_cam", "eigen_grad_cam", "seg_eigen_cam")
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        first, second = (maps[n] / maps[n].abs().max() for n in (one, other))
        assert min(distance(first, second), distance(first, -second)) > 0.1


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


# --- literal formulas ---------------------------------------------------------------------------
def rest_of(model: SegmentationModel, layer: str, image: Tensor) -> Callable[[Any], Tensor]:
    """Logits of a picture [1, B, H, W] as a function of the layer's activations: the whole network
    runs each time.
    """

    def logits_of(activations: Any) -> Tensor:
        put = torch.from_numpy(activations)[None]
        handle = model.net.get_submodule(layer).register_forward_hook(lambda m, i, o: put.clone())
        try:
            with torch.no_grad():
                logits: Tensor = model(image)
                return logits
        finally:
            handle.remove()

    return logits_of


def literal(
    method: str, seen: Capture, n: int, layer: str, model: SegmentationModel, paper: bool
) -> Any:
    A, D = seen.activations[layer][n].numpy(), seen.gradients[layer][n].numpy()
    if method == "grad_cam":
        return reference.grad_cam(A, D)
    if method == "grad_cam_pp":
        return reference.grad_cam_pp(A, D, paper=paper)
    if method == "xgrad_cam":
        return reference.xgrad_cam(A, D, paper=paper)
    P = seen.bound.prediction[n].numpy()
    if method == "eigen_cam":
        return reference.eigen_cam(A, P)
    if method == "eigen_grad_cam":
        return reference.eigen_grad_cam(A, D, P)
    if method in RERUN:
        rest = rest_of(model, layer, seen.images[n : n + 1])
        if method == "ablation_cam":
            target = seen.bound.picture(n)
            return reference.ablation_cam(A, lambda put: float(target.score(rest(put))[0]))
        R = seen.bound.region[n].numpy()
        return reference.kernel_weighted(A, lambda put: rest(put)[0].softmax(dim=0)[1].numpy(), R)
    if method not in FIVE:
        return getattr(reference, method)(A, D)
    assert seen.baseline is not None
    x, b = seen.images[n].numpy(), seen.baseline[n].numpy()

    def score(image: Any) -> float:
        with torch.no_grad():
            logits = model(torch.from_numpy(image)[None])
        return float(seen.bound.picture(n).score(logits)[0])

    if paper:
        return reference.score_cam_paper(A, x, b, score)
    return reference.score_cam(A, x, b, score)


@pytest.mark.parametrize("act", ["relu", "silu"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("target", [STRICT, PAPER], ids=["strict", "paper"])
@pytest.mark.parametrize("method", ALL)
def test_methods_are_the_literal_formulas(
    method: str, target: Target, layer: str, act: str
) -> None:
    paper = target.preset == "paper"
    model, seen = captured(23, target=target, n=2, act=act)
    call = (PAPER_METHODS if paper else METHODS)[method]
    result = call(seen, layer, model)
    got = result.values if isinstance(result, RawMap) else result
    assert lively(got)
    for n in range(2):
        expected = torch.from_numpy(literal(method, seen, n, layer, model, paper))
        assert distance(expected, got[n]) < 1e-6
        assert distance(expected, -got[n]) > 1e-3
        heat, status = normalise(got[n], (16, 16), target.preset)
        assert status == "ok"
        if paper:
            S = reference.heatmap_paper([expected.numpy()], (16, 16))
        else:
            S = reference.heatmap(expected.numpy(), (16, 16))
        assert np.abs(heat.numpy() - S).max() < 1e-6
        assert heat.std() > 0.01


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


@pytest.mark.parametrize("preset", ["strict", "paper"])
def test_normalise_by_hand(preset: str) -> None:
    L = torch.tensor([[-3.0, 1.0], [2.0, 4.0]], dtype=torch.float64)
    heat, status = normalise(L, (2, 2), "paper" if preset == "paper" else "strict")
    assert status == "ok"
    np.testing.assert_allclose(heat, [[0, 0.25], [0.5, 1]], atol=3e-7)
    up = normalise(L, (4, 4), "paper" if preset == "paper" else "strict")[0]
    # half-pixel centres: the corners keep their values, the next one in is a quarter of the way
    np.testing.assert_allclose(up[3], np.array([2, 2.5, 3.5, 4]) / 4, atol=3e-7)


def test_min_max_takes_the_floor_off_in_paper_only() -> None:
    L = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    np.testing.assert_allclose(normalise(L, (2, 2), "strict")[0], [[0.2, 0.4], [0.6, 1]], atol=1e-6)
    np.testing.assert_allclose(normalise(L, (2, 2), "paper")[0], [[0, 0.25], [0.5, 1]], atol=1e-6)


@pytest.mark.parametrize("preset", ["strict", "paper"])
@pytest.mark.parametrize(
    ("fill", "expected"),
    [(0.0, "all_zero"), (-2.0, "all_zero"), (3.0, "constant"), (math.nan, "non_finite")],
)
def test_flat_and_failed_maps_have_a_status(preset: str, fill: float, expected: str) -> None:
    L = torch.full((3, 3), fill)
    heat, status = normalise(L, (6, 6), "paper" if preset == "paper" else "strict")
    assert status == expected
    assert torch.equal(heat, torch.zeros(6, 6))
    hurt = torch.tensor([[1.0, 2.0], [math.inf, 0.0]])
    assert normalise(hurt, (4, 4))[1] == "non_finite"


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_heatmaps_survive_any_scale(scale: float) -> None:
    L = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) - 0.3
    heat, status = normalise(L, (9, 9))
    again, other = normalise(L * scale, (9, 9))
    assert (status, other) == ("ok", "ok")
    assert (heat - again).abs().max() < 1e-6


# --- guards -------------------------------------------------------------------------------------
def synthetic(seed: int, K: int = 5, side: int = 6, *, signed: bool = True) -> Capture:
    """Random A and D, no network."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(1, K, side, side, generator=generator, dtype=torch.float64)
    D = torch.randn(1, K, side, side, generator=generator, dtype=torch.float64)
    seen = by_hand([A1, A2], [D1, D2])
    return replace(
        seen,
        activations={"layer": A if signed else A.relu()},
        gradients={"layer": D},
    )


@pytest.mark.parametrize("beside", [0.0, 1e-8, -1e-8])
def test_pp_is_finite_where_the_denominator_vanishes(beside: float) -> None:
    """S D = -2, or nearly, makes 2 D^2 + S D^3 = 0: that pixel weighs nothing, others as always."""
    seen = by_hand([[[1.0, -2.0], [-1.0, -2.0]], A1], [[[0.5 + beside, 1.0], [0.0, 0.0]], D1])
    model = SegmentationModel(Itself(), classes=["roof"])
    got = raw("grad_cam_pp", seen, "layer", model).values[0].numpy()
    w = 1.0 / (2 - 4 * 1.0)  # D = 1; at D = 0.5 the denominator is 2 - 4 * 0.5 = 0
    first = w * np.array([[1.0, -2.0], [-1.0, -2.0]])
    np.testing.assert_allclose(got, first + np.array(A1) / 7, atol=1e-12)


def test_pp_survives_gradients_whose_squares_underflow() -> None:
    seen = by_hand([A1, A2], [D1, D2])
    tiny = {"layer": seen.gradients["layer"].float() * 1e-25}
    small = replace(seen, activations={"layer": seen.activations["layer"].float()}, gradients=tiny)
    model = SegmentationModel(Itself(), classes=["roof"])
    got = raw("grad_cam_pp", small, "layer", model).values[0].double()
    # S D vanishes beside 2: a = 1/2 wherever D is not 0
    expected = torch.tensor(A1, dtype=torch.float64) / 2 + torch.tensor(A2, dtype=torch.float64) / 2
    assert distance(expected * 1e-25, got) < 1e-5


def test_xgrad_falls_back_where_a_channel_sums_to_zero() -> None:
    A = [[[1.0, -1.0], [2.0, -2.0]], [[0.0, 0.0], [0.0, 0.0]]]
    D = [[[1.0, 2.0], [0.0, 0.0]], D2]
    model = SegmentationModel(Itself(), classes=["roof"])
    got = raw("xgrad_cam", by_hand(A, D), "layer", model).values[0]
    # sum of |A| is 6, sum of D A is -1
    np.testing.assert_allclose(got, -np.array(A[0]) / 6, atol=1e-12)


def test_no_gain_anywhere_is_an_all_zero_map() -> None:
    A = [[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]
    model = SegmentationModel(Itself(), classes=["roof"]).double()
    seen = by_hand(A, A)
    seen = replace(seen, baseline=torch.full_like(seen.images, 9.0))
    result = raw("score_cam", seen, "layer", model)
    assert normalise(result.values[0], (2, 2))[1] == "all_zero"
    assert result.effective_channels is not None
    assert float(result.effective_channels[0]) == 0


def test_the_covariance_is_added_up_over_blocks_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, model = synthetic(4), SegmentationModel(Itself(), classes=["roof"])
    whole = raw("eigen_cam", seen, "layer", model).values
    monkeypatch.setattr(sys.modules["segproof.explain.cam"], "_PIXELS", 7)
    assert lively(whole)
    assert distance(whole, raw("eigen_cam", seen, "layer", model).values) < 1e-12


def test_each_picture_of_a_batch_has_its_own_guide() -> None:
    """Predicted everywhere, p_c decides; where P decides, p_c does not, which says the contrary."""
    T = np.array([[0.0, 0.0], [0.0, 4.0]])
    seen = by_hand([(3 * T).tolist(), (4 * T).tolist()], [D1, D2])
    masks = torch.tensor([[[True, True], [True, True]], [[True, True], [True, False]]])
    both = replace(
        seen,
        logits=seen.logits.repeat(2, 1, 1, 1),
        activations={"layer": seen.activations["layer"].repeat(2, 1, 1, 1)},
        bound=replace(seen.bound, prediction=masks),
    )
    got = raw("eigen_cam", both, "layer", SegmentationModel(Itself(), classes=["roof"])).values
    expected = np.array([[-5.0, -5.0], [-5.0, 15.0]])
    np.testing.assert_allclose(got[0], expected, atol=1e-12)
    np.testing.assert_allclose(got[1], -expected, atol=1e-12)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_without_a_guide_the_larger_excursion_is_positive(side: float) -> None:
    """Predicted everywhere and equally: neither P nor p_c can choose the sign."""
    T = side * np.array([[0.0, 0.0], [0.0, 4.0]])
    seen = by_hand([(3 * T).tolist(), (4 * T).tolist()], [D1, D2])
    flat = replace(seen.bound, prediction=torch.ones(1, 2, 2, dtype=torch.bool))
    seen = replace(seen, bound=flat, logits=torch.zeros_like(seen.logits))
    got = raw("eigen_cam", seen, "layer", SegmentationModel(Itself(), classes=["roof"])).values[0]
    np.testing.assert_allclose(got, [[-5.0, -5.0], [-5.0, 15.0]], atol=1e-12)


def test_constant_channels_only() -> None:
    flat = [[[3.0, 3.0], [3.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]]
    model = SegmentationModel(Itself(), classes=["roof"]).double()
    seen = by_hand(flat, [D1, D2])
    score = raw("score_cam", seen, "layer", model)
    assert score.forwards <= 1
    assert normalise(score.values[0], (2, 2))[1] == "all_zero"
    for method in FIVE:
        for known in (METHODS, PAPER_METHODS):
            result = known[method](seen, "layer", model)
            values = result.values if isinstance(result, RawMap) else result
            assert torch.isfinite(values).all(), method
            assert normalise(values[0], (2, 2))[1] in ("all_zero", "constant"), method


def test_score_cam_needs_a_baseline() -> None:
    model, seen = captured(0)
    with pytest.raises(ModelError, match="baseline"):
        raw("score_cam", replace(seen, baseline=None), LAYERS[0], model)


# --- properties ---------------------------------------------------------------------------------
@settings(max_examples=8)
@given(CASES, st.sampled_from(LAYERS), st.sampled_from(["relu", "silu"]))
def test_repeats_are_bitwise_equal(seed: int, layer: str, act: str) -> None:
    model, seen = captured(seed, act=act, dtype=torch.float32)
    again_model, again = captured(seed, act=act, dtype=torch.float32)
    for method in ALL:
        one, other = raw(method, seen, layer, model), raw(method, again, layer, again_model)
        assert torch.equal(one.values, other.values)
        assert lively(one.values)


@settings(max_examples=8)
@given(CASES, st.sampled_from(LAYERS))
def test_a_batch_is_its_pictures(seed: int, layer: str) -> None:
    model, seen = captured(seed, n=3, dtype=torch.float32)
    for method in ALL:
        together = raw(method, seen, layer, model).values
        for n in range(3):
            assert seen.baseline is not None
            alone = replace(
                capture(
                    model, seen.images[n : n + 1], STRICT, LAYERS, toy_truth(seed, 3)[n : n + 1]
                ),
                baseline=seen.baseline[n : n + 1],
            )
            single = raw(method, alone, layer, model).values[0]
            one, status = normalise(single, (16, 16))
            other, same = normalise(together[n], (16, 16))
            assert status == same == "ok"
            assert (one - other).abs().max() < 2e-5


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


@dataclass(frozen=True)
class Changed(BoundTarget):
    """Y times `factor` plus `shift`."""

    factor: float = 1.0
    shift: float = 0.0

    def score(self, logits: Tensor) -> Tensor:
        return self.factor * super().score(logits) + self.shift


@dataclass(frozen=True)
class ChangedTarget:
    factor: float = 1.0
    shift: float = 0.0

    def bind(self, *arguments: Any, **options: Any) -> BoundTarget:
        bound = STRICT.bind(*arguments, **options)
        return Changed(**vars(bound), factor=self.factor, shift=self.shift)


def change(seed: int, model: SegmentationModel, seen: Capture, target: Any) -> Capture:
    return capture(
        model, seen.images, target, LAYERS, toy_truth(seed), baseline=seen.baseline, batch=4
    )


@settings(max_examples=12)
@given(
    CASES, st.sampled_from(LAYERS), st.sampled_from([1e-3, 0.1, 7.0, 1000.0]), st.floats(-50, 50)
)
def test_scaled_and_shifted_targets_change_no_heatmap(
    seed: int, layer: str, factor: float, shift: float
) -> None:
    model, seen = captured(seed, act="silu")
    scaled = change(seed, model, seen, ChangedTarget(factor=factor))
    shifted = change(seed, model, seen, ChangedTarget(shift=shift))
    for method in ALL:
        plain, status = normalise(raw(method, seen, layer, model).values[0], (16, 16))
        moved = normalise(raw(method, shifted, layer, model).values[0], (16, 16))[0]
        assert (plain - moved).abs().max() < 1e-6, method
        if method != "grad_cam_pp":
            other = normalise(raw(method, scaled, layer, model).values[0], (16, 16))[0]
            assert (plain - other).abs().max() < 1e-6, method
        assert status == "ok"


def test_pp_does_depend_on_the_scale_of_the_target() -> None:
    """A stated limit: Grad-CAM++ is not a function of the decision alone."""
    model, seen = captured(23)
    scaled = change(23, model, seen, ChangedTarget(factor=1000.0))
    plain = normalise(raw("grad_cam_pp", seen, LAYERS[0], model).values[0], (16, 16))[0]
    other = normalise(raw("grad_cam_pp", scaled, LAYERS[0], model).values[0], (16, 16))[0]
    assert (plain - other).abs().max() > 0.01


def rebuilt(seen: Capture, edit: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Capture:
    A, D = edit(seen.activations["layer"], seen.gradients["layer"])
    return replace(seen, activations={"layer": A}, gradients={"layer": D})


@settings(max_examples=20)
@given(SEEDS, st.sampled_from(NETLESS), st.booleans())
def test_order_of_channels_does_not_matter(seed: int, method: str, signed: bool) -> None:
    seen = synthetic(seed, signed=signed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    model = SegmentationModel(Itself(), classes=["roof"]).double()
    # masks are upsampled to the picture, which has to hold them
    grown = torch.nn.functional.interpolate(seen.images, scale_factor=3.0)
    wide = torch.zeros(1, 6, 6, dtype=torch.bool)
    wide[:, :, 3:] = True
    bound = replace(
        seen.bound, weights=wide.double() / 18, region=wide, prediction=wide, valid=~wide | wide
    )
    logits = torch.cat([0 * grown, grown], dim=1)
    seen = replace(seen, images=grown, logits=logits, baseline=0 * grown, bound=bound)
    plain = raw(method, seen, "layer", model).values
    mixed = rebuilt(seen, lambda A, D: (A[:, order], D[:, order]))
    assert lively(plain)
    assert distance(plain, raw(method, mixed, "layer", model).values) < 1e-9


@settings(max_examples=20)
@given(SEEDS, st.sampled_from(LINEAR), st.integers(0, 4))
def test_a_channel_twice_at_half_its_influence(seed: int, method: str, k: int) -> None:
    """A split in two copies with D/2 each: the same network, so the same map."""
    seen = synthetic(seed)
    model = SegmentationModel(Itself(), classes=["roof"])

    def double(A: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
        half = D.clone()
        half[:, k] /= 2
        return torch.cat([A, A[:, k : k + 1]], 1), torch.cat([half, half[:, k : k + 1]], 1)

    plain = raw(method, seen, "layer", model).values
    assert lively(plain)
    assert distance(plain, raw(method, rebuilt(seen, double), "layer", model).values) < 1e-9


@settings(max_examples=30)
@given(SEEDS, st.sampled_from(GRADIENT), st.integers(0, 4), st.sampled_from([1e-3, 0.5, 20.0, 1e3]))
def test_units_of_a_channel_do_not_matter(seed: int, method: str, k: int, factor: float) -> None:
    """A_k times c and D_k by c: the same network with its weights rescaled."""
    seen = synthetic(seed)
    model = SegmentationModel(Itself(), classes=["roof"])
    scale = torch.ones(1, 5, 1, 1, dtype=torch.float64)
    scale[:, k] = factor
    plain = raw(method, seen, "layer", model).values
    other = raw(method, rebuilt(seen, lambda A, D: (A * scale, D / scale)), "layer", model).values
    assert lively(plain)
    assert distance(plain, other) < 1e-6


@pytest.mark.parametrize("method", GRADIENT)
def test_no_gradient_is_an_all_zero_map(method: str) -> None:
    seen = rebuilt(synthetic(0), lambda A, D: (A, D * 0))
    model = SegmentationModel(Itself(), classes=["roof"])
    for known in (METHODS, PAPER_METHODS):
        result = known[method](seen, "layer", model)
        values = result.values if isinstance(result, RawMap) else result
        assert normalise(values[0], (16, 16))[1] == "all_zero"


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


@settings(max_examples=12)
@given(CASES, st.sampled_from(["relu", "silu"]))
def test_hires_before_the_head_sums_to_y_without_its_bias(seed: int, act: str) -> None:
    model, seen = captured(seed, act=act)
    values = raw("hires_cam", seen, LAYERS[1], model).values
    assert lively(values)
    bias = dict(model.net.named_parameters())["segmentation_head.bias"]
    expected = float(seen.bound.score(seen.logits)[0] - bias.detach()[0])
    assert float(values.sum()) == pytest.approx(expected, abs=1e-10)


@settings(max_examples=20)
@given(
    SEEDS,
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 11),
    st.sampled_from(["mean", "max"]),
)
def test_seg_xres_at_every_size_and_window(
    seed: int, h: int, w: int, window: int, pool: str
) -> None:
    seen = rebuilt(synthetic(seed, side=9), lambda A, D: (A[..., :h, :w], D[..., :h, :w]))
    model = SegmentationModel(Itself(), classes=["roof"])
    how: dict[str, Any] = {"window": window, "pool": pool}
    got = seg_xres_cam(seen, "layer", model, **how).values[0]
    A, D = seen.activations["layer"][0].numpy(), seen.gradients["layer"][0].numpy()
    np.testing.assert_allclose(got, reference.seg_xres_cam(A, D, **how), atol=1e-12)
    if window == 1:
        same = raw("hires_cam", seen, "layer", model).values[0]
        np.testing.assert_allclose(got, same, atol=1e-12)
    if window >= max(h, w) and pool == "mean":
        same = raw("grad_cam", seen, "layer", model).values[0]
        np.testing.assert_allclose(got, same, atol=1e-12)


@pytest.mark.parametrize("method", RERUN)
def test_ablating_does_not_depend_on_the_chunk(method: str) -> None:
    model, seen = captured(5, n=2, dtype=torch.float32)
    for layer in LAYERS:
        results = [raw(method, replace(seen, batch=batch), layer, model) for batch in (1, 2, 3, 99)]
        assert lively(results[0].values)
        for other in results[1:]:
            assert distance(results[0].values, other.values) < 2e-5
            assert other.forwards == results[0].forwards


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


@settings(max_examples=15)
@given(SEEDS, st.sampled_from([0.1, 30.0]))
def test_eigen_cam_follows_channels_without_influence(seed: int, factor: float) -> None:
    """Gradients do not enter, the target only chooses the sign: a stated limit."""
    seen = synthetic(seed)
    model = SegmentationModel(Itself(), classes=["roof"])
    plain = raw("eigen_cam", seen, "layer", model).values
    blind = raw("eigen_cam", rebuilt(seen, lambda A, D: (A, D * 0)), "layer", model).values
    assert lively(plain)
    assert torch.equal(plain, blind)
    loud = raw("eigen_cam", rebuilt(seen, lambda A, D: (A * factor, D)), "layer", model).values
    assert distance(factor * plain, loud) < 1e-9


@settings(max_examples=15)
@given(SEEDS)
def test_eigen_direction_is_the_singular_vector(seed: int) -> None:
    seen = synthetic(seed)
    rows = seen.activations["layer"][0].flatten(1).T
    _, _, vectors = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    expected = ((rows - rows.mean(dim=0)) @ vectors[0]).view(6, 6)
    got = raw("eigen_cam", seen, "layer", SegmentationModel(Itself(), classes=["roof"])).values[0]
    assert lively(got)
    assert min(distance(expected, got), distance(expected, -got)) < 1e-9


# --- methods without a layer ----------------------------------------------------------------------
def score_of(model: SegmentationModel, seen: Capture, n: int) -> Callable[[Any], float]:
    def score(image: Any) -> float:
        with torch.no_grad():
            return float(seen.bound.picture(n).score(model(torch.from_numpy(image)[None]))[0])

    return score


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


def test_gradients_at_the_input_are_those_of_autograd() -> None:
    """Captum's maps against plain autograd: x dY/dx, and the mean of dY/dx on a straight way."""
    model, seen = captured(23, n=2, act="silu")
    assert seen.baseline is not None

    def slope(images: Tensor, n: int) -> Tensor:
        images = images.clone().requires_grad_()
        score = seen.bound.picture(n).score(model(images)).sum()
        return torch.autograd.grad(score, images)[0]

    for n in range(2):
        x, b = seen.images[n : n + 1], seen.baseline[n : n + 1]
        plain = raw("input_x_gradient", seen, "", model).values[n]
        assert lively(plain)
        np.testing.assert_allclose(plain, (x * slope(x, n)).sum(dim=1)[0], atol=1e-10)
        # midpoints of 400 steps; the encoder's ReLUs make the way a broken line
        ways = slope(b + (x - b) * ((torch.arange(400) + 0.5) / 400).view(-1, 1, 1, 1), n)
        expected = ((x - b)[0] * ways.mean(dim=0)).sum(dim=0)
        integrated = integrated_gradients(seen, "", model, steps=256).values[n]
        assert distance(expected, integrated) < 5e-3
        gain = score_of(model, seen, n)(x[0].numpy()) - score_of(model, seen, n)(b[0].numpy())
        assert float(integrated.sum()) == pytest.approx(gain, rel=5e-3)


def test_captum_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    model, seen = captured(3)
    for method in ("input_x_gradient", "integrated_gradients"):
        with pytest.raises(SegproofError, match=r'pip install "segproof\[captum\]"'):
            raw(method, seen, "", model)


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


# --- nothing is left behind ---------------------------------------------------------------------
def run(method: str, model: SegmentationModel, images: Tensor, target: Any = STRICT) -> RawMap:
    seen = capture(
        model, images, target, LAYERS, toy_truth(3), baseline=model.neutral.expand_as(images)
    )
    return raw(method, seen, LAYERS[0], model)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_untouched(method: str) -> None:
    model, images = toy_model(3), toy_images(3)
    unsettle(model)
    before = facts(model, images)
    result = run(method, model, images)
    assert facts(model, images) == before
    assert lively(result.values)
    assert not result.values.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_the_mode_of_the_model_does_not_matter(method: str) -> None:
    """Dropout and batch statistics are off whatever mode the model was left in."""
    images = toy_images(3)
    calm = run(method, toy_model(3), images).values
    busy = toy_model(3)
    unsettle(busy)
    assert lively(calm)
    assert torch.equal(run(method, busy, images).values, calm)


@pytest.mark.parametrize("error", [RuntimeError, IndexError, KeyboardInterrupt])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", ["network", "target", "score"])
def test_the_model_is_untouched_after(place: str, method: str, error: type[BaseException]) -> None:
    model, images = toy_model(3), toy_images(3)
    unsettle(model)
    model.evidence((16, 16))  # what fails at the second size is a size that is not taken
    failing = Fails(error)
    target = failing.target(place, STRICT) if place != "network" else STRICT
    # these are stopped in the middle of their forwards, the others in their only one
    count = 2 if method in CHANNELWISE else 1 if method in LAYERLESS else 0
    after = {"network": count}.get(place)
    with failing.network(model, after):
        before = facts(model, images)
        with pytest.raises(told(error, place), match="on purpose"):
            run(method, model, images, target)
        assert facts(model, images) == before
    assert failing.raised == 1


def test_method_names_are_these() -> None:
    assert tuple(METHODS) == tuple(PAPER_METHODS) == (*ALL, *LAYERLESS)
    assert isinstance(PAPER_METHODS["grad_cam_pp"], functools.partial)


def test_fused_layers_in_paper_are_the_published_mean() -> None:
    """Each layer min-maxed at its own size, resized, averaged, and min-maxed once more."""
    generator = torch.Generator().manual_seed(3)
    maps = [torch.randn(side, side, generator=generator).double() for side in (4, 8)]
    target = Target("roof", region="truth", preset="paper")
    parts = [
        Explanation("grad_cam", f"layer {n}", target, raw, "ok", (16, 16), 1.0)
        for n, raw in enumerate(maps)
    ]
    found = fuse(parts, "mean").heatmap().double().numpy()
    wanted = reference.heatmap_paper([raw.numpy() for raw in maps], (16, 16))
    assert wanted.std() > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-6)
