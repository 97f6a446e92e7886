"""Nothing accumulates: not over maps, not over tiles."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from segproof import Target, explain
from toys import toy_images, toy_model

STATM = Path("/proc/self/statm")


def resident() -> float:
    """Resident memory of this process, MiB."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not STATM.exists(), reason="reads /proc, which this system does not have")
def test_two_hundred_maps_leave_nothing_behind() -> None:
    model, image = toy_model(1), toy_images(1, n=1)[0]

    def maps(count: int) -> None:
        for _ in range(count):
            for method in ("grad_cam", "score_cam", "eigen_cam"):
                made = explain(
                    model, image, method=method, layer="decoder.blocks.0", target=Target("roof")
                )
                assert made.status == "ok"

    maps(20)
    before = resident()
    maps(67)
    assert resident() - before < 20
