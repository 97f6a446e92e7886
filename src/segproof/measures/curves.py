"""Measures a heatmap by curves: the confidence over how much was removed or shown.

A curve is confidence, the mean of p_c over the fixed R, over what was removed or shown. In curves
over ranked pixels only pixels of V change: all others stay as the network saw them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal, TypeVar

import torch
from scipy import ndimage
from torch import Tensor

from segproof.errors import ModelError, SegproofError
from segproof.explain import Target
from segproof.measures.case import HeatmapCase, Undefined
from segproof.measures.pictures import confidence
from segproof.models import SegmentationModel, all_finite, evaluating, probabilities
from segproof.perturb import (
    NOISE,
    FillContext,
    FillFunction,
    background_of,
    linear_imputation,
    make_fill,
    rank_pixels,
    seeded,
    unit_of,
)

__all__ = [
    "Curve",
    "context_curve",
    "context_need",
    "deletion",
    "deletion_curve",
    "deletion_outside",
    "excess",
    "influence",
    "insertion",
    "insertion_curve",
    "insertion_outside",
    "linear_imputation",
    "preserved",
    "road",
    "road_curve",
    "road_lerf",
    "road_morf",
]

Item = TypeVar("Item")

STEPS: Final = 20
LEVELS: Final = tuple(level / 10 for level in range(1, 10))  # shares that ROAD removes
RADII: Final = (0, 4, 8, 16, 32, 64, 128)  # px around R
BACK: Final = 0.95  # of the confidence: context beyond it is not needed


@dataclass(frozen=True)
class Curve:
    """Points for a figure, both float64 [n]: `y` is confidence in [0, 1]; `x` is a share or px."""

    x: Tensor
    y: Tensor

    @property
    def area(self) -> float:
        """Area under the curve by trapezoids."""
        return float(torch.trapezoid(self.y, self.x))

    @property
    def mean(self) -> float:
        """Mean of the points."""
        return float(self.y.mean())


# --- deletion and insertion ---------------------------------------------------------------------
def deletion_curve(case: HeatmapCase, steps: int = STEPS, *, outside: bool = False) -> Curve:
    """Confidence while pixels go, the hottest first, in `steps` equal steps (petsiuk2018rise).

    x: share of the valid pixels removed; y(0) = f(x), y(1) = f(fill everywhere), bitwise. With
    `outside` only valid pixels outside R go, and x is the share of these.

    Raises:
        Undefined: an empty region, a heatmap without an order, no pixel outside the region.
        SegproofError: no step.
    """
    return _ranked(case, steps, outside=outside, insert=False)


def insertion_curve(case: HeatmapCase, steps: int = STEPS, *, outside: bool = False) -> Curve:
    """Confidence while pixels come, the hottest first: y(0) = f(fill everywhere), y(1) = f(x).

    With `outside` R is there from the beginning. Otherwise as `deletion_curve`.
    """
    return _ranked(case, steps, outside=outside, insert=True)


def _ranked(case: HeatmapCase, steps: int, *, outside: bool, insert: bool) -> Curve:
    if steps < 1:
        raise SegproofError(f"{steps} steps", "1 or more", "give another number of steps")
    clean = _clean(case)
    bound = case.seen.bound
    movable = bound.valid[0] & ~bound.region[0] if outside else bound.valid[0]
    total = int(movable.sum())
    if not total:
        raise Undefined("no pixel outside the region")
    ranks = _ranks(case, movable)
    counts = [round(step * total / steps) for step in range(steps + 1)]

    def keeping(count: int) -> Tensor:
        # pixels that may not move have the last ranks: they are never below a count
        first = ranks < count
        return _filled(case, first | ~movable if insert else ~first)

    between = _confidences(case, (keeping(count) for count in counts[1:-1]))
    # alone, as the clean picture was: the ends are then bitwise those of one picture
    [bare] = _confidences(case, [keeping(0 if insert else total)])
    ends = (bare, clean) if insert else (clean, bare)
    values = torch.tensor([ends[0], *between, ends[1]], dtype=torch.float64)
    return Curve(torch.tensor(counts, dtype=torch.float64) / total, values)


def deletion(case: HeatmapCase) -> float:
    """Area under the deletion curve, in [0, 1] (petsiuk2018rise)."""
    return deletion_curve(case).area


def insertion(case: HeatmapCase) -> float:
    """Area under the insertion curve, in [0, 1] (petsiuk2018rise)."""
    return insertion_curve(case).area


def deletion_outside(case: HeatmapCase) -> float:
    """Area under the deletion curve of the pixels outside R, in [0, 1]."""
    return deletion_curve(case, outside=True).area


def insertion_outside(case: HeatmapCase) -> float:
    """Area under the insertion curve of the pixels outside R, in [0, 1]."""
    return insertion_curve(case, outside=True).area


# --- ROAD ---------------------------------------------------------------------------------------
def road_curve(case: HeatmapCase, first: Literal["most", "least"]) -> Curve:
    """Confidence with 10, 20, ... 90 % of the valid pixels imputed (rong2022road).

    `first`: those that go first are the most (MoRF) or the least (LeRF) relevant ones. What is
    imputed depends on kept valid pixels alone; the case's fill has no part in it. The noise is
    0.01, of the range of each band where the raster has other units than [0, 1].

    Raises:
        Undefined: an empty region, a heatmap without an order, fewer than ten valid pixels.
    """
    _clean(case)
    image, valid = case.seen.images[0], case.seen.bound.valid[0]
    total = int(valid.sum())
    if total < 10:
        raise Undefined("fewer than ten valid pixels")
    ranks = _ranks(case, valid)
    noise = NOISE * unit_of(image[:, valid])

    def pictures() -> Iterator[Tensor]:
        for level in LEVELS:
            count = round(level * total)
            gone = ranks < count if first == "most" else ranks >= total - count
            generator = seeded("road", case.seed, level)
            imputed = linear_imputation(image, valid & ~gone, noise, generator)
            yield torch.where(valid, imputed, image)

    levels = torch.tensor(LEVELS, dtype=torch.float64)
    return Curve(levels, torch.tensor(_confidences(case, pictures()), dtype=torch.float64))


def road_morf(case: HeatmapCase) -> float:
    """Mean confidence with the most relevant 10 to 90 % imputed, in [0, 1] (rong2022road)."""
    return road_curve(case, "most").mean


def road_lerf(case: HeatmapCase) -> float:
    """Mean confidence with the least relevant 10 to 90 % imputed, in [0, 1] (rong2022road)."""
    return road_curve(case, "least").mean


def road(case: HeatmapCase) -> float:
    """LeRF - MoRF, in [-1, 1] (rong2022road; pytorch-grad-cam's "combined" is half of it)."""
    return road_lerf(case) - road_morf(case)


# --- context ------------------------------------------------------------------------------------
def context_curve(case: HeatmapCase, radii: Sequence[int] = RADII) -> Curve:
    """Confidence of Keep(dilate(R, r)), x = r in px (a square); the heatmap has no part in it.

    Raises:
        Undefined: an empty region.
    """
    _clean(case)
    region = case.seen.bound.region[0]
    # the distance once, instead of windows of up to 257 x 257 pixels
    far = ndimage.distance_transform_cdt(~region.cpu().numpy(), metric="chessboard")
    distance = torch.from_numpy(far).to(region.device)
    values = _confidences(case, (_filled(case, distance <= radius) for radius in radii))
    return Curve(
        torch.tensor(list(radii), dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    )


def context_need(case: HeatmapCase) -> float:
    """The smallest r, px, at which Keep(dilate(R, r)) has 95 % of the clean confidence.

    Raises:
        Undefined: an empty region, confidence 0, none of the radii up to 128 px.
    """
    clean = _clean(case)
    if clean == 0:
        raise Undefined("confidence 0")
    curve = context_curve(case)
    for radius, value in zip(curve.x.tolist(), curve.y.tolist(), strict=True):
        if value >= BACK * clean:
            return float(radius)
    raise Undefined(f"confidence not back at {RADII[-1]} px")


# --- soft masks ---------------------------------------------------------------------------------
def preserved(case: HeatmapCase) -> float:
    """Sum of min(p, p') over sum of p, in [0, 1] (mullan2023kernelweighted).

    p is p_c of the clean picture and p' that of S x + (1 - S) b, both over V.

    Raises:
        Undefined: nothing predicted (p is 0 everywhere).
    """
    before, after = _softly(case)
    return float(torch.minimum(before, after).sum() / before.sum())


def excess(case: HeatmapCase) -> float:
    """Sum of max(p' - p, 0) over sum of p, 0 and up; p and p' as in `preserved`
    (mullan2023kernelweighted).

    Raises:
        Undefined: nothing predicted (p is 0 everywhere).
    """
    before, after = _softly(case)
    return float((after - before).clamp(min=0).sum() / before.sum())


def _softly(case: HeatmapCase) -> tuple[Tensor, Tensor]:
    """p_c of the pixels of V, float64 [P]: of the clean picture, and under the soft mask."""
    bound, image = case.seen.bound, case.seen.images[0]
    heat = case.heatmap.to(image)
    base = _filled(case, torch.zeros_like(bound.region[0]))
    mixed = heat * image + (1 - heat) * base
    # nothing times NaN is NaN
    mixed = torch.where(heat == 0, base, torch.where(heat == 1, image, mixed))
    c, valid = bound.class_index, bound.valid[0]
    before = probabilities(case.seen.logits, bound.activation)[0, c][valid].double()
    if not bool(before.sum() > 0):
        raise Undefined("nothing predicted")
    [after] = (p[0, c][valid].double() for p in forward_perturbed(case, [mixed]))
    return before, after


# --- classes ------------------------------------------------------------------------------------
def influence(
    model: SegmentationModel,
    image: Tensor,
    classes: Sequence[int | str] | None = None,
    *,
    fill: str | Callable[[Tensor], FillFunction] = "background_texture",
    valid: Tensor | None = None,
    batch: int = 4,
    seed: int = 0,
) -> Tensor:
    """What each class' own prediction loses when another one's is removed, float64 [K, K].

    Entry (a, b) = 1 - confidence of b without a / confidence of b, each on the predicted region of
    b on the clean picture; "without a": the predicted region of a is filled. NaN: class a or b is
    not predicted. `fill` is a name (its background is that of class a) or makes a fill of the
    region bool [H, W] that is removed. `image` [B, H, W], `valid` bool [H, W]; K + 1 forwards.

    Raises:
        UnknownNameError: no such class or fill.
    """
    names = range(len(model.classes)) if classes is None else classes
    image = image.to(model.device)
    rows = torch.full((len(names), len(names)), math.nan, dtype=torch.float64)
    with torch.inference_mode(), evaluating(model):
        logits = model(image[None])
        area = None if valid is None else valid[None].to(model.device)
        bounds = [Target(name).bind(logits, model=model, valid=area) for name in names]
        p = probabilities(logits, model.activation)
        before = torch.stack([confidence(p, bound) for bound in bounds])[:, 0].cpu()
        present = [k for k, bound in enumerate(bounds) if bool(bound.region.any())]

        def without(k: int) -> Tensor:
            bound = bounds[k]
            region, allowed = bound.region[0], bound.valid[0]
            if callable(fill):
                filled = fill(region)
            else:
                chance = p[0, bound.class_index]
                filled = make_fill(
                    fill,
                    FillContext(
                        image=image,
                        neutral=model.neutral,
                        background=background_of(region, chance, allowed),
                        valid=allowed,
                        generator=seeded("influence", seed, fill, bound.class_index),
                    ),
                )
            return filled(image[None], ~region[None])[0]

        for part in _chunks(present, batch):
            after = _finite(model.shown(torch.stack([without(k) for k in part])))
            chances = probabilities(after, model.activation)
            seen = torch.stack([confidence(chances, bound) for bound in bounds], dim=1).cpu()
            rows[part] = 1 - seen / before
    return rows


# --- what they share ----------------------------------------------------------------------------
def _clean(case: HeatmapCase) -> float:
    """Confidence of the clean picture, f(x)."""
    bound = case.seen.bound
    if not bool(bound.region.any()):
        raise Undefined("empty region")
    return float(confidence(probabilities(case.seen.logits, bound.activation), bound))


def _ranks(case: HeatmapCase, movable: Tensor) -> Tensor:
    """Ranks [H, W] of the pixels that may go or come, 0 = hottest; all others come after these."""
    heat = case.heatmap.to(movable.device)
    inside = heat[case.seen.bound.valid[0]]
    if bool((inside == inside[0]).all()):
        raise Undefined("flat heatmap")
    return rank_pixels(heat, movable, seeded("ties", case.seed))


def _filled(case: HeatmapCase, keep: Tensor) -> Tensor:
    """The picture [B, H, W] with the fill outside `keep` [H, W]."""
    return case.fill(case.seen.images, keep[None])[0]


def _confidences(case: HeatmapCase, pictures: Iterable[Tensor]) -> list[float]:
    """Confidence on R of pictures [B, H, W], in order."""
    bound = case.seen.bound
    values: list[float] = []
    for p in forward_perturbed(case, pictures):
        values += confidence(p, bound).tolist()
    return values


def forward_perturbed(case: HeatmapCase, pictures: Iterable[Tensor]) -> Iterator[Tensor]:
    """Probabilities [n, K, H, W] of pictures that are made and shown a batch at a time."""
    for part in _chunks(pictures, case.seen.batch):
        with torch.inference_mode(), evaluating(case.model):
            logits = _finite(case.model.shown(torch.stack(part)))
        yield probabilities(logits, case.seen.bound.activation)


def _finite(logits: Tensor) -> Tensor:
    if not all_finite(logits):
        raise ModelError(
            "logits of a perturbed picture that are not finite", "numbers", "take another fill"
        )
    return logits


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
