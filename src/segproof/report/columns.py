"""Makes columns that many tables share, and names measures and statuses in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from segproof.analysis import Analysis, measure_of, method_label
from segproof.report.table import Cell, Column, Line, daggers, lines_of, text

__all__ = [
    "KINDS",
    "STATUS_TEXT",
    "at",
    "indexed",
    "kinds_of",
    "labelled",
    "layer_column",
    "m3_column",
    "measure_column",
    "measure_name",
    "method_column",
    "n_column",
    "where_of",
    "yes_no",
]

STATUS_TEXT = {
    "all_zero": "all zero",
    "constant": "constant",
    "non_finite": "not finite",
    "empty_region": "empty region",
}
KINDS = ("area", "threshold")


def at(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The lines of `frame` whose columns have the values `wanted`."""
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return frame


def measure_name(measure: str) -> str:
    """Short name of a headline measure, as a column title."""
    return "IoU drop" if measure == "iou_drop" else measure


def m3_column(analysis: Analysis) -> str:
    """Column that M3 is read from: certainty, or entropy in the paper preset."""
    return measure_of("highlighted_and_target", analysis.preset)[0]


def where_of(analysis: Analysis) -> str:
    """The headline cell in words, behind the title of a table."""
    return f"(fill {analysis.headline.fill}, region {analysis.headline.reference})"


def kinds_of(frame: pd.DataFrame) -> list[str]:
    """Ways of cutting that the lines of `frame` know, matched area first."""
    return [kind for kind in KINDS if (frame["binarisation"] == kind).any()]


def labelled(function: Callable[[str], str], key: str) -> Callable[[Line], Cell]:
    """A cell with the value of `key` as `function` writes it."""
    return lambda line: Cell(function(str(line[key])), line[key])


def layer_column(title: str = "Layer", *, control: str = "") -> Column:
    """The layer; `control` stands where there is none."""
    return Column(
        "layer", title, lambda i: Cell(i["layer"] or control, i["layer"]), role="identity"
    )


def method_column(*, marked: bool = False) -> Column:
    """The method, with its daggers where `marked`."""

    def cell(line: Line) -> Cell:
        mark = daggers(line) if marked else ""
        return Cell(method_label(line["method"]), line["method"], mark=mark)

    return Column("method", "Method", cell, role="identity")


def measure_column(title: str = "Measure") -> Column:
    """The measure of a line."""
    return Column("measure", title, labelled(measure_name, "measure"), role="identity")


def n_column(title: str = "n") -> Column:
    """The number of tiles; goes first where there is little room."""
    return Column("n", title, text("n"), number=True, role="secondary")


def yes_no(value: Any) -> str:
    """A flag in words; one without a value is undecided."""
    return "undecided" if pd.isna(value) else "yes" if value else "no"


def indexed(frame: pd.DataFrame, *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The lines of a data frame by the values of `keys`, for tables that put them side by side."""
    return {tuple(line[key] for key in keys): line for line in lines_of(frame)}
