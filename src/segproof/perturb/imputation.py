"""Puts removed pixels back from what is kept: ROAD's noisy linear imputation, solved fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from segproof.errors import DataError

__all__ = ["NOISE", "linear_imputation", "unit_of"]

NOISE: Final = 0.01  # of the unit: keeps a network from reading where pixels were imputed


def unit_of(pixels: Tensor) -> Tensor:
    """What noise is a share of, [B, 1, 1]: 1 in pictures in [0, 1], else each band's range."""
    low, high = pixels.amin(dim=1), pixels.amax(dim=1)
    if bool((low >= 0).all()) and bool((high <= 1).all()):
        return torch.ones_like(low)[:, None, None]
    return (high - low)[:, None, None]


def linear_imputation(
    image: Tensor, keep: Tensor, noise: float | Tensor, generator: torch.Generator
) -> Tensor:
    """Noisy linear imputation of an image [B, H, W] outside `keep` bool [H, W] (rong2022road).

    A removed pixel is the weighted mean of its neighbours, removed ones included: 1/6 for the four
    direct ones, 1/12 for the diagonal ones; at the border those that exist, renormalised. Then
    Gaussian noise of deviation `noise` (a number or [B, 1, 1], image units) on removed pixels. The
    system is solved in float64 for all bands at once to a relative residual of 1e-7. Kept pixels
    are bitwise the image's; removed ones are not looked at.

    Raises:
        DataError: no pixel is kept.
    """
    if bool(keep.all()):
        return image.clone()
    if not bool(keep.any()):
        raise DataError("an image with no pixel kept", "at least one", "keep a pixel")
    known = torch.where(keep, image, 0).double()
    # constants are imputed exactly: without the bands' offsets the residual measures the detail
    mean = known.sum(dim=(1, 2), keepdim=True) / keep.sum()
    solved = _harmonic(torch.where(keep, known - mean, 0), ~keep) + mean
    drawn = torch.randn(image.shape, generator=generator, dtype=torch.float64).to(image.device)
    return torch.where(keep, image, (solved + drawn * noise).to(image.dtype))


def _harmonic(known: Tensor, hole: Tensor, tolerance: float = 1e-7, most: int = 500) -> Tensor:
    """Values [B, H, W] that equal `known` outside `hole` and solve the imputation inside.

    With M = degrees - neighbours on removed pixels, M x = neighbours(known): symmetric and positive
    definite. Conjugate gradients, preconditioned by a multigrid cycle: ten steps, however wide the
    holes, where a diagonal preconditioner takes a thousand. The cycle is in float32, which changes
    the steps, not what is solved.
    """
    finest, pyramid = _Grid.of(hole[None].to(known.dtype)), _pyramid(hole)
    left = _neighbours(known) * finest.hole
    enough = tolerance * _norm(left)
    x = torch.zeros_like(known)
    step = z = _cycle(pyramid, left.float()).to(left)
    slope = _dot(left, z)
    for _ in range(most):
        if bool((_norm(left) <= enough).all()):
            break
        moved = finest.times(step)
        # a band that is solved exactly has nothing to divide
        length = slope / _dot(step, moved).clamp(min=torch.finfo(x.dtype).tiny)
        x = x + length * step
        left = left - length * moved
        z = _cycle(pyramid, left.float()).to(left)
        before, slope = slope, _dot(left, z)
        step = z + slope / before.clamp(min=torch.finfo(x.dtype).tiny) * step
    return known + x


@dataclass(frozen=True)
class _Grid:
    """One level of the multigrid cycle: its removed pixels and their degrees, [1, h, w]."""

    hole: Tensor
    degrees: Tensor
    damped: Tensor  # 0.8 over the degrees, 0 outside the hole

    @classmethod
    def of(cls, hole: Tensor) -> _Grid:
        degrees = _neighbours(torch.ones_like(hole))
        return cls(hole, degrees, 0.8 * hole / degrees)

    def times(self, x: Tensor) -> Tensor:
        """M x for x that is 0 outside the hole."""
        return (self.degrees * x).sub_(_neighbours(x)).mul_(self.hole)

    def relax(self, x: Tensor, right: Tensor) -> Tensor:
        """One damped Jacobi step towards M x = right."""
        return (right - self.times(x)).mul_(self.damped).add_(x)


def _pyramid(hole: Tensor) -> list[_Grid]:
    """The levels from fine to coarse; a coarse pixel is removed where all of its pixels are."""
    grids: list[_Grid] = []
    removed = hole[None].float()
    while bool(removed.any()):
        grids.append(_Grid.of(removed))
        removed = (_summed(1 - removed) == 0).float()
    return grids


def _cycle(grids: Sequence[_Grid], right: Tensor) -> Tensor:
    """About M^-1 right, as a fixed symmetric operator: relax, solve coarsely, relax."""
    grid = grids[0]
    x = grid.relax(right * grid.damped, right)
    if len(grids) > 1:
        height, width = right.shape[-2:]
        coarse = _summed(right - grid.times(x)) * grids[1].hole
        correction = _cycle(grids[1:], coarse)
        wide = correction.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
        x = x + wide[..., :height, :width] * grid.hole
    x = grid.relax(x, right)
    return grid.relax(x, right)


def _neighbours(x: Tensor) -> Tensor:
    """Weighted sums over the eight neighbours; outside the picture there are none."""
    # the weights are ([1 2 1] x [1 2 1] - the middle) / 12: two passes of adds, no convolution
    rows = 2 * x
    rows[..., 1:, :] += x[..., :-1, :]
    rows[..., :-1, :] += x[..., 1:, :]
    both = 2 * rows
    both[..., 1:] += rows[..., :-1]
    both[..., :-1] += rows[..., 1:]
    return both.sub_(x, alpha=4).div_(12)


def _summed(x: Tensor) -> Tensor:
    """Sums over blocks of 2 x 2 pixels; what is missing at an odd edge counts 0."""
    height, width = x.shape[-2:]
    x = torch.nn.functional.pad(x, (0, width % 2, 0, height % 2))
    return x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=(1, 2), keepdim=True)


def _norm(x: Tensor) -> Tensor:
    return x.square().sum(dim=(1, 2)).sqrt()
