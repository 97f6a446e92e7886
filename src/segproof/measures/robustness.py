"""Measures how a heatmap holds under changes of the picture, the network and the class.

S is the heatmap, R the region, V the valid pixels of the case; pixels outside V count nowhere. What
explains again does so for the target that was bound on the clean picture: only what the measure
changes is another.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from segproof.explain import FLAT, SYMMETRIES, BoundTarget, Explanation, FixedTarget, observe
from segproof.measures.case import HeatmapCase, Undefined, lit
from segproof.models import SegmentationModel, WrongSizeError, evaluating
from segproof.perturb import seeded

__all__ = [
    "alike",
    "equivariance",
    "infidelity",
    "max_sensitivity",
    "overlap_consistency",
    "random_class",
    "randomisation_bottom_up",
    "randomisation_top_down",
    "shift_equivariance",
]

PERTURBATIONS: Final = 8
RADIUS: Final = 0.02  # of the value range: 5 of 255 grey levels
PATCHES: Final = 64  # as many as cover the picture once
STAGES: Final = 5

Edit = Callable[[Tensor], Tensor]


# --- robustness ---------------------------------------------------------------------------------
def max_sensitivity(
    case: HeatmapCase, *, perturbations: int = PERTURBATIONS, radius: float = RADIUS
) -> float:
    """Max over seeded x' of |S(x') - S(x)| / |S(x)|, L2 norms over V (yeh2019infidelity).

    x' = x + uniform noise of at most `radius` times the range of each band over V, clipped to that
    range; pixels outside V stay.

    Raises:
        Undefined: a control, a flat map of x or of any x'.
    """
    heat, _, valid = lit(case, anywhere=True)
    images = case.seen.images
    pixels = images[0][:, valid]
    low, high = (edge[:, None, None] for edge in (pixels.amin(dim=1), pixels.amax(dim=1)))
    generator = seeded("max_sensitivity", case.seed)
    worst = 0.0
    for _ in range(perturbations):
        drawn = 2 * torch.rand(images.shape, generator=generator, dtype=torch.float64) - 1
        moved = images + drawn.to(images) * radius * (high - low)
        shown = torch.where(valid, moved.clamp(low, high), images)
        again = _again(case, shown, case.seen.bound)
        moved_by = (again[valid] - heat[valid]).norm() / heat[valid].norm()
        worst = max(worst, float(moved_by))
    return worst


def infidelity(case: HeatmapCase, *, patches: int = PATCHES) -> float:
    """E[(beta I.S - dY)^2] / E[dY^2] with dY = Y(x) - Y(x without the pixels I) and the beta that
    makes it least: 1 - E[I.S dY]^2 / (E[(I.S)^2] E[dY^2]), 0-1 (yeh2019infidelity).

    I is a square of 1/8 of the shorter side, seeded, anywhere in the picture, of which the pixels
    in V are replaced by the case's fill.

    Raises:
        Undefined: a flat map, no region, squares that never change Y.
    """
    heat, _, valid = lit(case)
    height, width = heat.shape
    side = max(1, min(height, width) // 8)
    generator = seeded("infidelity", case.seed)
    tops = torch.randint(height - side + 1, (patches,), generator=generator).tolist()
    lefts = torch.randint(width - side + 1, (patches,), generator=generator).tolist()
    squares = [
        (slice(top, top + side), slice(left, left + side))
        for top, left in zip(tops, lefts, strict=True)
    ]
    bound, images = case.seen.bound, case.seen.images
    clean = bound.score(case.seen.logits.double())
    scores = []
    with torch.no_grad(), evaluating(case.model):
        for start in range(0, patches, case.seen.batch):
            part = squares[start : start + case.seen.batch]
            keep = torch.ones(len(part), height, width, dtype=torch.bool, device=heat.device)
            for mask, square in zip(keep, part, strict=True):
                mask[square] = ~valid[square]
            shown = case.fill(images.expand(len(part), *images.shape[1:]), keep)
            scores.append(bound.score(case.model(shown).double()))
    drops = clean - torch.cat(scores)
    heats = torch.stack([heat[square].sum() for square in squares])  # S is 0 outside V
    size = drops.abs().max()
    if size <= 8 * torch.finfo(images.dtype).eps * clean.abs().max():
        raise Undefined("removing pixels changes nothing")
    drops = drops / size
    if not bool(heats.any()):
        return 1.0  # no heat in any square: no beta says anything about dY
    agreement = (heats * drops).sum() ** 2 / ((heats**2).sum() * (drops**2).sum())
    return min(1.0, max(0.0, 1 - float(agreement)))


# --- sanity -------------------------------------------------------------------------------------
def randomisation_top_down(case: HeatmapCase, *, stages: int = STAGES) -> float:
    """Mean Spearman correlation over V of S with the maps of the network re-initialised from the
    output on, in `stages` steps that add up, -1-1 (adebayo2018sanity).

    A step takes about equally many modules with weights of their own, each with PyTorch's
    initialisation (else noise of its weights' own mean and deviation), on a copy of the network.
    Stages with a flat map are left out.

    Raises:
        Undefined: a control, a flat map of x or of all stages, no network that can be copied.
    """
    return _randomisation(case, stages, "output")


def randomisation_bottom_up(case: HeatmapCase, *, stages: int = STAGES) -> float:
    """As `randomisation_top_down`, re-initialised from the input on (adebayo2018sanity)."""
    return _randomisation(case, stages, "input")


def random_class(case: HeatmapCase) -> float:
    """Spearman correlation over V of S with the map of another class, drawn by the seed, for the
    same R and P, -1-1 (after adebayo2018sanity: explanations have to tell classes apart).

    A one-channel network reads minus its logit as the other class.

    Raises:
        Undefined: a control, no region, a flat map of either class.
    """
    heat, _, valid = lit(case)
    bound, model = case.seen.bound, case.model
    others = [k for k in range(len(model.classes)) if k != bound.class_index]
    drawn = torch.randint(len(others), (1,), generator=seeded("random_class", case.seed))
    other = others[int(drawn)]
    # logits [0, z]: that of the background says nothing, the margin to the class is -z
    single = model.channels == 1 and bound.space == "logit"
    changed = replace(
        bound,
        class_index=other,
        space="margin" if single else bound.space,
        rival=bound.class_index if bound.rival == other else bound.rival,
    )
    return _spearman(heat[valid], _again(case, case.seen.images, changed)[valid])


def equivariance(case: HeatmapCase) -> float:
    """Mean over flips and quarter turns g (seven of a square picture, else three) of the Pearson
    correlation over V of S(x) with S(g(x)) turned back, -1-1 (crabbe2023evaluating).

    R, P and the fill are turned with the picture.

    Raises:
        Undefined: a control, any flat map.
    """
    heat, _, valid = lit(case, anywhere=True)
    square = heat.shape[0] == heat.shape[1]
    correlations = []
    for turn in SYMMETRIES[1:] if square else SYMMETRIES[1:4]:
        bound = case.seen.bound.edited(turn.apply)
        turned = turn.undo(_again(case, turn.apply(case.seen.images), bound, turn.apply))
        correlations.append(_pearson(heat[valid], turned[valid]))
    return sum(correlations) / len(correlations)


def shift_equivariance(case: HeatmapCase, *, pixels: int | None = None) -> float:
    """Mean over the four directions of the Pearson correlation of S(x) with S of x moved by
    `pixels` (default: the stride of the network), moved back, over the V that both show, -1-1
    (crabbe2023evaluating).

    R, P and the fill move too; the row or column at the edge is repeated behind and is not valid.

    Raises:
        Undefined: a control, any flat map, an R that is moved out of the picture, a picture no
            larger than the shift.
    """
    heat, _, valid = lit(case, anywhere=True)
    step = case.model.stride if pixels is None else pixels
    if not 0 < step < min(heat.shape):
        raise Undefined("too small a picture for a shift")
    correlations = []
    for down, right in ((step, 0), (-step, 0), (0, step), (0, -step)):
        move = functools.partial(_moved, down=down, right=right)
        bound = case.seen.bound.edited(move)
        if bool(case.seen.bound.region.any()) and not bool(bound.region.any()):
            raise Undefined("a region moved out of the picture")
        shifted = _again(case, move(case.seen.images), bound, move)
        there, here = _both(bound.valid[0], down, right), _both(valid, -down, -right)
        both = there & here
        first, second = _both(heat, -down, -right), _both(shifted, down, right)
        correlations.append(_pearson(first[both], second[both]))
    return sum(correlations) / len(correlations)


def overlap_consistency(case: HeatmapCase) -> float:
    """Pearson correlation of the maps of two windows of the picture over their overlap, -1-1
    (huang2018tiling).

    The windows have 3/4 of the picture's sides, rounded to whole strides of the network, and lie
    in its upper left and lower right; each is explained alone, for the part of R in it.

    Raises:
        Undefined: a control, a flat map, a window without R, a picture too small for two windows, a
            network that takes pictures of one size only.
    """
    lit(case)
    bound, images = case.seen.bound, case.seen.images
    (height, lower), (width, right) = (
        _window(side, case.model.stride) for side in images.shape[2:]
    )
    maps = []
    for top, left in ((0, 0), (lower, right)):
        window = (..., slice(top, top + height), slice(left, left + width))
        cut = functools.partial(_cut, window=window)
        part = bound.edited(cut)
        if not bool(part.region.any()):
            raise Undefined("a window without the region")
        try:
            maps.append(_again(case, cut(images), part, cut))
        except WrongSizeError as error:
            raise Undefined("a network that does not take the windows' size") from error
    valid = bound.valid[0, lower:height, right:width]
    first, second = maps[0][lower:, right:], maps[1][: height - lower, : width - right]
    return _pearson(first[valid], second[valid])


def _window(side: int, stride: int) -> tuple[int, int]:
    """Size of both windows along a side of the picture, and where the second begins, px."""
    size = round(0.75 * side / stride) * stride
    start = (side - size) // stride * stride
    if not 0 < start < size:
        raise Undefined("too small a picture for two windows")
    return size, start


def _moved(image: Tensor, down: int, right: int) -> Tensor:
    """A picture [..., H, W] moved by `down` and `right` px, its edge repeated; masks end there."""
    height, width = image.shape[-2:]
    rows = torch.arange(height, device=image.device) - down
    columns = torch.arange(width, device=image.device) - right
    moved = image[..., rows.clamp(0, height - 1), :][..., columns.clamp(0, width - 1)]
    if image.dim() == 4:
        return moved
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return torch.where(inside, moved, torch.zeros_like(moved))


def _both(map_: Tensor, down: int, right: int) -> Tensor:
    """The part of a map [H, W] that a picture moved by `down` and `right` px still shows."""
    height, width = map_.shape
    return map_[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]


def _cut(image: Tensor, window: Any) -> Tensor:
    part: Tensor = image[window]
    return part


# --- what they share ----------------------------------------------------------------------------
def _again(
    case: HeatmapCase,
    images: Tensor,
    bound: BoundTarget,
    edit: Edit = lambda image: image,
    model: SegmentationModel | None = None,
) -> Tensor:
    """S in float64 [H, W] of a changed picture, target or network; `edit` changes b alike."""
    if case.again is None:
        raise Undefined("a control has no method")
    model = model or case.model
    base = case.seen.baseline
    seen = observe(model, images, list(case.seen.activations)).read(
        FixedTarget(bound),
        baseline=None if base is None else edit(base),
        batch=case.seen.batch,
        last=True,
    )
    heat = case.again(seen, model).double()
    if not bool(heat.any()):
        raise Undefined("flat map")
    return heat


def _pearson(first: Tensor, second: Tensor) -> float:
    """Pearson correlation of two maps [n], float64."""
    for values in (first, second):
        if not len(values) or values.max() - values.min() <= FLAT * values.abs().max():
            raise Undefined("flat map")
    one, two = (values - values.mean() for values in (first, second))
    return max(-1.0, min(1.0, float((one @ two) / (one.norm() * two.norm()))))


def _spearman(first: Tensor, second: Tensor) -> float:
    return _pearson(_ranks(first), _ranks(second))


def alike(one: Explanation, other: Explanation, area: float = 0.2) -> dict[str, float]:
    """How near two maps of one picture are, over V: Spearman correlation and the IoU of the regions
    of the highest `area`.

    Raises:
        Undefined: a flat map.
    """
    heats = [item.heatmap() for item in (one, other)]
    valid = torch.ones_like(heats[0], dtype=torch.bool) if one.valid is None else one.valid
    regions = [item.region(area=area) for item in (one, other)]
    common = int((regions[0] & regions[1]).sum()) / int(
        (regions[0] | regions[1]).sum().clamp(min=1)
    )
    return {"spearman": _spearman(*(heat[valid].double() for heat in heats)), "iou": common}


def _ranks(values: Tensor) -> Tensor:
    """Rank of each value [n], the lowest 1; equal ones share the mean of theirs."""
    rising = values.sort().values
    below, up_to = (torch.searchsorted(rising, values, right=right) for right in (False, True))
    return (below + up_to + 1).double() / 2


def _randomisation(case: HeatmapCase, stages: int, start: Literal["input", "output"]) -> float:
    heat, _, valid = lit(case)
    if case.again is None:
        raise Undefined("a control has no method")
    with torch.inference_mode(mode=False):
        twin = _twin(case.model)
    order = _running(twin, case.seen.images)
    if not order:
        raise Undefined("a network without weights")
    correlations = []
    steps = np.array_split(order[::-1] if start == "output" else order, min(stages, len(order)))
    for step in steps:
        # on the CPU, so that the same seed draws the same weights for every device
        twin.cpu()
        for path in step:
            _reset(twin.net.get_submodule(path), seeded("randomisation", case.seed, str(path)))
        twin.to(case.model.device)
        try:
            changed = _again(case, case.seen.images, case.seen.bound, model=twin)
            correlations.append(_spearman(heat[valid], changed[valid]))
        except Undefined:  # a flat map is like no other: it is left out, all of them are said below
            continue
    if not correlations:
        raise Undefined("flat map")
    return sum(correlations) / len(correlations)


def _twin(model: SegmentationModel) -> SegmentationModel:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise Undefined("a network that cannot be copied") from error


def _running(model: SegmentationModel, images: Tensor) -> list[str]:
    """Paths of the modules that have weights of their own, in the order in which they first run.

    One that is used without being called runs with what holds it.
    """
    first: dict[str, int] = {}

    def note(path: str) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, _inputs: Any) -> None:
            first.setdefault(path, len(first))

        return hook

    handles = [
        module.register_forward_pre_hook(note(path)) for path, module in model.net.named_modules()
    ]
    try:
        with torch.no_grad(), evaluating(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()

    def place(path: str) -> int:
        while path not in first:
            path = path.rpartition(".")[0]
        return first[path]

    weighted = [
        path
        for path, module in model.net.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    return sorted(weighted, key=place)


def _reset(module: nn.Module, generator: torch.Generator) -> None:
    """New weights for a module on the CPU; the global generators stay as they are."""
    fresh = getattr(module, "reset_parameters", None)
    with torch.inference_mode(mode=False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed every device
        torch.default_generator.manual_seed(generator.initial_seed())
        if callable(fresh):
            fresh()
            return
        for value in module.parameters(recurse=False):
            noise = torch.randn(value.shape, dtype=torch.float64)
            spread = value.double().std(correction=0)
            value.copy_(value.double().mean() + spread * noise)
