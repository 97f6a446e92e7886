"""Makes fills: what stands in the place of removed pixels, and pictures perturbed with it."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad

from segproof.errors import DataError, UnknownNameError
from segproof.perturb.fill_context import FillContext
from segproof.perturb.imputation import NOISE, linear_imputation, unit_of
from segproof.perturb.records import FILLS, FillFunction
from segproof.perturb.regions import dilate, largest_square

__all__ = [
    "background_of",
    "background_texture",
    "black",
    "blend",
    "blur",
    "borrowed",
    "image_mean",
    "inpaint",
    "linear",
    "make_fill",
    "membrane",
    "neutral",
    "noise",
    "perturb",
]


OUTLINE: Final = 4  # px around truth and prediction that are no background (eaves, own shadow)
SCARCE: Final = 0.01  # a smaller share of background is too little to make a texture of


def neutral(clean: FillContext) -> Tensor:
    """The value that the network's normalisation turns into 0, [B, H, W]."""
    return clean.neutral.to(clean.image).expand_as(clean.image)


def black(clean: FillContext) -> Tensor:
    """Zero in every band, [B, H, W]."""
    return torch.zeros_like(clean.image)


def image_mean(clean: FillContext) -> Tensor:
    """The mean of the valid pixels of each band, [B, H, W]."""
    mean = clean.image[:, clean.valid].mean(dim=1)
    return mean[:, None, None].expand_as(clean.image)


def blur(clean: FillContext) -> Tensor:
    """Gaussian blur, sigma = 1/32 of the longer side: 16 px (4.8 m at 0.3 m) on a tile of 512."""
    return _gaussian(clean.image, max(clean.image.shape[-2:]) / 32)


def noise(clean: FillContext) -> Tensor:
    """Uniform noise over [0, 1], or over each band's own range where the raster has other units."""
    image = clean.image
    pixels = image[:, clean.valid]
    low, high = pixels.amin(dim=1), pixels.amax(dim=1)
    if bool((low >= 0).all()) and bool((high <= 1).all()):
        low, high = torch.zeros_like(low), torch.ones_like(high)
    drawn = torch.rand(image.shape, generator=clean.generator).to(image)
    return low[:, None, None] + drawn * (high - low)[:, None, None]


def background_texture(clean: FillContext) -> Tensor:
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
    low, high = _range(clean)
    return restored.clamp(low, high)


def membrane(image: Tensor, known: Tensor) -> Tensor:
    """An image [B, H, W] whose unknown pixels follow smoothly from those `known`, bool [H, W].

    Pulled down a pyramid of means over known pixels until there are some everywhere, and pushed up
    again, bilinear. Known pixels stay; nothing is read from the others (gortler1996lumigraph).
    """
    weight = known[None].to(image)
    value = torch.where(known, image, 0.0)
    levels = []
    while not bool((weight > 0).all()) and max(weight.shape[-2:]) > 1:
        levels.append((value, weight))
        odd = (0, weight.shape[-1] % 2, 0, weight.shape[-2] % 2)
        value = 4 * avg_pool2d(pad(value, odd)[None], 2)[0]
        weight = 4 * avg_pool2d(pad(weight, odd)[None], 2)[0]
        many = weight.clamp(min=1)
        value, weight = value / many, weight / many
    result = value / weight.clamp(min=torch.finfo(image.dtype).tiny)
    for value, weight in reversed(levels):
        wide = interpolate(result[None], size=value.shape[-2:], mode="bilinear")[0]
        result = value + (1 - weight) * wide
    return torch.where(known, image, result)


def _seamless(clean: FillContext, source: Tensor) -> FillFunction:
    """`source` [B, H, W], shifted smoothly so that it meets what is kept: no outline stays."""
    low, high = _range(clean)

    def fill(images: Tensor, keep: Tensor) -> Tensor:
        filled = []
        for n, kept in enumerate(keep):
            image = images[min(n, len(images) - 1)]
            known = kept & clean.valid
            shift = torch.where(known, image - source, 0.0)
            moved = source + membrane(shift, known) if bool(known.any()) else source
            filled.append(torch.where(kept, image, moved.clamp(low, high)))
        return torch.stack(filled)

    return fill


