"""What figures share: colours, no global state, and bytes that are the same each time."""

from __future__ import annotations

import base64
import sys

import matplotlib as mpl
import numpy as np

from rows import METHODS, make_rows
from segproof.analysis import Analysis
from segproof.report import drawing, figures, overlays


def test_no_global_state_and_the_same_bytes_each_time() -> None:
    validity = Analysis(make_rows(3, areas=())).validity
    before = dict(mpl.rcParams)
    first = drawing.svg(figures.validity(validity))
    assert first == drawing.svg(figures.validity(validity))
    assert dict(mpl.rcParams) == before
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    assert helpers is None or not helpers.Gcf.figs


def test_data_uri_keeps_the_bytes() -> None:
    figure = overlays.overlay(np.zeros((3, 8, 8)), np.zeros((8, 8)), "x")
    for data, kind in (
        (drawing.png(figure), "png"),
        (drawing.webp(figure), "webp"),
        (drawing.svg(figure), "svg+xml"),
    ):
        head, _, body = drawing.data_uri(data).partition(",")
        assert head == f"data:image/{kind};base64"
        assert base64.b64decode(body) == data


def test_methods_of_ones_own_get_their_own_colours() -> None:
    rows = make_rows(3, layers=("decoder:1",), controls=False)
    rows["method"] = (
        rows["method"].map(dict(zip(METHODS, "abcde", strict=True)).get).fillna(rows["method"])
    )
    figure = figures.sweep(Analysis(rows).sweep)
    colours = {line.get_color() for line in figure.axes[0].lines}
    assert len(colours) == 5
