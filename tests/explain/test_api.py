"""From a picture to heatmaps: statuses by real cases, ranges for any map, fusion by hand."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import Tensor, nn

import reference
from segproof.data import read_image
from segproof.errors import DataError, ModelError, SegproofError, UnknownNameError
from segproof.explain.api import (
    SYMMETRIES,
    Explanation,
    Symmetry,
    explain,
    explain_all,
    fuse,
    normalise,
)
from segproof.explain.cam import RawMap
from segproof.explain.forward_pass import Capture
from segproof.explain.methods import CHANNELWISE, LAYERLESS, METHODS
from segproof.explain.target import Target
from segproof.models.contract import SegmentationModel
from segproof.perturb.records import DEFAULT_FILLS, FILLS, Fill, FillFunction
from sideeffects import Fails, facts, told, unsettle
from toys import ToyNet, toy_images, toy_model, toy_truth

ROOF = Target("roof")
PAPER = Target("roof", preset="paper")
ALL = tuple(name for name in METHODS if name not in LAYERLESS)
BOTH = ("decoder:1", "decoder:2")


def picture(seed: int = 0) -> Tensor:
    return toy_images(seed)[0]


def made(raw: Tensor, size: tuple[int, int], target: Target = ROOF, **how: Any) -> Explanation:
    """An explanation of a given raw map."""
    status = normalise(raw, size, target.preset)[1]
    return Explanation("grad_cam", "decoder:1", target, raw, status, size, 1.0, **how)


def head_of(model: SegmentationModel) -> Tensor:
    """The bias of the last layer."""
    return dict(model.net.named_parameters())["segmentation_head.bias"]


def ramp(height: int = 4, width: int = 4) -> Tensor:
    return torch.arange(height * width, dtype=torch.float64).view(height, width)


class Squashed(nn.Module):
    """A layer of huge activations, squashed behind it: all logits are finite."""

    def __init__(self) -> None:
        super().__init__()
        huge = nn.Conv2d(1, 1, 1, bias=False)
        self.decoder = nn.Sequential(huge)
        self.head = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(huge.weight, 3e38)
        nn.init.constant_(self.head.weight, 1e4)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(self.decoder(images).sigmoid())
        return result


# --- statuses, each by a case that happens --------------------------------------------------------
def test_ok() -> None:
    result = explain(toy_model(), picture(), method="score_cam", layer="decoder:1", target=ROOF)
    heat = result.heatmap()
    assert result.status == "ok"
    assert heat.shape == (16, 16)
    assert heat.dtype == torch.float32
    assert heat.max() == 1
    assert 0 <= heat.min() < 0.9


def test_all_zero() -> None:
    """Every place of the map speaks against the class."""
    result = explain(toy_model(), picture(), method="grad_cam", layer="decoder:1", target=ROOF)
    assert result.status == "all_zero"
    assert result.raw.max() <= 0
    assert result.raw.min() < 0  # signed: the raw map is kept
    assert torch.equal(result.heatmap(), torch.zeros(16, 16))


def test_constant() -> None:
    """A flat picture behind 1 x 1 convolutions has flat activations."""
    net = nn.Sequential()
    net.add_module("decoder", nn.Sequential(nn.Conv2d(1, 2, 1)))
    net.add_module("head", nn.Conv2d(2, 1, 1))
    for value in net.parameters():
        nn.init.constant_(value, 0.5)
    model = SegmentationModel(net, classes=["roof"]).eval()
    result = explain(model, torch.full((1, 8, 8), 0.3), layer="decoder:1", target=ROOF)
    assert result.raw.min() > 0
    assert result.status == "constant"
    assert torch.equal(result.heatmap(), torch.zeros(8, 8))


def test_non_finite() -> None:
    model = SegmentationModel(Squashed(), classes=["roof"]).eval()
    image = torch.zeros(1, 8, 8)
    image[0, 2, 2] = 1.0
    result = explain(model, image, method="grad_cam", layer="decoder:1", target=ROOF)
    assert math.isfinite(result.value)
    assert torch.isinf(result.raw[2, 2])
    assert result.status == "non_finite"
    assert torch.equal(result.heatmap(), torch.zeros(8, 8))


@pytest.mark.parametrize("case", ["never predicted", "no truth", "nothing valid"])
def test_no_target(case: str) -> None:
    model, target, truth, valid = toy_model(), ROOF, None, None
    if case == "never predicted":
        nn.init.constant_(head_of(model), -1e6)
    elif case == "no truth":
        target, truth = Target("roof", "truth"), torch.zeros(16, 16, dtype=torch.bool)
    else:
        valid = torch.zeros(16, 16, dtype=torch.bool)
    results = explain_all(
        model, picture(), methods=ALL, layers=BOTH, target=target, truth=truth, valid=valid
    )
    assert [(r.layer, r.method) for r in results] == [(la, m) for la in BOTH for m in ALL]
    for result in results:
        assert result.status == "no_target"
        assert result.value == 0
        assert torch.equal(result.heatmap(), torch.zeros(16, 16))
        assert not result.region(threshold=0.1).any()


def test_logits_that_are_not_finite_are_an_error() -> None:
    model = toy_model()
    nn.init.constant_(head_of(model), math.nan)
    with pytest.raises(ModelError, match="not finite"):
        explain(model, picture(), target=ROOF)


# --- normalisation --------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(16, 16), (7, 5), (4, 4), (9, 30)])
def test_strict_is_relu_resize_divide(size: tuple[int, int]) -> None:
    raw = torch.randn(4, 4, dtype=torch.float64)
    heat, status = normalise(raw, size)
    resized = reference.resize(np.maximum(raw.numpy(), 0), size, align_corners=False)
    assert status == "ok"
    assert np.abs(heat.numpy() - resized / resized.max()).max() < 1e-7


def test_paper_scales_before_and_after_resizing() -> None:
    raw = torch.randn(4, 4, dtype=torch.float64).abs() + 0.5  # a floor that strict keeps
    heat, status = normalise(raw, (16, 16), "paper")
    low = raw.numpy() - raw.numpy().min()
    resized = reference.resize(low / (1e-7 + low.max()), (16, 16), align_corners=False)
    shifted = resized - resized.min()
    assert status == "ok"
    assert np.abs(heat.numpy() - shifted / (1e-7 + shifted.max())).max() < 1e-7
    assert heat.min() == 0
    assert normalise(raw, (16, 16))[0].min() > 0.05


def test_explanations_follow_their_preset() -> None:
    raw = torch.randn(4, 4, dtype=torch.float64).abs() + 0.5
    strict, paper = made(raw, (16, 16)), made(raw, (16, 16), PAPER)
    assert torch.equal(strict.heatmap(), normalise(raw, (16, 16), "strict")[0])
    assert torch.equal(paper.heatmap(), normalise(raw, (16, 16), "paper")[0])
    assert not torch.equal(strict.heatmap(), paper.heatmap())


VALUES = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38])
MAPS = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=VALUES
)


@settings(max_examples=300)
@given(
    raw=MAPS,
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    preset=st.sampled_from(["strict", "paper"]),
    wide=st.booleans(),
)
@example(np.eye(6, dtype=np.float32), (2, 2), "strict", False)
@example(np.eye(4, 3, -2, dtype=np.float32), (2, 12), "strict", False)
@example(np.array([[1e-45, 0]], dtype=np.float32), (1, 1), "paper", False)
def test_any_map_gives_a_heatmap_between_0_and_1(
    raw: Any, size: tuple[int, int], preset: Any, wide: bool
) -> None:
    tensor = torch.from_numpy(raw.copy())
    tensor = tensor.double() * 1e200 if wide else tensor
    heat, status = normalise(tensor, size, preset)
    assert heat.shape == size
    assert heat.dtype == torch.float32
    assert torch.isfinite(heat).all()
    assert heat.min() >= 0
    assert heat.max() <= 1
    positive = np.maximum(raw, 0)
    if not np.isfinite(raw).all():
        assert status == "non_finite"
    elif positive.max() == 0:
        assert status == "all_zero"
    elif positive.max() == positive.min():
        assert status == "constant"
    if status != "ok":
        assert not heat.any()
    elif preset == "strict":
        assert heat.max() == 1
    assert np.array_equal(tensor.numpy() if not wide else raw, raw, equal_nan=True)


@given(scale=st.sampled_from([1e-44, 1e-30, 1e-13, 1e-5, 1e5, 1e13, 1e30, 1e37]))
def test_strict_does_not_know_the_unit_of_the_map(scale: float) -> None:
    raw = torch.tensor([[0.0, 1.0, 2.0], [4.0, 8.0, 3.0]])
    plain, scaled = normalise(raw, (6, 6))[0], normalise(raw * scale, (6, 6))[0]
    assert (plain - scaled).abs().max() < (0.05 if scale < 1e-40 else 1e-6)


def test_nearly_flat_is_constant_and_a_step_is_not() -> None:
    raw = torch.ones(4, 4)
    raw[0, 0] += 5e-7
    assert normalise(raw, (8, 8))[1] == "constant"
    raw[0, 0] += 1e-4
    assert normalise(raw, (8, 8))[1] == "ok"


def test_a_heatmap_of_another_size() -> None:
    result = explain(toy_model(), picture(), method="score_cam", layer="decoder:1", target=ROOF)
    assert torch.equal(result.heatmap(), result.heatmap((16, 16)))
    assert torch.equal(result.heatmap((40, 24)), normalise(result.raw, (40, 24))[0])
    small = result.heatmap((3, 5))
    assert small.shape == (3, 5)
    assert small.max() == 1


def test_a_peak_survives_a_smaller_size() -> None:
    raw = torch.zeros(16, 16)
    raw[5, 9] = 1.0
    heat, status = normalise(raw, (4, 4))
    assert status == "ok"
    assert (heat == 1).nonzero().tolist() == [[1, 2]]


# --- regions --------------------------------------------------------------------------------------
def test_regions_by_threshold_and_area() -> None:
    result = made(ramp(), (4, 4))
    heat = ramp() / 15
    assert torch.equal(result.region(threshold=0.4), heat > 0.4)
    for area in (0.1, 0.25, 0.5):
        region = result.region(area=area)
        assert region.sum() == round(16 * area)
        assert heat[region].min() > heat[~region].max()
    with pytest.raises(SegproofError):
        result.region()
    with pytest.raises(SegproofError):
        result.region(threshold=1.0)


def test_regions_stay_within_valid() -> None:
    valid = torch.ones(4, 4, dtype=torch.bool)
    valid[3] = False  # the hottest row
    result = made(ramp(), (4, 4), valid=valid)
    assert torch.equal(result.region(threshold=0.4), (ramp() / 15 > 0.4) & valid)
    region = result.region(area=0.25)
    assert region.sum() == 3
    assert torch.equal(region, (ramp() >= 9) & valid)


def test_a_failed_map_has_an_empty_region() -> None:
    failed = made(torch.zeros(4, 4), (8, 8))
    assert failed.status == "all_zero"
    assert not failed.region(area=0.5).any()
    assert failed.region(area=0.5).shape == (8, 8)


def test_ties_follow_the_seed() -> None:
    raw = torch.zeros(8, 8)
    raw[:6] = 1
    result = made(raw, (8, 8))
    first = result.region(area=0.25)
    assert torch.equal(first, result.region(area=0.25))
    assert not torch.equal(first, result.region(area=0.25, seed=1))


# --- fusion ---------------------------------------------------------------------------------------
FIRST = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
SECOND = torch.tensor([[4.0, 1.0], [2.0, 0.0]])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", [[1.0, 0.5], [1.0, 1.0]]),  # (0, .25, .5, 1) and (1, .25, .5, 0)
        ("max", [[1.0, 0.25], [0.5, 1.0]]),
        ("product", [[0.0, 0.25], [1.0, 0.0]]),  # .0625 and .25, scaled again
    ],
)
def test_fusion_by_hand(how: Any, expected: list[list[float]]) -> None:
    explained = torch.eye(2, dtype=torch.bool)
    parts = [made(FIRST, (2, 2), explained=explained), made(SECOND, (2, 2))]
    fused = fuse(parts, how)
    assert (fused.heatmap() - torch.tensor(expected)).abs().max() < 1e-6
    assert fused.status == "ok"
    assert fused.layer == f"{how}(decoder:1+decoder:1)"
    assert (fused.method, fused.value, fused.size) == ("grad_cam", 1.0, (2, 2))
    assert fused.explained is explained


def test_fusion_joins_at_the_size_of_the_picture() -> None:
    parts = [made(ramp(2, 2), (8, 8)), made(ramp(4, 4).flip(0), (8, 8))]
    joined = torch.stack([part.heatmap() for part in parts]).mean(dim=0)
    assert torch.equal(fuse(parts).heatmap(), joined / joined.max())


def test_paper_fuses_before_the_last_scaling() -> None:
    """The mean over layers of the resized maps, then one min-max."""
    raws = [torch.randn(4, 4, dtype=torch.float64).abs() + 0.5, ramp(2, 2), -ramp(2, 2)]
    fused = fuse([made(raw, (6, 6), PAPER) for raw in raws], "mean")
    mean = np.zeros((6, 6))
    for raw in raws[:2]:
        low = raw.numpy() - raw.numpy().min()
        mean += reference.resize(low / (1e-7 + low.max()), (6, 6), align_corners=False) / 3
    shifted = mean - mean.min()
    assert np.abs(fused.heatmap().numpy() - shifted / (1e-7 + shifted.max())).max() < 1e-6


def test_fusing_one_map_is_that_map_and_a_failed_one_adds_nothing() -> None:
    good, bad = made(FIRST, (2, 2)), made(-FIRST, (2, 2))
    assert bad.status == "all_zero"
    for how in ("mean", "max", "product"):  # type: Any
        assert torch.equal(fuse([good], how).heatmap(), good.heatmap())
    assert torch.equal(fuse([good, bad], "mean").heatmap(), good.heatmap())
    assert fuse([good, bad], "product").status == "all_zero"


def test_what_cannot_be_fused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean mean"):
        fuse([made(FIRST, (2, 2))], "meen")  # type: ignore[arg-type]
    with pytest.raises(SegproofError, match="different sizes"):
        fuse([made(FIRST, (2, 2)), made(FIRST, (4, 4))])
    with pytest.raises(SegproofError, match="0 maps"):
        fuse([])


# --- explain and explain_all ----------------------------------------------------------------------
@pytest.mark.parametrize("target", [ROOF, PAPER, Target("roof", "truth", "probability", "sum")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_alone_or_together_is_the_same_bitwise(target: Target, dtype: torch.dtype) -> None:
    model, image, truth = toy_model(3).to(dtype), picture(3).to(dtype), toy_truth(3)[0]
    results = explain_all(
        model, image, methods=ALL, layers=BOTH, target=target, truth=truth, seed=4
    )
    assert [(r.layer, r.method) for r in results] == [(la, m) for la in BOTH for m in ALL]
    assert sum(result.status == "ok" for result in results) >= 5
    for result in results:
        how: dict[str, Any] = {"method": result.method, "layer": result.layer, "seed": 4}
        alone = explain(model, image, target=target, truth=truth, **how)
        assert torch.equal(alone.raw, result.raw)
        assert alone.value == result.value
        assert alone.status == result.status
        assert alone.effective_channels == result.effective_channels
        assert alone.forwards == result.forwards


def test_two_names_of_one_layer_agree() -> None:
    names = ("decoder:-1", "decoder.blocks.1", "decoder:2")
    results = explain_all(
        toy_model(3), picture(3), methods=["grad_cam", "eigen_cam"], layers=names, target=ROOF
    )
    assert [result.layer for result in results] == [name for name in names for _ in range(2)]
    assert results[0].raw.any()
    for other in (2, 4):
        assert torch.equal(results[0].raw, results[other].raw)
        assert torch.equal(results[1].raw, results[other + 1].raw)


def test_what_an_explanation_says_beside_its_map() -> None:
    model, image, truth = toy_model(3), picture(3), toy_truth(3)[0]
    valid = torch.ones(16, 16, dtype=torch.bool)
    valid[:4] = False
    target = Target("roof", "truth")
    results = explain_all(
        model, image, methods=ALL, layers=["decoder:1"], target=target, truth=truth, valid=valid
    )
    with torch.no_grad():
        logits = model(image[None])[0, 1]
    region = truth & valid
    for result in results:
        assert result.explained is not None
        assert torch.equal(result.explained, region)
        assert result.valid is not None
        assert torch.equal(result.valid, valid)
        assert result.value == pytest.approx(logits[region].mean().item(), abs=1e-12)
        assert result.size == (16, 16)
        assert result.raw.shape == (8, 8)
        assert result.target is target
        if result.method == "score_cam":
            assert result.effective_channels is not None
            assert 1 <= result.effective_channels <= 7
        else:
            assert result.effective_channels is None
        if result.method in CHANNELWISE:
            assert 1 < result.forwards <= 1 + 7 * CHANNELWISE[result.method]
        else:
            assert result.forwards == 0


def test_the_fill_and_the_seed_reach_score_cam_alone() -> None:
    model, image = toy_model(1), picture(1)

    def raw(method: str, target: Target = ROOF, **how: Any) -> Tensor:
        how |= {"truth": toy_truth(1)[0], "layer": "decoder:1"}
        found = explain(model, image, method=method, target=target, **how).raw
        assert found.any()
        return found

    assert not torch.equal(raw("score_cam", fill="black"), raw("score_cam", fill="neutral"))
    assert not torch.equal(raw("score_cam"), raw("score_cam", seed=1))
    assert torch.equal(raw("score_cam", fill="black"), raw("score_cam", fill="black", seed=1))
    assert torch.equal(raw("grad_cam", fill="black"), raw("grad_cam", seed=1))
    for target in (ROOF, PAPER):
        stated = raw("score_cam", target, fill=DEFAULT_FILLS[target.preset])
        assert torch.equal(raw("score_cam", target), stated)
    assert DEFAULT_FILLS == {"strict": "background_texture", "paper": "neutral"}


def test_batches_change_nothing_to_see() -> None:
    maps = [
        explain(
            toy_model(), picture(), method="score_cam", layer="decoder:1", target=ROOF, batch=n
        ).raw
        for n in (1, 3, 64)
    ]
    assert maps[0].any()
    assert max((maps[0] - other).abs().max().item() for other in maps) < 1e-9


# --- a method of one's own ------------------------------------------------------------------------
def loudest(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    return capture.activations[layer].amax(dim=1)


class Scaled:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
        values = self.factor * loudest(capture, layer, model)
        return RawMap(values, effective_channels=torch.tensor([2.5]), forwards=9)


def test_any_callable_is_a_method() -> None:
    model, image = toy_model(3), picture(3)
    activations: list[Tensor] = []
    layer = model.net.get_submodule("decoder.blocks.0")
    handle = layer.register_forward_hook(lambda m, i, o: activations.append(o.clone()))
    with torch.no_grad():
        model(image[None])
    handle.remove()
    expected = activations[0][0].amax(dim=0)
    results = explain_all(
        model, image, methods=[loudest, Scaled(-1), "grad_cam"], layers=["decoder:1"], target=ROOF
    )
    assert [result.method for result in results] == ["loudest", "Scaled", "grad_cam"]
    assert torch.equal(results[0].raw, expected)
    assert torch.equal(results[1].raw, -expected)
    assert results[0].effective_channels is None
    assert (results[1].effective_channels, results[1].forwards) == (2.5, 9)
    assert torch.equal(
        explain(model, image, method=loudest, layer="decoder:1", target=ROOF).raw, expected
    )


def test_methods_of_one_name_are_refused_not_dropped() -> None:
    half, twice = functools.partial(loudest), functools.partial(loudest)
    how: dict[str, Any] = {"layers": ["decoder:1"], "target": ROOF}
    with pytest.raises(SegproofError, match="methods of one name: loudest"):
        explain_all(toy_model(), picture(), methods=[half, twice], **how)
    with pytest.raises(SegproofError, match="methods of one name: grad_cam"):
        explain_all(toy_model(), picture(), methods=["grad_cam", "grad_cam"], **how)
    with pytest.raises(SegproofError, match="layers of one name: decoder:1"):
        explain_all(
            toy_model(), picture(), methods=["grad_cam"], layers=["decoder:1"] * 2, target=ROOF
        )


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (None, "NoneType"),
        (torch.ones(4, 4), r"torch\.float32 \(4, 4\)"),
        (torch.ones(1, 1, 4, 4), r"torch\.float32 \(1, 1, 4, 4\)"),
        (torch.ones(1, 4, 4, dtype=torch.int64), r"torch\.int64 \(1, 4, 4\)"),
        (np.ones((1, 4, 4)), "ndarray"),
    ],
)
def test_a_method_that_returns_no_map(result: Any, found: str) -> None:
    def mine(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
        kept: Tensor = result
        return kept

    with pytest.raises(SegproofError, match=f"method mine returning {found}"):
        explain(toy_model(), picture(), method=mine, layer="decoder:1", target=ROOF)


# --- errors, and nothing left behind --------------------------------------------------------------
def test_unknown_names() -> None:
    model = toy_model()
    for how, near in (
        ({"method": "grad_kam"}, "grad_cam"),
        ({"layer": "decoder:3"}, "decoder:"),
        ({"fill": "nutral"}, "neutral"),
        ({"target": Target("roofs")}, "roof"),
    ):
        settings: dict[str, Any] = {"target": ROOF, "method": "score_cam"} | how
        with pytest.raises(UnknownNameError) as got:
            explain(model, picture(), **settings)
        assert near in got.value.fix


def test_pictures_and_masks_that_do_not_fit() -> None:
    model = toy_model()
    small = torch.ones(8, 8, dtype=torch.bool)
    for name in ("truth", "valid"):
        masks: dict[str, Any] = {name: small}
        with pytest.raises(DataError, match=f"a {name} mask"):
            explain(model, picture(), target=ROOF, layer="decoder:1", **masks)
    with pytest.raises(DataError, match="no truth mask"):
        explain(model, picture(), target=PAPER)
    with pytest.raises(DataError, match="2 pictures"):
        explain(model, torch.stack([picture(), picture()]), target=ROOF)


@pytest.mark.parametrize("target", [ROOF, PAPER])
def test_nothing_is_left_behind(target: Target) -> None:
    model, image, truth = toy_model(3), picture(3), toy_truth(3)[0]
    unsettle(model)
    valid = torch.ones(16, 16, dtype=torch.bool)
    before = facts(model, image, truth, valid)
    results = explain_all(
        model, image, methods=ALL, layers=BOTH, target=target, truth=truth, valid=valid
    )
    assert any(result.status == "ok" for result in results)
    assert not any(result.raw.requires_grad for result in results)
    assert facts(model, image, truth, valid) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, IndexError])
def test_nothing_is_left_behind_after_an_error_in_a_fill(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = toy_model(3), picture(3)
    unsettle(model)
    before, fails = facts(model, image), Fails(error)
    monkeypatch.setitem(FILLS, "failing", Fill("failing", fails.now, "flat", "Fails."))
    with pytest.raises(error):
        explain_all(model, image, methods=ALL, layers=BOTH, target=ROOF, fill="failing")
    assert fails.raised == 1
    assert facts(model, image) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_nothing_is_left_behind_after_an_error(error: type[BaseException], after: int) -> None:
    model, image = toy_model(3), picture(3)
    model.layers(16)  # how its layers lie is found once, by runs of their own
    unsettle(model)
    before, fails = facts(model, image), Fails(error)
    with fails.network(model, after), pytest.raises(told(error, "network")):
        explain_all(model, image, methods=ALL, layers=BOTH, target=ROOF, batch=1)
    assert fails.raised == 1
    assert facts(model, image) == before


# --- methods without a layer ----------------------------------------------------------------------
def test_methods_without_a_layer_come_last_and_once() -> None:
    model, image = toy_model(3), picture(3)
    made = explain_all(
        model, image, methods=["occlusion", "grad_cam", "rise"], layers=BOTH, target=ROOF
    )
    assert [(item.layer, item.method) for item in made] == [
        ("decoder:1", "grad_cam"),
        ("decoder:2", "grad_cam"),
        ("input", "occlusion"),
        ("input", "rise"),
    ]
    assert all(item.status == "ok" for item in made)
    assert made[2].raw.shape == made[3].raw.shape == (16, 16)
    # no layer is looked for where none is needed
    [alone] = explain_all(model, image, methods=["occlusion"], layers=["nowhere:7"], target=ROOF)
    assert torch.equal(alone.raw, made[2].raw)
    nothing = explain_all(
        model, image, methods=["rise"], layers=BOTH, target=Target("roof", "points:0,0"),
        valid=torch.zeros(16, 16, dtype=torch.bool),
    )  # fmt: skip
    assert [(item.layer, item.status) for item in nothing] == [("input", "no_target")]


# --- smoothing by flips and turns -----------------------------------------------------------------
def test_symmetries_are_eight_and_exactly_undone() -> None:
    image = torch.arange(12.0).view(1, 3, 4)
    shown = [turn.apply(image) for turn in SYMMETRIES]
    assert len({(tuple(one.shape), tuple(one.flatten().tolist())) for one in shown}) == 8
    assert torch.equal(shown[0], image)
    assert all(one.shape == image.shape for one in shown[:4])
    for turn, one in zip(SYMMETRIES, shown, strict=True):
        assert torch.equal(turn.undo(one), image)


@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
@pytest.mark.parametrize("method", ["grad_cam", "hires_cam", "score_cam", "eigen_cam", "occlusion"])
def test_smooth_is_the_mean_of_the_maps_of_turned_pictures(
    method: str, size: tuple[int, int]
) -> None:
    """Literally: each turned picture explained alone, R turned as truth, the map turned back."""
    model = toy_model(3)
    image = toy_images(3, side=24)[0][:, : size[0], : size[1]]
    with torch.no_grad():
        region = model(image[None]).argmax(dim=1)[0] == 1
    base = toy_images(9, side=24)[0][:, : size[0], : size[1]]

    def fill(turn: Symmetry) -> FillFunction:
        """The same picture in place of hidden pixels, turned with what is shown."""
        return lambda images, keep: torch.where(keep[:, None], images, turn.apply(base))

    how: dict[str, Any] = {"method": method, "layer": "decoder:2"}
    smooth = explain(model, image, target=ROOF, smooth=True, fill=fill(SYMMETRIES[0]), **how)
    turns = SYMMETRIES if size[0] == size[1] else SYMMETRIES[:4]
    maps = []
    for turn in turns:
        turned = explain(
            model,
            turn.apply(image),
            target=Target("roof", "truth"),
            truth=turn.apply(region),
            fill=fill(turn),
            **how,
        )
        raw = turned.raw
        if method == "eigen_cam":  # its sign follows the clean picture's P, not the turned one's
            guide = turn.apply(region).double()
            small = torch.nn.functional.adaptive_avg_pool2d(
                guide[None], (raw.shape[0], raw.shape[1])
            )[0]
            raw = raw * (raw * (small - small.mean())).sum().sign()
        maps.append(turn.undo(raw))
    assert smooth.symmetries == len(turns)
    assert not torch.allclose(maps[0], maps[1], rtol=0.05)
    torch.testing.assert_close(smooth.raw, torch.stack(maps).mean(dim=0), rtol=1e-9, atol=1e-12)
    assert smooth.status == "ok"


def test_smooth_of_a_symmetric_picture_is_symmetric() -> None:
    model, image = toy_model(5), picture(5)
    image = torch.stack([turn.apply(image) for turn in SYMMETRIES]).mean(dim=0)
    made = explain(model, image, target=ROOF, smooth=True, layer="decoder:1")
    plain = explain(model, image, target=ROOF, layer="decoder:1")
    # R is the clean prediction, which need not be symmetric: read the logits everywhere instead
    box = Target("roof", "box:0,0,16,16")
    made = explain(model, image, target=box, smooth=True, layer="decoder:1")
    for turn in SYMMETRIES:
        torch.testing.assert_close(turn.apply(made.raw), made.raw)
    assert not torch.allclose(plain.raw.flip(-1), plain.raw)


def test_smooth_in_inference_mode() -> None:
    model, image = toy_model(3), picture(3)
    plain = explain(model, image, target=ROOF, smooth=True, layer="decoder:1")
    with torch.inference_mode():
        made = explain(model, picture(3), target=ROOF, smooth=True, layer="decoder:1")
    assert torch.equal(made.raw, plain.raw)


def test_smooth_counts_its_forwards() -> None:
    model, image = toy_model(3), picture(3)
    calls = 0

    def count(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal calls
        calls += len(given[0])

    model.layers(16)  # how its layers lie is found once, by runs of their own
    handle = model.net.register_forward_pre_hook(count)
    model.resolve_layer("decoder.blocks.0")
    made = explain(model, image, target=ROOF, smooth=True, layer="decoder.blocks.0")
    assert calls == 8
    assert made.forwards == 7  # beside the clean one
    handle.remove()


# --- pictures of other sizes ----------------------------------------------------------------------
def test_padded_pictures_are_cut_back() -> None:
    """15 x 13 px of a network that needs multiples of 4: the map of 16 x 16, cut, scaled again."""

    class Stride(nn.Identity):
        output_stride = 4

    class Picky(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.encoder = Stride()
            self.net = net

        def forward(self, images: Tensor) -> Tensor:
            if images.shape[-1] % 4 or images.shape[-2] % 4:
                raise RuntimeError("sides must be divisible by 4")
            result: Tensor = self.net(images)
            return result

    plain = toy_model(3)
    model = SegmentationModel(
        Picky(plain.net), classes=["roof"], mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3]
    ).double()
    image = picture(3)[:, :15, :13]
    layer = "net.decoder.blocks.0"
    with pytest.raises(
        ModelError, match=r"pad by 1 px at the bottom and 3 px at the right \(--pad"
    ):
        explain(model, image, target=ROOF, layer=layer)
    made = explain(model, image, target=ROOF, layer=layer, padded=True)
    assert made.padding == (1, 3)
    assert made.size == (15, 13)
    whole = torch.nn.functional.pad(image, (0, 3, 0, 1), mode="replicate")
    valid = torch.zeros(16, 16, dtype=torch.bool)
    valid[:15, :13] = True
    full = explain(model, whole, target=ROOF, layer=layer, valid=valid)
    assert torch.equal(full.raw, made.raw)
    assert made.value == full.value
    cut = full.heatmap()[:15, :13]
    assert torch.equal(made.heatmap(), cut / cut.max())
    assert made.heatmap().max() == 1
    assert made.explained is not None
    assert full.explained is not None
    assert torch.equal(made.explained, full.explained[:15, :13])
    assert not full.explained[15:].any()
    assert not full.explained[:, 13:].any()
    area = made.region(area=0.2)
    assert area.shape == (15, 13)
    assert int(area.sum()) == round(0.2 * 15 * 13)
    assert made.heatmap((30, 26)).shape == (30, 26)
    # a picture that fits is left alone
    fits = explain(model, picture(3), target=ROOF, layer=layer, padded=True)
    assert fits.padding == (0, 0)


# --- other bands ----------------------------------------------------------------------------------
@pytest.mark.parametrize("bands", [1, 4, 8, 13])
def test_any_number_of_bands(bands: int) -> None:
    """All methods on networks of 1 to 13 bands, smooth and padded too."""
    net = ToyNet(1, bands=bands)
    for value in net.parameters():
        nn.init.normal_(value, std=0.4, generator=torch.Generator().manual_seed(bands))
    model = SegmentationModel(net, classes=["roof"], mean=[0.5] * bands, std=[0.2] * bands).double()
    image = torch.rand(bands, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    box = Target("roof", "box:4,4,12,12")
    made = explain_all(model, image, methods=tuple(METHODS), layers=["decoder:1"], target=box)
    assert sum(item.status == "ok" for item in made) >= len(made) - 3
    assert all(item.status in ("ok", "all_zero") for item in made)
    smooth = explain(model, image, target=box, layer="decoder:1", smooth=True, method="hires_cam")
    assert smooth.raw.any()
    with pytest.raises(ModelError, match=f"with {bands + 1} bands; expected {bands}"):
        explain(model, torch.cat([image, image[:1]]), target=box)


# --- fills of one's own ---------------------------------------------------------------------------
def test_a_fill_is_made_for_those_alone_that_read_it() -> None:
    asked: list[int] = []

    def fill(images: Tensor, keep: Tensor) -> Tensor:
        asked.append(len(images))
        return torch.zeros_like(images)

    def own(seen: Capture, layer: str, model: SegmentationModel) -> Tensor:
        assert seen.baseline is not None
        return seen.baseline.mean(dim=1)

    def ask(*methods: Any, fill: Any) -> None:
        explain_all(
            toy_model(3), picture(3), methods=methods, layers=["decoder:1"], target=ROOF, fill=fill
        )

    ask("grad_cam", "eigen_cam", fill=fill)
    assert asked == []
    ask("grad_cam", own, fill=fill)
    assert asked == [1]
    with pytest.raises(UnknownNameError, match="fill"):
        ask("grad_cam", fill="sand")


def test_a_fill_of_ones_own() -> None:
    model, image = toy_model(3), picture(3)

    def dark(images: Tensor, keep: Tensor) -> Tensor:
        return torch.where(keep[:, None], images, torch.zeros_like(images))

    for method in ("score_cam", "occlusion"):
        how: dict[str, Any] = {"method": method, "layer": "decoder:1", "target": ROOF}
        own = explain(model, image, fill=dark, **how)
        named = explain(model, image, fill="black", **how)
        assert own.raw.any()
        assert torch.equal(own.raw, named.raw)
        assert not torch.equal(own.raw, explain(model, image, fill="noise", **how).raw)


@pytest.mark.parametrize("error", [RuntimeError, IndexError, KeyboardInterrupt])
def test_a_fill_that_fails_leaves_nothing_behind(error: type[BaseException]) -> None:
    model, image = toy_model(3), picture(3)
    unsettle(model)
    before = facts(model, image)

    def failing(images: Tensor, keep: Tensor) -> Tensor:
        raise error("on purpose")

    with pytest.raises(error, match="on purpose"):
        explain(model, image, method="score_cam", layer="decoder:1", target=ROOF, fill=failing)
    assert facts(model, image) == before


# --- the door -------------------------------------------------------------------------------------
def test_pictures_targets_and_models_as_users_have_them(tmp_path: Path) -> None:
    """A path, a PIL picture, arrays either way round, a batch and sample dicts give one map."""
    torch.manual_seed(0)
    net = smp.Unet("resnet18", encoder_weights=None, classes=1)
    how: dict[str, Any] = {"classes": ["roof"], "mean": [0.5] * 3, "std": [0.25] * 3}
    model = SegmentationModel(net, **how).eval()
    values = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    exact = torch.from_numpy(values).permute(2, 0, 1).float() / 255
    target = Target("roof", "box:8,8,40,40")
    wanted = explain(model, exact, target=target, layer="decoder:2")
    given: list[Any] = [
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        Image.fromarray(values),
        values,
        values.transpose(2, 0, 1),
        exact[None],
        {"image": exact},
        {"image": exact[None], "mask": torch.ones(1, 64, 96, dtype=torch.int64)},
        read_image(tmp_path / "a.png"),
    ]
    for picture_ in given:
        made = explain(model, picture_, target=target, layer="decoder:2")
        assert torch.equal(made.raw, wanted.raw), type(picture_)
    several = explain_all(
        model,
        torch.stack([exact, exact.flip(2)]),
        methods=["grad_cam", "hires_cam"],
        layers=["decoder:2"],
        target=target,
    )
    assert len(several) == 4
    assert torch.equal(several[0].raw, wanted.raw)
    spelled = explain(model, exact, target=target, layer="decoder:2", method="Grad-CAM")
    assert torch.equal(spelled.raw, wanted.raw)
    assert spelled.method == "grad_cam"
    plain = explain(net.eval(), exact, target="object", layer="decoder:2")
    assert plain.target == Target("object")


def test_a_sample_brings_its_truth_and_its_valid_pixels() -> None:
    model, image, truth = toy_model(3), picture(3), toy_truth(3)[0]
    sample = {"image": image.float(), "mask": truth.long(), "valid": torch.ones(16, 16).bool()}
    sample["valid"][:, :4] = False
    target = Target("roof", "truth")
    made = explain(model, sample, target=target, layer="decoder:1")
    assert made.explained is not None
    assert torch.equal(made.explained, truth & sample["valid"])


@pytest.mark.parametrize(
    ("spoil", "fix"),
    [
        (lambda x: (255 * x).to(torch.uint8), "255"),
        (lambda x: 255 * x, "divide the picture by 255"),
        (lambda x: (x - 0.5) / 0.25, "normalised already"),
        (lambda x: 1815 * x, "divide the picture by"),
    ],
)
def test_pictures_in_other_units_are_refused(spoil: Any, fix: str) -> None:
    net = smp.Unet("resnet18", encoder_weights=None, classes=1)
    model = SegmentationModel(net, classes=["roof"], mean=[0.5] * 3, std=[0.25] * 3).eval()
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    with pytest.raises(DataError) as got:
        explain(model, spoil(image), target="roof")
    assert fix in got.value.fix
