"""Figures of tables: what is drawn, what is labelled, and that empty tables end in a note."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drawn_figures import draw, words
from rows import LAYERS, METHODS, make_rows
from segproof.analysis import Analysis
from segproof.report import drawing, figures


@pytest.fixture(scope="module")
def made() -> Any:
    return Analysis(make_rows(8))


AT: dict[str, Any] = {"reference": "truth", "fill": "background_texture"}


@pytest.mark.parametrize("binarisation", ["threshold", "area"])
def test_sweep_shows_means_bands_and_controls(made: Any, binarisation: Any) -> None:
    figure = figures.sweep(made.sweep, binarisation=binarisation, **AT)
    assert len(figure.axes) == 3 * len(LAYERS)
    axes = figure.axes[3]  # M1 at decoder:2
    part = made.sweep.query(
        f"binarisation == '{binarisation}' and fill == 'background_texture' and measure == 'M1'"
        " and layer == 'decoder:2' and method == 'score_cam'"
    )
    drawn = [line.get_ydata() for line in axes.lines]
    assert any(np.array_equal(y, part["mean"].to_numpy()) for y in drawn)
    assert len(axes.collections) == len(METHODS)
    controls = 2 if binarisation == "area" else 1
    assert len(axes.lines) == len(METHODS) + controls
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"Grad-CAM++", "Eigen-CAM", "probability map"} <= labels
    assert ("random blobs" in labels) == (binarisation == "area")
    assert "M1 confidence\n(lower is better)" in words(figure)


def test_sweep_at_one_level_shows_methods_side_by_side(made: Any) -> None:
    table = made.sweep.query("binarisation != 'area' or level == 0.2")
    figure = figures.sweep(table, binarisation="area", **AT)
    axes: Any = figure.axes[3]  # M1 at decoder:2
    part = table.query(
        "binarisation == 'area' and fill == 'background_texture' and measure == 'M1'"
        " and (layer == 'decoder:2' or layer == '')"
    ).set_index("method")
    dots = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    assert len({line.get_xdata()[0] for line in dots}) == len(METHODS)
    # controls are lines through the whole panel, intervals are bars
    random = float(part["mean"]["control:random"])
    assert any(list(line.get_ydata()) == [random, random] for line in axes.lines)
    ends = [segment[:, 1].tolist() for bars in axes.collections for segment in bars.get_segments()]
    assert [float(part["low"]["score_cam"]), float(part["high"]["score_cam"])] in ends
    assert "share of the tile that is highlighted: 0.2" in words(figure)


def test_a_struck_panel_says_so(made: Any) -> None:
    figure = figures.sweep(made.sweep, binarisation="area", reference="truth", fill="neutral")
    assert "fill not valid: struck out" in words(figure)
    assert "fill not valid: struck out" not in words(figures.sweep(made.sweep, **AT))


def test_faithfulness_is_ordered_by_matched_area(made: Any) -> None:
    figure = figures.faithfulness(made.faithfulness, **AT)
    left: Any = figure.axes[0]
    dots = [line.get_xdata()[0] for line in left.lines if line.get_marker() not in ("None", "")]
    assert len(dots) == len(METHODS) * len(LAYERS)
    assert dots == sorted(dots, reverse=True)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "at matched area (headline)",
        "at fixed thresholds",
    ]


def bars(figure: Any) -> Any:
    """Ends of the thick bars over candidates that tie."""
    return [
        tuple(line.get_xdata())
        for line in figure.axes[0].lines
        if line.get_linewidth() > 3 and len(line.get_xdata()) == 2
    ]


def test_critical_difference_shows_ranks_groups_and_the_ruler(made: Any) -> None:
    figure = figures.critical_difference(made.mean_ranks, measure="M1")
    part = made.mean_ranks[made.mean_ranks["measure"] == "M1"]
    axes: Any = figure.axes[0]
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() not in ("None", "")]
    assert dots == part["mean_rank"].tolist()
    letters = {letter for groups in part["groups"] for letter in groups.split()}
    assert len(bars(figure)) == len(letters) > 1
    pad = 0.008 * 9
    for letter, (low, high) in zip(sorted(letters), bars(figure), strict=True):
        ranks = part.loc[part["groups"].str.split().map(lambda g, k=letter: k in g), "mean_rank"]
        assert (low + pad, high - pad) == pytest.approx((ranks.min(), ranks.max()))
    distance = part["critical_difference"].iloc[0]
    assert any(np.allclose(line.get_xdata(), [1, 1 + distance]) for line in axes.lines)
    shown = words(figure)
    assert f"critical difference {distance:.2f}" in shown
    assert "mean rank (1 = best)" in shown
    assert "\u2020 not shown to beat random blobs" in shown
    assert any("M1 confidence (lower is better): all 10 candidates, 6 tiles" in w for w in shown)
    assert sum("\u00b7  decoder:" in word for word in shown) == 10


def test_critical_difference_draws_the_best_and_says_so(made: Any) -> None:
    figure = figures.critical_difference(made.mean_ranks, limit=4)
    assert any("4 best of 10 candidates" in word for word in words(figure))
    assert sum("\u00b7  decoder:" in word for word in words(figure)) == 4
    axes: Any = figure.axes[0]
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() not in ("None", "")]
    part = made.mean_ranks[made.mean_ranks["measure"] == "iou_drop"]
    assert dots == part["mean_rank"].tolist()[:4]
    whole = figures.critical_difference(made.mean_ranks)
    ruler = f"critical difference {part['critical_difference'].iloc[0]:.2f}"
    assert ruler in words(figure)
    assert ruler in words(whole)


@pytest.mark.parametrize("layers", [("decoder:1", "decoder:2"), ("x" * 200, "y" * 200)])
def test_names_in_a_critical_difference_diagram_do_not_overlap(layers: Any) -> None:
    table = Analysis(make_rows(8, layers=layers, fills=("background_texture",))).mean_ranks
    figure = figures.critical_difference(table)
    width = draw(figure).shape[1]
    boxes = [
        text.get_window_extent() for text in figure.axes[0].texts if "\u00b7" in text.get_text()
    ]
    assert len(boxes) == 10
    for place, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= width
        assert not any(box.overlaps(other) for other in boxes[place + 1 :])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tiles": 4}, "2 of at least 5 tiles have every candidate"),
        (
            {"tiles": 8, "methods": METHODS[:2], "layers": LAYERS[1:]},
            "2 of at least 3 candidates",
        ),
        ({"tiles": 8, "fills": ("neutral",)}, "the fill is not valid, so it ranks nothing"),
    ],
)
def test_a_critical_difference_that_is_not_drawn_says_why(options: Any, reason: Any) -> None:
    figure = figures.critical_difference(Analysis(make_rows(**options)).mean_ranks)
    assert words(figure) == {f"IoU drop (higher is better): not drawn, {reason}"}


def test_every_figure_draws_in_both_formats(made: Any) -> None:
    drawn = [
        figures.ranking(made.faithfulness, **AT),
        figures.layers(made.layers, made.faithfulness, **AT),
        figures.layers(made.layers, made.auc, measure="M1", **AT),
        figures.region_size(made.sweep, **AT),
        figures.validity(made.validity),
        figures.critical_difference(made.mean_ranks, measure="M3"),
    ]
    for figure in drawn:
        assert draw(figure)[..., :3].std() > 5
        assert drawing.svg(figure).startswith(b"<?xml")


def test_empty_tables_end_in_a_note() -> None:
    made = Analysis(make_rows(2).iloc[:0])
    for figure in (
        figures.sweep(made.sweep),
        figures.faithfulness(made.faithfulness),
        figures.ranking(made.faithfulness),
        figures.layers(made.layers, made.faithfulness),
        figures.region_size(made.sweep),
        figures.validity(made.validity),
        figures.critical_difference(made.mean_ranks),
    ):
        assert len(words(figure)) == 1
        draw(figure)
