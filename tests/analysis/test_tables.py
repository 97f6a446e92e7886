"""Tables of tasks 1-3: hand-computed toys, planted truths in made-up rows, and edge cases."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rows import AREAS, LAYERS, METHODS, STRATEGIES, THRESHOLDS, make_rows
from segproof.analysis import statistics as stats, tables
from segproof.errors import UnknownNameError


@pytest.fixture(scope="module")
def rows() -> Any:
    return make_rows()


@pytest.fixture(scope="module")
def made(rows: Any) -> Any:
    return tables.make(rows)


def only(frame: Any, **wanted: Any) -> Any:
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    assert len(frame)
    return frame


def one(frame: Any, **wanted: Any) -> Any:
    found = only(frame, **wanted)
    assert len(found) == 1
    return found.iloc[0]


CELL = {"reference": "truth", "fill": "background_texture"}


def toy(
    values: Any,
    column: Any = "iou_delta",
    strategy: Any = "background_only",
    method: Any = "grad_cam",
    level: Any = 0.1,
) -> Any:
    """Rows of one cell with one value per image."""
    frame = pd.DataFrame({"sample": [f"t{i}" for i in range(len(values))]})
    fixed = {"layer": "a", "binarisation": "area", "level": level, "strategy": strategy}
    fixed |= {"method": method, "reference": "truth", "fill": "black", "status": "ok", "seed": 0}
    measured = ("confidence", "entropy", "kept", "certainty", "iou", "iou_delta")
    filled = dict.fromkeys(measured, 0.5) | {column: values}
    return frame.assign(**fixed, area=level, coverage=0.5, **filled)


def control(name: Any, fill: Any, values: Any) -> Any:
    """Rows of an input that needs no heatmap."""
    frame = toy(values, "confidence", strategy=name, method=f"control:{name}", level=np.nan)
    return frame.assign(layer="", binarisation="", fill=fill)


# --- by hand ---


def test_sweep_by_hand() -> None:
    frame = toy([0.2, 0.4, 0.9], "confidence")
    frame.loc[2, ["status", "confidence"]] = ["all_zero", np.nan]
    line = one(tables.sweep(frame), method="grad_cam")
    assert line["mean"] == pytest.approx(0.3)
    assert (line["n"], line["not_ok"], line["all_zero"], line["constant"]) == (2, 1, 1, 0)
    assert (line["low"], line["high"]) == pytest.approx((0.2, 0.4))
    assert (line["measure"], line["column"]) == ("M1", "confidence")


def test_a_number_in_a_failed_row_is_not_read() -> None:
    frame = toy([0.2, 0.4, 0.9], "confidence")
    frame.loc[2, "status"] = "constant"  # its number is left standing on purpose
    assert tables.sweep(frame)["mean"].iloc[0] == pytest.approx(0.3)


def test_iou_drop_is_the_mean_over_levels_of_each_image() -> None:
    frame = pd.concat([toy([-0.2, -0.4], level=0.1), toy([-0.4, -0.8], level=0.3)])
    line = one(tables.faithfulness(frame), method="grad_cam")
    assert line["mean"] == pytest.approx((0.3 + 0.6) / 2)
    assert line["n"] == 2


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
    found = tables.combinations_ranked(pd.concat(parts, ignore_index=True)).set_index("method")
    assert found["mean"].to_dict() == pytest.approx({"a": (0.8 + 0.1) / 2, "b": (0.1 + 0.1) / 2})
    assert list(found.index) == ["a", "b"]
    assert set(found["measure"]) == {"contrast"}


def test_a_contrast_without_its_m1_is_missing() -> None:
    shown = toy([0.9, 0.7], "confidence", "highlighted_only")
    other = toy([0.9, 0.7], "confidence", "background_only", level=0.3)
    found = tables.combinations_ranked(pd.concat([shown, other], ignore_index=True))
    assert found["n"].tolist() == [0]


def contrary() -> Any:
    """Six images on which `part`, a part of the cause, ruins the mask more than `whole` does, while
    `whole` alone is enough for the prediction. Random blobs do nothing.
    """
    read = {  # method: IoU drop and confidence of M1, confidence of M2
        "part": (0.8, 0.1, 0.2),
        "whole": (0.5, 0.2, 0.9),
        "control:random": (0.0, 0.8, 0.1),
    }
    parts = []
    for method, (drop, removed, kept) in read.items():
        near = 0.01 * np.arange(6)
        lost = toy(near - drop, method=method).assign(confidence=removed + near)
        parts += [lost, toy(kept - near, "confidence", "highlighted_only", method=method)]
    return pd.concat(parts, ignore_index=True)


def test_strict_goes_by_the_contrast_and_paper_by_iou_drop() -> None:
    made = tables.make(contrary())
    assert made.measure == "contrast"
    assert made.ranking["method"].tolist() == ["whole", "part"]
    # 0.9 - 0.2 and 0.2 - 0.1, less 0.02 * (0 + ... + 5) / 6
    assert made.ranking["mean"].tolist() == pytest.approx([0.65, 0.05])
    assert made.by_iou_drop["method"].tolist() == ["part", "whole"]
    assert made.faithfulness.set_index("method")["mean"].idxmax() == "part"
    assert (
        "whole is the most faithful (contrast M2 \N{MINUS SIGN} M1 0.650, 95 % interval"
        in made.verdict
    )
    assert made.precision["method"].tolist() == ["whole", "part", "control:random"]
    assert set(made.agreement.set_index("factor").loc[["fills", "areas", "images"], "measure"]) == {
        "contrast"
    }
    paper = tables.make(contrary(), "paper")
    assert paper.measure == "iou_drop"
    assert paper.ranking["method"].tolist() == ["part", "whole"]
    assert "part is the most faithful (IoU drop 0.775" in paper.verdict


def test_the_controls_are_beaten_by_the_contrast() -> None:
    line = one(tables.against_controls(contrary()), measure="contrast", method="whole")
    # 0.7 - 0.02 n against -0.7 - 0.02 n on every image
    assert line["random_difference"] == pytest.approx(1.4)
    assert line["beats_random"]


def test_a_contrast_under_an_invalid_fill_is_struck() -> None:
    stays = [control("original", "", [0.8] * 6), control("target_removed", "black", [0.8] * 6)]
    rows = pd.concat([contrary(), *stays], ignore_index=True)
    assert tables.judging(rows) == "M3"
    found = tables.combinations_ranked(rows, measure="contrast")
    assert found["struck"].all()
    assert not found["ranked"].any()
    assert tables.combinations_ranked(rows, "paper", measure="contrast")["ranked"].all()


def test_without_m2_iou_drop_judges_and_says_so() -> None:
    rows = contrary()
    made = tables.make(rows[rows["strategy"] == "background_only"])
    assert made.measure == "iou_drop"
    assert made.verdict.startswith("No M2 was measured, so judged by IoU drop")
    assert "part is the most faithful (IoU drop 0.775" in made.verdict
    # the M2 of a control alone judges no method
    control_only = rows[(rows["strategy"] == "background_only") | (rows["method"] != "whole")]
    control_only = control_only[control_only["method"] != "part"]
    assert tables.judging(control_only) == "iou_drop"


def test_an_image_lacking_a_level_is_missing_from_the_fold() -> None:
    frame = pd.concat([toy([-0.2, -0.4], level=0.1), toy([-0.4, np.nan], level=0.3)])
    line = one(tables.faithfulness(frame), method="grad_cam")
    assert (line["mean"], line["n"]) == (pytest.approx(0.3), 1)


def test_an_undefined_iou_is_counted_not_averaged() -> None:
    line = one(tables.faithfulness(toy([-0.2, -0.4, np.nan])), method="grad_cam")
    assert (line["mean"], line["n"], line["undefined"]) == (pytest.approx(0.3), 2, 1)


def test_auc_by_hand() -> None:
    parts = [
        toy([value], "confidence", level=level)
        for value, level in ((0.0, 0.1), (1.0, 0.2), (1.0, 0.4))
    ]
    # trapezoids .1 * .5 + .2 * 1 over a range of .3
    assert tables.auc(pd.concat(parts))["mean"].iloc[0] == pytest.approx(0.25 / 0.3)


def test_validity_by_hand() -> None:
    frame = pd.concat(
        [
            control("original", "", [0.8, 0.5]),
            control("target_removed", "black", [0.4, 0.1]),
            control("target_removed", "neutral", [0.88, 0.5]),
        ]
    )
    found = tables.validity(frame).set_index("fill")
    assert found.loc["black", "mean_drop"] == pytest.approx((0.5 + 0.8) / 2)
    assert found.loc["black", "min_drop"] == pytest.approx(0.5)
    assert found.loc["neutral", "mean_drop"] == pytest.approx((-0.1 + 0) / 2)
    assert found["valid"].to_dict() == {"black": True, "neutral": False}
    assert found["n"].tolist() == [2, 2]


def test_a_drop_of_exactly_half_is_valid() -> None:
    frame = pd.concat([control("original", "", [0.8]), control("target_removed", "black", [0.4])])
    assert tables.validity(frame)["valid"].tolist() == [True]


def test_m3_gain_by_hand() -> None:
    shown = toy([0.7, 0.9], "certainty", strategy="highlighted_and_target")
    alone = control("target_only", "black", [0.5, 0.5]).assign(certainty=[0.5, 0.8])
    line = tables.m3_gain(pd.concat([shown, alone])).iloc[0]
    assert (line["mean"], line["n"]) == (pytest.approx(0.15), 2)


def test_layers_by_hand() -> None:
    frame = pd.concat([toy([-0.3, -0.5]), toy([-0.1, -0.1]).assign(layer="b")])
    line = one(tables.layers(frame), measure="iou_drop")
    assert (line["layer_a"], line["layer_b"]) == ("a", "b")
    assert line["difference"] == pytest.approx(0.3)
    assert line["mean_a"] - line["mean_b"] == pytest.approx(0.3)
    assert line["better"] == ""
    assert not line["decidable"]


def test_random_blobs_are_averaged_over_seeds_first() -> None:
    seeds = [
        toy([value, 0.0], method="control:random").assign(layer="", seed=seed)
        for seed, value in enumerate((-0.1, -0.3))
    ]
    frame = pd.concat([toy([-0.5, -0.1]), *seeds])
    line = one(tables.against_controls(frame), measure="iou_drop")
    assert line["random_difference"] == pytest.approx((0.3 + 0.1) / 2)
    assert line["random_n"] == 2
    assert pd.isna(line["beats_p_c"])


# --- planted truths ---


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
    b = tables.sweep(mixed).sort_values(keys)["low"].to_numpy()
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
    made = tables.make(rows, "paper")
    line = one(made.best, measure="M3", binarisation="threshold", level=0.3, layer="decoder:2")
    part = only(made.sweep, measure="M3", binarisation="threshold", level=0.3, layer="decoder:2")
    assert line["mean"] == pytest.approx(part["entropy"].min())
    assert set(part["column"]) == {"entropy"}


def test_controls_mark_what_loses(made: Any) -> None:
    part = only(made.against_controls, measure="iou_drop", layer="decoder:1", **CELL)
    flags = part.set_index("method")
    assert not flags.loc["eigen_cam", "beats_random"]
    assert flags.loc["xgrad_cam", "beats_random"]
    assert not flags.loc["grad_cam", "beats_p_c"]
    marked = only(made.faithfulness, layer="decoder:1", method="eigen_cam", **CELL)
    assert (marked["beats_random"] == False).all()  # noqa: E712


def test_too_few_tiles_are_judged_by_interval_and_said() -> None:
    flags = tables.against_controls(make_rows(4))
    line = one(flags, measure="iou_drop", layer="decoder:2", method="xgrad_cam", **CELL)
    assert not line["random_decided"]
    assert line["random_p"] >= 0.05
    assert line["beats_random"] == (line["random_low"] > 0)


def test_an_invalid_fill_is_struck_and_ranks_only_in_paper(rows: Any, made: Any) -> None:
    leak = made.faithfulness[made.faithfulness["fill"] == "neutral"]
    assert leak["struck"].all()
    assert leak["rank"].isna().all()
    assert not leak["valid_fill"].any()
    kept = only(made.sweep, fill="neutral", measure="M2")
    assert not kept["struck"].any()
    assert kept["ranked"].all()
    paper = tables.faithfulness(rows, "paper")
    paper = paper[(paper["fill"] == "neutral") & (paper["layer"] != "")]
    assert paper["struck"].all()
    assert paper["rank"].notna().all()


def test_better_layer_is_found(made: Any) -> None:
    part = only(made.layers, measure="iou_drop", method="xgrad_cam", **CELL)
    assert part["better"].tolist() == ["decoder:2"]
    same = only(made.layers, measure="M2", method="eigen_cam", **CELL)
    assert same["better"].tolist() == [""]


def test_fills_that_agree(rows: Any) -> None:
    table = tables.fill_agreement(make_rows(fills=("background_texture", "black", "neutral")))
    assert set(zip(table["fill_a"], table["fill_b"], strict=True)) == {
        ("background_texture", "black")
    }
    assert (table["tau"] > 0.7).all()
    assert tables.fill_agreement(rows).empty  # one of its two fills is not valid


def ranked_rows(values: Any) -> Any:
    """IoU drop of methods a, b, c, ... on each image, all at one area, fill and layer."""
    parts = [toy(-np.asarray(v), method=name) for name, v in values.items()]
    return pd.concat(parts, ignore_index=True)


# Image by image a > b > c but for the last one, where b and c tie at the top.
SIX = {
    "a": [0.9, 0.8, 0.7, 0.9, 0.8, 0.1],
    "b": [0.5, 0.4, 0.3, 0.5, 0.4, 0.5],
    "c": [0.1, 0.1, 0.2, 0.1, 0.1, 0.5],
}


def test_mean_ranks_by_hand() -> None:
    found = only(tables.mean_ranks(ranked_rows(SIX)), measure="iou_drop")
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
    found: Any = only(tables.mean_ranks(rows), measure="iou_drop").set_index("method")
    assert np.isnan(found.loc["d", "mean_rank"])
    assert found.loc["d", "groups"] == ""
    assert (found["n"] == 6).all()
    assert (found["candidates"] == 3).all()
    assert found.loc["a", "mean_rank"] == pytest.approx(8 / 6)


def test_mean_ranks_know_the_direction_and_the_controls(made: Any) -> None:
    for measure in tables.MEASURES:
        part = only(made.mean_ranks, measure=measure)
        assert set(part["method"].iloc[:2]) == {"score_cam", "xgrad_cam"}
        assert part["groups"].iloc[0].split()[0] == "a"
        assert not part["method"].str.startswith("control:").any()
        assert (part["n"] == 18).all()  # two tiles lack Grad-CAM++ at decoder:1
    eigen = one(made.mean_ranks, measure="iou_drop", layer="decoder:1", method="eigen_cam")
    assert not eigen["beats_random"]


def test_mean_ranks_under_an_invalid_fill_rank_only_in_paper() -> None:
    rows = make_rows(6, fills=("neutral",))
    strict, paper = tables.mean_ranks(rows), tables.mean_ranks(rows, "paper")
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
    found: Any = tables.agreement(pd.concat([rows, same, reverse, other])).set_index("factor")
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
    found: Any = tables.agreement(make_rows(8, areas=(), controls=False)).set_index("factor")
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
    found: Any = tables.agreement(rows).set_index("factor")
    assert found.loc["measures", "compared"] == "M2, M3"
    assert (found.loc[["fills", "areas", "images"], "measure"] == "M3").all()
    pairs = tables.measure_agreement(rows)
    assert list(zip(pairs["measure_a"], pairs["measure_b"], strict=True)) == [("M2", "M3")]
    assert len(tables.measure_agreement(rows, "paper")) == 10


def test_a_candidate_missing_under_one_fill_does_not_cost_the_fill() -> None:
    rows = ranked_rows(SIX)
    other = rows.assign(fill="blur")
    other.loc[other["method"] == "c", ["iou_delta", "status"]] = [np.nan, "all_zero"]
    found: Any = tables.agreement(pd.concat([rows, other])).set_index("factor")
    assert found.loc["fills", ["rankings", "candidates"]].tolist() == [2, 2]
    assert found.loc["fills", "w"] == 1


def test_precision_by_hand() -> None:
    found: Any = tables.precision(ranked_rows(SIX)).set_index("method")
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
    leak = tables.precision(make_rows(6, fills=("neutral",)))
    assert (leak["measure"] == "M3").all()
    assert not leak["struck"].any()
    single = tables.precision(make_rows(1))
    assert single[["half_width", "tiles_05", "tiles_02", "tiles_apart"]].isna().all(axis=None)


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
    made = tables.faithfulness(pd.concat([rows, copy], ignore_index=True))
    part = only(made, binarisation="area", layer="decoder:2", **CELL).set_index("method")
    assert part.loc["copy", "rank"] == part.loc["grad_cam", "rank"]
    assert part.loc["copy", "mean"] == part.loc["grad_cam", "mean"]


# --- the sentence ---


def test_verdict_names_winner_ties_and_losers(made: Any) -> None:
    text = made.verdict
    assert text.startswith("For this model on these 20 tiles, ")
    assert "Score-CAM at decoder:2" in text
    assert "XGrad-CAM at decoder:2" in text
    assert "Eigen-CAM at decoder:1 does not beat random blobs" in text


def test_verdict_when_nothing_beats_the_controls() -> None:
    quality = dict.fromkeys(METHODS, 0.0)
    text = tables.verdict(make_rows(quality=quality))
    assert "no method beats the controls" in text
    assert "most faithful" not in text


def test_verdict_with_few_tiles_leaves_the_order_open() -> None:
    text = tables.verdict(make_rows(5))
    assert "cannot tell the 10 candidates apart" in text
    assert "most faithful" not in text


@pytest.mark.parametrize(
    ("preset", "said"), [("strict", "judged by M3 instead"), ("paper", "ranked all the same")]
)
def test_verdict_without_a_valid_fill(preset: Any, said: Any) -> None:
    text = tables.verdict(make_rows(fills=("neutral",)), preset)
    assert text.startswith("No fill that was used is valid for this model")
    assert said in text


def test_verdict_without_controls_or_areas() -> None:
    text = tables.verdict(make_rows(controls=False, areas=()))
    assert "not tested" in text
    assert "size of the regions was not controlled" in text


# --- edges ---


@pytest.mark.parametrize(
    "options",
    [
        {"tiles": 1},
        {"tiles": 2, "methods": ("grad_cam",), "layers": ("decoder:1",)},
        {"tiles": 3, "thresholds": ()},
        {"tiles": 3, "areas": ()},
        {"tiles": 3, "controls": False},
        {"tiles": 3, "areas": (0.1,), "thresholds": (0.5,), "fills": ("black",)},
    ],
)
def test_small_studies_make_all_tables(options: Any) -> None:
    made = tables.make(make_rows(**options), "paper" if options["tiles"] == 2 else "strict")
    assert made.verdict
    assert len(made.sweep)


def test_a_study_in_which_every_map_failed() -> None:
    rows = make_rows(3)
    ours = ~rows["method"].str.startswith("control:")
    measured = ["confidence", "entropy", "kept", "certainty", "iou", "iou_delta"]
    rows.loc[ours, measured] = np.nan
    rows.loc[ours, "status"] = "all_zero"
    made = tables.make(rows)
    assert "No verdict" in made.verdict
    assert (made.statuses["ok"] == 0).all()


def test_no_rows_at_all() -> None:
    made = tables.make(make_rows(2).iloc[:0])
    assert made.verdict.startswith("No verdict")
    assert made.sweep.empty
    assert made.mean_ranks.empty
    assert made.agreement["w"].isna().all()
    assert made.precision.empty


def test_two_references_stay_apart() -> None:
    both = pd.concat([make_rows(6), make_rows(6, reference="prediction", seed=1)])
    keys = ["layer", "method", "binarisation", "level", "strategy", "reference", "fill"]
    made = tables.sweep(both)
    assert not made.duplicated(keys).any()
    assert set(made["reference"]) == {"truth", "prediction"}
    assert made["n"].max() == 6


def test_unknown_strategy_is_named() -> None:
    with pytest.raises(UnknownNameError, match="background_only"):
        tables.measure_of("background")


def test_labels() -> None:
    assert tables.method_label("grad_cam_pp") == "Grad-CAM++"
    assert tables.method_label("mine") == "mine"
    assert tables.strategy_label("highlighted_only") == "M2 highlighted_only"


def test_input_is_left_alone_and_large_tables_are_quick() -> None:
    rows = make_rows(75, fills=("background_texture", "black", "neutral"))
    before = pd.util.hash_pandas_object(rows).sum()
    start = time.perf_counter()
    tables.make(rows)
    assert time.perf_counter() - start < 30  # 81,075 rows; about 3 s on an idle core
    assert pd.util.hash_pandas_object(rows).sum() == before
