"""Loads networks of torchvision from a state dict."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torchvision
from torch import nn

from segproof.errors import ModelError, UnknownNameError, canonical
from segproof.models.loaders.checkpoints import read_weights
from segproof.models.loaders.files import (
    IMAGENET,
    MAX_CHANNELS,
    UNFIT,
    class_names,
    read_settings,
    unfit,
)
from segproof.models.loaders.fit import blueprint, check_shapes, choose, put, tell_beside

__all__ = ["TORCHVISION", "blueprint_names", "load_torchvision"]

TORCHVISION: Final = (
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "fcn_resnet50",
    "fcn_resnet101",
    "lraspp_mobilenet_v3_large",
)


def load_torchvision(
    rest: str, classes: Sequence[str] | None, weights: str | None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of `NAME[:FILE]`; without a file it has random weights, and a warning says so.

    Raises:
        ModelError: a file that does not fit, or no class names and no file.
        UnknownNameError: no such network.
    """
    spelled, _, file = rest.partition(":")
    name = canonical(spelled, TORCHVISION)
    if name is None:
        raise UnknownNameError.of("torchvision network", spelled, TORCHVISION)
    if not file:
        if classes is None:
            raise ModelError(
                f"no class names for {name} without weights",
                "weights, or one name per channel",
                "give torchvision:NAME:FILE, or classes",
            )
        if len(classes) > MAX_CHANNELS:
            raise ModelError(f"{len(classes)} classes", f"at most {MAX_CHANNELS}", "list fewer")
        warnings.warn(f"{name} without weights: its maps explain random numbers", stacklevel=4)
        return _maker(name, len(classes))(), dict(IMAGENET)
    path = Path(file)
    expected = f"the state dict of torchvision's {name}"
    fix = "check the name of the network, or save net.state_dict() again"
    state = choose(read_weights(path), blueprint_names(name), path, weights)
    key = "low_classifier" if name.startswith("lraspp") else "4"
    head = state.weights.get(f"classifier.{key}.weight")
    channels = 0 if head is None else len(head)
    if not 1 <= channels <= MAX_CHANNELS:
        found = f"no classifier.{key}.weight in it" if not channels else f"{channels} channels"
        raise unfit(path, found, expected, fix)
    auxiliary = any(name.startswith("aux_classifier.") for name in state.weights)
    make = _maker(name, channels, aux_loss=auxiliary)
    check_shapes(blueprint(make), state.weights, path, expected, fix)
    try:
        net = put(make(), state.weights, path, expected)
    except UNFIT as error:
        if isinstance(error, ModelError):
            raise
        raise unfit(path, error, expected, fix) from error
    tell_beside(path, state)
    return net, {**IMAGENET, "classes": class_names(channels), **read_settings(path.parent)}


def _maker(name: str, channels: int, *, aux_loss: bool = False) -> Callable[[], nn.Module]:
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": channels}
    if aux_loss:
        options["aux_loss"] = True

    def make() -> nn.Module:
        net: nn.Module = getattr(torchvision.models.segmentation, name)(**options)
        return net

    return make


def blueprint_names(name: str) -> list[str]:
    """The names of the weights of a network of torchvision."""
    return list(blueprint(_maker(name, 1)).state_dict())
