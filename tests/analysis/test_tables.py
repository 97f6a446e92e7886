"""Tables of tasks 1 to 3: hand-computed toys and planted truths in made-up rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from rows import AREAS, LAYERS, METHODS, STRATEGIES, THRESHOLDS, make_rows
from segproof.analysis import (
    Analysis,
    statistics as stats,
)
from toy_rows import CELL, control, one, only, toy


@pytest.fixture(scope="module")
def rows() -> Any:
    return make_rows()


@pytest.fixture(scope="module")
def made(rows: Any) -> Any:
    return Analysis(rows)


def test_sweep_by_hand() -> None:
    frame = toy([0.2, 0.4, 0.9], "confidence")
    frame.loc[2, ["status", "confidence"]] = ["all_zero", np.nan]
    line = one(Analysis(frame).sweep, method="grad_cam")
    assert line["mean"] == pytest.approx(0.3)
    assert (line["n"], line["not_ok"], line["all_zero"], line["constant"]) == (2, 1, 1, 0)
    assert (line["low"], line["high"]) == pytest.approx((0.2, 0.4))
    assert (line["measure"], line["column"]) == ("M1", "confidence")


def test_a_number_in_a_failed_row_is_not_read() -> None:
    frame = toy([0.2, 0.4, 0.9], "confidence")
    frame.loc[2, "status"] = "constant"  # its number is left standing on purpose
    assert Analysis(frame).sweep["mean"].iloc[0] == pytest.approx(0.3)


def test_iou_drop_is_the_mean_over_levels_of_each_image() -> None:
    frame = pd.concat([toy([-0.2, -0.4], level=0.1), toy([-0.4, -0.8], level=0.3)])
    line = one(Analysis(frame).faithfulness, method="grad_cam")
    assert line["mean"] == pytest.approx((0.3 + 0.6) / 2)
    assert line["n"] == 2


def test_an_image_lacking_a_level_is_missing_from_the_fold() -> None:
    frame = pd.concat([toy([-0.2, -0.4], level=0.1), toy([-0.4, np.nan], level=0.3)])
    line = one(Analysis(frame).faithfulness, method="grad_cam")
    assert (line["mean"], line["n"]) == (pytest.approx(0.3), 1)


def test_an_undefined_iou_is_counted_not_averaged() -> None:
    line = one(Analysis(toy([-0.2, -0.4, np.nan])).faithfulness, method="grad_cam")
    assert (line["mean"], line["n"], line["undefined"]) == (pytest.approx(0.3), 2, 1)


def test_auc_by_hand() -> None:
    parts = [
        toy([value], "confidence", level=level)
        for value, level in ((0.0, 0.1), (1.0, 0.2), (1.0, 0.4))
    ]
    # trapezoids .1 * .5 + .2 * 1 over a range of .3
    assert Analysis(pd.concat(parts)).auc["mean"].iloc[0] == pytest.approx(0.25 / 0.3)


def test_m3_gain_by_hand() -> None:
    shown = toy([0.7, 0.9], "certainty", strategy="highlighted_and_target")
    alone = control("target_only", "black", [0.5, 0.5]).assign(certainty=[0.5, 0.8])
    line = Analysis(pd.concat([shown, alone])).m3_gain.iloc[0]
    assert (line["mean"], line["n"]) == (pytest.approx(0.15), 2)


def test_layers_by_hand() -> None:
    frame = pd.concat([toy([-0.3, -0.5]), toy([-0.1, -0.1]).assign(layer="b")])
    line = one(Analysis(frame).layers, measure="iou_drop")
    assert (line["layer_a"], line["layer_b"]) == ("a", "b")
    assert line["difference"] == pytest.approx(0.3)
    assert line["mean_a"] - line["mean_b"] == pytest.approx(0.3)
    assert line["better"] == ""
    assert not line["decidable"]


def test_sweep_has_every_cell_once(rows: Any, made: Any) -> None:
    keys = ["layer", "method", "binarisation", "level", "strategy", "reference", "fill"]
    assert not made.sweep.duplicated(keys).any()
    ours = made.sweep[made.sweep["layer"] != ""]
    levels = len(THRESHOLDS) + len(AREAS)
    assert len(ours) == len(LAYERS) * len(METHODS) * levels * len(STRATEGIES) * 2
    line = one(
        made.sweep, layer="decoder:2", method="xgrad_cam", level=0.2, binarisation="area",
        strategy="highlighted_only", **CELL,
    )  # fmt: skip
    cell = only(
        rows, layer="decoder:2", method="xgrad_cam", level=0.2, binarisation="area",
        strategy="highlighted_only", **CELL,
    )  # fmt: skip
    expected = stats.interval(cell.sort_values("sample")["confidence"])
    assert (line["mean"], line["low"], line["high"]) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    assert line["area"] == pytest.approx(0.2)


def test_order_of_rows_does_not_matter(rows: Any, made: Any) -> None:
    mixed = rows.sample(frac=1, random_state=0)
    keys = ["layer", "method", "binarisation", "level", "strategy", "fill"]
    a = made.sweep.sort_values(keys)["low"].to_numpy()
    b = Analysis(mixed).sweep.sort_values(keys)["low"].to_numpy()
    np.testing.assert_allclose(a, b, atol=1e-12)


def test_planted_winners_tie_and_the_rest_is_behind(made: Any) -> None:
    ranked = only(made.faithfulness, binarisation="area", layer="decoder:2", **CELL)
    top = ranked[ranked["rank"] == 1]
    assert set(top["method"]) == {"score_cam", "xgrad_cam"}
    assert set(ranked.loc[ranked["in_best_group"], "method"]) == {"score_cam", "xgrad_cam"}
    order = ranked.set_index("method")["rank"]
    assert order["eigen_cam"] == 5
    assert order["grad_cam"] == 3


def test_best_names_the_tie(made: Any) -> None:
    line = one(made.best, layer="decoder:2", binarisation="area", level=0.3, measure="M1", **CELL)
    assert {line["best"], line["tied"]} == {"score_cam", "xgrad_cam"}
    assert line["runner_up"] == line["tied"]
    assert line["runner_up_p"] >= 0.05
    assert line["decidable"]


def test_directions_of_the_three_strategies(made: Any) -> None:
    for measure, better in (("M1", np.min), ("M2", np.max), ("M3", np.max)):
        part = only(made.sweep, measure=measure, binarisation="area", level=0.2, **CELL)
        part = part[part["layer"] == "decoder:2"]
        line = one(
            made.best, measure=measure, binarisation="area", level=0.2, layer="decoder:2", **CELL
        )
        assert line["mean"] == pytest.approx(better(part["mean"]))


def test_paper_preset_takes_the_lowest_entropy() -> None:
    rows = make_rows(5, fills=("neutral",), preset="paper")
    made = Analysis(rows, "paper")
    line = one(made.best, measure="M3", binarisation="threshold", level=0.3, layer="decoder:2")
    part = only(made.sweep, measure="M3", binarisation="threshold", level=0.3, layer="decoder:2")
    assert line["mean"] == pytest.approx(part["entropy"].min())
    assert set(part["column"]) == {"entropy"}


def test_an_invalid_fill_is_struck_and_ranks_only_in_paper(rows: Any, made: Any) -> None:
    leak = made.faithfulness[made.faithfulness["fill"] == "neutral"]
    assert leak["struck"].all()
    assert leak["rank"].isna().all()
    assert not leak["valid_fill"].any()
    kept = only(made.sweep, fill="neutral", measure="M2")
    assert not kept["struck"].any()
    assert kept["ranked"].all()
    paper = Analysis(rows, "paper").faithfulness
    paper = paper[(paper["fill"] == "neutral") & (paper["layer"] != "")]
    assert paper["struck"].all()
    assert paper["rank"].notna().all()


def test_better_layer_is_found(made: Any) -> None:
    part = only(made.layers, measure="iou_drop", method="xgrad_cam", **CELL)
    assert part["better"].tolist() == ["decoder:2"]
    same = only(made.layers, measure="M2", method="eigen_cam", **CELL)
    assert same["better"].tolist() == [""]


def test_statuses_count_images(made: Any) -> None:
    line = one(made.statuses, layer="decoder:1", method="grad_cam_pp")
    assert (line["images"], line["ok"], line["all_zero"]) == (20, 18, 2)
    assert made.statuses["all_zero"].sum() == 2
    swept = only(made.sweep, layer="decoder:1", method="grad_cam_pp")
    assert (swept["n"] == 18).all()
    assert (swept["not_ok"] == 2).all()


def test_identical_methods_tie() -> None:
    rows = make_rows(12, methods=("grad_cam", "xgrad_cam"))
    copy = rows[rows["method"] == "grad_cam"].assign(method="copy")
    made = Analysis(pd.concat([rows, copy], ignore_index=True)).faithfulness
    part = only(made, binarisation="area", layer="decoder:2", **CELL).set_index("method")
    assert part.loc["copy", "rank"] == part.loc["grad_cam", "rank"]
    assert part.loc["copy", "mean"] == part.loc["grad_cam", "mean"]


def test_two_references_stay_apart() -> None:
    both = pd.concat([make_rows(6), make_rows(6, reference="prediction", seed=1)])
    keys = ["layer", "method", "binarisation", "level", "strategy", "reference", "fill"]
    made = Analysis(both).sweep
    assert not made.duplicated(keys).any()
    assert set(made["reference"]) == {"truth", "prediction"}
    assert made["n"].max() == 6
