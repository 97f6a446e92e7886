"""One contract for every segmentation network: image units in, logits at image size out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from segproof.axes import Evidence, named, plainly
from segproof.errors import ModelError, UnknownNameError
from segproof.kernels import EXACT, Kernels
from segproof.layers import Layer, find_layers

__all__ = [
    "Layer",
    "Query",
    "SegmentationModel",
    "all_finite",
    "describe",
    "evaluating",
    "probabilities",
    "queries",
    "query_model",
    "running",
]

Activation = Literal["softmax", "sigmoid"]

SIZES: Final = 64  # sizes of pictures whose layers are remembered at a time
QUERIES: Final = ("class_queries_logits", "masks_queries_logits")
LOGIT_NAMES: Final = ("logits", "out", "masks", "mask", "pred", "prediction", "output")


def all_finite(values: Tensor) -> bool:
    """Whether no number is NaN or infinite. Their sum tells in one pass unless it is not finite."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def probabilities(logits: Tensor, activation: Activation) -> Tensor:
    """Class probabilities [N, K, H, W]: softmax over exclusive classes or sigmoid per channel."""
    return logits.softmax(dim=1) if activation == "softmax" else logits.sigmoid()


class SegmentationModel(nn.Module):
    """Any network behind one contract: images [N, B, H, W] in image units -> logits [N, K >= 2, H,
    W].

    Normalisation (`mean`, `std`, one value per band, in image units) happens inside, so pictures
    are perturbed in image units. A network with one channel z gets the logits [0, z]: their softmax
    is exactly (1 - sigmoid(z), sigmoid(z)), and its classes become ("background", name). The logits
    are found in a tensor, mapping, dataclass or tuple; `output` picks them out of anything else.

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
        self.kernels = EXACT
        self.bands = len(mean) if mean is not None else None
        self._modules_seen: list[tuple[str, nn.Module]] = []
        self._layers_seen: dict[tuple[int, ...], list[Layer]] = {}
        self._evidence: dict[int, Evidence] = {}
        self.register_buffer("mean", torch.tensor(mean or [0.0]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or [1.0]).view(-1, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    @property
    def neutral(self) -> Tensor:
        """The image value [B or 1, 1, 1] that normalises to zero: the published "zero fill"."""
        return self.mean

    @property
    def input_bands(self) -> int:
        """Bands of the pictures: those of the normalisation, else of the first convolution."""
        return self.bands or _first_bands(self.net)

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

    def returned(self, images: Tensor) -> Any:
        """What the network itself returns for images [N, B, H, W] in image units.

        Raises:
            ModelError: bands or sides that it does not take.
        """
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
            return self.net((images - self.mean) / self.std)
        except (RuntimeError, AssertionError) as error:
            explained = self._shape_error(images, str(error))
            if explained is None:
                raise
            raise explained from error

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K, H, W] of images [N, B, H, W] in image units."""
        return self.logits_of(self.returned(images), (images.shape[-2], images.shape[-1]))

    def shown(self, images: Tensor) -> Tensor:
        """Logits [N, K, H, W] of perturbed pictures, under the kernels that `running` chose.

        Where faster ones give numbers that are not finite, the network's own are taken.
        """
        if self.kernels == EXACT:
            logits: Tensor = self(images)
            return logits
        size = (images.shape[-2], images.shape[-1])
        logits = self.logits_of(self.kernels.run(self.returned, images), size)
        return logits if all_finite(logits) else self(images)

    def logits_of(self, returned: Any, size: tuple[int, int]) -> Tensor:
        """Logits [N, K, H, W] in what the network returned for images of `size` (H, W).

        Raises:
            ModelError: none in it; the error names the structure and the `output=` that would fit.
        """
        logits = _pick(returned, self.channels) if self.output is None else self.output(returned)
        if not _is_logits(logits, self.channels):
            shown = returned if self.output is None else logits
            fitting = _lambda(returned, self.channels)
            raise ModelError(
                f"a network that returns {describe(shown)}",
                f"logits [N, {self.channels}, h, w] for classes {', '.join(self.classes)}",
                f"pass output={fitting}"
                if fitting
                else "pass output=, a function that picks the logits, or the right class names",
            )
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()  # sums over a region need more digits
        if tuple(logits.shape[-2:]) != size:
            logits = nn.functional.interpolate(
                logits, size=size, mode="bilinear", align_corners=False
            )
        if self.channels == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits

    def _shape_error(self, images: Tensor, message: str) -> ModelError | None:
        """What a network's own RuntimeError says about the images' sides or bands, if it does."""
        if "to have" in message and "channels" in message:
            return ModelError(
                f"images with {images.shape[1]} bands ({message[:200]})",
                "the bands that the network was trained with",
                "select or reorder the bands, or look at mean and std",
            )
        if "Output size is too small" in message or "doesn't match model" in message:
            return ModelError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels ({message[:200]})",
                "a size that the network takes",
                "give larger tiles, or tiles of the size that it was built for",
            )
        height, width = images.shape[-2:]
        bottom, right = self.padding((height, width))
        if not bottom and not right:
            return None
        if "divisible" not in message and "Sizes of tensors must match" not in message:
            return None
        return ModelError(
            f"images of {height} x {width} pixels",
            f"sides that {self.stride}, the network's stride, divides",
            f"pad by {bottom} px at the bottom and {right} px at the right (--pad, padded=True), or"
            " cut such tiles",
        )

    def layers(self, size: int | tuple[int, int] = 512, bands: int | None = None) -> list[Layer]:
        """The layers worth explaining, found by running the network once on zeros of `size` pixels;
        remembered for a size as long as its modules stay the same ones.

        Encoder stages (`encoder:1` finest) come first, then decoder blocks (`decoder:1` coarsest to
        `decoder:-1` finest, also counted from the end).
        """
        sides = (size, size) if isinstance(size, int) else size
        bands = bands or self.input_bands
        evidence, shape = self.evidence(sides, bands), (1, bands, *sides)
        if len(self._layers_seen) == SIZES:
            self._layers_seen = {}
        if shape not in self._layers_seen:
            with evaluating(self), torch.inference_mode(mode=False), torch.no_grad():
                seen = evidence.trace(self.net, sides, self._show(bands))
            self._layers_seen[shape] = find_layers(self.net, evidence, seen, self.channels, sides)
        return list(self._layers_seen[shape])

    def evidence(self, size: tuple[int, int], bands: int | None = None) -> Evidence:
        """How the results of the modules lie over pictures of `size`: the network is run on zeros
        of that size and of another one, once for as long as its modules stay the same ones.
        """
        bands, modules = bands or self.input_bands, list(self.net.named_modules())
        if modules != self._modules_seen:
            self._modules_seen, self._layers_seen, self._evidence = modules, {}, {}
        evidence = self._evidence.setdefault(bands, Evidence())
        # what a network keeps from a run in inference mode could enter no graph later
        with evaluating(self), torch.inference_mode(mode=False), torch.no_grad():
            evidence.gather(self.net, size, self.stride, self._show(bands))
        return evidence

    def _show(self, bands: int) -> Callable[[Tensor | tuple[int, int]], Any]:
        def show(what: Tensor | tuple[int, int]) -> Any:
            picture = torch.zeros(bands, *what) if isinstance(what, tuple) else what
            weights = (p for p in self.net.parameters() if p.is_floating_point())
            return self(picture.expand(bands, -1, -1)[None].to(next(weights, self.mean)))

        return show

    def resolve_layer(self, name: str, size: int | tuple[int, int] = 512) -> str:
        """The module path of a layer given by path or alias (`decoder:1`, `decoder:-1`,
        `encoder:2`, `bottleneck`: the last encoder stage).

        Raises:
            UnknownNameError: no such layer; near matches are named.
        """
        modules, plain = named(self.net), plainly(name)
        if name and (name in modules or plain in modules):
            return name if name in modules else plain
        known = self.layers(size)
        kind, _, place = ("encoder:-1" if name == "bottleneck" else name).partition(":")
        group = [layer for layer in known if layer.alias.startswith(f"{kind}:")]
        if group and place.removeprefix("-").isdecimal():
            index = int(place)
            if 0 < abs(index) <= len(group):
                return group[index - 1 if index > 0 else index].path
        names = [text for layer in known for text in (layer.alias, layer.path)]
        raise UnknownNameError.of("layer", name, [*names, "bottleneck"])

    @property
    def stride(self) -> int:
        """What the sides of a picture have to be multiples of, px, where the network says it; else
        32, which most of them take.
        """
        return int(getattr(getattr(self.net, "encoder", None), "output_stride", 32))

    def padding(self, size: tuple[int, int]) -> tuple[int, int]:
        """Pixels that a picture of (H, W) lacks below and to the right to be of whole strides."""
        return -size[0] % self.stride, -size[1] % self.stride

    def fingerprint(self) -> str:
        """SHA-256 of all weights and buffers, with their names: what a run is tied to."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        digest.update(repr((self.classes, self.activation)).encode())
        digest.update(torch.cat([self.mean.flatten(), self.std.flatten()]).cpu().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Query:
    """One query of a network such as Mask2Former: its likeliest class and where its mask is on.

    `chance` is the probability of the class, 0-1, `share` the part of the picture with mask >= 0.5.
    """

    index: int
    class_: str
    chance: float
    share: float


def queries(model: SegmentationModel, image: Tensor) -> list[Query]:
    """The queries of a network on one picture [B, H, W], the surest first; none in other networks.

    "No object" is no class here: a query that sees nothing has low chances for all of them.
    """
    with torch.inference_mode(), evaluating(model):
        found = _entries(model.returned(image[None].to(model.device)))
    if not set(QUERIES) <= set(found):
        return []
    chances, masks = (found[name][0] for name in QUERIES)
    best = chances.softmax(dim=-1)[..., :-1].max(dim=-1)
    shares = (masks >= 0).flatten(1).double().mean(dim=1)
    listed = [
        Query(index, model.classes[int(place)], float(chance), float(share))
        for index, (chance, place, share) in enumerate(
            zip(best.values, best.indices, shares, strict=True)
        )
    ]
    return sorted(listed, key=lambda query: -query.chance)


def query_model(model: SegmentationModel, index: int) -> SegmentationModel:
    """The same network with one query's mask as its only class, "query N": what one query sees.

    Its logits are those of the mask, so that every target, method and study works on it. Weights
    are shared.

    Raises:
        ModelError: while it runs, if the network has no such query.
    """

    def mask(returned: Any) -> Tensor:
        found = _entries(returned)
        count = found[QUERIES[1]].shape[1] if set(QUERIES) <= set(found) else 0
        if not 0 <= index < count:
            raise ModelError(
                f"query {index}",
                f"a number from 0 to {count - 1}" if count else "a network of queries",
                "list them with `segproof doctor`" if count else "explain a class of this network",
            )
        logits: Tensor = found[QUERIES[1]][:, index, None]
        return logits

    values = [
        None if model.bands is None else v.flatten().tolist() for v in (model.mean, model.std)
    ]
    made = SegmentationModel(
        model.net, classes=[f"query {index}"], mean=values[0], std=values[1], output=mask
    )
    made.training = model.training  # of the wrapper alone: the network keeps its modes
    return made.to(model.device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every sub-module in eval mode inside; each one's own mode again afterwards, also after an
    error.
    """
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def running(model: SegmentationModel, kernels: Kernels) -> Iterator[None]:
    """Perturbed pictures (`SegmentationModel.shown`) under other kernels inside; maps' captures and
    `forward` stay as they are.
    """
    before = model.kernels
    try:
        model.kernels = kernels
        yield
    finally:
        model.kernels = before


