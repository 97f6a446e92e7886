"""Curves: values by hand, the literal formulas, other tools, and the order of known maps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from pytorch_grad_cam.metrics.perturbation_confidence import (
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
)
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from sklearn.metrics import auc
from torch import Tensor, nn
from torchcam.metrics import DeletionInsertionMetric

import reference
from segproof.errors import DataError, ModelError, SegproofError, UnknownNameError
from segproof.explain.forward_pass import capture
from segproof.explain.target import Target
from segproof.measures import curves
from segproof.measures.case import HeatmapCase, Undefined
from segproof.measures.curves import (
    Curve,
    context_curve,
    context_need,
    deletion_curve,
    influence,
    insertion_curve,
    road_curve,
)
from segproof.measures.map_records import MAP_MEASURES
from segproof.measures.pictures import confidence
from segproof.models.contract import SegmentationModel, probabilities
from segproof.perturb.controls import random_blobs
from segproof.perturb.fill_context import FillContext
from segproof.perturb.fills import background_of, make_fill, perturb
from segproof.perturb.imputation import linear_imputation
from segproof.perturb.records import FillFunction
from segproof.perturb.regions import dilate
from segproof.perturb.seeding import seeded
from sideeffects import Fails, facts, unsettle
from toys import toy_images, toy_model, toy_truth

with warnings.catch_warnings(record=True):
    # it warns of an optional package that is missing, and sets its own filter for that
    warnings.simplefilter("always")
    from attribution_quality.metrics import compute_masked_metrics

MEASURES = {name: MAP_MEASURES[name] for name in curves.__all__ if name in MAP_MEASURES}
SEEDS = st.integers(0, 10_000)
LOG3 = math.log(3)  # sigmoid(log 3) = 3/4, sigmoid(0) = 1/2


class Reads(nn.Module):
    """z at every pixel = the sum of weights x picture: it reads these pixels and nothing else."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, images: Tensor) -> Tensor:
        total = (images * self.weights).sum(dim=(1, 2, 3), keepdim=True)
        return total.expand(-1, 1, *images.shape[-2:])


