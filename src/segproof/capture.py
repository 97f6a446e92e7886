"""One forward and one partial backward give the activations and gradients of all asked layers."""

from __future__ import annotations

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

__all__ = ["Capture", "capture"]


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
