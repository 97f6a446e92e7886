"""Measures of a heatmap as a whole: where its heat lies, how it holds under changes of picture,
network and class.

S is the heatmap, R the region, V the valid pixels of the case; pixels outside V count nowhere. What
explains again does so for the target that was bound on the clean picture: only what the measure
changes is another.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from segproof.errors import DataError
from segproof.explain import FLAT, SYMMETRIES, BoundTarget, Explanation, FixedTarget, observe
from segproof.measures.case import Card, HeatmapCase, Undefined
from segproof.models import SegmentationModel, WrongSizeError, evaluating
from segproof.perturb import dilate, rank_pixels, seeded

__all__ = [
    "CARDS",
    "alike",
    "effective_area",
    "equivariance",
    "gini",
    "infidelity",
    "max_sensitivity",
    "overlap_consistency",
    "pointing_game",
    "random_class",
    "randomisation_bottom_up",
    "randomisation_top_down",
    "relevance_mass",
    "relevance_rank",
    "ring_profile",
    "ring_share",
    "shift_equivariance",
]

NEAR: Final = 16  # px around R that are its surroundings: 4.8 m at 0.3 m, a roof's own shadow
PERTURBATIONS: Final = 8
RADIUS: Final = 0.02  # of the value range: 5 of 255 grey levels
PATCHES: Final = 64  # as many as cover the picture once
STAGES: Final = 5

Edit = Callable[[Tensor], Tensor]


# --- places and shape ---------------------------------------------------------------------------
def pointing_game(case: HeatmapCase, *, tolerance: int = 0) -> float:
    """1 if the highest pixel of S lies in R, or at most `tolerance` px beside it, else 0.

    Equal highest pixels are drawn from in a seeded order (zhang2018excitation; theirs is 15 px).
    """
    heat, region, valid = _lit(case)
    first = rank_pixels(heat, valid, seeded("ties", case.seed)) == 0
    return float((dilate(region, tolerance) & first).any())


def relevance_mass(case: HeatmapCase) -> float:
    """Sum of S over R / sum of S over V, 0-1 (arras2022clevr)."""
    heat, region, valid = _lit(case)
    return float(heat[region].sum() / heat[valid].sum())


def relevance_rank(case: HeatmapCase) -> float:
    """Share of the |R| highest pixels of S that lie in R, 0-1 (arras2022clevr).

    Equal pixels come in a seeded order.
    """
    heat, region, valid = _lit(case)
    count = int(region.sum())
    highest = rank_pixels(heat, valid, seeded("ties", case.seed)) < count
    return float((highest & region).sum()) / count


def ring_profile(case: HeatmapCase, *, width: float = 4.0) -> list[tuple[float, float]]:
    """Mean of S in rings around the outline of R: (distance of the ring's middle in px, mean).

    The distance of a pixel is the Euclidean one to the nearest pixel of R; inside R it is negative,
    to the nearest pixel that is not in R. Rings are (k width, (k + 1) width], empty ones left out,
    from the innermost to the outermost.

    Raises:
        Undefined: a flat map, no region, a region that is the whole picture.
    """
    heat, region, valid = _lit(case)
    distance = _distance(region)
    ring = torch.where(distance > 0, (distance / width).ceil() - 1, (distance / width).floor())
    first = int(ring[valid].min())
    place = ring[valid].long() - first
    counts, sums = place.bincount(), place.bincount(weights=heat[valid])
    return [
        ((first + k + 0.5) * width, float(sums[k] / count))
        for k, count in enumerate(counts.tolist())
        if count
    ]


def ring_share(case: HeatmapCase, *, width: float = NEAR) -> float:
    """Share of the sum of S outside R, at most `width` px (Euclidean) from it, 0-1: heat on context
    (after hoyer2019grid).

    Raises:
        Undefined: a flat map, no region, no valid pixel so near to it.
    """
    heat, region, valid = _lit(case)
    distance = _distance(region)
    near = (distance > 0) & (distance <= width) & valid
    if not bool(near.any()):
        raise Undefined("no surroundings")
    return float(heat[near].sum() / heat[valid].sum())


def gini(case: HeatmapCase) -> float:
    """Gini index of S over V: 1 - 2 sum_k s_k / sum(s) * (n - k + 1/2) / n, s_1 ... s_n rising.

    0 = all pixels alike, 1 - 1/n = one pixel (hurley2009sparsity, chalasani2020concise).
    """
    heat, _, valid = _lit(case, anywhere=True)
    rising = heat[valid].sort().values
    n = len(rising)
    place = torch.arange(1, n + 1, device=rising.device)
    return float(1 - 2 * (rising / rising.sum() * (n - place + 0.5) / n).sum())


def effective_area(case: HeatmapCase) -> float:
    """exp(entropy of S / sum(S)) / |V|: the share of V that as much heat would fill evenly, 0-1
    (roy2007effective).
    """
    heat, _, valid = _lit(case, anywhere=True)
    share = heat[valid] / heat[valid].sum()
    return float(torch.special.entr(share).sum().exp() / len(share))


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
    heat, _, valid = _lit(case, anywhere=True)
    images = case.seen.images
    pixels = images[0][:, valid]
    low, high = (edge[:, None, None] for edge in (pixels.amin(dim=1), pixels.amax(dim=1)))
    generator = seeded("max_sensitivity", case.seed)
    worst = 0.0
    for _ in range(perturbations):
        drawn = 2 * torch.rand(images.shape, generator=generator, dtype=torch.float64) - 1
        moved = images + drawn.to(images) * radius * (high - low)
        shown = torch.where(valid, moved.clamp(low, high), images)
        found = _again(case, shown, case.seen.bound)
        moved_by = (found[valid] - heat[valid]).norm() / heat[valid].norm()
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
    heat, _, valid = _lit(case)
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
    heat, _, valid = _lit(case)
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
    heat, _, valid = _lit(case, anywhere=True)
    square = heat.shape[0] == heat.shape[1]
    found = []
    for turn in SYMMETRIES[1:] if square else SYMMETRIES[1:4]:
        bound = case.seen.bound.edited(turn.apply)
        turned = turn.undo(_again(case, turn.apply(case.seen.images), bound, turn.apply))
        found.append(_pearson(heat[valid], turned[valid]))
    return sum(found) / len(found)


def shift_equivariance(case: HeatmapCase, *, pixels: int | None = None) -> float:
    """Mean over the four directions of the Pearson correlation of S(x) with S of x moved by
    `pixels` (default: the stride of the network), moved back, over the V that both show, -1-1
    (crabbe2023evaluating).

    R, P and the fill move too; the row or column at the edge is repeated behind and is not valid.

    Raises:
        Undefined: a control, any flat map, an R that is moved out of the picture, a picture no
            larger than the shift.
    """
    heat, _, valid = _lit(case, anywhere=True)
    step = case.model.stride if pixels is None else pixels
    if not 0 < step < min(heat.shape):
        raise Undefined("too small a picture for a shift")
    found = []
    for down, right in ((step, 0), (-step, 0), (0, step), (0, -step)):
        move = functools.partial(_moved, down=down, right=right)
        bound = case.seen.bound.edited(move)
        if bool(case.seen.bound.region.any()) and not bool(bound.region.any()):
            raise Undefined("a region moved out of the picture")
        shifted = _again(case, move(case.seen.images), bound, move)
        there, here = _both(bound.valid[0], down, right), _both(valid, -down, -right)
        both = there & here
        first, second = _both(heat, -down, -right), _both(shifted, down, right)
        found.append(_pearson(first[both], second[both]))
    return sum(found) / len(found)


def overlap_consistency(case: HeatmapCase) -> float:
    """Pearson correlation of the maps of two windows of the picture over their overlap, -1-1
    (huang2018tiling).

    The windows have 3/4 of the picture's sides, rounded to whole strides of the network, and lie
    in its upper left and lower right; each is explained alone, for the part of R in it.

    Raises:
        Undefined: a control, a flat map, a window without R, a picture too small for two windows, a
            network that takes pictures of one size only.
    """
    _lit(case)
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
    """A picture [..., H, W] moved by so many px, its edge repeated; masks and weights end there."""
    height, width = image.shape[-2:]
    rows = torch.arange(height, device=image.device) - down
    columns = torch.arange(width, device=image.device) - right
    moved = image[..., rows.clamp(0, height - 1), :][..., columns.clamp(0, width - 1)]
    if image.dim() == 4:
        return moved
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return torch.where(inside, moved, torch.zeros_like(moved))


def _both(map_: Tensor, down: int, right: int) -> Tensor:
    """Of a map [H, W] what a picture moved by so many px shows of the one before."""
    height, width = map_.shape
    return map_[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]


def _cut(image: Tensor, window: Any) -> Tensor:
    part: Tensor = image[window]
    return part


# --- what they share ----------------------------------------------------------------------------
def _lit(case: HeatmapCase, *, anywhere: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """S in float64, 0 outside V, with R and V, all [H, W]; `anywhere`: R may be empty."""
    region, valid = case.seen.bound.region[0], case.seen.bound.valid[0]
    if case.heatmap.shape != region.shape:
        raise DataError(
            f"a heatmap {tuple(case.heatmap.shape)}",
            f"{tuple(region.shape)}, as the picture",
            "give Explanation.heatmap()",
        )
    heat = torch.where(valid, case.heatmap.to(valid.device).double(), 0.0)
    if not bool(heat.any()):
        raise Undefined("flat map")
    if not anywhere and not bool(region.any()):
        raise Undefined("no region")
    return heat, region, valid


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


def _distance(region: Tensor) -> Tensor:
    """Euclidean distance in px of each pixel to R, float64 [H, W]; inside R below 0."""
    mask = region.cpu().numpy()
    if mask.all():
        raise Undefined("no surroundings")
    distance = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
    return torch.from_numpy(distance).to(region.device)


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
    heat, _, valid = _lit(case)
    if case.again is None:
        raise Undefined("a control has no method")
    with torch.inference_mode(mode=False):
        twin = _twin(case.model)
    order = _running(twin, case.seen.images)
    if not order:
        raise Undefined("a network without weights")
    found = []
    steps = np.array_split(order[::-1] if start == "output" else order, min(stages, len(order)))
    for step in steps:
        # on the CPU, so that the same seed draws the same weights for every device
        twin.cpu()
        for path in step:
            _reset(twin.net.get_submodule(path), seeded("randomisation", case.seed, str(path)))
        twin.to(case.model.device)
        try:
            changed = _again(case, case.seen.images, case.seen.bound, model=twin)
            found.append(_spearman(heat[valid], changed[valid]))
        except Undefined:  # a flat map is like no other: it is left out, all of them are said below
            continue
    if not found:
        raise Undefined("flat map")
    return sum(found) / len(found)


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


_AGAIN: Final = "re-explanation"  # a forward, a backward, and what the method itself shows

CARDS: Final[dict[str, Card]] = {
    "pointing_game": Card(
        pointing_game,
        "higher",
        0.0,
        1.0,
        "hit",
        "zhang2018excitation",
        "0",
        "Sees one pixel, and rewards a map of the prediction, whatever the network used.",
    ),
    "relevance_mass": Card(
        relevance_mass,
        "higher",
        0.0,
        1.0,
        "share of heat",
        "arras2022clevr",
        "0",
        "Rewards a map of the prediction, whatever the network used, and punishes true heat on"
        " evidence outside the region.",
    ),
    "relevance_rank": Card(
        relevance_rank,
        "higher",
        0.0,
        1.0,
        "share of pixels",
        "arras2022clevr",
        "0",
        "Rewards a map of the prediction, whatever the network used, and is high by chance where"
        " the region is large.",
    ),
    "ring_share": Card(
        ring_share,
        "neither",
        0.0,
        1.0,
        "share of heat",
        "hoyer2019grid",
        "0",
        "The blur of a coarse layer's map spills over the outline and looks like heat on context.",
    ),
    "gini": Card(
        gini,
        "higher",
        0.0,
        1.0,
        "index",
        "chalasani2020concise",
        "0",
        "Says nothing of truth: one pixel at random is as concise as a map can be.",
    ),
    "effective_area": Card(
        effective_area,
        "neither",
        0.0,
        1.0,
        "share of pixels",
        "roy2007effective",
        "0",
        "Says nothing of truth, and a layer's resolution sets how small it can be.",
    ),
    "max_sensitivity": Card(
        max_sensitivity,
        "lower",
        0.0,
        math.inf,
        "ratio",
        "yeh2019infidelity",
        f"{PERTURBATIONS} x {_AGAIN}",
        "A map that ignores the network does not move at all; few draws miss the worst case.",
    ),
    "infidelity": Card(
        infidelity,
        "lower",
        0.0,
        1.0,
        "share of dY squared",
        "yeh2019infidelity",
        str(PATCHES),
        "Takes either sign, so that heat on what speaks against the class counts as well, and a"
        " fill that leaks misleads it.",
    ),
    "randomisation_top_down": Card(
        randomisation_top_down,
        "lower",
        -1.0,
        1.0,
        "Spearman",
        "adebayo2018sanity",
        f"1 + {STAGES} x {_AGAIN}",
        "A map of noise passes, and skip connections that carry the picture's edges keep even a"
        " faithful map alike.",
    ),
    "randomisation_bottom_up": Card(
        randomisation_bottom_up,
        "lower",
        -1.0,
        1.0,
        "Spearman",
        "adebayo2018sanity",
        f"1 + {STAGES} x {_AGAIN}",
        "A map of noise passes, and the first step alone changes all that follows.",
    ),
    "random_class": Card(
        random_class,
        "lower",
        -1.0,
        1.0,
        "Spearman",
        "adebayo2018sanity",
        _AGAIN,
        "Two classes that the network tells by the same pixels have like maps that are both right;"
        " with two classes the other map is little more than the negative.",
    ),
    "equivariance": Card(
        equivariance,
        "higher",
        -1.0,
        1.0,
        "Pearson",
        "crabbe2023evaluating",
        f"7 x {_AGAIN}",
        "Blames the map for what the network does: one that reads a turned picture otherwise should"
        " have another map.",
    ),
    "shift_equivariance": Card(
        shift_equivariance,
        "higher",
        -1.0,
        1.0,
        "Pearson",
        "crabbe2023evaluating",
        f"4 x {_AGAIN}",
        "A shift by whole strides hides what the grid does to the map, and what leaves the picture"
        " may have mattered.",
    ),
    "overlap_consistency": Card(
        overlap_consistency,
        "higher",
        -1.0,
        1.0,
        "Pearson",
        "huang2018tiling",
        f"2 x {_AGAIN}",
        "A network that truly uses what only one window holds should have two maps, and is punished"
        " for it.",
    ),
}
