"""Measures how fast a study will be: tries kernels on its first tile and times one forward."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations, islice
from typing import Any, Final

import torch
from torch import Tensor

from segproof.data import SampleSource
from segproof.errors import DataError, ModelError
from segproof.explain import Explanation
from segproof.measures import Undefined, alike
from segproof.models import EXACT, Kernels, SegmentationModel, evaluating, halving, running
from segproof.study.plan import Plan
from segproof.study.store import Row
from segproof.study.tile import control_rows, counting, method_maps, method_rows

__all__ = ["choose_kernels", "distance_of", "forward_seconds", "orders", "score_distance"]

SAMPLE: Final = 24  # perturbed pictures on which kernels are compared
COMPARED: Final = ("confidence", "certainty", "iou")
RANKED: Final = {  # measures that rank layers and methods: column and strategy
    "M1": ("confidence", "background_only"),
    "M2": ("confidence", "highlighted_only"),
    "M3": ("certainty", "highlighted_and_target"),
    "iou_drop": ("iou", "background_only"),  # of one tile: the order of iou_drop, turned round
}
TIED: Final = 5e-3  # means so near in float32 are tied: some 800 tiles would tell them apart
TOLERANCE: Final = 0.02  # the greatest difference that `auto` takes, of measures in [0, 1]
SHORTENED: Final = 3  # tiles on which a shortcut is compared with the exact map
GAIN: Final = 1.05  # what `auto` asks of a faster layout or format
HOPELESS: Final = 3  # times float32: a processor without that format; once is enough


def forward_seconds(
    model: SegmentationModel,
    kernels: Kernels,
    pictures: Tensor,
    repeats: int = 2,
    hopeless: float = math.inf,
) -> float:
    """Seconds of one forward of one picture, in a batch of pictures [N, B, H, W]: the best run
    after one that warms up, or that one alone where it takes `hopeless` seconds a picture or more.
    """
    times: list[float] = []
    with torch.inference_mode(), evaluating(model), running(model, kernels):
        for _ in range(1 + repeats):
            started = time.perf_counter()
            model.shown(pictures)
            if pictures.device.type == "cuda":
                torch.cuda.synchronize(pictures.device)
            times.append(time.perf_counter() - started)
            if times[0] >= hopeless * len(pictures):
                break
    return min(times[1:] or times) / len(pictures)


def choose_kernels(plan: Plan, model: SegmentationModel, data: SampleSource) -> Plan:
    """The plan with the kernels that its `precision` asks for, and what was measured of them.

    Each candidate is timed, and its confidence, certainty and IoU are compared with those of
    float32 on the first tile's controls. `auto` takes the fastest that differs nowhere by more than
    TOLERANCE and, if it is another format, puts the layers and methods of that tile in the same
    order (`orders`); a named format is taken, with channels last if that runs, else float32.
    """
    with _spending(model) as spent:
        kernels, measured = halving(
            lambda batch: _tried(plan.batched(batch), model, data), plan.study.batch
        )
    return replace(plan, kernels=kernels, pace={**measured, "forwards": sum(spent)})


@contextmanager
def _spending(model: SegmentationModel) -> Iterator[list[int]]:
    """The pictures of every forward inside."""
    spent: list[int] = []
    with counting(model, lambda forwards, asked=None: spent.append(forwards)):
        yield spent


def _tried(
    plan: Plan, model: SegmentationModel, data: SampleSource
) -> tuple[Kernels, dict[str, Any]]:
    """The kernels to take, and what was measured of all that were tried."""
    precision = plan.study.precision
    zeros = torch.zeros(plan.study.batch, *plan.shape, device=model.device)
    seconds = {EXACT.name: forward_seconds(model, EXACT, zeros)}
    if precision == "float32":
        return EXACT, {"taken": EXACT.name, "seconds": seconds}
    expected = _controls(plan, model, data, EXACT)
    differences: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    fitting = {EXACT: seconds[EXACT.name]}
    for kernels in _candidates(precision, model.device.type):
        try:
            seconds[kernels.name] = forward_seconds(
                model, kernels, zeros, hopeless=HOPELESS * seconds[EXACT.name]
            )
            if precision == "auto" and seconds[EXACT.name] < GAIN * seconds[kernels.name]:
                continue  # slower: no matter what it changes
            rows = _controls(plan, model, data, kernels)
        except (RuntimeError, ModelError) as error:
            failed[kernels.name] = str(error).splitlines()[0]
            continue
        differences[kernels.name] = _differences(expected, rows)
        close = max(differences[kernels.name].values(), default=1.0) <= TOLERANCE
        if precision != "auto" or close:
            fitting[kernels] = seconds[kernels.name]
    ordered: dict[str, dict[str, dict[str, float]]] = {}
    if precision != "auto":
        # not the faster layout: its last bits would depend on what else the machine does
        taken = next((kernels for kernels in fitting if kernels.precision == precision), EXACT)
    else:
        taken, ordered = _fastest(plan, model, data, fitting, failed)
    return taken, {
        "asked": precision,
        "taken": taken.name,
        "seconds": seconds,
        "differences": differences,
        "failed": failed,
        "tolerance": TOLERANCE,
        "orders": ordered,
    }


def _fastest(
    plan: Plan,
    model: SegmentationModel,
    data: SampleSource,
    fitting: Mapping[Kernels, float],
    failed: dict[str, str],
) -> tuple[Kernels, dict[str, dict[str, dict[str, float]]]]:
    """The fastest of the kernels with these seconds that keeps float32's order, and the orders of
    those that were looked at; those that fail are noted with the reason.
    """
    by_kernels: dict[str, dict[str, dict[str, float]]] = {}
    expected: list[Row] | None = None
    for kernels in sorted(fitting, key=lambda kernels: fitting[kernels]):
        if kernels.precision == "float32":
            return kernels, by_kernels
        if expected is None:
            expected = _maps_tried(plan, model, data, EXACT)
        try:
            tried = _maps_tried(plan, model, data, kernels)
        except (RuntimeError, ModelError) as error:
            failed[kernels.name] = str(error).splitlines()[0]
            continue
        by_kernels[kernels.name] = orders(expected, tried)
        if not any(order["reversed"] for order in by_kernels[kernels.name].values()):
            return kernels, by_kernels
    return EXACT, by_kernels


def orders(expected: Sequence[Row], others: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How `others`, also rows of maps, order layers and methods next to the `expected` ones.

    By M1, M2, M3 and IoU drop: of all `pairs` of layer x method, by their means over levels, how
    many are `tied` (at most TIED apart in `expected`), how many of the others are `reversed`
    or have become equal, and the greatest `difference` of a mean.
    """
    summary = {}
    for measure, (column, strategy) in RANKED.items():
        before, after = (_means(rows, column, strategy) for rows in (expected, others))
        names = [name for name in before if name in after]
        gaps = [
            (before[one] - before[other], after[one] - after[other])
            for one, other in combinations(names, 2)
        ]
        apart = [(gap, now) for gap, now in gaps if abs(gap) > TIED]
        summary[measure] = {
            "pairs": len(gaps),
            "tied": len(gaps) - len(apart),
            "reversed": sum(gap * now <= 0 for gap, now in apart),
            "difference": max((abs(before[name] - after[name]) for name in names), default=0.0),
        }
    return summary