class Itself(nn.Module):
    """z = x."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def filling(baseline: Tensor) -> FillFunction:
    return lambda images, keep: perturb(images, keep, baseline)


def case_of(
    net: nn.Module,
    image: Tensor,
    region: Tensor,
    heatmap: Tensor,
    fill: FillFunction | None = None,
    *,
    valid: Tensor | None = None,
    batch: int = 4,
    seed: int = 0,
) -> HeatmapCase:
    """A case of one picture [B, H, W] with R = `region`; the fill is 0 unless given."""
    model = net if isinstance(net, SegmentationModel) else SegmentationModel(net, classes=["roof"])
    rows = None if valid is None else valid[None]
    target = Target(1, region="truth")
    seen = capture(
        model, image[None], target, [], region[None], valid=rows, gradients=False, batch=batch
    )
    fill = filling(torch.zeros_like(image)) if fill is None else fill
    return HeatmapCase(model=model, seen=seen, heatmap=heatmap, fill=fill, truth=region, seed=seed)


def toy_case(
    seed: int, *, masked: bool = False, batch: int = 4, dtype: torch.dtype = torch.float64
) -> HeatmapCase:
    """A real small network, an uneven fill, a heatmap without ties."""
    model = toy_model(seed % 11).to(dtype)
    image, base = toy_images(seed)[0].to(dtype), toy_images(seed + 50)[0].to(dtype)
    heat = torch.rand(16, 16, generator=torch.Generator().manual_seed(seed))
    valid = torch.rand(16, 16, generator=torch.Generator().manual_seed(seed + 1)) > 0.2
    region = toy_truth(seed)[0]
    valid = valid if masked else torch.ones_like(valid)
    return case_of(model, image, region, heat, filling(base), valid=valid, batch=batch)


def base_of(case: HeatmapCase) -> Tensor:
    return case.fill(case.seen.images, torch.zeros_like(case.seen.bound.region))[0]


def score_of(case: HeatmapCase) -> reference.Score:
    """Confidence on R of a picture, shown alone."""
    bound = case.seen.bound

    def score(image: reference.Array) -> float:
        with torch.no_grad():
            z = case.model(torch.from_numpy(image)[None].to(case.seen.images))
            return float(confidence(probabilities(z, bound.activation), bound))

    return score


def numbers(
    case: HeatmapCase,
) -> tuple[reference.Array, reference.Bools, reference.Array, reference.Array]:
    """S, V, x, b."""
    return (
        case.heatmap.double().numpy(),
        case.seen.bound.valid[0].numpy(),
        case.seen.images[0].double().numpy(),
        base_of(case).double().numpy(),
    )


HAND = torch.tensor([[0.1, 0.9], [0.2, 0.8]])
RIGHT = torch.tensor([[False, True], [False, True]])


# --- by hand ------------------------------------------------------------------------------------
def test_deletion_and_insertion_by_hand() -> None:
    case = case_of(Itself(), torch.full((1, 2, 2), LOG3), RIGHT, HAND)
    # the right column goes first: 3/4, then half of it 1/2, then all of it
    gone, come = deletion_curve(case, 4), insertion_curve(case, 4)
    assert gone.x.tolist() == come.x.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert gone.y.tolist() == pytest.approx([0.75, 0.625, 0.5, 0.5, 0.5], abs=1e-7)
    assert come.y.tolist() == pytest.approx([0.5, 0.625, 0.75, 0.75, 0.75], abs=1e-7)
    assert gone.area == pytest.approx(0.5625, abs=1e-7)
    assert come.area == pytest.approx(0.6875, abs=1e-7)


def test_outside_forms_by_hand() -> None:
    # the lower left pixel alone is read; the region on the right neither goes nor comes
    net = Reads(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    case = case_of(net, torch.full((1, 2, 2), LOG3), RIGHT, HAND)
    gone, come = deletion_curve(case, 2, outside=True), insertion_curve(case, 2, outside=True)
    assert gone.x.tolist() == come.x.tolist() == [0, 0.5, 1]
    assert gone.y.tolist() == pytest.approx([0.75, 0.5, 0.5], abs=1e-7)
    assert come.y.tolist() == pytest.approx([0.5, 0.75, 0.75], abs=1e-7)
    # what is read inside the region stays
    inside = case_of(Itself(), torch.full((1, 2, 2), LOG3), RIGHT, HAND)
    assert MEASURES["deletion_outside"].function(inside) == pytest.approx(0.75, abs=1e-7)
    assert MEASURES["insertion_outside"].function(inside) == pytest.approx(0.75, abs=1e-7)


def test_soft_masks_by_hand() -> None:
    x = torch.full((1, 2, 2), LOG3)
    x[0, 0, 0] = -LOG3
    # p = 1/4, 3/4, 3/4, 3/4; S = 0 leaves 1/2: more than 1/4 by 1/4, and less than 3/4 once
    case = case_of(Itself(), x, RIGHT, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert MEASURES["preserved"].function(case) == pytest.approx(2.25 / 2.5, abs=1e-7)
    assert MEASURES["excess"].function(case) == pytest.approx(0.25 / 2.5, abs=1e-7)
    # x' = x / 3 is the cube root of the odds
    half = case_of(Itself(), torch.full((1, 2, 2), 3 * LOG3), RIGHT, torch.full((2, 2), 1 / 3))
    assert MEASURES["preserved"].function(half) == pytest.approx(0.75 / (27 / 28), abs=1e-6)
    assert MEASURES["excess"].function(half) == 0


def test_context_by_hand() -> None:
    # read is a pixel 5 px from the region: 8 px is the first radius that shows it
    weights = torch.zeros(1, 24)
    weights[0, 6] = 1
    region = torch.zeros(1, 24, dtype=torch.bool)
    region[0, 0:2] = True
    case = case_of(Reads(weights), torch.full((1, 1, 24), LOG3), region, torch.rand(1, 24))
    curve = context_curve(case)
    assert curve.x.tolist() == [0, 4, 8, 16, 32, 64, 128]
    assert curve.y.tolist() == pytest.approx([0.5, 0.5, 0.75, 0.75, 0.75, 0.75, 0.75], abs=1e-7)
    assert context_need(case) == 8
    # 0.7 of 0.75 is not enough, and 0.95 of it exactly is
    assert context_need(replace(case, heatmap=torch.zeros(1, 24))) == 8


def test_influence_by_hand() -> None:
    class Two(nn.Module):
        """Class 1 needs itself; class 2 is sure where class 1's pixel is bright."""

        def forward(self, images: Tensor) -> Tensor:
            one = images[:, 0]
            two = images[:, 0, :, :1].expand_as(one).clone()
            two[:, :, :2] = -9
            return torch.stack([one, two, torch.full_like(one, -9.0)], dim=1)

    model = SegmentationModel(Two(), classes=["a", "b", "c"], activation="sigmoid")
    x = torch.tensor([[[LOG3, -9.0, -9.0, -9.0]]])
    black: Callable[[Tensor], FillFunction] = lambda region: filling(torch.zeros_like(x))  # noqa: E731
    # without a: a falls from 3/4 to 1/2, b from 3/4 to 1/2; without b (filled with 0): no change
    expected = torch.tensor([[1 / 3, 1 / 3], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        influence(model, x, ["a", "b"], fill=black), expected, atol=1e-7, rtol=0
    )
    whole = influence(model, x, fill=black)
    assert whole.shape == (3, 3)
    assert torch.equal(whole[:2, :2], influence(model, x, [0, 1], fill=black))
    assert whole[2].isnan().all()
    assert whole[:, 2].isnan().all()


# --- literal formulas ---------------------------------------------------------------------------
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_curves_are_the_literal_ones(seed: int, *, outside: bool, masked: bool) -> None:
    case = toy_case(seed, masked=masked)
    S, V, x, b = numbers(case)
    movable = V & ~case.seen.bound.region[0].numpy() if outside else V
    for ours, literal in (
        (deletion_curve, reference.deletion),
        (insertion_curve, reference.insertion),
    ):
        curve = ours(case, 7, outside=outside)
        shares, values = literal(S, movable, x, b, score_of(case), 7)
        np.testing.assert_allclose(curve.x.numpy(), shares, atol=1e-15)
        np.testing.assert_allclose(curve.y.numpy(), values, atol=1e-12)
        assert curve.area == pytest.approx(reference.trapezoids(shares, values), abs=1e-12)
        assert curve.area == pytest.approx(float(auc(curve.x, curve.y)), abs=1e-12)
        assert float(curve.y.std()) > 1e-3


def test_the_measures_are_areas_of_twenty_steps() -> None:
    case = toy_case(1)
    for name, curve in (
        ("deletion", deletion_curve(case, 20)),
        ("insertion", insertion_curve(case, 20)),
        ("deletion_outside", deletion_curve(case, 20, outside=True)),
        ("insertion_outside", insertion_curve(case, 20, outside=True)),
    ):
        assert len(curve.x) == 21
        assert MEASURES[name].function(case) == curve.area, name


@pytest.mark.parametrize("masked", [False, True])
def test_road_is_the_literal_one(monkeypatch: pytest.MonkeyPatch, *, masked: bool) -> None:
    monkeypatch.setattr(curves, "NOISE", 0.0)
    case = toy_case(2, masked=masked)
    S, V, x, _ = numbers(case)
    most = reference.road(S, V, x, score_of(case), most=True)
    least = reference.road(S, V, x, score_of(case), most=False)
    assert road_curve(case, "most").x.tolist() == [k / 10 for k in range(1, 10)]
    np.testing.assert_allclose(road_curve(case, "most").y.numpy(), most, atol=1e-6)
    np.testing.assert_allclose(road_curve(case, "least").y.numpy(), least, atol=1e-6)
    for name, value in (
        ("road_morf", np.mean(most)),
        ("road_lerf", np.mean(least)),
        ("road", np.mean(least) - np.mean(most)),
    ):
        assert MEASURES[name].function(case) == pytest.approx(float(value), abs=1e-6), name
    assert abs(np.mean(least) - np.mean(most)) > 1e-4


def test_context_is_the_literal_one() -> None:
    case = toy_case(3, masked=True)
    _, _, x, b = numbers(case)
    radii = [0, 1, 2, 5, 40]
    expected = reference.context(case.seen.bound.region[0].numpy(), x, b, score_of(case), radii)
    np.testing.assert_allclose(context_curve(case, radii).y.numpy(), expected, atol=1e-12)
    assert len(set(expected)) > 3


@pytest.mark.parametrize("seed", range(3))
def test_soft_masks_are_the_literal_ones_and_those_of_attribution_quality(seed: int) -> None:
    case = toy_case(seed)
    S, V, x, b = numbers(case)
    with torch.no_grad():
        mixed = torch.from_numpy(S * x + (1 - S) * b)[None]
        p, q = (case.model(z).softmax(dim=1)[0, 1].numpy() for z in (case.seen.images, mixed))
    for least, most in (
        reference.preserved_excess(p, q, V),
        compute_masked_metrics(p, q, S)[::2],  # in float32
    ):
        assert MEASURES["preserved"].function(case) == pytest.approx(float(least), abs=1e-6)
        assert MEASURES["excess"].function(case) == pytest.approx(float(most), abs=1e-6)
        assert most > 1e-4
    masked = toy_case(seed, masked=True)
    valid = masked.seen.bound.valid[0].numpy()
    inside = reference.preserved_excess(p, q, valid)
    assert MEASURES["preserved"].function(masked) == pytest.approx(inside[0], abs=1e-12)
    assert MEASURES["excess"].function(masked) == pytest.approx(inside[1], abs=1e-12)


@pytest.mark.parametrize(("activation", "batch"), [("softmax", 1), ("softmax", 5), ("sigmoid", 2)])
def test_influence_is_the_literal_one(activation: str, batch: int) -> None:
    model = toy_model(4, classes=("a", "b", "c"), activation=activation)
    x, b = toy_images(4)[0], toy_images(5)[0]

    def f(image: reference.Array) -> reference.Array:
        with torch.no_grad():
            z = model(torch.from_numpy(image)[None])
            return np.asarray(probabilities(z, model.activation)[0].numpy())

    expected = reference.influence(f, x.numpy(), b.numpy(), activation)
    got = influence(model, x, fill=lambda region: filling(b), batch=batch)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)
    assert np.isfinite(expected).all()
    assert expected.std() > 1e-3


