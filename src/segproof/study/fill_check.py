"""Tries on the first tiles which fills remove the target without drawing another, and chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from segproof.analysis import VALID_DROP
from segproof.data import SampleSource
from segproof.errors import DataError, ModelError
from segproof.explain import Capture, clean_of
from segproof.measures import MEASURES
from segproof.models import SegmentationModel, evaluating, probabilities
from segproof.perturb import DEFAULT_FILLS, FILLS, make_fill
from segproof.study.pictures import outline_noise, widened
from segproof.study.plan import Plan, outline_name
from segproof.study.settings import Settings
from segproof.study.tile import clean_capture, donor_of, nothing_to_explain

__all__ = ["OUTLINES", "choose_fills", "choose_outline", "probe_fills"]

PROBED: Final = 16  # tiles on which `strict` tries the fills
OUTLINES: Final = {  # px to grow and to roughen by, in the order in which `strict` tries them
    "exact": (0, 0),
    "grow 4": (4, 0),
    "grow 10": (10, 0),
    "roughen 10": (0, 10),
}


def probe_fills(
    study: Settings,
    model: SegmentationModel,
    data: SampleSource,
    count: int,
    outlines: Mapping[str, tuple[int, int]] | None = None,
) -> tuple[dict[str, dict[str, dict[str, float]]], int]:
    """Relative drop of confidence when the target is removed, per outline and fill, on the first
    tiles; and the forwards spent.

    Tried are `outlines`, or the study's own one, and the others where it leaves that open and no
    natural fill passes.
    """
    if outlines is not None:
        return _probe(study, model, data, count, outlines)
    if study.preset == "paper" or study.fills is not None:
        return {}, 0
    own = {outline_name(study.grow, study.roughen): (study.grow, study.roughen)}
    probe, forwards = _probe(study, model, data, count, own)
    if study.outline == "auto" and "exact" in probe and not _passing(probe["exact"], natural=True):
        others = {name: sizes for name, sizes in OUTLINES.items() if name not in own}
        more, spent = _probe(study, model, data, count, others)
        return probe | more, forwards + spent
    return probe, forwards


def _probe(
    study: Settings,
    model: SegmentationModel,
    data: SampleSource,
    count: int,
    outlines: Mapping[str, tuple[int, int]],
) -> tuple[dict[str, dict[str, dict[str, float]]], int]:
    plan = Plan(
        study=study,
        layers={},
        shapes=(),
        fills=tuple(FILLS),
        probe={},
        tiles=count,
        class_index=model.class_index(study.class_),
        shape=(0, 0, 0),
    )
    drops: dict[str, dict[str, list[float]]] = {
        name: {fill: [] for fill in FILLS} for name in outlines
    }
    tried = forwards = 0
    for position in range(count):
        if tried == PROBED:
            break
        try:
            captured, truth = clean_capture(plan, model, data[position], {})
        except (DataError, ModelError):
            continue  # reported with its reason when the tile is studied
        forwards += 1
        if nothing_to_explain(study, captured):
            continue
        tried += 1
        before = _confidences(model, captured, [captured.images[0]])[0]
        donor = donor_of(plan, model, data, position)
        sample, bound = data.ids[position], captured.bound
        removed = {
            name: widened(bound.region[0], grow, outline_noise(study, sample, rough, captured))
            & bound.valid[0]
            for name, (grow, rough) in outlines.items()
        }
        context = clean_of(captured, model, truth, seed=(study.seed, sample), donor=donor)
        for fill in FILLS:
            make = make_fill(fill, context.seeded(study.seed, sample, fill))
            for name, gone in removed.items():
                after = _confidences(model, captured, [make(captured.images, ~gone[None])[0]])[0]
                drops[name][fill].append(1 - after / before if before > 0 else float("nan"))
        forwards += 1 + len(FILLS) * len(outlines)
    if not tried:
        return {}, forwards
    summary = {
        name: {
            fill: {"mean_drop": sum(values) / tried, "min_drop": min(values), "n": tried}
            for fill, values in by_fill.items()
        }
        for name, by_fill in drops.items()
    }
    return summary, forwards


def _confidences(
    model: SegmentationModel, captured: Capture, images: Sequence[Tensor]
) -> list[float]:
    with torch.inference_mode(), evaluating(model):
        p = probabilities(model(torch.stack(list(images))), captured.bound.activation)
        values: list[float] = MEASURES["confidence"].function(p, captured.bound, None).tolist()
    return values


def _passing(drops: Mapping[str, Mapping[str, float]], *, natural: bool = False) -> list[str]:
    """The valid ones of the fills that are quick (and natural), least artificial first."""
    quick = [name for name in _quick() if not natural or FILLS[name].natural]
    return [name for name in quick if drops[name]["mean_drop"] >= VALID_DROP]


def _quick() -> list[str]:
    """Fills that a study may choose; slow ones are tried, but used only if they are named."""
    return [name for name, fill in FILLS.items() if fill.quick]


def choose_outline(probe: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The first outline under which a natural fill passes; else the first under which any does,
    else the first; "" where none was tried.
    """
    for natural in (True, False):
        for name, drops in probe.items():
            if _passing(drops, natural=natural):
                return name
    return next(iter(probe), "")


def choose_fills(study: Settings, probe: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """The least artificial fill that passes and the next of another kind; where fewer pass, those
    that mislead the least.
    """
    if study.preset == "paper":
        return (DEFAULT_FILLS["paper"],)
    if not probe:
        return (DEFAULT_FILLS["strict"], "black")
    passing = _passing(probe)
    # two of one kind would agree for that reason
    other = [fill for fill in passing if FILLS[fill].kind != FILLS[passing[0]].kind]
    by_drop = sorted(_quick(), key=lambda fill: -probe[fill]["mean_drop"])
    return tuple(dict.fromkeys([*passing[:1], *other, *passing, *by_drop]))[:2]
