"""Reads the words of a command line, runs the command that they name, turns errors into codes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from segproof.cli.commands import COMMANDS, OPTIONS, OWN
from segproof.cli.console import (
    DISK,
    INTERRUPTED,
    OK,
    SOME_FAILED,
    WORSE,
    WRONG_INPUT,
    Switch,
    log,
    say_error,
    set_loudness,
)
from segproof.cli.loading import say_loading
from segproof.cli.renamed import renamed
from segproof.errors import DiskError, SegproofError

__all__ = [
    "DISK",
    "INTERRUPTED",
    "OK",
    "SOME_FAILED",
    "WORSE",
    "WRONG_INPUT",
    "app",
    "main",
]

app = App(
    name="segproof",
    help=(
        "Explain segmentation networks and put the explanations on trial.\n\n"
        "Start with `segproof demo`. With a network and a folder of tiles, `segproof doctor` tells"
        " whether the network is understood, `segproof explain` explains one picture, and"
        " `segproof study` puts explanations on trial."
    ),
    help_epilogue="`segproof COMMAND --help` lists the options of a command and shows an example.",
    help_format="markdown",
    version=lambda: version("segproof"),
    group_parameters=OWN,
)
app["--help"].group = OPTIONS
app["--version"].group = OPTIONS
app.register_install_completion_command(
    group=OPTIONS, help="Install the completion of commands and options for this shell."
)
for name, command in COMMANDS.items():
    # the module of a command is imported when the command runs, not when its name is listed
    app.command(
        command.function,
        name=name,
        group=command.group,
        help=command.help,
        help_epilogue=f"Example: `{command.example}`",
    )


@app.meta.default
def launch(
    *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    quiet: Annotated[
        Switch, Parameter(("--quiet", "-q"), group=OPTIONS, help="Print results and errors only.")
    ] = False,
    verbose: Annotated[
        Switch,
        Parameter(("--verbose", "-v"), group=OPTIONS, help="Print details of each step."),
    ] = False,
) -> int:
    """Set how much is printed and run the command."""
    set_loudness(quiet=quiet, verbose=verbose)
    given = renamed(words)
    say_loading(given)
    code = app(given, exit_on_error=False, print_error=False, result_action="return_value")
    return code if isinstance(code, int) else OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        code = app.meta(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
    except CycloptsError as error:
        say_error(error)
        log.info("`segproof COMMAND --help` lists every option")
        return WRONG_INPUT
    except SegproofError as error:
        say_error(error)
        return DISK if isinstance(error, DiskError) else WRONG_INPUT
    except KeyboardInterrupt:
        log.warning("stopped")
        return INTERRUPTED
    except OSError as error:
        say_error(error)
        log.info("files are replaced as a whole or not at all: make room and repeat")
        return DISK
    return code if isinstance(code, int) else OK
