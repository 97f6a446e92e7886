"""Runs the commands that study: study, recommend, fills, demo."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from cyclopts import Parameter

from segproof.choices import LEAST, MARGIN, Asked
from segproof.cli.as_json import JsonFlag, print_json
from segproof.cli.console import OK, Switch, out
from segproof.cli.options import (
    DATA,
    NETWORK,
    AllFlag,
    AllowFlag,
    Given,
    from_file,
    options_of,
    settings_of,
)
from segproof.cli.study_file import study_file
from segproof.errors import StudyError
from segproof.study import Settings

QUICK: Final = ("grad_cam", "grad_cam_pp", "xgrad_cam", "eigen_cam", "hires_cam", "layer_cam")

DEMO_TILES: Final = 16
DEMO_SIZE: Final = 224  # px; 67 m at 0.3 m: sixteen such tiles take about four minutes on two cores
DEMO_SEED: Final = 77  # the shipped network was trained on other seeds

if TYPE_CHECKING:
    StudyOptions: TypeAlias = Given | None
    RecommendOptions: TypeAlias = Given | None
    FillsOptions: TypeAlias = Given | None
else:
    StudyOptions = options_of(*(info.alias or name for name, info in Settings.model_fields.items()))
    RecommendOptions = options_of(
        *("model", "data", "class", "methods", "limit", "pad", "batch", "precision"),
        *("score_channels", *NETWORK, *DATA),
        methods=QUICK,
        limit=20,
    )
    FillsOptions = options_of(
        *("model", "data", "class", "limit", "region", "pad", *NETWORK, *DATA), limit=16
    )

_OUT: Final = Parameter(
    "--out",
    help="Folder for the results. If it holds an unfinished run of the same study, that run is"
    " resumed.",
)


def study(
    config: Annotated[
        Path | None,
        Parameter(
            help="Study file in TOML; its keys are the names of the options, and options win."
        ),
    ] = None,
    *,
    given: StudyOptions = None,
    out_: Annotated[Path | None, _OUT] = None,
    workers: Annotated[
        int | None,
        Parameter(
            help="Processes that share the tiles and the threads. Without it: 2 for 100 tiles or"
            " more on a CPU with 8 GiB, else 1."
        ),
    ] = None,
    threads: Annotated[
        int | None, Parameter(help="Threads of each process. Without it, all are shared out.")
    ] = None,
    dask: Annotated[
        str | None, Parameter(help="Address of a Dask scheduler whose workers share the tiles.")
    ] = None,
    keep_going: Annotated[
        Switch,
        Parameter(help="Continue where more than 5 % of the tiles fail."),
    ] = False,
    until_decided: Annotated[
        Asked | None,
        Parameter(
            help="Study the tiles in random order, and stop when it is decided which candidate is"
            " best, how all rank, or which ones beat the controls."
        ),
    ] = None,
    margin: Annotated[
        float,
        Parameter(
            help="With --until-decided: smallest difference that counts, in the measure's unit."
        ),
    ] = MARGIN,
    least: Annotated[
        int, Parameter(help="With --until-decided: smallest number of tiles before a decision.")
    ] = LEAST,
    dry_run: Annotated[
        Switch,
        Parameter(help="Print the expected run time and stop there."),
    ] = False,
    print_config: Annotated[
        Switch,
        Parameter(
            help="Print the study file of these options, with every key, its default and what it"
            " means.",
        ),
    ] = False,
    all_: AllFlag = False,
    allow_code: AllowFlag = False,
) -> int:
    """Put explanations on trial and write a report."""
    from segproof.cli.running import plan_only, run_study
    from segproof.study import StopRule, Study

    settings = from_file(config) | settings_of(given)
    folder = out_ or settings.pop("out", None)
    settings.pop("out", None)
    if print_config:
        out.print(study_file(settings, folder), markup=False, highlight=False, soft_wrap=True)
        return OK
    until = None if until_decided is None else StopRule(until_decided, margin, least)
    if until is None and (margin, least) != (MARGIN, LEAST):
        raise StudyError(
            "--margin or --least alone", "--until-decided too", "say what is to be decided"
        )
    chosen = Study.of(**settings)
    if dry_run:
        return plan_only(chosen, allow_code=allow_code, until=until)
    if folder is None:
        raise StudyError("no run folder", "--out DIR", "name a new folder for the results")
    how: dict[str, Any] = {"workers": workers, "threads": threads, "dask": dask}
    how |= {"keep_going": keep_going, "until_decided": until}
    return run_study(chosen, Path(folder), allow_code=allow_code, everything=all_, how=how)


def recommend(
    *,
    given: RecommendOptions = None,
    out_: Annotated[Path, _OUT],
    allow_code: AllowFlag = False,
    json: JsonFlag = False,
) -> int:
    """Recommend a method and a layer for a network and its data."""
    from segproof.cli.running import run_study
    from segproof.models import keep_blocks
    from segproof.report import study_tables, to_json
    from segproof.study import Results, Study

    settings = {
        "methods": QUICK,
        "limit": 20,
        "thresholds": (),
        # nearly as good as four (docs/evidence/known-truth.md); .1 and .2 are not
        "areas": (0.05, 0.2),
    } | settings_of(given)
    wish = Study.of(**settings)
    keep_blocks()
    loaded = wish.open_model(allow_code=allow_code)
    aliases = [
        layer.alias for layer in loaded.layers(*wish.shown_size(loaded, wish.open_data(loaded)))
    ]
    stages = [alias for alias in aliases if alias.startswith("encoder")]
    blocks = [alias for alias in aliases if alias.startswith("decoder")]
    chosen = Study.of(**settings, layers=(*stages[-1:], *blocks))
    out.quiet = json  # the document alone is printed
    code = run_study(chosen, out_, allow_code=allow_code, again=True, network=loaded)
    out.quiet = False
    if json:
        results = Results.load(out_)
        tables = study_tables(results.analysis)
        print_json(
            {
                "verdict": results.analysis.verdict,
                "ranking": to_json(tables["ranking"]) if "ranking" in tables else None,
                "tiles": results.manifest["tiles"],
                "command": results.manifest["command"],
                "report": out_ / "report.html",
            }
        )
    return code


def fills(*, given: FillsOptions = None, allow_code: AllowFlag = False) -> int:
    """Find the fills that do not mislead a network."""
    from segproof.models import keep_blocks
    from segproof.report import print_fills
    from segproof.study import OUTLINES, Study, choose_fills, choose_outline, probe_fills

    chosen = Study.of(**({"limit": 16} | settings_of(given)))
    keep_blocks()
    loaded = chosen.open_model(allow_code=allow_code)
    source = chosen.open_data(loaded)
    tiles = min(chosen.limit or len(source), len(source))
    probe, _ = probe_fills(chosen, loaded, source, tiles, OUTLINES)
    if not probe:
        raise StudyError(
            f"no tile with {chosen.class_} in the {chosen.region}, and predicted",
            "one at least",
            "check --class and --data",
        )
    outline = choose_outline(probe)
    print_fills(out, probe, outline, choose_fills(chosen, probe[outline]))
    return OK


def demo(
    *,
    out_: Annotated[Path, Parameter("--out", help="Folder for the tiles and the run.")] = Path(
        "demo"
    ),
    tiles: Annotated[int, Parameter(help="Number of tiles to generate.")] = DEMO_TILES,
    all_: AllFlag = False,
) -> int:
    """Run a whole study without any file of yours."""
    from segproof.cli.running import run_study
    from segproof.data import write_scenes
    from segproof.models import demo_model_spec
    from segproof.study import Study

    folder = out_ / "tiles"
    if not (folder / "label").is_dir():
        fresh = out_ / ".tiles"
        shutil.rmtree(fresh, ignore_errors=True)
        write_scenes(fresh, tiles, DEMO_SEED, DEMO_SIZE)
        fresh.rename(folder)
    chosen = Study.of(model=demo_model_spec(), data=str(folder), **{"class": "building"})
    return run_study(chosen, out_ / "run", everything=all_)
