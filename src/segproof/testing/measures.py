"""Holds a measure to what measures promise: its range, its direction, where it is NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from segproof.errors import SegproofError, UnknownNameError
from segproof.explain import BoundTarget
from segproof.measures import MEASURES, PictureMeasure
from segproof.models import Activation
from segproof.perturb import seeded
from segproof.testing.report import FLAT, Report, case_numbers, check_names, require, run_check
from segproof.testing.sideeffects import changes, facts

__all__ = ["check_measure"]


def check_measure(
    measure: PictureMeasure | str,
    *,
    cases: int = 20,
    seed: int = 0,
    low: float | None = None,
    high: float | None = None,
    better: Literal["higher", "lower"] | None = None,
    reads: Literal["region", "everywhere"] = "region",
    undefined: Collection[str] = ("empty",),
) -> Report:
    """Hold a measure, or a built-in one by its name, to what every measure promises.

    `low`, `high`: its range; `better`: its direction. `reads`: "region", so that nothing outside R
    matters, or "everywhere", so that nothing outside the valid pixels does. `undefined`: where it
    is NaN, of "empty" (nothing in any mask) and "nothing_kept" (no pixel of R decided as the
    class); it has to be a number elsewhere.

    Raises:
        UnknownNameError: an unknown measure or situation.
        SegproofError: an own measure without a range or direction; no cases.
    """
    if isinstance(measure, str):
        if measure not in MEASURES:
            raise UnknownNameError.of("measure", measure, MEASURES)
        info = MEASURES[measure]
        low = info.low if low is None else low
        high = info.high if high is None else high
        better = better or (None if info.better == "neither" else info.better)
        # an overlap counts what appears anywhere
        reads = "everywhere" if measure in ("iou", "iou_prediction", "dice") else reads
        called = info.function
    else:
        called = measure
    if low is None or high is None or better is None:
        raise SegproofError(
            "a measure without range or direction", "low, high and better", "state them"
        )
    bottom, top, direction = low, high, better
    check_names("situation", undefined, ("empty", "nothing_kept"))
    numbers = case_numbers(seed, cases)
    runs: dict[str, Callable[[], str]] = {
        "shape": lambda: _measure_shape(called, numbers),
        "repeat": lambda: _measure_repeat(called, numbers),
        "batch": lambda: _measure_batch(called, numbers),
        "range": lambda: _measure_range(called, numbers, bottom, top),
        "direction": lambda: _measure_direction(called, direction),
        "outside": lambda: _measure_outside(called, numbers, reads),
        "undefined": lambda: _measure_undefined(called, numbers, undefined),
        "untouched": lambda: _measure_untouched(called, numbers),
    }
    return Report(tuple(run_check(name, run) for name, run in runs.items()))


def _measured(case: int, n: int = 3) -> tuple[Tensor, BoundTarget, Tensor]:
    """Probabilities [n, K, 7, 9], a few exactly 0 or 1, a target of one class, and a truth."""
    generator = seeded("measure", case)
    activation: Activation = "sigmoid" if case % 2 else "softmax"
    K, shape = 2 + case // 2 % 3, (7, 9)
    z = 4 * torch.randn(n, K, *shape, generator=generator, dtype=torch.float64)
    z[:, 0, 0], z[:, -1, 1] = 800.0, 800.0
    p = z.softmax(dim=1) if activation == "softmax" else z.sigmoid()
    masks = torch.rand(4, n, *shape, generator=generator)
    valid, truth = masks[0] > 0.1, masks[1] > 0.4
    region, prediction = (masks[2] > 0.5) & valid, (masks[3] > 0.5) & valid
    truth[:, 1], region[:, 1], prediction[:, 1], valid[:, 1] = True, True, True, True
    return p, _target_of(region, prediction, valid, K - 1, activation), truth


def _target_of(
    region: Tensor,
    prediction: Tensor,
    valid: Tensor,
    index: int,
    activation: Activation,
) -> BoundTarget:
    inside = region.double()
    return BoundTarget(
        class_index=index,
        activation=activation,
        space="logit",
        weights=inside / inside.sum(dim=(1, 2), keepdim=True).clamp(min=1),
        region=region,
        prediction=prediction,
        valid=valid,
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(-9e9), other.nan_to_num(-9e9))


def _far(one: Tensor, other: Tensor) -> float:
    """Greatest difference; infinite where only one is a number, or the shapes differ."""
    if one.shape != other.shape or not torch.equal(one.isnan(), other.isnan()):
        return math.inf
    return float((one - other).nan_to_num(0.0).abs().max())


def _measure_shape(measure: PictureMeasure, numbers: range) -> str:
    for case in numbers:
        p, bound, truth = _measured(case)
        for given, target in ((p, bound), (p.float(), bound), (p.float(), bound.picture(0))):
            found = measure(given, target, truth)
            require(isinstance(found, Tensor), f"no tensor but {type(found).__name__}")
            require(
                tuple(found.shape) == (3,) and found.dtype == torch.float64,
                f"three pictures give {found.dtype} {tuple(found.shape)}, not float64 (3,)",
            )
    return f"float64 [N] in {len(numbers)} cases, also for float32 probabilities"


def _measure_repeat(measure: PictureMeasure, numbers: range) -> str:
    for case in numbers:
        p, bound, truth = _measured(case)
        require(
            _same(measure(p, bound, truth), measure(p, bound, truth)),
            f"two calls differ (case {case})",
        )
    return f"two calls agree bit for bit in {len(numbers)} cases"


def _measure_batch(measure: PictureMeasure, numbers: range) -> str:
    """Pictures with a target each, and variants of one picture under its one target."""
    worst = 0.0
    for case in numbers:
        p, bound, truth = _measured(case)
        together = measure(p, bound, truth)
        rows = range(len(p))
        alone = [measure(p[n : n + 1], bound.picture(n), truth[n : n + 1]) for n in rows]
        worst = max(worst, _far(together, torch.cat(alone)))
        one = bound.picture(0)
        variants = measure(p, one, truth[:1])
        alone = [measure(p[n : n + 1], one, truth[:1]) for n in rows]
        worst = max(worst, _far(variants, torch.cat(alone)))
    require(worst <= 1e-12, f"a batch differs from its pictures by {worst:.1e}")
    return f"a batch is its pictures one by one, to {worst:.0e} in {len(numbers)} cases"


def _measure_range(measure: PictureMeasure, numbers: range, low: float, high: float) -> str:
    least, most = math.inf, -math.inf
    for case in numbers:
        p, bound, truth = _measured(case)
        decided = (p == p.amax(dim=1, keepdim=True)).double()
        for given in (p, decided, torch.full_like(p, 1 / p.shape[1])):
            found = measure(given, bound, truth)
            found = found[~found.isnan()]
            if len(found):
                least, most = min(least, float(found.min())), max(most, float(found.max()))
    require(least <= most, "no number at all")
    # a mean of numbers in [0, 1] may round past the end by its last digit
    slack = 1e-12 * max(1.0, abs(low), abs(high))
    found_range = f"values from {least:.4g} to {most:.4g}"
    require(
        low - slack <= least and most <= high + slack,
        f"{found_range} leave the range from {low:g} to {high:g}",
    )
    require(most - least > FLAT * (high - low), f"{found_range}: it does not depend on p")
    return f"{found_range}, within {low:g} to {high:g}"


def _measure_direction(measure: PictureMeasure, better: Literal["higher", "lower"]) -> str:
    """All of R seen surely; half of it, unsurely. Truth and prediction are R."""
    region = torch.zeros(1, 4, 4, dtype=torch.bool)
    region[:, 1:3] = True
    for activation in get_args(Activation):
        bound = _target_of(region, region, torch.ones_like(region), 1, activation)
        chance = torch.where(region, 0.98, 0.02).double()
        weak = chance.clone()
        weak[:, 1], weak[:, 2] = 0.6, 0.4
        sure, unsure = (
            float(measure(torch.stack([1 - c, c], dim=1), bound, region)[0]) for c in (chance, weak)
        )
        require(
            sure > unsure if better == "higher" else sure < unsure,
            f"R seen surely gives {sure:.3g}, half of R unsurely {unsure:.3g}, "
            f"though {better} is better",
        )
    return f"{better} where R is seen surely ({sure:.3g}) than where half of it is ({unsure:.3g})"


def _measure_outside(measure: PictureMeasure, numbers: range, reads: str) -> str:
    worst, where = 0.0, "R" if reads == "region" else "the valid pixels"
    for case in numbers:
        p, bound, truth = _measured(case)
        inside = bound.region | truth if reads == "region" else bound.valid
        other = torch.where(inside[:, None], p, p.flip(1) if p.shape[1] > 1 else 1 - p)
        worst = max(worst, _far(measure(p, bound, truth), measure(other, bound, truth)))
    require(worst <= 1e-12, f"what happens outside {where} changes it by {worst:.1e}")
    return f"what happens outside {where} does not matter, in {len(numbers)} cases"


def _measure_undefined(measure: PictureMeasure, numbers: range, undefined: Collection[str]) -> str:
    for case in numbers:
        p, bound, truth = _measured(case)
        found = measure(p, bound, truth)
        require(not bool(found.isnan().any()), f"NaN for ordinary pictures (case {case})")
        nothing = torch.zeros_like(bound.region)
        blind = torch.full_like(p, 1.0 if bound.activation == "softmax" else 0.0)
        blind[:, bound.class_index] = 0.0
        if bound.activation == "softmax":
            blind /= blind.sum(dim=1, keepdim=True)
        empty = _target_of(nothing, nothing, bound.valid, bound.class_index, bound.activation)
        situations = {
            "empty": measure(blind, empty, nothing),
            "nothing_kept": measure(blind, bound, truth),
        }
        for name, value in situations.items():
            hollow = value.isnan()
            if name in undefined:
                require(bool(hollow.all()), f"{value.tolist()} where it is undefined: {name}")
            else:
                require(not bool(hollow.any()), f"NaN where it is to be a number: {name}")
    return f"NaN for {', '.join(undefined) or 'nothing'}, a number elsewhere"


def _measure_untouched(measure: PictureMeasure, numbers: range) -> str:
    for case in numbers:
        p, bound, truth = _measured(case)
        given = [p, truth, bound.weights, bound.region, bound.prediction, bound.valid]
        before = facts(nn.Identity(), *given)
        measure(p, bound, truth)
        changed = changes(before, facts(nn.Identity(), *given))
        require(not changed, f"changed: {', '.join(changed)} (case {case})")
    return "what it is given, random states and flags stay as they were"
