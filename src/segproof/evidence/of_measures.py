"""Puts measures on trial: does the order of each agree with that of maps of known quality?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor

from segproof.analysis import interval, kendall_tau
from segproof.evidence.credit import average_precision, credit
from segproof.evidence.graded_maps import graded_maps
from segproof.evidence.known import (
    BATCH,
    KnownScene,
    capture_scene,
    generator_of,
    known_fill,
    read_pictures,
)
from segproof.explain import Capture
from segproof.measures import CutFunction, HeatmapCase, MapMeasure, Measure, Undefined, headline
from segproof.perturb import FillFunction, binarise, keep_mask, rank_pixels

__all__ = [
    "AREAS",
    "CUT_MEASURES",
    "HEADLINE",
    "THRESHOLDS",
    "TRIED_FILLS",
    "Shown",
    "judge_measures",
    "measure_cards",
    "scene_scores",
]

TRIED_FILLS: Final = ("absent", "background_texture")
THRESHOLDS: Final = (0.1, 0.3, 0.5)
AREAS: Final = (0.05, 0.1, 0.2, 0.3)
HEADLINE: Final = ("m1_confidence", "m2_confidence", "m3_certainty", "iou_drop")
TIE: Final = 1e-4  # values nearer to each other are the same
UNLIKE: Final = 0.02  # of true quality: maps nearer to the oracle may stand beside it
WHOLE: Final = "map"  # stands for binarisation where a measure takes the map as it is


@dataclass(frozen=True)
class Shown:
    """What was read, float64 [n], of n regions B: of the clean picture, of R alone, of M1, M2, M3,
    and without the pixels of B outside R; keys confidence, certainty, iou, entropy.
    """

    clean: Mapping[str, float]
    target_only: Mapping[str, float]
    m1: Mapping[str, Tensor]
    m2: Mapping[str, Tensor]
    m3: Mapping[str, Tensor]
    outside: Mapping[str, Tensor]


# Measures of a heatmap that was cut to a region, in the order of the evidence tables.
CUT_MEASURES: Final[dict[str, Measure[CutFunction]]] = {
    "m1_confidence": headline()["M1"],
    "m2_confidence": headline()["M2"],
    "m3_certainty": headline()["M3"],
    "m3_gain": Measure(
        "m3_gain",
        lambda s: s.m3["certainty"] - s.target_only["certainty"],
        "higher",
        formula="certainty of M3 - certainty of R alone",
    ),
    "m3_entropy_paper": headline("paper")["M3"],
    "iou_drop": headline()["iou_drop"],
    "outside_drop": Measure(
        "outside_drop",
        lambda s: s.clean["confidence"] - s.outside["confidence"],
        "higher",
        formula="confidence - confidence without B outside R",
    ),
    "contrast": headline()["contrast"],
}


def judge_measures(
    scenes: Iterable[KnownScene],
    *,
    cut: Mapping[str, Measure[CutFunction]] = CUT_MEASURES,
    whole: Mapping[str, Measure[MapMeasure] | MapMeasure] | None = None,
    fills: Sequence[str] = TRIED_FILLS,
    thresholds: Sequence[float] = THRESHOLDS,
    areas: Sequence[float] = AREAS,
    seed: int = 0,
    tick: Callable[[int], None] = lambda done: None,
) -> pd.DataFrame:
    """Every measure on every map of known quality: tier, kind, scene, map, truth, measure, better,
    fill, binarisation, level, value; NaN where a measure has no number.

    `cut` are measured at each threshold and each matched area, `whole` (callables: higher is
    better) once a fill. `fills` are names, or "absent" for the picture's ideal one.
    """
    columns = ["tier", "kind", "scene", "map", "truth", "measure", "better", "fill"]
    columns += ["binarisation", "level", "value"]
    levels = [("threshold", level) for level in thresholds] + [("area", level) for level in areas]
    rows: list[tuple[Any, ...]] = []
    for number, scene in enumerate(scenes):
        worth = credit(scene)
        maps = graded_maps(scene, worth, seed)
        truths = {name: average_precision(heat, worth, seed) for name, heat in maps.items()}
        seen = capture_scene(scene)
        key = (scene.tier, scene.kind, scene.name)
        regions = _regions(scene, maps, levels, seed)
        for fill in fills:
            make = known_fill(fill, scene, seen, seed)
            if cut:
                shown = _shown(scene, seen, make, [region for *_, region in regions])
                for name, measure in cut.items():
                    values = measure.function(shown).tolist()
                    for (which, kind, level, _), value in zip(regions, values, strict=True):
                        row = (which, truths[which], name, measure.better, fill, kind, level)
                        rows.append((*key, *row, value))
            for name, judged in (whole or {}).items():
                function, better = _directed(judged)
                for which, heat in maps.items():
                    value = _judged(
                        function, HeatmapCase(scene.model, seen, heat, make, scene.truth)
                    )
                    entry = (which, truths[which], name, better, fill, WHOLE, math.nan)
                    rows.append((*key, *entry, value))
        tick(number + 1)
    return pd.DataFrame(rows, columns=columns)


def _directed(judged: Measure[MapMeasure] | MapMeasure) -> tuple[MapMeasure, str]:
    if isinstance(judged, Measure):
        # one without a direction is tried as if higher were better, and said to have none
        return judged.function, judged.better
    return judged, "higher"


def _judged(function: MapMeasure, case: HeatmapCase) -> float:
    try:
        return float(function(case))
    except Undefined:
        return math.nan


def _regions(
    scene: KnownScene, maps: Mapping[str, Tensor], levels: Sequence[tuple[str, float]], seed: int
) -> list[tuple[str, str, float, Tensor]]:
    found = []
    for name, heat in maps.items():
        ranks = rank_pixels(heat, None, generator_of(scene, seed, "ties"))
        for kind, level in levels:
            if kind == "area":
                region = binarise(heat, area=level, ranks=ranks)
            else:
                region = binarise(heat, threshold=level)
            found.append((name, kind, level, region))
    return found


def _shown(
    scene: KnownScene, seen: Capture, fill: FillFunction, regions: Sequence[Tensor]
) -> Shown:
    target, region = seen.bound.region[0], torch.stack(list(regions))
    keep = torch.cat(
        [
            torch.stack([torch.ones_like(target), target]),
            keep_mask("background_only", region, target),
            keep_mask("highlighted_only", region, target),
            keep_mask("highlighted_and_target", region, target),
            ~(region & ~target),
        ]
    )
    # maps without heat outside R, and several levels of one plateau, show the same pictures
    distinct, place = torch.unique(keep, dim=0, return_inverse=True)
    parts = [
        read_pictures(scene, seen, fill(seen.images, part)) for part in torch.split(distinct, BATCH)
    ]
    read = {name: torch.cat([part[name] for part in parts])[place] for name in parts[0]}
    count = len(region)

    def strategy(number: int) -> dict[str, Tensor]:
        start = 2 + number * count
        return {name: value[start : start + count] for name, value in read.items()}

    return Shown(
        clean={name: float(value[0]) for name, value in read.items()},
        target_only={name: float(value[1]) for name, value in read.items()},
        m1=strategy(0),
        m2=strategy(1),
        m3=strategy(2),
        outside=strategy(3),
    )


def measure_cards(judged: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """How far each measure may be believed: per tier, kind (and "all"), measure, fill, binarisation
    the mean Kendall tau with the truth over scenes, its 95 % interval (scenes resampled), the share
    of maps that tie, of scenes with the oracle first and with a random map in the upper half.

    `sees_cue`: the share of scenes with the oracle before the object without its cue. At thresholds
    and areas the value of a map is its mean over the levels. A measure without any order has tau 0.
    `label`: uninformative where more than half of the maps tie.
    """
    keys = ["tier", "kind", "measure", "fill", "binarisation"]
    per_scene = scene_scores(judged)
    whole = per_scene.assign(kind="all")
    lines = []
    for frame in (per_scene, whole):
        for key, part in frame.groupby(keys, sort=False):
            scores = ["tau", "ties", "first", "random", "sees_cue"]
            scenes = part.groupby("scene", sort=True)[scores].mean()
            tau = interval(scenes["tau"].to_numpy(), resamples=resamples, seed=seed)
            means = scenes.mean()
            better = str(part["better"].iloc[0])
            label = "uninformative" if means["ties"] > 0.5 else ""
            label = "no direction" if better == "neither" else label
            row = (tau.mean, tau.low, tau.high, tau.n, *means.drop("tau"))
            lines.append((*key, better, *row, label))
    columns = [*keys, "better", "tau", "low", "high", "scenes", "ties", "oracle_first"]
    return pd.DataFrame(lines, columns=[*columns, "random_upper", "sees_cue", "label"])


def scene_scores(judged: pd.DataFrame) -> pd.DataFrame:
    """One line a scene and measure: tau, share of tied maps, oracle first, random in upper half,
    and whether the oracle is before the object without its cue.
    """
    keys = ["tier", "kind", "scene", "measure", "better", "fill", "binarisation"]
    means = judged.groupby([*keys, "map"], sort=False)[["truth", "value"]].mean().reset_index()
    lines = []
    for key, part in means.groupby(keys, sort=False):
        lines.append((*key, *_agreement(part, lower=key[4] == "lower")))
    return pd.DataFrame(lines, columns=[*keys, "tau", "ties", "first", "random", "sees_cue"])


def _agreement(part: pd.DataFrame, *, lower: bool) -> tuple[float, float, float, float, float]:
    """Tau, largest share of maps with one value, oracle first (0 or 1), random in upper half, the
    oracle before the object without its cue (0 or 1; NaN where there is none).
    """
    values = part["value"].to_numpy(np.float64)
    values = np.where(np.isfinite(values), -values if lower else values, np.nan)
    scaled = np.round(values / TIE) if np.isfinite(values).any() else values
    lowest = np.nanmin(scaled) - 1 if np.isfinite(scaled).any() else 0.0
    scaled = np.where(np.isfinite(scaled), scaled, lowest)  # no number: behind all that have one
    truth = part["truth"].to_numpy(np.float64)
    tau = kendall_tau(scaled, truth)
    ties = float(np.unique(scaled, return_counts=True)[1].max() / len(scaled))
    names = part["map"].to_numpy()
    oracle = names == "oracle"
    rivals = truth < truth[oracle].max() - UNLIKE
    first = float(bool((scaled[oracle].max() > scaled[rivals]).all()))
    ranks = rankdata(-scaled)
    random = np.array([str(name).startswith("random") for name in names])
    middle = (len(ranks) + 1) / 2
    # one that hits the evidence by chance stands there rightly
    upper = float(((ranks < middle) & (rankdata(-truth) > middle))[random].mean())
    blind = scaled[names == "object_only"]
    sees = float(bool((scaled[oracle].max() > blind).all())) if len(blind) else math.nan
    return (0.0 if math.isnan(tau) else tau), ties, first, upper, sees
