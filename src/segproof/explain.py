"""From a picture to explanations: one capture, all asked methods and layers, heatmaps with a
status.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from segproof.cam import METHODS, PAPER_METHODS, Method, RawMap
from segproof.capture import Capture, capture
from segproof.errors import SegproofError, UnknownNameError
from segproof.model import SegmentationModel, probabilities
from segproof.perturb import Clean, background_of, binarise, make_fill, seeded
from segproof.target import Preset, Target

__all__ = ["Explanation", "explain", "explain_all", "fuse", "normalise"]

Status = Literal["ok", "all_zero", "constant", "non_finite", "no_target"]
FLAT: Final = 1e-6  # a map whose range is below this share of its maximum is one value in float32
DEFAULT_FILLS: Final[dict[Preset, str]] = {"strict": "background_texture", "paper": "neutral"}


@dataclass(frozen=True)
class Explanation:
    """One map of one picture. `raw` [h, w] is signed and unscaled; `size` is the picture's (H, W).

    `status`: ok | all_zero | constant | non_finite | no_target (an empty region: nothing to
    explain); any but ok has a heatmap of zeros. `value` is Y, `explained` the region R that it was
    read from, bool [H, W].
    """

    method: str
    layer: str
    target: Target
    raw: Tensor
    status: Status
    size: tuple[int, int]
    value: float
    valid: Tensor | None = None
    explained: Tensor | None = None
    effective_channels: float | None = None
    forwards: int = 0

    def heatmap(self, size: tuple[int, int] | None = None) -> Tensor:
        """S in [0, 1], float32 [H, W], at the picture's size or another one. Never NaN."""
        return normalise(self.raw, size or self.size, self.target.preset)[0]

    def region(
        self, *, threshold: float | None = None, area: float | None = None, seed: int = 0
    ) -> Tensor:
        """The highlighted region, bool [H, W]; empty where the status is not ok.

        Levels as in `perturb.binarise`.
        """
        if self.status != "ok":
            return torch.zeros(self.size, dtype=torch.bool, device=self.raw.device)
        valid = self.valid
        return binarise(self.heatmap(), threshold=threshold, area=area, valid=valid, seed=seed)


def normalise(
    raw: Tensor, size: tuple[int, int], preset: Preset = "strict"
) -> tuple[Tensor, Status]:
    """ReLU, bilinear resize of a raw map [h, w] to `size`, scaling to [0, 1]; and the map's status.

    `strict`: divided by its maximum. `paper`: (L - min) / (1e-7 + max of it) before and after
    resizing. Towards a smaller size, pixels are averaged.
    """
    resized, status = _resized(raw, size, preset)
    if status == "ok":
        resized = _min_max(resized) if preset == "paper" else resized / resized.max()
    return resized.float(), status


def _resized(raw: Tensor, size: tuple[int, int], preset: Preset) -> tuple[Tensor, Status]:
    """The positive part of a raw map at `size`, before the last scaling; zeros where it failed."""
    nothing = torch.zeros(size, device=raw.device)
    if not torch.isfinite(raw).all():
        return nothing, "non_finite"
    positive = raw.relu()
    high = positive.max()
    if high <= 0:
        return nothing, "all_zero"
    if high - positive.min() <= FLAT * high:
        return nothing, "constant"
    if preset == "paper":
        positive = _min_max(positive)
    # a map of tiny numbers must survive float32 products: scale first, the result is the same
    elif high < 1e-12 or high > 1e12:
        positive = positive / high
    layered = positive[None, None]
    if size[0] < raw.shape[0] or size[1] < raw.shape[1]:
        # on the way to a smaller size bilinear points could all miss a peak and leave 0 / 0
        less = (min(size[0], raw.shape[0]), min(size[1], raw.shape[1]))
        layered = adaptive_avg_pool2d(layered, less)
    resized = interpolate(layered, size=size, mode="bilinear", align_corners=False)
    return resized[0, 0], "ok"


def _min_max(values: Tensor) -> Tensor:
    shifted = values - values.min()
    return shifted / (1e-7 + shifted.max())


def explain(
    model: SegmentationModel,
    image: Tensor,
    *,
    method: str | Method = "grad_cam",
    layer: str = "decoder:-1",
    target: Target,
    truth: Tensor | None = None,
    valid: Tensor | None = None,
    fill: str | None = None,
    batch: int = 4,
    seed: int = 0,
) -> Explanation:
    """Explain one picture [B, H, W] by one method at one layer; see `explain_all`."""
    [explanation] = explain_all(
        model,
        image,
        methods=[method],
        layers=[layer],
        target=target,
        truth=truth,
        valid=valid,
        fill=fill,
        batch=batch,
        seed=seed,
    )
    return explanation


