"""Figures: what is drawn, what is labelled, and that odd input ends in a picture."""

from __future__ import annotations

import base64
import sys
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rows import LAYERS, METHODS, make_pictures, make_rows
from segproof.analysis import Analysis
from segproof.report import figures as plot


@pytest.fixture(scope="module")
def made() -> Any:
    return Analysis(make_rows(8))


AT: dict[str, Any] = {"reference": "truth", "fill": "background_texture"}


def draw(figure: Any) -> Any:
    """Pixels of a figure, uint8 [H, W, 4]."""
    assert type(figure.canvas) is FigureCanvasAgg
    canvas: Any = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def words(figure: Any) -> Any:
    return {text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()}


@pytest.mark.parametrize("binarisation", ["threshold", "area"])
def test_sweep_shows_means_bands_and_controls(made: Any, binarisation: Any) -> None:
    figure = plot.sweep(made.sweep, binarisation=binarisation, **AT)
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
    figure = plot.sweep(table, binarisation="area", **AT)
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
    figure = plot.sweep(made.sweep, binarisation="area", reference="truth", fill="neutral")
    assert "fill not valid: struck out" in words(figure)
    assert "fill not valid: struck out" not in words(plot.sweep(made.sweep, **AT))


def test_faithfulness_is_ordered_by_matched_area(made: Any) -> None:
    figure = plot.faithfulness(made.faithfulness, **AT)
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
    figure = plot.critical_difference(made.mean_ranks, measure="M1")
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
    figure = plot.critical_difference(made.mean_ranks, limit=4)
    assert any("4 best of 10 candidates" in word for word in words(figure))
    assert sum("\u00b7  decoder:" in word for word in words(figure)) == 4
    axes: Any = figure.axes[0]
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() not in ("None", "")]
    part = made.mean_ranks[made.mean_ranks["measure"] == "iou_drop"]
    assert dots == part["mean_rank"].tolist()[:4]
    whole = plot.critical_difference(made.mean_ranks)
    ruler = f"critical difference {part['critical_difference'].iloc[0]:.2f}"
    assert ruler in words(figure)
    assert ruler in words(whole)


@pytest.mark.parametrize("layers", [("decoder:1", "decoder:2"), ("x" * 200, "y" * 200)])
def test_names_in_a_critical_difference_diagram_do_not_overlap(layers: Any) -> None:
    table = Analysis(make_rows(8, layers=layers, fills=("background_texture",))).mean_ranks
    figure = plot.critical_difference(table)
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
    figure = plot.critical_difference(Analysis(make_rows(**options)).mean_ranks)
    assert words(figure) == {f"IoU drop (higher is better): not drawn, {reason}"}


def test_every_figure_draws_in_both_formats(made: Any) -> None:
    figures = [
        plot.ranking(made.faithfulness, **AT),
        plot.layers(made.layers, made.faithfulness, **AT),
        plot.layers(made.layers, made.auc, measure="M1", **AT),
        plot.region_size(made.sweep, **AT),
        plot.validity(made.validity),
        plot.critical_difference(made.mean_ranks, measure="M3"),
    ]
    for figure in figures:
        assert draw(figure)[..., :3].std() > 5
        assert plot.svg(figure).startswith(b"<?xml")


def test_no_global_state_and_the_same_bytes_each_time(made: Any) -> None:
    before = dict(mpl.rcParams)
    first = plot.svg(plot.validity(made.validity))
    assert first == plot.svg(plot.validity(made.validity))
    assert dict(mpl.rcParams) == before
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    assert helpers is None or not helpers.Gcf.figs


def test_empty_tables_end_in_a_note() -> None:
    made = Analysis(make_rows(2).iloc[:0])
    for figure in (
        plot.sweep(made.sweep),
        plot.faithfulness(made.faithfulness),
        plot.ranking(made.faithfulness),
        plot.layers(made.layers, made.faithfulness),
        plot.region_size(made.sweep),
        plot.validity(made.validity),
        plot.critical_difference(made.mean_ranks),
        plot.gallery([], "decoder:1"),
    ):
        assert len(words(figure)) == 1
        draw(figure)


def test_methods_of_ones_own_get_their_own_colours() -> None:
    rows = make_rows(3, layers=("decoder:1",), controls=False)
    rows["method"] = (
        rows["method"].map(dict(zip(METHODS, "abcde", strict=True)).get).fillna(rows["method"])
    )
    figure = plot.sweep(Analysis(rows).sweep)
    colours = {line.get_color() for line in figure.axes[0].lines}
    assert len(colours) == 5


