"""Valid fills, the headline and the controls, by hand and planted."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from rows import make_rows
from segproof.analysis import Analysis
from segproof.analysis.tables import ranking
from toy_rows import CELL, contrary, control, one, only, toy


@pytest.fixture(scope="module")
def rows() -> Any:
    return make_rows()


@pytest.fixture(scope="module")
def made(rows: Any) -> Any:
    return Analysis(rows)


def test_the_contrast_is_m2_less_m1_of_the_same_cut() -> None:
    parts = [
        toy(m2, "confidence", "highlighted_only", level=level, method=method)
        for method, level, m2 in (("b", 0.1, [0.8, 0.6]), ("a", 0.1, [0.9, 0.5]))
    ]
    parts += [
        toy(m1, "confidence", "background_only", level=level, method=method)
        for method, level, m1 in (("a", 0.1, [0.1, 0.4]), ("b", 0.1, [0.7, 0.5]))
    ]
    # shown in M1 alone, as the control that is only removed: no contrast
    parts.append(toy([0.1, 0.1], "confidence", "background_only", method="c"))
    found = Analysis(pd.concat(parts, ignore_index=True)).ranking.set_index("method")
    assert found["mean"].to_dict() == pytest.approx({"a": (0.8 + 0.1) / 2, "b": (0.1 + 0.1) / 2})
    assert list(found.index) == ["a", "b"]
    assert set(found["measure"]) == {"contrast"}


def test_a_contrast_without_its_m1_is_missing() -> None:
    shown = toy([0.9, 0.7], "confidence", "highlighted_only")
    other = toy([0.9, 0.7], "confidence", "background_only", level=0.3)
    found = Analysis(pd.concat([shown, other], ignore_index=True)).ranking
    assert found["n"].tolist() == [0]


def test_the_controls_are_beaten_by_the_contrast() -> None:
    line = one(Analysis(contrary()).against_controls, measure="contrast", method="whole")
    # 0.7 - 0.02 n against -0.7 - 0.02 n on every image
    assert line["random_difference"] == pytest.approx(1.4)
    assert line["beats_random"]


def test_a_contrast_under_an_invalid_fill_is_struck() -> None:
    stays = [control("original", "", [0.8] * 6), control("target_removed", "black", [0.8] * 6)]
    rows = pd.concat([contrary(), *stays], ignore_index=True)
    assert Analysis(rows).measure == "M3"
    found = ranking(Analysis(rows), "contrast")
    assert found["struck"].all()
    assert not found["ranked"].any()
    assert ranking(Analysis(rows, "paper"), "contrast")["ranked"].all()


def test_validity_by_hand() -> None:
    frame = pd.concat(
        [
            control("original", "", [0.8, 0.5]),
            control("target_removed", "black", [0.4, 0.1]),
            control("target_removed", "neutral", [0.88, 0.5]),
        ]
    )
    found = Analysis(frame).validity.set_index("fill")
    assert found.loc["black", "mean_drop"] == pytest.approx((0.5 + 0.8) / 2)
    assert found.loc["black", "min_drop"] == pytest.approx(0.5)
    assert found.loc["neutral", "mean_drop"] == pytest.approx((-0.1 + 0) / 2)
    assert found["valid"].to_dict() == {"black": True, "neutral": False}
    assert found["n"].tolist() == [2, 2]


def test_a_drop_of_exactly_half_is_valid() -> None:
    frame = pd.concat([control("original", "", [0.8]), control("target_removed", "black", [0.4])])
    assert Analysis(frame).validity["valid"].tolist() == [True]


def test_random_blobs_are_averaged_over_seeds_first() -> None:
    seeds = [
        toy([value, 0.0], method="control:random").assign(layer="", seed=seed)
        for seed, value in enumerate((-0.1, -0.3))
    ]
    frame = pd.concat([toy([-0.5, -0.1]), *seeds])
    line = one(Analysis(frame).against_controls, measure="iou_drop")
    assert line["random_difference"] == pytest.approx((0.3 + 0.1) / 2)
    assert line["random_n"] == 2
    assert pd.isna(line["beats_p_c"])


def test_controls_mark_what_loses(made: Any) -> None:
    part = only(made.against_controls, measure="iou_drop", layer="decoder:1", **CELL)
    flags = part.set_index("method")
    assert not flags.loc["eigen_cam", "beats_random"]
    assert flags.loc["xgrad_cam", "beats_random"]
    assert not flags.loc["grad_cam", "beats_p_c"]
    marked = only(made.faithfulness, layer="decoder:1", method="eigen_cam", **CELL)
    assert (marked["beats_random"] == False).all()  # noqa: E712


def test_too_few_tiles_are_judged_by_interval_and_said() -> None:
    flags = Analysis(make_rows(4)).against_controls
    line = one(flags, measure="iou_drop", layer="decoder:2", method="xgrad_cam", **CELL)
    assert not line["random_decided"]
    assert line["random_p"] >= 0.05
    assert line["beats_random"] == (line["random_low"] > 0)
