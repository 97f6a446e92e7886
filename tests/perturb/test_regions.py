"""Regions of a heatmap: exact, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from skimage.filters import threshold_otsu
from torch import Tensor

import reference
from segproof.errors import SegproofError, UnknownNameError
from segproof.perturb.fills import blend, make_fill, perturb
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
from toys import clean, some, toy_images

SEEDS = st.integers(0, 10_000)
LEVELS = st.floats(0.01, 0.99)


def heat(seed: int, side: int = 12, steps: int = 0) -> Tensor:
    """A random heatmap [side, side] in [0, 1]; with `steps`, of few values and many ties."""
    drawn = torch.rand(side, side, generator=torch.Generator().manual_seed(seed))
    return (drawn * steps).round() / steps if steps else drawn


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
