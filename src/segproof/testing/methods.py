"""Holds a method to what maps promise: its properties, finite numbers, a model left as it was."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from segproof.errors import ModelError
from segproof.explain import Capture, MethodFunction, capture, normalise, resolve_method
from segproof.testing.properties import (
    LIMITS,
    PROPERTIES,
    ROOF,
    ChangedTarget,
    Property,
    activation_of,
    captured,
    layer_of,
    raw_map,
    toy_of,
)
from segproof.testing.report import (
    Report,
    Shapeless,
    Skipped,
    case_numbers,
    check_names,
    counted,
    require,
    run_check,
)
from segproof.testing.sideeffects import changes, facts, unsettle
from segproof.testing.toys import LAYERS, SIDE, Fails, toy_images, toy_model

__all__ = ["check_memory", "check_method"]

ERRORS: Final[tuple[type[BaseException], ...]] = (RuntimeError, IndexError, KeyboardInterrupt)


def check_method(
    method: MethodFunction | str, *, cases: int = 20, seed: int = 0, limits: Collection[str] = ()
) -> Report:
    """Hold a method, or a built-in one by its name, to all `PROPERTIES` on small networks.

    Beside these: a map of numbers for every input, its shape, and a model left as it was, also
    after an error. `limits` names properties that the method is known to lack: each has to be
    violated in some case, else it is reported as skipped. Built-in ones bring their own (`LIMITS`).

    Raises:
        UnknownNameError: an unknown method or limit.
        SegproofError: no cases.
    """
    if isinstance(method, str):
        limits = {*limits, *LIMITS.get(method, ())}
    _, called = resolve_method(method, "strict")
    check_names("property", limits, PROPERTIES)
    numbers = case_numbers(seed, cases)
    checks = [
        run_check("shape", lambda: _shape(called, numbers)),
        run_check("finite", lambda: _finite(called, numbers)),
    ]
    for name, chosen in PROPERTIES.items():

        def run(chosen: Property = chosen) -> str:
            return _property_over(chosen, called, numbers)

        checks.append(run_check(name, run, limits))
    checks += [
        run_check("untouched", lambda: _untouched(called, numbers)),
        run_check("untouched_after_errors", lambda: _untouched_after(called, numbers[0])),
    ]
    return Report(tuple(checks))


def _shape(method: MethodFunction, numbers: range) -> str:
    for case in numbers:
        model, images = toy_of(case).float(), toy_images(case, 2).float()
        found = raw_map(method, captured(model, images), layer_of(case), model)
        kind = type(found).__name__
        require(isinstance(found, Tensor), f"the map is no tensor but of type {kind}")
        require(
            found.ndim == 3 and len(found) == 2 and found.is_floating_point(),
            f"two pictures give {found.dtype} {tuple(found.shape)}, not real numbers [2, h, w]",
        )
        require(not found.requires_grad, "the map still holds the graph: detach it")
    return f"maps [N, h, w] of real numbers in {len(numbers)} cases"


def _finite(method: MethodFunction, numbers: range) -> str:
    """Signed and unsigned activations, flat pictures, a silent layer, huge and tiny targets."""
    for case in numbers:
        model, images, layer = toy_of(case).float(), toy_images(case).float(), layer_of(case)
        plain = captured(model, images)
        silent = {path: torch.zeros_like(value) for path, value in plain.gradients.items()}
        situations = {
            "a picture": plain,
            "a flat picture": captured(model, torch.full_like(images, 0.5)),
            "a black picture": captured(model, torch.zeros_like(images)),
            "gradients of zero": replace(plain, gradients=silent),
            "activations of zero": replace(
                plain, activations={path: 0 * value for path, value in plain.activations.items()}
            ),
            "a tiny target": captured(model, images, target=ChangedTarget("roof", factor=1e-15)),
            "a huge target": captured(model, images, target=ChangedTarget("roof", factor=1e15)),
        }
        for name, seen in situations.items():
            if not bool(seen.bound.region.any()):
                continue  # nothing to explain: `explain` does not ask a method then
            found = raw_map(method, seen, layer, model)
            require(
                bool(torch.isfinite(found).all()),
                f"numbers that are not finite for {name} with {activation_of(case)} (case {case})",
            )
            heat, _ = normalise(found[0], (SIDE, SIDE))
            require(0 <= float(heat.min()) <= float(heat.max()) <= 1, f"no heatmap for {name}")
    return f"numbers in {len(numbers)} cases of seven kinds, signed and unsigned activations"


def _tensors_of(seen: Capture) -> list[Tensor]:
    masks = [value for value in vars(seen.bound).values() if isinstance(value, Tensor)]
    baseline = [] if seen.baseline is None else [seen.baseline]
    layers = [*seen.activations.values(), *seen.gradients.values()]
    return [seen.images, seen.logits, *baseline, *layers, *masks]


def _untouched(method: MethodFunction, numbers: range) -> str:
    for case in numbers:
        model, images = toy_of(case), toy_images(case)
        unsettle(model)
        seen = captured(model, images)
        given = [images, *_tensors_of(seen)]
        before = facts(model, *given)
        found = raw_map(method, seen, layer_of(case), model)
        changed = changes(before, facts(model, *given))
        require(not changed, f"{counted(changed)}; changed: {', '.join(changed)} (case {case})")
        require(bool(torch.isfinite(found).all()), "numbers that are not finite")
    return f"12 of 12 kinds of state as before in {len(numbers)} cases"


def _untouched_after(method: MethodFunction, case: int) -> str:
    """An error in the network at its first forwards, when the target is bound or read, in a fill:
    it has to arrive, and to leave nothing behind.
    """
    places = ("network 0", "network 1", "network 3", "target", "score", "fill")
    arrived = 0
    for error in ERRORS:
        for place in places:
            model, images = toy_of(case), toy_images(case)
            unsettle(model)
            # known by then: at the second size that it is tried at, an error is a size not taken
            model.evidence((images.shape[-2], images.shape[-1]))
            failing, (kind, _, after) = Fails(error), place.partition(" ")
            target = failing.target(kind, ROOF) if kind in ("target", "score") else ROOF
            fill = failing.now if kind == "fill" else (lambda seen: 0.35 + 0.1 * seen)
            with failing.network(model, int(after) if after else None):
                before = facts(model, images)
                swallowed = True
                try:
                    seen = capture(model, images, target, LAYERS)
                    raw_map(method, replace(seen, baseline=fill(images)), layer_of(case), model)
                except error:
                    swallowed = False
                except ModelError as told:  # a network's own errors come as what they were from
                    swallowed = not isinstance(told.__cause__, error)
                changed = changes(before, facts(model, images))
            where = f"after {error.__name__} in {place}"
            require(not (failing.raised and swallowed), f"the error is swallowed {where}")
            require(failing.raised <= 1, f"the call is tried again {where}")
            require(not changed, f"{counted(changed)} {where}; changed: {', '.join(changed)}")
            arrived += failing.raised
    return f"12 of 12 kinds of state as before after {arrived} errors, all of which arrived"


def check_memory(method: MethodFunction | str, *, maps: int = 200, limit_mb: float = 20) -> Report:
    """Whether `maps` maps leave less than `limit_mb` MB behind; takes seconds, so it stands alone.

    Raises:
        UnknownNameError: an unknown method.
    """
    _, called = resolve_method(method, "strict")

    def run() -> str:
        statm = Path("/proc/self/statm")
        if not statm.exists():
            raise Skipped("this system has no /proc to read the memory from")

        def resident() -> float:
            gc.collect()
            pages = int(statm.read_text(encoding="ascii").split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

        model, image = toy_model(1), toy_images(1, side=64)

        def go(count: int) -> None:
            for _ in range(count):
                raw_map(called, captured(model, image), LAYERS[1], model)

        go(max(20, maps // 10))  # caches fill first
        before = resident()
        go(maps)
        grown = resident() - before
        found = f"{maps} maps leave {max(grown, 0):.1f} MB behind"
        require(grown < limit_mb, f"{found}, under {limit_mb:g} MB is allowed")
        return found

    return Report((run_check("memory", run),))


def _property_over(chosen: Property, method: MethodFunction, numbers: range) -> str:
    lively, worst, at = 0, 0.0, 0
    for case in numbers:
        apart, shows = chosen.compare(method, case)
        lively += shows
        if apart > worst:
            worst, at = apart, case
    if math.isinf(worst):
        raise Shapeless(f"maps of other shapes, or with NaN (case {at}); {chosen.says}")
    if 2 * lively < len(numbers):
        raise Shapeless(f"only {lively} of {len(numbers)} maps are not flat: that shows nothing")
    figure = f"maps differ by up to {worst:.1e} of full range, {chosen.allowed:.0e} is allowed"
    require(worst <= chosen.allowed, f"{figure} (case {at}); {chosen.says}")
    return f"{chosen.says}: {worst:.1e} in {len(numbers)} cases, {lively} not flat"
