"""Networks from files: folders of smp and Hugging Face, weights for torchvision, checkpoints of
Lightning, own factories.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import safetensors
import segmentation_models_pytorch as smp
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from segproof.errors import ModelError, SegproofError, UnknownNameError
from segproof.model import Activation, SegmentationModel

__all__ = ["demo_model_spec", "load_model", "save_model"]

ARCHITECTURES: Final[dict[str, type[nn.Module]]] = {
    "Unet": smp.Unet,
    "UnetPlusPlus": smp.UnetPlusPlus,
    "MAnet": smp.MAnet,
    "Linknet": smp.Linknet,
    "FPN": smp.FPN,
    "PSPNet": smp.PSPNet,
    "PAN": smp.PAN,
    "DeepLabV3": smp.DeepLabV3,
    "DeepLabV3Plus": smp.DeepLabV3Plus,
    "UPerNet": smp.UPerNet,
    "Segformer": smp.Segformer,
    "DPT": smp.DPT,
}

TORCHVISION: Final = (
    "deeplabv3_resnet50",
    "deeplabv3_mobilenet_v3_large",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
)
HF: Final = (
    "SegformerForSemanticSegmentation",
    "UperNetForSemanticSegmentation",
    "MaskFormerForInstanceSegmentation",
    "Mask2FormerForUniversalSegmentation",
)
ENCODER_OPTIONS: Final = ("img_size", "dynamic_img_size", "drop_rate", "drop_path_rate")
SCHEMES: Final = (
    "smp:DIR",
    "torchvision:NAME[:WEIGHTS]",
    "hf:DIR",
    "lightning:FILE",
    "python:MODULE:FACTORY",
)
IMAGENET: Final = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

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
# what a task keeps beside its network: losses and counters
BESIDE: Final = re.compile(r"(criterion|loss\w*|(\w+_)?metrics?)\.")
# what a constructor of smp or timm raises, and load_state_dict after it
UNFIT: Final = (
    *(TypeError, KeyError, ValueError, RuntimeError, AttributeError, IndexError, AssertionError),
)
MAX_CHANNELS: Final = 4096
PLAIN: Final = """\
import torch
old = torch.load({path!r}, map_location="cpu", weights_only=False)
plain = {{k: v for k, v in old["hyper_parameters"].items() if type(v) in (str, int, float, list)}}
torch.save({{"state_dict": dict(old["state_dict"]), "hyper_parameters": plain}}, {new!r})"""
MAX_CHECKPOINT: Final = 4 << 30  # bytes once unpacked: optimizers keep twice the weights as well


def demo_model_spec() -> str:
    """The specification of the small network that the package ships, for `load_model`."""
    return f"smp:{Path(__file__).parent / 'assets' / 'demo'}"


def load_model(
    spec: str,
    *,
    classes: Sequence[str] | None = None,
    activation: Activation | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device = "cpu",
    allow_code: bool = False,
) -> SegmentationModel:
    """Load a network from a folder, a file or a function of one's own.

    `smp:DIR` and `hf:DIR` are folders that `save_pretrained` of segmentation_models_pytorch and of
    transformers writes; `torchvision:NAME:WEIGHTS.safetensors` is a state dict; `lightning:FILE` is
    a checkpoint of TorchGeo's SemanticSegmentationTask or of a module with an smp network in
    `model` or `net`. `python:MODULE:FACTORY` runs a function that returns the network, with
    `allow_code` only. Classes, activation, mean and std come from `segproof.json` in the folder;
    arguments win. Nothing is downloaded, no file runs code.

    Raises:
        ModelError: a missing or damaged file, weights that do not fit, code that is not allowed.
        UnknownNameError: an unknown scheme or architecture.
    """
    scheme, _, rest = spec.partition(":")
    if scheme not in {known.partition(":")[0] for known in SCHEMES} or not rest:
        raise UnknownNameError.of("model scheme", spec, SCHEMES)
    settings: dict[str, Any]
    if scheme == "smp":
        net, settings = _load_smp(Path(rest))
    elif scheme == "torchvision":
        net, settings = _load_torchvision(rest, classes)
    elif scheme == "hf":
        net, settings = _load_hf(Path(rest))
    elif scheme == "lightning":
        net, settings = _load_lightning(Path(rest))
    else:
        net, settings = _run_factory(rest, allow_code=allow_code)
    values = {"activation": "softmax", **settings}
    given = {"classes": classes, "activation": activation, "mean": mean, "std": std}
    values |= {key: value for key, value in given.items() if value is not None}
    if isinstance(net, SegmentationModel):
        if any(value is not None for value in given.values()):
            raise ModelError(
                f"{spec} returning a SegmentationModel, and settings beside it",
                "one of both",
                "set classes, activation, mean and std inside the function",
            )
        return net.to(device).eval()
    if "classes" not in values:
        raise ModelError(
            f"no class names for {rest}",
            "segproof.json in that folder, or --classes",
            'write {"classes": [...], "activation": ..., "mean": [...], "std": [...]}',
        )
    model = SegmentationModel(
        net,
        classes=values["classes"],
        activation=values["activation"],
        mean=values.get("mean"),
        std=values.get("std"),
    )
    if scheme in ("smp", "torchvision", "lightning"):
        # convolutions on the CPU run 1.5 to 4 times faster in this layout; values are the same
        model.net.to(memory_format=torch.channels_last)
    return model.to(device).eval()


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


def _load_smp(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    config = _read_json(folder / "config.json", "the folder that save_pretrained writes")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ModelError(f"no {weights}", "weights as safetensors", "save with save_pretrained")
    name = str(config.pop("_model_class", "Unet"))
    if name not in ARCHITECTURES:
        raise UnknownNameError.of("architecture", name, ARCHITECTURES)
    config |= {"encoder_weights": None}  # never asks a hub
    # anything else goes on to timm, some of whose options open files and hubs
    known = {*inspect.signature(ARCHITECTURES[name]).parameters, *ENCODER_OPTIONS}
    for key in config.keys() - known:
        raise ModelError(
            f"settings in {folder / 'config.json'} that do not fit ({key})",
            f"those of smp's {name}, or {', '.join(ENCODER_OPTIONS)}",
            "leave it out and save again",
        )
    _check_encoder(config.get("encoder_name", "resnet34"), folder / "config.json")
    if config.get("activation") is not None:
        raise ModelError(
            f"activation {config['activation']!r} built into the network",
            "logits",
            "save it with activation=None",
        )
    try:
        net = ARCHITECTURES[name](**config)
        net.load_state_dict(load_file(weights))
    except (*UNFIT, safetensors.SafetensorError) as error:
        first = str(error).splitlines()[0][:300]
        raise ModelError(
            f"weights or settings in {folder} that do not fit ({first})",
            f"config.json and model.safetensors of one smp {name}",
            "save both again with save_pretrained",
        ) from error
    return net, _settings(folder)


def _load_torchvision(rest: str, classes: Sequence[str] | None) -> tuple[nn.Module, dict[str, Any]]:
    name, _, file = rest.partition(":")
    if name not in TORCHVISION:
        raise UnknownNameError.of("torchvision network", name, TORCHVISION)
    path = Path(file)
    weights: dict[str, Tensor] = {}
    settings: dict[str, Any] = dict(IMAGENET)
    if file:
        weights = _read_weights(path)
        settings |= _settings(path.parent)
        key = "low_classifier" if name.startswith("lraspp") else "4"
        head = weights.get(f"classifier.{key}.weight")
        channels = 0 if head is None else len(head)
        if not channels:
            found = ValueError(f"no classifier.{key}.weight in it")
            raise _unfit(path, found, f"the state dict of torchvision's {name}")
        plain = ["object"] if channels == 1 else [f"class_{i}" for i in range(channels)]
        settings = {"classes": plain, **settings}
    elif classes is None:
        raise ModelError(
            f"no class names for {name} without weights",
            "weights, or one name per channel",
            "give torchvision:NAME:WEIGHTS.safetensors, or classes",
        )
    else:
        channels = len(classes)
        warnings.warn(f"{name} without weights: its maps explain random numbers", stacklevel=3)
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": channels}
    if any(key.startswith("aux_classifier.") for key in weights):
        options["aux_loss"] = True
    try:
        net: nn.Module = getattr(torchvision.models.segmentation, name)(**options)
        if file:
            net.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError) as error:
        raise _unfit(path, error, f"the state dict of torchvision's {name}") from error
    return net, settings


def _load_hf(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    description = _read_json(folder / "config.json", "the folder that save_pretrained writes")
    names = description.get("architectures")
    name = names[0] if isinstance(names, list) and names else names
    if name not in HF:
        raise UnknownNameError.of("architecture", name, HF)
    if not any(folder.glob("model*.safetensors")):
        raise ModelError(
            f"no model.safetensors in {folder}", "weights as safetensors", "save_pretrained"
        )
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            "no transformers in this environment",
            "the extra hf for hf:DIR",
            'pip install "segproof[hf]"',
        ) from error
    kind = getattr(transformers, str(name))
    try:
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
        # the weights are in the folder; a config that asks for a backbone's own asks a hub
        config.use_pretrained_backbone = False
        net, report = kind.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (
        *(TypeError, KeyError, ValueError, RuntimeError, AttributeError, OSError, ImportError),
        safetensors.SafetensorError,
    ) as error:
        raise _unfit(folder, error, f"config.json and weights of one {name}") from error
    lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lacking:
        found = ValueError(f"without a value that fits: {', '.join(lacking[:3])}")
        raise _unfit(folder, found, f"config.json and weights of one {name}")
    labels = sorted((int(key), str(label)) for key, label in config.id2label.items())
    settings: dict[str, Any] = {"classes": [label for _, label in labels], **IMAGENET}
    path = folder / "preprocessor_config.json"
    if path.is_file():
        written = _read_json(path, "a JSON object")
        settings |= {"mean": written.get("image_mean"), "std": written.get("image_std")}
        if written.get("do_normalize") is False:
            settings |= {"mean": None, "std": None}
    return net, settings | _settings(folder)


def _load_lightning(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    found = _read_checkpoint(path)
    state, hyper = found.get("state_dict"), found.get("hyper_parameters")
    if not isinstance(state, Mapping) or not isinstance(hyper, Mapping):
        raise ModelError(
            f"{path} with {', '.join(map(str, list(found)[:8])) or 'nothing'} in it",
            "state_dict and hyper_parameters, as Trainer.save_checkpoint writes them",
            "call save_hyperparameters() in the module and save again, or use save_model and smp:",
        )
    weights = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    prefix = next((p for p in ("model.", "net.") if any(k.startswith(p) for k in weights)), None)
    if prefix is None:
        raise ModelError(
            f"weights {', '.join(list(weights)[:3]) or '(none)'} in {path}",
            "names that begin with model. or net.",
            "keep the network in self.model, or save it with save_model for smp:DIR",
        )
    inside = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    others = [k for k in weights if not k.startswith(prefix) and not BESIDE.match(k)]
    if others:
        warnings.warn(
            f"{path} also holds {', '.join(others[:5])}{', ...' * (len(others) > 5)}, which are not"
            " used; if they normalise the images, give mean and std",
            stacklevel=3,
        )
    given = {
        what: [hyper[key] for key in keys if hyper.get(key) is not None]
        for what, keys in HYPER.items()
    }
    channels = _head_channels(inside)
    net, name = _build(path, given, hyper, channels)
    try:
        net.load_state_dict(inside)
    except RuntimeError as error:
        raise _unfit(path, error, f"hyper_parameters and weights of one {name}") from error
    settings = _settings(path.parent)
    task = str(hyper.get("task") or "multiclass")
    if task not in TASKS and "activation" not in settings:
        raise ModelError(
            f"task {task!r} in the hyper_parameters of {path}",
            f"one of {', '.join(TASKS)}",
            'write {"activation": "softmax"} or "sigmoid" into segproof.json beside the file',
        )
    names = ["object"] if channels == 1 else [f"class_{i}" for i in range(channels)]
    for value in given["names"]:
        if isinstance(value, list | tuple) and len(value) == channels:
            names = [str(item) for item in value]
    return net, {"classes": names, "activation": TASKS.get(task), **settings}


def _build(
    path: Path,
    given: Mapping[str, Sequence[Any]],
    hyper: Mapping[Any, Any],
    channels: int,
) -> tuple[nn.Module, str]:
    """The network that hyper-parameters describe, with random weights, and its name."""
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
    known = {name.lower(): name for name in ARCHITECTURES}
    name = known.get(spelled.lower().replace("+", "plus"), spelled)
    filters = numbers.pop("num_filters")
    if name == "fcn":
        return _fcn(numbers["in_channels"], numbers["classes"], filters), "fcn of TorchGeo"
    if name not in ARCHITECTURES:
        raise UnknownNameError.of("architecture", spelled, [*known, "deeplabv3+", "fcn"])
    kind = ARCHITECTURES[name]
    encoder = next(iter(given["encoder"]), "resnet34")
    _check_encoder(encoder, path)
    ours = {"encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params"}
    # only what smp names: anything else would reach timm, which opens files and hubs
    options = {k: hyper[k] for k in inspect.signature(kind).parameters if k in hyper.keys() - ours}
    try:
        return kind(encoder_name=encoder, encoder_weights=None, **numbers, **options), name
    except UNFIT as error:
        raise _unfit(path, error, f"hyper_parameters of one smp {name}") from error


def _fcn(bands: int, channels: int, filters: int) -> nn.Module:
    """TorchGeo's FCN: five convolutions of 3 x 3 with leaky ReLUs, and a head of 1 x 1."""
    steps: list[nn.Module] = []
    for inside, outside in pairwise([bands, *[filters] * 5]):
        steps += [nn.Conv2d(inside, outside, 3, padding=1), nn.LeakyReLU(inplace=True)]
    parts = {"backbone": nn.Sequential(*steps), "last": nn.Conv2d(filters, channels, 1)}
    return nn.Sequential(OrderedDict(parts))


