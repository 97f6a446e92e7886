"""Commands that read tiles and run folders: check, status, verify, compare, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from segproof.analysis import MARGIN, compare as compare_runs
from segproof.cli.console import OK, SOME_FAILED, WORSE, out, progress
from segproof.cli.loading import load
from segproof.cli.options import (
    AllowFlag,
    MaskFlags,
    Masks,
    Network,
    NetworkFlags,
    PairFlags,
    Pairs,
    PictureFlags,
    Pictures,
    names_of,
)
from segproof.cli.running import finish
from segproof.data import MaskValues
from segproof.errors import StudyError
from segproof.explain import Preset
from segproof.models import keep_blocks
from segproof.report import escape, print_check, print_comparison, print_status
from segproof.study import (
    Results,
    reading_for,
    status as run_status,
    survey_data,
    verify as verify_run,
)


def check(
    data: Annotated[Path, Parameter(help="Folder of tiles with masks.")],
    *,
    model: Annotated[str | None, Parameter(help="Compare with this network too.")] = None,
    pad: Annotated[
        bool, Parameter(negative=(), help="Sizes that the network does not take will be continued.")
    ] = False,
    pairs: PairFlags = Pairs(),
    pictures: PictureFlags = Pictures(),
    masks: MaskFlags = Masks(),
    network: NetworkFlags = Network(),
) -> int:
    """Read every tile and say what cannot be studied."""
    loaded = None if model is None else load(model, network)
    given = names_of(network.classes)
    names = loaded.mask_names if loaded else given
    values = loaded.mask_values if loaded else len(given or ()) or 2
    ignored = masks.ignore_index
    if loaded is not None and ignored is None:
        ignored = loaded.mask_ignore
    mapped = None
    if masks.mask_values is not None:
        listed = names or [str(index) for index in range(values)]
        mapped = MaskValues.of(masks.mask_values, listed)
    with progress("tiles") as advance:
        found = survey_data(
            data,
            model=loaded,
            ignore_index=ignored,
            classes=values,
            pad=pad,
            names=names,
            tick=lambda tiles: advance(tiles, None),
            values=mapped,
            reading=reading_for(loaded, **pictures.settings()),
            **pairs.settings(),
        )
    print_check(out, found)
    return SOME_FAILED if found.bad else OK


def status(run: Path) -> int:
    """Show how far a run is, also while it runs."""
    print_status(out, run_status(run))
    return OK


def verify(
    run: Annotated[Path, Parameter(help="A folder that `segproof study` wrote.")],
    *,
    limit: Annotated[int, Parameter(help="Number of tiles that are recomputed.")] = 3,
    seed: Annotated[int, Parameter(help="Seed that chooses these tiles.")] = 0,
    model: Annotated[str | None, Parameter(help="Where the network is now.")] = None,
    data: Annotated[str | None, Parameter(help="Where the tiles are now.")] = None,
    allow_code: AllowFlag = False,
) -> int:
    """Check a finished run: the database, the table and some tiles."""
    keep_blocks()
    with progress("tiles") as advance:
        found = verify_run(
            run, again=limit, seed=seed, model=model, data=data, allow_code=allow_code,
            tick=lambda done: advance(done, limit),
        )  # fmt: skip
    for problem in found.problems:
        out.print(escape(problem), style="red", soft_wrap=True, highlight=False)
    out.print(
        f"{found.tiles} tiles, {found.rows:,} rows; {found.again} tiles computed again, greatest"
        f" difference {found.difference:.1e}; {len(found.problems)} problems"
    )
    return SOME_FAILED if found.problems else OK


def compare(
    run_a: Annotated[Path, Parameter(help="The run folder to compare with.")],
    run_b: Annotated[Path, Parameter(help="The run folder of the newer or other model.")],
    *,
    margin: Annotated[
        float, Parameter(help="In the measure's unit; less than this is not called worse.")
    ] = MARGIN,
) -> int:
    """Compare two runs: two networks, or two versions of one."""
    runs = [Results.load(run) for run in (run_a, run_b)]
    presets = {run.preset for run in runs}
    if len(presets) != 1:
        raise StudyError("runs of two presets", "one preset", "study both alike")
    preset: Preset = "paper" if presets == {"paper"} else "strict"
    made = compare_runs(runs[0].rows, runs[1].rows, preset=preset, margin=margin)
    print_comparison(out, made)
    out.print(f"\n[bold]{escape(made.sentence)}[/]")
    return WORSE if made.worse else OK


def report(run: Path) -> int:
    """Write report.html of a run again and print its tables."""
    finish(Results.load(run).finished())
    return OK
