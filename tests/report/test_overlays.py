"""Pictures with heatmaps over them: any bands, any size, any name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drawn_figures import draw, words
from rows import METHODS, make_pictures
from segproof.report import overlays


def test_displayed_leaves_0_to_1_alone() -> None:
    image = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(overlays.displayed(image), image.transpose(1, 2, 0))


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 8])
def test_displayed_takes_any_number_of_bands(bands: Any) -> None:
    image = np.random.default_rng(0).random((bands, 6, 7)).astype(np.float32)
    shown = overlays.displayed(image)
    assert shown.shape == (6, 7, 3)
    expected = image[[0, 1, 2]] if bands >= 3 else image[[0, 0, 0]]
    np.testing.assert_array_equal(shown, expected.transpose(1, 2, 0))


def test_displayed_stretches_raster_units() -> None:
    image = np.linspace(200, 4000, 3 * 20 * 20).reshape(3, 20, 20)
    image[0, 0, 0] = np.nan
    shown = overlays.displayed(image)
    assert (shown.min(), shown.max()) == (0, 1)
    assert shown[0, 0, 0] == 0
    assert 0.4 < np.median(shown) < 0.6
    assert np.isfinite(overlays.displayed(np.full((1, 3, 3), np.inf))).all()
    assert np.isfinite(overlays.displayed(np.full((1, 3, 3), 7.0))).all()


def test_displayed_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"found shape \(4, 4\); expected \[B, H, W\]"):
        overlays.displayed(np.zeros((4, 4)))


def test_overlay_puts_bright_where_the_heatmap_is() -> None:
    image = np.full((3, 64, 64), 0.5, dtype=np.float32)
    heatmap = np.zeros((64, 64), dtype=np.float32)
    heatmap[:, 40:] = 1
    region = np.zeros((64, 64), dtype=bool)
    region[10:20, 10:20] = True
    figure = overlays.overlay(image, heatmap, "Grad-CAM", region=region, truth=region, note="ok")
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
        figure = overlays.overlay(np.zeros((1, height, width)), np.zeros((height, width)), "x")
        assert draw(figure).size
        assert not figure.legends
    with pytest.raises(ValueError, match="resize it to the image"):
        overlays.overlay(np.zeros((3, 8, 8)), np.zeros((4, 4)), "x")


def test_gallery_has_one_panel_per_method_and_one_colour_bar() -> None:
    pictures = make_pictures(2, 64)
    del pictures[1]["heatmaps"]["score_cam", "decoder:1"]
    pictures[1]["truth"] = None
    pictures[1]["prediction"] = np.zeros((64, 64), dtype=bool)
    figure = overlays.gallery(pictures, "decoder:1")
    assert len(figure.axes) == 2 * (1 + len(METHODS)) + 1
    assert {"image", "Grad-CAM", "Eigen-CAM", "heatmap (0-1)", "1000"} <= words(figure)
    draw(figure)


@pytest.mark.parametrize("name", ["a$b_c^{d}$e", "\u5efa\u7269", "bad\udcff", "tab\tname", "\x00"])
def test_any_name_can_be_a_title(name: Any) -> None:
    pictures = make_pictures(1, 32)
    pictures[0]["sample"] = name * 9
    draw(overlays.gallery(pictures, "decoder:1"))
    draw(overlays.overlay(np.zeros((3, 8, 8)), np.zeros((8, 8)), name))


def test_no_pictures_end_in_a_note() -> None:
    figure = overlays.gallery([], "decoder:1")
    assert words(figure) == {"no pictures were kept"}
    draw(figure)