def _head_channels(weights: Mapping[str, Tensor]) -> int:
    """Channels of the last convolution: that of smp's head or of TorchGeo's FCN."""
    heads = [v for k, v in weights.items() if k.startswith(("segmentation_head.", "last."))]
    return next((len(value) for value in reversed(heads) if value.ndim == 4), 0)


def _read_checkpoint(path: Path) -> Mapping[Any, Any]:
    """What a checkpoint holds as data; nothing in it is imported, called or executed."""
    wanted = "a checkpoint that Trainer.save_checkpoint wrote (a zip file)"
    if not path.is_file() or not zipfile.is_zipfile(path):
        what = f"{path}, which is no zip file" if path.is_file() else f"no file {path}"
        raise ModelError(what, wanted, "save it with torch 1.6 or later, or check --model")
    try:
        with zipfile.ZipFile(path) as opened:
            entries = opened.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _unfit(path, error, wanted) from error
    size = sum(entry.file_size for entry in entries)
    if size > MAX_CHECKPOINT:
        raise ModelError(
            f"{path} of {size / 2**30:.1f} GiB unpacked",
            f"at most {MAX_CHECKPOINT / 2**30:.0f} GiB",
            "save with save_weights_only=True, which leaves out the optimizer",
        )
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise ModelError(f"{path}, a TorchScript program", wanted, "save the module's checkpoint")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _names_code(path) or _unfit(path, error, wanted) from error
    if not isinstance(found, Mapping):
        raise ModelError(f"a {type(found).__name__} in {path}", wanted, "save the checkpoint")
    return found


