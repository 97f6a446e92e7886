"""How fast a study will be: kernels tried on its first tile, and what one forward takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor

from segproof.backoff import halving
from segproof.data import SampleSource
from segproof.errors import DataError, ModelError
from segproof.explain import Explanation
from segproof.judge import Undefined
from segproof.kernels import EXACT, Kernels
from segproof.model import SegmentationModel, evaluating, running
from segproof.quality import alike
from segproof.trial import Plan, control_rows, counting, method_maps

__all__ = ["choose_kernels", "distance_of", "forward_seconds", "score_distance"]

SAMPLE: Final = 24  # perturbed pictures on which kernels are compared
COMPARED: Final = ("confidence", "certainty", "iou")
TOLERANCE: Final = 0.02  # the greatest difference that `auto` takes, of measures in [0, 1]
SHORTENED: Final = 3  # tiles on which a shortcut is compared with the exact map
GAIN: Final = 1.05  # what `auto` asks of a faster layout or format


def forward_seconds(
    model: SegmentationModel, kernels: Kernels, pictures: Tensor, repeats: int = 2
) -> float:
    """Seconds of one forward of one picture, in a batch of pictures [N, B, H, W]: the best run
    after one that warms up.
    """
    times = []
    with torch.inference_mode(), evaluating(model), running(model, kernels):
        for _ in range(1 + repeats):
            started = time.perf_counter()
            model.shown(pictures)
            if pictures.device.type == "cuda":
                torch.cuda.synchronize(pictures.device)
            times.append(time.perf_counter() - started)
    return min(times[1:]) / len(pictures)


def choose_kernels(plan: Plan, model: SegmentationModel, data: SampleSource) -> Plan:
    """The plan with the kernels that its `precision` asks for, and what was measured of them.

    Each candidate is timed, and its confidence, certainty and IoU are compared with those of
    float32 on the first tile's controls. `auto` takes the fastest that differs nowhere by more than
    TOLERANCE; a named format is taken, with channels last if that runs, else float32.
    """
    spent = 0

    def count(forwards: int, asked: int | None = None) -> None:
        nonlocal spent
        spent += forwards

    with counting(model, count):
        kernels, found = halving(
            lambda batch: _tried(plan.batched(batch), model, data), plan.study.batch
        )
    return replace(plan, kernels=kernels, pace={**found, "forwards": spent})


def _tried(
    plan: Plan, model: SegmentationModel, data: SampleSource
) -> tuple[Kernels, dict[str, Any]]:
    """The kernels to take, and what was measured of all that were tried."""
    asked = plan.study.precision
    zeros = torch.zeros(plan.study.batch, *plan.shape, device=model.device)
    seconds = {EXACT.name: forward_seconds(model, EXACT, zeros)}
    if asked == "float32":
        return EXACT, {"taken": EXACT.name, "seconds": seconds}
    expected = _controls(plan, model, data, EXACT)
    differences: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    fitting = {EXACT: seconds[EXACT.name]}
    for kernels in _candidates(asked, model.device.type):
        try:
            seconds[kernels.name] = forward_seconds(model, kernels, zeros)
            found = _controls(plan, model, data, kernels)
        except (RuntimeError, ModelError) as error:
            failed[kernels.name] = str(error).splitlines()[0]
            continue
        differences[kernels.name] = _differences(expected, found)
        close = max(differences[kernels.name].values(), default=1.0) <= TOLERANCE
        if asked != "auto" or close:
            fitting[kernels] = seconds[kernels.name]
    if asked != "auto":
        # not the faster layout: its last bits would depend on what else the machine does
        taken = next((kernels for kernels in fitting if kernels.precision == asked), EXACT)
    else:
        taken = min(fitting, key=lambda kernels: fitting[kernels])
        if fitting[EXACT] < GAIN * fitting[taken]:
            taken = EXACT
    return taken, {
        "asked": asked,
        "taken": taken.name,
        "seconds": seconds,
        "differences": differences,
        "failed": failed,
        "tolerance": TOLERANCE,
    }


def score_distance(plan: Plan, model: SegmentationModel, data: SampleSource) -> Plan:
    """The plan with what `score_channels` changes, measured on the first tiles that have something
    to explain: `distance_of` the maps, and the forwards that it took.
    """
    if plan.study.score_channels is None:
        return plan
    alone = {"methods": ("score_cam",), "fuse": ()}
    short = replace(plan, study=plan.study.model_copy(update=alone))
    exact = replace(plan, study=plan.study.model_copy(update={**alone, "score_channels": None}))
    spent, tiles = 0, 0
    pairs: tuple[list[Explanation], list[Explanation]] = ([], [])

    def count(forwards: int, asked: int | None = None) -> None:
        nonlocal spent
        spent += forwards

    def maps(way: Plan, position: int) -> list[Explanation]:
        return halving(
            lambda batch: method_maps(way.batched(batch), model, data, position), way.study.batch
        )

    with counting(model, count), running(model, plan.kernels):
        for position in range(plan.tiles):
            try:
                found = [maps(way, position) for way in (short, exact)]
            except (DataError, ModelError):
                continue  # reported with its reason when the tile is studied
            for kept, made in zip(pairs, found, strict=True):
                kept += made
            tiles += bool(found[0])
            if tiles == SHORTENED:
                break
    measured = {
        "channels": plan.study.score_channels,
        "layers": distance_of(*pairs),
        "forwards": spent,
    }
    return replace(plan, pace={**plan.pace, "score_cam": measured})


def distance_of(short: list[Explanation], exact: list[Explanation]) -> dict[str, dict[str, float]]:
    """By layer, how near maps are to the exact ones: Spearman correlation and IoU of the highest
    20 % (mean, lowest), the mean of the forwards of both, and on how many tiles; flat maps are left
    out.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for one, other in zip(short, exact, strict=True):
        try:
            near = alike(one, other)
        except Undefined:
            continue
        spent = {"shown": one.forwards, "exact": other.forwards}
        found.setdefault(one.layer, []).append(near | spent)
    summary = {}
    for layer, lines in found.items():
        means = {name: sum(line[name] for line in lines) / len(lines) for name in lines[0]}
        lowest = {f"{name}_min": min(line[name] for line in lines) for name in ("spearman", "iou")}
        summary[layer] = {**means, **lowest, "tiles": len(lines)}
    return summary