def test_influence_takes_names_of_fills_and_stays_within_valid_pixels() -> None:
    model, x = toy_model(4, classes=("a", "b", "c")), toy_images(4)[0]
    valid = torch.ones(16, 16, dtype=torch.bool)
    valid[:, :8] = False
    shown: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    got = influence(model, x, fill="black", valid=valid)
    handle.remove()
    assert torch.equal(torch.cat(shown)[:, :, :, :8], x[:, :, :8].expand(4, -1, -1, -1))
    assert sum(len(part) for part in shown) == 4
    assert torch.isfinite(got).all()
    textured = influence(model, x, ["a", "b"])
    assert torch.equal(textured, influence(model, x, ["a", "b"]))
    assert not torch.equal(textured, influence(model, x, ["a", "b"], seed=1))
    bounds = {k: Target(k).bind(model(x[None]), model=model).picture(0) for k in range(2)}
    p = model(x[None]).softmax(dim=1)[0].detach()

    def by_hand(region: Tensor) -> FillFunction:
        [k] = [k for k, bound in bounds.items() if torch.equal(bound.region[0], region)]
        clean = FillContext(
            image=x,
            neutral=model.neutral,
            background=background_of(region, p[k], torch.ones_like(region)),
            valid=torch.ones_like(region),
            generator=seeded("influence", 0, "background_texture", k),
        )
        return make_fill("background_texture", clean)

    assert torch.equal(textured, influence(model, x, ["a", "b"], fill=by_hand))
    with pytest.raises(UnknownNameError, match="black"):
        influence(model, x, fill="blak")
    with pytest.raises(UnknownNameError):
        influence(model, x, ["roof"])


