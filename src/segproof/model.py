"""One contract for every segmentation network: image units in, logits at image size out."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import safetensors
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segproof.errors import ModelError, UnknownNameError

__all__ = [
    "Layer",
    "SegmentationModel",
    "demo_model_spec",
    "load_model",
    "probabilities",
    "save_model",
]

Activation = Literal["softmax", "sigmoid"]

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


@dataclass(frozen=True)
class Layer:
    """A place to explain at: module path, alias (`decoder:1` is coarsest), stride in pixels,
    channels.
    """

    path: str
    alias: str
    stride: int
    channels: int
    size: tuple[int, int]


def probabilities(logits: Tensor, activation: Activation) -> Tensor:
    """Class probabilities [N, K, H, W]: softmax over exclusive classes or sigmoid per channel."""
    return logits.softmax(dim=1) if activation == "softmax" else logits.sigmoid()


class SegmentationModel(nn.Module):
    """Any network behind one contract: images [N, B, H, W] in image units -> logits [N, K >= 2, H,
    W].

    Normalisation (`mean`, `std`, one value per band, in image units) happens inside, so pictures
    are perturbed in image units. A network with one channel z gets the logits [0, z]: their softmax
    is exactly (1 - sigmoid(z), sigmoid(z)), and its classes become ("background", name). `output`
    picks the logits out of whatever the network returns.

    Raises:
        ModelError: names, channels, mean or std that do not fit each other or the network's output.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        classes: Sequence[str],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        activation: Activation = "softmax",
        output: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if activation not in ("softmax", "sigmoid"):
            raise ModelError(f"activation {activation!r}", "softmax or sigmoid", "name one of them")
        self.channels = len(classes)
        if isinstance(classes, str) or not classes or len(set(classes)) != self.channels:
            raise ModelError(
                f"classes {classes!r}", "a list, one distinct name per channel", "list them"
            )
        if (mean is None) != (std is None) or len(mean or ()) != len(std or ()):
            raise ModelError(
                f"mean {mean}, std {std}", "both, one value per band", "give both or none"
            )
        if any(value <= 0 or not math.isfinite(value) for value in std or ()):
            raise ModelError(f"std {std}", "positive numbers", "give the training values")
        one_channel = self.channels == 1
        self.net = net
        self.classes: tuple[str, ...] = ("background", *classes) if one_channel else tuple(classes)
        self.activation: Activation = "softmax" if one_channel else activation
        self.output = output
        self.bands = len(mean) if mean is not None else None
        self.register_buffer("mean", torch.tensor(mean or [0.0]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or [1.0]).view(-1, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    @property
    def neutral(self) -> Tensor:
        """The image value [B or 1, 1, 1] that normalises to zero: the published "zero fill"."""
        return self.mean

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return next((p.device for p in self.net.parameters()), self.mean.device)

    def class_index(self, name: int | str) -> int:
        """The channel of a class given by name or index.

        Raises:
            UnknownNameError: no such class; near matches are named.
        """
        if isinstance(name, str) and name in self.classes:
            return self.classes.index(name)
        if not isinstance(name, str) and 0 <= name < len(self.classes):
            return int(name)
        if isinstance(name, str) and name.isdecimal() and int(name) < len(self.classes):
            return int(name)
        raise UnknownNameError.of("class", name, self.classes)

    def mask_value(self, class_index: int) -> int:
        """The value of a class in mask files: its index; one more if the classes lack a background.

        Multi-label networks (sigmoid) name no background channel, but masks keep 0 for it.
        """
        offset = self.activation == "sigmoid" and self.classes[0] != "background"
        return class_index + int(offset)

    @property
    def mask_values(self) -> int:
        """How many values, counted from 0, the masks of these classes can have."""
        return self.mask_value(len(self.classes) - 1) + 1

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K, H, W] of images [N, B, H, W] in image units."""
        if images.ndim != 4:
            raise ModelError(
                f"images of shape {tuple(images.shape)}", "[N, B, H, W]", "add the batch"
            )
        if self.bands not in (None, images.shape[1]):
            raise ModelError(
                f"images with {images.shape[1]} bands",
                f"{self.bands}, as the network was trained",
                "select or reorder the bands",
            )
        try:
            returned = self.net((images - self.mean) / self.std)
        except RuntimeError as error:
            explained = _shape_error(self.net, images, str(error))
            if explained is None:
                raise
            raise explained from error
        logits = self.output(returned) if self.output is not None else returned
        if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[1] != self.channels:
            raise ModelError(
                f"a network that returns {_structure(logits)}",
                f"logits [N, {self.channels}, h, w] for classes {', '.join(self.classes)}",
                "pass output=, a function that picks the logits, or the right class names",
            )
        if logits.shape[-2:] != images.shape[-2:]:
            logits = nn.functional.interpolate(
                logits, size=images.shape[-2:], mode="bilinear", align_corners=False
            )
        if self.channels == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits

    def layers(self, size: int | tuple[int, int] = 512, bands: int | None = None) -> list[Layer]:
        """The layers worth explaining, found by running the network once on zeros of `size` pixels.

        Encoder stages (`encoder:1` finest) come first, then decoder blocks (`decoder:1` coarsest to
        `decoder:-1` finest, also counted from the end).
        """
        height, width = (size, size) if isinstance(size, int) else size
        shapes = _trace(self, (1, bands or self.bands or _first_bands(self.net), height, width))
        found: list[Layer] = []
        for kind, paths in (("encoder", _encoder(shapes)), ("decoder", _decoder(shapes))):
            for place, path in enumerate(paths, start=1):
                shape = shapes[path]
                found.append(
                    Layer(
                        path=path,
                        alias=f"{kind}:{place}",
                        stride=round(height / shape[2]),
                        channels=shape[1],
                        size=(shape[2], shape[3]),
                    )
                )
        return found

    def resolve_layer(self, name: str, size: int | tuple[int, int] = 512) -> str:
        """The module path of a layer given by path or alias (`decoder:1`, `decoder:-1`,
        `encoder:2`).

        Raises:
            UnknownNameError: no such layer; near matches are named.
        """
        modules = dict(self.net.named_modules())
        if name in modules and name:
            return name
        known = self.layers(size)
        kind, _, place = name.partition(":")
        group = [layer for layer in known if layer.alias.startswith(f"{kind}:")]
        if group and place.removeprefix("-").isdecimal():
            index = int(place)
            if 0 < abs(index) <= len(group):
                return group[index - 1 if index > 0 else index].path
        names = [text for layer in known for text in (layer.alias, layer.path)]
        raise UnknownNameError.of("layer", name, names)

    def fingerprint(self) -> str:
        """SHA-256 of all weights and buffers, with their names: what a run is tied to."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        digest.update(repr((self.classes, self.activation)).encode())
        digest.update(torch.cat([self.mean.flatten(), self.std.flatten()]).cpu().numpy().tobytes())
        return digest.hexdigest()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every sub-module in eval mode inside; each one's own mode again afterwards, also after an
    error.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


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
) -> SegmentationModel:
    """Load a network: `smp:DIR`, the folder that smp's `save_pretrained` writes (safetensors only).

    Classes, activation, normalisation and bands come from `segproof.json` in that folder; arguments
    win over it. Nothing is downloaded and nothing is unpickled.

    Raises:
        ModelError: a missing or damaged file, weights that do not fit the architecture.
        UnknownNameError: an unknown scheme or architecture.
    """
    scheme, _, rest = spec.partition(":")
    if scheme != "smp" or not rest:
        raise UnknownNameError.of("model scheme", spec, ["smp:DIR"])
    folder = Path(rest)
    net, settings = _load_smp(folder)
    values = {"activation": "softmax", **settings}
    given = {"classes": classes, "activation": activation, "mean": mean, "std": std}
    values |= {key: value for key, value in given.items() if value is not None}
    if "classes" not in values:
        raise ModelError(
            f"no class names for {folder}",
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
    path = folder / "segproof.json"
    written = _read_json(path, "a JSON object") if path.is_file() else {}
    settings = {key: value for key, value in written.items() if value is not None}
    for key, kinds in (("classes", str), ("mean", int | float), ("std", int | float)):
        value = settings.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, kinds) for item in value):
            wanted = "names" if kinds is str else "numbers, one per band"
            raise ModelError(f"{key} {value!r} in {path}", f"a list of {wanted}", "write it again")
    return net, settings


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


