"""Diagnoses a network: the facts of its layers, what works, what to pass, in plain words."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from segproof.data import scene
from segproof.errors import ModelError, SegproofError
from segproof.explain import (
    Capture,
    Target,
    capture,
    explain_all,
    frozen,
    hard_mask,
    observe,
    replaced,
)
from segproof.models import (
    Layer,
    SegmentationModel,
    as_written,
    describe,
    display_range,
    evaluating,
    named,
    others,
    probabilities,
    queries,
)
from segproof.perturb import random_blobs, seeded
from segproof.testing import check_model

__all__ = ["Finding", "LayerFacts", "diagnose", "example_picture", "layer_facts"]

Verdict = Literal["ok", "warning", "problem"]
ENERGY: Final = 0.95  # share of the gradient's size that a receptive field holds
SURE: Final = 0.999  # beyond it a softmax hardly slopes
CHANCE: Final = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)  # noqa: SLF001
SMALL: Final = 128  # px, of the picture on which gradients are compared with differences
ROUNDED: Final = 16  # steps of the number format that a mean over a picture is off by
PIXELS: Final = 64  # a smaller prediction is hardly one


@dataclass(frozen=True)
class LayerFacts:
    """A layer on one picture: channels that are zero everywhere (share, 0-1), and the side of the
    square around a cell, px, that holds 95 % of the size of its gradient at the picture (an
    estimate: the picture's, not the network's at its largest).
    """

    layer: Layer
    zero_channels: float
    field: int


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis: what was looked at, what came out, what to do about it."""

    verdict: Verdict
    about: str
    text: str
    fix: str = ""


def example_picture(
    model: SegmentationModel, size: tuple[int, int], bands: int | None = None
) -> Tensor:
    """A picture [B, H, W] for networks without one, in the network's units: a generated aerial
    scene, or smooth noise where the bands are not three.
    """
    bands = bands or model.input_bands
    if bands == 3:
        side = max(size)
        made = scene(1, side + -side % 8)["image"][:, : size[0], : size[1]].contiguous()
    else:
        made = torch.stack([random_blobs(size, seeded("band", band)) for band in range(bands)])
    low, high = display_range(model.mean, model.std, model.bands) or (0.0, 1.0)
    return made if (low, high) == (0, 1) else low + (high - low) * made


def layer_facts(
    model: SegmentationModel, image: Tensor, layers: Sequence[Layer] | None = None
) -> list[LayerFacts]:
    """Facts of each layer on one picture [B, H, W], from one forward and a backward for each."""
    height, width = image.shape[-2:]
    layers = model.layers((height, width), image.shape[0]) if layers is None else layers
    with torch.inference_mode(mode=False), torch.enable_grad():
        asked = image[None].to(model.device).detach().clone().requires_grad_()
        seen = observe(model, asked, [layer.path for layer in layers])
        found = []
        for layer in layers:
            value = seen.recorded[layer.path]
            zero = 1 - float(value.detach()[0].flatten(1).any(dim=1).float().mean())
            row, column = value.shape[-2] // 2, value.shape[-1] // 2
            signs = torch.randn(value.shape[1], generator=seeded("signs", layer.path))
            cell = (value[0, :, row, column] * signs.to(value)).sum()
            with evaluating(model), frozen(model):
                slopes = torch.autograd.grad(cell, asked, allow_unused=True, retain_graph=True)
            slope: Tensor | None = slopes[0]
            centre = (
                (row + 0.5) * height / value.shape[-2],
                (column + 0.5) * width / value.shape[-1],
            )
            field = 0 if slope is None else _field(slope[0].abs().sum(dim=0), centre)
            found.append(LayerFacts(layer, zero, field))
    return found


def _field(size: Tensor, centre: tuple[float, float]) -> int:
    """Side of the square around `centre` that holds 95 % of a picture [H, W] of sizes, px."""
    height, width = size.shape
    rows = (torch.arange(height, device=size.device) + 0.5 - centre[0]).abs()
    columns = (torch.arange(width, device=size.device) + 0.5 - centre[1]).abs()
    # in half pixels: a cell's centre may lie on a pixel's corner
    reach = (2 * torch.maximum(rows[:, None], columns[None])).ceil().long().flatten()
    held = torch.zeros(int(reach.max()) + 1, dtype=torch.float64, device=size.device)
    held.index_add_(0, reach, size.double().flatten())
    if not float(held.sum()):
        return 0
    share = held.cumsum(0) / held.sum()
    return min(int((share < ENERGY).sum()) + 1, max(height, width))