def _candidates(asked: str, device: str) -> list[Kernels]:
    """Kernels to try besides the network's own."""
    if asked != "auto":
        return [Kernels(asked, layout) for layout in (True, False)]  # type: ignore[arg-type]
    half: list[Kernels] = [Kernels("bfloat16", channels_last=True)]
    if device == "cuda":
        half.append(Kernels("float16", channels_last=True))
    return [Kernels("float32", channels_last=True), *half]


def _controls(
    plan: Plan, model: SegmentationModel, data: SampleSource, kernels: Kernels
) -> list[Mapping[str, Any]]:
    """Measures of the first tile's controls under these kernels; none without a target."""
    for position in range(plan.tiles):
        try:
            with running(model, kernels):
                rows: list[Mapping[str, Any]] = list(
                    islice(control_rows(plan, model, data, position), SAMPLE)
                )
        except DataError:
            continue  # reported with its reason when the tile is studied
        except ModelError:
            if kernels != EXACT:
                raise
            continue  # as above: the network itself fails on this tile
        if rows:
            return rows
    return []


def _differences(
    expected: list[Mapping[str, Any]], found: list[Mapping[str, Any]]
) -> dict[str, float]:
    """Greatest absolute difference of each measure that has numbers in both."""
    pairs = list(zip(expected, found, strict=True))
    return {
        name: max(
            (abs(a[name] - b[name]) for a, b in pairs if None not in (a[name], b[name])),
            default=1.0,
        )
        for name in COMPARED
    }
