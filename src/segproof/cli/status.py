"""Shows the progress of a run; loads neither torch nor the tables, so that it answers at once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from segproof.cli.as_json import JsonFlag, print_json
from segproof.cli.console import OK, out
from segproof.errors import printable
from segproof.study import Status, status as status_of

__all__ = ["status"]


def status(
    run: Annotated[Path, Parameter(help="Folder of a run, as `segproof study` writes it.")],
    *,
    json: JsonFlag = False,
) -> int:
    """Show the progress of a run, also while it runs."""
    progress = status_of(run)
    if json:
        print_json({**asdict(progress), "done": progress.done})
    else:
        _print(progress)
    return OK


def _print(progress: Status) -> None:
    """Names of others are printed without markup: they may hold brackets."""
    state = "running" if progress.running else "not running"
    if progress.count is None:
        _line(f"{state}, nothing planned yet")
        return
    share = progress.done / progress.count
    _line(f"{progress.done} of {progress.count} tiles done ({share:.0%}), {state}", "bold")
    if progress.rate is not None:
        _line(f"rate: {60 * progress.rate:.1f} tiles/min")
    unfinished = progress.done < progress.count and not progress.decided
    if progress.left is not None and unfinished:
        hours, seconds = divmod(round(progress.left), 3600)
        _line(f"time left: {hours} h {seconds // 60:02} min {seconds % 60:02} s")
    if progress.decided:
        _line(progress.decided)
    _line(f"tiles: {progress.ok} ok, {progress.skipped} skipped, {progress.failed} failed")
    for reason, count in progress.reasons.items():
        _line(f"  {count} x {reason}")
    if progress.command:
        resumes = unfinished and not progress.running
        _line(f"{'continue with' if resumes else 'command'}: {progress.command}")


def _line(text: str, style: str = "") -> None:
    plain = printable(text, keep="\n")
    out.print(plain, style=style, markup=False, highlight=False, soft_wrap=True)
