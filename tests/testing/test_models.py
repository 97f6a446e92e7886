"""Networks pass their checks, and each planted fault of a network is caught by its check."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import segproof.testing as testing
from check_reports import failures, statuses
from segproof.models.contract import SegmentationModel
from segproof.models.loaders.load import demo_model_spec, load_model
from segproof.testing import (
    check_fill,
    check_measure,
    check_method,
    check_model,
)
from segproof.testing.sideeffects import facts
from segproof.testing.toys import ToyNet, toy_model

FEW = 4  # cases where one is enough to see it


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
