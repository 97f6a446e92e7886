"""Records activations and gradients of all chosen layers in one forward and one partial backward.

`rerun` goes on from a layer with other activations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from segproof.errors import ModelError, UnknownNameError
from segproof.explain.target import BoundTarget
from segproof.models import (
    Axes,
    Doubt,
    Evidence,
    Result,
    SegmentationModel,
    all_finite,
    as_written,
    evaluating,
    named,
    part,
    plainly,
    tracing,
    with_part,
)

__all__ = ["Capture", "ForwardPass", "capture", "frozen", "observe", "replaced", "rerun"]

Forward = Callable[..., Any]


class Bindable(Protocol):
    """What is explained: a `Target`, or anything that freezes region and scalar as one does."""

    def bind(
        self,
        logits: Tensor,
        truth: Tensor | None = None,
        *,
        model: SegmentationModel,
        valid: Tensor | None = None,
    ) -> BoundTarget:
        """Freeze region and weights on the clean `logits` [N, K, H, W]."""
        ...


@dataclass(frozen=True)
class Capture:
    """What every method reads: clean pictures, logits, the bound target, and per layer A and D.

    `images` [N, B, H, W], `logits` [N, K, H, W], `activations[path]` and `gradients[path]` [N, K,
    h, w] with D = dY/dA, 0 where Y does not depend on A; tokens come as grids. `baseline` [N, B, H,
    W] is what masked-input methods put in place of hidden pixels, `batch` how many masked pictures
    they show at a time.
    """

    images: Tensor
    logits: Tensor
    bound: BoundTarget
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor] = field(default_factory=dict)
    baseline: Tensor | None = None
    batch: int = 4


@dataclass(frozen=True)
class ForwardPass:
    """One forward whose graph still stands: any number of targets can be read from it.

    `images` [N, B, H, W], `logits` [N, K, H, W] (detached), `recorded[path]` [N, K, h, w].
    """

    model: SegmentationModel
    images: Tensor
    logits: Tensor
    recorded: dict[str, Tensor]
    gradients: bool
    _live: Tensor
    _kept: dict[str, _Kept]

    def read(
        self,
        target: Bindable,
        truth: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        baseline: Tensor | None = None,
        batch: int = 4,
        last: bool = False,
    ) -> Capture:
        """The capture of one target, for one partial backward; the `last` one frees the graph."""
        logits = self.logits
        with torch.inference_mode(mode=False):  # what a caller's would make could enter no graph
            bound = target.bind(
                logits,
                None if truth is None else truth.to(logits.device),
                model=self.model,
                valid=None if valid is None else valid.to(logits.device),
            )
        return Capture(
            images=self.images,
            logits=logits,
            bound=bound,
            activations={path: _full(value.detach()) for path, value in self.recorded.items()},
            gradients=self._slopes(bound, keep=not last) if self.gradients else {},
            baseline=None if baseline is None else baseline.to(self.images),
            batch=batch,
        )

    def _slopes(self, bound: BoundTarget, *, keep: bool) -> dict[str, Tensor]:
        """D of every recorded layer; 0 where Y does not depend on it."""
        layers = [kept.value for kept in self._kept.values()]
        # gradient checkpoints run parts of a network again: all has to be as in the forward
        with (
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            evaluating(self.model),
            frozen(self.model),
            as_written(),
        ):
            score = bound.score(self._live).sum()
            given = (
                torch.autograd.grad(score, layers, allow_unused=True, retain_graph=keep)
                if score.requires_grad
                else [None] * len(layers)
            )
        slopes = {}
        for (path, kept), slope in zip(self._kept.items(), given, strict=True):
            if slope is None and kept.dark:
                raise ModelError(
                    f"layer {path}, which the network runs with gradients switched off",
                    "a layer whose influence can be followed",
                    "choose a later layer, or take torch.no_grad out of the network's forward",
                )
            slope = torch.zeros_like(kept.value) if slope is None else slope
            slopes[path] = _full(kept.axes.read(slope))
        return slopes


def _full(values: Tensor) -> Tensor:
    """float32 of shorter formats: maps are sums over many channels."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def observe(
    model: SegmentationModel, images: Tensor, layers: Sequence[str], *, gradients: bool = True
) -> ForwardPass:
    """Run the network once on `images` [N, B, H, W] and keep what the methods need of `layers`.

    Gradients are asked for the layers only (`torch.autograd.grad`), so no weight ever gets one and
    nothing before the first asked layer enters the graph. Mode, `requires_grad`, hooks and grad
    mode are as before afterwards, also after an error or Ctrl-C.

    Raises:
        UnknownNameError: a path that is no module, or one that did not run.
        ModelError: a layer that returns anything but [N, K, h, w]; logits that are not finite, with
            the first layer that made them.
    """
    # what was made in inference mode can enter no graph: a copy can
    with torch.inference_mode(mode=False), evaluating(model), frozen(model), as_written():
        images = images.to(model.device)
        images = images.clone() if images.is_inference() else images
        with torch.set_grad_enabled(gradients), _recording(model, layers, images) as found:
            logits = model(images)
        missing = [path for path in layers if path not in found]
        if missing:
            with torch.no_grad(), tracing(model.net) as trace:
                model(images)
            raise UnknownNameError.of("layer that runs", missing[0], trace.results)
        kept = {path: _certain(path, found[path], images) for path in layers}
        if not all_finite(logits):
            raise _not_finite(model, images)
    return ForwardPass(
        model=model,
        images=images,
        logits=logits.detach(),
        recorded={path: item.axes.read(item.value) for path, item in kept.items()},
        gradients=gradients,
        _live=logits,
        _kept=kept,
    )


