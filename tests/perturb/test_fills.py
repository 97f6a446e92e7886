"""Fills and perturbed pictures: exact, bit for bit."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

import reference
from segproof.errors import UnknownNameError
from segproof.perturb.fill_context import FillContext
from segproof.perturb.fills import background_of, blend, make_fill, membrane, perturb
from segproof.perturb.records import FILLS
from segproof.perturb.regions import (
    dilate,
    keep_mask,
    soft_keep,
)
from segproof.perturb.seeding import seeded
from toys import clean, some, toy_images, toy_model, toy_truth

SEEDS = st.integers(0, 10_000)
LEVELS = st.floats(0.01, 0.99)


@settings(max_examples=15)
@given(SEEDS, st.sampled_from(sorted(FILLS)))
def test_ends_and_complements_are_bitwise(seed: int, name: str) -> None:
    """M1(nothing) = M2(everything) = f(x); M1(B) = M2(not B); M3 with B = nothing is Keep(R)."""
    model = toy_model(seed % 7).float()
    facts = clean(seed)
    x, fill = facts.image[None], make_fill(name, facts)
    nothing = torch.zeros(1, 16, 16, dtype=torch.bool)
    B, R = some(seed, 16)[None], toy_truth(seed)

    def seen(strategy: str, region: Tensor) -> Tensor:
        with torch.no_grad():
            return model(fill(x, keep_mask(strategy, region, R)))  # type: ignore[no-any-return]

    with torch.no_grad():
        original = model(x)
        assert torch.equal(seen("background_only", nothing), original)
        assert torch.equal(seen("highlighted_only", ~nothing), original)
        assert torch.equal(seen("background_only", B), seen("highlighted_only", ~B))
        assert torch.equal(seen("highlighted_and_target", nothing), model(fill(x, R)))
        assert not torch.equal(seen("background_only", B), original)
        assert not torch.equal(seen("highlighted_only", B), seen("background_only", B))


@settings(max_examples=20)
@given(SEEDS, st.sampled_from([float("nan"), float("inf"), 1e30]))
def test_removed_pixels_cannot_leak(seed: int, poison: float) -> None:
    x, b, keep = toy_images(seed, side=12), toy_images(seed + 1, side=12)[0], some(seed)[None]
    bad = torch.where(keep[:, None], x, poison)
    shown = perturb(bad, keep, b)
    assert torch.equal(shown, perturb(x, keep, b))
    # and what is not used of the baseline stays out as well
    hurt = torch.where(keep, torch.nan, b)
    assert torch.equal(perturb(x, keep, hurt), shown)
    assert torch.equal(shown[:, :, keep[0]], x[:, :, keep[0]])
    assert torch.equal(shown[0][:, ~keep[0]], b[:, ~keep[0]])


def test_fills_by_hand() -> None:
    facts = clean(4)
    nothing = torch.zeros(1, 16, 16, dtype=torch.bool)
    x = facts.image

    def baseline(name: str, of: FillContext = facts) -> Tensor:
        return make_fill(name, of)(x[None], nothing)[0]

    assert torch.equal(baseline("neutral"), facts.neutral.expand_as(x))
    assert torch.equal(baseline("black"), torch.zeros_like(x))
    valid = torch.zeros_like(facts.valid)
    valid[:5] = True
    part = FillContext(x, facts.neutral, facts.background, valid, facts.generator)
    for band in range(3):
        expected = x[band, :5].mean().expand(16, 16)
        torch.testing.assert_close(baseline("image_mean", part)[band], expected)
    noise = baseline("noise", clean(4))
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert 0.2 < noise.std() < 0.4
    assert torch.equal(noise, baseline("noise", clean(4)))


def test_neutral_normalises_to_zero() -> None:
    model = toy_model(0)
    x = toy_images(0)
    with torch.no_grad():
        shown = model(model.neutral.expand_as(x[0])[None])
        assert torch.equal(shown, torch.cat([0 * shown[:, :1], model.net(torch.zeros_like(x))], 1))


def test_background_texture_has_the_backgrounds_statistics() -> None:
    facts = clean(5, side=64)
    nothing = torch.zeros(1, 64, 64, dtype=torch.bool)
    made = make_fill("background_texture", facts)(facts.image[None], nothing)[0]
    source = facts.image[:, facts.background]
    torch.testing.assert_close(made.mean(dim=(1, 2)), source.mean(dim=1), atol=0.02, rtol=0)
    torch.testing.assert_close(made.std(dim=(1, 2)), source.std(dim=1), atol=0.03, rtol=0)
    # pixels of the target give nothing to it
    poisoned = torch.where(facts.background, facts.image, facts.image.mean())
    other = clean(5, side=64)
    again = FillContext(poisoned, other.neutral, other.background, other.valid, other.generator)
    assert torch.equal(make_fill("background_texture", again)(facts.image[None], nothing)[0], made)


@pytest.mark.parametrize("name", sorted(FILLS))
def test_fills_repeat_and_leave_global_state(name: str) -> None:
    nothing = torch.zeros(1, 16, 16, dtype=torch.bool)
    facts, again = clean(6), clean(6)
    untouched, state = facts.image.clone(), torch.get_rng_state()
    first = make_fill(name, facts)(facts.image[None], nothing)
    assert torch.equal(first, make_fill(name, again)(again.image[None], nothing))
    assert torch.equal(facts.image, untouched)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.isfinite(first).all()


def test_noise_keeps_to_each_bands_own_units() -> None:
    facts, nothing = clean(7), torch.zeros(1, 16, 16, dtype=torch.bool)
    x = facts.image * torch.tensor([200.0, 50.0, 3.0]).view(3, 1, 1) - 20
    made = make_fill("noise", dataclasses.replace(facts, image=x))(x[None], nothing)[0]
    for band in range(3):
        low, high = float(x[band].min()), float(x[band].max())
        assert low <= made[band].min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < made[band].max() <= high


def test_background_texture_stays_within_the_pictures_range() -> None:
    """Of black and white pixels the blurred and stretched texture would go beyond both."""
    facts, nothing = clean(8), torch.zeros(1, 16, 16, dtype=torch.bool)
    x = (facts.image > 0.5).float()
    made = make_fill("background_texture", dataclasses.replace(facts, image=x))(x[None], nothing)[0]
    assert (float(made.min()), float(made.max())) == (0, 1)


def test_blur_by_hand() -> None:
    """A point becomes a Gaussian of sigma = 2 px where the longer side has 64."""
    x = torch.zeros(1, 64, 32)
    x[0, 30, 15] = 1.0
    valid = torch.ones(64, 32, dtype=torch.bool)
    of = FillContext(x, torch.zeros(1, 1, 1), valid, valid, seeded("test"))
    made = make_fill("blur", of)(x[None], ~valid[None])[0, 0]
    for step in range(1, 6):
        share = math.exp(-(step**2) / (2 * 2**2))
        assert float(made[30 + step, 15] / made[30, 15]) == pytest.approx(share, rel=1e-5)
        assert float(made[30, 15 - step] / made[30, 15]) == pytest.approx(share, rel=1e-5)
    assert float(made.sum()) == pytest.approx(1, rel=1e-5)


def test_background_keeps_clear_of_roofs() -> None:
    roofs, valid = torch.zeros(24, 24, dtype=torch.bool), torch.ones(24, 24, dtype=torch.bool)
    roofs[10, 10], valid[0] = True, False
    expected = valid.clone()
    expected[6:15, 6:15] = False
    assert torch.equal(background_of(roofs, torch.zeros(24, 24), valid), expected)


def test_scarce_background_is_the_least_likely_twentieth() -> None:
    roofs, valid = torch.ones(20, 20, dtype=torch.bool), torch.ones(20, 20, dtype=torch.bool)
    valid[0] = False  # the least likely of all
    probability = torch.arange(400.0).view(20, 20) / 400
    expected = torch.zeros_like(valid)
    expected[1, :19] = True  # 380 valid pixels
    assert torch.equal(background_of(roofs, probability, valid), expected)


def test_unknown_fill_names_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="neutral"):
        make_fill("neutrel", clean(0))


def test_soft_masks_by_hand() -> None:
    S = torch.tensor([[0.25, 1.0, 0.0, 0.5]])
    R = torch.tensor([[True, False, False, True]])
    assert soft_keep("background_only", S, R).tolist() == [[0.75, 0.0, 1.0, 0.5]]
    assert soft_keep("highlighted_only", S, R).tolist() == [[0.25, 1.0, 0.0, 0.5]]
    assert soft_keep("highlighted_and_target", S, R).tolist() == [[1.0, 1.0, 0.0, 1.0]]
    asked: list[Tensor] = []

    def fill(images: Tensor, keep: Tensor) -> Tensor:
        asked.append(keep)
        return torch.where(keep[:, None], images, torch.tensor(8.0))

    x = torch.tensor([[[[4.0, math.nan, math.nan, 4.0]]]])
    shown = blend(fill, x, torch.stack([1 - S, S]))
    # a pixel that goes as a whole cannot leak, one that stays is bitwise itself
    assert shown[0, 0, 0, 0] == 0.75 * 4 + 0.25 * 8
    assert shown[0, 0, 0, 1] == 8
    assert math.isnan(float(shown[0, 0, 0, 2]))
    assert shown[1, 0, 0].tolist()[2:] == [8, 6]
    assert math.isnan(float(shown[1, 0, 0, 1]))
    assert not bool(asked[0].any())
    stays = torch.full((1, 1, 4), 1.0)
    assert torch.equal(blend(lambda x, keep: math.nan * x, x[..., :1], stays[..., :1]), x[..., :1])


def test_membrane_of_simple_pictures() -> None:
    known = some(3, 24)
    known[4:15, 6:18] = False
    flat = torch.full((2, 24, 24), 0.3, dtype=torch.float64)
    assert (membrane(torch.where(known, flat, torch.nan), known) - flat).abs().max() < 1e-12
    slope = torch.arange(24.0).double().expand(1, 24, 24) / 24
    found = membrane(torch.where(known, slope, torch.nan), known)
    assert torch.equal(found[:, known], slope[:, known])
    hole = ~known
    assert (found - slope)[:, hole].abs().max() < 0.25  # 12 px wide: half of it would be a step
    one = torch.zeros(24, 24, dtype=torch.bool)
    one[20, 3] = True
    lone = membrane(slope, one)
    assert (lone - slope[0, 20, 3]).abs().max() < 1e-12


@settings(max_examples=40)
@given(SEEDS, st.integers(5, 33), st.integers(5, 33))
def test_membrane_stays_between_what_is_known(seed: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, height, width, generator=generator, dtype=torch.float64)
    known = torch.rand(height, width, generator=generator) < 0.2
    known[seed % height, seed % width] = True
    found = membrane(torch.where(known, image, torch.nan), known)
    assert torch.equal(found[:, known], image[:, known])
    for band in range(3):
        low, high = image[band, known].min(), image[band, known].max()
        assert found[band].min() >= low - 1e-12
        assert found[band].max() <= high + 1e-12


@pytest.mark.parametrize("name", ["inpaint", "borrowed"])
def test_seamless_fills_have_no_outline(name: str) -> None:
    """Across the edge of what is removed the picture steps no more than inside of it."""
    given_clean = clean(3, 48)
    # a picture with a slope, that plain ground of one shade would meet with a step
    slope = torch.linspace(0, 0.8, 48, dtype=torch.float64).expand(3, 48, 48)
    image = slope + 0.02 * given_clean.image
    ground = torch.zeros(48, 48, dtype=torch.bool)
    ground[:, :12] = True
    tile = FillContext(image, given_clean.neutral, ground, torch.ones_like(ground), seeded("x"))
    keep = torch.ones(1, 48, 48, dtype=torch.bool)
    keep[:, 14:34, 20:44] = False
    found = make_fill(name, tile)(image[None], keep)[0]
    edge = dilate(~keep[0], 1) & keep[0]
    inside = ~keep[0] & dilate(keep[0], 1)
    step = (found[:, edge].mean() - found[:, inside].mean()).abs()
    plain = make_fill("background_texture", tile)(image[None], keep)[0]
    assert (plain[:, edge].mean() - plain[:, inside].mean()).abs() > 0.3
    assert step < 0.06
    assert found[:, ~keep[0]].std() > 0.005  # and it is no plain slope


def test_linear_is_the_imputation_with_one_noise() -> None:
    tile = clean(3, 16)
    image = tile.image.double()
    tile = replace(tile, image=image, neutral=tile.neutral.double())
    keep = torch.ones(2, 16, 16, dtype=torch.bool)
    keep[0, 3:9, 4:12] = False
    keep[1, 5:14, 2:10] = False
    found = make_fill("linear", tile)(image[None], keep)
    low, high = (f(image, dim=(1, 2))[:, None, None] for f in (torch.amin, torch.amax))
    noise = []
    for n in range(2):
        expected = reference.linear_imputation(image.numpy(), keep[n].numpy())
        rest = (found[n] - torch.from_numpy(expected)).numpy()
        assert np.abs(rest[:, keep[n].numpy()]).max() == 0
        inside = (found[n] > low) & (found[n] < high) & ~keep[n]
        assert np.abs(rest[inside.numpy()]).max() < 0.06
        noise.append(torch.where(inside, torch.from_numpy(rest), torch.nan))
    both = ~torch.isnan(noise[0]) & ~torch.isnan(noise[1])
    assert both.sum() > 30
    assert (noise[0] - noise[1])[both].abs().max() < 1e-6
    assert 0.005 < noise[0][both].std() < 0.02


def test_borrowed_ground_is_the_donors() -> None:
    tile = clean(3, 16)
    patch = torch.arange(12.0, dtype=torch.float64).view(1, 3, 4).expand(3, 3, 4) / 12
    tile = replace(tile, donor=patch)
    nothing = torch.zeros(1, 16, 16, dtype=torch.bool)
    found = make_fill("borrowed", tile)(tile.image[None], nothing)[0]
    low = tile.image.amin(dim=(1, 2))[:, None, None]
    high = tile.image.amax(dim=(1, 2))[:, None, None]
    assert torch.equal(found[:, :3, :4], patch.clamp(low, high))
    assert torch.equal(found[:, 3:6, 4:8], patch.flip((1, 2)).clamp(low, high))
    assert torch.equal(found[:, 12:15, 8:12], patch.clamp(low, high))
