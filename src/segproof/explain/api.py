"""Explains pictures: one capture for all methods and layers, heatmaps with a status."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, pad

from segproof.data import Reading, Sample, as_samples
from segproof.errors import DataError, SegproofError, UnknownNameError, canonical
from segproof.explain.cam import RawMap
from segproof.explain.forward_pass import Bindable, Capture, ForwardPass, observe
from segproof.explain.methods import (
    INPUT_LAYER,
    LAYERLESS,
    METHODS,
    PAPER_METHODS,
    MethodFunction,
    method_name,
    reads_baseline,
)
from segproof.explain.target import BoundTarget, FixedTarget, Preset, Target, objects
from segproof.models import SegmentationModel, all_finite, as_model, probabilities
from segproof.perturb import (
    DEFAULT_FILLS,
    FILLS,
    FillContext,
    FillFunction,
    background_of,
    binarise,
    make_fill,
    seeded,
)

__all__ = [
    "Explanation",
    "as_picture",
    "as_pictures",
    "as_target",
    "explain",
    "explain_all",
    "explain_objects",
    "fuse",
    "normalise",
]

Status = Literal["ok", "all_zero", "constant", "non_finite", "no_target"]
FLAT: Final = 1e-6  # a map whose range is below this share of its maximum is one value in float32


@dataclass(frozen=True)
class Explanation:
    """One map of one picture. `raw` [h, w] is signed and unscaled; `size` is the picture's (H, W).

    `status`: ok | all_zero | constant | non_finite | no_target (an empty region: nothing to
    explain); any but ok has a heatmap of zeros. `value` is Y, `explained` the region R that it was
    read from, bool [H, W]. `padding` is what the network saw below and to the right of the picture,
    px; `symmetries` how many flips and turns of it the raw map is the mean of.
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
    padding: tuple[int, int] = (0, 0)
    symmetries: int = 1

    def __repr__(self) -> str:
        (map_height, map_width), (height, width) = self.raw.shape[-2:], self.size
        return (
            f"Explanation({self.method} at {self.layer}, class {self.target.class_}, region"
            f" {self.target.region}, preset {self.target.preset})\n"
            f"  status {self.status}, value {self.value:.4g}, {self.forwards} forward passes\n"
            f"  map {map_height} x {map_width}, picture {height} x {width} px"
        )

    def heatmap(self, size: tuple[int, int] | None = None) -> Tensor:
        """S in [0, 1], float32 [H, W], at the picture's size or another one. Never NaN."""
        if self.padding == (0, 0):
            return normalise(self.raw, size or self.size, self.target.preset)[0]
        whole = (self.size[0] + self.padding[0], self.size[1] + self.padding[1])
        heat = normalise(self.raw, whole, self.target.preset)[0][: self.size[0], : self.size[1]]
        return normalise(heat, size or self.size, self.target.preset)[0]

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
    positive, status = _positive(raw)
    if status != "ok":
        return torch.zeros(size, device=raw.device), status
    high = positive.max()
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


def _positive(raw: Tensor) -> tuple[Tensor, Status]:
    """The positive part of a raw map [h, w], and whether it shows anything."""
    positive = raw.relu()
    if not all_finite(raw):
        return positive, "non_finite"
    low, high = positive.aminmax()
    if high <= 0:
        return positive, "all_zero"
    return positive, "constant" if high - low <= FLAT * high else "ok"


def _min_max(values: Tensor) -> Tensor:
    shifted = values - values.min()
    return shifted / (1e-7 + shifted.max())


def as_pictures(picture: Any, model: SegmentationModel) -> list[Sample]:
    """The one door for pictures: what a user has in hand as samples in image units, with `image`
    [B, H, W] and `valid` [H, W], and a `mask` where it brings one.

    A path, a PIL picture, an array H x W x B or B x H x W, a tensor [B, H, W] or [N, B, H, W], or a
    sample of TorchGeo or of `read_image`; bands and units are those of the network.

    Raises:
        DataError: bands, axes or units that do not fit the network; with what would.
    """
    if isinstance(picture, Tensor) and picture.is_floating_point() and picture.ndim in (3, 4):
        # a tensor stays on its device and in its format
        samples = [Sample(image=one) for one in (picture if picture.ndim == 4 else picture[None])]
    else:
        reading = Reading(wanted=model.input_bands, divide_by=model.divide_by)
        samples = as_samples(picture, reading=reading)
    for sample in samples:
        model.check_units(sample["image"])
    return samples