def capture(
    model: SegmentationModel,
    images: Tensor,
    target: Bindable,
    layers: Sequence[str],
    truth: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    gradients: bool = True,
    baseline: Tensor | None = None,
    batch: int = 4,
) -> Capture:
    """One forward and one partial backward for one target: `observe`, then `ForwardPass.read`."""
    seen = observe(model, images, layers, gradients=gradients)
    return seen.read(target, truth, valid=valid, baseline=baseline, batch=batch, last=True)


def _not_finite(model: SegmentationModel, images: Tensor) -> ModelError:
    """Where the numbers of a network broke: the first module that made them so."""
    if not bool(torch.isfinite(images).all()):
        return ModelError(
            "a picture with pixels that are not finite",
            "numbers",
            "read it with read_image, which marks such pixels as not valid",
        )
    broken: list[str] = []

    def look(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _inputs: Any, result: Any) -> None:
            values = [value for value in _tensors(result) if value.is_floating_point()]
            if not broken and not all(bool(torch.isfinite(value).all()) for value in values):
                broken.append(f"{path} ({type(module).__name__})")

        return hook

    handles = []
    try:
        # the inner modules return before the outer ones: the first is the innermost
        for path, module in model.net.named_modules():
            handles.append(module.register_forward_hook(look(path or "the network")))
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    place = broken[0] if broken else "the network's output function"
    return ModelError(
        f"logits that are not finite; {place} is the first to return such values",
        "numbers",
        "check its weights (also running statistics), the input's range, mean and std",
    )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside: the graph begins at the first recorded layer.

    Weights that were made in inference mode cannot take part in a graph: copies stand in.
    """
    asking = [p for p in model.parameters() if p.requires_grad and not p.is_inference()]
    replaced: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        for module in model.modules():
            # setattr would refuse to put a tensor in a parameter's place
            stores: list[dict[str, Any]] = [module._parameters, module._buffers]  # noqa: SLF001
            for store in stores:
                for name, value in store.items():
                    if value is None or not value.is_inference():
                        continue
                    replaced.append((store, name, value))
                    copy = value.detach().clone()
                    is_weight = isinstance(value, nn.Parameter)
                    store[name] = nn.Parameter(copy, requires_grad=False) if is_weight else copy
        yield
    finally:
        for store, name, value in replaced:
            store[name] = value
        for parameter in asking:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class _Kept:
    """The tensor that a layer returned, in the graph, and how it is read; `dark`: the network ran
    the layer with gradients switched off.
    """

    value: Tensor
    axes: Axes
    dark: bool


@dataclass(frozen=True)
class _Unread:
    """What a layer returned that is no picture, or that may be read in several ways."""

    result: str
    doubt: Doubt | None


def _certain(path: str, result: _Kept | _Unread, images: Tensor) -> _Kept:
    """What was kept of a layer.

    Raises:
        ModelError: it is no picture, or two readings of it are left.
    """
    if isinstance(result, _Kept):
        return result
    returned = f"layer {path} returning {result.result} for images of {images.shape[-2]} x"
    if result.doubt is None:
        raise ModelError(
            f"{returned} {images.shape[-1]} pixels",
            "a map [N, K, h, w] or tokens of a grid over the image",
            "choose another; `layers` lists those that fit",
        )
    raise ModelError(
        f"{returned} {images.shape[-1]} pixels, which may be read as {result.doubt}",
        "one reading",
        "choose another layer; `layers` lists those that are read for certain",
    )


@contextmanager
def _recording(
    model: SegmentationModel, layers: Sequence[str], images: Tensor
) -> Iterator[dict[str, _Kept | _Unread]]:
    modules = named(model.net)
    size = model.seen_size((images.shape[-2], images.shape[-1]))
    results: dict[str, _Kept | _Unread] = {}
    recorded_modules: dict[str, nn.Module] = {}
    for path in layers:
        plain = path if path in modules else plainly(path)
        if plain not in modules or not path:
            raise UnknownNameError.of("layer", path, [name for name in modules if name])
        recorded_modules[path] = modules[plain]
    fits = images.ndim == 4  # else the network's own error says what does not
    evidence = model.evidence(size, images.shape[1]) if layers and fits else Evidence()
    # what exists before the run: only what a layer makes anew may become the graph's beginning
    held = _held(model.net)
    follow = torch.is_grad_enabled()

    def keep(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, options: Any, result: Any) -> Any:
            if model.probing:
                return None
            axes = evidence.find(plainly(path), size, Result.of(result), len(images))
            if not isinstance(axes, Axes):
                shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
                results[path] = _Unread(str(shape), axes)
                return None
            value = part(result, axes.where)
            fresh = _is_fresh(value, held, (inputs, options))
            dark = follow and not torch.is_grad_enabled()
            with torch.set_grad_enabled(follow):
                kept = _begin(value, fresh) if follow else value
                results[path] = _Kept(kept, axes, dark)
                # a copy goes on, so that an in-place ReLU behind the layer cannot change what is
                # kept
                return with_part(result, value, kept.clone())

        return hook

    handles = []
    try:
        # before all other hooks: a network may gather its features by hooks of its own, and has to
        # gather what is recorded here
        for path, module in recorded_modules.items():
            handles.append(module.register_forward_hook(keep(path), prepend=True, with_kwargs=True))
        yield results
    finally:
        for handle in handles:
            handle.remove()


def _begin(value: Tensor, fresh: bool) -> Tensor:
    """The tensor whose gradient is asked for in place of a layer's result `value`.

    A `fresh` one itself, so that a network that has put it by reads the very tensor; another one,
    such as the layer's own input, has readers that do not depend on the layer.
    """
    if value.requires_grad:
        return value if fresh else value.view_as(value)
    return value.requires_grad_() if fresh else value.detach().requires_grad_()


def _held(net: nn.Module) -> dict[int, Tensor]:
    """Tensors that modules hold, by the address of their memory: weights, buffers, attributes."""
    tensors: dict[int, Tensor] = {}
    for module in net.modules():
        stores = (module._parameters, module._buffers, vars(module))  # noqa: SLF001
        for value in _tensors([list(store.values()) for store in stores]):
            tensors[_storage(value)] = value
    return tensors


def _is_fresh(value: Tensor, held: dict[int, Tensor], given: Any) -> bool:
    """Whether a module made the memory of its result itself, every value in a place of its own."""
    overlaps = any(n > 1 and not step for n, step in zip(value.shape, value.stride(), strict=True))
    return not overlaps and _storage(value) not in {*held, *map(_storage, _tensors(given))}


def _storage(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


@contextmanager
def replaced(
    model: SegmentationModel, path: str, images: Tensor
) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function from activations [N, K, h, w] of a layer to logits [N, K, H, W] of `images`.

    The layer's own forward returns the activations in its last run, and the whole network runs:
    slower than `rerun` and without any of its hooks, to check others by.
    """
    plain, size = plainly(path), (images.shape[-2], images.shape[-1])
    module, evidence = named(model.net)[plain], model.evidence(size, images.shape[1])
    own, forward = vars(module).get("forward"), module.forward
    put: Tensor | None = None
    runs = last = 0

    def moved(*given: Any, **options: Any) -> Any:
        nonlocal runs
        runs += 1
        result = forward(*given, **options)
        axes = evidence.find(plain, size, Result.of(result), len(images))
        if put is None or runs != last or not isinstance(axes, Axes):
            return result
        value = part(result, axes.where)
        return with_part(result, value, axes.write(value, put).contiguous())

    def logits_of(activations: Tensor) -> Tensor:
        nonlocal put, runs
        put, runs = activations, 0
        logits: Tensor = model(images)
        return logits

    try:
        vars(module)["forward"] = moved
        with torch.no_grad(), evaluating(model), as_written():
            model(images)
            last = runs
            yield logits_of
    finally:
        vars(module).pop("forward", None)
        if own is not None:
            vars(module)["forward"] = own