def inpaint(clean: FillContext) -> FillFunction:
    """Background texture that meets the kept pixels without a step."""
    return _seamless(clean, background_texture(clean))


def borrowed(clean: FillContext) -> FillFunction:
    """Ground of another tile, or of this one, mirrored to its size; it meets the kept pixels."""
    patch = clean.donor
    if patch is None:
        rows, columns = largest_square(clean.background)
        patch = clean.image[:, rows, columns]
    return _seamless(clean, _mirrored(patch, (clean.image.shape[-2], clean.image.shape[-1])))


def linear(clean: FillContext) -> FillFunction:
    """Each removed pixel the weighted mean of its neighbours, with the same noise in every picture
    of a tile; the mean of the bands where nothing is kept (rong2022road).
    """
    low, high = _range(clean)
    unit = unit_of(clean.image[:, clean.valid])
    noise = torch.randn(clean.image.shape, generator=clean.generator).to(clean.image) * NOISE * unit

    def fill(images: Tensor, keep: Tensor) -> Tensor:
        filled = []
        for n, kept in enumerate(keep):
            image, known = images[min(n, len(images) - 1)], kept & clean.valid
            if bool(known.any()):
                smooth = linear_imputation(image, known, 0.0, clean.generator)
            else:
                smooth = image_mean(clean)
            filled.append(torch.where(kept, image, (smooth + noise).clamp(low, high)))
        return torch.stack(filled)

    return fill


def _mirrored(patch: Tensor, size: tuple[int, int]) -> Tensor:
    """A patch [B, h, w] laid beside its mirror images until it fills `size`."""
    tall = torch.cat([patch, patch.flip(-2)], dim=-2)
    tall = tall.repeat(1, -(-size[0] // tall.shape[-2]), 1)[:, : size[0]]
    wide = torch.cat([tall, tall.flip(-1)], dim=-1)
    return wide.repeat(1, 1, -(-size[1] // wide.shape[-1]))[:, :, : size[1]]


def _range(clean: FillContext) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each band over the valid pixels, [B, 1, 1]."""
    pixels = clean.image[:, clean.valid]
    return pixels.amin(dim=1)[:, None, None], pixels.amax(dim=1)[:, None, None]


def background_of(roofs: Tensor, probability: Tensor, valid: Tensor) -> Tensor:
    """Background pixels, bool [H, W]: valid and more than 4 px from `roofs` (truth or prediction).

    Where these are under 1 % of the tile, the valid twentieth with the lowest class probability.
    """
    ground = valid & ~dilate(roofs, OUTLINE)
    if ground.sum() >= SCARCE * valid.sum():
        return ground
    limit = probability[valid].float().sort().values[max(0, int(0.05 * int(valid.sum())) - 1)]
    return valid & (probability <= limit)


def make_fill(name: str, clean: FillContext) -> FillFunction:
    """A fill (images [N or 1, B, H, W], keep [N, H, W]) -> images; what does not depend on `keep`
    is made once for a tile.

    Raises:
        UnknownNameError: no such fill.
        DataError: a tile without one valid pixel.
    """
    if name not in FILLS:
        raise UnknownNameError.of("fill", name, FILLS)
    if not bool(clean.valid.any()):
        raise DataError("a tile without a valid pixel", "at least one", "leave the tile out")
    baseline = FILLS[name](clean)
    if not isinstance(baseline, Tensor):
        return baseline

    def fill(images: Tensor, keep: Tensor) -> Tensor:
        return perturb(images, keep, baseline)

    return fill


def blend(fill: FillFunction, images: Tensor, keep: Tensor) -> Tensor:
    """Blend keep x + (1 - keep) b for `keep` [N, H, W] in [0, 1]; b: the fill, nothing kept.

    Where a pixel stays or goes as a whole it is taken as it is, so that NaN cannot leak.
    """
    base = fill(images, torch.zeros_like(keep, dtype=torch.bool))
    share = keep[:, None].to(images.dtype)
    mixed = torch.where(share < 1, share * images + (1 - share) * base, images)
    return torch.where(share > 0, mixed, base)


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
