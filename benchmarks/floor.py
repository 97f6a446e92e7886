"""A study beside its floor: its forwards at the speed of a bare one, and one backward.

    python benchmarks/floor.py [--networks lite0,resnet34] [--tiles N] [--repeats N] [--quick]

The study is that of study.py. The best bare forward is the faster of both memory layouts at the
study's precision and batch, in the same round; the backward is that of the two layers. Asked: time
at most 1.10 of the floor, and at most 5 % of it outside forwards and the backward.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from bench import CLOCKS, Contestant, Figure, contest, options, parsed, ratios, report
from claims import NETWORKS
from segproof import SegmentationModel
from segproof.explain.forward_pass import observe
from segproof.models.contract import evaluating, running
from segproof.models.precision import Kernels, keep_blocks
from subjects import Subject, planned, subjects

BATCHES = 4  # of bare forwards in each round


@contextmanager
def watched(model: SegmentationModel, clock: Callable[[], float]) -> Iterator[list[float]]:
    """Seconds of each forward inside, of clean and of perturbed pictures."""
    found: list[float] = []
    inside = False

    def timed(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def work(images: Tensor) -> Tensor:
            nonlocal inside
            if inside:  # one asks the other
                return forward(images)
            inside, started = True, clock()
            try:
                return forward(images)
            finally:
                inside = False
                found.append(clock() - started)

        return work

    shown, forward = timed(model.shown), timed(model.forward)
    with patch.object(model, "shown", shown), patch.object(model, "forward", forward):
        yield found


def bare(subject: Subject, kernels: Kernels, batch: int) -> Contestant:
    """Forwards of perturbed pictures and nothing else."""

    def work(turn: int) -> None:
        pictures = subject.image(turn).repeat(batch, 1, 1, 1)
        model = subject.model
        with torch.inference_mode(), evaluating(model), running(model, kernels):
            for _ in range(BATCHES):
                model.shown(pictures)

    return Contestant(work)


def figures(subject: Subject, precision: str, given: argparse.Namespace) -> list[Figure]:
    """Both claims of a network at one precision."""
    keep_blocks()
    made, model, clock = planned(subject, precision), subject.model, CLOCKS[given.clock]
    kernels, batch = made.plan.kernels, made.plan.study.batch
    forwards: list[int] = []
    inside: list[float] = []
    backwards: list[float] = []

    def study(turn: int) -> None:
        with watched(model, clock) as times:
            forwards.append(made.run(turn))
        inside.append(sum(times))

    def backward(turn: int) -> None:
        seen = observe(model, subject.image(turn)[None], subject.paths)
        started = clock()
        seen.read(subject.target, subject.truth(turn)[None], last=True)
        backwards.append(clock() - started)

    layouts = [Kernels(kernels.precision, last) for last in (False, True)]
    seconds = contest(
        {
            "study": Contestant(study),
            "capture": Contestant(backward),
            **{one.name: bare(subject, one, batch) for one in layouts},
        },
        given,
        warm=False,
        title=f"{NETWORKS[subject.name]}, {precision}",
    )
    each = {one.name: [value / (BATCHES * batch) for value in seconds[one.name]] for one in layouts}
    best = [min(pair) for pair in zip(*each.values(), strict=True)]
    floors = [n * one + back for n, one, back in zip(forwards, best, backwards, strict=True)]
    own = [n * one + b for n, one, b in zip(forwards, each[kernels.name], backwards, strict=True)]
    spent = seconds["study"]
    outside = [1 - (a + b) / all_ for a, b, all_ in zip(inside, backwards, spent, strict=True)]
    shown = {"study": spent, "one backward": backwards}
    shown |= {f"bare forward, {name}": values for name, values in each.items()}
    notes = {
        "kernels": kernels.name,
        "batch": batch,
        "forwards": forwards[0],
        "time / floor of the same layout, median": sorted(ratios(spent, own))[len(own) // 2],
    }
    ends = f"{subject.name}-{precision}"
    return [
        Figure(f"floor-{ends}", ratios(spent, floors), shown, notes),
        Figure(f"overhead-{ends}", outside, {"study": spent, "its forwards": inside}, notes),
    ]


def main() -> None:
    """Measure, print and write."""
    given = parsed(options(__doc__, networks=True))
    found: list[Figure] = []
    for subject in subjects(given):
        for precision in ("float32", "auto"):
            found += figures(subject, precision, given)
    report("floor", found, given)


if __name__ == "__main__":
    main()
