"""The properties that the built-in methods, measures, fills and networks are held to, for your own.

`check_method(mine).raise_for_failures()` in a test of yours is all it takes. The networks here are
small and seeded, so that a whole check takes seconds; docs/guide/extending.md shows each of them.
"""

from __future__ import annotations

import copy
import gc
import math
import os
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from segproof.errors import ModelError, SegproofError, UnknownNameError
from segproof.explain import (
    METHODS,
    BoundTarget,
    Capture,
    MethodFunction,
    RawMap,
    Target,
    capture,
    explain,
    normalise,
    resolve_method,
)
from segproof.measures import MEASURES, PictureMeasure
from segproof.models import Activation, SegmentationModel, evaluating, probabilities, unit_range
from segproof.perturb import FILLS, FillContext, FillFunction, make_fill, seeded
from segproof.testing.sideeffects import FACTS, changes, facts, unsettle
from segproof.testing.toys import (
    LAYERS,
    SIDE,
    Fails,
    ToyNet,
    symmetric_model,
    toy_images,
    toy_model,
    toy_truth,
)

__all__ = [
    "FACTS",
    "LAYERS",
    "LIMITS",
    "PROPERTIES",
    "Check",
    "Fails",
    "Property",
    "Report",
    "ToyNet",
    "check_fill",
    "check_measure",
    "check_memory",
    "check_method",
    "check_model",
    "facts",
    "toy_images",
    "toy_model",
    "toy_truth",
    "unsettle",
]

Status = Literal["passed", "failed", "skipped"]

ROOF: Final = Target("roof")
CLOSE: Final = 1e-6  # of full range, in float64: formulas rearranged, nothing else
BATCH: Final = 2e-5  # of full range, in float32: convolutions add up in another order
FLAT: Final = 1e-3  # a map that varies by less, of its greatest value, shows nothing
ERRORS: Final[tuple[type[BaseException], ...]] = (RuntimeError, IndexError, KeyboardInterrupt)