def explain_all(
    model: SegmentationModel,
    image: Tensor,
    *,
    methods: Sequence[str | Method],
    layers: Sequence[str],
    target: Target,
    truth: Tensor | None = None,
    valid: Tensor | None = None,
    fill: str | None = None,
    batch: int = 4,
    seed: int = 0,
) -> list[Explanation]:
    """Explain one picture [B, H, W] by all methods at all layers, from one forward and one
    backward.

    `truth` and `valid` are bool [H, W]. `fill` is what masked-input methods put in place of hidden
    pixels (strict: background_texture, paper: neutral). Order: layers outer, methods inner.

    Raises:
        UnknownNameError: a method, layer or class that does not exist.
        DataError: a truth region without truth, masks of another size.
        SegproofError: two methods or layers of one name.
    """
    size = (image.shape[-2], image.shape[-1])
    chosen = [resolve_method(method, target.preset) for method in methods]
    _check_distinct("methods", [name for name, _ in chosen])
    _check_distinct("layers", layers)
    paths = [model.resolve_layer(name, size) for name in layers]
    seen = capture(
        model,
        image[None],
        target,
        paths,
        None if truth is None else truth[None],
        valid=None if valid is None else valid[None],
        batch=batch,
    )
    if not bool(seen.bound.region.any()):
        return [
            Explanation(name, layer, target, torch.zeros(1, 1), "no_target", size, 0.0)
            for layer in layers
            for name, _ in chosen
        ]
    name = fill or DEFAULT_FILLS[target.preset]
    make = make_fill(name, clean_of(seen, model, truth, seed=(seed, name)))
    nothing = torch.zeros(1, *size, dtype=torch.bool, device=seen.images.device)
    seen = with_baseline(seen, make(seen.images, nothing))
    return explain_capture(seen, model, dict(chosen), dict(zip(layers, paths, strict=True)), target)


def explain_capture(
    seen: Capture,
    model: SegmentationModel,
    methods: dict[str, Method],
    layers: dict[str, str],
    target: Target,
) -> list[Explanation]:
    """All maps of one captured picture; `layers` maps the names to show to module paths."""
    value = float(seen.bound.score(seen.logits)[0])
    size = (seen.images.shape[-2], seen.images.shape[-1])
    found = []
    for layer, path in layers.items():
        for name, method in methods.items():
            result = method(seen, path, model)
            made = result if isinstance(result, RawMap) else RawMap(result)
            raw = _checked(made.values, name)[0].detach()
            channels = made.effective_channels
            found.append(
                Explanation(
                    method=name,
                    layer=layer,
                    target=target,
                    raw=raw,
                    status=normalise(raw, size, target.preset)[1],
                    size=size,
                    value=value,
                    valid=seen.bound.valid[0],
                    explained=seen.bound.region[0],
                    effective_channels=None if channels is None else float(channels[0]),
                    forwards=made.forwards,
                )
            )
    return found


def fuse(
    explanations: Sequence[Explanation], how: Literal["mean", "max", "product"] = "mean"
) -> Explanation:
    """One explanation from those of several layers: maps joined pixel by pixel, then scaled again.

    `strict` joins the heatmaps; `paper` the maps as they are before the last min-max, as published.

    Raises:
        SegproofError: nothing to fuse, or maps of different pictures' sizes.
        UnknownNameError: an unknown way to fuse.
    """
    ways = {
        "mean": lambda maps: maps.mean(dim=0),
        "max": lambda maps: maps.amax(dim=0),
        "product": lambda maps: maps.prod(dim=0),
    }
    if how not in ways:
        raise UnknownNameError.of("fusion", how, ways)
    if len({item.size for item in explanations}) != 1:
        raise SegproofError(
            f"{len(explanations)} maps of different sizes", "maps of one picture", "choose them"
        )
    first = explanations[0]
    preset = first.target.preset
    if preset == "paper":
        parts = [_resized(item.raw, item.size, preset)[0] for item in explanations]
    else:
        parts = [item.heatmap() for item in explanations]
    raw = ways[how](torch.stack(parts))
    return Explanation(
        method=first.method,
        layer=f"{how}({'+'.join(item.layer for item in explanations)})",
        target=first.target,
        raw=raw,
        status=normalise(raw, first.size, preset)[1],
        size=first.size,
        value=first.value,
        valid=first.valid,
        explained=first.explained,
    )


def resolve_method(method: str | Method, preset: Preset) -> tuple[str, Method]:
    """The name and the function of a method given by name, or any callable of the same form."""
    if not isinstance(method, str):
        named = method.func if isinstance(method, functools.partial) else method
        return getattr(named, "__name__", type(named).__name__), method
    known = PAPER_METHODS if preset == "paper" else METHODS
    if method not in known:
        raise UnknownNameError.of("method", method, known)
    return method, known[method]


def _check_distinct(kind: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SegproofError(
            f"{kind} of one name: {', '.join(twice)}", "each name once", "rename or leave one out"
        )


def _checked(values: object, name: str) -> Tensor:
    """What a method returned, if it is a map [N, h, w] of real numbers."""
    found = type(values).__name__
    if isinstance(values, Tensor):
        if values.ndim == 3 and values.is_floating_point():
            return values
        found = f"{values.dtype} {tuple(values.shape)}"
    raise SegproofError(
        f"method {name} returning {found}", "a map [N, h, w] of real numbers", "correct the method"
    )


def clean_of(
    seen: Capture, model: SegmentationModel, truth: Tensor | None, *, seed: tuple[object, ...]
) -> Clean:
    """What fills may look at, from a capture of one picture."""
    bound = seen.bound
    probability = probabilities(seen.logits, bound.activation)[0, bound.class_index]
    roofs = bound.prediction[0] | bound.region[0]
    if truth is not None:
        roofs = roofs | (truth.to(roofs.device) & bound.valid[0])
    return Clean(
        image=seen.images[0],
        neutral=model.neutral,
        background=background_of(roofs, probability, bound.valid[0]),
        valid=bound.valid[0],
        generator=seeded("fill", *seed),
    )


def with_baseline(seen: Capture, baseline: Tensor) -> Capture:
    """The same capture with b [N, B, H, W] for masked-input methods."""
    return replace(seen, baseline=baseline)
