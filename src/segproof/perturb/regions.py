"""Cuts a heatmap into a region, widens regions, and says which pixels a strategy keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import max_pool2d

from segproof.errors import SegproofError, UnknownNameError
from segproof.perturb.seeding import seeded

__all__ = [
    "STRATEGIES",
    "binarise",
    "dilate",
    "keep_mask",
    "largest_square",
    "otsu_threshold",
    "rank_pixels",
    "rough_noise",
    "roughen",
    "soft_keep",
]


def rank_pixels(heatmap: Tensor, valid: Tensor | None, generator: torch.Generator) -> Tensor:
    """Rank of each pixel [H, W], 0 = highest heat; ties in a seeded order, invalid pixels last."""
    flat = heatmap.flatten().cpu()
    if valid is not None:
        flat = torch.where(valid.flatten().cpu(), flat, -math.inf)
    shuffled = torch.randperm(flat.numel(), generator=generator)
    order = shuffled[_falling(flat[shuffled])]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(order.numel())
    return ranks.view(heatmap.shape).to(heatmap.device)


def _falling(values: Tensor) -> Tensor:
    """Places of values [n], the highest first, equal ones in order: a stable argsort, which takes
    three times as long.
    """
    if values.dtype == torch.float64:
        return torch.argsort(values, descending=True, stable=True)
    # the bits of a float, read as a whole number, have its order; adding 0 makes -0 one with 0
    bits = (0.0 - values.float()).view(torch.int32)
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    places = torch.arange(len(values), device=values.device)
    return torch.sort((rising.long() << 32) + places).values & 0xFFFFFFFF


def binarise(
    heatmap: Tensor,
    *,
    threshold: float | None = None,
    area: float | None = None,
    mass: float | None = None,
    otsu: bool = False,
    valid: Tensor | None = None,
    ranks: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """The highlighted region B, bool [H, W], of a heatmap S [H, W] in [0, 1].

    `threshold` t: S > t. `area` q: exactly round(q |V|) pixels, highest S first, ties in the order
    of `seed`. `mass` m: the fewest pixels, in that order, that hold the share m of the sum of S.
    `otsu`: S > the threshold that parts the valid pixels best (otsu1979threshold). `ranks` are
    those of `rank_pixels`, where one heatmap is cut several times.

    Raises:
        SegproofError: not exactly one of the four, or a level outside (0, 1).
    """
    given = {"threshold": threshold, "area": area, "mass": mass, "otsu": 0.5 if otsu else None}
    named = [(name, level) for name, level in given.items() if level is not None]
    if len(named) != 1:
        raise SegproofError(
            f"{len(named)} ways to binarise", "threshold, area, mass or otsu", "give one of them"
        )
    [(name, level)] = named
    if not 0 < level < 1:
        raise SegproofError(f"{name} {level}", "a number between 0 and 1", "check the level")
    if name in ("threshold", "otsu"):
        limit = level if name == "threshold" else otsu_threshold(heatmap, valid)
        region = heatmap > limit
        return region if valid is None else region & valid
    if ranks is None:
        ranks = rank_pixels(heatmap, valid, seeded("ties", seed))
    if name == "area":
        total = heatmap.numel() if valid is None else int(valid.sum())
        return ranks < round(level * total)
    counted = heatmap.double() if valid is None else heatmap.double() * valid
    held = torch.zeros(heatmap.numel(), dtype=torch.float64, device=heatmap.device)
    held[ranks.flatten()] = counted.flatten()
    sums = held.cumsum(0)
    # a hair less than the share: sums of float64 may end just below what they should reach
    wanted = level * float(sums[-1]) * (1 - 1e-12)
    return ranks < int((sums < wanted).sum()) + 1 if float(sums[-1]) > 0 else ranks < 0


def otsu_threshold(heatmap: Tensor, valid: Tensor | None = None, *, bins: int = 256) -> float:
    """The edge of `bins` equal steps of [0, 1] that makes the variance between the pixels of S
    [H, W] above it and the others largest; the first of equals (otsu1979threshold).
    """
    values = (heatmap.flatten() if valid is None else heatmap[valid]).double().cpu().clamp(0, 1)
    place = (values * bins).ceil().long().clamp(1, bins) - 1  # S > edge: a pixel on it is below
    count = torch.bincount(place, minlength=bins).double()
    total = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, values)
    below, sums = count.cumsum(0), total.cumsum(0)
    above = below[-1] - below
    apart = sums / below.clamp(min=1) - (sums[-1] - sums) / above.clamp(min=1)
    between = below * above * apart.square()
    return (int(between.argmax()) + 1) / bins


STRATEGIES: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "background_only": lambda region, target: ~region,  # M1
    "highlighted_only": lambda region, target: region,  # M2
    "highlighted_and_target": lambda region, target: region | target,  # M3
}


def keep_mask(strategy: str, region: Tensor, target: Tensor) -> Tensor:
    """Pixels that stay, bool [..., H, W], for the highlighted `region` B and the `target` R.

    Raises:
        UnknownNameError: no such strategy.
    """
    if strategy not in STRATEGIES:
        raise UnknownNameError.of("strategy", strategy, STRATEGIES)
    return STRATEGIES[strategy](region, target)


def soft_keep(strategy: str, heatmap: Tensor, target: Tensor) -> Tensor:
    """How much of each pixel stays, float [H, W] in [0, 1], for S itself in place of a region.

    M1: 1 - S; M2: S; M3: max(S, R). A map of zeros and ones gives `keep_mask`.

    Raises:
        UnknownNameError: no such strategy.
    """
    soft = {
        "background_only": lambda: 1 - heatmap,
        "highlighted_only": lambda: heatmap,
        "highlighted_and_target": lambda: torch.where(target, 1.0, heatmap),
    }
    if strategy not in soft:
        raise UnknownNameError.of("strategy", strategy, soft)
    return soft[strategy]()


def rough_noise(size: tuple[int, int], pixels: int, generator: torch.Generator) -> Tensor:
    """How far outlines are moved at each place, float [H, W] in [0, `pixels`] px, all values alike
    often: the ranks of Gaussian noise blurred by half as many px.
    """
    noise = torch.randn(size, generator=generator, dtype=torch.float64).numpy()
    smooth = ndimage.gaussian_filter(noise, sigma=max(pixels / 2, 1e-6), mode="reflect")
    ranks = np.empty(smooth.size, dtype=np.float32)
    ranks[smooth.ravel().argsort(kind="stable")] = np.linspace(0, pixels, smooth.size)
    return torch.from_numpy(ranks.reshape(size))


def roughen(region: Tensor, noise: Tensor) -> Tensor:
    """A region, bool [H, W], whose outline is moved outwards by `noise` [H, W] px >= 0.

    All pixels at most as far (Euclidean) from the region as the noise is there: it contains the
    region, reaches no farther than the noise, and nested regions stay nested.
    """
    mask = region.cpu().numpy()
    if not mask.any():
        return region
    distance = torch.from_numpy(ndimage.distance_transform_edt(~mask)).to(region.device)
    return distance <= noise.to(region.device)


def largest_square(mask: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the largest square of a mask, bool [H, W]; the first of equals."""
    inside = np.pad(mask.cpu().numpy(), 1)
    distance = ndimage.distance_transform_cdt(inside, metric="chessboard")
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    reach = max(int(distance.max()) - 1, 0)
    top, left = int(row) - 1 - reach, int(column) - 1 - reach
    return slice(max(top, 0), top + 2 * reach + 1), slice(max(left, 0), left + 2 * reach + 1)


def dilate(mask: Tensor, pixels: int) -> Tensor:
    """A bool mask [..., H, W] grown by `pixels` in each direction (a square)."""
    if pixels <= 0:
        return mask
    side = 2 * pixels + 1
    planes = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    return (max_pool2d(planes, side, stride=1, padding=pixels) > 0).view(mask.shape)