@contextmanager
def rerun(
    model: SegmentationModel, path: str, image: Tensor
) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """Logits [1, K, H, W] of one picture [B, H, W], and a function of the layer's activations.

    The function takes activations [n, K, h, w] to be put in place of the layer's and returns logits
    [n, K, H, W]. Modules that had returned before the layer did are not run again: their results
    are handed out, repeated n times. One is run again where that might not be the same: outputs
    other than tensors [1, ...] of three dimensions and more in lists, tuples and dicts; no tensor
    among the inputs, or one changed in place; hooks on modules inside, tensors kept in attributes.
    A layer that runs several times is replaced in its last run, the one that is captured.
    """
    plain, size = plainly(path), model.seen_size((image.shape[-2], image.shape[-1]))
    layer = named(model.net)[plain]
    evidence = model.evidence(size, image.shape[0])
    past, held = _Past(lambda: model.probing), _held(model.net)
    put: Tensor | None = None
    runs = last = 0

    def hook(_module: nn.Module, inputs: Any, options: Any, result: Any) -> Any:
        nonlocal runs
        if model.probing:
            return None
        runs, past.over = runs + 1, True
        if put is None or runs != last:
            return None
        axes = evidence.find(plain, size, Result.of(result), len(put))
        if not isinstance(axes, Axes):
            raise ModelError(
                f"layer {path}, whose result for {len(put)} pictures is not read as for one",
                "one reading",
                "choose another layer",
            )
        value = part(result, axes.where)
        new = axes.write(value, put.to(value.dtype))
        if not _is_fresh(value, held, (inputs, options)):
            # a copy, as in a capture: an in-place ReLU behind the layer may not change the argument
            return with_part(result, value, new.clone())
        # in its own place, so that a network that has put it by reads it there too
        value.copy_(new)
        return None

    def logits_of(activations: Tensor) -> Tensor:
        nonlocal put, runs
        put, runs = activations, 0
        past.rewind(len(activations))
        try:
            with _forwards(model.net, past.replay):
                logits: Tensor = model(image.expand(len(activations), *image.shape))
        finally:
            put = None
        return logits

    with torch.no_grad(), evaluating(model), as_written():
        # before all other hooks, as in a capture
        handle = layer.register_forward_hook(hook, prepend=True, with_kwargs=True)
        try:
            with _forwards(model.net, past.record):
                clean = model(image[None])
            last = runs
            yield clean, logits_of
        finally:
            handle.remove()


