"""Nothing accumulates: not over maps, not over tiles."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from segproof import Target, explain
from segproof.explain.cam import eigen_cam
from segproof.explain.forward_pass import Capture
from segproof.explain.target import BoundTarget
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


def test_eigen_cam_of_a_full_size_layer_needs_little() -> None:
    """16 channels of 512 x 512: the layer takes 17 MB, its full SVD would take 256 GiB."""
    side = 512
    draw = torch.Generator().manual_seed(0)
    activation = torch.rand(1, 16, side, side, generator=draw)
    logits = torch.rand(1, 2, side, side, generator=draw)
    everywhere = torch.ones(1, side, side, dtype=torch.bool)
    bound = Target("roof").bind(logits, model=toy_model(1), valid=everywhere)
    assert isinstance(bound, BoundTarget)
    seen = Capture(logits, logits, bound, {"layer": activation})
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        eigen_cam(seen, "layer", toy_model(1))
    results = watched.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert activation.nbytes <= peak < 100e6