def diagnose(
    model: SegmentationModel, image: Tensor, *, class_: str | None = None
) -> Iterator[Finding]:
    """Run one picture [B, H, W] through everything; one finding after the other, as it is made.

    A network is fine to explain if none is a problem. Nothing of the model is changed.
    """
    yield _about_network(model)
    units = _about_units(model, image)
    yield units
    if units.verdict == "problem":
        return
    try:
        with torch.inference_mode(), evaluating(model):
            returned = model.returned(image[None].to(model.device))
            logits = model(image[None].to(model.device))
        observe(model, image[None], [], gradients=False)
    except SegproofError as error:
        yield Finding(
            "problem", "forward", f"found {error.found}", f"{error.expected}; {error.fix}"
        )
        return
    except Exception as error:  # whatever a network raises is what is reported
        yield Finding(
            "problem",
            "forward",
            f"the network ends in {type(error).__name__}: {str(error)[:300]}",
            "try the network alone on a picture of this size and these bands",
        )
        return
    yield Finding(
        "ok",
        "forward",
        f"a picture of {image.shape[1]} x {image.shape[2]} px (height x width),"
        f" {image.shape[0]} bands, gives {describe(returned)}",
    )
    yield Finding("ok", "output", model.reader.text)
    yield from _about_sizes(model, image)
    yield _about_chance(model, image)
    yield from _about_classes(model, logits)
    chosen = model.class_index(class_) if class_ is not None else _most_seen(model, logits)
    known = model.layers((image.shape[-2], image.shape[-1]), image.shape[0])
    yield _about_layers(known)
    yield _about_axes(known)
    yield _about_gradients(model, image, chosen, known)
    yield from _about_maps(model, image, chosen, known)
    yield _about_behaviour(model, image)
    seen = queries(model, image)
    if seen:
        listed = "; ".join(
            f"query {q.index}: {q.class_} ({q.chance:.0%}), on {q.share:.1%} of the picture"
            for q in seen[:3]
        )
        yield Finding(
            "ok", "queries", f"{len(seen)}, the surest: {listed}", "--query N explains one"
        )
    yield from _about_speed(model, image, known)


def _about_network(model: SegmentationModel) -> Finding:
    weights = sum(weight.numel() for weight in model.net.parameters())
    text = (
        f"{type(model.net).__name__} of {weights:,} weights on {model.device},"
        f" {model.input_bands} bands in, classes {', '.join(model.classes)}, {model.activation}"
    )
    if model.bands is None:
        return Finding(
            "warning",
            "network",
            f"{text}; no mean and deviation, so pictures go in as they are",
            "give --mean and --std (image units, 8-bit pictures are scaled to 0-1) if it was"
            " trained with them",
        )
    return Finding("ok", "network", text)


def _about_units(model: SegmentationModel, image: Tensor) -> Finding:
    """Whether the picture is in the units of the network's mean and deviation."""
    low, high = (float(bound) for bound in image.aminmax())
    text = f"the picture has values from {low:.4g} to {high:.4g}"
    try:
        model.check_units(image)
    except SegproofError as error:
        return Finding("problem", "units", f"found {error.found}", f"{error.expected}; {error.fix}")
    known = display_range(model.mean, model.std, model.bands)
    if known is None:
        return Finding(
            "warning",
            "units",
            f"{text}; without mean and deviation nothing tells whether the network was trained on"
            " such values",
            "8-bit pictures are scaled to 0-1; --divide-by N changes that",
        )
    return Finding(
        "ok",
        "units",
        f"{text}, the network's mean and deviation are of values from {known[0]:.4g} to"
        f" {known[1]:.4g}",
    )


