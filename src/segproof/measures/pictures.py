"""Measures the prediction on a perturbed picture: one number a picture, never a mean of several.

Every measure takes probabilities [N, K, H, W], the bound target (its masks may be [1, H, W] and
then serve all N pictures) and the truth bool [N or 1, H, W] or None, and returns float64 [N]; NaN =
undefined.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from segproof.errors import DataError
from segproof.explain import BoundTarget, hard_mask
from segproof.perturb import dilate

__all__ = [
    "boundary_f",
    "boundary_f_prediction",
    "certainty",
    "confidence",
    "dice",
    "entropy",
    "entropy_kept",
    "entropy_paper",
    "iou",
    "iou_prediction",
    "kept",
    "measured",
]

NEAR: Final = 3  # px between outlines that count as one


def confidence(p: Tensor, bound: BoundTarget, truth: Tensor | None = None) -> Tensor:
    """Mean over R of p_c, in [0, 1]."""
    return _Reading(p, bound, truth).confidence()


def entropy(p: Tensor, bound: BoundTarget, truth: Tensor | None = None) -> Tensor:
    """Mean over R of the entropy in [0, 1]: binary, or softmax over log2 of the classes."""
    return _Reading(p, bound, truth).entropy()


def entropy_paper(p: Tensor, bound: BoundTarget, truth: Tensor | None = None) -> Tensor:
    """As published: mean over *all* pixels of G (-p_c log2(p_c + 1e-30)) / log2 C
    (gizzini2023extending).

    C is the number of channels, 2 for a one-channel network. Small for a roof seen surely *and* for
    a roof not seen at all, and it shrinks with the roof's area.
    """
    pixels = p.shape[-2] * p.shape[-1]
    if truth is not None:
        bound = replace(bound, region=truth & bound.valid)

    def total(inside: Tensor) -> Tensor:
        chance = inside[:, bound.class_index]
        return (-chance * torch.log2(chance + 1e-30)).sum(dim=1) / math.log2(p.shape[1]) / pixels

    return torch.cat([total(part) for part in _Reading(p, bound, truth).inside])


def kept(p: Tensor, bound: BoundTarget, truth: Tensor | None = None) -> Tensor:
    """Share of R that is still decided as the class, in [0, 1]."""
    return _Reading(p, bound, truth).kept()


def entropy_kept(p: Tensor, bound: BoundTarget, truth: Tensor | None = None) -> Tensor:
    """Mean entropy of the pixels of R that are still decided as the class; NaN where none is."""
    return _Reading(p, bound, truth).entropy_kept()


def certainty(p: Tensor, bound: BoundTarget, truth: Tensor | None = None) -> Tensor:
    """Share of R kept times its sureness, kept * (1 - entropy_kept): high only if seen surely."""
    return _Reading(p, bound, truth).certainty()


def iou(p: Tensor, bound: BoundTarget, truth: Tensor | None = None) -> Tensor:
    """Intersection over union of the new hard mask with the truth; NaN where both are empty."""
    return _Reading(p, bound, truth).iou()


def iou_prediction(p: Tensor, bound: BoundTarget, truth: Tensor | None = None) -> Tensor:
    """Intersection over union with the clean prediction; NaN where both are empty."""
    return _Reading(p, bound, truth).iou_prediction()


def dice(p: Tensor, bound: BoundTarget, truth: Tensor | None = None) -> Tensor:
    """Dice coefficient of the new hard mask with the truth; NaN where both are empty."""
    return _Reading(p, bound, truth).dice()


def boundary_f(p: Tensor, bound: BoundTarget, truth: Tensor | None = None) -> Tensor:
    """F of the new hard mask's outline and the truth's within 3 px (csurka2013boundary), in [0, 1].

    2 P R / (P + R): P the share of the mask's outline within 3 px (Euclidean) of the truth's, R the
    other way round. The outline is the mask's pixels beside valid ones outside it; where the
    picture or V ends there is none. 0 where one has none, NaN where neither has one.
    """
    return _Reading(p, bound, truth).boundary_f()


def boundary_f_prediction(p: Tensor, bound: BoundTarget, truth: Tensor | None = None) -> Tensor:
    """`boundary_f` of the new hard mask and the clean prediction."""
    return _Reading(p, bound, truth).boundary_f_prediction()


def measured(
    p: Tensor, bound: BoundTarget, truth: Tensor | None, names: Iterable[str]
) -> dict[str, Tensor]:
    """Measures of MEASURES and BOUNDARY by name, with what they have in common made once."""
    reading = _Reading(p, bound, truth)
    return {name: getattr(reading, name)() for name in names}


@dataclass(frozen=True)
class _Reading:
    """Predictions read by any number of measures, each a method of its name: what several of them
    need is made once.
    """

    p: Tensor
    bound: BoundTarget
    truth: Tensor | None = None

    def confidence(self) -> Tensor:
        return self._joined(part[:, self.bound.class_index].mean(dim=1) for part in self.inside)

    def entropy(self) -> Tensor:
        return self._joined(unsure.mean(dim=1) for _, unsure in self._pixels)

    def kept(self) -> Tensor:
        return self._joined(still.mean(dim=1) for still, _ in self._pixels)

    def entropy_kept(self) -> Tensor:
        return self._joined(
            (unsure * still).sum(dim=1) / still.sum(dim=1) for still, unsure in self._pixels
        )

    def certainty(self) -> Tensor:
        return self._joined((still * (1 - unsure)).mean(dim=1) for still, unsure in self._pixels)

    def iou(self) -> Tensor:
        both, total = self._overlap(self._required("iou"))
        return both / (total - both)

    def iou_prediction(self) -> Tensor:
        both, total = self._overlap(self.bound.prediction)
        return both / (total - both)

    def dice(self) -> Tensor:
        both, total = self._overlap(self._required("dice"))
        return 2 * both / total

    def boundary_f(self) -> Tensor:
        return _boundary_f(self._mask, self._required("boundary_f"), self.bound.valid)

    def boundary_f_prediction(self) -> Tensor:
        return _boundary_f(self._mask, self.bound.prediction, self.bound.valid)

    @cached_property
    def inside(self) -> list[Tensor]:
        """Probabilities inside R [n, K, P]; float64 decides. In one piece where all share one R."""
        if self.bound.region.shape[0] == 1:
            return [self.p[:, :, self.bound.region[0]].double()]
        return [self.p[n : n + 1, :, mask].double() for n, mask in enumerate(self.bound.region)]

    @cached_property
    def _pixels(self) -> list[tuple[Tensor, Tensor]]:
        """Whether pixels of R are still decided as the class, 1 or 0, and their entropy, [n, P]."""
        return [(self._decided(part).double(), self._unsure(part)) for part in self.inside]

    @cached_property
    def _mask(self) -> Tensor:
        return self._decided(self.p)

    def _decided(self, p: Tensor) -> Tensor:
        return hard_mask(p, self.bound.class_index, self.bound.activation)

    def _unsure(self, inside: Tensor) -> Tensor:
        """Entropy of each pixel's decision in [0, 1], [n, P]; 0 log 0 = 0."""
        if self.bound.activation == "softmax":
            spread: Tensor = torch.special.entr(inside).sum(dim=1)
            return spread / math.log(inside.shape[1])
        chance = inside[:, self.bound.class_index]
        both: Tensor = torch.special.entr(chance) + torch.special.entr(1 - chance)
        return both / math.log(2)

    def _overlap(self, other: Tensor) -> tuple[Tensor, Tensor]:
        """Valid pixels in both masks, and in each of them together, [N]."""
        other = other & self.bound.valid
        both = (self._mask & other).sum(dim=(1, 2)).double()
        return both, self._size + other.sum(dim=(1, 2)).double()

    @cached_property
    def _size(self) -> Tensor:
        return (self._mask & self.bound.valid).sum(dim=(1, 2)).double()

    def _required(self, name: str) -> Tensor:
        if self.truth is None:
            raise DataError(
                f"no truth for {name}", "a truth mask", "give it, or use iou_prediction"
            )
        return self.truth

    @staticmethod
    def _joined(parts: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(parts))


