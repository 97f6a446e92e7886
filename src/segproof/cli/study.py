"""Commands that run a study: study, recommend, fills, demo."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from segproof.analysis import MARGIN
from segproof.cli.console import OK, out
from segproof.cli.options import (
    LISTS,
    MaskFlags,
    Masks,
    ModelFlag,
    Network,
    NetworkFlags,
    PairFlags,
    Pairs,
    PictureFlags,
    Pictures,
    ScoreFlag,
    from_file,
    given_by,
    listed,
    numbers_of,
)
from segproof.cli.running import plan_only, run_study
from segproof.data import write_scenes
from segproof.errors import StudyError
from segproof.explain import METHODS, Reduce, Space
from segproof.models import demo_model_spec, keep_blocks
from segproof.perturb import FILLS
from segproof.report import print_fills
from segproof.study import (
    CONTROLS,
    LEAST,
    MAP_MEASURES,
    OUTLINES,
    PUBLISHED,
    Asked,
    StopRule,
    Study,
    choose_fills,
    choose_outline,
    probe_fills,
)

QUICK: Final = ("grad_cam", "grad_cam_pp", "xgrad_cam", "eigen_cam", "hires_cam", "layer_cam")


DEMO_TILES: Final = 16
DEMO_SIZE: Final = 224  # px; 67 m at 0.3 m: sixteen such tiles take about four minutes on two cores
DEMO_SEED: Final = 77  # the shipped network was trained on other seeds


def study(
    config: Annotated[Path | None, Parameter(help="study.toml: the same keys; flags win.")] = None,
    *,
    model: Annotated[str | None, Parameter(help="As for `segproof layers`.")] = None,
    data: Annotated[
        str | None,
        Parameter(help="Folder of tiles with masks; `segproof check` shows how they pair."),
    ] = None,
    class_: Annotated[str | None, Parameter("--class", help="Class to explain.")] = None,
    out_: Annotated[
        Path | None, Parameter("--out", help="Run folder; a stopped run is gone on with.")
    ] = None,
    methods: Annotated[
        str | None,
        Parameter(
            help=f"a,b of {', '.join(METHODS)}, or all (those with a layer)."
            f" [{','.join(PUBLISHED)}]"
        ),
    ] = None,
    layers: Annotated[str | None, Parameter(help="Aliases or paths. [decoder:1,decoder:2]")] = None,
    thresholds: Annotated[str | None, Parameter(help="[0.1,0.2,0.3,0.4,0.5]")] = None,
    areas: Annotated[str | None, Parameter(help="Matched areas. [0.05,0.1,0.2,0.3]")] = None,
    masses: Annotated[str | None, Parameter(help="Shares of a map's sum. [none]")] = None,
    otsu: Annotated[
        bool | None, Parameter(negative=(), help="Cut each map at Otsu's threshold too.")
    ] = None,
    soft: Annotated[
        bool | None, Parameter(negative=(), help="Show each map as a soft mask too.")
    ] = None,
    grow: Annotated[
        int | None, Parameter(help="Widen regions by so many px: outlines say less. [0]")
    ] = None,
    roughen: Annotated[
        int | None, Parameter(help="Move outlines outwards by noise of so many px. [0]")
    ] = None,
    outline: Annotated[
        Literal["auto", "fixed"] | None,
        Parameter(help="auto: wider or rougher where no natural fill is valid; or fixed. [auto]"),
    ] = None,
    preset: Annotated[str | None, Parameter(help="strict or paper. [strict]")] = None,
    region: Annotated[
        str | None,
        Parameter(help="What is explained and read: truth, prediction, fp, fn, ring:W. [truth]"),
    ] = None,
    references: Annotated[
        str | None, Parameter(help="M3 against these too: truth,prediction. [region]")
    ] = None,
    boundary: Annotated[
        bool | None, Parameter(negative=(), help="How well outlines agree, too (slower).")
    ] = None,
    space: Annotated[Space | None, Parameter(help="The scalar, per pixel. [logit]")] = None,
    reduce: Annotated[Reduce | None, Parameter(help="... and over pixels. [mean]")] = None,
    rival: Annotated[str | None, Parameter(help="Class that space margin compares with.")] = None,
    fills: Annotated[
        str | None,
        Parameter(help=f"a,b of {', '.join(FILLS)}, or all. [strict: two valid; paper: neutral]"),
    ] = None,
    controls: Annotated[str | None, Parameter(help=f"all, none or {','.join(CONTROLS)}.")] = None,
    fuse: Annotated[str | None, Parameter(help="Join layers too: mean,max,product.")] = None,
    measures: Annotated[
        str | None, Parameter(help="Further ones, of whole maps: a,b or all (`segproof measures`).")
    ] = None,
    limit: Annotated[int | None, Parameter(help="Only the first N tiles.")] = None,
    min_area: Annotated[int | None, Parameter(help="Smallest region, px. [64]")] = None,
    pad: Annotated[
        bool | None,
        Parameter(negative=(), help="Continue tiles to a size that the network takes."),
    ] = None,
    batch: Annotated[int | None, Parameter(help="Pictures per forward. [4]")] = None,
    seed: Annotated[int | None, Parameter(help="[0]")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"] | None,
        Parameter(help="Of perturbed pictures; or auto: the fastest that agrees. [float32]"),
    ] = None,
    score_channels: ScoreFlag = None,
    workers: Annotated[
        int | None,
        Parameter(
            help="Processes that share the tiles and threads. [2 for 100 tiles or more on a CPU"
            " with 8 GiB; else, or with --threads, 1]"
        ),
    ] = None,
    threads: Annotated[
        int | None, Parameter(help="Of each process. [all, divided by the workers]")
    ] = None,
    dask: Annotated[
        str | None, Parameter(help="Address of a Dask scheduler whose workers share the tiles.")
    ] = None,
    keep_going: Annotated[
        bool, Parameter(negative=(), help="Also where more than 5 % of the tiles fail.")
    ] = False,
    until_decided: Annotated[
        Asked | None,
        Parameter(
            help="Tiles in random order, until it is settled which candidate is best, how all rank"
            " or which beat the controls."
        ),
    ] = None,
    margin: Annotated[
        float, Parameter(help="Until decided: in the measure's unit; less does not count.")
    ] = MARGIN,
    least: Annotated[int, Parameter(help="Until decided: not before so many tiles.")] = LEAST,
    dry_run: Annotated[
        bool, Parameter(negative=(), help="Only say how many forwards it takes, and how long.")
    ] = False,
    pairs: PairFlags = Pairs(),
    pictures: PictureFlags = Pictures(),
    masks: MaskFlags = Masks(),
    network: NetworkFlags = Network(),
) -> int:
    """Put explanations on trial and write a report."""
    given = {
        "model": model,
        "data": data,
        "class": class_,
        "methods": listed(methods, LISTS["methods"]),
        "layers": listed(layers),
        "thresholds": numbers_of(thresholds, "--thresholds"),
        "areas": numbers_of(areas, "--areas"),
        "masses": numbers_of(masses, "--masses"),
        "otsu": otsu,
        "soft": soft,
        "grow": grow,
        "roughen": roughen,
        "outline": outline,
        "references": listed(references, LISTS["references"]),
        "boundary": boundary,
        "preset": preset,
        "region": region,
        "space": space,
        "reduce": reduce,
        "rival": rival,
        "pad": pad,
        "fills": listed(fills, LISTS["fills"]),
        "controls": listed(controls, tuple(CONTROLS)),
        "fuse": listed(fuse),
        "measures": listed(measures, tuple(MAP_MEASURES)),
        "limit": limit,
        "min_area": min_area,
        "batch": batch,
        "seed": seed,
        "precision": precision,
        "score_channels": score_channels,
        **given_by(pairs, pictures, masks, network),
    }
    settings = from_file(config) | {key: v for key, v in given.items() if v is not None}
    folder = out_ or settings.get("out")
    until = None if until_decided is None else StopRule(until_decided, margin, least)
    if until is None and (margin, least) != (MARGIN, LEAST):
        raise StudyError(
            "--margin or --least alone", "--until-decided too", "say what is to be decided"
        )
    chosen = Study.of(**{k: v for k, v in settings.items() if k != "out"})
    if dry_run:
        return plan_only(chosen, allow_code=network.allow_code, until=until)
    if folder is None:
        raise StudyError("no run folder", "--out DIR", "name a new folder for the results")
    how: dict[str, Any] = {"workers": workers, "threads": threads, "dask": dask}
    how |= {"keep_going": keep_going, "until_decided": until}
    return run_study(chosen, Path(folder), allow_code=network.allow_code, how=how)


def recommend(
    *,
    model: ModelFlag,
    data: Annotated[str, Parameter(help="Folder of tiles with masks, as for `segproof study`.")],
    class_: Annotated[str, Parameter("--class", help="Class to explain.")],
    out_: Annotated[Path, Parameter("--out", help="Run folder; a stopped run is gone on with.")],
    limit: Annotated[int, Parameter(help="How many tiles to look at.")] = 20,
    methods: Annotated[
        str, Parameter(help="a,b; Score-CAM and others that cost a forward per channel too.")
    ] = ",".join(QUICK),
    pad: Annotated[
        bool, Parameter(negative=(), help="Continue tiles to a size that the network takes.")
    ] = False,
    batch: Annotated[int, Parameter(help="Pictures per forward.")] = 4,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        Parameter(help="Of perturbed pictures; or auto: the fastest that agrees."),
    ] = "float32",
    score_channels: ScoreFlag = None,
    pairs: PairFlags = Pairs(),
    pictures: PictureFlags = Pictures(),
    masks: MaskFlags = Masks(),
    network: NetworkFlags = Network(),
) -> int:
    """Recommend a method and a layer for a network and its data."""
    settings: dict[str, Any] = {
        "model": model,
        "data": data,
        "class": class_,
        "methods": listed(methods, LISTS["methods"]),
        "thresholds": (),
        "areas": (
            0.05,
            0.2,
        ),  # nearly as good as four (docs/evidence/known-truth.md); .1 and .2 are not
        "limit": limit,
        "pad": pad,
        "batch": batch,
        "precision": precision,
        "score_channels": score_channels,
        **given_by(pairs, pictures, masks, network),
    }
    asked = Study.of(**settings)
    keep_blocks()
    loaded = asked.open_model(allow_code=network.allow_code)
    aliases = [
        layer.alias for layer in loaded.layers(*asked.shown_size(loaded, asked.open_data(loaded)))
    ]
    stages = [alias for alias in aliases if alias.startswith("encoder")]
    blocks = [alias for alias in aliases if alias.startswith("decoder")]
    chosen = Study.of(**settings, layers=(*stages[-1:], *blocks))
    return run_study(chosen, out_, allow_code=network.allow_code, brief=True, network=loaded)


def fills(
    *,
    model: ModelFlag,
    data: Annotated[str, Parameter(help="Folder of tiles with masks, as for `segproof study`.")],
    class_: Annotated[str, Parameter("--class", help="Class to explain.")],
    limit: Annotated[int, Parameter(help="How many tiles to look at, 16 at most.")] = 16,
    region: Annotated[str, Parameter(help="What is removed: truth, prediction, ...")] = "truth",
    pad: Annotated[
        bool, Parameter(negative=(), help="Continue tiles to a size that the network takes.")
    ] = False,
    pairs: PairFlags = Pairs(),
    pictures: PictureFlags = Pictures(),
    masks: MaskFlags = Masks(),
    network: NetworkFlags = Network(),
) -> int:
    """Find the fills that do not mislead a network."""
    chosen = Study.of(
        model=model,
        data=data,
        limit=limit,
        region=region,
        pad=pad,
        **given_by(pairs, pictures, masks, network),
        **{"class": class_},
    )
    keep_blocks()
    loaded = chosen.open_model(allow_code=network.allow_code)
    source = chosen.open_data(loaded)
    probe, _ = probe_fills(chosen, loaded, source, min(limit, len(source)), OUTLINES)
    if not probe:
        raise StudyError(
            f"no tile with {class_} in the {region}, and predicted",
            "one at least",
            "check --class and --data",
        )
    outline = choose_outline(probe)
    print_fills(out, probe, outline, choose_fills(chosen, probe[outline]))
    return OK


def demo(
    *,
    out_: Annotated[Path, Parameter("--out", help="Folder for tiles and run.")] = Path("demo"),
    tiles: Annotated[int, Parameter(help="Generated tiles.")] = DEMO_TILES,
) -> int:
    """Run a whole study without any file of yours."""
    folder = out_ / "tiles"
    if not (folder / "label").is_dir():
        fresh = out_ / ".tiles"
        shutil.rmtree(fresh, ignore_errors=True)
        write_scenes(fresh, tiles, DEMO_SEED, DEMO_SIZE)
        fresh.rename(folder)
    chosen = Study.of(model=demo_model_spec(), data=str(folder), **{"class": "building"})
    return run_study(chosen, out_ / "run")
