"""Computes gradients at the input with captum: yardsticks from outside, no CAMs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from segproof.errors import SegproofError
from segproof.explain.cam import RawMap
from segproof.explain.forward_pass import Capture, frozen
from segproof.explain.masked import baseline_of
from segproof.explain.methods import INTEGRATED_STEPS
from segproof.models import SegmentationModel, evaluating

__all__ = ["input_x_gradient", "integrated_gradients"]


def input_x_gradient(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Gradient x input: sum over bands of x dY/dx, [N, H, W], by captum (shrikumar2016notjust).

    A yardstick from outside, not a CAM. It depends on where the image's units have their 0.
    """
    captum = _captum()

    def of(score: Callable[[Tensor], Tensor], image: Tensor, _base: Tensor) -> Tensor:
        attribution: Tensor = captum.InputXGradient(score).attribute(image)
        return attribution

    return _by_captum(capture, model, of, 1)


def integrated_gradients(
    capture: Capture, layer: str, model: SegmentationModel, *, steps: int = INTEGRATED_STEPS
) -> RawMap:
    """Integrated gradients: sum over bands of (x - b) times the mean of dY/dx on the way from b to
    x, [N, H, W], by captum (sundararajan2017axiomatic).

    A yardstick from outside, not a CAM. The map sums to Y(x) - Y(b) up to the error of `steps`
    (Gauss-Legendre); b is `capture.baseline`.
    """
    captum = _captum()

    def of(score: Callable[[Tensor], Tensor], image: Tensor, base: Tensor) -> Tensor:
        attribution: Tensor = captum.IntegratedGradients(score).attribute(
            image, baselines=base, n_steps=steps, internal_batch_size=capture.batch
        )
        return attribution

    return _by_captum(capture, model, of, steps)


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise SegproofError(
            "no captum in this environment",
            "the extra captum for gradients at the input",
            'pip install "segproof[captum]"',
        ) from error
    return captum.attr


def _by_captum(
    capture: Capture,
    model: SegmentationModel,
    of: Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor],
    cost: int,
) -> RawMap:
    maps = []
    with torch.inference_mode(mode=False), torch.enable_grad(), evaluating(model), frozen(model):
        for n in range(len(capture.images)):
            bound = capture.bound.picture(n)

            def score(images: Tensor, bound: Any = bound) -> Tensor:
                scores: Tensor = bound.score(model(images))
                return scores

            image = capture.images[n : n + 1].detach().clone().requires_grad_()
            base = torch.zeros_like(image) if capture.baseline is None else baseline_of(capture, n)
            maps.append(of(score, image, base.expand_as(image)).detach().sum(dim=1)[0])
    return RawMap(torch.stack(maps), forwards=cost * len(maps))