def as_picture(picture: Any, model: SegmentationModel) -> Sample:
    """`as_pictures` of exactly one picture."""
    samples = as_pictures(picture, model)
    if len(samples) != 1:
        raise DataError(
            f"{len(samples)} pictures",
            "one picture",
            "explain them with explain_all, or one by one",
        )
    return samples[0]


def as_target(target: Target | str | int) -> Target:
    """The one door for targets: a class by name or index means the model's own prediction of it."""
    return target if isinstance(target, Target) else Target(target)


def _opened(
    model: SegmentationModel,
    picture: Sample,
    target: Target,
    truth: Tensor | None,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The picture's tensor, and truth and valid pixels: those given, else those that it brings."""
    image = picture["image"]
    if truth is None and "mask" in picture:
        truth = picture["mask"] == model.mask_value(model.class_index(target.class_))
    if valid is None and "valid" in picture and not bool(picture["valid"].all()):
        valid = picture["valid"]
    return image, truth, valid


def explain(
    model: SegmentationModel | nn.Module | str | Path,
    image: Any,
    *,
    method: str | MethodFunction = "grad_cam",
    layer: str = "decoder:-1",
    target: Target | str | int,
    truth: Tensor | None = None,
    valid: Tensor | None = None,
    fill: str | FillFunction | None = None,
    batch: int = 4,
    seed: int = 0,
    smooth: bool = False,
    padded: bool = False,
) -> Explanation:
    """Explain one picture by one method at one layer; see `explain_all`."""
    opened = as_model(model)
    [explanation] = _explain_sample(
        opened,
        as_picture(image, opened),
        [method],
        [layer],
        as_target(target),
        truth,
        valid,
        fill=fill,
        batch=batch,
        seed=seed,
        smooth=smooth,
        padded=padded,
    )
    return explanation


def explain_all(
    model: SegmentationModel | nn.Module | str | Path,
    image: Any,
    *,
    methods: Sequence[str | MethodFunction],
    layers: Sequence[str],
    target: Target | str | int,
    truth: Tensor | None = None,
    valid: Tensor | None = None,
    fill: str | FillFunction | None = None,
    batch: int = 4,
    seed: int = 0,
    smooth: bool = False,
    padded: bool = False,
) -> list[Explanation]:
    """Explain a picture by all methods at all layers, from one forward and one backward.

    `model` is a SegmentationModel, a network, a path or a specification (see `as_model`), `image`
    what `as_pictures` takes (of several pictures all are explained, in their order), `target` a
    Target or the name of a class. `truth` and `valid` are bool [H, W]. `fill`, a name or a function
    (images, keep) -> images, is what masked-input methods put in place of hidden pixels (strict:
    background_texture, paper: neutral). `smooth` takes the mean of the raw maps over flips and
    turns (eight of a square picture, else four), each exactly undone. `padded` allows to go on
    below and to the right with the picture's last pixels, to a size that the network takes; these
    pixels count nowhere. Order: layers outer, methods inner; methods without a layer last, once.

    Raises:
        UnknownNameError: a method, layer or class that does not exist.
        DataError: a truth region without truth, masks of another size.
        SegproofError: two methods or layers of one name.
    """
    opened, goal = as_model(model), as_target(target)
    how: dict[str, Any] = {"fill": fill, "batch": batch, "seed": seed, "smooth": smooth}
    return [
        explanation
        for sample in as_pictures(image, opened)
        for explanation in _explain_sample(
            opened, sample, methods, layers, goal, truth, valid, padded=padded, **how
        )
    ]


def _explain_sample(
    model: SegmentationModel,
    sample: Sample,
    methods: Sequence[str | MethodFunction],
    layers: Sequence[str],
    target: Target,
    truth: Tensor | None,
    valid: Tensor | None,
    *,
    padded: bool,
    **how: Any,
) -> list[Explanation]:
    image, truth, valid = _opened(model, sample, target, truth, valid)
    picture = _Picture.of(model, image, methods, layers, target.preset, truth, valid, padded=padded)
    return picture.explain(target, last=True, **how)


def explain_objects(
    model: SegmentationModel | nn.Module | str | Path,
    image: Any,
    *,
    methods: Sequence[str | MethodFunction],
    layers: Sequence[str],
    target: Target | str | int,
    truth: Tensor | None = None,
    valid: Tensor | None = None,
    fill: str | FillFunction | None = None,
    batch: int = 4,
    seed: int = 0,
    min_area: int = 64,
    padded: bool = False,
) -> Iterator[list[Explanation]]:
    """Explain the objects of a picture one by one, the largest first: as `explain_all` does with
    the regions `object:1`, `object:2`, ..., from one forward for all.

    Objects are those of `target.region`, "prediction" or "truth"; parts of fewer than `min_area` px
    are left out.

    Raises:
        DataError: another region; else as `explain_all`.
    """
    opened, goal = as_model(model), as_target(target)
    if goal.region not in ("prediction", "truth"):
        raise DataError(
            f"objects of region {goal.region}", "region prediction or truth", "name one of them"
        )
    image, truth, valid = _opened(opened, as_picture(image, opened), goal, truth, valid)
    picture = _Picture.of(opened, image, methods, layers, goal.preset, truth, valid, padded=padded)
    source = "@truth" if goal.region == "truth" else ""
    sizes = objects(picture.bind(goal).region[0]).flatten().bincount()[1:].tolist()
    for number, size in enumerate(sizes, start=1):
        if size < min_area:
            return
        one = replace(goal, region=f"object:{number}{source}")
        yield picture.explain(one, fill=fill, batch=batch, seed=seed)


@dataclass(frozen=True)
class _Picture:
    """A picture that the network has seen once, with what is asked about it."""

    model: SegmentationModel
    seen: ForwardPass
    methods: dict[str, MethodFunction]
    layers: dict[str, str]
    truth: Tensor | None
    valid: Tensor | None
    padding: tuple[int, int]

    @classmethod
    def of(
        cls,
        model: SegmentationModel,
        image: Tensor,
        methods: Sequence[str | MethodFunction],
        layers: Sequence[str],
        preset: Preset,
        truth: Tensor | None,
        valid: Tensor | None,
        *,
        padded: bool,
    ) -> _Picture:
        chosen = [resolve_method(method, preset) for method in methods]
        _check_distinct("methods", [name for name, _ in chosen])
        _check_distinct("layers", layers)
        padding = model.padding((image.shape[-2], image.shape[-1])) if padded else (0, 0)
        if padding != (0, 0):
            size = (image.shape[-2], image.shape[-1])
            valid = torch.ones(size, dtype=torch.bool) if valid is None else valid
            image = pad_below(image, padding)
            valid = pad_below(valid, padding)
            truth = None if truth is None else pad_below(truth, padding)
        size = (image.shape[-2], image.shape[-1])
        if all(name in LAYERLESS for name, _ in chosen):
            layers = ()
        paths = {name: model.resolve_layer(name, size) for name in layers}
        return cls(
            model=model,
            seen=observe(model, image[None], list(paths.values())),
            methods=dict(chosen),
            layers=paths,
            truth=truth,
            valid=valid,
            padding=padding,
        )

    def bind(self, target: Bindable) -> BoundTarget:
        return self._read(target, last=False, gradients=False).bound

    def explain(
        self,
        target: Target,
        *,
        fill: str | FillFunction | None,
        batch: int,
        seed: int,
        smooth: bool = False,
        last: bool = False,
    ) -> list[Explanation]:
        seen = self._read(target, last=last, gradients=True, batch=batch)
        height, width = self.seen.images.shape[-2:]
        size = (height - self.padding[0], width - self.padding[1])
        if not bool(seen.bound.region.any()):
            return [
                Explanation(name, layer, target, torch.zeros(1, 1), "no_target", size, 0.0)
                for layer, names in _places(self.layers, self.methods)
                for name in names
            ]
        make = fill or DEFAULT_FILLS[target.preset]
        if isinstance(make, str) and make not in FILLS:
            raise UnknownNameError.of("fill", make, FILLS)
        if any(reads_baseline(method) for method in self.methods.values()):
            if isinstance(make, str):
                make = make_fill(make, clean_of(seen, self.model, self.truth, seed=(seed, make)))
            nothing = torch.zeros(1, height, width, dtype=torch.bool, device=seen.images.device)
            seen = with_baseline(seen, make(seen.images, nothing))
        found = explain_capture(seen, self.model, self.methods, self.layers, target)
        if smooth:
            found = self._smooth(found, seen, target)
        if self.padding == (0, 0):
            return found
        return [self._cropped(item, size) for item in found]

    def _read(self, target: Bindable, *, last: bool, gradients: bool, batch: int = 4) -> Capture:
        seen = self.seen if gradients else replace(self.seen, gradients=False)
        return seen.read(
            target,
            None if self.truth is None else self.truth[None],
            valid=None if self.valid is None else self.valid[None],
            batch=batch,
            last=last,
        )

    def _smooth(
        self, plain: list[Explanation], clean: Capture, target: Target
    ) -> list[Explanation]:
        """The mean over flips and turns; R, P and b are those of the clean picture, turned too."""
        size = (clean.images.shape[-2], clean.images.shape[-1])
        paths = list(self.layers.values())
        raws = [[item.raw] for item in plain]
        spent = [item.forwards for item in plain]
        for turn in SYMMETRIES[1:] if size[0] == size[1] else SYMMETRIES[1:4]:
            bound = clean.bound.edited(turn.apply)
            base = clean.baseline
            seen = observe(self.model, turn.apply(clean.images), paths).read(
                FixedTarget(bound),
                baseline=None if base is None else turn.apply(base),
                batch=clean.batch,
                last=True,
            )
            turned = explain_capture(seen, self.model, self.methods, self.layers, target)
            for place, item in enumerate(turned):
                raws[place].append(turn.undo(item.raw))
                spent[place] += item.forwards + 1
        return [
            replace(
                item,
                raw=(mean := torch.stack(maps).mean(dim=0)),
                status=_positive(mean)[1],
                forwards=forwards,
                effective_channels=None,
                symmetries=len(maps),
            )
            for item, maps, forwards in zip(plain, raws, spent, strict=True)
        ]

    def _cropped(self, item: Explanation, size: tuple[int, int]) -> Explanation:
        height, width = size
        whole = replace(
            item,
            size=size,
            padding=self.padding,
            valid=None if item.valid is None else item.valid[:height, :width],
            explained=None if item.explained is None else item.explained[:height, :width],
        )
        dark = item.status == "ok" and not bool(whole.heatmap().any())
        return replace(whole, status="all_zero") if dark else whole


@dataclass(frozen=True)
class Symmetry:
    """A flip (left to right) and quarter turns of the last two axes, exactly undone."""

    flip: bool
    turns: int

    def apply(self, image: Tensor) -> Tensor:
        """The picture [..., H, W] flipped, then turned."""
        return torch.rot90(image.flip(-1) if self.flip else image, self.turns, (-2, -1))

    def undo(self, image: Tensor) -> Tensor:
        """What `apply` was given, of what it returned."""
        back = torch.rot90(image, -self.turns, (-2, -1))
        return back.flip(-1) if self.flip else back


# The identity, then those that keep the sides of a picture, then those that change them.
SYMMETRIES: Final = tuple(
    Symmetry(flip=flip, turns=turns) for turns in (0, 2, 1, 3) for flip in (False, True)
)


def pad_below(image: Tensor, padding: tuple[int, int]) -> Tensor:
    """A picture [B, H, W] continued with its last row and column; a bool mask [H, W] with False."""
    bottom, right = padding
    if image.dtype == torch.bool:
        return pad(image, (0, right, 0, bottom))
    return pad(image, (0, right, 0, bottom), mode="replicate")


def _places(
    layers: dict[str, str], methods: dict[str, MethodFunction]
) -> list[tuple[str, list[str]]]:
    """Layers with the methods to be made there; those without a layer last, once."""
    layered = [name for name in methods if name not in LAYERLESS]
    bare = [name for name in methods if name in LAYERLESS]
    return [*((layer, layered) for layer in layers), *([(INPUT_LAYER, bare)] if bare else [])]


def explain_capture(
    seen: Capture,
    model: SegmentationModel,
    methods: dict[str, MethodFunction],
    layers: dict[str, str],
    target: Target,
) -> list[Explanation]:
    """All maps of one captured picture; `layers` maps the names to show to module paths."""
    value = float(seen.bound.score(seen.logits)[0])
    size = (seen.images.shape[-2], seen.images.shape[-1])
    explanations = []
    for layer, names in _places(layers, methods):
        for name in names:
            result = methods[name](seen, layers.get(layer, ""), model)
            raw_map = result if isinstance(result, RawMap) else RawMap(result)
            raw = _checked(raw_map.values, name)[0].detach()
            channels = raw_map.effective_channels
            explanations.append(
                Explanation(
                    method=name,
                    layer=layer,
                    target=target,
                    raw=raw,
                    status=_positive(raw)[1],
                    size=size,
                    value=value,
                    valid=seen.bound.valid[0],
                    explained=seen.bound.region[0],
                    effective_channels=None if channels is None else float(channels[0]),
                    forwards=raw_map.forwards,
                )
            )
    return explanations


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
    if preset == "paper" and not any(sum(item.padding) for item in explanations):
        parts = [_resized(item.raw, item.size, preset)[0] for item in explanations]
    else:
        parts = [item.heatmap() for item in explanations]
    raw = ways[how](torch.stack(parts))
    return Explanation(
        method=first.method,
        layer=f"{how}({'+'.join(item.layer for item in explanations)})",
        target=first.target,
        raw=raw,
        status=_positive(raw)[1],
        size=first.size,
        value=first.value,
        valid=first.valid,
        explained=first.explained,
    )


def resolve_method(method: str | MethodFunction, preset: Preset) -> tuple[str, MethodFunction]:
    """The name and the function of a method given by name, or any callable of the same form."""
    if not isinstance(method, str):
        return method_name(method), method
    methods = PAPER_METHODS if preset == "paper" else METHODS
    name = canonical(method, methods)
    if name is None:
        raise UnknownNameError.of("method", method, methods)
    return name, methods[name]


def _check_distinct(kind: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SegproofError(
            f"{kind} of one name: {', '.join(twice)}", "each name once", "rename or leave one out"
        )


def _checked(values: object, name: str) -> Tensor:
    """What a method returned, if it is a map [N, h, w] of real numbers."""
    kind = type(values).__name__
    if isinstance(values, Tensor):
        if values.ndim == 3 and values.is_floating_point():
            return values
        kind = f"{values.dtype} {tuple(values.shape)}"
    raise SegproofError(
        f"method {name} returning {kind}", "a map [N, h, w] of real numbers", "correct the method"
    )


def clean_of(
    seen: Capture,
    model: SegmentationModel,
    truth: Tensor | None,
    *,
    seed: tuple[object, ...],
    donor: Tensor | None = None,
) -> FillContext:
    """What fills may look at, from a capture of one picture."""
    bound = seen.bound
    probability = probabilities(seen.logits, bound.activation)[0, bound.class_index]
    roofs = bound.prediction[0] | bound.region[0]
    if truth is not None:
        roofs = roofs | (truth.to(roofs.device) & bound.valid[0])
    return FillContext(
        image=seen.images[0],
        neutral=model.neutral,
        background=background_of(roofs, probability, bound.valid[0]),
        valid=bound.valid[0],
        generator=seeded("fill", *seed),
        donor=donor,
    )


def with_baseline(seen: Capture, baseline: Tensor) -> Capture:
    """The same capture with b [N, B, H, W] for masked-input methods."""
    return replace(seen, baseline=baseline)
