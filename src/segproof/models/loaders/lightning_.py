"""Loads networks of smp from checkpoints of Lightning: TorchGeo's tasks, own modules."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from torch import nn

from segproof.errors import ModelError, UnknownNameError, canonical
from segproof.models.loaders.checkpoints import read_checkpoint
from segproof.models.loaders.files import (
    MAX_CHANNELS,
    UNFIT,
    check_encoder,
    class_names,
    read_settings,
    unfit as misfit,
)
from segproof.models.loaders.fit import State, blueprint, check_shapes, choose, put, tell_beside
from segproof.models.loaders.smp_folder import ARCHITECTURES, head_channels, renamed
from segproof.models.outputs import Activation

__all__ = ["load_lightning"]

# one hyper-parameter under the names that TorchGeo, its earlier versions and smp's examples use
HYPER: Final = {
    "architecture": ("model", "arch", "segmentation_model", "architecture", "model_name"),
    "encoder": ("backbone", "encoder_name", "encoder"),
    "bands": ("in_channels",),
    "channels": ("num_classes", "num_labels", "out_classes", "classes"),
    "names": ("class_names", "classes"),
}
TASKS: Final[dict[str, Activation]] = {
    "binary": "sigmoid",
    "multiclass": "softmax",
    "multilabel": "sigmoid",
}
WANTED: Final = "a checkpoint that Trainer.save_checkpoint wrote"


def load_lightning(path: Path, weights: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network and the settings in a checkpoint of Lightning.

    Raises:
        ModelError: a file that is none, hyper-parameters or weights that do not fit.
        UnknownNameError: an unknown architecture.
    """
    found = read_checkpoint(path, WANTED)
    state, hyper = found.get("state_dict"), found.get("hyper_parameters")
    if not isinstance(state, Mapping) or not isinstance(hyper, Mapping):
        raise ModelError(
            f"{path} with {', '.join(map(str, list(found)[:8])) or 'nothing'} in it",
            "state_dict and hyper_parameters, as Trainer.save_checkpoint writes them",
            "call save_hyperparameters() in the module and save again, or use save_model and smp:",
        )
    given = {
        what: [hyper[key] for key in keys if hyper.get(key) is not None]
        for what, keys in HYPER.items()
    }
    make, name = _maker(path, given, hyper, 1)
    plan = _plan(make, path, name)
    inside = _inside(found, plan, path, weights)
    numbers = renamed(plan, inside.weights)
    channels = head_channels(numbers)
    if channels > 1:  # a task may leave the number of classes to its weights
        make, name = _maker(path, given, hyper, channels)
        plan = _plan(make, path, name)
    expected = f"hyper_parameters and weights of one {name}"
    check_shapes(plan, numbers, path, expected)
    net = put(make(), numbers, path, expected)
    tell_beside(path, inside)
    settings = read_settings(path.parent)
    task = str(hyper.get("task") or "multiclass")
    if task not in TASKS and "activation" not in settings:
        raise ModelError(
            f"task {task!r} in the hyper_parameters of {path}",
            f"one of {', '.join(TASKS)}",
            'write {"activation": "softmax"} or "sigmoid" into segproof.json beside the file',
        )
    names = class_names(channels)
    for value in given["names"]:
        if isinstance(value, list | tuple) and len(value) == channels:
            names = [str(item) for item in value]
    return net, {"classes": names, "activation": TASKS.get(task), **settings}


def _plan(make: Callable[[], nn.Module], path: Path, name: str) -> nn.Module:
    try:
        return blueprint(make)
    except UNFIT as error:
        raise misfit(path, error, f"hyper_parameters of one smp {name}") from error


def _inside(found: Mapping[Any, Any], plan: nn.Module, path: Path, weights: str | None) -> State:
    """The weights of the network among those of the task that holds it."""
    own = plan.state_dict().keys()
    state = choose(found, own, path, weights)
    if not state.weights.keys() & own:
        shown = ", ".join(list(state.weights)[:3]) or "(none)"
        raise ModelError(
            f"weights {shown} in {path}",
            "names that begin with model. or net.",
            "keep the network in self.model, or save it with save_model for smp:DIR",
        )
    return state


def _maker(
    path: Path,
    given: Mapping[str, Sequence[Any]],
    hyper: Mapping[Any, Any],
    channels: int,
) -> tuple[Callable[[], nn.Module], str]:
    """What builds the network that hyper-parameters describe, with random weights; its name."""
    spelled = next(iter(given["architecture"]), None)
    if not isinstance(spelled, str):
        keys = ", ".join(map(str, list(hyper)[:8])) or "nothing"
        raise ModelError(
            f"hyper_parameters of {path} with {keys}, none of which names an architecture",
            f"one of {', '.join(HYPER['architecture'])} beside backbone or encoder_name",
            "build the network in Python and save it with save_model for smp:DIR",
        )
    numbers = {"in_channels": 3, "classes": channels, "num_filters": hyper.get("num_filters", 3)}
    for what, key in (("bands", "in_channels"), ("channels", "classes")):
        # class names may stand where a number does elsewhere
        counts = (value for value in given[what] if not isinstance(value, list | tuple))
        numbers[key] = next(counts, numbers[key])
    for key, number in numbers.items():
        if type(number) is not int or not 1 <= number <= MAX_CHANNELS:
            raise ModelError(
                f"{key} {number!r} in the hyper_parameters of {path}",
                f"a whole number, 1 to {MAX_CHANNELS}",
                "save the checkpoint again",
            )
    filters = numbers.pop("num_filters")
    name = canonical(spelled, [*ARCHITECTURES, "fcn"])
    if name == "fcn":
        return lambda: _fcn(numbers["in_channels"], numbers["classes"], filters), "fcn of TorchGeo"
    if name is None:
        known = [known.lower() for known in ARCHITECTURES]
        raise UnknownNameError.of("architecture", spelled, [*known, "deeplabv3+", "fcn"])
    kind = ARCHITECTURES[name]
    encoder = next(iter(given["encoder"]), "resnet34")
    check_encoder(encoder, path)
    ours = {"encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params"}
    # only what smp names: anything else would reach timm, which opens files and hubs
    options = {k: hyper[k] for k in inspect.signature(kind).parameters if k in hyper.keys() - ours}
    return (
        lambda: kind(encoder_name=encoder, encoder_weights=None, **numbers, **options),
        name,
    )


def _fcn(bands: int, channels: int, filters: int) -> nn.Module:
    """TorchGeo's FCN: five convolutions of 3 x 3 with leaky ReLUs, and a head of 1 x 1."""
    steps: list[nn.Module] = []
    for inside, outside in pairwise([bands, *[filters] * 5]):
        steps += [nn.Conv2d(inside, outside, 3, padding=1), nn.LeakyReLU(inplace=True)]
    parts = {"backbone": nn.Sequential(*steps), "last": nn.Conv2d(filters, channels, 1)}
    return nn.Sequential(OrderedDict(parts))
