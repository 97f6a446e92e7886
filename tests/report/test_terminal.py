"""What the terminal prints of a study, as plain text."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from rows import make_rows
from segproof.analysis import Analysis
from segproof.report.terminal import print_tables


def printed(made: Any, *, brief: bool = False) -> Any:
    stream = StringIO()
    print_tables(Console(file=stream, width=160), made, brief=brief)
    return stream.getvalue()


def test_rank_agreement_is_printed_once() -> None:
    made = Analysis(make_rows(20))
    text = printed(made)
    assert text.count("Rank agreement") == 1
    across: Any = made.agreement.set_index("factor")
    line = next(line for line in text.splitlines() if line.strip().startswith("tiles  "))
    w = f"{across.loc['images', 'w']:.2f}"
    assert line.split() == ["tiles", "contrast", w, "18", "10", "<", "0.001"]
    line = next(line for line in text.splitlines() if "fills:" in line)
    assert line.split() == ["fills:", "background_texture", "contrast", "-", "1", "10"]


def test_what_judges_comes_first_and_alone_where_brief() -> None:
    made = Analysis(make_rows(6))
    text = printed(made)
    assert text.startswith("contrast M2 \N{MINUS SIGN} M1 (higher is better), mean over areas")
    best = made.ranking.iloc[0]
    line = text.splitlines()[2]  # after title and head
    assert f"{best['mean']:+.3f}" in line
    assert " best " in line
    assert "Task 2: IoU drop" in text
    assert "Task" not in printed(made, brief=True)
    paper = Analysis(make_rows(3, fills=("neutral",), preset="paper"), "paper")
    assert printed(paper, brief=True).startswith("IoU drop (higher is better)")


def test_nothing_measured_prints_no_agreement() -> None:
    assert "Rank agreement" not in printed(Analysis(make_rows(2).iloc[:0]))