def _names_code(path: Path) -> ModelError | None:
    """The error that names what a checkpoint would import; None where it names nothing."""
    try:
        names = sorted(get_unsafe_globals_in_checkpoint(path))  # reads the names, imports none
    except Exception:
        return None
    if not names:
        return None
    plain = PLAIN.format(path=str(path), new=f"{path.stem}-plain.ckpt")
    return ModelError(
        f"{path}, which wants to import {', '.join(names[:6])}{', ...' * (len(names) > 6)}",
        "a checkpoint of numbers and text: nothing in a file is run",
        "save it again with plain hyper-parameters (weights=None); or, only if you trust the file,"
        f" keep its data alone, where its packages are installed:\n{plain}",
    )


def _check_encoder(name: object, path: Path) -> None:
    # timm takes names such as hf-hub:OWNER/NAME for places to download from
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise ModelError(
            f"encoder_name {name!r} in {path}",
            "the plain name of an encoder",
            "write the name without a place to load it from",
        )


def _run_factory(rest: str, *, allow_code: bool) -> tuple[nn.Module, dict[str, Any]]:
    name, _, factory = rest.partition(":")
    if not factory:
        raise ModelError(f"python:{rest}", "python:MODULE:FACTORY", "name the function too")
    if not allow_code:
        raise ModelError(
            f"python:{rest}, which runs code",
            "your word that this code may run",
            "pass --allow-code (allow_code=True) if you trust it",
        )
    sys.path.insert(0, str(Path.cwd()))  # a script of the console has no working folder in it
    try:
        net = getattr(importlib.import_module(name), factory)()
    except SegproofError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name}.{factory}() ending in {type(error).__name__}: {error}",
            "a function without arguments that returns the network",
            "run it in Python to see where it fails",
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(net, nn.Module):
        raise ModelError(
            f"{name}.{factory}() returning a {type(net).__name__}",
            "a torch.nn.Module",
            "return the network",
        )
    return net, {}


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors" or not path.is_file():
        raise ModelError(
            f"no weights {path}", "a file of safetensors", "save them with safetensors"
        )
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise _unfit(path, error, "a whole file of safetensors") from error


def _unfit(path: Path, error: Exception, expected: str) -> ModelError:
    first = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return ModelError(
        f"weights or settings in {path} that do not fit ({first})", expected, "save both again"
    )


def _settings(folder: Path) -> dict[str, Any]:
    """What `segproof.json` in a folder says; nothing where there is none."""
    path = folder / "segproof.json"
    written = _read_json(path, "a JSON object") if path.is_file() else {}
    settings = {key: value for key, value in written.items() if value is not None}
    for key, kinds in (("classes", str), ("mean", int | float), ("std", int | float)):
        value = settings.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, kinds) for item in value):
            wanted = "names" if kinds is str else "numbers, one per band"
            raise ModelError(f"{key} {value!r} in {path}", f"a list of {wanted}", "write it again")
    return settings


def _read_json(path: Path, expected: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"no readable {path}", expected, "check --model") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error})", expected, "write it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}", expected, "write it again")
    return value
