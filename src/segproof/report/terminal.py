"""Prints what a person sees in a terminal: tables, a progress bar, a Ctrl-C that loses nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from segproof.analysis import VALID_DROP, Analysis, RunComparison
from segproof.errors import printable
from segproof.report.export import study_tables
from segproof.report.screen import fitted
from segproof.report.table import DAGGER, DOUBLE_DAGGER, Table
from segproof.report.task_tables import comparison_table
from segproof.report.trust_tables import outlines_table
from segproof.study import DataReport

__all__ = [
    "escape",
    "graceful_stop",
    "print_analysis",
    "print_check",
    "print_comparison",
    "print_fills",
    "print_table",
    "progress_bar",
]

BRIEF: Final = 10  # lines of the ranking that are printed by default
KINDS_SHOWN: Final = 15  # kinds of pictures that a check of a data set lists


def escape(text: str) -> str:
    """Text of others for the terminal: neither markup nor control characters work in it."""
    return escape_markup(printable(text, keep="\n"))


def print_check(out: Console, survey: DataReport) -> None:
    """Print what a folder of tiles holds: pairs, mask values, pictures, and what is wrong."""
    out.print(escape(survey.rule), soft_wrap=True, highlight=False)
    for image, mask in survey.examples:
        pair = f"  {escape(image)}  [dim]with[/]  {escape(mask)}"
        out.print(pair, soft_wrap=True, highlight=False)
    for count, what in (
        (survey.unused_images, "images that have no mask by the layout of the data set"),
        (survey.unused_masks, "masks without an image"),
    ):
        if count:
            out.print(f"  left out: {count} {what}", style="dim")
    kinds = ", ".join(f"{count} of {kind}" for kind, count in survey.pictures[:KINDS_SHOWN])
    kinds += ", ..." if len(survey.pictures) > KINDS_SHOWN else ""
    if survey.low is not None and survey.high is not None:
        kinds += f"; stored values from {survey.low:g} to {survey.high:g}"
    out.print(f"pictures: {escape(kinds) or 'none could be read'}", soft_wrap=True, highlight=False)
    table = RichTable(title="What the mask values mean", title_justify="left", box=None)
    table.add_column("value", justify="right")
    table.add_column("read as")
    table.add_column("share of pixels", justify="right", no_wrap=True)
    for line in survey.values:
        style = "red" if line.meaning == "refused" else "" if line.pixels else "yellow"
        cells = escape(line.value) or "-", escape(line.meaning), f"{100 * line.share:.2f} %"
        table.add_row(*cells, style=style)
    out.print(table)
    if survey.more_values:
        out.print("and further values", style="dim")
    for problem in survey.problems:
        names = ", ".join(problem.names) + (", ..." if problem.count > len(problem.names) else "")
        out.print(f"[bold]{problem.count} x[/] {escape(names)}", soft_wrap=True, highlight=False)
        said = f"  found {problem.found}; expected {problem.expected}"
        out.print(escape(said), soft_wrap=True, highlight=False)
        out.print(f"  {escape(problem.fix)}", soft_wrap=True, highlight=False)
    out.print(f"{survey.good} good, {survey.bad} bad")


def print_analysis(out: Console, analysis: Analysis, *, everything: bool = False) -> None:
    """Print the verdict and the ranking of all layers and methods, at most BRIEF lines of it.

    `everything`: the whole ranking, the tables of tasks 1 to 3 and the rank agreement as well, all
    at the headline's fill and region.
    """
    out.print(f"[bold]{escape(analysis.verdict)}[/]\n")
    tables = study_tables(analysis)
    ranking = tables.get("ranking")
    if ranking is not None:
        more = 0 if everything else max(0, len(ranking.lines) - BRIEF)
        print_table(out, ranking if not more else replace(ranking, lines=ranking.lines[:BRIEF]))
        if more:
            out.print(f"{more} more layers and methods: --all prints them", style="dim")
        out.print("")
    if everything:
        for name in ("best_threshold", "best_area", "faithfulness", "layers", "agreement"):
            if name in tables:
                print_table(out, tables[name])
                out.print("")


def print_table(out: Console, table: Table) -> None:
    """Print a table at the width of the terminal; see `fitted`."""
    if table.title:
        out.print(escape(table.title), style="bold")
    # soft_wrap: lines wider than the terminal are better than names that are cut
    out.print(fitted(table, out.width), soft_wrap=True)
    marks = "".join(cell.mark for cells in table.cells() for cell in cells)
    for sign, what in (
        (DAGGER, "not shown to beat random blobs"),
        (DOUBLE_DAGGER, "not shown to beat the probability map"),
    ):
        if sign in marks:
            out.print(f"{sign} {what}", style="dim")


def print_comparison(out: Console, comparison: RunComparison) -> None:
    """Print run B against run A; positive differences are better."""
    print_table(out, comparison_table(comparison))


def print_fills(
    out: Console,
    trials: Mapping[str, Mapping[str, Mapping[str, float]]],
    outline: str,
    fills: Sequence[str],
) -> None:
    """Print fill x outline: mean (lowest) relative drop of confidence without the target."""
    tiles = int(next(iter(next(iter(trials.values())).values()))["n"])
    word = "tile" if tiles == 1 else "tiles"
    title = f"Relative drop of confidence without the target: mean (lowest) of {tiles} {word}"
    print_table(out, replace(outlines_table(trials, outline, fills), title=title))
    out.print(
        "taken: what a strict study uses; struck out: below"
        f" {VALID_DROP:g}, the fill draws the target instead of removing it",
        style="dim",
    )


@contextmanager
def progress_bar(err: Console, unit: str) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal, nothing elsewhere: advance(done, total, note)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as progress:
        task = progress.add_task(unit, total=None, rate="")

        def advance(done: float, total: float | None, note: str = "") -> None:
            speed = progress.tasks[task].speed
            rate = f"{speed:.1f} {unit}/s" if speed else ""
            progress.update(task, completed=done, total=total, description=note or unit, rate=rate)
            # The line ends with the work, so that no text is printed into it.
            if total is not None and done >= total:
                progress.stop()
            elif not progress.live.is_started:
                progress.start()

        yield advance


@contextmanager
def graceful_stop(err: Console) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C, or SIGTERM (what schedulers of clusters send), lets the tile finish and be
    stored; the second one interrupts at once.
    """
    stopping = False

    def handle(_signal: int, _frame: object) -> None:
        nonlocal stopping
        if stopping:
            raise KeyboardInterrupt
        stopping = True
        err.print("stopping after this tile; press Ctrl-C again to stop now", style="yellow")

    before = {kind: signal.signal(kind, handle) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopping
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
