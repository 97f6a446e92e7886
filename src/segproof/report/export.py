"""Writes the tables of a study as Markdown, LaTeX or JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from segproof.analysis import Analysis
from segproof.report.columns import KINDS, at
from segproof.report.table import DAGGER, DASH, DOUBLE_DAGGER, MINUS, Cell, Table
from segproof.report.task_tables import best_table, faithfulness_table, layers_table, ranking_table
from segproof.report.trust_tables import agreement_table, validity_table

__all__ = ["study_tables", "to_json", "to_latex", "to_markdown"]


def study_tables(analysis: Analysis) -> dict[str, Table]:
    """The main tables of a study at its headline cell, by name: ranking, best at matched area and
    at thresholds, faithfulness, layers, agreement, validity. Those without a line are left out.
    """
    where = {"reference": analysis.headline.reference, "fill": analysis.headline.fill}
    tables = {"ranking": ranking_table(analysis, analysis.ranking)}
    for kind in KINDS:
        tables[f"best_{kind}"] = best_table(analysis, at(analysis.best, **where), kind)
    tables["faithfulness"] = faithfulness_table(analysis, at(analysis.faithfulness, **where))
    tables["layers"] = layers_table(analysis, at(analysis.layers, **where))
    tables["agreement"] = agreement_table(analysis)
    tables["validity"] = validity_table(analysis)
    return {name: table for name, table in tables.items() if table.lines}


def to_json(table: Table) -> dict[str, Any]:
    """The table as plain data: title, caption, columns, and one mapping per line.

    Values are numbers where the table shows numbers, null where there is none; KEY_interval holds
    the 95 % interval, KEY_struck is true where the fill is not valid.
    """
    lines = []
    for cells in table.cells():
        line: dict[str, Any] = {}
        for column, cell in zip(table.columns, cells, strict=True):
            line[column.key] = _plain(cell.text if cell.value is None else cell.value)
            if cell.interval is not None:
                line[f"{column.key}_interval"] = [_plain(end) for end in cell.interval]
            if cell.struck:
                line[f"{column.key}_struck"] = True
        lines.append(line)
    columns = [{"key": c.key, "title": c.title, "unit": c.unit} for c in table.columns]
    return {"title": table.title, "caption": table.caption, "columns": columns, "lines": lines}


def _plain(value: Any) -> Any:
    """`value` as JSON knows it: no numpy types, no NaN."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or (isinstance(value, float) and not np.isfinite(value)):
        return None
    return value


def to_markdown(table: Table) -> str:
    """The table in Markdown: best values bold, struck values struck out, intervals behind them."""
    head = [_markdown(column.title) for column in table.columns]
    rules = ["---:" if column.number else "---" for column in table.columns]
    body = [[_markdown_cell(cell) for cell in cells] for cells in table.cells()]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in [head, rules, *body])
    before = f"**{_markdown(table.title)}**\n\n" if table.title else ""
    after = f"\n\n{_markdown(table.caption)}" if table.caption else ""
    return f"{before}{rows}{after}\n"


def _markdown_cell(cell: Cell) -> str:
    words = _markdown(cell.text)
    if words and cell.struck:
        words = f"~~{words}~~"
    elif words and cell.strong:
        words = f"**{words}**"
    return " ".join(part for part in (words + cell.mark, *map(_markdown, cell.small)) if part)


def _markdown(plain: str) -> str:
    """Text in which no character starts markup, a column or a line."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]<>|~#" else c for c in plain)
    return " ".join(escaped.split())


LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    MINUS: "$-$",
    DASH: "--",
    DAGGER: r"\dag{}",
    DOUBLE_DAGGER: r"\ddag{}",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
}


def to_latex(table: Table) -> str:
    """The table in LaTeX (packages booktabs and ulem): best values bold, struck ones struck out."""
    kinds = "".join("r" if column.number else "l" for column in table.columns)
    head = [_latex(column.title) for column in table.columns]
    body = [[_latex_cell(cell) for cell in cells] for cells in table.cells()]
    lines = [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", f"{' & '.join(head)} \\\\", r"\midrule"]
    lines += [f"{' & '.join(row)} \\\\" for row in body]
    lines += [r"\bottomrule", r"\end{tabular}"]
    before = [f"% {' '.join(table.title.split())}"] if table.title else []
    return "\n".join([*before, *lines]) + "\n"


def _latex_cell(cell: Cell) -> str:
    words = _latex(cell.text)
    if words and cell.struck:
        words = rf"\sout{{{words}}}"
    elif words and cell.strong:
        words = rf"\textbf{{{words}}}"
    return " ".join(part for part in (words + _latex(cell.mark), *map(_latex, cell.small)) if part)


def _latex(plain: str) -> str:
    return "".join(LATEX.get(c, c) for c in " ".join(plain.split()))
