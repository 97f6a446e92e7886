"""Computes maps by showing the network the picture, or a layer, with parts left out.

Masks of channels (Score-CAM), channels set to zero (Ablation-CAM, Kernel-Weighted), random masks
(RISE) and windows (occlusion). No gradients take part. Formulas: docs/reference/measures.md,
"Heatmaps".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from segproof.errors import ModelError, StudyError
from segproof.explain.cam import TINY, RawMap, channel_covariance, weighted_sum
from segproof.explain.forward_pass import Capture, rerun
from segproof.explain.methods import RISE_MASKS
from segproof.models import SegmentationModel, evaluating, probabilities
from segproof.perturb import seeded

__all__ = [
    "ablation_cam",
    "baseline_of",
    "kernel_weighted",
    "occlusion",
    "occlusion_forwards",
    "occlusion_windows",
    "representatives",
    "rise",
    "rise_masks",
    "score_cam",
]


def score_cam(
    capture: Capture,
    layer: str,
    model: SegmentationModel,
    *,
    weights: Literal["increase", "softmax"] = "increase",
    channels: int | None = None,
) -> RawMap:
    """Score-CAM: each channel, upsampled to M_k in [0, 1], is shown to the network as a mask.

    `increase`: s_k = Y(M_k x + (1 - M_k) b) - Y(b), w = ReLU(s) / sum ReLU(s); channels that are
    constant weigh 0 and cost no forward. `softmax` (published): w = softmax of raw Y, masks
    upsampled with align_corners=True. b is `capture.baseline`. Streams: memory does not grow with K
    (wang2020scorecam). With `channels`, only the `representatives` of that number are shown,
    and the others take the score of theirs: a shortcut, another map.

    Raises:
        ModelError: the capture has no baseline.
        StudyError: fewer than one channel.
    """
    if channels is not None and channels < 1:
        raise StudyError(f"{channels} channels", "1 or more", "name more, or leave it out")
    published = weights == "softmax"
    activation = capture.activations[layer]
    rows, forwards = [], 0
    for n in range(activation.shape[0]):
        scores, empty, cost = _channel_scores(
            capture, activation[n], n, model, published=published, most=channels
        )
        if published:
            rows.append(scores.softmax(dim=0))
        else:
            gain = (scores - empty).relu()
            rows.append(gain / gain.sum().clamp(min=torch.finfo(gain.dtype).tiny))
        forwards += cost
    share = torch.stack(rows)
    effective = torch.special.entr(share.double()).sum(dim=1).exp() * (share.sum(dim=1) > 0)
    return RawMap(weighted_sum(share.to(activation), activation), effective, forwards)


def _channel_scores(
    capture: Capture,
    activation: Tensor,
    n: int,
    model: SegmentationModel,
    *,
    published: bool,
    most: int | None,
) -> tuple[Tensor, Tensor, int]:
    """Y of picture n behind each channel's mask [K], Y of the bare baseline, and the forwards
    spent.
    """
    image, base, bound = capture.images[n], baseline_of(capture, n), capture.bound.picture(n)
    low, high = activation.amin(dim=(1, 2)), activation.amax(dim=(1, 2))
    # published: only an exactly constant channel has an empty mask, whatever its size
    floor = 0.0 if published else TINY
    live = (high - low) > floor * torch.maximum(low.abs(), high.abs())
    every = channels = live.nonzero()[:, 0]
    if most is not None and most < len(every):
        chosen, owner = representatives(activation[every], most)
        channels = every[chosen]
    with torch.no_grad(), evaluating(model):
        empty = bound.score(model.shown(base[None]))[0]
        scores = empty.repeat(activation.shape[0])
        for start in range(0, len(channels), capture.batch):
            part = channels[start : start + capture.batch]
            masks = _masks(activation[part], image.shape[-2:], published=published)
            shown = torch.lerp(base, image, masks[:, None])
            scores[part] = bound.score(model.shown(shown))
    if len(channels) < len(every):
        scores[every] = scores[channels][owner]
    return scores, empty, 1 + len(channels)


def representatives(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` of the maps [K, h, w] that stand for all: their numbers [count], and for each map the
    place among them of the one that it correlates with the most [K].

    Maps are scaled to [0, 1]. The first one has the largest variance, each further one the largest
    that is left when those before it are projected out: pivots of a Cholesky factorisation of their
    covariance (chen2018dpp).
    """
    rows = maps.flatten(1)
    low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
    rows = (rows - low) / (high - low)
    covariance = channel_covariance(rows - rows.mean(dim=1, keepdim=True))
    left, factor = covariance.diagonal().clone(), covariance.new_zeros(len(rows), count)
    chosen: list[int] = []
    for step in range(count):
        pivot = int(left.argmax())
        column = covariance[:, pivot] - factor @ factor[pivot]
        factor[:, step] = column / left[pivot].clamp(min=torch.finfo(left.dtype).tiny).sqrt()
        left -= factor[:, step].square()
        chosen.append(pivot)
        left[chosen] = -torch.inf
    size = covariance.diagonal().sqrt()
    owner = (covariance[:, chosen] / size[chosen]).argmax(dim=1)
    owner[chosen] = torch.arange(count)
    return torch.tensor(chosen, device=maps.device), owner.to(maps.device)


