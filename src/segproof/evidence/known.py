"""Describes a picture whose answer is known, and reads its network on changed copies of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from segproof.explain import Capture, Target, capture, clean_of
from segproof.measures import certainty, confidence, entropy_paper, iou
from segproof.models import SegmentationModel, evaluating, probabilities
from segproof.perturb import FillFunction, make_fill, perturb, seeded

__all__ = ["KnownScene", "known_fill"]

BATCH: Final = 16  # pictures of 64 px that stay in a core's cache


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


def capture_scene(scene: KnownScene, layers: Sequence[str] = ()) -> Capture:
    """The clean picture with R bound; gradients where layers are asked for."""
    return capture(
        scene.model,
        scene.image[None],
        Target(scene.class_, "truth"),
        list(layers),
        scene.region[None],
        gradients=bool(layers),
        batch=BATCH,
    )


def read_pictures(scene: KnownScene, seen: Capture, pictures: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode(), evaluating(scene.model):
        p = probabilities(scene.model(pictures), seen.bound.activation)
    truth = scene.truth[None]
    return {
        "confidence": confidence(p, seen.bound),
        "certainty": certainty(p, seen.bound),
        "iou": iou(p, seen.bound, truth),
        "entropy": entropy_paper(p, seen.bound, truth),
    }


def confidences(scene: KnownScene, seen: Capture, pictures: Sequence[Tensor]) -> list[float]:
    parts = torch.split(torch.stack(list(pictures)), BATCH)
    return [
        float(value) for part in parts for value in read_pictures(scene, seen, part)["confidence"]
    ]


def known_fill(name: str, scene: KnownScene, seen: Capture, seed: int = 0) -> FillFunction:
    """A fill by name; "absent" puts what an ideal one would: the picture without all objects."""
    if name == "absent":
        return lambda images, keep: perturb(images, keep, scene.absent)
    return make_fill(name, clean_of(seen, scene.model, scene.truth, seed=(seed, scene.name, name)))


def generator_of(scene: KnownScene, seed: int, *what: object) -> torch.Generator:
    return seeded("evidence", seed, scene.tier, scene.name, *what)
