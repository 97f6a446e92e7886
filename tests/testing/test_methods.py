"""Every built-in method passes, and each planted fault of a method is caught by its check."""

from __future__ import annotations

import functools
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from check_reports import failures, statuses
from segproof.errors import ModelError, SegproofError, UnknownNameError
from segproof.explain.cam import RawMap, grad_cam
from segproof.explain.forward_pass import Capture
from segproof.explain.masked import score_cam
from segproof.explain.methods import METHODS
from segproof.models.contract import SegmentationModel
from segproof.testing import (
    LIMITS,
    PROPERTIES,
    check_memory,
    check_method,
)
from segproof.testing.sideeffects import FACTS, facts

FEW = 4  # cases where one is enough to see it
# what is averaged over many masks or steps has its properties with few as well
FASTER: dict[str, dict[str, Any]] = {"rise": {"masks": 24}, "integrated_gradients": {"steps": 4}}
QUICK = {
    name: functools.partial(method, **FASTER[name]) if name in FASTER else method
    for name, method in METHODS.items()
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_pass(method: str) -> None:
    report = check_method(QUICK[method], cases=8, limits=LIMITS.get(method, ()))
    report.raise_for_failures()
    assert set(statuses(report).values()) == {"passed"}  # also: each stated limit is a real one
    assert set(PROPERTIES) < set(statuses(report))


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


# in a process of its own: memory that other tests gave back would be taken first
HOARDS = """
import torch
from segproof.explain import METHODS
from segproof.testing import check_memory

kept = []


def hoards(capture, layer, model):
    kept.append(torch.ones(2_500_000))  # 10 MB
    return METHODS["grad_cam"](capture, layer, model)


print([check.name for check in check_memory(hoards, maps=40).failed])
print([check.name for check in check_memory(METHODS["grad_cam"], maps=40).failed])
"""


def test_memory_that_grows_is_seen() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOARDS], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["['memory']", "[]"]
