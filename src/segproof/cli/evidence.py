"""Tests measures and methods where the truth is known: the command evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import pandas as pd
import torch
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from segproof.analysis import method_label
from segproof.cli.console import OK, Switch, out, progress
from segproof.cli.options import AllowFlag, listed
from segproof.data import FolderDataset
from segproof.errors import UnknownNameError
from segproof.evidence import (
    ALL_METHODS,
    CUT_MEASURES,
    DEFAULT_MEASURES,
    DEFAULT_METHODS,
    TIERS,
    TRIED_FILLS,
    WHOLE,
    Evidence,
    own_code,
    run_evidence,
    verdict as verdict_of,
)
from segproof.models import keep_blocks
from segproof.perturb import FILLS
from segproof.report import escape

_METHODS: Final = ",".join(DEFAULT_METHODS)
_MEASURES: Final = ",".join(DEFAULT_MEASURES)
_FILLS: Final = ",".join(TRIED_FILLS)


def evidence(
    *,
    out_: Annotated[Path, Parameter("--out", help="Folder for the tables and figures.")],
    tier: Annotated[
        str,
        Parameter(
            help="Networks whose truth is known, a,b: a (built by hand), b (trained on generated"
            " scenes), c (trained on the tiles of --train, measured on those of --test)."
        ),
    ] = ",".join(TIERS),
    methods: Annotated[
        str,
        Parameter(
            help="Methods to test, a,b; all; none; or python:MODULE:FUNCTION for your own."
            f" [default: {', '.join(DEFAULT_METHODS)}]",
            show_default=False,
        ),
    ] = _METHODS,
    measures: Annotated[
        str,
        Parameter(
            help="Measures to test, a,b; all; none; or python:MODULE:FUNCTION for your own."
            f" [default: {', '.join(DEFAULT_MEASURES)}]",
            show_default=False,
        ),
    ] = _MEASURES,
    layers: Annotated[
        str | None,
        Parameter(help="Layers, a,b, by alias or path. Without it, all that are worth explaining."),
    ] = None,
    fills: Annotated[
        str,
        Parameter(
            help=f"Fills to test measures with, a,b, of absent (the ideal one), {', '.join(FILLS)}."
            " Methods are tested with the last one."
        ),
    ] = _FILLS,
    scenes: Annotated[
        int | None,
        Parameter(help="Number of scenes for each network. Without it, each tier has its own."),
    ] = None,
    train: Annotated[
        Path | None, Parameter(help="Tier c: folder of tiles with roofs to train on.")
    ] = None,
    test: Annotated[Path | None, Parameter(help="Tier c: folder of tiles to measure on.")] = None,
    steps: Annotated[
        int,
        Parameter(
            help="Tier c: training steps of each of the four networks; 400 take two minutes."
        ),
    ] = 400,
    full: Annotated[
        Switch, Parameter(help="Test all networks, methods and measures: half an hour.")
    ] = False,
    seed: Annotated[int, Parameter(help="Seed of the scenes and the maps.")] = 0,
    allow_code: AllowFlag = False,
) -> int:
    """Test measures and methods where the right answer is known."""
    torch.set_num_threads(1)  # the networks are small, and figures the same on every machine
    keep_blocks()
    every = (*CUT_MEASURES, *WHOLE)
    chosen = listed("all" if full and measures == _MEASURES else measures, every)
    asked = listed("all" if full and methods == _METHODS else methods, ALL_METHODS)
    known_fills = ("absent", *FILLS)
    under = listed(fills, known_fills)
    for name in under:
        if name not in known_fills:
            raise UnknownNameError.of("fill", name, known_fills)
    words = ["segproof evidence", f"--tier {tier}", f"--seed {seed}"]
    words += [f"--scenes {scenes}"] if scenes else []
    words += ["--full"] if full else []
    words += [f"--methods {methods}"] if methods != _METHODS else []
    words += [f"--measures {measures}"] if measures != _MEASURES else []
    words += [f"--layers {layers}"] if layers else []
    words += [f"--fills {fills}"] if fills != _FILLS else []
    with progress("networks x scenes") as advance:
        found = run_evidence(
            out_,
            listed(tier),
            methods=[own_code(name, allow_code=allow_code) for name in asked],
            measures=[own_code(name, allow_code=allow_code) for name in chosen],
            layers=None if layers is None else listed(layers),
            fills=under,
            scenes=scenes,
            full=full,
            tiles=None if not train or not test else (FolderDataset(train), FolderDataset(test)),
            steps=steps,
            seed=seed,
            command=" ".join(words),
            progress=lambda done, total, what: advance(done, total, what),
        )
    print_evidence(out, found)
    if found.reliance:
        out.print(found.reliance, markup=False)
    for line in verdict_of(found, under[-1]):
        out.print(f"[bold]{escape(line)}[/]")
    out.print(f"tables and figures: {escape(str(out_))}")
    return OK


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
