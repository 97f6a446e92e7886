"""One forward and one partial backward give the activations and gradients of all asked layers;
`rerun` goes on from a layer with other activations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from segproof.errors import ModelError, UnknownNameError
from segproof.layers import as_grid
from segproof.model import SegmentationModel, evaluating
from segproof.target import BoundTarget, Target

__all__ = ["Capture", "capture", "rerun"]

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Capture:
    """What every method reads: clean pictures, logits, the bound target, and per layer A and D.

    `images` [N, B, H, W], `logits` [N, K, H, W], `activations[path]` and `gradients[path]` [N, K,
    h, w] with D = dY/dA; tokens come as grids. `baseline` [N, B, H, W] is what masked-input methods
    put in place of hidden pixels, `batch` how many masked pictures they show at a time.
    """

    images: Tensor
    logits: Tensor
    bound: BoundTarget
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor] = field(default_factory=dict)
    baseline: Tensor | None = None
    batch: int = 4


def capture(
    model: SegmentationModel,
    images: Tensor,
    target: Target,
    layers: Sequence[str],
    truth: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    gradients: bool = True,
    baseline: Tensor | None = None,
    batch: int = 4,
) -> Capture:
    """Run the network once on `images` [N, B, H, W] and keep what the methods need of `layers`.

    Gradients are asked for the layers only (`torch.autograd.grad`), so no weight ever gets one and
    nothing before the first asked layer enters the graph. Mode, `requires_grad`, hooks and grad
    mode are as before afterwards, also after an error or Ctrl-C. A layer Y does not depend on gets
    D = 0.

    Raises:
        UnknownNameError: a path that is no module, or one that did not run.
        ModelError: a layer that returns anything but [N, K, h, w]; logits that are not finite.
    """
    images = images.to(model.device)
    with evaluating(model), _frozen(model):
        with torch.set_grad_enabled(gradients), _recording(model, layers, images) as found:
            logits = model(images)
        missing = [path for path in layers if path not in found]
        if missing:
            raise UnknownNameError.of("layer that runs", missing[0], found)
        bound = target.bind(
            logits.detach(),
            None if truth is None else truth.to(logits.device),
            model=model,
            valid=None if valid is None else valid.to(logits.device),
        )
        slopes: dict[str, Tensor] = {}
        if gradients:
            with torch.enable_grad():
                score = bound.score(logits).sum()
                asked = [found[path] for path in layers]
                given = (
                    torch.autograd.grad(score, asked, allow_unused=True)
                    if score.requires_grad
                    else [None] * len(asked)
                )
            slopes = {
                path: torch.zeros_like(found[path]) if slope is None else slope
                for path, slope in zip(layers, given, strict=True)
            }
    return Capture(
        images=images,
        logits=logits.detach(),
        bound=bound,
        activations={path: found[path].detach() for path in layers},
        gradients=slopes,
        baseline=None if baseline is None else baseline.to(images),
        batch=batch,
    )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside: the graph begins at the first recorded layer."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def _recording(
    model: SegmentationModel, layers: Sequence[str], images: Tensor
) -> Iterator[dict[str, Tensor]]:
    modules = dict(model.net.named_modules())
    size = (images.shape[-2], images.shape[-1])
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, _inputs: Any, result: Any) -> Any:
            made = as_grid(module, result, len(images), size)
            if made is None:
                shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
                raise ModelError(
                    f"layer {path} returning {shape} for images of {size[0]} x {size[1]} pixels",
                    "a map [N, K, h, w] or tokens of a grid over the image",
                    "choose another; `layers` lists those that fit",
                )
            grid, put_back = made
            if torch.is_grad_enabled() and not grid.requires_grad:
                grid = grid.detach().requires_grad_()
            found[path] = grid
            # a copy goes on, so that an in-place ReLU behind the layer cannot change what is kept
            return put_back(grid.clone())

        return hook

    handles = []
    try:
        for path in layers:
            if path not in modules or not path:
                raise UnknownNameError.of("layer", path, [name for name in modules if name])
            handles.append(modules[path].register_forward_hook(keep(path)))
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def rerun(
    model: SegmentationModel, path: str, image: Tensor
) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """Logits [1, K, H, W] of one picture [B, H, W], and a function of the layer's activations.

    The function takes activations [n, K, h, w] to be put in place of the layer's and returns logits
    [n, K, H, W]. Modules that had returned before the layer did are not run again: their results
    are handed out, repeated n times. One is run again where that might not be the same: outputs
    other than tensors [1, ...] of three dimensions and more in lists, tuples and dicts; no tensor
    among the inputs, or one changed in place; hooks on modules inside. A layer that runs several
    times is replaced in its last run, the one that is captured.
    """
    layer = model.net.get_submodule(path)
    past = _Past()
    put: Tensor | None = None
    runs = last = 0

    def hook(_module: nn.Module, _inputs: Any, _result: Any) -> Tensor | None:
        nonlocal runs
        runs, past.over = runs + 1, True
        # a copy, as in a capture: an in-place ReLU behind the layer may not change the argument
        return put.clone() if put is not None and runs == last else None

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

    with torch.no_grad(), evaluating(model):
        handle = layer.register_forward_hook(hook)
        try:
            with _forwards(model.net, past.record):
                clean = model(image[None])
            last = runs
            yield clean, logits_of
        finally:
            handle.remove()


class _Past:
    """Results of the modules that have returned, in order, until the layer has (`over`)."""

    def __init__(self) -> None:
        self.over = False
        self._results: list[tuple[nn.Module, Any]] = []
        self._left: dict[nn.Module, deque[Any]] = {}
        self._repeats = 1

    def record(self, module: nn.Module, forward: Forward) -> Forward:
        def recorded(*inputs: Any, **named: Any) -> Any:
            if self.over:
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
    found: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        found.append(value)
        return value

    _each(values, keep)
    return found


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
    """Someone's hooks inside would see nothing if the module were not run."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    inside = (part for part in module.modules() if part is not module)
    return any(getattr(part, kind) for part in inside for kind in kinds)
