"""Regions and perturbed pictures: exact, bit for bit."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from skimage.filters import threshold_otsu
from torch import Tensor

import reference
from segproof.errors import SegproofError, UnknownNameError
from segproof.perturb.controls import random_blobs
from segproof.perturb.fill_context import FillContext
from segproof.perturb.fills import background_of, blend, make_fill, membrane, perturb
from segproof.perturb.records import FILLS
from segproof.perturb.regions import (
    STRATEGIES,
    binarise,
    dilate,
    keep_mask,
    largest_square,
    otsu_threshold,
    rank_pixels,
    rough_noise,
    roughen,
    soft_keep,
)
from segproof.perturb.seeding import seeded
from toys import toy_images, toy_model, toy_truth

SEEDS = st.integers(0, 10_000)
LEVELS = st.floats(0.01, 0.99)


def heat(seed: int, side: int = 12, steps: int = 0) -> Tensor:
    """A random heatmap [side, side] in [0, 1]; with `steps`, of few values and many ties."""
    drawn = torch.rand(side, side, generator=torch.Generator().manual_seed(seed))
    return (drawn * steps).round() / steps if steps else drawn


def some(seed: int, side: int = 12) -> Tensor:
    """A random bool mask, neither full nor empty."""
    mask = torch.rand(side, side, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask[0, 0], mask[0, 1] = True, False
    return mask


def clean(seed: int, side: int = 16) -> FillContext:
    truth = toy_truth(seed, side=side)[0]
    return FillContext(
        image=toy_images(seed, side=side)[0].float(),
        neutral=torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1),
        background=~truth,
        valid=torch.ones(side, side, dtype=torch.bool),
        generator=seeded("test", seed),
    )


# --- binarise -----------------------------------------------------------------------------------
def test_threshold_is_strict() -> None:
    S = torch.tensor([[0.25, 0.5], [0.75, 1.0]])
    assert torch.equal(binarise(S, threshold=0.5), torch.tensor([[False, False], [True, True]]))
    valid = torch.tensor([[True, True], [True, False]])
    expected = torch.tensor([[False, False], [True, False]])
    assert torch.equal(binarise(S, threshold=0.5, valid=valid), expected)


def test_area_takes_the_highest_first() -> None:
    S = torch.tensor([[0.1, 0.9], [0.4, 0.8]])
    assert torch.equal(binarise(S, area=0.25), torch.tensor([[False, True], [False, False]]))
    assert torch.equal(binarise(S, area=0.5), torch.tensor([[False, True], [False, True]]))
    valid = torch.tensor([[True, False], [True, True]])
    # round(0.5 * 3) = 2, the invalid 0.9 is never taken
    assert torch.equal(
        binarise(S, area=0.5, valid=valid), torch.tensor([[False, False], [True, True]])
    )


@settings(max_examples=60)
@given(SEEDS, LEVELS, st.sampled_from([0, 1, 3]), st.booleans())
def test_area_has_exactly_round_qv_pixels(seed: int, q: float, steps: int, masked: bool) -> None:
    S = heat(seed, steps=steps)
    valid = some(seed) if masked else torch.ones_like(S, dtype=torch.bool)
    B = binarise(S, area=q, valid=valid, seed=seed)
    assert int(B.sum()) == reference.area_count(q, valid.numpy())
    assert not (B & ~valid).any()
    inside, outside = S[B], S[valid & ~B]
    if inside.numel() and outside.numel():
        assert inside.min() >= outside.max()


@settings(max_examples=30)
@given(SEEDS, LEVELS, LEVELS, st.sampled_from(["threshold", "area"]))
def test_regions_are_nested(seed: int, one: float, other: float, way: str) -> None:
    S = heat(seed, steps=4 if seed % 2 else 0)
    low, high = sorted((one, other))
    if way == "threshold":
        small, large = binarise(S, threshold=high), binarise(S, threshold=low)
        V = np.ones(S.shape, dtype=np.bool_)
        expected = reference.binarise_threshold(S.double().numpy(), high, V)
        assert np.array_equal(small.numpy(), expected)
    else:
        small, large = binarise(S, area=low), binarise(S, area=high)
    assert not (small & ~large).any()


def test_ties_depend_on_the_seed_alone() -> None:
    S = torch.ones(10, 10)
    first = binarise(S, area=0.3, seed=1)
    assert torch.equal(first, binarise(S, area=0.3, seed=1))
    assert not torch.equal(first, binarise(S, area=0.3, seed=2))
    # a flat map's region is scattered, not the first 30 pixels
    assert first.flatten()[30:].any()


@given(
    st.lists(
        st.one_of(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, 1e-45, -1e-45]),
            st.floats(-2, 2, width=16),
        ),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    st.integers(0, 9),
)
def test_ranks_are_those_of_a_stable_sort(
    values: list[float], dtype: torch.dtype, seed: int
) -> None:
    S = torch.tensor(values).to(dtype)[None]
    shuffled = torch.randperm(S.numel(), generator=seeded("ties", seed)).tolist()
    falling = sorted(shuffled, key=lambda place: -float(S[0, place]))  # Python's sort is stable
    ranks = rank_pixels(S, None, seeded("ties", seed))[0]
    assert [int(ranks[place]) for place in falling] == list(range(S.numel()))


def test_ranks_made_once_give_the_same_regions() -> None:
    S, valid = heat(3, steps=5), some(3)
    ranks = rank_pixels(S, valid, seeded("ties", 7))
    assert sorted(ranks.flatten().tolist()) == list(range(S.numel()))
    for q in (0.05, 0.3, 0.77):
        fresh = binarise(S, area=q, valid=valid, seed=7)
        assert fresh.any()
        assert torch.equal(fresh, binarise(S, area=q, valid=valid, ranks=ranks))


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("way", ["threshold", "area"])
def test_levels_outside_are_refused(way: str, level: float) -> None:
    with pytest.raises(SegproofError, match="between 0 and 1"):
        binarise(
            heat(0),
            threshold=level if way == "threshold" else None,
            area=None if way == "threshold" else level,
        )


def test_exactly_one_way() -> None:
    with pytest.raises(SegproofError, match="0 ways"):
        binarise(heat(0))
    with pytest.raises(SegproofError, match="2 ways"):
        binarise(heat(0), threshold=0.5, area=0.5)


# --- strategies ---------------------------------------------------------------------------------
@settings(max_examples=20)
@given(SEEDS, st.sampled_from(sorted(STRATEGIES)))
def test_strategies_are_the_formulas(seed: int, strategy: str) -> None:
    x, b = toy_images(seed, side=12)[0], toy_images(seed + 1, side=12)[0]
    B, R = some(seed), some(seed + 1)
    shown = perturb(x[None], keep_mask(strategy, B[None], R[None]), b)[0]
    expected = reference.shown(strategy, B.numpy(), R.numpy(), x.numpy(), b.numpy())
    assert np.array_equal(shown.numpy(), expected)
    assert not torch.equal(shown, x)
    assert not torch.equal(shown, b)


def test_strategy_names_are_these() -> None:
    assert list(STRATEGIES) == ["background_only", "highlighted_only", "highlighted_and_target"]
    with pytest.raises(UnknownNameError, match="highlighted_only"):
        keep_mask("highlight_only", some(0), some(1))


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


# --- fills --------------------------------------------------------------------------------------
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


# --- helpers ------------------------------------------------------------------------------------
def test_dilate_by_hand() -> None:
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[2, 3] = True
    grown = dilate(mask, 1)
    expected = torch.zeros_like(mask)
    expected[1:4, 2:5] = True
    assert torch.equal(grown, expected)
    assert torch.equal(dilate(mask, 0), mask)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(0, 12))
def test_roughened_regions_only_grow_and_never_farther_than_asked(seed: int, pixels: int) -> None:
    region = torch.zeros(32, 40, dtype=torch.bool)
    top, left = seed % 20, seed % 27
    region[top : top + 9, left : left + 11] = True
    noise = rough_noise((32, 40), pixels, seeded("rough", seed))
    assert float(noise.min()) == 0
    assert float(noise.max()) == pixels
    made = roughen(region, noise)
    assert bool((made | ~region).all())
    rows, columns = torch.nonzero(region, as_tuple=True)
    for i, j in torch.nonzero(made & ~region).tolist():
        nearest = ((rows - i) ** 2 + (columns - j) ** 2).min().item()
        assert nearest <= float(noise[i, j]) ** 2 + 1e-6
    for i, j in torch.nonzero(~made)[::7].tolist():
        nearest = ((rows - i) ** 2 + (columns - j) ** 2).min().item()
        assert nearest > float(noise[i, j]) ** 2 - 1e-3
    if not pixels:
        assert torch.equal(made, region)
    inner = region.clone()
    inner[top : top + 4] = False
    assert bool((made | ~roughen(inner, noise)).all())


def test_rough_outlines_are_seeded_uneven_and_need_a_region() -> None:
    noise = rough_noise((64, 64), 8, seeded("a", 0))
    assert torch.equal(noise, rough_noise((64, 64), 8, seeded("a", 0)))
    assert not torch.equal(noise, rough_noise((64, 64), 8, seeded("a", 1)))
    # every distance as often, neighbours alike
    assert float((noise < 2).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float((noise[1:] - noise[:-1]).abs().mean()) < 0.2 * float(noise.std())
    region = torch.zeros(64, 64, dtype=torch.bool)
    assert not bool(roughen(region, noise).any())
    region[20:44, 20:44] = True
    reach = (roughen(region, noise).sum(dim=0) - 24)[20:44]  # above and below, column by column
    assert float(reach.float().std()) > 0
    assert int(region.sum()) < int(roughen(region, noise).sum()) < int(dilate(region, 8).sum())


@given(SEEDS)
def test_soft_masks_of_zeros_and_ones_are_regions(seed: int) -> None:
    region, target = some(seed), some(seed + 1)
    given_ = clean(seed, 12)
    fill = make_fill("noise", given_)
    image = given_.image[None]
    for strategy in STRATEGIES:
        soft = soft_keep(strategy, region.float(), target)
        keep = keep_mask(strategy, region, target)
        assert torch.equal(soft, keep.float())
        assert torch.equal(blend(fill, image, soft[None]), fill(image, keep[None]))
    with pytest.raises(UnknownNameError, match="background_only"):
        soft_keep("background_onyl", region.float(), target)


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


def test_random_blobs_are_smooth_and_seeded() -> None:
    one = random_blobs((48, 48), seeded("blob", 0))
    assert torch.equal(one, random_blobs((48, 48), seeded("blob", 0)))
    assert not torch.equal(one, random_blobs((48, 48), seeded("blob", 1)))
    assert (float(one.min()), float(one.max())) == (0, 1)
    # sigma = 2 px: neighbours correlate by exp(-1/16), so differ by 0.28 deviations
    assert 0.2 * one.std() < one.diff(dim=0).abs().mean() < 0.4 * one.std()


# --- by mass and by Otsu --------------------------------------------------------------------------
def test_mass_by_hand() -> None:
    """4 + 3 + 2 + 1: half of it is 5, which needs the two highest; 0.7 is 7, exactly two."""
    S = torch.tensor([[0.1, 0.4], [0.3, 0.2]])
    assert binarise(S, mass=0.39).tolist() == [[False, True], [False, False]]
    assert binarise(S, mass=0.5).tolist() == [[False, True], [True, False]]
    assert binarise(S, mass=0.7).tolist() == [[False, True], [True, False]]
    assert binarise(S, mass=0.71).tolist() == [[False, True], [True, True]]
    valid = torch.tensor([[True, False], [True, True]])
    assert binarise(S, mass=0.5, valid=valid).tolist() == [[False, False], [True, False]]
    assert not binarise(torch.zeros(3, 3), mass=0.5).any()


@settings(max_examples=60)
@given(SEEDS, LEVELS, st.integers(0, 6))
def test_mass_is_the_smallest_set(seed: int, level: float, steps: int) -> None:
    S, valid = heat(seed, steps=steps), some(seed + 1)
    region = binarise(S, mass=level, valid=valid, seed=seed)
    total = float(S[valid].double().sum())
    if not total:
        assert not region.any()
        return
    held = float(S[region].double().sum())
    assert not (region & ~valid).any()
    assert held >= level * total * (1 - 1e-9)
    assert held - float(S[region].min()) < level * total * (1 + 1e-9)
    rest = valid & ~region
    assert not rest.any() or S[region].min() >= S[rest].max()


def test_otsu_by_hand() -> None:
    """Two heaps, at 0.15 and at 0.85: every edge between them parts them, the first is taken."""
    S = torch.tensor([[0.15, 0.15, 0.85], [0.15, 0.85, 0.85]])
    assert otsu_threshold(S, bins=10) == pytest.approx(0.2)
    assert torch.equal(binarise(S, otsu=True), S > 0.5)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    assert not binarise(S, otsu=True, valid=valid & (S > 2)).any()


@settings(max_examples=60)
@given(SEEDS)
def test_otsu_is_the_literal_maximum(seed: int) -> None:
    S, valid = heat(seed) ** 3, some(seed + 1)
    values = S[valid].double().numpy()
    spread = []
    for edge in range(1, 257):
        above, below = values[values > edge / 256], values[values <= edge / 256]
        if len(above) and len(below):
            spread.append(len(above) * len(below) * (above.mean() - below.mean()) ** 2)
        else:
            spread.append(0.0)
    found = otsu_threshold(S, valid)
    assert spread[round(found * 256) - 1] == pytest.approx(max(spread), rel=1e-12)
    # scikit-image's bins span the values, ours [0, 1]: nearly the same parting
    skimage: Any = threshold_otsu
    theirs = float(skimage(values, nbins=2048))
    assert abs(theirs - found) < 0.1
    above = values[values > theirs]
    parting = len(above) * (len(values) - len(above))
    parting *= (above.mean() - values[values <= theirs].mean()) ** 2
    assert parting <= max(spread) * 1.02


# --- fills that meet what is kept -----------------------------------------------------------------
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


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 9), st.integers(1, 12))
def test_largest_square(seed: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(height, width, generator=generator) < 0.8
    if not mask.any():
        return
    rows, columns = largest_square(mask)
    square = mask[rows, columns]
    assert square.shape[0] == square.shape[1] >= 1
    assert square.all()
    # squares have a middle pixel: of odd sides none is larger
    side = square.shape[0] + 2
    for top in range(height - side + 1):
        for left in range(width - side + 1):
            assert not mask[top : top + side, left : left + side].all()


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
