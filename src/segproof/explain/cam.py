"""The CAM family for segmentation: one function per method, from a capture to a signed raw map.

D = dY/dA of the layer, A its activations [N, K, h, w]; ReLU, resizing and normalisation come later
(`explain`), so that raw maps can be kept. Formulas: docs/reference/measures.md, section "Heatmaps".
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate, max_pool2d

from segproof.errors import ModelError, SegproofError, StudyError
from segproof.explain.forward_pass import Capture, frozen, rerun
from segproof.models import SegmentationModel, evaluating, probabilities
from segproof.perturb import seeded

__all__ = [
    "CHANNELWISE",
    "INPUT_LAYER",
    "LAYERLESS",
    "METHODS",
    "PAPER_METHODS",
    "Method",
    "RawMap",
    "ablation_cam",
    "eigen_cam",
    "eigen_grad_cam",
    "grad_cam",
    "grad_cam_elementwise",
    "grad_cam_pp",
    "hires_cam",
    "input_x_gradient",
    "integrated_gradients",
    "kernel_weighted",
    "layer_cam",
    "occlusion",
    "reads_baseline",
    "rise",
    "score_cam",
    "seg_eigen_cam",
    "seg_xres_cam",
    "xgrad_cam",
]

TINY: Final = 1e-6  # relative: below it a float32 sum or denominator is rounding noise
_PIXELS: Final = 1 << 14  # columns per block of the covariance: bounds its float64 copy
RISE_MASKS: Final = 512
INTEGRATED_STEPS: Final = 32


class RawMap(NamedTuple):
    """A signed map [N, h, w], Score-CAM's effective channels [N], and the forwards that were
    spent.
    """

    values: Tensor
    effective_channels: Tensor | None = None
    forwards: int = 0


Method = Callable[[Capture, str, SegmentationModel], RawMap | Tensor]


def _weighted_sum(weights: Tensor, activations: Tensor) -> Tensor:
    return torch.einsum("nk,nkhw->nhw", weights, activations)


def grad_cam(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Grad-CAM: sum over k of mean(D_k) A_k (selvaraju2017gradcam, vinogradova2020seggradcam)."""
    weights = capture.gradients[layer].mean(dim=(2, 3))
    return RawMap(_weighted_sum(weights, capture.activations[layer]))


def grad_cam_pp(
    capture: Capture, layer: str, model: SegmentationModel, *, eps: float | None = None
) -> RawMap:
    """Grad-CAM++: a = D^2 / (2 D^2 + S D^3) with S = sum of A_k; w_k = sum of a ReLU(D).

    a = 0 where D = 0 or the denominator is about 0 relative to its terms (signed activations).
    `eps` is the published absolute guard instead. The map depends on the scale of Y: that is the
    method, not an accident (chattopadhay2018gradcampp).
    """
    slope, activation = capture.gradients[layer], capture.activations[layer]
    total = activation.sum(dim=(2, 3), keepdim=True)
    if eps is None:
        # D^2 is divided out: squares of small gradients underflow in float32
        positive = slope.relu()
        denominator = (total * positive).add_(2)
        share = positive / denominator
        if bool((total < 0).any()):  # else the denominator is at least 2
            usable = denominator.abs() > TINY * (2 + (total * positive).abs())
            share = torch.where(usable, share, 0.0)
    else:
        square = slope**2
        alpha = square / (2 * square + total * square * slope + eps)
        share = torch.where(slope != 0, alpha, 0.0) * slope.relu()
    weights = share.sum(dim=(2, 3))
    return RawMap(_weighted_sum(weights, activation))


def xgrad_cam(
    capture: Capture, layer: str, model: SegmentationModel, *, eps: float | None = None
) -> RawMap:
    """XGrad-CAM: w_k = sum(D_k A_k) / sum(A_k) (fu2020xgradcam).

    A channel whose sum is about 0 next to sum(|A_k|) is divided by the latter; an empty one weighs
    0. `eps` is the published absolute guard instead.
    """
    slope, activation = capture.gradients[layer], capture.activations[layer]
    total = activation.sum(dim=(2, 3))
    if eps is None:
        size = activation.abs().sum(dim=(2, 3))
        total = torch.where(total.abs() > TINY * size, total, size)
        usable = total != 0
        shares = (slope * activation).sum(dim=(2, 3))
        weights = torch.where(usable, shares / torch.where(usable, total, 1.0), 0.0)
    else:
        weights = (slope * activation / (total[..., None, None] + eps)).sum(dim=(2, 3))
    return RawMap(_weighted_sum(weights, activation))


