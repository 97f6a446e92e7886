"""Measures of a heatmap as a whole: what one is given, what it says of itself, when it has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from segproof.explain import Capture
from segproof.models import SegmentationModel
from segproof.perturb import FillFunction

__all__ = ["Card", "HeatmapCase", "MapMeasure", "Undefined"]


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


MapMeasure = Callable[[HeatmapCase], float]


@dataclass(frozen=True)
class Card:
    """A measure of heatmaps with what is to be known before it is believed.

    `better` is its direction, `low` and `high` its range, `unit` what it is counted in; `source` a
    key of docs/references.bib; `forwards` what one case costs, in words or as a number; `failure`
    the known way in which it misleads.
    """

    function: MapMeasure
    better: Literal["higher", "lower", "neither"]
    low: float
    high: float
    unit: str
    source: str
    forwards: str
    failure: str
