"""Class activation maps: by hand, by the literal formulas, and what must not change them."""

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
from torch import Tensor

import reference
from captures import (
    A1,
    A2,
    CASES,
    D1,
    D2,
    PAPER,
    RERUN,
    STRICT,
    Itself,
    by_hand,
    captured,
    change,
    distance,
    lively,
    raw,
)
from segproof.errors import ModelError
from segproof.explain.api import Explanation, fuse, normalise
from segproof.explain.cam import RawMap, seg_xres_cam
from segproof.explain.forward_pass import Capture, capture
from segproof.explain.methods import CHANNELWISE, LAYERLESS, METHODS, PAPER_METHODS, reads_baseline
from segproof.explain.target import BoundTarget, Target
from segproof.models.contract import SegmentationModel
from sideeffects import Fails, facts, told, unsettle
from toys import LAYERS, toy_images, toy_model, toy_truth

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
NETLESS = tuple(method for method in ALL if method not in RERUN)  # A and D are enough
# linear in D and added up over channels
LINEAR = ("grad_cam", "xgrad_cam", "hires_cam", "seg_xres_cam", "layer_cam", "grad_cam_elementwise")
GRADIENT = (*LINEAR, "grad_cam_pp", "seg_eigen_cam", "eigen_grad_cam")
SEEDS = st.integers(0, 10_000)
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


def rebuilt(seen: Capture, edit: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Capture:
    A, D = edit(seen.activations["layer"], seen.gradients["layer"])
    return replace(seen, activations={"layer": A}, gradients={"layer": D})


def run(method: str, model: SegmentationModel, images: Tensor, target: Any = STRICT) -> RawMap:
    seen = capture(
        model, images, target, LAYERS, toy_truth(3), baseline=model.neutral.expand_as(images)
    )
    return raw(method, seen, LAYERS[0], model)


@pytest.mark.parametrize("method", sorted(BY_HAND))
def test_gradient_methods_by_hand(method: str) -> None:
    model = SegmentationModel(Itself(), classes=["roof"])
    got = raw(method, by_hand([A1, A2], [D1, D2]), "layer", model).values[0]
    np.testing.assert_allclose(got, BY_HAND[method], atol=1e-12)
    seen = by_hand([A1, A2], [D1, D2])
    paper = PAPER_METHODS[method](seen, "layer", model)
    values = paper.values if isinstance(paper, RawMap) else paper
    np.testing.assert_allclose(values[0], BY_HAND[method], atol=3e-6)


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
