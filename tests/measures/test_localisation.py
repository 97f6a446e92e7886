"""Where heat lies: by hand, by the literal formulas and by peers."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn.metrics import precision_score

import reference
from heatmap_cases import SEEDS, explained, given_case, masks_of, random_case
from segproof.errors import DataError
from segproof.measures import localisation, robustness
from segproof.measures.case import Undefined
from segproof.measures.map_records import MAP_MEASURES

PLACES = (
    "pointing_game",
    "relevance_mass",
    "relevance_rank",
    "ring_share",
    "gini",
    "effective_area",
)
# measures that a map without heat has no number of
WHOLE = tuple(name for name in MAP_MEASURES if name in (*localisation.__all__, *robustness.__all__))

HAND = torch.tensor([[0.0, 0.5, 0.0], [0.25, 1.0, 0.0], [0.0, 0.0, 0.25]])
LEFT = torch.tensor([[True, False, False], [True, False, False], [False, False, False]])


def test_a_map_by_hand() -> None:
    """Heat .5 .25 1 .25 = 2; R is two pixels on the left with .25 in it."""
    case = given_case(HAND, LEFT)
    assert localisation.pointing_game(case) == 0
    assert localisation.pointing_game(case, tolerance=1) == 1
    assert localisation.relevance_mass(case) == 0.125
    assert localisation.relevance_rank(case) == 0  # the two highest are 1 and .5
    # 1 - 2 (.25/2 (9-6+.5)/9 + .25/2 (9-7+.5)/9 + .5/2 (9-8+.5)/9 + 1/2 (9-9+.5)/9)
    assert localisation.gini(case) == pytest.approx(1 - 2 * (0.4375 + 0.3125 + 0.375 + 0.25) / 9)
    # shares 1/2, 1/4, 1/8, 1/8: entropy 1.75 bits
    assert localisation.effective_area(case) == pytest.approx(2**1.75 / 9)
    # 1 px away .5, 1, 0; sqrt(2) and twice 2 px away 0; sqrt(5) away the corner, .25
    profile = localisation.ring_profile(case, width=1)
    assert [far for far, _ in profile] == [-0.5, 0.5, 1.5, 2.5]
    assert [mean for _, mean in profile] == pytest.approx([0.125, 0.5, 0.0, 0.25])
    assert localisation.ring_share(case, width=1) == 0.75
    assert localisation.ring_share(case) == 0.875


def test_one_pixel_and_an_even_map() -> None:
    one = torch.zeros(4, 5)
    one[2, 3] = 0.3
    here = one > 0
    assert localisation.gini(given_case(one, here)) == pytest.approx(1 - 1 / 20)
    assert localisation.effective_area(given_case(one, here)) == pytest.approx(1 / 20)
    assert localisation.pointing_game(given_case(one, here)) == 1
    even = torch.full((4, 5), 0.3)
    assert localisation.gini(given_case(even, here)) == pytest.approx(0, abs=1e-12)
    assert localisation.effective_area(given_case(even, here)) == pytest.approx(1)
    assert localisation.relevance_mass(given_case(even, here)) == pytest.approx(1 / 20)


@settings(max_examples=30)
@given(SEEDS)
def test_literal_formulas(seed: int) -> None:
    case = random_case(seed)
    S, R, V = masks_of(case)
    expected = {
        "relevance_mass": reference.relevance_mass(S, R, V),
        "relevance_rank": reference.relevance_rank(S, R, V),
        "pointing_game": reference.pointing_game(S, R, V),
        "ring_share": reference.ring_share(S, R, V, 16),
        "gini": reference.gini(S, V),
        "effective_area": reference.effective_area(S, V),
    }
    for name, value in expected.items():
        assert MAP_MEASURES[name].function(case) == pytest.approx(value, abs=1e-12), name
    wide = localisation.pointing_game(case, tolerance=2)
    assert wide == reference.pointing_game(S, R, V, tolerance=2)
    for width in (1.0, 2.5):
        points = np.array(reference.ring_profile(S, R, V, width))
        np.testing.assert_allclose(localisation.ring_profile(case, width=width), points, atol=1e-12)
        near = reference.ring_share(S, R, V, width)
        assert localisation.ring_share(case, width=width) == pytest.approx(near, abs=1e-12)


@settings(max_examples=20)
@given(SEEDS)
def test_peers(seed: int) -> None:
    """scikit-learn's precision of the highest |R| pixels, scipy's entropy and correlations."""
    case = random_case(seed)
    S, R, V = masks_of(case)
    level = np.sort(S[V])[-int(R.sum())]
    peer = precision_score(R[V], S[V] >= level)
    assert localisation.relevance_rank(case) == pytest.approx(peer, abs=1e-12)
    area = math.exp(stats.entropy(S[V])) / V.sum()
    assert localisation.effective_area(case) == pytest.approx(area, abs=1e-12)
    other = random_case(seed + 1, ties=True).heatmap.double()
    tied = random_case(seed, ties=True).heatmap.double()
    for one, two in ((torch.from_numpy(S), other), (tied, other)):
        a, b = one.flatten(), two.flatten()
        rho = stats.spearmanr(a.numpy(), b.numpy()).statistic
        assert robustness._spearman(a, b) == pytest.approx(rho, abs=1e-12)
        r = stats.pearsonr(a.numpy(), b.numpy()).statistic
        assert robustness._pearson(a, b) == pytest.approx(r, abs=1e-12)
        assert r == pytest.approx(reference.pearson(a.numpy(), b.numpy()), abs=1e-12)
        np.testing.assert_array_equal(robustness._ranks(a).numpy(), stats.rankdata(a.numpy()))


@settings(max_examples=20)
@given(SEEDS, st.sampled_from(PLACES), st.sampled_from([0.5, 0.125]))
def test_the_scale_of_a_map_does_not_matter(seed: int, name: str, scale: float) -> None:
    case = random_case(seed, ties=True)
    lower = replace(case, heatmap=case.heatmap * scale)
    measure = MAP_MEASURES[name].function
    assert measure(lower) == pytest.approx(measure(case), abs=1e-12)


@settings(max_examples=20)
@given(SEEDS, st.sampled_from(PLACES))
def test_pixels_that_are_not_valid_count_nowhere(seed: int, name: str) -> None:
    case = random_case(seed)
    hidden = ~case.seen.bound.valid[0]
    bright = replace(case, heatmap=case.heatmap.masked_fill(hidden, 1.0))
    assert MAP_MEASURES[name].function(bright) == MAP_MEASURES[name].function(case)


@pytest.mark.parametrize("name", ["gini", "effective_area"])
def test_shape_does_not_see_places(name: str) -> None:
    case = given_case(HAND, LEFT)
    moved = given_case(HAND.flatten()[torch.randperm(9)].view(3, 3), LEFT)
    assert MAP_MEASURES[name].function(moved) == pytest.approx(
        MAP_MEASURES[name].function(case), abs=1e-12
    )


def test_ties_are_drawn_and_the_same_for_one_seed() -> None:
    """On an even map the highest pixel is any: it hits R as often as R is large."""
    region = torch.zeros(6, 10, dtype=torch.bool)
    region[:, :3] = True
    cases = [given_case(torch.ones(6, 10), region, seed=seed) for seed in range(300)]
    hits = [localisation.pointing_game(case) for case in cases]
    assert 0.2 < sum(hits) / 300 < 0.4
    assert hits == [localisation.pointing_game(case) for case in cases]
    shares = [localisation.relevance_rank(case) for case in cases]
    assert len(set(shares)) > 3
    assert 0.27 < sum(shares) / 300 < 0.33
    assert shares == [localisation.relevance_rank(case) for case in cases]


def test_a_planted_map_beats_one_beside_it() -> None:
    region = torch.zeros(24, 24, dtype=torch.bool)
    region[4:10, 4:10] = True
    good = torch.where(region, 1.0, 0.1)
    wrong = good.roll((9, 9), dims=(0, 1))
    for name in ("pointing_game", "relevance_mass", "relevance_rank"):
        function = MAP_MEASURES[name].function
        assert function(given_case(good, region)) > function(given_case(wrong, region)), name
    profile = dict(localisation.ring_profile(given_case(good, region), width=2))
    assert all(
        mean == pytest.approx(1.0 if far < 0 else 0.1, abs=1e-6) for far, mean in profile.items()
    )


def test_what_has_no_number() -> None:
    nothing = torch.zeros(3, 3)
    for name in WHOLE:
        with pytest.raises(Undefined, match=r"^flat map$"):
            MAP_MEASURES[name].function(given_case(nothing, LEFT, again=lambda seen, model: HAND))
    empty = torch.zeros(3, 3, dtype=torch.bool)
    for name in ("pointing_game", "relevance_mass", "relevance_rank", "ring_share", "infidelity"):
        with pytest.raises(Undefined, match=r"^no region$"):
            MAP_MEASURES[name].function(given_case(HAND, empty))
    assert localisation.gini(given_case(HAND, empty)) == localisation.gini(given_case(HAND, LEFT))
    for measure in (localisation.ring_share, localisation.ring_profile):
        with pytest.raises(Undefined, match=r"^no surroundings$"):
            measure(given_case(HAND, ~empty))
    lonely = LEFT.clone()
    lonely[2, 2] = True
    with pytest.raises(Undefined, match=r"^no surroundings$"):
        localisation.ring_share(given_case(HAND, LEFT, valid=lonely), width=2)


def test_a_map_of_another_size_is_refused() -> None:
    case = given_case(HAND, LEFT)
    case = replace(case, heatmap=torch.ones(3, 4))
    with pytest.raises(DataError, match=re.escape("(3, 4); expected (3, 3)")):
        localisation.gini(case)


def test_records_are_those_of_the_module() -> None:
    assert set(localisation.__all__) == {*PLACES, "ring_profile"}
    assert set(PLACES) < set(MAP_MEASURES)


@pytest.mark.parametrize("name", PLACES)
def test_places_do_not_depend_on_chance(name: str) -> None:
    values = [MAP_MEASURES[name].function(explained("hires_cam", seed=1)) for _ in range(2)]
    assert values[0] == values[1]
    assert MAP_MEASURES[name].low <= values[0] <= MAP_MEASURES[name].high
