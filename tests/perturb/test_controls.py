"""Control heatmaps: smooth, seeded."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from segproof.perturb.controls import random_blobs
from segproof.perturb.seeding import seeded

SEEDS = st.integers(0, 10_000)
LEVELS = st.floats(0.01, 0.99)


def test_random_blobs_are_smooth_and_seeded() -> None:
    one = random_blobs((48, 48), seeded("blob", 0))
    assert torch.equal(one, random_blobs((48, 48), seeded("blob", 0)))
    assert not torch.equal(one, random_blobs((48, 48), seeded("blob", 1)))
    assert (float(one.min()), float(one.max())) == (0, 1)
    # sigma = 2 px: neighbours correlate by exp(-1/16), so differ by 0.28 deviations
    assert 0.2 * one.std() < one.diff(dim=0).abs().mean() < 0.4 * one.std()