# --- other tools --------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(3))
def test_deletion_and_insertion_are_those_of_torchcam(seed: int) -> None:
    case = toy_case(seed)

    class Scores(nn.Module):
        """Their view: one score per picture."""

        def forward(self, images: Tensor) -> Tensor:
            z = case.model(images)
            return confidence(probabilities(z, "softmax"), case.seen.bound)[:, None]

    class Extractor:
        model = Scores()

        def __call__(self, *_: object) -> list[Tensor]:
            return [case.heatmap[None].double()]

        def fuse_cams(self, cams: list[Tensor]) -> Tensor:
            return cams[0]

        def _hooks_off(self) -> Any:
            return nullcontext()

    extractor: Any = Extractor()
    metric = DeletionInsertionMetric(extractor, steps=16, baseline=base_of(case))
    metric.update(case.seen.images, class_idx=0)
    theirs = metric.summary()
    assert deletion_curve(case, 16).area == pytest.approx(theirs["deletion_auc"], abs=1e-6)
    assert insertion_curve(case, 16).area == pytest.approx(theirs["insertion_auc"], abs=1e-6)


@contextmanager
def their_warnings() -> Iterator[None]:
    """pytorch-grad-cam hands tensors to numpy in a way that numpy 2 warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.95])
def test_imputation_is_that_of_pytorch_grad_cam_borders_included(share: float) -> None:
    generator = torch.Generator().manual_seed(int(100 * share))
    image = torch.rand(3, 23, 30, generator=generator)
    keep = torch.rand(23, 30, generator=generator) >= share
    keep[:6, :7] = False  # a corner, solved from inside alone
    with their_warnings():
        theirs = NoisyLinearImputer(noise=0)(image.clone(), keep.float())
    ours = linear_imputation(image, keep, 0.0, generator)
    assert float((ours - theirs).abs().max()) < 1e-6
    assert not keep[[0, -1]].all()


def test_road_pictures_are_those_of_pytorch_grad_cam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "NOISE", 0.0)
    model, image = toy_model(1), toy_images(1, side=20)[0]
    heat = torch.rand(20, 20, generator=torch.Generator().manual_seed(1))
    case = case_of(model, image, toy_truth(1, side=20)[0], heat)
    removers = {"most": RemoveMostRelevantFirst, "least": RemoveLeastRelevantFirst}
    for first, remover in removers.items():
        with their_warnings():
            shown = [
                remover(100 - 10 * tenth, NoisyLinearImputer(noise=0))(image.float(), heat)
                for tenth in range(1, 10)
            ]
        expected = [score_of(case)(picture.double().numpy()) for picture in shown]
        curve = road_curve(case, "most" if first == "most" else "least")
        np.testing.assert_allclose(curve.y.numpy(), expected, atol=1e-5)


# --- imputation ---------------------------------------------------------------------------------
def hole_of(kind: str, side: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Pixels kept: scattered, all but smooth blobs, two alone, or every fourth row."""
    keep = torch.rand(side, generator=generator) > 0.8
    if kind == "blobs":
        keep = random_blobs(side, generator, scale=0.2) > 0.6
    if kind == "two":
        keep = torch.zeros(side, dtype=torch.bool)
    if kind == "rows":
        keep = torch.zeros(side, dtype=torch.bool)
        keep[::4] = True
    keep[:, 2] = False
    keep[0, 1] = keep[-1, 0] = True
    return keep


