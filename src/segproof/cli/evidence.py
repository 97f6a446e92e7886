"""Prints the tables of the evidence."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from segproof.analysis import method_label
from segproof.evidence import Evidence
from segproof.report import escape

__all__ = ["print_evidence"]


def print_evidence(out: Console, found: Evidence) -> None:
    """Print how far each measure agrees with the truth, and where each method sees the cue."""
    if not found.measures.empty:
        fill = str(found.measures["fill"].iloc[-1])
        title = f"Measures: Kendall tau with the truth (fill {fill})"
        table = Table(title=title, title_justify="left", box=None)
        for name in ("tier", "measure", "cut at"):
            table.add_column(name)
        heads = ("tau", "95 % interval", "ties", "oracle first", "random above", "sees the cue")
        for name in heads:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("")
        shown = found.measures[(found.measures["kind"] == "all") & (found.measures["fill"] == fill)]
        highest = shown.groupby(["tier", "measure"])["tau"].transform("max")
        order = shown.assign(best=highest).sort_values(
            ["tier", "best", "measure", "tau"], ascending=[True, False, True, False]
        )
        for row in _lines(order):
            table.add_row(
                row.tier,
                escape(row.measure),
                "" if row.binarisation == "map" else f"{row.binarisation}s",
                f"{row.tau:+.2f}",
                "" if pd.isna(row.low) else f"{row.low:+.2f} to {row.high:+.2f}",
                f"{row.ties:.0%}",
                f"{row.oracle_first:.0%}",
                f"{row.random_upper:.0%}",
                "" if pd.isna(row.sees_cue) else f"{row.sees_cue:.0%}",
                row.label,
            )
        out.print(table, "")
    if not found.methods.empty:
        table = Table(title="Methods: the best layer for the cue", title_justify="left", box=None)
        for name in ("tier", "method", "layer"):
            table.add_column(name)
        for name in ("cue recall", "95 % interval", "precision", "cue mass", "forwards"):
            table.add_column(name, justify="right", no_wrap=True)
        cued = found.methods[found.methods["kind"] == "all"]
        best = cued.sort_values("cue_recall", ascending=False, kind="stable")
        for row in _lines(best.groupby(["tier", "method"], sort=False).head(1)):
            table.add_row(
                row.tier,
                escape(method_label(row.method)),
                escape(row.layer) or "control",
                f"{row.cue_recall:.2f}",
                ""
                if pd.isna(row.cue_recall_low)
                else f"{row.cue_recall_low:.2f} to {row.cue_recall_high:.2f}",
                f"{row.precision:.2f}",
                f"{row.cue_mass:.2f}",
                f"{row.forwards}",
            )
        out.print(table, "")


def _lines(frame: pd.DataFrame) -> list[Any]:
    """The rows of a table with their columns as attributes."""
    return list(frame.itertuples(index=False))
