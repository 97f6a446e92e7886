"""Makes heatmaps on trial: given ones, those of real methods on toy networks, random ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

import reference
from segproof.explain.api import clean_of, normalise
from segproof.explain.forward_pass import Capture, capture
from segproof.explain.methods import METHODS
from segproof.explain.target import BoundTarget, Target
from segproof.measures.case import HeatmapCase
from segproof.models.contract import SegmentationModel
from segproof.perturb.fills import make_fill, perturb
from segproof.perturb.records import FillFunction
from toys import toy_images, toy_model

SEEDS = st.integers(0, 10_000)
THREE = ("field", "roof", "road")
Again = Callable[[Capture, SegmentationModel], Tensor]


def bound_of(region: Tensor, valid: Tensor | None = None) -> BoundTarget:
    inside = region[None].double()
    return BoundTarget(
        class_index=1,
        activation="softmax",
        space="logit",
        weights=inside / inside.sum().clamp(min=1),
        region=region[None],
        prediction=region[None],
        valid=torch.ones_like(region)[None] if valid is None else valid[None],
    )


def black(images: Tensor, keep: Tensor) -> Tensor:
    return perturb(images, keep, torch.zeros_like(images[:1]))


def given_case(
    heat: Tensor,
    region: Tensor,
    *,
    valid: Tensor | None = None,
    image: Tensor | None = None,
    again: Again | None = None,
    model: SegmentationModel | None = None,
    fill: FillFunction = black,
    seed: int = 0,
) -> HeatmapCase:
    """A heatmap that no network made; the picture is `image` [B, H, W] or zeros."""
    image = torch.zeros(3, *heat.shape, dtype=torch.float64) if image is None else image
    model = toy_model() if model is None else model
    with torch.no_grad():
        logits = model(image[None]) if again or fill is not black else torch.zeros(1, 2, 1, 1)
    seen = Capture(image[None], logits, bound_of(region, valid), {})
    return HeatmapCase(
        model=model, seen=seen, heatmap=heat.float(), fill=fill, again=again, seed=seed
    )


def explained(
    method: str,
    *,
    seed: int = 0,
    side: int = 16,
    model: SegmentationModel | None = None,
    layer: str = "decoder.blocks.0",
    valid: Tensor | None = None,
    batch: int = 4,
) -> HeatmapCase:
    """A real method's heatmap of a toy network."""
    model = toy_model(seed, classes=THREE) if model is None else model
    model.net.encoder.output_stride = 4  # type: ignore[union-attr]
    seen = capture(
        model,
        toy_images(seed, side=side),
        Target("roof"),
        [layer],
        valid=None if valid is None else valid[None],
        batch=batch,
    )

    def again(seen: Capture, model: SegmentationModel) -> Tensor:
        made = METHODS[method](seen, layer, model)
        raw = made if isinstance(made, Tensor) else made.values
        return normalise(raw[0], (seen.images.shape[-2], seen.images.shape[-1]))[0]

    fill = make_fill("noise", clean_of(seen, model, None, seed=(seed, "noise")))
    heat = again(seen, model)
    assert heat.any()
    return HeatmapCase(model=model, seen=seen, heatmap=heat, fill=fill, again=again, seed=seed)


def random_case(seed: int, *, ties: bool = False) -> HeatmapCase:
    """A random map 7 x 9 with pixels that are not valid; `ties`: many equal values."""
    generator = torch.Generator().manual_seed(seed)
    heat = torch.rand(7, 9, generator=generator)
    heat = (4 * heat).floor() / 4 if ties else heat
    valid = torch.rand(7, 9, generator=generator) > 0.15
    region = (torch.rand(7, 9, generator=generator) > 0.7) & valid
    region[3, 4] = valid[3, 4] = True
    heat[3, 4] = 0.5
    return given_case(heat, region, valid=valid, seed=seed)


def masks_of(case: HeatmapCase) -> tuple[reference.Array, reference.Bools, reference.Bools]:
    bound = case.seen.bound
    return case.heatmap.double().numpy(), bound.region[0].numpy(), bound.valid[0].numpy()
