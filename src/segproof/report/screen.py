"""Cuts tables to the width of a terminal: names stay whole, secondary columns go first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Final

from rich.cells import cell_len
from rich.text import Text

from segproof.errors import printable
from segproof.report.table import Cell, Table, interval_text

__all__ = ["fitted"]

GAP: Final = "  "  # between two columns


@dataclass(frozen=True)
class _ScreenColumn:
    """A column of a terminal: lines of every cell with their styles, and the widths they need."""

    title: str
    cells: list[list[tuple[str, str]]]  # (text, style) of each line of each cell
    number: bool
    secondary: bool
    natural: int  # characters of the longest line
    least: int  # characters below which it must not go


def fitted(table: Table, width: int) -> Text:
    """The table for a terminal of `width` characters.

    Intervals stand in columns of their own. Where there is too little room, secondary columns are
    left out, the last one first, then all notes but the first; then values wrap. Identity columns
    (layer, method) and numbers stay whole, even where the table becomes wider than the terminal.
    """
    columns = _without_secondary(_columns(table), width)
    if _total([column.natural for column in columns]) > width:
        columns = _without_secondary(_columns(table, notes=1), width)
    widths = _widths(columns, width)
    head = [[(column.title, "bold")] for column in columns]
    rows = [head, *([column.cells[k] for column in columns] for k in range(len(table.lines)))]
    return Text("\n").join([line for row in rows for line in _lines(row, columns, widths)])


def _without_secondary(columns: list[_ScreenColumn], width: int) -> list[_ScreenColumn]:
    """Leave out secondary columns, the last one first, until the others fit."""
    while _total([column.natural for column in columns]) > width:
        last = next((k for k in reversed(range(len(columns))) if columns[k].secondary), None)
        if last is None:
            break
        columns = columns[:last] + columns[last + 1 :]
    return columns


def _total(widths: Sequence[int]) -> int:
    """Characters of a line with columns of these widths."""
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _widths(columns: Sequence[_ScreenColumn], width: int) -> list[int]:
    """Narrow the widest column that may wrap, one character at a time, until all fit."""
    widths = [column.natural for column in columns]
    while _total(widths) > width:
        open_ = [k for k, column in enumerate(columns) if widths[k] > column.least]
        if not open_:
            break
        widths[max(open_, key=lambda k: widths[k])] -= 1
    return widths


def _lines(
    row: Sequence[Sequence[tuple[str, str]]],
    columns: Sequence[_ScreenColumn],
    widths: Sequence[int],
) -> list[Text]:
    """The screen lines of one row; shorter cells end in blank lines."""
    blocks = [
        [(part, style) for text, style in cell for part in wrap(text, size) or [""]]
        for cell, size in zip(row, widths, strict=True)
    ]
    lines = []
    for k in range(max(map(len, blocks))):
        line = Text()
        for place, (block, column, size) in enumerate(zip(blocks, columns, widths, strict=True)):
            text, style = block[k] if k < len(block) else ("", "")
            space = " " * (size - cell_len(text))
            line.append(GAP if place else "")
            line.append(space if column.number else "")
            line.append(text, style=style or None)
            line.append("" if column.number else space)
        line.rstrip()
        lines.append(line)
    return lines


def _columns(table: Table, notes: int | None = None) -> list[_ScreenColumn]:
    """The columns of a table, each interval in a column behind its value, at most `notes` notes."""
    columns = []
    rows = table.cells()
    for place, column in enumerate(table.columns):
        cells = [row[place] for row in rows]
        cell_lines = [_shown(cell, notes) for cell in cells]
        title = printable(column.title)
        texts = [title, *(text for lines in cell_lines for text, _ in lines)]
        natural = max(map(cell_len, texts))
        whole = column.number or column.role == "identity"
        words = max((cell_len(word) for text in texts for word in text.split()), default=0)
        secondary = column.role == "secondary"
        least = natural if whole else words
        columns.append(_ScreenColumn(title, cell_lines, column.number, secondary, natural, least))
        between = ["" if c.interval is None else interval_text(*c.interval) for c in cells]
        if any(between):
            head = "95 % interval"
            size = max(map(cell_len, (head, *between)))
            texts_of = [[(text, "")] for text in between]
            columns.append(_ScreenColumn(head, texts_of, True, True, size, size))
    return columns


def _shown(cell: Cell, notes: int | None) -> list[tuple[str, str]]:
    """The lines of a cell: struck out or bold, notes dim below."""
    style = "strike" if cell.struck else "bold" if cell.strong else ""
    below = [(printable(note), "dim") for note in cell.notes[:notes] if note]
    return [(printable(cell.text) + cell.mark, style), *below]