@dataclass(frozen=True)
class Check:
    """One property: `passed`, `failed` or `skipped`, and in `detail` the figure or the reason."""

    name: str
    status: Status
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """All checks of one subject, in running order."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def ok(self) -> bool:
        """Whether none failed; skipped ones do not count against it."""
        return not self.failed

    def __str__(self) -> str:
        return "\n".join(f"{c.status:8}{c.name}: {c.detail}" for c in self.checks)

    def raise_for_failures(self) -> None:
        """Do nothing if all is well.

        Raises:
            AssertionError: names every failure with its figure.
        """
        if self.failed:
            lines = "\n".join(f"{check.name}: {check.detail}" for check in self.failed)
            raise AssertionError(f"{len(self.failed)} of {len(self.checks)} failed\n{lines}")


# --- properties of methods ------------------------------------------------------------------------
@dataclass(frozen=True)
class Property:
    """A relation between two maps. `compare` takes a method and the number of a case, and gives how
    far apart the maps are (share of full range) and whether they show something (are not flat).
    """

    name: str
    says: str
    allowed: float
    compare: Callable[[MethodFunction, int], tuple[float, bool]]


@dataclass(frozen=True)
class _Bound(BoundTarget):
    """Y times `factor` plus `shift`."""

    factor: float = 1.0
    shift: float = 0.0

    def score(self, logits: Tensor) -> Tensor:
        return self.factor * super().score(logits) + self.shift


@dataclass(frozen=True)
class _Changed(Target):
    factor: float = 1.0
    shift: float = 0.0

    def bind(self, *arguments: Any, **options: Any) -> BoundTarget:
        bound = super().bind(*arguments, **options)
        return _Bound(**vars(bound), factor=self.factor, shift=self.shift)


def _layer(case: int) -> str:
    return LAYERS[case % 2]


def _act(case: int) -> str:
    return ("relu", "silu")[case // 2 % 2]


def _toy(case: int) -> SegmentationModel:
    return toy_model(case // 4, act=_act(case))


def _seen(
    model: SegmentationModel,
    images: Tensor,
    layers: Sequence[str] = LAYERS,
    target: Target = ROOF,
) -> Capture:
    """A capture whose baseline follows the picture pixel by pixel, and so any turn of it."""
    return capture(model, images, target, layers, baseline=0.35 + 0.1 * images)


def _raw(method: MethodFunction, seen: Capture, layer: str, model: SegmentationModel) -> Tensor:
    made = method(seen, layer, model)
    return made.values if isinstance(made, RawMap) else made


def _unit(maps: Tensor) -> Tensor:
    """Each map [N, h, w] over its greatest absolute value: signs stay, the unit goes."""
    top = maps.abs().amax(dim=(1, 2), keepdim=True)
    return maps / torch.where(top > 0, top, 1.0)


def _compared(one: Tensor, other: Tensor) -> tuple[float, bool]:
    if one.shape != other.shape:
        return math.inf, True
    first, second = _unit(one.double()), _unit(other.double())
    apart = float((first - second).abs().max())
    lively = bool((first.amax(dim=(1, 2)) - first.amin(dim=(1, 2)) > FLAT).all())
    return (math.inf if math.isnan(apart) else apart), lively


def _bitwise(one: Tensor, other: Tensor) -> tuple[float, bool]:
    apart, lively = _compared(one, other)
    same = one.dtype == other.dtype and torch.equal(one, other)
    return (0.0 if same else max(apart, 1e-15)), lively


def _repeat(method: MethodFunction, case: int) -> tuple[float, bool]:
    maps = []
    for _ in range(2):
        model, images = _toy(case).float(), toy_images(case).float()
        maps.append(_raw(method, _seen(model, images), _layer(case), model))
    return _bitwise(*maps)


def _batch(method: MethodFunction, case: int) -> tuple[float, bool]:
    # not float32 where activations are signed: their sums may cancel down to rounding noise
    number = torch.float32 if _act(case) == "relu" else torch.float64
    model, images, layer = _toy(case).to(number), toy_images(case, 3).to(number), _layer(case)
    together = _raw(method, _seen(model, images), layer, model)
    alone = [_raw(method, _seen(model, image[None]), layer, model) for image in images]
    return _compared(together, torch.cat(alone))


def _with_target(method: MethodFunction, case: int, target: Target) -> tuple[float, bool]:
    model, images, layer = _toy(case), toy_images(case), _layer(case)
    plain = _raw(method, _seen(model, images), layer, model)
    return _compared(plain, _raw(method, _seen(model, images, target=target), layer, model))


def _scaled(method: MethodFunction, case: int) -> tuple[float, bool]:
    factor = (1e-3, 0.1, 7.0, 1e3)[case // 4 % 4]
    return _with_target(method, case, _Changed("roof", factor=factor))


def _shifted(method: MethodFunction, case: int) -> tuple[float, bool]:
    shift = (-20.0, -1.0, 3.0, 50.0)[case // 4 % 4]
    return _with_target(method, case, _Changed("roof", shift=shift))


class _Remade(nn.Module):
    """A block that gives channels `order` of what it gave, times `scale`."""

    def __init__(self, block: nn.Module, order: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.block, self.order, self.scale = block, order, scale

    def forward(self, *inputs: Tensor) -> Tensor:
        result: Tensor = self.block(*inputs)[:, self.order] * self.scale
        return result


def _remade(method: MethodFunction, case: int, order: Tensor, scale: Tensor) -> tuple[float, bool]:
    """Maps of a network, and of the same function with the layer's channels rearranged."""
    model, other, images, layer = _toy(case), _toy(case), toy_images(case), _layer(case)
    blocks = cast("nn.ModuleList", other.net.get_submodule("decoder.blocks"))
    next_path = "segmentation_head" if layer == LAYERS[1] else "decoder.blocks.1.conv"
    behind = cast("nn.Conv2d", other.net.get_submodule(next_path))
    copies = torch.bincount(order, minlength=behind.in_channels)
    with torch.no_grad():
        weight = behind.weight[:, order] / copies[order].view(-1, 1, 1) / scale
    behind.weight = nn.Parameter(weight)
    place = LAYERS.index(layer)
    blocks[place] = _Remade(blocks[place], order, scale).eval()
    plain = _raw(method, _seen(model, images), layer, model)
    return _compared(plain, _raw(method, _seen(other, images), layer, other))


def _channels(case: int) -> int:
    return (7, 5)[case % 2]


def _ones(channels: int) -> Tensor:
    return torch.ones(channels, 1, 1, dtype=torch.float64)


def _permuted(method: MethodFunction, case: int) -> tuple[float, bool]:
    count = _channels(case)
    order = torch.randperm(count, generator=seeded("order", case))
    return _remade(method, case, order, _ones(count))