def _boundary_f(mask: Tensor, other: Tensor, valid: Tensor) -> Tensor:
    one, other = _outline(mask, valid), _outline(other, valid)
    hits = (one & _disc(other)).sum(dim=(1, 2)).double()
    hits_back = (other & _disc(one)).sum(dim=(1, 2)).double()
    ones, others = one.sum(dim=(1, 2)).double(), other.sum(dim=(1, 2)).double()
    # where only one of them has an outline, nothing is near: 0
    precision, recall = hits / ones.clamp(min=1), hits_back / others.clamp(min=1)
    both = precision + recall
    score = torch.where(both > 0, 2 * precision * recall / both, 0.0)
    return torch.where((ones > 0) | (others > 0), score, math.nan)


def _outline(mask: Tensor, valid: Tensor) -> Tensor:
    return mask & valid & dilate(~mask & valid, 1)


def _disc(mask: Tensor) -> Tensor:
    """Pixels of [N, H, W] within 3 px, Euclidean, of the mask's."""
    steps = torch.arange(-NEAR, NEAR + 1, device=mask.device)
    disc = (steps.square()[:, None] + steps.square() <= NEAR**2).float()
    # whole numbers of neighbours: more than half a pixel is one
    return conv2d(mask[:, None].float(), disc[None, None], padding=NEAR)[:, 0] > 0.5
