"""Holds what a fill may look at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from segproof.perturb.seeding import seeded

__all__ = ["FillContext"]


@dataclass(frozen=True)
class FillContext:
    """What a fill may look at: the clean picture, the network's zero, the background, a generator.

    `image` [B, H, W]; `neutral` [B or 1, 1, 1]; `background` bool [H, W], far from truth and
    prediction; `valid` bool [H, W]; `donor` [B, h, w], a patch of another tile without the class.
    """

    image: Tensor
    neutral: Tensor
    background: Tensor
    valid: Tensor
    generator: torch.Generator
    donor: Tensor | None = None

    def seeded(self, *key: object) -> FillContext:
        """The same with the generator of a fill of this key."""
        return replace(self, generator=seeded("fill", *key))