@pytest.mark.parametrize("kind", ["scattered", "blobs", "two", "rows"])
@pytest.mark.parametrize("side", [(17, 22), (1, 9), (2, 3), (16, 16)])
def test_imputation_solves_the_literal_system(kind: str, side: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(sum(side))
    image = torch.rand(2, *side, generator=generator, dtype=torch.float64)
    image[1] = 5000 + 100 * image[1]  # a band in other units converges as well
    keep = hole_of(kind, side, generator)
    expected = reference.linear_imputation(image.numpy(), keep.numpy())
    got = linear_imputation(image, keep, 0.0, generator)
    np.testing.assert_allclose(got[0].numpy(), expected[0], atol=2e-6)
    np.testing.assert_allclose(got[1].numpy(), expected[1], atol=2e-4)
    assert torch.equal(got[:, keep], image[:, keep])
    assert not keep.all()


def test_imputation_by_hand() -> None:
    image = torch.tensor([[[1.0, 9.0, 4.0]]])
    keep = torch.tensor([[True, False, True]])
    got = linear_imputation(image, keep, 0.0, torch.Generator())
    assert got.tolist() == [[[1.0, 2.5, 4.0]]]
    # a corner has two direct neighbours (1/6) and a diagonal one (1/12): (2 * 1 + 2 * 3 + 7) / 5
    image = torch.tensor([[[0.0, 1.0], [3.0, 7.0]]])
    keep = torch.tensor([[False, True], [True, True]])
    assert float(linear_imputation(image, keep, 0.0, torch.Generator())[0, 0, 0]) == 3.0


def test_nothing_of_removed_pixels_leaks_into_imputation() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 19, 21, generator=generator)
    keep = torch.rand(19, 21, generator=generator) > 0.6
    clean = linear_imputation(image, keep, 0.01, seeded("noise"))
    for hidden in (math.nan, math.inf, -1e30):
        dirty = torch.where(keep, image, hidden)
        assert torch.equal(linear_imputation(dirty, keep, 0.01, seeded("noise")), clean)
    assert torch.equal(clean[:, keep], image[:, keep])
    low, high = image[:, keep].min(), image[:, keep].max()
    smooth = linear_imputation(image, keep, 0.0, seeded("noise"))
    assert float(smooth.min()) >= float(low) - 1e-5  # a mean of kept pixels
    assert float(smooth.max()) <= float(high) + 1e-5


