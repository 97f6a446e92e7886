"""One object makes every table once, whatever the study holds."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rows import make_manifest, make_rows, make_tiles
from segproof.analysis import Analysis, Headline, basis
from segproof.report import drawing
from segproof.report.page import render


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
    made = Analysis(make_rows(**options), "paper" if options["tiles"] == 2 else "strict")
    assert made.verdict
    assert len(made.sweep)


def test_a_study_in_which_every_map_failed() -> None:
    rows = make_rows(3)
    ours = ~rows["method"].str.startswith("control:")
    measured = ["confidence", "entropy", "kept", "certainty", "iou", "iou_delta"]
    rows.loc[ours, measured] = np.nan
    rows.loc[ours, "status"] = "all_zero"
    made = Analysis(rows)
    assert "No verdict" in made.verdict
    assert (made.statuses["ok"] == 0).all()


def test_no_rows_at_all() -> None:
    made = Analysis(make_rows(2).iloc[:0])
    assert made.verdict.startswith("No verdict")
    assert made.sweep.empty
    assert made.mean_ranks.empty
    assert made.agreement["w"].isna().all()
    assert made.precision.empty


PROPERTIES = [name for name, value in vars(Analysis).items() if isinstance(value, cached_property)]


def test_the_input_is_left_alone() -> None:
    rows = make_rows(6, fills=("background_texture", "black", "neutral"))
    before = pd.util.hash_pandas_object(rows).sum()
    analysis = Analysis(rows)
    for name in PROPERTIES:
        getattr(analysis, name)
    assert pd.util.hash_pandas_object(rows).sum() == before


def test_what_tables_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tables, the verdict and the page together need one look at the fills and controls."""
    calls: list[str] = []

    def count(name: str) -> None:
        function = getattr(basis, name)

        def counted(argument: Any) -> Any:
            calls.append(name)
            return function(argument)

        monkeypatch.setattr(basis, name, counted)

    count("_validity")
    count("_against_controls")
    monkeypatch.setattr(drawing, "svg", lambda figure: b"<svg/>")  # drawing takes most of the time
    analysis = Analysis(make_rows(3, thresholds=(), areas=(0.1, 0.2)))
    assert calls == []
    for name in PROPERTIES:
        table = getattr(analysis, name)
        assert getattr(analysis, name) is table
    render(analysis.rows, make_tiles(3), make_manifest(), analysis=analysis)
    assert sorted(calls) == ["_against_controls", "_validity"]


def test_another_cell_can_be_read() -> None:
    rows = make_rows(6, fills=("background_texture", "black"))
    at = Headline("threshold", "truth", "black", valid=True)
    assert Analysis(rows).headline == Headline("area", "truth", "background_texture", valid=True)
    ranking = Analysis(rows, at=at).ranking
    assert set(ranking["fill"]) == {"black"}
    assert set(ranking["binarisation"]) == {"threshold"}
