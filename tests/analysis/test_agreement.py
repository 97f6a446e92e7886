"""How firm the order is: mean ranks, agreement and precision, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from rows import make_rows
from segproof.analysis import (
    HEADLINE_MEASURES,
    Analysis,
    statistics as stats,
)
from toy_rows import SIX, one, only, ranked_rows


@pytest.fixture(scope="module")
def rows() -> Any:
    return make_rows()


@pytest.fixture(scope="module")
def made(rows: Any) -> Any:
    return Analysis(rows)


def test_fills_that_agree(rows: Any) -> None:
    table = Analysis(make_rows(fills=("background_texture", "black", "neutral"))).fill_agreement
    assert set(zip(table["fill_a"], table["fill_b"], strict=True)) == {
        ("background_texture", "black")
    }
    assert (table["tau"] > 0.7).all()
    assert Analysis(rows).fill_agreement.empty  # one of its two fills is not valid


def test_mean_ranks_by_hand() -> None:
    found = only(Analysis(ranked_rows(SIX)).mean_ranks, measure="iou_drop")
    assert found["method"].tolist() == ["a", "b", "c"]
    # a: (5 * 1 + 3) / 6, b: (5 * 2 + 1.5) / 6, c: (5 * 3 + 1.5) / 6
    assert found["mean_rank"].tolist() == pytest.approx([8 / 6, 11.5 / 6, 16.5 / 6])
    assert (found["n"] == 6).all()
    assert (found["candidates"] == 3).all()
    # 2.343 sqrt(12 / 36) = 1.353: c - a = 1.417 is more.
    assert found["critical_difference"].iloc[0] == pytest.approx(1.353, abs=1e-3)
    assert found["groups"].tolist() == ["a", "a b", "b"]


def test_mean_ranks_leave_out_a_method_that_failed_nearly_everywhere() -> None:
    rows = ranked_rows(SIX | {"d": [0.9, 0.9, np.nan, np.nan, np.nan, np.nan]})
    found: Any = only(Analysis(rows).mean_ranks, measure="iou_drop").set_index("method")
    assert np.isnan(found.loc["d", "mean_rank"])
    assert found.loc["d", "groups"] == ""
    assert (found["n"] == 6).all()
    assert (found["candidates"] == 3).all()
    assert found.loc["a", "mean_rank"] == pytest.approx(8 / 6)


def test_mean_ranks_know_the_direction_and_the_controls(made: Any) -> None:
    for measure in HEADLINE_MEASURES:
        part = only(made.mean_ranks, measure=measure)
        assert set(part["method"].iloc[:2]) == {"score_cam", "xgrad_cam"}
        assert part["groups"].iloc[0].split()[0] == "a"
        assert not part["method"].str.startswith("control:").any()
        assert (part["n"] == 18).all()  # two tiles lack Grad-CAM++ at decoder:1
    eigen = one(made.mean_ranks, measure="iou_drop", layer="decoder:1", method="eigen_cam")
    assert not eigen["beats_random"]


def test_mean_ranks_under_an_invalid_fill_rank_only_in_paper() -> None:
    rows = make_rows(6, fills=("neutral",))
    strict, paper = Analysis(rows).mean_ranks, Analysis(rows, "paper").mean_ranks
    assert not only(strict, measure="iou_drop")["ranked"].any()
    assert not only(strict, measure="contrast")["ranked"].any()
    assert only(strict, measure="M2")["ranked"].all()
    assert paper["ranked"].all()
    assert only(paper, measure="M1")["struck"].all()


def test_agreement_by_hand() -> None:
    rows = ranked_rows(SIX)
    reverse = ranked_rows({"a": SIX["c"], "b": SIX["b"], "c": SIX["a"]}).assign(fill="blur")
    same = rows.assign(level=0.3)
    other = reverse.assign(level=0.3)
    found: Any = Analysis(pd.concat([rows, same, reverse, other])).agreement.set_index("factor")
    assert found.loc["fills", "w"] == 0  # the reverse order
    assert found.loc["fills", "compared"] == "black, blur"
    assert found.loc["areas", "w"] == 1
    assert found.loc["areas", ["rankings", "candidates"]].tolist() == [2, 3]
    # Rank sums over the images, from the top: a 16.5, b 11.5, c 8 at blur (the headline fill).
    S = 4.5**2 + 0.5**2 + 4**2
    assert found.loc["images", "w"] == pytest.approx(12 * S / (36 * 24 - 6 * 6))
    assert found.loc["images", "p"] < 0.05
    assert found.loc[["fills", "areas", "measures"], "p"].isna().all()


def test_rankings_that_share_their_images_have_no_p() -> None:
    found: Any = Analysis(make_rows(8, areas=(), controls=False)).agreement.set_index("factor")
    assert found.loc["thresholds", "rankings"] == 5
    assert np.isnan(found.loc["thresholds", "p"])
    assert found.loc["images", "p"] < 0.05


def test_agreement_turns_measures_that_are_better_lower(made: Any) -> None:
    found: Any = made.agreement.set_index("factor")
    assert found.loc["measures", "w"] > 0.95  # M1 is better when lower
    assert found.loc["measures", "compared"] == "M1, M2, M3, iou_drop"
    tau = one(made.measure_agreement, measure_a="M1", measure_b="M2")
    assert tau["tau"] > 0.9
    assert len(made.measure_agreement) == 10
    assert np.isnan(found.loc["fills", "w"])  # one valid fill has nothing to agree with
    assert found.loc["fills", "rankings"] == 1


def test_agreement_without_a_valid_fill_leaves_struck_measures_out() -> None:
    rows = make_rows(6, fills=("neutral",))
    found: Any = Analysis(rows).agreement.set_index("factor")
    assert found.loc["measures", "compared"] == "M2, M3"
    assert (found.loc[["fills", "areas", "images"], "measure"] == "M3").all()
    pairs = Analysis(rows).measure_agreement
    assert list(zip(pairs["measure_a"], pairs["measure_b"], strict=True)) == [("M2", "M3")]
    assert len(Analysis(rows, "paper").measure_agreement) == 10


def test_a_candidate_missing_under_one_fill_does_not_cost_the_fill() -> None:
    rows = ranked_rows(SIX)
    other = rows.assign(fill="blur")
    other.loc[other["method"] == "c", ["iou_delta", "status"]] = [np.nan, "all_zero"]
    found: Any = Analysis(pd.concat([rows, other])).agreement.set_index("factor")
    assert found.loc["fills", ["rankings", "candidates"]].tolist() == [2, 2]
    assert found.loc["fills", "w"] == 1


def test_precision_by_hand() -> None:
    found: Any = Analysis(ranked_rows(SIX)).precision.set_index("method")
    assert found.index.tolist() == ["a", "b", "c"]
    a, b = np.array(SIX["a"]), np.array(SIX["b"])
    t = 2.5706  # t_{.975, 5}
    assert found.loc["b", "half_width"] == pytest.approx(t * b.std(ddof=1) / 6**0.5, rel=1e-4)
    assert found.loc["b", "tiles_05"] == stats.required_n(b, 0.05)
    assert found.loc["b", "tiles_02"] == stats.required_n(b, 0.02) > found.loc["b", "tiles_05"]
    assert found.loc["b", "difference"] == pytest.approx((a - b).mean())
    assert found.loc["b", "tiles_apart"] == stats.tiles_to_tell_apart(a - b)
    assert found.loc["b", "tiles_apart_all"] == stats.tiles_to_tell_apart(a - b, alpha=0.05 / 3)
    assert found["is_best"].tolist() == [True, False, False]
    assert found["runner_up"].tolist() == [False, True, False]
    assert np.isnan(found.loc["a", "tiles_apart"])


def test_precision_has_the_controls_below_and_the_headline_measure(made: Any) -> None:
    assert made.precision["method"].iloc[-2:].tolist() == ["control:p_c", "control:random"]
    assert made.precision["is_best"].iloc[0]
    assert (made.precision["measure"] == "contrast").all()
    leak = Analysis(make_rows(6, fills=("neutral",))).precision
    assert (leak["measure"] == "M3").all()
    assert not leak["struck"].any()
    single = Analysis(make_rows(1)).precision
    assert single[["half_width", "tiles_05", "tiles_02", "tiles_apart"]].isna().all(axis=None)