def test_noise_of_imputation_has_the_stated_size() -> None:
    image, keep = torch.rand(2, 64, 64), torch.zeros(64, 64, dtype=torch.bool)
    keep[::8] = True
    noise = torch.tensor([0.01, 3.0]).view(2, 1, 1)
    given_ = image.clone()
    plain, noisy = (linear_imputation(image, keep, n, seeded(1)) for n in (0.0, noise))
    added = (noisy - plain)[:, ~keep]
    np.testing.assert_allclose(added.std(dim=1).numpy(), [0.01, 3.0], rtol=0.05)
    assert float(added[0].mean().abs()) < 1e-3
    assert torch.equal(linear_imputation(image, keep, noise, seeded(1)), noisy)
    assert not torch.equal(linear_imputation(image, keep, noise, seeded(2)), noisy)
    assert torch.equal(image, given_)


def test_imputation_at_its_ends() -> None:
    image = torch.rand(2, 4, 5)
    everything = torch.ones(4, 5, dtype=torch.bool)
    assert torch.equal(linear_imputation(image, everything, 0.5, torch.Generator()), image)
    with pytest.raises(DataError, match="no pixel kept"):
        linear_imputation(image, ~everything, 0.0, torch.Generator())
    flat = torch.full((1, 40, 40), 0.3)
    keep = torch.zeros(40, 40, dtype=torch.bool)
    keep[3, 4] = True
    assert float((linear_imputation(flat, keep, 0.0, torch.Generator()) - 0.3).abs().max()) < 1e-6


# --- properties ---------------------------------------------------------------------------------
@settings(max_examples=15, deadline=None)
@given(SEEDS, st.booleans())
def test_ends_are_bitwise_those_of_one_picture(seed: int, masked: bool) -> None:
    case = toy_case(seed, masked=masked, dtype=torch.float32)
    bound, score = case.seen.bound, score_of(case)
    valid = bound.valid[0]
    clean = score(case.seen.images[0].numpy())
    empty = torch.where(valid, base_of(case), case.seen.images[0])
    alone = torch.where(valid & ~bound.region[0], base_of(case), case.seen.images[0])
    for outside, picture in ((False, empty), (True, alone)):
        bare = score(picture.numpy())
        gone = deletion_curve(case, 3, outside=outside)
        come = insertion_curve(case, 3, outside=outside)
        assert float(gone.y[0]) == float(come.y[-1]) == clean
        assert float(gone.y[-1]) == float(come.y[0]) == bare
        assert clean != bare


@pytest.mark.parametrize("name", MEASURES)
def test_numbers_do_not_depend_on_the_batch(name: str) -> None:
    for seed in range(3):
        small, large = (toy_case(seed, batch=n, dtype=torch.float32) for n in (1, 7))
        one, other = (value_of(name, case) for case in (small, large))
        assert one == pytest.approx(other, abs=2e-5, nan_ok=True)
        assert value_of(name, small) == one  # bitwise


def value_of(name: str, case: HeatmapCase) -> float:
    try:
        return MEASURES[name].function(case)
    except Undefined:
        return math.nan


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_stated_ranges_hold(seed: int) -> None:
    case = toy_case(seed, masked=seed % 2 == 0)
    for name, card in MEASURES.items():
        value = value_of(name, case)
        assert math.isnan(value) or card.low <= value <= card.high, name


def test_ties_go_by_the_seed() -> None:
    case = toy_case(1)
    case = replace(case, heatmap=(case.heatmap > 0.5).float())
    for name in ("deletion", "insertion_outside", "road_morf"):
        measure = MEASURES[name].function
        assert measure(case) == measure(case)
        assert measure(case) != measure(replace(case, seed=1)), name


def test_context_need_does_not_depend_on_the_heatmap() -> None:
    case = toy_case(2)
    other = replace(case, heatmap=1 - case.heatmap)
    assert torch.equal(context_curve(case).y, context_curve(other).y)
    assert "not depend on the heatmap" in MEASURES["context_need"].failure


def test_pixels_outside_the_valid_ones_stay_as_they_are() -> None:
    case = toy_case(1, masked=True)
    invalid = ~case.seen.bound.valid[0]
    with watched(case) as shown:
        for name in ("deletion", "insertion", "deletion_outside", "insertion_outside", "road"):
            MEASURES[name].function(case)
    assert invalid.any()
    for picture in torch.cat(shown):
        assert torch.equal(picture[:, invalid], case.seen.images[0][:, invalid])


def test_imputation_does_not_read_invalid_pixels() -> None:
    case = toy_case(1, masked=True)
    valid = case.seen.bound.valid[0]
    image = torch.where(valid, case.seen.images, 77.0)
    other = replace(case, seen=replace(case.seen, images=image))
    with watched(case) as one:
        road_curve(case, "most")
    with watched(other) as two:
        road_curve(other, "most")
    assert torch.equal(torch.cat(one)[:, :, valid], torch.cat(two)[:, :, valid])


