"""Makes heatmaps of known quality for a scene: from the oracle to its opposite."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from segproof.evidence.known import KnownScene, generator_of
from segproof.perturb import dilate, random_blobs

__all__ = ["graded_maps", "soft_mask"]

RANDOM: Final = 3  # maps of random blobs


def graded_maps(scene: KnownScene, worth: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Heatmaps [H, W] in [0, 1] from the oracle to the opposite of it; equal ones are left out.

    The oracle is E, what is worth most first, soft at its outline, each pixel of E above all
    others. The others lack the cue or the object, half of each, or take in surroundings or decoys,
    are blurred, mixed with noise, shifted, scattered, inverted, random.
    """
    evidence, cue = scene.evidence, scene.cue
    size = (evidence.shape[0], evidence.shape[1])
    oracle = _oracle(evidence, worth)
    blobs = [random_blobs(size, generator_of(scene, seed, "random", n)) for n in range(RANDOM)]
    scattered = oracle.flatten()[
        torch.randperm(oracle.numel(), generator=generator_of(scene, seed, "shuffled"))
    ].view(size)
    thing, nothing = scene.region & ~cue, torch.zeros_like(cue)
    both = bool((thing & evidence).any()) and bool((cue & evidence).any())
    made = {
        "oracle": oracle,
        "dilated": _within(dilate(evidence, 3), blobs[0]),
        "blurred": _unit(_blur(evidence.float(), max(size) / 12)),
        "noisy": _unit(oracle + 2 * blobs[1]),
        "half": soft_mask(_half(evidence)),
        "with_decoys": soft_mask(evidence | scene.decoys),
        "object_only": soft_mask(thing if both else nothing),
        "cue_only": soft_mask(cue if both else nothing),
        "wrong_object": soft_mask(nothing if bool((thing & evidence).any()) else thing),
        "nudged": oracle.roll((max(size) // 16, max(size) // 16), (0, 1)),
        "shifted": oracle.roll((size[0] // 2, size[1] // 3), (0, 1)),
        "decoys": soft_mask(scene.decoys & ~thing & ~cue),
        "shuffled": scattered,
        "inverted": 1 - oracle,
        **{f"random_{n + 1}": blob for n, blob in enumerate(blobs)},
    }
    found: dict[str, Tensor] = {}
    for name, heat in made.items():
        if bool(heat.any()) and not any(bool((heat == other).all()) for other in found.values()):
            found[name] = heat
    return found


def _blur(mask: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(mask.double().numpy(), sigma)).float()


def _unit(heat: Tensor) -> Tensor:
    low, high = heat.min(), heat.max()
    return (heat - low) / (high - low) if bool(high > low) else torch.zeros_like(heat)


def soft_mask(mask: Tensor) -> Tensor:
    """A mask with a soft outline, in [0, 1]: its pixels above 0.5, those beside it below."""
    if not bool(mask.any()):
        return torch.zeros(mask.shape)
    near = _blur(mask.float(), 1.5)
    return torch.where(mask, 0.5 + 0.5 * near, 0.5 * near) / (0.5 + 0.5 * near[mask].max())


def _oracle(evidence: Tensor, worth: Tensor) -> Tensor:
    """E with what is worth most first: at least 0.5 inside, less outside."""
    inside = 0.5 + 0.25 * (worth / worth.max()).float() + 0.25 * _blur(evidence.float(), 1.5)
    return _unit(torch.where(evidence, inside, 0.5 * _blur(evidence.float(), 1.5)))


def _within(mask: Tensor, blob: Tensor) -> Tensor:
    """A mask without any order of its own inside: that of a random blob."""
    return torch.where(mask, 0.6 + 0.4 * blob, 0.5 * _blur(mask.float(), 1.5))


def _half(mask: Tensor) -> Tensor:
    """The left half of the pixels of every connected part."""
    labels, count = ndimage.label(mask.numpy(), structure=np.ones((3, 3)))
    kept = np.zeros(labels.shape, dtype=bool)
    for number in range(1, count + 1):
        columns = np.nonzero(labels == number)[1]
        kept |= (labels == number) & (np.arange(labels.shape[1]) <= np.median(columns) - 0.5)
    return torch.from_numpy(kept)


# --- measures -------------------------------------------------------------------------------------