def _means(rows: Sequence[Row], column: str, strategy: str) -> dict[tuple[str, str], float]:
    """Means over levels of a column of rows, by layer and method."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        value = getattr(row, column)
        if row.strategy == strategy and value is not None and value == value:
            values.setdefault((row.layer, row.method), []).append(value)
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


def score_distance(plan: Plan, model: SegmentationModel, data: SampleSource) -> Plan:
    """The plan with what `score_channels` changes, measured on the first tiles that have something
    to explain: `distance_of` the maps, and the forwards that it took.
    """
    if plan.study.score_channels is None:
        return plan
    alone = {"methods": ("score_cam",), "fuse": ()}
    short = replace(plan, study=plan.study.model_copy(update=alone))
    exact = replace(plan, study=plan.study.model_copy(update={**alone, "score_channels": None}))
    tiles = 0
    pairs: tuple[list[Explanation], list[Explanation]] = ([], [])

    def maps(way: Plan, position: int) -> list[Explanation]:
        return halving(
            lambda batch: method_maps(way.batched(batch), model, data, position), way.study.batch
        )

    with _spending(model) as spent, running(model, plan.kernels):
        for position in range(plan.tiles):
            try:
                both_ways = [maps(way, position) for way in (short, exact)]
            except (DataError, ModelError):
                continue  # reported with its reason when the tile is studied
            for kept, more in zip(pairs, both_ways, strict=True):
                kept += more
            tiles += bool(both_ways[0])
            if tiles == SHORTENED:
                break
    measured = {
        "channels": plan.study.score_channels,
        "layers": distance_of(*pairs),
        "forwards": sum(spent),
    }
    return replace(plan, pace={**plan.pace, "score_cam": measured})


def distance_of(short: list[Explanation], exact: list[Explanation]) -> dict[str, dict[str, float]]:
    """By layer, how near maps are to the exact ones: Spearman correlation and IoU of the highest
    20 % (mean, lowest), the mean of the forwards of both, and on how many tiles. A flat map in
    place of one that is not counts 0 and 0; flat ones in place of flat ones are left out.
    """
    by_layer: dict[str, list[dict[str, float]]] = {}
    for one, other in zip(short, exact, strict=True):
        try:
            near = alike(one, other)
        except Undefined:
            if other.status != "ok":
                continue
            near = {"spearman": 0.0, "iou": 0.0}
        spent = {"shown": one.forwards, "exact": other.forwards}
        by_layer.setdefault(one.layer, []).append(near | spent)
    summary = {}
    for layer, lines in by_layer.items():
        means = {name: sum(line[name] for line in lines) / len(lines) for name in lines[0]}
        lowest = {f"{name}_min": min(line[name] for line in lines) for name in ("spearman", "iou")}
        summary[layer] = {**means, **lowest, "tiles": len(lines)}
    return summary


def _candidates(precision: str, device: str) -> list[Kernels]:
    """Kernels to try besides the network's own."""
    if precision != "auto":
        return [Kernels(precision, layout) for layout in (True, False)]  # type: ignore[arg-type]
    half: list[Kernels] = [Kernels("bfloat16", channels_last=True)]
    if device == "cuda":
        half.append(Kernels("float16", channels_last=True))
    return [Kernels("float32", channels_last=True), *half]