def _shape_error(net: nn.Module, images: Tensor, message: str) -> ModelError | None:
    """What a network's own RuntimeError says about the images' sides or bands, if it does."""
    if "to have" in message and "channels" in message:
        return ModelError(
            f"images with {images.shape[1]} bands ({message[:200]})",
            "the bands that the network was trained with",
            "select or reorder the bands, or look at mean and std",
        )
    stride = int(getattr(getattr(net, "encoder", None), "output_stride", 32))
    height, width = images.shape[-2:]
    bottom, right = -height % stride, -width % stride
    if not bottom and not right:
        return None
    if "divisible" not in message and "Sizes of tensors must match" not in message:
        return None
    return ModelError(
        f"images of {height} x {width} pixels",
        f"sides that {stride}, the network's stride, divides",
        f"pad by {bottom} px at the bottom and {right} px at the right, or cut such tiles",
    )


def _first_bands(net: nn.Module) -> int:
    """Bands that the first convolution takes; 3 where there is none."""
    convolutions = (module for module in net.modules() if isinstance(module, nn.Conv2d))
    return next((module.in_channels for module in convolutions), 3)


def _structure(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_structure(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_structure(item) for item in value) + ")"
    return f"a {type(value).__name__}"


def _trace(
    model: SegmentationModel, shape: tuple[int, int, int, int]
) -> dict[str, tuple[int, ...]]:
    """Output shapes [N, K, h, w] of all modules that return one picture-like tensor, in running
    order.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def remember(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, result: Any) -> None:
            if isinstance(result, Tensor) and result.ndim == 4:
                shapes.pop(path, None)
                shapes[path] = tuple(result.shape)

        return hook

    handles = [
        module.register_forward_hook(remember(path))
        for path, module in model.net.named_modules()
        if path
    ]
    try:
        with evaluating(model), torch.inference_mode():
            model(torch.zeros(shape, device=model.device))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _decoder(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Decoder blocks in running order: children of the last container named `blocks`, else
    `decoder`.
    """
    blocks = [
        path for path in shapes if path.startswith("decoder.blocks.") and path.count(".") == 2
    ]
    if blocks:
        return blocks
    return [path for path in shapes if path.startswith("decoder.") and path.count(".") == 1]


def _encoder(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """For each resolution the last and outermost encoder module that ran at it, finest first."""
    last: dict[int, str] = {}
    for path, shape in shapes.items():
        # 1 x 1 outputs are gates of squeeze-and-excitation, not maps
        if path.startswith("encoder.") and shape[2:] != (1, 1):
            best = last.get(shape[2])
            if best is None or path.count(".") <= best.count("."):
                last[shape[2]] = path
    return [last[height] for height in sorted(last, reverse=True)]
