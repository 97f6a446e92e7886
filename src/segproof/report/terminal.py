"""What a person sees in a terminal: tables, a progress bar, a Ctrl-C that loses nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pandas as pd
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from segproof.analysis import VALID_DROP, Analysis, RunComparison, measure_label, method_label
from segproof.errors import printable
from segproof.measures import Card, MeasureInfo, evidence_of
from segproof.study import DataReport, Status

__all__ = [
    "escape",
    "graceful_stop",
    "print_cards",
    "print_check",
    "print_comparison",
    "print_fills",
    "print_status",
    "print_tables",
    "progress_bar",
]


MOST = 15  # lines of a brief ranking
TESTED: Final = {  # what the evidence calls the uses of a measure of one shown picture
    "confidence": (
        ("M1", "m1_confidence", "area"),
        ("M2", "m2_confidence", "area"),
        ("M2 - M1", "contrast", "area"),
    ),
    "certainty": (("M3", "m3_certainty", "area"),),
    "iou": (("IoU drop", "iou_drop", "area"),),
}


def escape(text: str) -> str:
    """Text of others for the terminal: neither markup nor control characters work in it."""
    return escape_markup(printable(text, keep="\n"))


def print_status(out: Console, found: Status) -> None:
    """Print how far a run is."""
    state = "running" if found.running else "not running"
    if found.count is None:
        out.print(f"{state}, nothing planned yet")
        return
    share = found.done / found.count
    out.print(f"[bold]{found.done} of {found.count} tiles[/] ({share:.0%}), {state}")
    if found.rate is not None:
        out.print(f"rate: {60 * found.rate:.1f} tiles/min")
    if found.left is not None and found.done < found.count:
        hours, seconds = divmod(round(found.left), 3600)
        out.print(f"left: {hours} h {seconds // 60:02} min {seconds % 60:02} s")
    if found.decided:
        out.print(escape(found.decided), soft_wrap=True)
    out.print(f"tiles: {found.ok} ok, {found.skipped} skipped, {found.failed} failed")
    for reason, count in found.reasons.items():
        out.print(f"  {count} x {escape(reason)}", soft_wrap=True, highlight=False)


def print_check(out: Console, found: DataReport) -> None:
    """Print what a folder of tiles holds: pairs, mask values, pictures, and what is wrong."""
    out.print(escape(found.rule), soft_wrap=True, highlight=False)
    for image, mask in found.examples:
        pair = f"  {escape(image)}  [dim]with[/]  {escape(mask)}"
        out.print(pair, soft_wrap=True, highlight=False)
    for count, what in (
        (found.unused_images, "images that have no mask by the layout of the data set"),
        (found.unused_masks, "masks without an image"),
    ):
        if count:
            out.print(f"  left out: {count} {what}", style="dim")
    kinds = ", ".join(f"{count} of {kind}" for kind, count in found.pictures[:MOST])
    kinds += ", ..." if len(found.pictures) > MOST else ""
    if found.low is not None and found.high is not None:
        kinds += f"; stored values from {found.low:g} to {found.high:g}"
    out.print(f"pictures: {escape(kinds) or 'none could be read'}", soft_wrap=True, highlight=False)
    table = Table(title="What the mask values mean", title_justify="left", box=None)
    table.add_column("value", justify="right")
    table.add_column("read as")
    table.add_column("share of pixels", justify="right", no_wrap=True)
    for line in found.values:
        style = "red" if line.meaning == "refused" else "" if line.pixels else "yellow"
        cells = escape(line.value) or "-", escape(line.meaning), f"{100 * line.share:.2f} %"
        table.add_row(*cells, style=style)
    out.print(table)
    if found.more_values:
        out.print("and further values", style="dim")
    for problem in found.problems:
        names = ", ".join(problem.names) + (", ..." if problem.count > len(problem.names) else "")
        out.print(f"[bold]{problem.count} x[/] {escape(names)}", soft_wrap=True, highlight=False)
        said = f"  found {problem.found}; expected {problem.expected}"
        out.print(escape(said), soft_wrap=True, highlight=False)
        out.print(f"  {escape(problem.fix)}", soft_wrap=True, highlight=False)
    out.print(f"{found.good} good, {found.bad} bad")


def print_tables(out: Console, made: Analysis, *, brief: bool = False) -> None:
    """Print the ranking of all methods and layers together by the measure that judges, the best of
    them, then tasks 1-3 and the rank agreement, all at the headline fill; struck through: outlines.

    `brief`: only the ranking.
    """
    _print_candidates(out, made)
    if brief:
        return
    for kind in ("threshold", "area"):
        _print_best(out, made, kind)
    _print_ranking(out, made)
    _print_layers(out, made)
    _print_agreement(out, made)


def _print_best(out: Console, made: Analysis, kind: str) -> None:
    best = _at_headline(made.best, made)
    best = best[best["binarisation"] == kind]
    if best.empty:
        return
    where = "at fixed thresholds" if kind == "threshold" else "at matched area"
    table = _table(f"Task 1: best method {where}", made)
    table.add_column("layer")
    table.add_column(kind, justify="right")
    for name in ("M1", "M2", "M3"):
        table.add_column(measure_label(name, made.preset))
    for (layer, level), part in best.groupby(["layer", "level"], sort=True):
        cells = {row.measure: _best_cell(row) for row in _lines(part)}
        table.add_row(
            escape(str(layer)),
            f"{level:g}",
            *(cells.get(name, "") for name in ("M1", "M2", "M3")),
        )
    out.print(table, "")


def _print_ranking(out: Console, made: Analysis) -> None:
    at, ranking = made.headline, made.faithfulness
    ranking = ranking[(ranking["fill"] == at.fill) & (ranking["binarisation"] == at.binarisation)]
    table = _table(f"Task 2: IoU drop (higher = more faithful), mean over {at.binarisation}s", made)
    for name in ("rank", "layer", "method"):
        table.add_column(name)
    for name in ("IoU drop", "95 % interval", "tiles"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("beats random / p_c")
    ranking = ranking.assign(control=ranking["layer"] == "")
    order = ["control", "layer", "mean"]
    for row in _lines(ranking.sort_values(order, ascending=[True, True, False])):
        rank = "-" if pd.isna(row.rank) else f"{row.rank:.0f}"
        flags = "" if not row.layer else f"{_flag(row.beats_random)} / {_flag(row.beats_p_c)}"
        table.add_row(
            rank,
            escape(row.layer) or "control",
            method_label(row.method),
            _strike(f"{row.mean:+.3f}", row.struck),
            f"{row.low:+.3f} to {row.high:+.3f}",
            f"{row.n}",
            flags,
        )
    out.print(table, "")


def _print_candidates(out: Console, made: Analysis) -> None:
    """All layer x method pairs together by the measure that judges, best first."""
    ranking = made.ranking
    if ranking.empty:
        return
    measure = measure_label(made.measure, made.preset)
    table = _table(f"{measure}, mean over {made.headline.binarisation}s", made)
    for name in ("rank", "layer", "method"):
        table.add_column(name)
    for name in ("mean", "95 % interval", "tiles", "p vs best"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("beats random / p_c")
    for row in _lines(ranking.head(MOST)):
        table.add_row(
            "-" if pd.isna(row.rank) else f"{row.rank:.0f}",
            escape(row.layer),
            method_label(row.method),
            f"{row.mean:+.3f}",
            f"{row.low:+.3f} to {row.high:+.3f}",
            f"{row.n}",
            "best" if row.is_best else "" if pd.isna(row.p_vs_best) else f"{row.p_vs_best:.3f}",
            f"{_flag(row.beats_random)} / {_flag(row.beats_p_c)}",
        )
    out.print(table)
    if len(ranking) > MOST:
        out.print(f"... and {len(ranking) - MOST} more in the report", style="dim")
    out.print("")


def print_cards(out: Console, known: Mapping[str, MeasureInfo | Card]) -> None:
    """Print what a person has to know of each measure."""
    for name, card in known.items():
        span = f"{card.low:g} to {card.high:g}"
        better = "no direction" if card.better == "neither" else f"{card.better} is better"
        out.print(f"[bold]{name}[/]  {span} {escape(card.unit)}, {better}")
        if isinstance(card, Card):
            said = (card.function.__doc__ or "").strip().splitlines()[0]
            out.print(f"  {escape(said)}")
            out.print(f"  costs {escape(card.forwards)}; source {card.source or 'this project'}")
            out.print(f"  misleads: {escape(card.failure)}", style="dim")
        for label, key, kind in TESTED.get(name, (("", name, "map"),)):
            found = [f"tier {c['tier']} {c['tau']:.2f}" for c in evidence_of(key, kind)]
            if found:
                what = f"{label}: " if label else ""
                out.print(f"  {what}tau with the known truth: {', '.join(found)}", style="dim")


def print_comparison(out: Console, made: RunComparison) -> None:
    """Print run B against run A; positive differences are better."""
    table = Table(title="B against A (positive: B is better)", title_justify="left", box=None)
    for name in ("measure", "layer", "method"):
        table.add_column(name)
    for name in ("A", "B", "difference", "95 % interval", "tiles", "p (Holm)"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in _lines(made.table):
        table.add_row(
            row.measure,
            escape(row.layer),
            "prediction" if row.method == "prediction" else method_label(row.method),
            f"{row.a:.3f}",
            f"{row.b:.3f}",
            f"{row.difference:+.3f}",
            "" if pd.isna(row.low) else f"{row.low:+.3f} to {row.high:+.3f}",
            f"{row.n}",
            "" if pd.isna(row.p) else f"{row.p:.3f}",
            row.verdict,
        )
    out.print(table)


def print_fills(
    out: Console,
    probe: Mapping[str, Mapping[str, Mapping[str, float]]],
    outline: str,
    fills: Sequence[str],
) -> None:
    """Print fill x outline: mean (lowest) relative drop of confidence without the target."""
    first = next(iter(probe.values()))
    tiles = int(next(iter(first.values()))["n"])
    word = "tile" if tiles == 1 else "tiles"
    title = f"Relative drop of confidence without the target: mean (lowest) of {tiles} {word}"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("fill")
    for name in probe:
        table.add_column(name if name == "exact" else f"{name} px", justify="right", no_wrap=True)
    for fill in first:
        cells = []
        for name, found in probe.items():
            drop = found[fill]
            text = f"{drop['mean_drop']:.2f} ({drop['min_drop']:.2f})"
            text = text if drop["mean_drop"] >= VALID_DROP else f"[strike]{text}[/]"
            cells.append(f"[bold]* {text}[/]" if name == outline and fill in fills else text)
        table.add_row(fill, *cells)
    out.print(table)
    out.print(
        f"* what a strict study takes; struck: below {VALID_DROP:g}, the fill draws the"
        " target instead of removing it",
        style="dim",
    )


def _print_layers(out: Console, made: Analysis) -> None:
    if made.layers.empty:
        return
    frame = _at_headline(made.layers, made)
    title = f"Task 3: layers, paired differences, mean over {made.headline.binarisation}s"
    table = _table(title, made)
    for name in ("measure", "method", "layers"):
        table.add_column(name)
    for name in ("difference", "95 % interval", "p (Holm)"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("better")
    for row in _lines(frame):
        table.add_row(
            row.measure,
            method_label(row.method),
            escape(f"{row.layer_a} - {row.layer_b}"),
            _strike(f"{row.difference:+.3f}", row.struck),
            f"{row.low:+.3f} to {row.high:+.3f}",
            "" if pd.isna(row.p) else f"{row.p:.3f}",
            escape(row.better) or "tie",
        )
    out.print(table, "")


def _print_agreement(out: Console, made: Analysis) -> None:
    if made.mean_ranks.empty:
        return
    table = _table("Rank agreement: Kendall's W (1 = the same order)", made)
    for name in ("across", "by"):
        table.add_column(name)
    for name in ("W", "rankings", "candidates", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _lines(made.agreement):
        table.add_row(
            f"{row.factor}: {escape(row.compared)}" if row.compared else "tiles",
            row.measure or "each",
            "-" if pd.isna(row.w) else f"{row.w:.2f}",
            f"{row.rankings}",
            f"{row.candidates}",
            "" if pd.isna(row.p) else "< 0.001" if row.p < 0.001 else f"{row.p:.3f}",
        )
    out.print(table, "")


def _table(title: str, made: Analysis) -> Table:
    heading = f"{title} (fill {made.headline.fill}, region {made.headline.reference})"
    return Table(title=heading, title_justify="left", box=None)


def _at_headline(frame: pd.DataFrame, made: Analysis) -> pd.DataFrame:
    """The lines of a table at the headline's fill and region."""
    return frame[
        (frame["fill"] == made.headline.fill) & (frame["reference"] == made.headline.reference)
    ]


def _lines(frame: pd.DataFrame) -> list[Any]:
    """The rows of a table with their columns as attributes."""
    return list(frame.itertuples(index=False))


def _best_cell(row: Any) -> str:
    digits = 5 if abs(row.mean) < 0.01 else 3
    text = f"{method_label(row.best)} {row.mean:.{digits}f}"
    if row.tied:
        text += f" (= {len(row.tied.split(', '))} more)"
    return _strike(text, row.struck)


def _strike(text: str, struck: bool) -> str:
    return f"[strike]{escape(text)}[/]" if struck else escape(text)


def _flag(value: Any) -> str:
    if value is None or pd.isna(value):
        return "undecided"
    return "yes" if value else "no"


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

        yield advance


@contextmanager
def graceful_stop(err: Console) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C, or SIGTERM (what schedulers of clusters send), lets the tile finish and be
    stored; the second one interrupts at once.
    """
    asked = False

    def handle(_signal: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        err.print("stopping after this tile; press Ctrl-C again to stop now", style="yellow")

    before = {kind: signal.signal(kind, handle) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