def _doubled(method: MethodFunction, case: int) -> tuple[float, bool]:
    count = _channels(case)
    order = torch.tensor([*range(count), case // 4 % count])
    return _remade(method, case, order, _ones(count + 1))


def _rescaled(method: MethodFunction, case: int) -> tuple[float, bool]:
    count = _channels(case)
    scale = _ones(count)
    scale[case // 4 % count] = (1e-3, 0.5, 20.0, 1e3)[case // 8 % 4]
    return _remade(method, case, torch.arange(count), scale)


def _moved(
    method: MethodFunction, case: int, layer: str, move: Callable[[Tensor], Tensor]
) -> tuple[float, bool]:
    model, images = copy.deepcopy(symmetric_model(case // 4, _act(case))), toy_images(case)
    plain = _raw(method, _seen(model, images, [layer]), layer, model)
    moved = _raw(method, _seen(model, move(images), [layer]), layer, model)
    if plain.shape[-2] != plain.shape[-1]:
        return math.inf, True
    return _compared(move(plain), moved)


def _turned(method: MethodFunction, case: int) -> tuple[float, bool]:
    which = 1 + case // 4 % 7  # 0 would leave the picture as it is

    def turn(maps: Tensor) -> Tensor:
        turned = maps.rot90(which % 4, (-2, -1))
        return turned.flip(-1) if which >= 4 else turned

    return _moved(method, case, ("middle", "last")[case % 2], turn)


def _translated(method: MethodFunction, case: int) -> tuple[float, bool]:
    down, right = 2 + 2 * (case // 4 % 7), 2 * (case // 28 % 8)
    return _moved(method, case, "last", lambda maps: maps.roll((down, right), (-2, -1)))


def _two_logits(method: MethodFunction, case: int) -> tuple[float, bool]:
    model, images, layer = _toy(case), toy_images(case), _layer(case)
    twin = toy_model(case // 4, act=_act(case), classes=("background", "roof"))
    state = dict(model.net.state_dict())
    for name in ("segmentation_head.weight", "segmentation_head.bias"):
        state[name] = torch.cat([torch.zeros_like(state[name]), state[name]])
    twin.net.load_state_dict(state)
    targets = (ROOF, Target("roof", space="probability"), Target("roof", space="margin"))
    target = targets[case // 4 % 3]
    maps = [_raw(method, _seen(net, images, target=target), layer, net) for net in (model, twin)]
    return _compared(*maps)


def _captured_once(method: MethodFunction, case: int) -> tuple[float, bool]:
    model, images, layer = _toy(case).float(), toy_images(case).float(), _layer(case)
    alone = _raw(method, _seen(model, images, [layer]), layer, model)
    shared = _seen(model, images)
    for other in (METHODS["eigen_cam"], METHODS["grad_cam_pp"], method):
        for path in reversed(LAYERS):
            other(shared, path, model)
    return _bitwise(alone, _raw(method, shared, layer, model))


def _property(
    name: str,
    says: str,
    allowed: float,
    compare: Callable[[MethodFunction, int], tuple[float, bool]],
) -> tuple[str, Property]:
    return name, Property(name, says, allowed, compare)


PROPERTIES: Final[dict[str, Property]] = dict(
    [
        _property("repeat", "the same picture has the same map, bit for bit", 0.0, _repeat),
        _property("batch", "a batch has the maps of its pictures one by one", BATCH, _batch),
        _property("target_scaled", "a target times a number changes no heatmap", CLOSE, _scaled),
        _property("target_shifted", "a target plus a number changes no heatmap", CLOSE, _shifted),
        _property("channels_permuted", "the channels' order does not matter", CLOSE, _permuted),
        _property(
            "channel_doubled", "a channel split into two halves changes nothing", CLOSE, _doubled
        ),
        _property("channel_rescaled", "the unit of a channel does not matter", CLOSE, _rescaled),
        _property("turned", "flips and quarter turns of the picture turn the map", CLOSE, _turned),
        _property("translated", "a shifted picture has the shifted map", CLOSE, _translated),
        _property("two_logits", "a one-channel network is its two-logit form", CLOSE, _two_logits),
        _property(
            "captured_once",
            "one capture for many methods and layers is one pass each, bit for bit",
            0.0,
            _captured_once,
        ),
    ]
)

LIMITS: Final[dict[str, frozenset[str]]] = {
    name: method.lacks for name, method in METHODS.items() if method.lacks
}


# --- checks ---------------------------------------------------------------------------------------
def _check(name: str, run: Callable[[], str], limits: Collection[str] = ()) -> Check:
    """Passed with what `run` says; failed where it raises, unless that is a limit."""
    try:
        with _unchanged_process():
            said = run()
    except _Skipped as reason:
        return Check(name, "skipped", str(reason))
    except _Violated as found:
        if name in limits and not isinstance(found, _Shapeless):
            return Check(name, "passed", f"a stated limit, and real: {found}")
        return Check(name, "failed", str(found))
    except Exception as error:  # whatever a user's code raises is its failure
        return Check(name, "failed", f"raised {type(error).__name__}: {error}")
    if name in limits:
        return Check(name, "skipped", f"a stated limit, not seen here: {said}")
    return Check(name, "passed", said)


class _Violated(Exception):  # noqa: N818  # a finding, not an error
    """A property does not hold; says by how much."""


class _Shapeless(_Violated):
    """Maps that cannot be compared, which no limit excuses."""


class _Skipped(Exception):  # noqa: N818  # as above
    """A property cannot be looked at here; says why."""


@contextmanager
def _unchanged_process() -> Iterator[None]:
    """Random states, gradient mode and flags as before: neither the caller nor the next check may
    depend on what was looked at.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    before = facts(nn.Identity())
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        _restore_flags(before)


def _restore_flags(before: dict[str, Any]) -> None:
    now = facts(nn.Identity())
    if before["grad_mode"] != now["grad_mode"]:
        torch.set_grad_enabled(before["grad_mode"][0])
    if before["flags"] != now["flags"]:
        anomaly, deterministic, benchmark, fixed, dtype, threads = before["flags"]
        torch.autograd.set_detect_anomaly(anomaly)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, fixed
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def _cases(seed: int, cases: int) -> range:
    if cases < 1:
        raise SegproofError(f"{cases} cases", "at least one", "ask for more")
    return range(1000 * seed, 1000 * seed + cases)


def _known(kind: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise UnknownNameError.of(kind, name, known)


def _require(holds: bool, found: str) -> None:
    if not holds:
        raise _Violated(found)


def _property_over(chosen: Property, method: MethodFunction, numbers: range) -> str:
    lively, worst, at = 0, 0.0, 0
    for case in numbers:
        apart, shows = chosen.compare(method, case)
        lively += shows
        if apart > worst:
            worst, at = apart, case
    if math.isinf(worst):
        raise _Shapeless(f"maps of other shapes, or with NaN (case {at}); {chosen.says}")
    if 2 * lively < len(numbers):
        raise _Shapeless(f"only {lively} of {len(numbers)} maps are not flat: that shows nothing")
    figure = f"maps differ by up to {worst:.1e} of full range, {chosen.allowed:.0e} is allowed"
    _require(worst <= chosen.allowed, f"{figure} (case {at}); {chosen.says}")
    return f"{chosen.says}: {worst:.1e} in {len(numbers)} cases, {lively} not flat"


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
    _known("property", limits, PROPERTIES)
    numbers = _cases(seed, cases)
    checks = [
        _check("shape", lambda: _shape(called, numbers)),
        _check("finite", lambda: _finite(called, numbers)),
    ]
    for name, chosen in PROPERTIES.items():

        def run(chosen: Property = chosen) -> str:
            return _property_over(chosen, called, numbers)

        checks.append(_check(name, run, limits))
    checks += [
        _check("untouched", lambda: _untouched(called, numbers)),
        _check("untouched_after_errors", lambda: _untouched_after(called, numbers[0])),
    ]
    return Report(tuple(checks))


def _shape(method: MethodFunction, numbers: range) -> str:
    for case in numbers:
        model, images = _toy(case).float(), toy_images(case, 2).float()
        found = _raw(method, _seen(model, images), _layer(case), model)
        kind = type(found).__name__
        _require(isinstance(found, Tensor), f"the map is no tensor but of type {kind}")
        _require(
            found.ndim == 3 and len(found) == 2 and found.is_floating_point(),
            f"two pictures give {found.dtype} {tuple(found.shape)}, not real numbers [2, h, w]",
        )
        _require(not found.requires_grad, "the map still holds the graph: detach it")
    return f"maps [N, h, w] of real numbers in {len(numbers)} cases"


def _finite(method: MethodFunction, numbers: range) -> str:
    """Signed and unsigned activations, flat pictures, a silent layer, huge and tiny targets."""
    for case in numbers:
        model, images, layer = _toy(case).float(), toy_images(case).float(), _layer(case)
        plain = _seen(model, images)
        silent = {path: torch.zeros_like(value) for path, value in plain.gradients.items()}
        situations = {
            "a picture": plain,
            "a flat picture": _seen(model, torch.full_like(images, 0.5)),
            "a black picture": _seen(model, torch.zeros_like(images)),
            "gradients of zero": replace(plain, gradients=silent),
            "activations of zero": replace(
                plain, activations={path: 0 * value for path, value in plain.activations.items()}
            ),
            "a tiny target": _seen(model, images, target=_Changed("roof", factor=1e-15)),
            "a huge target": _seen(model, images, target=_Changed("roof", factor=1e15)),
        }
        for name, seen in situations.items():
            if not bool(seen.bound.region.any()):
                continue  # nothing to explain: `explain` does not ask a method then
            found = _raw(method, seen, layer, model)
            _require(
                bool(torch.isfinite(found).all()),
                f"numbers that are not finite for {name} with {_act(case)} (case {case})",
            )
            heat, _ = normalise(found[0], (SIDE, SIDE))
            _require(0 <= float(heat.min()) <= float(heat.max()) <= 1, f"no heatmap for {name}")
    return f"numbers in {len(numbers)} cases of seven kinds, signed and unsigned activations"


def _tensors_of(seen: Capture) -> list[Tensor]:
    masks = [value for value in vars(seen.bound).values() if isinstance(value, Tensor)]
    baseline = [] if seen.baseline is None else [seen.baseline]
    layers = [*seen.activations.values(), *seen.gradients.values()]
    return [seen.images, seen.logits, *baseline, *layers, *masks]


def _untouched(method: MethodFunction, numbers: range) -> str:
    for case in numbers:
        model, images = _toy(case), toy_images(case)
        unsettle(model)
        seen = _seen(model, images)
        given = [images, *_tensors_of(seen)]
        before = facts(model, *given)
        found = _raw(method, seen, _layer(case), model)
        changed = changes(before, facts(model, *given))
        _require(not changed, f"{_counted(changed)}; changed: {', '.join(changed)} (case {case})")
        _require(bool(torch.isfinite(found).all()), "numbers that are not finite")
    return f"12 of 12 kinds of state as before in {len(numbers)} cases"


def _counted(changed: Sequence[str]) -> str:
    return f"{len(FACTS) - len(changed)} of {len(FACTS)} kinds of state as before"


def _untouched_after(method: MethodFunction, case: int) -> str:
    """An error in the network at its first forwards, when the target is bound or read, in a fill:
    it has to arrive, and to leave nothing behind.
    """
    places = ("network 0", "network 1", "network 3", "target", "score", "fill")
    arrived = 0
    for error in ERRORS:
        for place in places:
            model, images = _toy(case), toy_images(case)
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
                    _raw(method, replace(seen, baseline=fill(images)), _layer(case), model)
                except error:
                    swallowed = False
                except ModelError as told:  # a network's own errors come as what they were from
                    swallowed = not isinstance(told.__cause__, error)
                changed = changes(before, facts(model, images))
            where = f"after {error.__name__} in {place}"
            _require(not (failing.raised and swallowed), f"the error is swallowed {where}")
            _require(failing.raised <= 1, f"the call is tried again {where}")
            _require(not changed, f"{_counted(changed)} {where}; changed: {', '.join(changed)}")
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
            raise _Skipped("this system has no /proc to read the memory from")

        def resident() -> float:
            gc.collect()
            pages = int(statm.read_text(encoding="ascii").split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

        model, image = toy_model(1), toy_images(1, side=64)

        def go(count: int) -> None:
            for _ in range(count):
                _raw(called, _seen(model, image), LAYERS[1], model)

        go(max(20, maps // 10))  # caches fill first
        before = resident()
        go(maps)
        grown = resident() - before
        found = f"{maps} maps leave {max(grown, 0):.1f} MB behind"
        _require(grown < limit_mb, f"{found}, under {limit_mb:g} MB is allowed")
        return found

    return Report((_check("memory", run),))


# --- measures -------------------------------------------------------------------------------------
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
    _known("situation", undefined, ("empty", "nothing_kept"))
    numbers = _cases(seed, cases)
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
    return Report(tuple(_check(name, run) for name, run in runs.items()))


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
            _require(isinstance(found, Tensor), f"no tensor but {type(found).__name__}")
            _require(
                tuple(found.shape) == (3,) and found.dtype == torch.float64,
                f"three pictures give {found.dtype} {tuple(found.shape)}, not float64 (3,)",
            )
    return f"float64 [N] in {len(numbers)} cases, also for float32 probabilities"


def _measure_repeat(measure: PictureMeasure, numbers: range) -> str:
    for case in numbers:
        p, bound, truth = _measured(case)
        _require(
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
    _require(worst <= 1e-12, f"a batch differs from its pictures by {worst:.1e}")
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
    _require(least <= most, "no number at all")
    # a mean of numbers in [0, 1] may round past the end by its last digit
    slack = 1e-12 * max(1.0, abs(low), abs(high))
    found_range = f"values from {least:.4g} to {most:.4g}"
    _require(
        low - slack <= least and most <= high + slack,
        f"{found_range} leave the range from {low:g} to {high:g}",
    )
    _require(most - least > FLAT * (high - low), f"{found_range}: it does not depend on p")
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
        _require(
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
    _require(worst <= 1e-12, f"what happens outside {where} changes it by {worst:.1e}")
    return f"what happens outside {where} does not matter, in {len(numbers)} cases"


def _measure_undefined(measure: PictureMeasure, numbers: range, undefined: Collection[str]) -> str:
    for case in numbers:
        p, bound, truth = _measured(case)
        found = measure(p, bound, truth)
        _require(not bool(found.isnan().any()), f"NaN for ordinary pictures (case {case})")
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
                _require(bool(hollow.all()), f"{value.tolist()} where it is undefined: {name}")
            else:
                _require(not bool(hollow.any()), f"NaN where it is to be a number: {name}")
    return f"NaN for {', '.join(undefined) or 'nothing'}, a number elsewhere"


def _measure_untouched(measure: PictureMeasure, numbers: range) -> str:
    for case in numbers:
        p, bound, truth = _measured(case)
        given = [p, truth, bound.weights, bound.region, bound.prediction, bound.valid]
        before = facts(nn.Identity(), *given)
        measure(p, bound, truth)
        changed = changes(before, facts(nn.Identity(), *given))
        _require(not changed, f"changed: {', '.join(changed)} (case {case})")
    return "what it is given, random states and flags stay as they were"


# --- fills ----------------------------------------------------------------------------------------
def check_fill(
    fill: FillFunction | str,
    *,
    cases: int = 20,
    seed: int = 0,
    image: Tensor | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> Report:
    """Hold a fill (images, keep) -> images, or a built-in one by its name, to what fills promise.

    `image` [B, H, W] is the tile that the fill was made for, where it was made for one; else random
    pictures [3, 16, 16] in [0, 1] are filled. `low`, `high`: the range of the image's units.

    Raises:
        UnknownNameError: an unknown fill.
        SegproofError: no cases.
    """
    if isinstance(fill, str) and fill not in FILLS:
        raise UnknownNameError.of("fill", fill, FILLS)
    numbers = _cases(seed, cases)

    def made(case: int) -> tuple[FillFunction, Tensor, Tensor]:
        x = toy_images(case)[0].float() if image is None else image
        keep = torch.rand(2, *x.shape[-2:], generator=seeded("keep", case)) > 0.4
        keep[:, 0, 0], keep[:, -1, -1] = True, False
        return _fill_of(fill, x, case), torch.stack([x, x]), keep.to(x.device)

    runs: dict[str, Callable[[], str]] = {
        "kept": lambda: _fill_kept(made, numbers),
        "leak": lambda: _fill_leak(made, numbers),
        "everything": lambda: _fill_everything(made, numbers),
        "repeat": lambda: _fill_repeat(made, numbers),
        "batch": lambda: _fill_batch(made, numbers),
        "units": lambda: _fill_units(made, numbers, low, high),
        "untouched": lambda: _fill_untouched(made, numbers),
    }
    return Report(tuple(_check(name, run) for name, run in runs.items()))


_Made = Callable[[int], tuple[FillFunction, Tensor, Tensor]]


def _fill_of(fill: FillFunction | str, image: Tensor, case: int) -> FillFunction:
    if not isinstance(fill, str):
        return fill
    nowhere = torch.zeros(image.shape[-2:], dtype=torch.bool, device=image.device)
    background = nowhere.clone()
    background[: image.shape[-2] // 2] = True
    neutral = torch.full((image.shape[0], 1, 1), 0.45).to(image)
    return make_fill(fill, FillContext(image, neutral, background, ~nowhere, seeded("fill", case)))


def _removed(keep: Tensor, images: Tensor) -> Tensor:
    return ~keep[:, None].expand_as(images)


def _fill_kept(made: _Made, numbers: range) -> str:
    for case in numbers:
        fill, x, keep = made(case)
        shown, kept = fill(x, keep), ~_removed(keep, x)
        _require(shown.shape == x.shape, f"shape {tuple(shown.shape)} for {tuple(x.shape)}")
        wrong = int((shown[kept] != x[kept]).sum())
        _require(not wrong, f"{wrong} of {int(kept.sum())} kept values are changed (case {case})")
        gone = _removed(keep, x)
        _require(bool((shown[gone] != x[gone]).any()), f"no removed pixel is filled (case {case})")
    return f"kept pixels are bit-identical in {len(numbers)} cases"


def _fill_leak(made: _Made, numbers: range) -> str:
    """What stands in the removed pixels by the time of the call must not matter."""
    for case in numbers:
        for poison in (math.nan, math.inf, 1e30, 0.123):
            fill, x, keep = made(case)
            plain = fill(x, keep)
            fill, x, keep = made(case)  # a seeded fill may have drawn already
            shown = fill(torch.where(_removed(keep, x), poison, x), keep)
            wrong = int((shown != plain).sum())
            _require(
                not wrong, f"{poison:g} in the removed pixels changes {wrong} values (case {case})"
            )
    return f"removed pixels cannot leak, not as NaN either, in {len(numbers)} cases"


def _fill_everything(made: _Made, numbers: range) -> str:
    for case in numbers:
        fill, x, keep = made(case)
        _require(
            torch.equal(fill(x, torch.ones_like(keep)), x),
            f"with every pixel kept the picture is another (case {case})",
        )
    return f"with every pixel kept the picture is itself, bit for bit, in {len(numbers)} cases"


def _fill_repeat(made: _Made, numbers: range) -> str:
    for case in numbers:
        (fill, x, keep), (again, *_) = made(case), made(case)
        first = fill(x, keep)
        _require(
            torch.equal(first, fill(x, keep)) and torch.equal(first, again(x, keep)),
            f"two calls differ (case {case})",
        )
    return f"the same pictures are filled alike, bit for bit, in {len(numbers)} cases"


def _fill_batch(made: _Made, numbers: range) -> str:
    for case in numbers:
        fill, x, keep = made(case)
        alone = torch.cat([fill(x[n : n + 1], keep[n : n + 1]) for n in range(len(x))])
        _require(
            torch.equal(fill(x, keep), alone), f"a batch differs from its pictures (case {case})"
        )
    return f"a batch is its pictures one by one, bit for bit, in {len(numbers)} cases"


def _fill_units(made: _Made, numbers: range, low: float, high: float) -> str:
    least, most = math.inf, -math.inf
    for case in numbers:
        fill, x, keep = made(case)
        shown = fill(x, keep)
        _require(bool(torch.isfinite(shown).all()), f"numbers that are not finite (case {case})")
        _require(shown.dtype == x.dtype, f"{shown.dtype} for pictures of {x.dtype}")
        least, most = min(least, float(shown.min())), max(most, float(shown.max()))
    found = f"values from {least:.4g} to {most:.4g}"
    slack = 1e-6 * max(abs(low), abs(high), high - low)
    _require(
        low - slack <= least and most <= high + slack,
        f"{found} leave the image's range from {low:g} to {high:g}",
    )
    return f"{found}, within the image's range"


def _fill_untouched(made: _Made, numbers: range) -> str:
    for case in numbers:
        fill, x, keep = made(case)
        before = facts(nn.Identity(), x, keep)
        fill(x, keep)
        changed = changes(before, facts(nn.Identity(), x, keep))
        _require(not changed, f"changed: {', '.join(changed)} (case {case})")
    return "pictures, masks, random states and flags stay as they were"


# --- networks -------------------------------------------------------------------------------------
def check_model(
    model: SegmentationModel,
    image: Tensor | None = None,
    *,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Report:
    """Hold a network to what explanations need: what goes in and comes out, layers, maps, and that
    it is left as it was.

    `image` [B, H, W] in image units (default: a random one of 64 x 64 pixels); `layers`: paths or
    aliases to explain at (default: the last of encoder and decoder). Where the network does not run
    at all, the other checks are skipped.
    """
    names = ("encoder:-1", "decoder:-1") if layers is None else tuple(layers)
    picture = (_picture_for(model, seed) if image is None else image).to(model.device)
    before = facts(model, picture)
    runs: dict[str, Callable[[], str]] = {
        "forward": lambda: _model_forward(model, picture),
        "finite": lambda: _model_finite(model, picture),
        "repeat": lambda: _model_repeat(model, picture),
        "batch": lambda: _model_batch(model, picture),
        "mode": lambda: _model_mode(model, picture),
        "layers": lambda: _model_layers(model, picture, names),
    }
    for name in names:
        runs[f"map at {name}"] = lambda layer=name: _model_explained(  # type: ignore[misc]
            model, picture, layer
        )
    runs["untouched"] = lambda: _model_untouched(model, picture, names, before)
    checks: dict[str, Check] = {}
    for name, run in runs.items():
        # what the others need; a network that cannot do these shows nothing else
        missing = [need for need in ("forward", "finite", "layers") if need in checks]
        missing = [need for need in missing if checks[need].status == "failed"]
        if missing:
            checks[name] = Check(name, "skipped", f"the check {missing[0]!r} before it failed")
        else:
            checks[name] = _check(name, run)
    return Report(tuple(checks.values()))


def _picture_for(model: SegmentationModel, seed: int) -> Tensor:
    """A smooth random picture [B, 64, 64] around the values that normalise to zero, in the units of
    pictures where mean and deviation tell them.
    """
    convolutions = (m for m in model.net.modules() if isinstance(m, nn.Conv2d))
    bands = model.bands or next((m.in_channels for m in convolutions), 3)
    generator = seeded("picture", seed)
    coarse = torch.rand(1, bands, 8, 8, generator=generator)
    smooth = interpolate(coarse, scale_factor=8.0, mode="bilinear")[0]
    smooth = 0.9 * smooth + 0.1 * torch.rand(smooth.shape, generator=generator)
    number = next((p.dtype for p in model.net.parameters()), torch.float32)
    smooth = smooth.to(model.device, number)
    if model.bands is None:
        return smooth
    made = model.mean.to(number) + (smooth - 0.5) * 3 * model.std.to(number)
    low, high = unit_range(model.mean, model.std) or (-math.inf, math.inf)
    return made.clamp(low, high)


def _logits(model: SegmentationModel, images: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        logits: Tensor = model(images)
    return logits


def _sides(picture: Tensor) -> str:
    return f"{picture.shape[-2]} x {picture.shape[-1]} pixels and {picture.shape[0]} bands"


def _model_forward(model: SegmentationModel, picture: Tensor) -> str:
    shape, wanted = tuple(_logits(model, picture[None]).shape), len(model.classes)
    _require(
        shape == (1, wanted, *picture.shape[-2:]),
        f"logits {shape} for {wanted} classes and a picture of {_sides(picture)}",
    )
    return f"a picture of {_sides(picture)} gives logits of {', '.join(model.classes)} at its size"


def _model_finite(model: SegmentationModel, picture: Tensor) -> str:
    logits = _logits(model, picture[None])
    wrong = int((~torch.isfinite(logits)).sum())
    _require(
        not wrong,
        f"{wrong} of {logits.numel()} logits are not finite: look at weights and input range",
    )
    return f"all logits are numbers, from {float(logits.min()):.3g} to {float(logits.max()):.3g}"


def _model_repeat(model: SegmentationModel, picture: Tensor) -> str:
    one, other = _logits(model, picture[None]), _logits(model, picture[None])
    apart = float((one - other).abs().nan_to_num(math.inf).max())
    _require(
        torch.equal(one, other),
        f"two runs on one picture differ by up to {apart:.2g}: the network draws random numbers or "
        "remembers earlier pictures",
    )
    return "two runs on one picture agree bit for bit"


def _model_batch(model: SegmentationModel, picture: Tensor) -> str:
    images = torch.stack([picture, picture.flip(-1), picture.flip(-2)])
    together = probabilities(_logits(model, images), model.activation)
    alone = torch.cat(
        [probabilities(_logits(model, image[None]), model.activation) for image in images]
    )
    apart = float((together - alone).abs().max())
    # other devices choose faster sums
    allowed = max(
        BATCH if picture.device.type == "cpu" else 1e-3, 20 * torch.finfo(alone.dtype).eps
    )
    _require(
        apart <= allowed,
        f"probabilities in a batch of three differ by up to {apart:.2g} from those of its "
        f"pictures, {allowed:.0e} is allowed: the network mixes the pictures of a batch",
    )
    return f"a batch of three is its pictures one by one, to {apart:.0e} in probability"


def _model_mode(model: SegmentationModel, picture: Tensor) -> str:
    calm = _logits(model, picture[None])
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = True
        busy = _logits(model, picture[None])
    finally:
        for module, mode in modes:
            module.training = mode
    apart = float((calm - busy).abs().max())
    _require(
        torch.equal(calm, busy),
        f"logits differ by up to {apart:.2g} if the network was left in training mode",
    )
    return "dropout and batch statistics are off, whatever mode the network was left in"


def _model_layers(model: SegmentationModel, picture: Tensor, names: Sequence[str]) -> str:
    size = (picture.shape[-2], picture.shape[-1])
    known = model.layers(size, bands=picture.shape[0])
    _require(bool(known), "no layer over the image is found: give layers= by path")
    for name in names:
        model.resolve_layer(name, size)
    return f"{len(known)} layers, {known[0].alias} to {known[-1].alias}"


def _class_to_explain(model: SegmentationModel, picture: Tensor) -> int:
    """The class with most pixels behind the first, which is the background in most networks."""
    probability = probabilities(_logits(model, picture[None]), model.activation)[0]
    if model.activation == "sigmoid":
        counts = (probability >= 0.5).sum(dim=(1, 2))
    else:
        counts = torch.bincount(probability.argmax(dim=0).flatten(), minlength=len(probability))
    behind = counts[1:]
    return 1 + int(behind.argmax()) if len(behind) and bool(behind.any()) else 0


def _model_explained(model: SegmentationModel, picture: Tensor, layer: str) -> str:
    index = _class_to_explain(model, picture)
    made = explain(model, picture, method="grad_cam", layer=layer, target=Target(index))
    subject = f"grad_cam of class {model.classes[index]}"
    _require(made.status != "non_finite", f"{subject} has numbers that are not finite")
    if made.status != "ok":
        raise _Skipped(
            {
                "no_target": f"class {model.classes[index]} is nowhere predicted in this picture: "
                "give one in which it is",
                "all_zero": f"{subject} is empty: every place there speaks against the class",
                "constant": f"{subject} is the same everywhere",
            }.get(made.status, made.status)
        )
    return f"{subject} is a map of {made.raw.shape[-2]} x {made.raw.shape[-1]}"


def _model_untouched(
    model: SegmentationModel, picture: Tensor, names: Sequence[str], before: dict[str, Any]
) -> str:
    target = Target(_class_to_explain(model, picture))
    for layer in names:
        explain(model, picture, method="grad_cam", layer=layer, target=target)
    changed = changes(before, facts(model, picture))
    _require(not changed, f"{_counted(changed)}; changed: {', '.join(changed)}")
    return "12 of 12 kinds of state are as they were before these checks and explanations"