def _about_sizes(model: SegmentationModel, image: Tensor) -> Iterator[Finding]:
    """Whether pictures of any size will do: a few rows and columns less than this one."""
    if model.size is not None:
        inside = f"{model.size[0]} x {model.size[1]} px"
        yield Finding("ok", "sizes", f"pictures are resized to {inside} for the network")
        return
    height, width = image.shape[-2:]
    near = others((height, width), model.stride)
    if len(model.evidence((height, width), image.shape[0]).traces) == 1:
        yield Finding(
            "warning",
            "sizes",
            f"takes only {height} x {width}: pictures of {len(near)} sizes near it end in errors",
            f"pass --size {height}" if height == width else "cut tiles of that size",
        )
        return
    odd = image[:, :-3, :-5]
    try:
        with torch.no_grad(), evaluating(model):
            model(odd[None].to(model.device))
    except ModelError as error:
        yield Finding("warning", "sizes", f"takes no {error.found}", error.fix)
    except Exception as error:
        yield Finding(
            "warning",
            "sizes",
            f"pictures of {odd.shape[1]} x {odd.shape[2]} px end in {type(error).__name__}",
            "cut tiles of one size that works",
        )
    else:
        yield Finding(
            "ok", "sizes", "takes pictures whose sides are no multiples of its stride too"
        )


def _takes(model: SegmentationModel, image: Tensor) -> bool:
    try:
        with torch.no_grad(), evaluating(model), as_written():
            model(image[None].to(model.device))
    except Exception:  # in whatever words a network refuses a size
        return False
    return True


def _about_chance(model: SegmentationModel, image: Tensor) -> Finding:
    """Whether the same picture gives the same logits, and what the eval mode holds still."""
    pictures = image[None].to(model.device)
    found: dict[str, list[Tensor]] = {}
    forced = [
        path
        for path, module in named(model.net).items()
        if isinstance(module, CHANCE) and module.training
    ]
    with torch.no_grad(), evaluating(model), as_written():
        handles = [
            module.register_forward_hook(_note(found.setdefault(path, [])), prepend=True)
            for path, module in named(model.net).items()
        ]
        try:
            first = model(pictures)
            second = model(pictures)
        finally:
            for handle in handles:
                handle.remove()
        # in train mode after all: a network that sets its own mode inside its forward
        still = [path for path in forced if named(model.net)[path].training]
    if not torch.equal(first, second):
        # the inner modules return before the outer ones: the first is the innermost
        random = [
            f"{path or 'the network'} ({type(named(model.net)[path]).__name__})"
            for path, (one, *more) in found.items()
            if more and not torch.equal(one, more[0])
        ]
        place = random[0] if random else "a function of the network"
        change = float((first - second).abs().max())
        return Finding(
            "problem",
            "chance",
            f"the same picture gives other logits each time (by up to {change:.3g}), in eval mode"
            f" too; {place} is the first to return other values",
            "switch off what draws random numbers in its forward, such as functional dropout"
            " without training=self.training",
        )
    unsteady = still or [
        path
        for path, module in named(model.net).items()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
        and module.running_mean is None
    ]
    if unsteady:
        return Finding(
            "warning",
            "chance",
            f"repeats itself, but {', '.join(unsteady[:3])} reads the statistics of its batch",
            "show pictures one at a time, or give the network running statistics",
        )
    text = "the same picture gives the same logits, bit for bit"
    if forced:
        text += f"; {len(forced)} modules in train mode ({forced[0]}, ...) run in eval mode here"
    return Finding("ok", "chance", text)


