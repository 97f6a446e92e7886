"""Measures where the heat of a heatmap lies and how it is spread.

S is the heatmap, R the region, V the valid pixels of the case; pixels outside V count nowhere.
"""

from __future__ import annotations

from typing import Final

import torch
from scipy import ndimage
from torch import Tensor

from segproof.measures.case import HeatmapCase, Undefined, lit
from segproof.perturb import dilate, rank_pixels, seeded

__all__ = [
    "effective_area",
    "gini",
    "pointing_game",
    "relevance_mass",
    "relevance_rank",
    "ring_profile",
    "ring_share",
]

NEAR: Final = 16  # px around R that are its surroundings: 4.8 m at 0.3 m, a roof's own shadow


def pointing_game(case: HeatmapCase, *, tolerance: int = 0) -> float:
    """1 if the highest pixel of S lies in R, or at most `tolerance` px beside it, else 0.

    Equal highest pixels are drawn from in a seeded order (zhang2018excitation; theirs is 15 px).
    """
    heat, region, valid = lit(case)
    first = rank_pixels(heat, valid, seeded("ties", case.seed)) == 0
    return float((dilate(region, tolerance) & first).any())


def relevance_mass(case: HeatmapCase) -> float:
    """Sum of S over R / sum of S over V, 0-1 (arras2022clevr)."""
    heat, region, valid = lit(case)
    return float(heat[region].sum() / heat[valid].sum())


def relevance_rank(case: HeatmapCase) -> float:
    """Share of the |R| highest pixels of S that lie in R, 0-1 (arras2022clevr).

    Equal pixels come in a seeded order.
    """
    heat, region, valid = lit(case)
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
    heat, region, valid = lit(case)
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
    heat, region, valid = lit(case)
    distance = _distance(region)
    near = (distance > 0) & (distance <= width) & valid
    if not bool(near.any()):
        raise Undefined("no surroundings")
    return float(heat[near].sum() / heat[valid].sum())


def gini(case: HeatmapCase) -> float:
    """Gini index of S over V: 1 - 2 sum_k s_k / sum(s) * (n - k + 1/2) / n, s_1 ... s_n rising.

    0 = all pixels alike, 1 - 1/n = one pixel (hurley2009sparsity, chalasani2020concise).
    """
    heat, _, valid = lit(case, anywhere=True)
    rising = heat[valid].sort().values
    n = len(rising)
    place = torch.arange(1, n + 1, device=rising.device)
    return float(1 - 2 * (rising / rising.sum() * (n - place + 0.5) / n).sum())


def effective_area(case: HeatmapCase) -> float:
    """exp(entropy of S / sum(S)) / |V|: the share of V that as much heat would fill evenly, 0-1
    (roy2007effective).
    """
    heat, _, valid = lit(case, anywhere=True)
    share = heat[valid] / heat[valid].sum()
    return float(torch.special.entr(share).sum().exp() / len(share))


def _distance(region: Tensor) -> Tensor:
    """Euclidean distance in px of each pixel to R, float64 [H, W]; inside R below 0."""
    mask = region.cpu().numpy()
    if mask.all():
        raise Undefined("no surroundings")
    distance = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
    return torch.from_numpy(distance).to(region.device)