def test_noise_of_road_is_a_share_of_the_unit() -> None:
    # all pixels equal: what is shown beside the kept ones is noise
    heat = torch.rand(20, 20)
    region = torch.zeros(20, 20, dtype=torch.bool)
    region[3:9, 3:9] = True
    picture = torch.full((1, 20, 20), 0.5)
    stretched = picture.clone()
    stretched[0, 0, 0], stretched[0, 0, 1] = -150.0, 50.0
    for image, size in ((picture, 0.01), (stretched, 2.0)):
        keep = torch.ones_like(region)
        keep[0, :2] = False
        case = case_of(Itself(), image, region, heat * keep + 2 * (1 - keep.float()))
        with watched(case) as shown:
            road_curve(case, "least")
        inside = torch.cat(shown)[-1, 0, 1:] - 0.5
        moved = inside[inside.abs() > 1e-6]
        assert len(moved) > 200
        if size == 0.01:
            assert float(moved.std()) == pytest.approx(size, rel=0.2)
        else:
            assert float(moved.std()) > 1.0


@contextmanager
def watched(case: HeatmapCase) -> Iterator[list[Tensor]]:
    """Pictures that the network is shown, batch by batch."""
    shown: list[Tensor] = []
    handle = case.model.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    try:
        yield shown
    finally:
        handle.remove()


@pytest.mark.parametrize("name", MEASURES)
def test_cost_is_as_stated_and_pictures_are_made_a_batch_at_a_time(name: str) -> None:
    case = toy_case(1, batch=3)
    made = 0

    def fill(images: Tensor, keep: Tensor) -> Tensor:
        nonlocal made
        made += len(keep)
        return case.fill(images, keep)

    shown = 0

    def count(_: object, inputs: tuple[Tensor]) -> None:
        nonlocal shown
        shown += len(inputs[0])
        assert len(inputs[0]) <= 3
        assert made <= shown

    handle = case.model.register_forward_pre_hook(count)
    MEASURES[name].function(replace(case, fill=fill))
    handle.remove()
    assert shown == int(MEASURES[name].forwards.partition(",")[0])


# --- known maps ---------------------------------------------------------------------------------
def known() -> dict[str, HeatmapCase]:
    """A network that reads a marker beside the region; maps that find it, not, and the contrary."""
    generator = torch.Generator().manual_seed(0)
    image = 0.2 * torch.rand(1, 24, 24, generator=generator)
    cue = torch.zeros(24, 24, dtype=torch.bool)
    cue[3:7, 14:20] = True
    image[0, cue] = 1.0
    region = torch.zeros(24, 24, dtype=torch.bool)
    region[10:18, 4:12] = True
    net = Reads(cue.float() * 8 / int(cue.sum()))
    model = SegmentationModel(net, classes=["roof"], mean=[0.4], std=[1.0])
    jitter = 0.1 * torch.rand(24, 24, generator=generator)
    maps = {
        "oracle": 0.9 * cue + jitter,
        "random": random_blobs((24, 24), seeded("known", 0)),
        "inverted": 1 - (0.9 * cue + jitter),
        "region": 0.9 * region + jitter,
    }
    return {name: case_of(model, image, region, heat) for name, heat in maps.items()}


@pytest.mark.parametrize(
    "name", [name for name in MEASURES if name not in ("context_need", "excess")]
)
def test_an_oracle_beats_random_and_inverted_maps(name: str) -> None:
    cases, card = known(), MEASURES[name]
    sign = 1 if card.better == "higher" else -1
    best, middle, worst = (
        sign * card.function(cases[kind]) for kind in ("oracle", "random", "inverted")
    )
    assert best > middle + 0.01
    assert middle > worst + 0.01
    # a map of the region, on which nothing depends here, does not come near
    assert best > sign * card.function(cases["region"]) + 0.01