class _Past:
    """Results of the modules that have returned, in order, until the layer has (`over`)."""

    def __init__(self, idle: Callable[[], bool]) -> None:
        self.over, self.idle = False, idle
        self._results: list[tuple[nn.Module, Any]] = []
        self._left: dict[nn.Module, deque[Any]] = {}
        self._repeats = 1

    def record(self, module: nn.Module, forward: Forward) -> Forward:
        def recorded(*inputs: Any, **named: Any) -> Any:
            if self.over or self.idle():
                return forward(*inputs, **named)
            start, given = len(self._results), _tensors((inputs, named))
            before = _versions(given)
            result = forward(*inputs, **named)
            # without a picture among its inputs, a result need not be one per picture
            same = bool(before) and before == _versions(given)
            if same and self._can_keep(module, result):
                del self._results[start:]  # what ran inside is not needed beside the whole
                # a copy: what follows may change the result in place
                self._results.append((module, _each(result, Tensor.clone)))
            return result

        return recorded

    def _can_keep(self, module: nn.Module, result: Any) -> bool:
        # over by now: the layer ran inside this module
        return not self.over and _repeatable(result) and not _watched(module)

    def rewind(self, repeats: int) -> None:
        self._left, self._repeats = {}, repeats
        for module, result in self._results:
            self._left.setdefault(module, deque()).append(result)

    def replay(self, module: nn.Module, forward: Forward) -> Forward:
        def replayed(*inputs: Any, **named: Any) -> Any:
            if not self._left.get(module):
                return forward(*inputs, **named)
            # cat copies and keeps the memory layout, which the speed of convolutions depends on
            return _each(self._left[module].popleft(), lambda one: torch.cat([one] * self._repeats))

        return replayed