# --- pictures ---


def test_displayed_leaves_0_to_1_alone() -> None:
    image = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(plot.displayed(image), image.transpose(1, 2, 0))


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 8])
def test_displayed_takes_any_number_of_bands(bands: Any) -> None:
    image = np.random.default_rng(0).random((bands, 6, 7)).astype(np.float32)
    shown = plot.displayed(image)
    assert shown.shape == (6, 7, 3)
    expected = image[[0, 1, 2]] if bands >= 3 else image[[0, 0, 0]]
    np.testing.assert_array_equal(shown, expected.transpose(1, 2, 0))


def test_displayed_stretches_raster_units() -> None:
    image = np.linspace(200, 4000, 3 * 20 * 20).reshape(3, 20, 20)
    image[0, 0, 0] = np.nan
    shown = plot.displayed(image)
    assert (shown.min(), shown.max()) == (0, 1)
    assert shown[0, 0, 0] == 0
    assert 0.4 < np.median(shown) < 0.6
    assert np.isfinite(plot.displayed(np.full((1, 3, 3), np.inf))).all()
    assert np.isfinite(plot.displayed(np.full((1, 3, 3), 7.0))).all()


def test_displayed_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"found shape \(4, 4\); expected \[B, H, W\]"):
        plot.displayed(np.zeros((4, 4)))


def test_overlay_puts_bright_where_the_heatmap_is() -> None:
    image = np.full((3, 64, 64), 0.5, dtype=np.float32)
    heatmap = np.zeros((64, 64), dtype=np.float32)
    heatmap[:, 40:] = 1
    region = np.zeros((64, 64), dtype=bool)
    region[10:20, 10:20] = True
    figure = plot.overlay(image, heatmap, "Grad-CAM", region=region, truth=region, note="ok")
    pixels = draw(figure).astype(int)
    box = figure.axes[1].get_window_extent()
    height = pixels.shape[0]
    middle = height - int((box.y0 + box.y1) / 2)
    dark = pixels[middle, int(box.x0 + 0.4 * box.width), :3]
    bright = pixels[middle, int(box.x0 + 0.9 * box.width), :3]
    assert bright.sum() > dark.sum() + 200
    shown = words(figure)
    assert {"Grad-CAM\nok", "heatmap (0-1)", "truth", "region"} <= shown


def test_overlay_without_masks_and_with_odd_sizes() -> None:
    for height, width in ((8, 200), (200, 8), (1, 1)):
        figure = plot.overlay(np.zeros((1, height, width)), np.zeros((height, width)), "x")
        assert draw(figure).size
        assert not figure.legends
    with pytest.raises(ValueError, match="resize it to the image"):
        plot.overlay(np.zeros((3, 8, 8)), np.zeros((4, 4)), "x")


def test_gallery_has_one_panel_per_method_and_one_colour_bar() -> None:
    pictures = make_pictures(2, 64)
    del pictures[1]["heatmaps"]["score_cam", "decoder:1"]
    pictures[1]["truth"] = None
    pictures[1]["prediction"] = np.zeros((64, 64), dtype=bool)
    figure = plot.gallery(pictures, "decoder:1")
    assert len(figure.axes) == 2 * (1 + len(METHODS)) + 1
    assert {"image", "Grad-CAM", "Eigen-CAM", "heatmap (0-1)", "1000"} <= words(figure)
    draw(figure)


@pytest.mark.parametrize("name", ["a$b_c^{d}$e", "\u5efa\u7269", "bad\udcff", "tab\tname", "\x00"])
def test_any_name_can_be_a_title(name: Any) -> None:
    pictures = make_pictures(1, 32)
    pictures[0]["sample"] = name * 9
    draw(plot.gallery(pictures, "decoder:1"))
    draw(plot.overlay(np.zeros((3, 8, 8)), np.zeros((8, 8)), name))


def test_data_uri_keeps_the_bytes() -> None:
    figure = plot.overlay(np.zeros((3, 8, 8)), np.zeros((8, 8)), "x")
    for data, kind in (
        (plot.png(figure), "png"),
        (plot.webp(figure), "webp"),
        (plot.svg(figure), "svg+xml"),
    ):
        head, _, body = plot.data_uri(data).partition(",")
        assert head == f"data:image/{kind};base64"
        assert base64.b64decode(body) == data
