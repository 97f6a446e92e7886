"""Holds one picture whose answer is known."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from segproof.models import SegmentationModel

__all__ = ["KnownScene"]


@dataclass(frozen=True)
class KnownScene:
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