@contextmanager
def _forwards(net: nn.Module, wrap: Callable[[nn.Module, Forward], Forward]) -> Iterator[None]:
    """Each sub-module's `forward` wrapped inside; hooks run as ever, around the wrapper."""
    changed: list[tuple[nn.Module, Forward | None]] = []
    try:
        for module in net.modules():
            if module is net or isinstance(module, torch.jit.ScriptModule):
                continue
            changed.append((module, vars(module).get("forward")))
            vars(module)["forward"] = wrap(module, module.forward)
        yield
    finally:
        for module, own in changed:
            vars(module).pop("forward", None)
            if own is not None:
                vars(module)["forward"] = own


def _each(result: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    """`edit` of every tensor in nested lists, tuples and dicts; anything else as it is."""
    if isinstance(result, Tensor):
        return edit(result)
    if type(result) in (list, tuple):
        return type(result)(_each(part, edit) for part in result)
    if type(result) is dict:
        return {name: _each(part, edit) for name, part in result.items()}
    return result


def _tensors(values: Any) -> list[Tensor]:
    tensors: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        tensors.append(value)
        return value

    _each(values, keep)
    return tensors


def _versions(tensors: list[Tensor]) -> list[int] | None:
    """How often each was changed in place; None where that is not counted (inference mode)."""
    if any(value.is_inference() for value in tensors):
        return None
    # torch has no public name for it
    return [value._version for value in tensors]  # noqa: SLF001


def _repeatable(result: Any) -> bool:
    """One picture's results, which those of n pictures of its kind are n times."""
    if isinstance(result, Tensor):
        return result.ndim >= 3 and result.shape[0] == 1
    if type(result) is dict:
        result = list(result.values())
    if type(result) in (list, tuple):
        return bool(result) and all(part is None or _repeatable(part) for part in result)
    return False


def _watched(module: nn.Module) -> bool:
    """Someone's hooks inside would see nothing if the module were not run, and what it keeps in
    attributes for others would be that of another run.
    """
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    inside = (part for part in module.modules() if part is not module)
    if any(getattr(part, kind) for part in inside for kind in kinds):
        return True
    own = ("_parameters", "_buffers")
    return any(
        _tensors([value for name, value in vars(part).items() if name not in own])
        for part in module.modules()
    )
