"""What the terminal prints of a study, as plain text."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from rows import make_rows
from segproof import tables
from segproof.terminal import print_tables


def printed(made: Any) -> Any:
    stream = StringIO()
    print_tables(Console(file=stream, width=160), made)
    return stream.getvalue()


def test_rank_agreement_is_printed_once() -> None:
    made = tables.make(make_rows(20))
    text = printed(made)
    assert text.count("Rank agreement") == 1
    across: Any = made.agreement.set_index("factor")
    line = next(line for line in text.splitlines() if line.strip().startswith("tiles  "))
    w = f"{across.loc['images', 'w']:.2f}"
    assert line.split() == ["tiles", "iou_drop", w, "18", "10", "<", "0.001"]
    line = next(line for line in text.splitlines() if "fills:" in line)
    assert line.split() == ["fills:", "background_texture", "iou_drop", "-", "1", "10"]


def test_nothing_measured_prints_no_agreement() -> None:
    assert "Rank agreement" not in printed(tables.make(make_rows(2).iloc[:0]))
