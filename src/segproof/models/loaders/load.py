"""Loads networks: folders, state dicts, checkpoints of Lightning, factories of one's own."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from segproof.data import input_reading
from segproof.errors import ModelError, UnknownNameError, canonical
from segproof.models.contract import SegmentationModel
from segproof.models.loaders.factories import run_factory
from segproof.models.loaders.guess import SCHEMES, spec_of
from segproof.models.loaders.hugging_face import load_hugging_face
from segproof.models.loaders.lightning_ import load_lightning
from segproof.models.loaders.modules import classes_of
from segproof.models.loaders.smp_folder import ARCHITECTURES, load_folder, load_state
from segproof.models.loaders.torchvision_ import load_torchvision
from segproof.models.outputs import Activation

__all__ = [
    "ARCHITECTURES",
    "as_model",
    "demo_model_spec",
    "load_model",
    "save_model",
]


def demo_model_spec() -> str:
    """The specification of the small network that the package ships, for `load_model`."""
    return f"smp:{Path(__file__).parents[2] / 'assets' / 'demo'}"


def load_model(
    spec: str | Path,
    *,
    classes: Sequence[str] | None = None,
    activation: Activation | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | None = None,
    device: str | torch.device = "cpu",
    allow_code: bool = False,
    **how: Any,
) -> SegmentationModel:
    """Load a network from a folder, a file or a function of one's own.

    `smp:DIR` and `hf:DIR` are folders of `save_pretrained`, `smp:ARCH:ENCODER:FILE` and
    `torchvision:NAME:FILE` state dicts, `lightning:FILE` a checkpoint; `python:MODULE:FACTORY` runs
    a function, with `allow_code` only. A folder with config.json and a .ckpt need no scheme.
    `weights` is "ema" or "plain" where a file holds averaged weights too. `segproof.json` beside
    the weights states classes, activation, mean and std; arguments win. `how` are further arguments
    of SegmentationModel (`output`, ...). Nothing is downloaded, no file runs code.

    Raises:
        ModelError: a missing or damaged file, weights that do not fit, code that is not allowed.
        UnknownNameError: an unknown scheme or architecture.
    """
    scheme, rest = _parts(spec)
    settings: dict[str, Any]
    if scheme in ("hf", "python") and weights is not None:
        raise ModelError(
            f"weights={weights!r} for {scheme}:{rest}",
            "a state dict or a checkpoint of Lightning, which may hold two sets of weights",
            "leave the option out",
        )
    if scheme == "smp":
        first = rest.partition(":")[0]
        alone = Path(rest).is_dir() or (rest.count(":") < 2 and not _architecture(first))
        if alone and weights is not None:
            raise ModelError(
                f"weights={weights!r} for smp:{rest}", "a file", "leave the option out"
            )
        net, settings = load_folder(Path(rest)) if alone else load_state(rest, weights)
    elif scheme == "torchvision":
        net, settings = load_torchvision(rest, classes, weights)
    elif scheme == "hf":
        net, settings = load_hugging_face(Path(rest))
        if type(net).__name__.startswith("OneFormer") and how.get("extra") is None:
            raise ModelError(
                f"OneFormer in {rest}, which reads a task beside the picture",
                'its token ids: extra={"task_inputs": ids of "the task is semantic" [1, 77]}',
                "tokenize the task with the processor of the folder, and pass extra=",
            )
    elif scheme == "lightning":
        net, settings = load_lightning(Path(rest), weights)
    else:
        net, settings = run_factory(rest, allow_code=allow_code)
    given = {"classes": classes, "activation": activation, "mean": mean, "std": std, **how}
    given = {key: value for key, value in given.items() if value is not None}
    if isinstance(net, SegmentationModel):
        if given:
            raise ModelError(
                f"{spec} returning a SegmentationModel, and settings beside it",
                "one of both",
                "set classes, activation, mean and std inside the function",
            )
        return net.to(device).eval()
    values = {**{key: value for key, value in settings.items() if value is not None}, **given}
    if "classes" not in values:
        raise ModelError(
            f"no class names for {rest}",
            "segproof.json in that folder, or --classes",
            'write {"classes": [...], "activation": ..., "mean": [...], "std": [...]}',
        )
    model = _contract(net, values, given)
    if scheme in ("smp", "torchvision", "lightning"):
        # convolutions on the CPU run 1.5 to 4 times faster in this layout; values are the same
        model.net.to(memory_format=torch.channels_last)
    return model.to(device).eval()


def as_model(
    thing: str | Path | nn.Module,
    *,
    classes: Sequence[str] | None = None,
    activation: Activation | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    allow_code: bool = False,
    **how: Any,
) -> SegmentationModel:
    """The model of a specification, a path, a network or a model, which is returned as it is.

    A network's class names are its own (`config.id2label`, `class_names`), or class_0, class_1, ...
    for the channels that it states; `classes` wins. `how` goes to `load_model` or the contract. A
    network is put into eval mode; it is neither copied nor moved.

    Raises:
        ModelError: a network that does not say its classes, or settings beside a model.
    """
    given = {"classes": classes, "activation": activation, "mean": mean, "std": std, **how}
    given = {key: value for key, value in given.items() if value is not None}
    if isinstance(thing, str | Path):
        return load_model(thing, allow_code=allow_code, **given)
    if isinstance(thing, SegmentationModel):
        if given:
            raise ModelError(
                f"a SegmentationModel and {', '.join(given)} beside it",
                "one of both",
                "set them where the SegmentationModel is made",
            )
        return thing
    if not isinstance(thing, nn.Module):
        raise ModelError(
            f"a {type(thing).__name__} as a network",
            "a torch.nn.Module, a SegmentationModel, a path, or a specification such as smp:DIR",
            "pass one of them",
        )
    names = classes if classes is not None else classes_of(thing)
    if names is None:
        raise ModelError(
            f"a {type(thing).__name__} that does not say its classes",
            "classes, one name per channel of its output",
            'give classes=["background", "roof"], or ["roof"] for one channel',
        )
    return _contract(thing, {**given, "classes": names}, given).eval()


def save_model(
    net: nn.Module,
    folder: str | Path,
    *,
    classes: Sequence[str],
    config: Mapping[str, Any],
    activation: Activation = "sigmoid",
    mean: Sequence[float],
    std: Sequence[float],
    bands: Sequence[str] = ("red", "green", "blue"),
) -> None:
    """Write `config.json` (`config` + architecture), `model.safetensors` and `segproof.json`.

    The layout is that of smp's `save_pretrained`; `load_model("smp:" + folder)` reads it back.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = {"_model_class": type(net).__name__, **config, "encoder_weights": None}
    settings = {
        "classes": list(classes),
        "activation": activation,
        "mean": list(mean),
        "std": list(std),
        "bands": list(bands),
        "input": "uint8 scaled to [0, 1]",
    }
    weights = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, weights)
    weights.chmod(0o644)  # the writer makes it private, the JSON files beside it are not
    (folder / "config.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
    (folder / "segproof.json").write_text(json.dumps(settings, indent=2) + "\n")


def _parts(spec: str | Path) -> tuple[str, str]:
    """The scheme of a specification and what follows it; a path says its scheme by what it holds.

    Raises:
        UnknownNameError: an unknown scheme, and no such path.
    """
    known = list(dict.fromkeys(name.partition(":")[0] for name in SCHEMES))
    if isinstance(spec, str):
        before, _, rest = spec.partition(":")
        scheme = canonical(before, known)
        if scheme is not None and rest:
            return scheme, rest
    if str(spec) and Path(spec).exists():
        scheme, _, rest = spec_of(Path(spec)).partition(":")
        return scheme, rest
    if isinstance(spec, Path):
        raise ModelError(f"no {spec}", "a folder or a file with a network", "check the path")
    raise UnknownNameError.of("model scheme", spec, SCHEMES, listed_by="segproof layers --help")


def _architecture(spelled: str) -> bool:
    return canonical(spelled, ARCHITECTURES) is not None


def _contract(
    net: nn.Module, values: Mapping[str, Any], given: Mapping[str, Any]
) -> SegmentationModel:
    """The network behind the contract, with those of `values` that the contract knows."""
    make: Callable[..., SegmentationModel] = SegmentationModel
    known = inspect.signature(SegmentationModel).parameters.keys() - {"net"}
    unknown = given.keys() - known
    if unknown:
        raise TypeError(f"SegmentationModel takes no {', '.join(sorted(unknown))}")
    passed = {key: values[key] for key in known & values.keys() if values[key] is not None}
    if "divide_by" not in given and "input" in values:
        passed["divide_by"] = input_reading(values["input"])
    return make(net, **{"activation": "softmax", **passed})
