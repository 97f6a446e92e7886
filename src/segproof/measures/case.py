"""Holds what a measure of a whole heatmap is given, and says when it has no number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from segproof.errors import DataError
from segproof.explain import Capture
from segproof.models import SegmentationModel
from segproof.perturb import FillFunction

__all__ = ["HeatmapCase", "Undefined", "lit"]


class Undefined(Exception):  # noqa: N818 - a result without a number, not an error
    """A measure has no number for this case; the text is the reason that is counted."""


@dataclass(frozen=True)
class HeatmapCase:
    """One heatmap of one picture, on trial.

    `seen` is the capture of that picture alone; `truth` bool [H, W]; `heatmap` S float32 [H, W] in
    [0, 1]; `fill` stands in for removed pixels; `again` makes the heatmap [H, W] of the same method
    and layer for another capture (None for controls, which have no method). `seed` is that of
    everything random.
    """

    model: SegmentationModel
    seen: Capture
    heatmap: Tensor
    fill: FillFunction
    truth: Tensor | None = None
    again: Callable[[Capture, SegmentationModel], Tensor] | None = None
    seed: int = 0


def lit(case: HeatmapCase, *, anywhere: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """S in float64, 0 outside V, with R and V, all [H, W]; `anywhere`: R may be empty.

    Raises:
        Undefined: a flat map, no region.
        DataError: a heatmap of another size.
    """
    region, valid = case.seen.bound.region[0], case.seen.bound.valid[0]
    if case.heatmap.shape != region.shape:
        raise DataError(
            f"a heatmap {tuple(case.heatmap.shape)}",
            f"{tuple(region.shape)}, as the picture",
            "give Explanation.heatmap()",
        )
    heat = torch.where(valid, case.heatmap.to(valid.device).double(), 0.0)
    if not bool(heat.any()):
        raise Undefined("flat map")
    if not anywhere and not bool(region.any()):
        raise Undefined("no region")
    return heat, region, valid