def _note(values: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that keeps a number for each result: its sum tells whether it is the same."""

    def hook(_module: nn.Module, _inputs: Any, result: Any) -> None:
        if isinstance(result, Tensor) and len(values) < 2:
            values.append(result.detach().double().sum())

    return hook


def _about_axes(known: Sequence[Layer]) -> Finding:
    """How the results of the listed layers are read as pictures, and by what that is decided."""
    groups: dict[str, list[str]] = {}
    for layer in known:
        kind = layer.axes if not layer.axes.startswith("tokens") else layer.axes.partition(" ")[0]
        groups.setdefault(f"{kind}, {layer.decided}", []).append(layer.alias)
    text = "; ".join(f"{', '.join(names)}: {how}" for how, names in groups.items())
    single = [layer.alias for layer in known if "only size" in layer.decided]
    if single:
        return Finding(
            "ok",
            "axes",
            text,
            "the network takes no second size; what fits two readings there is no listed layer",
        )
    return Finding("ok", "axes", text)


def _about_gradients(
    model: SegmentationModel, image: Tensor, index: int, known: Sequence[Layer]
) -> Finding:
    """Whether gradients are slopes: <D, direction> against (Y(+) - Y(-)) / 2 eps with layer + eps
    direction put into the module's own forward.
    """
    ends = [layer for layer in known if layer.alias.startswith("encoder")][-1:]
    blocks = [layer for layer in known if layer.alias.startswith("decoder")]
    asked = list({layer.path: layer for layer in [*ends, *blocks[:1], *blocks[-1:]]}.values())
    # a slope is one anywhere, and a small picture is quicker
    small = image[:, :SMALL, :SMALL]
    small = small if _takes(model, small) else image
    exact, step = _exact(model, small)
    pictures = small[None].to(exact.device, torch.float64 if exact is not model else image.dtype)
    truth = torch.ones(1, *pictures.shape[-2:], dtype=torch.bool)
    target = Target(model.classes[index], region="truth")
    try:
        seen = capture(exact, pictures, target, [layer.path for layer in asked], truth)
        pairs = {layer: _slopes(exact, pictures, seen, layer.path, step) for layer in asked}
    except SegproofError as error:
        return Finding("problem", "gradients", f"found {error.found}", error.fix)
    shown, wrong, idle = [], [], []
    loose = 1e-3 if exact is not model else 5e-2
    for layer, (slope, change, noise) in pairs.items():
        off = abs(slope - change)
        shown.append(f"{layer.alias} {slope:.4g} against {change:.4g}")
        if not slope and not change:
            idle.append(layer.alias)
        elif off > loose * max(abs(slope), abs(change)) + noise:
            wrong.append(layer.alias)
    text = f"slopes along a random direction against finite differences: {'; '.join(shown)}"
    if wrong:
        return Finding(
            "problem",
            "gradients",
            f"{text}; {', '.join(wrong)} differ",
            "a part behind these layers is cut from the gradient (detach, thresholds, argmax,"
            " torch.no_grad): take maps of other layers, or of a method without gradients",
        )
    if idle:
        return Finding(
            "warning",
            "gradients",
            f"{text}; the logits do not depend on {', '.join(idle)}",
            "explain at other layers: maps there are zero",
        )
    return Finding("ok", "gradients", text)


def _exact(model: SegmentationModel, image: Tensor) -> tuple[SegmentationModel, float]:
    """The network in float64 and a step for its differences; itself where no such copy runs."""
    try:
        with torch.inference_mode(mode=False), torch.no_grad():
            made = copy.deepcopy(model).double()
    except Exception:  # in whatever words a network refuses to be copied
        return model, 1e-2
    takes = _takes(made, image.double())
    return (made, 1e-7) if takes else (model, 1e-2)


def _slopes(
    model: SegmentationModel, pictures: Tensor, seen: Capture, path: str, step: float
) -> tuple[float, float, float]:
    """<D, direction> of a layer, the difference of Y that the direction makes, and how far rounding
    alone can move that.
    """
    A, D = seen.activations[path], seen.gradients[path]
    # zeros stay zeros: a maximum over several of them slopes to one side only
    direction = torch.randn(A.shape, generator=seeded("direction", path)).to(A) * A
    with replaced(model, path, pictures) as logits_of:
        moved = [
            float(seen.bound.score(logits_of(A + sign * step * direction).double())[0])
            for sign in (1, -1)
        ]
    slope = float((D.double() * direction.double()).sum())
    noise = ROUNDED * torch.finfo(A.dtype).eps * max(map(abs, moved)) / step
    return slope, (moved[0] - moved[1]) / (2 * step), noise


def _about_classes(model: SegmentationModel, logits: Tensor) -> Iterator[Finding]:
    p = probabilities(logits, model.activation)
    shares = [
        float(hard_mask(p, index, model.activation).float().mean())
        for index in range(len(model.classes))
    ]
    listed = ", ".join(
        f"{name} {share:.1%}" for name, share in zip(model.classes, shares, strict=True)
    )
    if model.activation == "softmax" and max(shares) == 1:
        yield Finding(
            "warning",
            "classes",
            f"one class everywhere in this picture ({listed})",
            "try a picture with the class in it (--image); check mean, deviation, order of bands",
        )
    else:
        yield Finding("ok", "classes", f"predicted in this picture: {listed}")
    sure = float(p.amax(dim=1).mean())
    if sure > SURE:
        yield Finding(
            "warning",
            "slopes",
            f"probabilities are {sure:.2%} sure on average: they hardly slope",
            "explain the logit (the default) or the margin, not the probability",
        )


def _most_seen(model: SegmentationModel, logits: Tensor) -> int:
    """The class with most pixels, background (the first of softmax classes) last."""
    p = probabilities(logits, model.activation)
    counts = [
        int(hard_mask(p, index, model.activation).sum()) for index in range(len(model.classes))
    ]
    first = 1 if model.activation == "softmax" else 0
    best = int(np.argmax(counts[first:])) + first
    return best if counts[best] else int(np.argmax(counts))


def _about_layers(known: Sequence[Layer]) -> Finding:
    stages = [layer for layer in known if layer.alias.startswith("encoder")]
    blocks = [layer for layer in known if layer.alias.startswith("decoder")]
    text = (
        f"{len(stages)} encoder stages, {len(blocks)} decoder blocks, strides"
        f" {min(x.stride for x in known)} to {max(x.stride for x in known)} px"
    )
    if len(blocks) < 2:
        return Finding(
            "warning",
            "layers",
            text,
            "a study compares decoder:1 and decoder:2 unless --layers names others, here for"
            " example encoder:-1,decoder:1",
        )
    return Finding("ok", "layers", text)


def _about_maps(
    model: SegmentationModel, image: Tensor, index: int, known: Sequence[Layer]
) -> Iterator[Finding]:
    """Maps by gradients at the ends of encoder and decoder: eigen maps have relief anyway."""
    name = model.classes[index]
    methods = ["grad_cam", "grad_cam_pp", "xgrad_cam", "hires_cam"]
    aliases = {layer.alias: layer for layer in known}
    asked = [alias for alias in ("encoder:-1", "decoder:1", "decoder:-1") if _has(aliases, alias)]
    region, truth = "prediction", None
    made = explain_all(model, image, methods=methods, layers=asked, target=Target(name))
    if made[0].status == "no_target" or int(_count(made[0].explained)) < PIXELS:
        region, truth = "truth", torch.ones(image.shape[-2:], dtype=torch.bool)
        made = explain_all(
            model,
            image,
            methods=methods,
            layers=asked,
            target=Target(name, region=region),
            truth=truth,
        )
    where = (
        "its prediction" if region == "prediction" else "the whole picture (it is not predicted)"
    )
    flat = [f"{item.method} at {item.layer}: {item.status}" for item in made if item.status != "ok"]
    good = len(made) - len(flat)
    text = f"{good} of {len(made)} maps of {name} over {where} have relief"
    if not good:
        yield Finding(
            "problem",
            "maps",
            f"{text} ({'; '.join(flat[:4])})",
            "choose layers that the class depends on (`segproof layers`), another class or picture",
        )
    elif flat:
        yield Finding(
            "ok", "maps", f"{text}; {'; '.join(flat)}", "flat maps are counted, never averaged"
        )
    else:
        yield Finding("ok", "maps", text)


def _about_behaviour(model: SegmentationModel, image: Tensor) -> Finding:
    """Repeats itself, treats a batch as its pictures, and is left as it was (`testing`)."""
    asked = ("repeat", "batch", "mode", "untouched")
    found = [check for check in check_model(model, image).checks if check.name in asked]
    failed = [check.detail for check in found if check.status == "failed"]
    if failed:
        return Finding(
            "problem",
            "behaviour",
            "; ".join(failed),
            "explanations and studies need a network that depends on nothing but its picture",
        )
    return Finding("ok", "behaviour", "; ".join(check.detail for check in found))


def _has(aliases: dict[str, Layer], alias: str) -> bool:
    kind, _, place = alias.partition(":")
    group = [name for name in aliases if name.startswith(f"{kind}:")]
    return bool(group) and abs(int(place)) <= len(group)


def _count(mask: Tensor | None) -> int:
    return 0 if mask is None else int(mask.sum())


def _about_speed(
    model: SegmentationModel, image: Tensor, known: Sequence[Layer]
) -> Iterator[Finding]:
    pictures = image[None].to(model.device)
    seconds = []
    with torch.inference_mode(), evaluating(model):
        for _ in range(3):
            started = time.perf_counter()
            model(pictures)
            seconds.append(time.perf_counter() - started)
    each = sorted(seconds)[1]
    channels = max(layer.channels for layer in known)
    yield Finding(
        "ok",
        "speed",
        f"{each * 1000:,.0f} ms a forward here; Score-CAM on the widest layer ({channels} channels)"
        f" about {each * channels:,.0f} s a picture",
    )
