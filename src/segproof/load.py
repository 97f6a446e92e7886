"""Networks from files: folders of smp and Hugging Face, weights for torchvision, own factories."""

from __future__ import annotations

import importlib
import json
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import safetensors
import segmentation_models_pytorch as smp
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

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
SCHEMES: Final = ("smp:DIR", "torchvision:NAME[:WEIGHTS]", "hf:DIR", "python:MODULE:FACTORY")
IMAGENET: Final = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


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
    transformers writes; `torchvision:NAME:WEIGHTS.safetensors` is a state dict. `python:MODULE:
    FACTORY` runs a function that returns the network, with `allow_code` only. Classes, activation,
    mean and std come from the folder (`segproof.json`); arguments win. Nothing is downloaded,
    nothing is unpickled.

    Raises:
        ModelError: a missing or damaged file, weights that do not fit, code that is not allowed.
        UnknownNameError: an unknown scheme or architecture.
    """
    scheme, _, rest = spec.partition(":")
    if scheme not in ("smp", "torchvision", "hf", "python") or not rest:
        raise UnknownNameError.of("model scheme", spec, SCHEMES)
    settings: dict[str, Any]
    if scheme == "smp":
        net, settings = _load_smp(Path(rest))
    elif scheme == "torchvision":
        net, settings = _load_torchvision(rest, classes)
    elif scheme == "hf":
        net, settings = _load_hf(Path(rest))
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
    if scheme in ("smp", "torchvision"):
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
    encoder = config.get("encoder_name", "resnet34")
    # timm takes names such as hf-hub:OWNER/NAME for places to download from
    if not isinstance(encoder, str) or not re.fullmatch(r"[\w.-]+", encoder):
        raise ModelError(
            f"encoder_name {encoder!r} in {folder / 'config.json'}",
            "the plain name of an encoder",
            "write the name without a place to load it from",
        )
    if config.get("activation") is not None:
        raise ModelError(
            f"activation {config['activation']!r} built into the network",
            "logits",
            "save it with activation=None",
        )
    try:
        net = ARCHITECTURES[name](**config)
        net.load_state_dict(load_file(weights))
    except (
        *(TypeError, KeyError, ValueError, RuntimeError, AttributeError, IndexError),
        *(AssertionError, safetensors.SafetensorError),
    ) as error:
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