def _first_bands(net: nn.Module) -> int:
    """Bands that the first convolution takes; 3 where there is none."""
    convolutions = (module for module in net.modules() if isinstance(module, nn.Conv2d))
    return next((module.in_channels for module in convolutions), 3)


def _is_logits(value: object, channels: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] == channels


def _pick(returned: Any, channels: int) -> Any:
    """The logits in what a network returned, by name or as the only ones that fit; what was
    returned where neither finds them.

    Among the outputs of deep supervision it is the first of the largest resolution.
    """
    entries = _entries(returned)
    if set(QUERIES) <= set(entries):
        return _class_map(*(entries[name] for name in QUERIES))
    for name in LOGIT_NAMES:
        if name in entries:
            inner = _pick(entries[name], channels)
            return inner if _is_logits(inner, channels) else returned
    fitting = [value for value in entries.values() if _is_logits(value, channels)]
    if isinstance(returned, list | tuple) and fitting:
        return max(fitting, key=lambda value: value.shape[-1] * value.shape[-2])
    return fitting[0] if len(fitting) == 1 else returned


def _class_map(classes: Tensor, masks: Tensor) -> Tensor:
    """Logits [N, K, h, w] of a network of Q queries: the logarithm of s_k = sum_q p(k | q) m_q.

    `classes` [N, Q, K + 1] are logits, the last one for "no object", m = sigmoid(`masks` [N, Q, h,
    w]); softmax over the result is s_k / sum_j s_j.
    """
    chance = classes.softmax(dim=-1)[..., :-1]
    scores = torch.einsum("nqk,nqhw->nkhw", chance, masks.sigmoid())
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()