def hires_cam(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """HiRes-CAM: sum over k of D_k * A_k, pixel by pixel (draelos2020hirescam).

    Before a last 1x1 convolution the map sums to Y minus the bias: nothing else is highlighted.
    """
    return RawMap((capture.gradients[layer] * capture.activations[layer]).sum(dim=1))


def layer_cam(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Layer-CAM: sum over k of ReLU(D_k) * A_k, pixel by pixel (jiang2021layercam)."""
    return RawMap((capture.gradients[layer].relu() * capture.activations[layer]).sum(dim=1))


def grad_cam_elementwise(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Grad-CAM element-wise: sum over k of ReLU(D_k * A_k), pixel by pixel (gildenblat2021cam).

    Layer-CAM where activations are not negative; where they are, two negatives count.
    """
    return RawMap((capture.gradients[layer] * capture.activations[layer]).relu().sum(dim=1))


def seg_xres_cam(
    capture: Capture,
    layer: str,
    model: SegmentationModel,
    *,
    window: int = 4,
    pool: Literal["mean", "max"] = "mean",
) -> RawMap:
    """Seg-XRes-CAM: HiRes-CAM with D pooled over windows of `window` x `window` pixels of the layer
    and spread over them again (hasany2023segxrescam).

    A window of 1 is HiRes-CAM, one of the whole layer Grad-CAM. Windows cut by the right and lower
    edge pool what they hold, so every size will do; the published code fills them with zeros there.
    """
    slope, activation = capture.gradients[layer], capture.activations[layer]
    height, width = slope.shape[-2:]
    if pool == "mean":
        pooled = avg_pool2d(slope, window, ceil_mode=True, count_include_pad=False)
    else:
        pooled = max_pool2d(slope, window, ceil_mode=True)
    spread = pooled.repeat_interleave(window, dim=2).repeat_interleave(window, dim=3)
    return RawMap((spread[:, :, :height, :width] * activation).sum(dim=1))


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
    (wang2020scorecam). With `channels`, only so many are shown, those of `representatives`, and
    the others take the score of theirs: a shortcut, another map.

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
    return RawMap(_weighted_sum(share.to(activation), activation), effective, forwards)


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
    image, base, bound = capture.images[n], _baseline(capture, n), capture.bound.picture(n)
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
    covariance = _covariance(rows - rows.mean(dim=1, keepdim=True))
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
    return RawMap(_weighted_sum(torch.stack(rows).to(activation), activation), forwards=forwards)


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
    weighted = _weighted_sum(torch.stack(rows).to(activation), activation.abs())
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


def eigen_cam(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Eigen-CAM: sum over k of v_k A_k, channels centred, v the first principal direction.

    v is the leading eigenvector of the K x K covariance in float64; its sign is the one whose map
    correlates with the predicted mask P. Class-agnostic: the target only chooses the sign, and
    channels without influence on the output count (muhammad2020eigencam).
    """
    projection = _principal(capture.activations[layer])
    return RawMap(projection * _sign(capture, projection)[:, None, None])


def eigen_grad_cam(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Eigen-Grad-CAM: Eigen-CAM of D * A instead of A, the sign again from P (gildenblat2021cam).

    The sign of the gradients is lost with that of v: what speaks against the class can stand out.
    """
    projection = _principal(capture.gradients[layer] * capture.activations[layer])
    return RawMap(projection * _sign(capture, projection)[:, None, None])


def seg_eigen_cam(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Seg-Eigen-CAM: first principal component of |D| * A, flipped where |min| > max.

    Another method than Eigen-CAM, which has no gradients, and than Eigen-Grad-CAM, which has signed
    ones; the sign comes from the map alone, not from P (chung2025segeigencam).
    """
    projection = _principal(capture.gradients[layer].abs() * capture.activations[layer])
    flip = -projection.amin(dim=(1, 2)) > projection.amax(dim=(1, 2))
    return RawMap(torch.where(flip[:, None, None], -projection, projection))


def _principal(maps: Tensor) -> Tensor:
    """Projection [N, h, w] of the centred channels of maps [N, K, h, w] on their first principal
    direction, of either sign.
    """
    centred = maps.flatten(2) - maps.flatten(2).mean(dim=2, keepdim=True)
    found = []
    for rows in centred:
        direction = torch.linalg.eigh(_covariance(rows)).eigenvectors[:, -1].to(rows)
        found.append((direction @ rows).view(maps.shape[-2:]))
    return torch.stack(found)


def _covariance(rows: Tensor) -> Tensor:
    """Products of centred rows [K, n] with each other, [K, K], float64 on the CPU."""
    covariance = torch.zeros(rows.shape[0], rows.shape[0], dtype=torch.float64)
    for block in torch.split(rows, _PIXELS, dim=1):
        wide = block.double()
        covariance += (wide @ wide.T).cpu()
    return covariance


def _sign(capture: Capture, projection: Tensor) -> Tensor:
    """+1 or -1 per picture: correlation with P, else with p_c, else the larger excursion."""
    bound, size = capture.bound, projection.shape[-2:]
    wide = projection.double()

    def agreement(guide: Tensor) -> Tensor:
        if guide.shape[-2:] != size:
            guide = adaptive_avg_pool2d(guide[:, None], (size[0], size[1]))[:, 0]
        return (wide * (guide - guide.mean(dim=(1, 2), keepdim=True))).sum(dim=(1, 2)).sign()

    sign = agreement(bound.prediction.double())
    if bool((sign == 0).any()):
        probability = probabilities(capture.logits, bound.activation)[:, bound.class_index]
        sign = torch.where(sign == 0, agreement((probability * bound.valid).double()), sign)
        high, low = wide.amax(dim=(1, 2)), -wide.amin(dim=(1, 2))
        sign = torch.where(sign == 0, torch.where(high >= low, 1.0, -1.0).double(), sign)
    return sign.to(projection)


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
    found = []
    for n in range(len(capture.images)):
        image, base, bound = capture.images[n], _baseline(capture, n), capture.bound.picture(n)
        seen = torch.zeros(size, dtype=torch.float64, device=image.device)
        total, scores = seen.clone(), []
        drawn = rise_masks(size, masks=masks, cells=cells, keep=keep, seed=seed)
        with torch.no_grad(), evaluating(model):
            for part in _batches(drawn, capture.batch):
                shown = torch.stack(part).to(image)
                score = bound.score(model.shown(torch.lerp(base, image, shown[:, None]))).double()
                seen += shown.double().sum(dim=0)
                total += (score[:, None, None] * shown).sum(dim=0)
                scores.append(score)
        if centred:
            usable = seen > 0
            mean = torch.cat(scores).mean()
            found.append(torch.where(usable, total / torch.where(usable, seen, 1.0) - mean, 0.0))
        else:
            found.append(total / (masks * keep))
    return RawMap(torch.stack(found).to(capture.images), forwards=masks * len(capture.images))


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
    found = []
    for n in range(len(capture.images)):
        image, base, bound = capture.images[n], _baseline(capture, n), capture.bound.picture(n)
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
        found.append(drops / count)
    return RawMap(torch.stack(found).to(capture.images), forwards=len(places) * len(capture.images))


def occlusion_windows(
    size: tuple[int, int], window: int | None = None, stride: int | None = None
) -> list[tuple[slice, slice]]:
    """Rows and columns of each window of `occlusion`; the last ones end at the picture's edges."""
    window = min(window or max(1, round(min(size) / 8)), *size)
    stride = min(stride or max(1, window // 2), window)
    rows, columns = (sorted({*range(0, side - window + 1, stride), side - window}) for side in size)
    return [(slice(y, y + window), slice(x, x + window)) for y in rows for x in columns]


def input_x_gradient(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Gradient x input: sum over bands of x dY/dx, [N, H, W], by captum (shrikumar2016notjust).

    A yardstick from outside, not a CAM. It depends on where the image's units have their 0.
    """
    captum = _captum()

    def of(score: Callable[[Tensor], Tensor], image: Tensor, _base: Tensor) -> Tensor:
        made: Tensor = captum.InputXGradient(score).attribute(image)
        return made

    return _by_captum(capture, model, of, 1)


def integrated_gradients(
    capture: Capture, layer: str, model: SegmentationModel, *, steps: int = INTEGRATED_STEPS
) -> RawMap:
    """Integrated gradients: sum over bands of (x - b) times the mean of dY/dx on the way from b to
    x, [N, H, W], by captum (sundararajan2017axiomatic).

    A yardstick from outside, not a CAM. The map sums to Y(x) - Y(b) up to the error of `steps`
    (Gauss-Legendre); b is `capture.baseline`.
    """
    captum = _captum()

    def of(score: Callable[[Tensor], Tensor], image: Tensor, base: Tensor) -> Tensor:
        made: Tensor = captum.IntegratedGradients(score).attribute(
            image, baselines=base, n_steps=steps, internal_batch_size=capture.batch
        )
        return made

    return _by_captum(capture, model, of, steps)


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise SegproofError(
            "no captum in this environment",
            "the extra captum for gradients at the input",
            'pip install "segproof[captum]"',
        ) from error
    return captum.attr


def _by_captum(
    capture: Capture,
    model: SegmentationModel,
    of: Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor],
    cost: int,
) -> RawMap:
    found = []
    with torch.inference_mode(mode=False), torch.enable_grad(), evaluating(model), frozen(model):
        for n in range(len(capture.images)):
            bound = capture.bound.picture(n)

            def score(images: Tensor, bound: Any = bound) -> Tensor:
                scores: Tensor = bound.score(model(images))
                return scores

            image = capture.images[n : n + 1].detach().clone().requires_grad_()
            base = torch.zeros_like(image) if capture.baseline is None else _baseline(capture, n)
            found.append(of(score, image, base.expand_as(image)).detach().sum(dim=1)[0])
    return RawMap(torch.stack(found), forwards=cost * len(found))


def _baseline(capture: Capture, n: int) -> Tensor:
    if capture.baseline is None:
        raise ModelError("a capture without a baseline", "b [N, B, H, W]", "pass baseline=")
    return capture.baseline[n]


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while part := list(itertools.islice(items, size)):
        yield part


METHODS: Final[dict[str, Method]] = {
    "grad_cam": grad_cam,
    "grad_cam_pp": grad_cam_pp,
    "xgrad_cam": xgrad_cam,
    "score_cam": score_cam,
    "eigen_cam": eigen_cam,
    "hires_cam": hires_cam,
    "layer_cam": layer_cam,
    "grad_cam_elementwise": grad_cam_elementwise,
    "seg_xres_cam": seg_xres_cam,
    "seg_eigen_cam": seg_eigen_cam,
    "eigen_grad_cam": eigen_grad_cam,
    "ablation_cam": ablation_cam,
    "kernel_weighted": kernel_weighted,
    "rise": rise,
    "occlusion": occlusion,
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": integrated_gradients,
}

# Those that show the network something for each channel of the layer: forwards per channel.
CHANNELWISE: Final[dict[str, int]] = {"score_cam": 1, "ablation_cam": 1, "kernel_weighted": 2}

# Those that no layer takes part in, with the forwards that they cost on a picture of (H, W).
LAYERLESS: Final[dict[str, Callable[[tuple[int, int]], int]]] = {
    "rise": lambda size: RISE_MASKS,
    "occlusion": lambda size: len(occlusion_windows(size)),
    "input_x_gradient": lambda size: 1,
    "integrated_gradients": lambda size: INTEGRATED_STEPS,
}
_CLEAN: Final = frozenset(
    METHODS[name]
    for name in set(METHODS) - {"score_cam", "rise", "occlusion", "integrated_gradients"}
)


def reads_baseline(method: Method) -> bool:
    """Whether a method may show pictures with hidden pixels; of one that is not ours, it may."""
    return (method.func if isinstance(method, functools.partial) else method) not in _CLEAN


INPUT_LAYER: Final = "input"  # stands in tables where a layer's name does

# The same methods with the constants of the published protocol (measures.md, "paper" in detail).
PAPER_METHODS: Final[dict[str, Method]] = {
    **METHODS,
    "grad_cam_pp": functools.partial(grad_cam_pp, eps=1e-6),
    "xgrad_cam": functools.partial(xgrad_cam, eps=1e-7),
    "score_cam": functools.partial(score_cam, weights="softmax"),
    "rise": functools.partial(rise, centred=False),
}
