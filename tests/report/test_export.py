"""Tables as Markdown, LaTeX and JSON: the same numbers, marks and intervals in each."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rows import make_rows
from segproof.analysis import Analysis
from segproof.report.export import study_tables, to_json, to_latex, to_markdown
from segproof.report.table import Cell, Column, Table, text

MINUS = "\N{MINUS SIGN}"
TABLE = Table(
    (
        Column("name", "Name", text("name"), role="identity"),
        Column("x", "x_1", lambda line: line["cell"], number=True, unit="share"),
    ),
    [
        {"name": "a|b", "cell": Cell("0.5", 0.5, interval=(0.4, 0.6), strong=True, mark="\u2020")},
        {"name": "50 %", "cell": Cell(f"{MINUS}0.1", -0.1, notes=("& more",), struck=True)},
        {"name": "c", "cell": Cell("\N{EN DASH}", float("nan"))},
    ],
    "A title",
    "What it says.",
)


def test_markdown() -> None:
    assert to_markdown(TABLE).splitlines() == [
        "**A title**",
        "",
        "| Name | x\\_1 |",
        "| --- | ---: |",
        "| a\\|b | **0.5**\u2020 \\[0.400, 0.600\\] |",
        f"| 50 % | ~~{MINUS}0.1~~ & more |",
        "| c | \N{EN DASH} |",
        "",
        "What it says.",
    ]


def test_latex() -> None:
    assert to_latex(TABLE).splitlines() == [
        "% A title",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"Name & x\_1 \\",
        r"\midrule",
        r"a|b & \textbf{0.5}\dag{} [0.400, 0.600] \\",
        r"50 \% & \sout{$-$0.1} \& more \\",
        r"c & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_json_holds_values_not_texts() -> None:
    data = json.loads(json.dumps(to_json(TABLE), allow_nan=False))
    assert data["title"] == "A title"
    assert data["columns"][1] == {"key": "x", "title": "x_1", "unit": "share"}
    assert data["lines"] == [
        {"name": "a|b", "x": 0.5, "x_interval": [0.4, 0.6]},
        {"name": "50 %", "x": -0.1, "x_struck": True},
        {"name": "c", "x": None},
    ]


@pytest.mark.parametrize("fills", [("background_texture", "neutral"), ("neutral",)])
def test_every_output_of_a_study_has_the_numbers_of_the_analysis(fills: Any) -> None:
    analysis = Analysis(make_rows(6, fills=fills))
    tables = study_tables(analysis)
    names = ["ranking", "best_area", "best_threshold", "faithfulness", "layers", "agreement"]
    assert list(tables) == [*names, "validity"]
    ranking = tables["ranking"]
    lines = to_json(ranking)["lines"]
    assert [line["method"] for line in lines] == analysis.ranking["method"].tolist()
    assert [line[analysis.measure] for line in lines] == analysis.ranking["mean"].tolist()
    for mean in analysis.ranking["mean"]:
        shown = f"{mean:.3f}".replace("-", MINUS)
        assert shown in to_markdown(ranking)
        assert shown.replace(MINUS, "$-$") in to_latex(ranking)
    for table in tables.values():
        json.dumps(to_json(table), allow_nan=False)
        assert to_latex(table).count("\\\\") == 1 + len(table.lines)
        assert to_markdown(table).count("\n|") >= 1 + len(table.lines)


def test_struck_numbers_are_struck_in_every_output() -> None:
    table = study_tables(Analysis(make_rows(6, fills=("neutral",))))["faithfulness"]
    assert all(line["iou_drop_area_struck"] for line in to_json(table)["lines"])
    assert to_markdown(table).count("~~") >= 2 * len(table.lines)
    assert to_latex(table).count(r"\sout{") >= len(table.lines)


def test_nothing_measured_has_no_tables() -> None:
    assert set(study_tables(Analysis(make_rows(2).iloc[:0]))) <= {"validity"}