def _masks(activation: Tensor, size: torch.Size, *, published: bool) -> Tensor:
    masks = interpolate(
        activation[None], size=tuple(size), mode="bilinear", align_corners=published
    )[0]
    low, high = masks.amin(dim=(1, 2), keepdim=True), masks.amax(dim=(1, 2), keepdim=True)
    return (masks - low) / (high - low + (1e-8 if published else 0.0))


def ablation_cam(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Ablation-CAM: w_k = (Y - Y with A_k zeroed) / |Y|; sum over k of w_k A_k (desai2020ablation).

    |Y| is the published Y wherever that is positive; a negative Y, as mean logits can be, would
    turn the map round. Channels that are zero everywhere weigh 0 and cost no forward. Only what
    runs after the layer is run for each channel (`capture.rerun`). A map whose every change of Y is
    rounding noise is zero.
    """
    activation, rows, forwards = capture.activations[layer], [], 0
    for n in range(activation.shape[0]):
        drops, cost = _ablated_drops(capture, activation[n], n, layer, model)
        rows.append(drops)
        forwards += cost
    return RawMap(weighted_sum(torch.stack(rows).to(activation), activation), forwards=forwards)


def _ablated_drops(
    capture: Capture, activation: Tensor, n: int, layer: str, model: SegmentationModel
) -> tuple[Tensor, int]:
    """Relative loss of Y of picture n without each channel of its activations [K, h, w]: [K], and
    the forwards spent.
    """
    bound = capture.bound.picture(n)
    channels = activation.flatten(1).any(dim=1).nonzero()[:, 0]
    with rerun(model, layer, capture.images[n]) as (clean, logits_of):
        # summed in float64: one channel may change Y by less than a float32 sum is exact
        whole = bound.score(clean.double())[0]
        scores = whole.repeat(len(activation))
        for start in range(0, len(channels), capture.batch):
            part = channels[start : start + capture.batch]
            ablated = activation.repeat(len(part), 1, 1, 1)
            ablated[torch.arange(len(part)), part] = 0
            scores[part] = bound.score(logits_of(ablated).double())
    drops, size = whole - scores, whole.abs()
    if drops.abs().max() <= 8 * torch.finfo(activation.dtype).eps * size:
        return torch.zeros_like(drops), 1 + len(channels)
    # Y about 0: the common divisor is left out, which no heatmap shows
    usable = size > TINY * drops.abs().max()
    return drops / torch.where(usable, size, 1.0), 1 + len(channels)


def kernel_weighted(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Kernel-Weighted Contribution: sum over k of w_k |A_k|; with o = p_c inside R, whatever Y is,
    w_k = sum(o - min(o, o without A_k)) * sum(min(o, o of A_k alone)) / sum(o).

    What is lost when a channel is zeroed, times what is left when all others are: both are >= 0, so
    no channel speaks against the class. Channels that are zero everywhere weigh 0 and cost no
    forward, others two of what runs after the layer. A map whose every loss is rounding noise is
    zero (mullan2023kernelweighted).
    """
    activation, rows, forwards = capture.activations[layer], [], 0
    for n in range(activation.shape[0]):
        weights, cost = _contributions(capture, activation[n], n, layer, model)
        rows.append(weights)
        forwards += cost
    weighted = weighted_sum(torch.stack(rows).to(activation), activation.abs())
    return RawMap(weighted, forwards=forwards)


def _contributions(
    capture: Capture, activation: Tensor, n: int, layer: str, model: SegmentationModel
) -> tuple[Tensor, int]:
    """Dependent times independent share of o of picture n for each channel of its activations
    [K, h, w]: [K], and the forwards spent.
    """
    bound = capture.bound.picture(n)
    channels = activation.flatten(1).any(dim=1).nonzero()[:, 0]

    def read(logits: Tensor) -> Tensor:
        # in float64: one channel may change p by less than a float32 sum is exact
        p = probabilities(logits.double(), bound.activation)[:, bound.class_index]
        return p * bound.region

    with rerun(model, layer, capture.images[n]) as (clean, logits_of):
        whole = read(clean)
        size = whole.sum()
        lost, left = size.new_zeros(2, len(activation))
        for start in range(0, len(channels), capture.batch):
            part = channels[start : start + capture.batch]
            rows = torch.arange(len(part), device=part.device)
            without = activation.repeat(len(part), 1, 1, 1)
            without[rows, part] = 0
            lost[part] = (whole - read(logits_of(without))).relu().sum(dim=(1, 2))
            alone = torch.zeros_like(without)
            alone[rows, part] = activation[part]
            left[part] = torch.minimum(read(logits_of(alone)), whole).sum(dim=(1, 2))
    # one-sided, so that rounding errors of single pixels add up instead of cancelling
    if lost.max() <= 64 * torch.finfo(activation.dtype).eps * size:
        return torch.zeros_like(lost), 1 + 2 * len(channels)
    return lost * left / size, 1 + 2 * len(channels)


def rise(
    capture: Capture,
    layer: str,
    model: SegmentationModel,
    *,
    masks: int = RISE_MASKS,
    cells: int = 8,
    keep: float = 0.5,
    centred: bool = True,
    seed: int = 0,
) -> RawMap:
    """RISE: Y of the picture behind random smooth masks M_i, averaged over those that show a pixel.

    sum_i Y_i M_i / sum_i M_i - mean(Y), so that 0 is no influence; the published sum_i Y_i M_i / (N
    `keep`) with `centred` off. Masks are grids of `cells` x `cells`, shown with the chance `keep`,
    shifted at random and upsampled. Hidden pixels are `capture.baseline`. No layer takes part: the
    map [N, H, W] is at the picture's size (petsiuk2018rise).

    Raises:
        ModelError: the capture has no baseline.
    """
    size = (capture.images.shape[-2], capture.images.shape[-1])
    maps = []
    for n in range(len(capture.images)):
        image, base, bound = capture.images[n], baseline_of(capture, n), capture.bound.picture(n)
        shares = torch.zeros(size, dtype=torch.float64, device=image.device)
        total, scores = shares.clone(), []
        drawn = rise_masks(size, masks=masks, cells=cells, keep=keep, seed=seed)
        with torch.no_grad(), evaluating(model):
            for part in _batches(drawn, capture.batch):
                shown = torch.stack(part).to(image)
                score = bound.score(model.shown(torch.lerp(base, image, shown[:, None]))).double()
                shares += shown.double().sum(dim=0)
                total += (score[:, None, None] * shown).sum(dim=0)
                scores.append(score)
        if centred:
            usable = shares > 0
            mean = torch.cat(scores).mean()
            maps.append(torch.where(usable, total / torch.where(usable, shares, 1.0) - mean, 0.0))
        else:
            maps.append(total / (masks * keep))
    return RawMap(torch.stack(maps).to(capture.images), forwards=masks * len(capture.images))


def rise_masks(
    size: tuple[int, int], *, masks: int, cells: int, keep: float, seed: int
) -> Iterator[Tensor]:
    """The masks of `rise`, [H, W] in [0, 1], one after the other; they depend on `seed` alone."""
    generator = seeded("rise", seed)
    height, width = (-(-side // cells) for side in size)
    for _ in range(masks):
        grid = torch.rand(cells + 1, cells + 1, generator=generator) < keep
        wide = interpolate(
            grid[None, None].float(),
            size=((cells + 1) * height, (cells + 1) * width),
            mode="bilinear",
            align_corners=False,
        )[0, 0]
        top = int(torch.randint(height, (1,), generator=generator))
        left = int(torch.randint(width, (1,), generator=generator))
        yield wide[top : top + size[0], left : left + size[1]]


def occlusion(
    capture: Capture,
    layer: str,
    model: SegmentationModel,
    *,
    window: int | None = None,
    stride: int | None = None,
) -> RawMap:
    """Occlusion: Y - Y without a square window, averaged over the windows that cover a pixel.

    `window` is an eighth of the shorter side, `stride` half a window, px. What a window hides is
    `capture.baseline`. No layer takes part: the map [N, H, W] is at the picture's size
    (zeiler2014visualizing).

    Raises:
        ModelError: the capture has no baseline.
    """
    height, width = capture.images.shape[-2:]
    places = occlusion_windows((height, width), window, stride)
    maps = []
    for n in range(len(capture.images)):
        image, base, bound = capture.images[n], baseline_of(capture, n), capture.bound.picture(n)
        whole = bound.score(capture.logits[n : n + 1].double())[0]
        drops = torch.zeros(height, width, dtype=torch.float64, device=image.device)
        count = torch.zeros_like(drops)
        with torch.no_grad(), evaluating(model):
            for part in _batches(iter(places), capture.batch):
                hidden = torch.zeros(len(part), 1, height, width, dtype=torch.bool)
                for place, (rows, columns) in enumerate(part):
                    hidden[place, 0, rows, columns] = True
                shown = torch.where(hidden.to(image.device), base, image)
                drop = whole - bound.score(model.shown(shown).double())
                for (rows, columns), value in zip(part, drop, strict=True):
                    drops[rows, columns] += value
                    count[rows, columns] += 1
        maps.append(drops / count)
    return RawMap(torch.stack(maps).to(capture.images), forwards=len(places) * len(capture.images))


def occlusion_windows(
    size: tuple[int, int], window: int | None = None, stride: int | None = None
) -> list[tuple[slice, slice]]:
    """Rows and columns of each window of `occlusion`; the last ones end at the picture's edges."""
    window = min(window or max(1, round(min(size) / 8)), *size)
    stride = min(stride or max(1, window // 2), window)
    rows, columns = (sorted({*range(0, side - window + 1, stride), side - window}) for side in size)
    return [(slice(y, y + window), slice(x, x + window)) for y in rows for x in columns]


def occlusion_forwards(size: tuple[int, int]) -> int:
    """Forwards that `occlusion` spends on a picture of `size` (H, W), one a window."""
    return len(occlusion_windows(size))


def baseline_of(capture: Capture, n: int) -> Tensor:
    """What stands in for hidden pixels of picture n, [B, H, W].

    Raises:
        ModelError: the capture has no baseline.
    """
    if capture.baseline is None:
        raise ModelError("a capture without a baseline", "b [N, B, H, W]", "pass baseline=")
    return capture.baseline[n]


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while part := list(itertools.islice(items, size)):
        yield part
