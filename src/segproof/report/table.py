"""Holds one table for a reader, whatever it is written as.

A table is columns over lines. A line is one row of a data frame; a column knows which cell it makes
of a line, so that every output (terminal, page, Markdown, LaTeX, JSON) shows the same texts, marks
and intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

__all__ = [
    "DAGGER",
    "DASH",
    "DOUBLE_DAGGER",
    "MINUS",
    "Cell",
    "Column",
    "Line",
    "Table",
    "daggers",
    "facts",
    "interval_text",
    "lines_of",
    "mean_cell",
    "number_cell",
    "number_text",
    "p_text",
    "text",
]

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
DAGGER, DOUBLE_DAGGER = "\N{DAGGER}", "\N{DOUBLE DAGGER}"
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One cell: its text, the value behind the text, and how it is marked.

    `interval` is a 95 % interval of the value, `notes` are smaller lines below the text, `mark` the
    daggers behind it. `struck`: the fill is not valid, so the number means nothing. `strong`: the
    best, or what cannot be told from it.
    """

    text: str
    value: object = None
    interval: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    mark: str = ""
    struck: bool = False
    strong: bool = False

    @property
    def small(self) -> tuple[str, ...]:
        """The smaller lines below the text: the interval, then the notes."""
        between = "" if self.interval is None else interval_text(*self.interval)
        return tuple(line for line in (between, *self.notes) if line)


@dataclass(frozen=True)
class Column:
    """One column: the key of its values, its title, and the cell that it makes of a line.

    `role` says what happens where there is little room: `identity` columns (layer, method) are
    never shortened or left out, `secondary` ones go first. `unit` is that of the values.
    """

    key: str
    title: str
    cell: Callable[[Line], Cell]
    number: bool = False
    role: Literal["identity", "value", "secondary"] = "value"
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """Columns over lines, with a title above and a caption below."""

    columns: tuple[Column, ...]
    lines: Sequence[Line]
    title: str = ""
    caption: str = ""

    def cells(self) -> list[list[Cell]]:
        """The cells, line by line, in the order of the columns."""
        return [[column.cell(line) for column in self.columns] for line in self.lines]

    @property
    def titled(self) -> bool:
        """Whether any column has a title; a list of facts has none."""
        return any(column.title for column in self.columns)


# --- numbers as people read them --------------------------------------------------------------


def lines_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a data frame as mappings from column to value."""
    records: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    return records


def number_text(value: Any, digits: int = 3, *, sign: bool = False) -> str:
    """A number with `digits` decimals and a true minus sign; a dash where there is none."""
    if value is None or pd.isna(value):
        return DASH
    digits_shown = f"{float(value):{'+' if sign else ''}.{digits}f}"
    if float(digits_shown) == 0:  # neither -0.000 nor +0.000
        digits_shown = digits_shown.lstrip("+-")
    return digits_shown.replace("-", MINUS)


def interval_text(low: Any, high: Any, digits: int = 3) -> str:
    """An interval in brackets; empty where it does not exist."""
    if pd.isna(low) or pd.isna(high):
        return ""
    return f"[{number_text(low, digits)}, {number_text(high, digits)}]"


def p_text(value: Any) -> str:
    """A p value with as many digits as it deserves; a dash where there is none."""
    if value is None or pd.isna(value):
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def daggers(line: Line) -> str:
    """Marks of a line with beats_random and beats_p_c; none where a control was not run."""
    lost = [
        sign
        for flag, sign in (("beats_random", DAGGER), ("beats_p_c", DOUBLE_DAGGER))
        if bool(pd.notna(line[flag])) and not line[flag]
    ]
    return "".join(lost)


# --- cells ------------------------------------------------------------------------------------


def text(key: str) -> Callable[[Line], Cell]:
    """A cell with the value of `key` as it stands."""
    return lambda line: Cell(str(line[key]), line[key])


def number_cell(value: Any, digits: int = 3, *, sign: bool = False, **more: Any) -> Cell:
    """A cell with a number; `more` are fields of `Cell`."""
    return Cell(number_text(value, digits, sign=sign), value, **more)


def mean_cell(line: Line, **more: Any) -> Cell:
    """A cell with a mean and its interval, struck out where the line is."""
    between = (line["low"], line["high"])
    return number_cell(line["mean"], interval=between, struck=bool(line["struck"]), **more)


def facts(pairs: Iterable[tuple[str, str]]) -> Table:
    """A list of names and what they are, without column titles; empty ones are left out."""
    lines = [{"name": name, "value": value} for name, value in pairs if value]
    return Table((Column("name", "", text("name")), Column("value", "", text("value"))), lines)
