"""Measures of a heatmap as a whole: what one is given, what it says of itself, when it has none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from torch import Tensor

from segproof.capture import Capture
from segproof.model import SegmentationModel
from segproof.perturb import Fill

__all__ = ["Card", "Case", "Known", "MapMeasure", "Undefined", "evidence_of", "shipped_evidence"]

USUAL: Final = "background_texture"  # the fill of the shipped evidence that stands for others


class Undefined(Exception):  # noqa: N818 - a result without a number, not an error
    """A measure has no number for this case; the text is the reason that is counted."""


@dataclass(frozen=True)
class Case:
    """One heatmap of one picture, on trial.

    `seen` is the capture of that picture alone; `truth` bool [H, W]; `heatmap` S float32 [H, W] in
    [0, 1]; `fill` stands in for removed pixels; `again` makes the heatmap [H, W] of the same method
    and layer for another capture (None for controls, which have no method). `seed` is that of
    everything random.
    """

    model: SegmentationModel
    seen: Capture
    heatmap: Tensor
    fill: Fill
    truth: Tensor | None = None
    again: Callable[[Capture, SegmentationModel], Tensor] | None = None
    seed: int = 0


MapMeasure = Callable[[Case], float]


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


@dataclass(frozen=True)
class Known:
    """A picture whose answer is known: what decides `class_` over `region`, and what does not.

    All masks are bool [H, W]. `evidence` are the pixels that decide, `cue` those of them that lie
    outside the object, `decoys` what looks like either and decides nothing. `absent` is the picture
    [B, H, W] without objects, cues and decoys: what an ideal fill would put in their place.
    """

    name: str
    tier: str
    kind: str
    model: SegmentationModel
    class_: str
    image: Tensor
    truth: Tensor
    region: Tensor
    evidence: Tensor
    cue: Tensor
    decoys: Tensor
    absent: Tensor


@lru_cache(maxsize=1)
def shipped_evidence() -> Mapping[str, Any]:
    """How every measure did where the truth is known: version, command, seed, and by measure a list
    of cards with tier, fill, binarisation, tau, low, high, ties, ...; `segproof evidence` made it.
    """
    path = Path(__file__).parent / "assets" / "evidence" / "cards.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def evidence_of(measure: str, binarisation: str = "area", fill: str = USUAL) -> Sequence[Any]:
    """The shipped cards of a measure, one a tier; of another fill where there are none of `fill`.

    Measures of cut maps are called m1_confidence, m2_confidence, m3_certainty, m3_entropy_paper,
    iou_drop and contrast; those of whole maps (binarisation "map") as they are.
    """
    cards = shipped_evidence()["measures"].get(measure, [])
    cards = [card for card in cards if card["binarisation"] == binarisation]
    return [card for card in cards if card["fill"] == fill] or [
        card for card in cards if card["fill"] == USUAL
    ]
