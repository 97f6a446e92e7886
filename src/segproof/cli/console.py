"""Holds what all commands share: two consoles, the log, how loud they are, the exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import StringIO
from typing import Annotated, Final

from cyclopts import Parameter
from rich.console import Console

from segproof.errors import SegproofError, printable

__all__ = [
    "DISK",
    "INTERRUPTED",
    "OK",
    "SOME_FAILED",
    "WORSE",
    "WRONG_INPUT",
    "Switch",
    "err",
    "log",
    "out",
    "progress",
    "say_error",
    "set_loudness",
]

OK: Final = 0
WRONG_INPUT: Final = 2
WORSE: Final = 3
SOME_FAILED: Final = 4
DISK: Final = 5
INTERRUPTED: Final = 130

Switch = Annotated[bool, Parameter(negative=(), show_default=False)]

out = Console(width=None if sys.stdout.isatty() else 120)  # wide enough for the tables in a log
err = Console(stderr=True, soft_wrap=True)
log = logging.getLogger("segproof")

_STYLES: Final = {logging.DEBUG: "dim", logging.INFO: "dim", logging.WARNING: "yellow"}


class _ToConsole(logging.Handler):
    """Prints records of the log on the console of errors, above a progress bar where one runs."""

    def emit(self, record: logging.LogRecord) -> None:
        text = printable(self.format(record), keep="\n")
        style = _STYLES.get(record.levelno, "red")
        err.print(text, style=style, markup=False, highlight=False)


def set_loudness(*, quiet: bool = False, verbose: bool = False) -> None:
    """Choose what the log prints: warnings, notes too, or (verbose) details too."""
    if not any(isinstance(handler, _ToConsole) for handler in log.handlers):
        log.addHandler(_ToConsole())
    log.propagate = False
    log.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


def say_error(error: Exception) -> None:
    """Print an error as one message; with --verbose where it was raised too."""
    text, fix = str(error), ""
    if isinstance(error, SegproofError):
        text, fix = f"found {error.found}; expected {error.expected}", error.fix
    for line, style in ((f"error: {text}", "red"), (f"       {fix}", "bold")):
        if line.strip():
            err.print(printable(line, keep="\n"), style=style, markup=False, highlight=False)
    log.debug("raised at:", exc_info=error)


def progress(unit: str) -> AbstractContextManager[Callable[..., None]]:
    """A progress bar on the terminal, and none elsewhere or where the log is quiet."""
    from segproof.report import progress_bar  # loads the tables, which `--help` does without

    quiet = not log.isEnabledFor(logging.INFO)
    return progress_bar(Console(file=StringIO()) if quiet else err, unit)