def _controls(
    plan: Plan, model: SegmentationModel, data: SampleSource, kernels: Kernels
) -> list[Row]:
    """Measures of the first tile's controls under these kernels; none without a target."""
    return _first_rows(
        plan, model, kernels, lambda at: islice(control_rows(plan, model, data, at), SAMPLE)
    )


def _maps_tried(
    plan: Plan, model: SegmentationModel, data: SampleSource, kernels: Kernels
) -> list[Row]:
    """Measures of the first tile's maps under these kernels, at matched area if the study has it;
    none without a target.
    """
    study = plan.study
    fewer = {"masses": (), "otsu": False, "soft": False, "boundary": False, "measures": ()}
    fewer |= {"thresholds": ()} if study.areas else {}
    less = replace(plan, study=study.model_copy(update=fewer))
    return _first_rows(less, model, kernels, lambda at: iter(method_rows(less, model, data, at)))


def _first_rows(
    plan: Plan,
    model: SegmentationModel,
    kernels: Kernels,
    rows_of: Callable[[int], Iterator[Row]],
) -> list[Row]:
    """Rows of the first tile that has some, under these kernels."""
    for position in range(plan.tiles):
        try:
            with running(model, kernels):
                rows = list(rows_of(position))
        except DataError:
            continue  # reported with its reason when the tile is studied
        except ModelError:
            if kernels != EXACT:
                raise
            continue  # as above: the network itself fails on this tile
        if rows:
            return rows
    return []


def _differences(expected: list[Row], others: list[Row]) -> dict[str, float]:
    """Greatest absolute difference of each measure that has numbers in both."""
    pairs = list(zip(expected, others, strict=True))
    greatest = {}
    for name in COMPARED:
        values = [(getattr(one, name), getattr(other, name)) for one, other in pairs]
        both = [abs(one - other) for one, other in values if None not in (one, other)]
        greatest[name] = max(both, default=1.0)
    return greatest
