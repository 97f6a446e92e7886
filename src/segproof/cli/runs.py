"""Runs the commands that read tiles and run folders: check, verify, compare, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from cyclopts import Parameter

from segproof.choices import MARGIN, Preset
from segproof.cli.as_json import JsonFlag, print_json
from segproof.cli.console import OK, SOME_FAILED, WORSE, out, progress
from segproof.cli.loading import load
from segproof.cli.options import (
    DATA,
    NETWORK,
    PICTURES,
    AllFlag,
    AllowFlag,
    Given,
    options_of,
    settings_of,
)
from segproof.errors import StudyError

if TYPE_CHECKING:
    CheckOptions: TypeAlias = Given | None
else:
    CheckOptions = options_of("model", "pad", *NETWORK, *DATA)

RunArgument = Annotated[Path, Parameter(help="Folder of a run, as `segproof study` writes it.")]


def check(
    data: Annotated[Path, Parameter(help="Folder of tiles with masks.")],
    *,
    given: CheckOptions = None,
    allow_code: AllowFlag = False,
    json: JsonFlag = False,
) -> int:
    """Read every tile and say what cannot be studied."""
    from segproof.data import MaskValues
    from segproof.report import print_check
    from segproof.study import reading_for, survey_data

    settings = settings_of(given)
    loaded = load(given, allow_code=allow_code) if "model" in settings else None
    named = settings.get("classes")
    names = loaded.mask_names if loaded else named
    values = loaded.mask_values if loaded else len(named or ()) or 2
    ignored = settings.get("ignore_index")
    if loaded is not None and ignored is None:
        ignored = loaded.mask_ignore
    mapped = None
    if "mask_values" in settings:
        listed = names or [str(index) for index in range(values)]
        mapped = MaskValues.of(settings["mask_values"], listed)
    with progress("tiles") as advance:
        survey = survey_data(
            data,
            model=loaded,
            ignore_index=ignored,
            classes=values,
            pad=settings.get("pad", False),
            names=names,
            tick=lambda tiles: advance(tiles, None),
            values=mapped,
            reading=reading_for(loaded, **{k: v for k, v in settings.items() if k in PICTURES}),
            images=settings.get("images"),
            masks=settings.get("masks"),
        )
    if json:
        print_json(survey)
    else:
        print_check(out, survey)
    return SOME_FAILED if survey.bad else OK


def verify(
    run: RunArgument,
    *,
    limit: Annotated[int, Parameter(help="Number of tiles that are recomputed.")] = 3,
    seed: Annotated[int, Parameter(help="Seed that chooses these tiles.")] = 0,
    model: Annotated[str | None, Parameter(help="Where the network is now, if it moved.")] = None,
    data: Annotated[str | None, Parameter(help="Where the tiles are now, if they moved.")] = None,
    allow_code: AllowFlag = False,
) -> int:
    """Check a finished run: the database, the table and some tiles."""
    from segproof.models import keep_blocks
    from segproof.report import escape
    from segproof.study import verify as verify_run

    keep_blocks()
    with progress("tiles") as advance:
        found = verify_run(
            run, again=limit, seed=seed, model=model, data=data, allow_code=allow_code,
            tick=lambda done: advance(done, limit),
        )  # fmt: skip
    for problem in found.problems:
        out.print(escape(problem), style="red", soft_wrap=True, highlight=False)
    out.print(
        f"{found.tiles} tiles, {found.rows:,} rows; {found.again} tiles recomputed, largest"
        f" difference {found.difference:.1e}; {len(found.problems)} problems"
    )
    return SOME_FAILED if found.problems else OK


def compare(
    run_a: Annotated[Path, Parameter(help="Folder of the run to compare with.")],
    run_b: Annotated[Path, Parameter(help="Folder of the run of the newer or other network.")],
    *,
    margin: Annotated[
        float,
        Parameter(help="Smallest difference that counts as worse, in the measure's unit."),
    ] = MARGIN,
    json: JsonFlag = False,
) -> int:
    """Compare two runs: two networks, or two versions of one."""
    from segproof.analysis import compare as compare_runs
    from segproof.report import comparison_table, escape, print_comparison, to_json
    from segproof.study import Results

    runs = [Results.load(run) for run in (run_a, run_b)]
    presets = {run.preset for run in runs}
    if len(presets) != 1:
        raise StudyError("runs of two presets", "one preset", "study both alike")
    preset: Preset = "paper" if presets == {"paper"} else "strict"
    comparison = compare_runs(runs[0].rows, runs[1].rows, preset=preset, margin=margin)
    if json:
        facts = {"sentence": comparison.sentence, "worse": comparison.worse}
        print_json({**facts, "table": to_json(comparison_table(comparison))})
    else:
        print_comparison(out, comparison)
        out.print(f"\n[bold]{escape(comparison.sentence)}[/]")
    return WORSE if comparison.worse else OK


def report(run: RunArgument, *, all_: AllFlag = False) -> int:
    """Write report.html of a run again and print its tables."""
    from segproof.cli.running import finish
    from segproof.study import Results

    finish(Results.load(run).finished(), everything=all_)
    return OK