def _entries(value: Any) -> dict[Any, Any]:
    """What a mapping, a sequence or a dataclass holds, by key, place or field."""
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if isinstance(getattr(value, "logits", None), Tensor):
        return {"logits": value.logits}
    return {}


def _lambda(value: Any, channels: int, at: str = "result") -> str | None:
    """The source of an `output=` that takes the first entry with the right channels, if any."""
    if isinstance(value, Tensor):
        shape = value.shape
        if _is_logits(value, channels):
            return f"lambda result: {at}"
        if value.ndim == 4 and shape[3] == channels:
            return f"lambda result: {at}.permute(0, 3, 1, 2)"
        return f"lambda result: {at}[:, None]" if value.ndim == 3 and channels == 1 else None
    named = is_dataclass(value) or hasattr(value, "_fields")
    for key, item in _entries(value).items():
        found = _lambda(item, channels, f"{at}.{key}" if named else f"{at}[{key!r}]")
        if found is not None:
            return found
    return None


def describe(value: object) -> str:
    """What a network returned, in words: kinds, names and shapes."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return "(" + ", ".join(describe(item) for item in value) + ")"
    inside = ", ".join(f"{key}={describe(item)}" for key, item in _entries(value).items())
    return f"{type(value).__name__}({inside})" if inside else f"a {type(value).__name__}"
