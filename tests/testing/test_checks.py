"""The property suite: everything built in passes, and each planted fault is caught by its check."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import segproof.testing as testing
from segproof.errors import ModelError, SegproofError, UnknownNameError
from segproof.explain.cam import RawMap, grad_cam
from segproof.explain.forward_pass import Capture
from segproof.explain.masked import score_cam
from segproof.explain.methods import METHODS
from segproof.explain.target import BoundTarget
from segproof.measures import pictures as measures
from segproof.measures.records import MEASURES
from segproof.models.contract import SegmentationModel
from segproof.models.loaders.load import demo_model_spec, load_model
from segproof.perturb.records import FILLS
from segproof.testing import (
    LIMITS,
    PROPERTIES,
    Check,
    Report,
    check_fill,
    check_measure,
    check_memory,
    check_method,
    check_model,
)
from segproof.testing.sideeffects import FACTS, facts
from segproof.testing.toys import LAYERS, ToyNet, toy_model

FEW = 4  # cases where one is enough to see it
# what is averaged over many masks or steps has its properties with few as well
FASTER: dict[str, dict[str, Any]] = {"rise": {"masks": 24}, "integrated_gradients": {"steps": 4}}
QUICK = {
    name: functools.partial(method, **FASTER[name]) if name in FASTER else method
    for name, method in METHODS.items()
}


def statuses(report: Report) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def failures(report: Report) -> set[str]:
    return {check.name for check in report.failed}


# --- what is built in -----------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_methods_pass(method: str) -> None:
    report = check_method(QUICK[method], cases=8, limits=LIMITS.get(method, ()))
    report.raise_for_failures()
    assert set(statuses(report).values()) == {"passed"}  # also: each stated limit is a real one
    assert set(PROPERTIES) < set(statuses(report))


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_pass(measure: str) -> None:
    report = check_measure(measure)
    report.raise_for_failures()
    assert set(statuses(report).values()) == {"passed"}


def test_measures_that_are_not_in_the_table_pass() -> None:
    kept = check_measure(
        measures.entropy_kept, low=0, high=1, better="lower", undefined=("empty", "nothing_kept")
    )
    kept.raise_for_failures()
    check_measure(
        measures.entropy_paper, low=0, high=1, better="lower", undefined=()
    ).raise_for_failures()


@pytest.mark.parametrize("fill", FILLS)
def test_fills_pass(fill: str) -> None:
    report = check_fill(fill)
    report.raise_for_failures()
    assert set(statuses(report).values()) == {"passed"}


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_networks_pass(activation: str) -> None:
    model = toy_model(classes=("ground", "roof", "road"), activation=activation).float()
    report = check_model(model)
    report.raise_for_failures()
    assert statuses(report)["map at encoder:-1"] == "passed"
    assert statuses(report)["untouched"] == "passed"


def test_the_network_in_the_package_passes() -> None:
    report = check_model(load_model(demo_model_spec()))
    report.raise_for_failures()
    assert set(statuses(report).values()) == {"passed"}
    assert len(report.checks) == 9


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_hundred_maps_leave_nothing_behind(method: str) -> None:
    check_memory(method).raise_for_failures()


# --- any case of any property ---------------------------------------------------------------------
@pytest.mark.parametrize(
    "cases",
    [200, pytest.param(int(os.environ.get("SEGPROOF_CASES", "10000")), marks=pytest.mark.slow)],
)
def test_no_violation_in_any_case(cases: int) -> None:
    """Random networks, pictures, layers and activations; the stated limits are left out."""
    holds = [
        (method, name)
        for method in METHODS
        for name in PROPERTIES
        if name not in LIMITS.get(method, ())
    ]
    seen: list[bool] = []

    @settings(max_examples=cases)
    @given(st.sampled_from(holds), st.integers(0, 10**6))
    def run(pair: tuple[str, str], case: int) -> None:
        method, name = pair
        apart, lively = PROPERTIES[name].compare(QUICK[method], case)
        seen.append(lively)
        assert apart <= PROPERTIES[name].allowed, f"{method} {name} case {case}: {apart:.1e}"

    run()
    print(f"\n{len(seen)} cases, {sum(seen)} not flat, 0 violations")
    assert len(seen) >= cases
    assert sum(seen) > 0.9 * len(seen)


# --- methods with a fault -------------------------------------------------------------------------
Gives = Callable[[Capture, str, SegmentationModel], Any]


def plain(capture: Capture, layer: str) -> Tensor:
    """Grad-CAM, which has all properties."""
    return (capture.gradients[layer].mean((2, 3), True) * capture.activations[layer]).sum(1)


def forgets_the_mode(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    model.eval()
    return plain(capture, layer)


def forgets_a_hook(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    model.net.get_submodule(layer).register_forward_hook(lambda m, i, o: None)
    return plain(capture, layer)


def leaves_gradients(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    return plain(capture, layer)


def freezes(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    model.requires_grad_(False)
    return plain(capture, layer)


def trains(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    with torch.no_grad():
        next(model.parameters()).mul_(1.001)
    return plain(capture, layer)


def wraps_a_module(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    block = model.net.get_submodule(layer)
    vars(block)["forward"] = block.forward
    return plain(capture, layer)


def draws(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    torch.rand(1)
    return plain(capture, layer)


def draws_in_numpy(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    np.random.rand(1)  # noqa: NPY002  # the fault
    return plain(capture, layer)


def draws_in_python(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    random.random()  # noqa: S311  # the fault
    return plain(capture, layer)


def mutates_the_input(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    capture.images.clamp_(0.2, 0.8)
    return plain(capture, layer)


def switches_gradients_off(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    torch.set_grad_enabled(False)
    return plain(capture, layer)


def sets_a_flag(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    return plain(capture, layer)


STATE: dict[str, Gives] = {
    "modes": forgets_the_mode,
    "hooks": forgets_a_hook,
    "grad": leaves_gradients,
    "requires_grad": freezes,
    "weights": trains,
    "modules": wraps_a_module,
    "torch_rng": draws,
    "numpy_rng": draws_in_numpy,
    "python_rng": draws_in_python,
    "inputs": mutates_the_input,
    "grad_mode": switches_gradients_off,
    "flags": sets_a_flag,
}


def test_each_of_the_twelve_has_its_fault() -> None:
    assert tuple(sorted(STATE)) == tuple(sorted(FACTS))
    assert len(FACTS) == 12


@pytest.mark.parametrize("kind", STATE)
def test_state_that_is_left_changed_is_caught_and_named(kind: str) -> None:
    before = facts(nn.Identity())
    report = check_method(STATE[kind], cases=1)
    [found] = [check for check in report.checks if check.name == "untouched"]
    assert found.status == "failed"
    assert found.detail.startswith("11 of 12 kinds of state as before; changed: " + kind)
    # and the fault does not spread to whoever asked
    assert facts(nn.Identity()) == before


def adds_noise(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    found = plain(capture, layer)
    return found + 1e-3 * found.abs().max() * torch.rand_like(found)


def uses_the_batch_mean(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    found = plain(capture, layer)
    return found - found.mean(dim=0)


def averages_over_the_batch(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    weights = capture.gradients[layer].mean((0, 2, 3), True)
    return (weights * capture.activations[layer]).sum(1)


def adds_a_constant(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    return plain(capture, layer) + 0.1


def weighs_with_y(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    y = capture.bound.score(capture.logits)[:, None, None]
    return plain(capture, layer) + y * capture.activations[layer].sum(1)


def counts_channels(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    place = torch.arange(capture.activations[layer].shape[1]).view(1, -1, 1, 1)
    return (place * capture.activations[layer] * capture.gradients[layer]).sum(1)


def weighs_by_sign(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    """Half the influence counts whole."""
    return (capture.gradients[layer].mean((2, 3), True).sign() * capture.activations[layer]).sum(1)


def looks_to_the_left(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    found = plain(capture, layer)
    return found + found.roll(1, dims=-1)


def darkens_the_border(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    found = plain(capture, layer).clone()
    found[:, 0], found[:, -1], found[:, :, 0], found[:, :, -1] = 0, 0, 0, 0
    return found


def knows_the_number_of_logits(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    return plain(capture, layer) + (model.channels - 1) * capture.activations[layer].sum(1)


def changes_what_it_is_given(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    capture.activations[layer].mul_(capture.gradients[layer])
    return capture.activations[layer].sum(1).clone()


def divides_by_zero(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    found = plain(capture, layer)
    return found / found.amax(dim=(1, 2), keepdim=True)


def forgets_the_batch(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    return plain(capture, layer)[0]


def keeps_the_graph(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    return plain(capture, layer).requires_grad_()


def swallows(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    try:
        return score_cam(capture, layer, model).values
    except ModelError:  # as which a network's own IndexError comes
        return plain(capture, layer)


def breaks(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    raise ValueError("no idea")


def is_flat(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    return torch.ones_like(plain(capture, layer))


def forgets_after_an_error(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    modes = [module.training for module in model.modules()]
    model.eval()
    found = score_cam(capture, layer, model)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return found


FAULTS: list[tuple[Gives, str]] = [
    (adds_noise, "repeat"),
    (uses_the_batch_mean, "batch"),
    (averages_over_the_batch, "batch"),
    (adds_a_constant, "target_scaled"),
    (weighs_with_y, "target_shifted"),
    (counts_channels, "channels_permuted"),
    (weighs_by_sign, "channel_doubled"),
    (weighs_by_sign, "channel_rescaled"),
    (looks_to_the_left, "turned"),
    (darkens_the_border, "translated"),
    (knows_the_number_of_logits, "two_logits"),
    (changes_what_it_is_given, "captured_once"),
    (changes_what_it_is_given, "untouched"),
    (divides_by_zero, "finite"),
    (forgets_the_batch, "shape"),
    (keeps_the_graph, "shape"),
    (swallows, "untouched_after_errors"),
    (forgets_after_an_error, "untouched_after_errors"),
    (breaks, "repeat"),
    (is_flat, "repeat"),
]


@pytest.mark.parametrize(("method", "check"), FAULTS, ids=lambda v: getattr(v, "__name__", v))
def test_faulty_methods_are_caught(method: Gives, check: str) -> None:
    report = check_method(method, cases=FEW)
    assert check in failures(report)
    assert not report.ok
    with pytest.raises(AssertionError, match=f"(?m)^{check}: "):
        report.raise_for_failures()


def test_a_method_without_a_fault_passes() -> None:
    report = check_method(lambda capture, layer, model: plain(capture, layer), cases=FEW)
    assert failures(report) == set()


def test_the_reasons_say_what_happened() -> None:
    said = {check.name: check.detail for check in check_method(swallows, cases=FEW).checks}
    assert "swallowed after RuntimeError in network 1" in said["untouched_after_errors"]
    said = {check.name: check.detail for check in check_method(breaks, cases=FEW).checks}
    assert said["repeat"] == "raised ValueError: no idea"
    said = {check.name: check.detail for check in check_method(is_flat, cases=FEW).checks}
    assert said["repeat"] == "only 0 of 4 maps are not flat: that shows nothing"


# --- limits ---------------------------------------------------------------------------------------
def test_a_built_in_method_brings_its_limits() -> None:
    report = check_method("seg_xres_cam", cases=FEW)
    assert set(statuses(report).values()) == {"passed"}
    assert failures(check_method(METHODS["seg_xres_cam"], cases=FEW)) == {"translated"}


def test_a_limit_has_to_be_real() -> None:
    told = statuses(check_method(METHODS["grad_cam_pp"], cases=8))
    assert {name for name, status in told.items() if status == "failed"} == LIMITS["grad_cam_pp"]
    real = check_method(METHODS["grad_cam_pp"], cases=8, limits=LIMITS["grad_cam_pp"])
    assert real.ok
    [check] = [check for check in real.checks if check.name == "target_scaled"]
    assert check.detail.startswith("a stated limit, and real: maps differ by up to")
    only_said = check_method(grad_cam, cases=FEW, limits=["batch"])
    assert statuses(only_said)["batch"] == "skipped"
    assert only_said.ok


def nan_map(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    return plain(capture, layer) * math.nan


def changes_its_size(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
    found = plain(capture, layer)
    return found[:, len(found) :]


@pytest.mark.parametrize("method", [is_flat, nan_map, breaks, changes_its_size])
def test_a_limit_excuses_no_map_that_cannot_be_compared(method: Gives) -> None:
    limits = ["batch", "translated"]
    report = check_method(method, cases=FEW, limits=limits)
    assert "batch" in failures(report)
    if method is not changes_its_size:
        assert "translated" in failures(report)


def test_unknown_limits_methods_and_too_few_cases() -> None:
    with pytest.raises(UnknownNameError, match="target_scaled"):
        check_method("grad_cam", limits=["target_scale"])
    with pytest.raises(UnknownNameError, match="grad_cam"):
        check_method("grad_kam")
    with pytest.raises(SegproofError, match="0 cases"):
        check_method("grad_cam", cases=0)


def test_memory_that_grows_is_seen() -> None:
    kept: list[Tensor] = []

    def hoards(capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
        kept.append(torch.ones(2_500_000))  # 10 MB: more than memory that others gave back
        return plain(capture, layer)

    report = check_memory(hoards, maps=40)
    assert failures(report) == {"memory"}
    check_memory(grad_cam, maps=40).raise_for_failures()


# --- measures with a fault ------------------------------------------------------------------------
def mean_over_region(p: Tensor, bound: BoundTarget) -> Tensor:
    inside = bound.region.double()
    return (p[:, bound.class_index].double() * inside).sum((1, 2)) / inside.sum((1, 2))


def measure_averages(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    found = mean_over_region(p, bound)
    return found.mean().expand_as(found)


def measure_reads_everything(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    return p[:, bound.class_index].double().mean((1, 2)) + 0 * mean_over_region(p, bound)


def measure_is_upside_down(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    return 1 - mean_over_region(p, bound)


def measure_leaves_its_range(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    return 1.5 * mean_over_region(p, bound)


def measure_is_single(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    return mean_over_region(p, bound).float()


def measure_hides_the_undefined(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    return mean_over_region(p, bound).nan_to_num(1.0)


def measure_is_nan_where_nothing_is_left(
    p: Tensor, bound: BoundTarget, truth: Tensor | None
) -> Tensor:
    found = mean_over_region(p, bound)
    return torch.where(found > 0.01, found, math.nan)


def measure_sorts_in_place(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    found = mean_over_region(p, bound)
    p[:, 0] = 0.5
    return found


def measure_draws(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    found = mean_over_region(p, bound)
    return found * (1 - 1e-6 * torch.rand(len(found)).double())


def measure_is_blind(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    return torch.full_like(mean_over_region(p, bound), 0.5)


@pytest.mark.parametrize(
    ("measure", "check"),
    [
        (measure_averages, "batch"),
        (measure_reads_everything, "outside"),
        (measure_is_upside_down, "direction"),
        (measure_leaves_its_range, "range"),
        (measure_is_single, "shape"),
        (measure_hides_the_undefined, "undefined"),
        (measure_is_nan_where_nothing_is_left, "undefined"),
        (measure_sorts_in_place, "untouched"),
        (measure_draws, "repeat"),
        (measure_is_blind, "range"),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_faulty_measures_are_caught(measure: Any, check: str) -> None:
    report = check_measure(measure, low=0.0, high=1.0, better="higher")
    assert check in failures(report)


def test_a_measure_without_a_fault_passes() -> None:
    report = check_measure(
        lambda p, bound, truth: mean_over_region(p, bound), low=0.0, high=1.0, better="higher"
    )
    report.raise_for_failures()


def test_an_own_measure_states_its_range() -> None:
    with pytest.raises(SegproofError, match="low, high and better"):
        check_measure(measures.confidence, low=0, high=1)
    with pytest.raises(UnknownNameError, match="confidence"):
        check_measure("confidance")
    with pytest.raises(UnknownNameError, match="nothing_kept"):
        check_measure("kept", undefined=["nothing kept"])


# --- fills with a fault ---------------------------------------------------------------------------
def fill_black(images: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep[:, None], images, 0.0)


def fill_multiplies(images: Tensor, keep: Tensor) -> Tensor:
    """0 times NaN is NaN."""
    return images * keep[:, None]


def fill_with_the_mean_of_all(images: Tensor, keep: Tensor) -> Tensor:
    """The mean tells what was removed."""
    return torch.where(keep[:, None], images, images.mean(dim=(2, 3), keepdim=True))


def fill_with_the_mean_of_the_batch(images: Tensor, keep: Tensor) -> Tensor:
    kept = torch.where(keep[:, None], images, 0.0)
    return torch.where(keep[:, None], images, kept.mean())


def fill_rounds(images: Tensor, keep: Tensor) -> Tensor:
    return (fill_black(images, keep) * 255).round() / 255


def fill_blurs_the_edge(images: Tensor, keep: Tensor) -> Tensor:
    soft = nn.functional.avg_pool2d(keep[:, None].float(), 3, 1, 1)
    return torch.where(keep[:, None], images * soft, 0.0)


def fill_draws(images: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep[:, None], images, torch.rand_like(images))


def fill_leaves_the_range(images: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep[:, None], images, -1.0)


def fill_divides(images: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep[:, None], images, math.nan)


def fill_writes(images: Tensor, keep: Tensor) -> Tensor:
    images[~keep[:, None].expand_as(images)] = 0.0
    return images


@pytest.mark.parametrize(
    ("fill", "check"),
    [
        (fill_multiplies, "leak"),
        (fill_with_the_mean_of_all, "leak"),
        (fill_with_the_mean_of_the_batch, "batch"),
        (fill_rounds, "kept"),
        (fill_rounds, "everything"),
        (fill_blurs_the_edge, "kept"),
        (fill_draws, "repeat"),
        (fill_draws, "untouched"),
        (fill_leaves_the_range, "units"),
        (fill_divides, "units"),
        (fill_writes, "untouched"),
        (lambda images, keep: images, "kept"),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_faulty_fills_are_caught(fill: Any, check: str) -> None:
    assert check in failures(check_fill(fill, cases=FEW))


def test_a_fill_without_a_fault_passes_also_for_a_tile_of_its_own() -> None:
    check_fill(fill_black).raise_for_failures()
    tile = 1000 * torch.rand(5, 20, 12)
    check_fill(fill_black, image=tile, high=1000).raise_for_failures()
    assert failures(check_fill(fill_black, image=tile + 1)) == {"units"}
    with pytest.raises(UnknownNameError, match="black"):
        check_fill("blak")


# --- networks with a fault ------------------------------------------------------------------------
class Around(nn.Module):
    """A toy network whose logits are changed on the way out."""

    def __init__(self, change: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.change, self.runs = toy_model(3).net.float(), change, 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.runs += 1
        return self.change(self, self.net(images))


def counts_runs(net: Any, z: Tensor) -> Tensor:
    return z + 1e-3 * float(net.runs)


def remembers(net: Any, z: Tensor) -> Tensor:
    net.seen += z.detach().mean()
    return torch.add(z, net.seen)


def drops_out(net: Any, z: Tensor) -> Tensor:
    return nn.functional.dropout(z, 0.2, training=True)


def normalises_over_the_batch(net: Any, z: Tensor) -> Tensor:
    return z - z.mean(dim=(0, 2, 3), keepdim=True)


def overflows(net: Any, z: Tensor) -> Tensor:
    return torch.where(z > z.amax() - 1e-6, math.nan, z)


def starts_training(net: Any, z: Tensor) -> Tensor:
    net.net.decoder.blocks[0].train()
    return z


def ends_small(net: Any, z: Tensor) -> Tensor:
    return z.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (counts_runs, "repeat"),
        (remembers, "repeat"),
        (remembers, "untouched"),
        (drops_out, "repeat"),
        (normalises_over_the_batch, "batch"),
        (overflows, "finite"),
        (starts_training, "untouched"),
        (ends_small, "forward"),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_faulty_networks_are_caught(change: Any, check: str) -> None:
    model = SegmentationModel(Around(change), classes=["roof"]).eval()
    report = check_model(model, layers=["net.decoder.blocks.0"])
    assert check in failures(report)
    for done in report.checks:
        assert done.detail


def test_batch_statistics_in_use_are_caught() -> None:
    net = ToyNet()
    net.decoder.blocks[0].norm = nn.BatchNorm2d(7, track_running_stats=False)
    assert "batch" in failures(check_model(SegmentationModel(net, classes=["roof"]).eval()))


def test_a_switch_of_its_own_is_caught() -> None:
    class Switched(ToyNet):
        def forward(self, images: Tensor) -> Tensor:
            found = super().forward(images)
            return found if self.calm else found + 1

        def train(self, mode: bool = True) -> Any:
            self.calm = not mode
            return super().train(mode)

    # a mode that is kept beside `training` is the network's own affair: eval() first
    model = SegmentationModel(Switched(), classes=["roof"]).eval()
    assert statuses(check_model(model))["mode"] == "passed"


def test_a_network_that_does_not_run_skips_the_rest() -> None:
    report = check_model(SegmentationModel(nn.Conv2d(4, 1, 1), classes=["roof", "road"]))
    assert failures(report) == {"forward"}
    assert set(statuses(report).values()) == {"failed", "skipped"}
    [first, *others] = report.checks
    assert "expected logits [N, 2, h, w]" in first.detail
    assert {check.detail for check in others} == {"the check 'forward' before it failed"}


def test_layers_that_do_not_exist_are_named() -> None:
    report = check_model(toy_model(), layers=["decoder:7"])
    assert failures(report) == {"layers"}
    assert "decoder:2" in report.failed[0].detail


def test_a_class_that_is_not_in_the_picture_is_said() -> None:
    model = toy_model(classes=("roof", "road"), activation="sigmoid").float()
    bias = dict(model.net.named_parameters())["segmentation_head.bias"]
    nn.init.constant_(bias, -1e4)
    report = check_model(model)
    [check] = [check for check in report.checks if check.name == "map at decoder:-1"]
    assert check.status == "skipped"
    assert "nowhere predicted" in check.detail
    assert report.ok


def test_a_network_in_use_is_left_as_it_was() -> None:
    model = toy_model(3)
    testing.unsettle(model)
    image = testing.toy_images(3)[0]
    before = facts(model, image)
    check_model(model, image).raise_for_failures()
    assert facts(model, image) == before


def test_checks_leave_the_callers_random_states() -> None:
    before = facts(nn.Identity())
    check_method("score_cam", cases=2)
    check_measure("iou", cases=2)
    check_fill("noise", cases=2)
    toy_model(2)
    assert facts(nn.Identity()) == before


# --- reports --------------------------------------------------------------------------------------
def test_a_report_reads_line_by_line() -> None:
    report = Report(
        (Check("a", "passed", "fine"), Check("b", "failed", "by 0.3"), Check("c", "skipped"))
    )
    assert str(report) == "passed  a: fine\nfailed  b: by 0.3\nskipped c: "
    assert not report.ok
    assert report.failed == (report.checks[1],)
    with pytest.raises(AssertionError, match=r"1 of 3 failed\nb: by 0\.3"):
        report.raise_for_failures()
    good = Report(report.checks[::2])
    assert good.ok
    good.raise_for_failures()
    assert dataclasses.is_dataclass(Check)


def test_cases_depend_on_the_seed() -> None:
    first, second = (
        [check.detail for check in check_method("grad_cam", cases=2, seed=seed).checks]
        for seed in (0, 1)
    )
    assert first != second
    assert first == [check.detail for check in check_method("grad_cam", cases=2).checks]


def test_public_names_exist_and_are_documented() -> None:
    assert len(set(testing.__all__)) == len(testing.__all__)
    for name in testing.__all__:
        value = getattr(testing, name)
        if callable(value):
            assert value.__doc__, name
    assert all(layer in dict(toy_model().net.named_modules()) for layer in LAYERS)
