"""Makes captures by hand and of toy networks, and the literal maps of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from segproof.explain.cam import RawMap
from segproof.explain.forward_pass import Capture, capture
from segproof.explain.methods import METHODS
from segproof.explain.target import BoundTarget, Target
from segproof.models.contract import SegmentationModel
from toys import LAYERS, toy_images, toy_model, toy_truth

RERUN = ("ablation_cam", "kernel_weighted")  # the network behind the layer runs for each channel
# networks and pictures on which no method's map is flat, so that every case shows something
LIVELY = (1, 3, 4, 5, 7, 12, 14, 16, 18, 23, 25, 27, 29, 34, 36, 38, 45, 47, 48, 49, 51, 53, 56)
CASES = st.sampled_from(LIVELY)
STRICT = Target("roof")
PAPER = Target("roof", preset="paper")


def raw(method: str, seen: Capture, layer: str, model: SegmentationModel, **how: Any) -> RawMap:
    result = METHODS[method](seen, layer, model, **how)
    return result if isinstance(result, RawMap) else RawMap(result)


def captured(
    seed: int,
    *,
    target: Target = STRICT,
    n: int = 1,
    act: str = "relu",
    dtype: torch.dtype = torch.float64,
    batch: int = 4,
    images: Tensor | None = None,
    truth: Tensor | None = None,
) -> tuple[SegmentationModel, Capture]:
    model = toy_model(seed % 11, act=act).to(dtype)
    images = toy_images(seed, n).to(dtype) if images is None else images
    truth = toy_truth(seed, n) if truth is None else truth
    strict_b = 0.3 * torch.ones_like(images) + 0.1 * toy_images(seed + 7, len(images)).to(dtype)
    baseline = model.neutral.expand_as(images) if target.preset == "paper" else strict_b
    return model, capture(model, images, target, LAYERS, truth, baseline=baseline, batch=batch)


def lively(*maps: Tensor) -> bool:
    """Not flat: a test on flat maps shows nothing."""
    return all(float(m.std(dim=(-2, -1)).min()) > 1e-9 * float(m.abs().max()) > 0 for m in maps)


def distance(one: Tensor, other: Tensor) -> float:
    """Greatest difference as a share of the greatest value."""
    return float((one - other).abs().max() / one.abs().max())


class Itself(nn.Module):
    """z = x: Y is then the mean of the picture over R."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def by_hand(A: list[list[list[float]]], D: list[list[list[float]]]) -> Capture:
    """Two by two; R = P = the right column; x = [[1, 1], [1, 3]], b = 0."""
    region = torch.tensor([[[False, True], [False, True]]])
    x = torch.tensor([[[[1.0, 1.0], [1.0, 3.0]]]], dtype=torch.float64)
    bound = BoundTarget(
        class_index=1,
        activation="softmax",
        space="logit",
        weights=region.double() / 2,
        region=region,
        prediction=region,
        valid=torch.ones_like(region),
    )
    return Capture(
        images=x,
        logits=torch.cat([torch.zeros_like(x), x], dim=1),
        bound=bound,
        activations={"layer": torch.tensor([A], dtype=torch.float64)},
        gradients={"layer": torch.tensor([D], dtype=torch.float64)},
        baseline=torch.zeros_like(x),
    )


A1 = [[1.0, 2.0], [3.0, 4.0]]
A2 = [[0.0, 1.0], [2.0, 1.0]]
D1 = [[0.5, 0.0], [0.0, 0.5]]
D2 = [[-1.0, 1.0], [0.0, -2.0]]


def change(seed: int, model: SegmentationModel, seen: Capture, target: Any) -> Capture:
    return capture(
        model, seen.images, target, LAYERS, toy_truth(seed), baseline=seen.baseline, batch=4
    )


def score_of(model: SegmentationModel, seen: Capture, n: int) -> Callable[[Any], float]:
    def score(image: Any) -> float:
        with torch.no_grad():
            return float(seen.bound.picture(n).score(model(torch.from_numpy(image)[None]))[0])

    return score
