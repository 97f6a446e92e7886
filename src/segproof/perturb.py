"""From a heatmap to a region, from a region to a perturbed picture."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import conv2d, pad

from segproof.errors import DataError, SegproofError, UnknownNameError
from segproof.target import dilate

__all__ = [
    "FILLS",
    "STRATEGIES",
    "Clean",
    "Fill",
    "binarise",
    "keep_mask",
    "make_fill",
    "perturb",
    "random_blobs",
    "rank_pixels",
    "seeded",
]

Fill = Callable[[Tensor, Tensor], Tensor]

OUTLINE: Final = 4  # px around truth and prediction that are no background (eaves, own shadow)
SCARCE: Final = 0.01  # a smaller share of background is too little to make a texture of


def seeded(*key: object) -> torch.Generator:
    """A CPU generator that depends on `key` alone: the same on every machine, device and worker."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def rank_pixels(heatmap: Tensor, valid: Tensor | None, generator: torch.Generator) -> Tensor:
    """Rank of each pixel [H, W], 0 = highest heat; ties in a seeded order, invalid pixels last."""
    flat = heatmap.flatten().cpu()
    if valid is not None:
        flat = torch.where(valid.flatten().cpu(), flat, -math.inf)
    shuffled = torch.randperm(flat.numel(), generator=generator)
    order = shuffled[torch.argsort(flat[shuffled], descending=True, stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(order.numel())
    return ranks.view(heatmap.shape).to(heatmap.device)


def binarise(
    heatmap: Tensor,
    *,
    threshold: float | None = None,
    area: float | None = None,
    valid: Tensor | None = None,
    ranks: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """The highlighted region B, bool [H, W], of a heatmap S [H, W] in [0, 1].

    `threshold` t: S > t. `area` q: exactly round(q |V|) pixels, highest S first, ties in the order
    of `seed`. `ranks` are those of `rank_pixels`, where one heatmap is cut at several areas.

    Raises:
        SegproofError: not exactly one of the two, or a level outside (0, 1).
    """
    given = {"threshold": threshold, "area": area}
    named = [(name, level) for name, level in given.items() if level is not None]
    if len(named) != 1:
        raise SegproofError(
            f"{len(named)} ways to binarise", "threshold or area", "give one of them"
        )
    [(name, level)] = named
    if not 0 < level < 1:
        raise SegproofError(f"{name} {level}", "a number between 0 and 1", "check the level")
    if threshold is not None:
        region = heatmap > threshold
        return region if valid is None else region & valid
    if ranks is None:
        ranks = rank_pixels(heatmap, valid, seeded("ties", seed))
    total = heatmap.numel() if valid is None else int(valid.sum())
    return ranks < round(level * total)


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


def random_blobs(
    size: tuple[int, int], generator: torch.Generator, scale: float = 1 / 24
) -> Tensor:
    """A smooth random heatmap [H, W] in [0, 1]: Gaussian noise blurred by `scale` of the side.

    The control that knows nothing of picture or network, as coherent as a CAM is.
    """
    noise = torch.randn(size, generator=generator, dtype=torch.float64).numpy()
    smooth = ndimage.gaussian_filter(noise, sigma=scale * max(size), mode="reflect")
    smooth -= smooth.min()
    return torch.from_numpy((smooth / smooth.max()).astype(np.float32))


@dataclass(frozen=True)
class Clean:
    """What a fill may look at: the clean picture, the network's zero, the background, a generator.

    `image` [B, H, W]; `neutral` [B or 1, 1, 1]; `background` bool [H, W], far from truth and
    prediction; `valid` bool [H, W].
    """

    image: Tensor
    neutral: Tensor
    background: Tensor
    valid: Tensor
    generator: torch.Generator


def _neutral(clean: Clean) -> Tensor:
    return clean.neutral.to(clean.image).expand_as(clean.image)


def _black(clean: Clean) -> Tensor:
    return torch.zeros_like(clean.image)


def _image_mean(clean: Clean) -> Tensor:
    mean = clean.image[:, clean.valid].mean(dim=1)
    return mean[:, None, None].expand_as(clean.image)


def _blur(clean: Clean) -> Tensor:
    """Gaussian blur, sigma = 1/32 of the longer side: 16 px (4.8 m at 0.3 m) on a tile of 512."""
    return _gaussian(clean.image, max(clean.image.shape[-2:]) / 32)


def _noise(clean: Clean) -> Tensor:
    """Uniform noise over [0, 1], or over each band's own range where the raster has other units."""
    image = clean.image
    pixels = image[:, clean.valid]
    low, high = pixels.amin(dim=1), pixels.amax(dim=1)
    if bool((low >= 0).all()) and bool((high <= 1).all()):
        low, high = torch.zeros_like(low), torch.ones_like(high)
    drawn = torch.rand(image.shape, generator=clean.generator).to(image)
    return low[:, None, None] + drawn * (high - low)[:, None, None]


def _background_texture(clean: Clean) -> Tensor:
    """The tile's own background pixels, shuffled, blurred by 1 px, mean and deviation restored.

    A texture with the statistics of the ground and no outline of its own.
    """
    source = clean.image[:, clean.background]
    count = clean.image[0].numel()
    drawn = torch.randint(source.shape[1], (count,), generator=clean.generator)
    shuffled = source[:, drawn.to(source.device)].view_as(clean.image)
    soft = _gaussian(shuffled, 1.0)
    soft_mean, soft_std = soft.mean(dim=(1, 2), keepdim=True), soft.std(dim=(1, 2), keepdim=True)
    mean, std = source.mean(dim=1), source.std(dim=1)
    scaled = (soft - soft_mean) * (std[:, None, None] / soft_std.clamp(min=1e-12))
    restored = scaled + mean[:, None, None]
    pixels = clean.image[:, clean.valid]
    low, high = pixels.amin(dim=1)[:, None, None], pixels.amax(dim=1)[:, None, None]
    return restored.clamp(low, high)


# In the order in which `strict` tries them: least artificial first.
FILLS: Final[dict[str, Callable[[Clean], Tensor]]] = {
    "background_texture": _background_texture,
    "blur": _blur,
    "image_mean": _image_mean,
    "neutral": _neutral,
    "black": _black,
    "noise": _noise,
}


def background_of(roofs: Tensor, probability: Tensor, valid: Tensor) -> Tensor:
    """Background pixels, bool [H, W]: valid and more than 4 px from `roofs` (truth or prediction).

    Where these are under 1 % of the tile, the valid twentieth with the lowest class probability.
    """
    ground = valid & ~dilate(roofs, OUTLINE)
    if ground.sum() >= SCARCE * valid.sum():
        return ground
    limit = probability[valid].float().sort().values[max(0, int(0.05 * int(valid.sum())) - 1)]
    return valid & (probability <= limit)


def make_fill(name: str, clean: Clean) -> Fill:
    """A fill (images [N, B, H, W], keep [N, H, W]) -> images, its baseline made once for one tile.

    Raises:
        UnknownNameError: no such fill.
        DataError: a tile without one valid pixel.
    """
    if name not in FILLS:
        raise UnknownNameError.of("fill", name, FILLS)
    if not bool(clean.valid.any()):
        raise DataError("a tile without a valid pixel", "at least one", "leave the tile out")
    baseline = FILLS[name](clean)

    def fill(images: Tensor, keep: Tensor) -> Tensor:
        return perturb(images, keep, baseline)

    return fill


def perturb(images: Tensor, keep: Tensor, baseline: Tensor) -> Tensor:
    """Keep x where `keep` [N, H, W], b elsewhere; by selection, so that NaN cannot leak."""
    return torch.where(keep[:, None], images, baseline)


def _gaussian(image: Tensor, sigma: float) -> Tensor:
    radius = min(math.ceil(3 * sigma), min(image.shape[-2:]) - 1)
    steps = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel /= kernel.sum()
    planes = image[:, None]
    planes = conv2d(pad(planes, (radius, radius, 0, 0), mode="reflect"), kernel.view(1, 1, 1, -1))
    planes = conv2d(pad(planes, (0, 0, radius, radius), mode="reflect"), kernel.view(1, 1, -1, 1))
    return planes[:, 0]
