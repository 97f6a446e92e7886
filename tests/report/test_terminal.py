"""What the terminal prints of a study: golden screens at three widths, and what must never go."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from rows import make_rows
from segproof.analysis import Analysis
from segproof.report.terminal import BRIEF, print_analysis, progress_bar

GOLDEN = Path(__file__).parent.parent / "golden"
RENEW = "SEGPROOF_RENEW=1 .venv/bin/python -m pytest tests/report/test_terminal.py"


def printed(analysis: Any, *, everything: bool = False, width: int = 160) -> str:
    stream = StringIO()
    print_analysis(Console(file=stream, width=width), analysis, everything=everything)
    return stream.getvalue()


@pytest.fixture(scope="module")
def analysis() -> Any:
    """Two layers, one of a long name, and six methods: more candidates than are printed at once."""
    layers = ("decoder.blocks.1", "decoder:2")
    rows = make_rows(8, layers=layers, thresholds=(0.3,), areas=(0.1, 0.3))
    rows["method"] = rows["method"].replace("eigen_cam", "input_x_gradient")
    copy = rows[rows["method"] == "grad_cam"].assign(method="grad_cam_elementwise")
    return Analysis(pd.concat([rows, copy], ignore_index=True))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_screens_are_the_golden_ones(analysis: Any, width: int) -> None:
    screen = printed(analysis, width=width)
    text = (
        f"{screen}\n{'-' * width}\nwith --all:\n\n{printed(analysis, everything=True, width=width)}"
    )
    path = GOLDEN / f"terminal_{width}.txt"
    if os.environ.get("SEGPROOF_RENEW") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"if that is meant, renew: {RENEW}"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_screen(analysis: Any, width: int) -> None:
    assert max(map(len, printed(analysis, width=width).splitlines())) <= width


def test_the_default_is_the_verdict_and_ten_lines(analysis: Any) -> None:
    text = printed(analysis)
    assert text.startswith(analysis.verdict[:60])
    assert len(analysis.ranking) > BRIEF
    table = text[text.index("Rank  Layer") :].splitlines()
    assert len([line for line in table if "decoder" in line]) == BRIEF
    assert "2 more layers and methods: --all prints them" in text
    assert "Task" not in text
    whole = printed(analysis, everything=True)
    assert "--all" not in whole
    for heading in ("Task 1: best method", "Task 2: IoU drop", "Task 3: layers", "Rank agreement"):
        assert heading in whole


def test_names_stay_whole_on_a_narrow_screen(analysis: Any) -> None:
    names = [f"{layer}  " for layer in ("decoder.blocks.1", "decoder:2")]
    for width in (20, 40, 60):
        text = printed(analysis, width=width)
        lines = text[text.index("Rank  Layer") :].splitlines()[1 : BRIEF + 1]
        assert all(any(name in line for name in names) for line in lines)
        for line, row in zip(lines, analysis.ranking.head(BRIEF).itertuples(), strict=True):
            assert f"{row.mean:.3f}".replace("-", "\N{MINUS SIGN}") in line
            assert ("\N{MULTIPLICATION SIGN} input" in line) == (row.method == "input_x_gradient")


def test_the_measure_of_the_answer_heads_the_ranking(analysis: Any) -> None:
    assert "\ncontrast M2 \N{MINUS SIGN} M1 (higher is better), mean over areas" in printed(
        analysis
    )
    paper = Analysis(make_rows(3, fills=("neutral",), preset="paper"), "paper")
    assert "\nIoU drop (higher is better), mean over thresholds" in printed(paper)


def test_rank_agreement_is_printed_once() -> None:
    analysis = Analysis(make_rows(20))
    text = printed(analysis, everything=True)
    assert text.count("Rank agreement") == 1
    across: Any = analysis.agreement.set_index("factor")
    line = next(line for line in text.splitlines() if line.startswith("tiles  "))
    w = f"{across.loc['images', 'w']:.2f}"
    assert line.split() == ["tiles", "contrast", w, "18", "10", "<", "0.001"]
    line = next(line for line in text.splitlines() if line.startswith("fills "))
    assert line.split() == [
        "fills",
        "background_texture",
        "contrast",
        "\u2013",
        "1",
        "10",
        "\u2013",
    ]


def test_nothing_measured_prints_the_verdict_alone() -> None:
    analysis = Analysis(make_rows(2).iloc[:0])
    assert printed(analysis, everything=True).split() == analysis.verdict.split()


def test_hostile_names_reach_the_terminal_as_text() -> None:
    rows = make_rows(3, layers=("[red]\x1b[31mlayer",), areas=(0.1,), thresholds=())
    text = printed(Analysis(rows), everything=True)
    assert "[red]\\x1b[31mlayer" in text
    assert "\x1b" not in text


def test_the_progress_line_ends_with_the_work() -> None:
    stream = StringIO()
    console = Console(file=stream, force_terminal=True, width=80)
    with progress_bar(console, "tiles") as advance:
        advance(1, 2)
        assert "\x1b[?25h" not in stream.getvalue()  # the cursor is hidden while the line lives
        advance(2, 2)
        assert "\x1b[?25h" in stream.getvalue()
        stream.seek(0)
        stream.truncate()
        advance(2, 2)
        assert stream.getvalue() == ""