def test_deleting_the_object_itself_is_trivial_and_the_outside_form_is_not() -> None:
    # a network that looks at the region and, less, at a marker beside it
    image = torch.full((1, 20, 20), LOG3)
    region = torch.zeros(20, 20, dtype=torch.bool)
    region[5:15, 2:12] = True
    cue = torch.zeros_like(region)
    cue[5:9, 15:19] = True
    net = Reads(region.float() / 100 + cue.float() / 16)
    jitter = 0.1 * torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    of_region, of_cue = (
        case_of(net, image, region, 0.5 * mask.float() + jitter) for mask in (region, cue)
    )
    trivial, honest = MEASURES["deletion"].function, MEASURES["deletion_outside"].function
    assert honest(of_cue) < honest(of_region) - 0.05
    both = case_of(net, image, region, 0.5 * region.float() + 0.4 * cue.float() + jitter)
    assert trivial(both) < trivial(of_region)
    assert "trivial" in MEASURES["deletion"].failure


# --- undefined ----------------------------------------------------------------------------------
def reason(measure: Callable[[HeatmapCase], object], case: HeatmapCase) -> str:
    with pytest.raises(Undefined) as caught:
        measure(case)
    return str(caught.value)


def test_what_has_no_number_says_why() -> None:
    full = torch.ones(4, 4, dtype=torch.bool)
    image, heat = torch.full((1, 4, 4), LOG3), torch.rand(4, 4)
    everywhere = case_of(Itself(), image, full, heat)
    nowhere = case_of(Itself(), image, ~full, heat)
    flat = case_of(Itself(), image, dilate(~full, 1) | (heat > 0.5), torch.full((4, 4), 0.7))
    for name in ("deletion_outside", "insertion_outside"):
        assert reason(MEASURES[name].function, everywhere) == "no pixel outside the region"
    ranked = [name for name in MEASURES if name not in ("preserved", "excess", "context_need")]
    for name in ranked:
        assert reason(MEASURES[name].function, flat) == "flat heatmap"
    for name in [*ranked, "context_need"]:
        assert reason(MEASURES[name].function, nowhere) == "empty region"
    tiny = case_of(Itself(), image[:, :3, :3], full[:3, :3], heat[:3, :3])
    assert reason(MEASURES["road"].function, tiny) == "fewer than ten valid pixels"
    nothing = case_of(Itself(), torch.full((1, 4, 4), -2000.0), full, heat)
    assert reason(context_need, nothing) == "confidence 0"
    for name in ("preserved", "excess"):
        assert reason(MEASURES[name].function, nothing) == "nothing predicted"
    wide = torch.zeros(1, 200)
    wide[0, 150] = 3
    far = torch.zeros(1, 200, dtype=torch.bool)
    far[0, 0] = True
    hidden = case_of(Reads(wide), torch.full((1, 1, 200), LOG3), far, torch.rand(1, 200))
    assert reason(context_need, hidden) == "confidence not back at 128 px"


def test_steps_and_broken_fills_are_refused() -> None:
    case = toy_case(1)
    with pytest.raises(SegproofError, match="0 steps"):
        deletion_curve(case, 0)
    broken = replace(case, fill=filling(torch.full((3, 16, 16), math.nan)))
    with pytest.raises(ModelError, match="another fill"):
        insertion_curve(broken)


def test_hidden_pixels_do_not_leak() -> None:
    case = toy_case(1)
    # not a number where S is 0, and in the fill where S is 1
    heat = (case.heatmap > 0.5).float()
    dirty = torch.where(heat > 0.5, case.seen.images, math.nan)
    base = torch.where(heat > 0.5, math.nan, base_of(case))
    seen = replace(case.seen, images=dirty)
    for name in ("preserved", "excess"):
        expected = MEASURES[name].function(replace(case, heatmap=heat))
        assert MEASURES[name].function(
            replace(case, seen=seen, heatmap=heat, fill=filling(base))
        ) == (expected)


def test_curve_has_area_and_mean() -> None:
    curve = Curve(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 0.5, 0.5]))
    assert curve.area == 0.625
    assert curve.mean == pytest.approx(2 / 3)


# --- nothing is left behind ---------------------------------------------------------------------
@pytest.mark.parametrize("name", [*MEASURES, "influence"])
@pytest.mark.parametrize("fails", [False, True])
def test_model_and_inputs_stay_as_they_were(name: str, *, fails: bool) -> None:
    case = toy_case(1)
    unsettle(case.model)

    def run() -> None:
        if name == "influence":
            influence(case.model, case.seen.images[0], fill="black")
        else:
            MEASURES[name].function(case)

    inputs = (case.seen.images, case.seen.logits, case.heatmap, base_of(case))
    before = facts(case.model, *inputs)
    if fails:
        failure = Fails(KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt), failure.network(case.model, 0):
            run()
        assert failure.raised == 1
    else:
        run()
    assert facts(case.model, *inputs) == before
