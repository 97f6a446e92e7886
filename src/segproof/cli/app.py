"""The command line: demo, study, recommend, fills, compare, report, explain, evidence ..."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.table import Table

from segproof.analysis import MARGIN, VALID_DROP, compare, method_label
from segproof.cli.evidence import print_evidence
from segproof.cli.options import (
    NETWORK,
    READING,
    Masks,
    Network,
    Pairs,
    Pictures,
    names_of,
    numbers_of,
    whole_of,
)
from segproof.data import (
    FolderDataset,
    MaskValues,
    Reading,
    SceneDataset,
    expand_pictures,
    read_image,
    read_mask,
    write_scenes,
)
from segproof.doctor import Finding, diagnose, example_picture, layer_facts
from segproof.errors import (
    DataError,
    DiskError,
    SegproofError,
    StudyError,
    TooManyFailedError,
    UnknownNameError,
)
from segproof.evidence import of_measures as evidence, run as benchmark
from segproof.explain import (
    DEFAULT_FILLS,
    LAYERLESS,
    METHODS,
    REGIONS,
    Explanation,
    Preset,
    Reduce,
    Space,
    Target,
    check_region,
    explain_all,
    explain_objects,
    resolve_method,
    score_cam,
)
from segproof.measures import BOUNDARY, MEASURES, Card, MeasureInfo
from segproof.models import (
    EXACT,
    SegmentationModel,
    demo_model_spec,
    display_range,
    keep_blocks,
    load_model,
    query_model,
    train as train_network,
)
from segproof.perturb import FILLS
from segproof.report import (
    escape,
    graceful_stop,
    overlay,
    png,
    print_analysis,
    print_cards,
    print_check,
    print_comparison,
    print_fills,
    print_status,
    progress_bar,
    render,
)
from segproof.study import (
    CONTROLS,
    LEAST,
    MAP_MEASURES,
    OUTLINES,
    PUBLISHED,
    Asked,
    Plan,
    Results,
    StopRule,
    Study,
    best_workers,
    choose_fills,
    choose_kernels,
    choose_outline,
    distance_of,
    integrity as audit,
    probe,
    probe_fills,
    read_toml,
    reading_for,
    score_distance,
    write_atomic,
)

__all__ = ["main"]

OK: Final = 0
WORSE: Final = 1
WRONG_INPUT: Final = 2
SOME_FAILED: Final = 4
DISK: Final = 5
INTERRUPTED: Final = 130

QUICK: Final = ("grad_cam", "grad_cam_pp", "xgrad_cam", "eigen_cam", "hires_cam", "layer_cam")

DEMO_TILES: Final = 16
DEMO_SIZE: Final = 224  # px; 67 m at 0.3 m: sixteen such tiles take about four minutes on two cores
DEMO_SEED: Final = 77  # the shipped network was trained on other seeds

_METHODS: Final = ",".join(benchmark.DEFAULT_METHODS)
_MEASURES: Final = ",".join(benchmark.DEFAULT_MEASURES)
_FILLS: Final = ",".join(evidence.FILLS)
_LEVELS: Final = ("thresholds", "areas", "masses")
_LISTS: Final[dict[str, Sequence[str]]] = {
    "methods": tuple(name for name in METHODS if name not in LAYERLESS),
    "layers": (),
    "thresholds": (),
    "areas": (),
    "masses": (),
    "fills": tuple(FILLS),
    "controls": CONTROLS,
    "fuse": (),
    "measures": tuple(MAP_MEASURES),
    "references": ("truth", "prediction"),
}

app = App(
    name="segproof",
    help=(
        "Explain segmentation networks and put the explanations on trial.\n\n"
        "Start with `segproof demo`. With a network and a folder of tiles: `segproof doctor` to see"
        " whether the network is understood, `segproof layers` to choose layers, `segproof explain`"
        " for one picture, `segproof study` for the whole trial."
    ),
    help_format="markdown",
)
out = Console(width=None if sys.stdout.isatty() else 120)  # wide enough for the tables in a log
err = Console(stderr=True, soft_wrap=True)

ModelFlag = Annotated[
    str,
    Parameter(
        "--model",
        help="A folder or a checkpoint; or smp:DIR, smp:ARCH:ENCODER:FILE, hf:DIR,"
        " torchvision:NAME:FILE, lightning:FILE or python:MODULE:FACTORY.",
    ),
]
NetworkFlags = Annotated[Network, Parameter(name="*", group=NETWORK)]
PictureFlags = Annotated[Pictures, Parameter(name="*", group=READING)]
MaskFlags = Annotated[Masks, Parameter(name="*", group=READING)]
PairFlags = Annotated[Pairs, Parameter(name="*", group=READING)]
ImageFlag = Annotated[
    Path | None, Parameter("--image", help="A picture of yours; else one is generated.")
]

ScoreFlag = Annotated[
    int | None,
    Parameter(
        "--score-channels",
        help="Score-CAM of so many channels that stand for the others: another map, its distance"
        " from the exact one is shown. [all]",
    ),
]
AllowFlag = Annotated[
    bool, Parameter("--allow-code", negative=(), help="Let python:MODULE:FACTORY run its code.")
]


@app.command
def layers(
    *,
    model: ModelFlag,
    image: ImageFlag = None,
    pictures: PictureFlags = Pictures(),
    network: NetworkFlags = Network(),
) -> int:
    """List the layers worth explaining: alias, module path, stride, channels, size of the map.

    Beside them, on one picture: channels that are zero everywhere, and the receptive field, the
    side of the square that holds 95 % of what a cell in the middle depends on.
    """
    loaded = _load(model, network)
    picture = _picture(image, loaded, pictures, 512)
    loaded.check_units(picture)
    table = Table("alias", "module path", box=None, header_style="bold")
    headings = ("stride (px)", "channels", "map (px)", "zero channels (%)", "receptive field (px)")
    for name in headings:
        table.add_column(name, justify="right")
    for facts in layer_facts(loaded, picture):
        layer = facts.layer
        height, width = layer.size
        table.add_row(
            layer.alias,
            layer.path,
            f"{layer.stride}",
            f"{layer.channels}",
            f"{height} x {width}",
            f"{100 * facts.zero_channels:.0f}",
            f"{facts.field}",
        )
    out.print(table)
    out.print("decoder:1 is the coarsest decoder block, decoder:-1 the finest.", style="dim")
    shown = escape(str(image)) if image else "a generated picture (--image TILE for one of yours)"
    out.print(f"Zero channels and receptive field on {shown}.", style="dim")
    return OK


@app.command
def doctor(
    *,
    model: ModelFlag,
    image: ImageFlag = None,
    class_: Annotated[str | None, Parameter("--class", help="Class to try.")] = None,
    pictures: PictureFlags = Pictures(),
    network: NetworkFlags = Network(),
) -> int:
    """Run one picture through everything and say what works, what does not, and what to pass.

    Exit codes: 0 fine to explain, 4 something does not work, 2 the network cannot be loaded.
    """
    loaded = _load(model, network)
    problems = 0
    for finding in _findings(image, loaded, pictures, class_):
        word, colour = {
            "ok": ("ok", "green"),
            "warning": ("look", "yellow"),
            "problem": ("PROBLEM", "bold red"),
        }[finding.verdict]
        problems += finding.verdict == "problem"
        out.print(f"[{colour}]{word:>8}[/]  [bold]{finding.about}[/]: {escape(finding.text)}")
        if finding.fix:
            out.print(f"          {escape(finding.fix)}", style="dim")
    if problems:
        out.print("[bold red]Not ready:[/] see above.")
        return SOME_FAILED
    name = escape(class_ or loaded.classes[-1])
    out.print(
        f"[bold green]Ready.[/] segproof explain TILE.png --model {escape(model)} --class {name}"
        " --layer decoder:-1 --out explained"
    )
    return OK


@app.command(name="explain")
def explain_command(
    *images: Annotated[str, Parameter(help="Pictures, folders of pictures, patterns.")],
    model: ModelFlag,
    class_: Annotated[
        str | None, Parameter("--class", help="Class to explain, by name or index.")
    ] = None,
    out_: Annotated[Path, Parameter("--out", help="Folder to write to.")],
    method: Annotated[str, Parameter(help=f"One of {', '.join(METHODS)}.")] = "grad_cam",
    layer: Annotated[str, Parameter(help="Alias or module path.")] = "decoder:-1",
    region: Annotated[
        str | None, Parameter(help=f"What is explained: {', '.join(REGIONS.values())}. X,Y in px.")
    ] = None,
    objects: Annotated[
        bool, Parameter(negative=(), help="Each object of the region (prediction, truth) alone.")
    ] = False,
    min_area: Annotated[int, Parameter(help="Smallest object, px.")] = 64,
    space: Annotated[Space, Parameter(help="The scalar: what is read of each pixel.")] = "logit",
    reduce: Annotated[Reduce, Parameter(help="... and how the pixels are joined.")] = "mean",
    rival: Annotated[
        str | None, Parameter(help="Class that space margin compares with. [the strongest]")
    ] = None,
    query: Annotated[
        int | None, Parameter(help="Explain one query's mask instead of a class (Mask2Former ...).")
    ] = None,
    mask: Annotated[Path | None, Parameter(help="Truth mask, for truth, fp, fn.")] = None,
    preset: Annotated[Preset, Parameter(help="strict, or paper as published.")] = "strict",
    fill: Annotated[
        str | None, Parameter(help="What Score-CAM, RISE and the like hide pixels with.")
    ] = None,
    smooth: Annotated[
        bool, Parameter(negative=(), help="Mean over flips and turns of the picture.")
    ] = False,
    pad: Annotated[
        bool, Parameter(negative=(), help="Continue pictures to a size that the network takes.")
    ] = False,
    batch: Annotated[int, Parameter(help="Pictures per forward.")] = 4,
    score_channels: ScoreFlag = None,
    seed: Annotated[int, Parameter(help="Seed of the fill.")] = 0,
    pictures: PictureFlags = Pictures(),
    masks: MaskFlags = Masks(),
    network: NetworkFlags = Network(),
) -> int:
    """Explain pictures: STEM.npy (heatmap 0-1, float32), STEM.png, explanations.json."""
    loaded = _load(model, network)
    if query is not None:
        loaded, class_ = query_model(loaded, query), f"query {query}"
    if class_ is None:
        raise StudyError("no class", "--class NAME", f"one of {', '.join(loaded.classes)}")
    region = region or ("truth" if preset == "paper" else "prediction")
    check_region(preset, region)
    target = Target(class_, region, space, reduce, preset, rival=rival)
    index = loaded.class_index(class_)
    resolve_method(method, preset)
    shortcut = score_channels is not None
    if shortcut and (method != "score_cam" or preset == "paper"):
        raise StudyError(
            f"--score-channels with method {method} and preset {preset}",
            "score_cam and strict",
            "leave it out, or --method score_cam",
        )
    if smooth and objects:
        raise StudyError("--smooth with --objects", "one of both", "explain one object:N smoothly")
    paths = expand_pictures(images)
    how_read = reading_for(loaded, **pictures.settings())
    truth_of = partial(
        read_mask,
        classes=loaded.mask_values,
        ignore_index=loaded.mask_ignore if masks.ignore_index is None else masks.ignore_index,
        values=None
        if masks.mask_values is None
        else MaskValues.of(masks.mask_values, loaded.mask_names),
    )
    _check_images(paths, mask, loaded, how_read, truth_of)
    records: list[dict[str, Any]] = []
    with progress_bar(err, "pictures") as advance:
        for done, path in enumerate(paths):
            advance(done, len(paths))
            sample = read_image(path, reading=how_read)
            truth, valid = None, sample["valid"]
            if mask is not None:
                values, counts = truth_of(mask)
                truth, valid = values == loaded.mask_value(index), valid & counts
            how: dict[str, Any] = {
                "methods": [partial(score_cam, channels=score_channels) if shortcut else method],
                "layers": [layer],
                "target": target,
                "truth": truth,
                "valid": valid,
                "fill": fill,
                "batch": batch,
                "seed": seed,
                "padded": pad,
            }
            if objects:
                each = explain_objects(loaded, sample["image"], min_area=min_area, **how)
            else:
                each = iter([explain_all(loaded, sample["image"], smooth=smooth, **how)])
            for number, [made] in enumerate(each, start=1):
                out_.mkdir(parents=True, exist_ok=True)
                stem = f"{path.stem}-object{number}" if objects else path.stem
                records.append(
                    _write_explanation(out_, path, stem, sample["image"], made, truth, fill, loaded)
                    | {"score_channels": score_channels}
                )
            # the distance of the shortcut, on the first picture of several
            if shortcut and not (objects or done) and len(paths) > 1:
                [exact] = explain_all(
                    loaded, sample["image"], smooth=smooth, **(how | {"methods": [method]})
                )
                records[-1]["exact"] = distance_of([made], [exact])
        advance(len(paths), len(paths))
    if not records:
        raise DataError(
            f"no object of {min_area} px or more",
            "one at least",
            "lower --min-area, or explain another class",
        )
    text = json.dumps(records, indent=2, ensure_ascii=False) + "\n"
    write_atomic(out_ / "explanations.json", lambda stream: _write(stream, text.encode()))
    for layer_, found in (records[0].get("exact") or {}).items():
        _say_shortcut(layer_, found)
    for record in records:
        if record["status"] != "ok":
            err.print(f"{escape(record['picture'])}: {record['status']}", style="yellow")
    out.print(f"{len(records)} explained: {escape(str(out_))}")
    return OK


@app.command
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
    device: Annotated[str | None, Parameter(help="cpu, cuda, cuda:1 ... [cpu]")] = None,
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
    """Put explanations on trial: tasks 1 (sweep), 2 (IoU drop) and 3 (layers), with a report.

    Ends with three tables and writes results.parquet, results.csv, manifest.json and report.html.
    Exit codes: 0 done, 2 wrong input, 4 some tiles failed, 5 disk, 130 stopped.
    """
    given = {
        "model": model,
        "data": data,
        "class": class_,
        "methods": _names(methods, _LISTS["methods"]),
        "layers": _names(layers),
        "thresholds": numbers_of(thresholds, "--thresholds"),
        "areas": numbers_of(areas, "--areas"),
        "masses": numbers_of(masses, "--masses"),
        "otsu": otsu,
        "soft": soft,
        "grow": grow,
        "roughen": roughen,
        "outline": outline,
        "references": _names(references, _LISTS["references"]),
        "boundary": boundary,
        "preset": preset,
        "region": region,
        "space": space,
        "reduce": reduce,
        "rival": rival,
        "pad": pad,
        "fills": _names(fills, _LISTS["fills"]),
        "controls": _names(controls, CONTROLS),
        "fuse": _names(fuse),
        "measures": _names(measures, tuple(MAP_MEASURES)),
        "limit": limit,
        "min_area": min_area,
        "batch": batch,
        "seed": seed,
        "device": device,
        "precision": precision,
        "score_channels": score_channels,
        **_read(pairs, pictures, masks, network),
    }
    settings = _from_file(config) | {key: v for key, v in given.items() if v is not None}
    folder = out_ or settings.get("out")
    until = None if until_decided is None else StopRule(until_decided, margin, least)
    if until is None and (margin, least) != (MARGIN, LEAST):
        raise StudyError(
            "--margin or --least alone", "--until-decided too", "say what is to be decided"
        )
    chosen = Study.of(**{k: v for k, v in settings.items() if k != "out"})
    if dry_run:
        return _dry_run(chosen, allow_code=network.allow_code, until=until)
    if folder is None:
        raise StudyError("no run folder", "--out DIR", "name a new folder for the results")
    how: dict[str, Any] = {"workers": workers, "threads": threads, "dask": dask}
    how |= {"keep_going": keep_going, "until_decided": until}
    return _run(chosen, Path(folder), allow_code=network.allow_code, how=how)


@app.command
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
    """Read every image and mask: how they pair, what mask values mean, and what cannot be studied.

    No network is run. Exit codes: 0 all good, 2 no such folder, 4 some are bad.
    """
    loaded = None if model is None else _load(model, network)
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
    with progress_bar(err, "tiles") as advance:
        found = audit.survey_data(
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


@app.command
def status(run: Path) -> int:
    """How far a run is, also while it runs: progress, rate, time left, failures by reason.

    Args:
        run: A folder that `segproof study` writes.
    """
    print_status(out, audit.status(run))
    return OK


@app.command
def verify(
    run: Annotated[Path, Parameter(help="A folder that `segproof study` wrote.")],
    *,
    tiles: Annotated[int, Parameter(help="How many to compute again.")] = 3,
    seed: Annotated[int, Parameter(help="Chooses them.")] = 0,
    model: Annotated[str | None, Parameter(help="Where the network is now.")] = None,
    data: Annotated[str | None, Parameter(help="Where the tiles are now.")] = None,
    allow_code: AllowFlag = False,
) -> int:
    """Is a run whole and right? Its store, every tile's rows, its table, and some tiles again.

    Exit codes: 0 nothing wrong, 2 no run or another network, 4 something is wrong.
    """
    keep_blocks()
    with progress_bar(err, "tiles") as advance:
        found = audit.verify(
            run, again=tiles, seed=seed, model=model, data=data, allow_code=allow_code,
            tick=lambda done: advance(done, tiles),
        )  # fmt: skip
    for problem in found.problems:
        out.print(escape(problem), style="red", soft_wrap=True, highlight=False)
    out.print(
        f"{found.tiles} tiles, {found.rows:,} rows; {found.again} tiles computed again, greatest"
        f" difference {found.difference:.1e}; {len(found.problems)} problems"
    )
    return SOME_FAILED if found.problems else OK


@app.command
def recommend(
    *,
    model: ModelFlag,
    data: Annotated[str, Parameter(help="Folder of tiles with masks, as for `segproof study`.")],
    class_: Annotated[str, Parameter("--class", help="Class to explain.")],
    out_: Annotated[Path, Parameter("--out", help="Run folder; a stopped run is gone on with.")],
    tiles: Annotated[int, Parameter(help="How many tiles to look at.")] = 20,
    methods: Annotated[
        str, Parameter(help="a,b; Score-CAM and others that cost a forward per channel too.")
    ] = ",".join(QUICK),
    pad: Annotated[
        bool, Parameter(negative=(), help="Continue tiles to a size that the network takes.")
    ] = False,
    batch: Annotated[int, Parameter(help="Pictures per forward.")] = 4,
    device: Annotated[str, Parameter(help="cpu, cuda, cuda:1 ...")] = "cpu",
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
    """Which method and layer to trust for this model and data, in one sentence.

    A strict study at matched area of quick methods on the last encoder stage and every decoder
    block; ends with the sentence, the ranking and the command that makes them again.
    """
    settings: dict[str, Any] = {
        "model": model,
        "data": data,
        "class": class_,
        "methods": _names(methods, _LISTS["methods"]),
        "thresholds": (),
        "areas": (0.05, 0.2),  # nearly as good as four (docs/evidence.md); .1 and .2 are not
        "limit": tiles,
        "pad": pad,
        "batch": batch,
        "device": device,
        "precision": precision,
        "score_channels": score_channels,
        **_read(pairs, pictures, masks, network),
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
    return _run(chosen, out_, allow_code=network.allow_code, brief=True, network=loaded)


@app.command
def fills(
    *,
    model: ModelFlag,
    data: Annotated[str, Parameter(help="Folder of tiles with masks, as for `segproof study`.")],
    class_: Annotated[str, Parameter("--class", help="Class to explain.")],
    tiles: Annotated[int, Parameter(help="How many tiles to look at, 16 at most.")] = 16,
    region: Annotated[str, Parameter(help="What is removed: truth, prediction, ...")] = "truth",
    pad: Annotated[
        bool, Parameter(negative=(), help="Continue tiles to a size that the network takes.")
    ] = False,
    device: Annotated[str, Parameter(help="cpu, cuda, cuda:1 ...")] = "cpu",
    pairs: PairFlags = Pairs(),
    pictures: PictureFlags = Pictures(),
    masks: MaskFlags = Masks(),
    network: NetworkFlags = Network(),
) -> int:
    """Which fills this network is not fooled by: the target itself removed, by every fill and
    outline.

    Shows the relative drop of confidence, mean (lowest) over the tiles, and marks what a strict
    study would take. 0.5 on average makes a fill valid.
    """
    chosen = Study.of(
        model=model,
        data=data,
        limit=tiles,
        region=region,
        pad=pad,
        device=device,
        **_read(pairs, pictures, masks, network),
        **{"class": class_},
    )
    keep_blocks()
    loaded = chosen.open_model(allow_code=network.allow_code)
    source = chosen.open_data(loaded)
    probe, _ = probe_fills(chosen, loaded, source, min(tiles, len(source)), OUTLINES)
    if not probe:
        raise StudyError(
            f"no tile with {class_} in the {region}, and predicted",
            "one at least",
            "check --class and --data",
        )
    outline = choose_outline(probe)
    print_fills(out, probe, outline, choose_fills(chosen, probe[outline]))
    return OK


@app.command(name="compare")
def compare_command(
    run_a: Annotated[Path, Parameter(help="The run folder to compare with.")],
    run_b: Annotated[Path, Parameter(help="The run folder of the newer or other model.")],
    *,
    margin: Annotated[
        float, Parameter(help="In the measure's unit; less than this is not called worse.")
    ] = MARGIN,
) -> int:
    """Two models, or two versions of one: run B against run A on the tiles that both studied.

    Exit codes: 0 nothing that counts got worse, 1 the evidence got worse, 2 not comparable.
    """
    runs = [Results.load(run) for run in (run_a, run_b)]
    presets = {run.preset for run in runs}
    if len(presets) != 1:
        raise StudyError("runs of two presets", "one preset", "study both alike")
    preset: Preset = "paper" if presets == {"paper"} else "strict"
    made = compare(runs[0].rows, runs[1].rows, preset=preset, margin=margin)
    print_comparison(out, made)
    out.print(f"\n[bold]{escape(made.sentence)}[/]")
    return WORSE if made.worse else OK


@app.command(name="report")
def report_command(run: Path) -> int:
    """Make report.html anew from a run folder and print the three tables.

    Args:
        run: A folder that `segproof study` wrote.
    """
    _finish(Results.load(run).finished())
    return OK


@app.command
def train(
    *,
    data: Annotated[
        list[Path] | None,
        Parameter(help="Folders of tiles with 0/255 masks.", consume_multiple=True),
    ] = None,
    out_: Annotated[Path, Parameter("--out", help="New folder for the network.")],
    arch: str = "unet",
    encoder: Annotated[
        str, Parameter(help="Any encoder of segmentation_models_pytorch.")
    ] = "resnet18",
    decoder_channels: Annotated[str | None, Parameter(help="One number per block, a,b,c.")] = None,
    init: Annotated[Path | None, Parameter(help="Go on from this saved network.")] = None,
    class_: Annotated[str, Parameter("--class", help="Name of the class.")] = "building",
    steps: int = 1000,
    batch: int = 8,
    crop: int = 256,
    lr: float = 2e-3,
    holdout: Annotated[float, Parameter(help="Share of each set held out.")] = 0.2,
    seed: int = 0,
    scenes: Annotated[int, Parameter(help="Train on N generated scenes (too).")] = 0,
    scene_seed: int = 0,
    device: str = "cpu",
) -> int:
    """Train a small U-Net on tiles with masks; a fifth of the tiles is held out and scored."""
    sources: list[Any] = []
    if data:
        sources += [FolderDataset(folder) for folder in data]
    if scenes:
        sources.append(SceneDataset(scenes, scene_seed))
    channels = (
        None if decoder_channels is None else whole_of(decoder_channels, "--decoder-channels")
    )
    keep_blocks()
    with progress_bar(err, "steps") as advance:
        record = train_network(
            sources,
            out_,
            arch=arch,
            encoder=encoder,
            decoder_channels=channels,
            init=init,
            class_name=class_,
            steps=steps,
            batch=batch,
            crop=crop,
            lr=lr,
            holdout=holdout,
            seed=seed,
            device=device,
            progress=lambda step, total, loss: advance(step, total, f"loss {loss:.3f}"),
        )
    held = record["held_out"]
    out.print(f"held-out IoU {held['iou']:.3f} on {record['tiles_held_out']} tiles")
    out.print(f"network: smp:{escape(str(out_))}")
    return OK


@app.command
def measures(
    name: Annotated[str | None, Parameter(help="One measure; else all.")] = None,
) -> int:
    """What is measured, with what is to be known before it is believed: the evidence cards.

    Those of perturbed pictures stand in every study; those of whole heatmaps are asked for with
    `segproof study --measures`.
    """
    known: dict[str, MeasureInfo | Card] = {**MEASURES, **BOUNDARY, **MAP_MEASURES}
    if name is not None and name not in known:
        raise UnknownNameError.of("measure", name, known)
    print_cards(out, known if name is None else {name: known[name]})
    return OK


@app.command(name="evidence")
def evidence_command(
    *,
    out_: Annotated[Path, Parameter("--out", help="Folder to write to.")],
    tier: Annotated[
        str,
        Parameter(help="a: networks built by hand; b: trained on scenes; c: on --train, --test."),
    ] = ",".join(benchmark.TIERS),
    method: Annotated[
        str, Parameter(help="a,b; all; none; python:MODULE:FUNCTION for your own.")
    ] = _METHODS,
    measure: Annotated[
        str, Parameter(help="a,b; all; none; python:MODULE:FUNCTION for your own.")
    ] = _MEASURES,
    layers: Annotated[str | None, Parameter(help="Aliases or paths. [all worth it]")] = None,
    fills: Annotated[
        str,
        Parameter(help=f"a,b of absent (the ideal one), {', '.join(FILLS)}; methods: the last."),
    ] = _FILLS,
    scenes: Annotated[int | None, Parameter(help="Scenes for each network.")] = None,
    train: Annotated[Path | None, Parameter(help="Tier c: folder of tiles with roofs.")] = None,
    test: Annotated[Path | None, Parameter(help="Tier c: tiles to measure on.")] = None,
    steps: Annotated[
        int, Parameter(help="Tier c: of training, for each of four networks; 2 minutes at 400.")
    ] = 400,
    full: Annotated[
        bool, Parameter(negative=(), help="All networks, methods and measures: half an hour.")
    ] = False,
    seed: Annotated[int, Parameter(help="Of scenes and maps.")] = 0,
    allow_code: Annotated[
        bool, Parameter("--allow-code", negative=(), help="Let python:MODULE:FUNCTION run.")
    ] = False,
) -> int:
    """Measures and methods on trial: networks and pictures whose right answer is known.

    Says which measures order maps of known quality rightly, and which methods find a cue that the
    network needs. Writes measures.csv, methods.csv, cards.json, figures and what they are made of.
    """
    torch.set_num_threads(1)  # the networks are small, and figures the same on every machine
    keep_blocks()
    every = (*evidence.CUT_MEASURES, *benchmark.WHOLE)
    chosen = _names("all" if full and measure == _MEASURES else measure, every) or ()
    asked = _names("all" if full and method == _METHODS else method, benchmark.ALL_METHODS) or ()
    known_fills = ("absent", *FILLS)
    under = _names(fills, known_fills) or ()
    for name in under:
        if name not in known_fills:
            raise UnknownNameError.of("fill", name, known_fills)
    words = ["segproof evidence", f"--tier {tier}", f"--seed {seed}"]
    words += [f"--scenes {scenes}"] if scenes else []
    words += ["--full"] if full else []
    words += [f"--method {method}"] if method != _METHODS else []
    words += [f"--measure {measure}"] if measure != _MEASURES else []
    words += [f"--layers {layers}"] if layers else []
    words += [f"--fills {fills}"] if fills != _FILLS else []
    with progress_bar(err, "networks x scenes") as advance:
        found = benchmark.run(
            out_,
            _names(tier) or (),
            methods=[benchmark.own_code(name, allow_code=allow_code) for name in asked],
            measures=[benchmark.own_code(name, allow_code=allow_code) for name in chosen],
            layers=_names(layers),
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
    for line in benchmark.verdict(found, under[-1]):
        out.print(f"[bold]{escape(line)}[/]")
    out.print(f"tables and figures: {escape(str(out_))}")
    return OK


@app.command
def demo(
    *,
    out_: Annotated[Path, Parameter("--out", help="Folder for tiles and run.")] = Path("demo"),
    tiles: Annotated[int, Parameter(help="Generated tiles.")] = DEMO_TILES,
) -> int:
    """The main job without any file from outside: generated tiles, the shipped U-Net, all tasks."""
    folder = out_ / "tiles"
    if not (folder / "label").is_dir():
        fresh = out_ / ".tiles"
        shutil.rmtree(fresh, ignore_errors=True)
        write_scenes(fresh, tiles, DEMO_SEED, DEMO_SIZE)
        fresh.rename(folder)
    chosen = Study.of(model=demo_model_spec(), data=str(folder), **{"class": "building"})
    return _run(chosen, out_ / "run")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        err.print(f"error: {escape(str(error))}", style="red", highlight=False)
        err.print("`segproof COMMAND --help` lists every option", style="dim")
        return WRONG_INPUT
    except SegproofError as error:
        err.print(f"error: {escape(str(error))}", style="red", highlight=False)
        return DISK if isinstance(error, DiskError) else WRONG_INPUT
    except KeyboardInterrupt:
        err.print("stopped")
        return INTERRUPTED
    except OSError as error:
        err.print(f"error: {escape(str(error))}", style="red", highlight=False)
        err.print("files are replaced as a whole or not at all: make room and repeat", style="dim")
        return DISK
    return code if isinstance(code, int) else OK


def _load(spec: str, network: Network) -> SegmentationModel:
    keep_blocks()
    return load_model(spec, allow_code=network.allow_code, **network.settings())


def _read(*given: Pairs | Pictures | Masks | Network) -> dict[str, Any]:
    """Settings of a study that these groups of options give."""
    return {key: value for group in given for key, value in group.settings().items()}


def _dry_run(chosen: Study, *, allow_code: bool, until: StopRule | None) -> int:
    """Fills and kernels are tried on the first tiles; nothing is studied or written."""
    keep_blocks()
    if until is not None:
        until.check(len(chosen.methods) * len(chosen.layers), chosen.controls)
    network = chosen.open_model(allow_code=allow_code)
    source = chosen.open_data(network)
    plan = choose_kernels(chosen.plan(network, source), network, source)
    _say_plan(score_distance(plan, network, source))
    if until is not None:
        out.print(
            f"in random order, and less where it is decided before ({until.asked}; after"
            f" {until.least} judged tiles at least)",
            style="dim",
        )
    return OK


def _run(
    chosen: Study,
    folder: Path,
    *,
    allow_code: bool = False,
    brief: bool = False,
    how: Mapping[str, Any] | None = None,
    network: SegmentationModel | None = None,
) -> int:
    keep_blocks()
    probe(folder)
    network = network or chosen.open_model(allow_code=allow_code)
    source = chosen.open_data(network)
    how = dict(how or {})
    if "workers" in how and how["workers"] is None:
        how["workers"] = _workers(chosen, len(source), how)
    with graceful_stop(err) as stop, progress_bar(err, "pictures shown") as advance:
        plan: Plan | None = None
        began, before = 0, -1
        undecided = ""

        def say_undecided(text: str) -> None:
            nonlocal undecided
            undecided = f", {text}"

        def announce(made: Plan) -> None:
            nonlocal plan
            plan = made
            _say_plan(made, how.get("workers", 1))

        def show(done: int, tiles: int, forwards: int) -> None:
            nonlocal began, before
            if plan is None:
                return
            if done != before:
                began, before = forwards, done
            share = min(forwards - began, plan.forwards_per_tile)
            total = tiles * plan.forwards_per_tile
            note = f"tile {min(done + 1, tiles)}/{tiles}{undecided}"
            advance(done * plan.forwards_per_tile + share, total, note)

        failed: TooManyFailedError | None = None
        try:
            results = chosen.run(
                folder,
                model=network,
                data=source,
                allow_code=allow_code,
                progress=show,
                stop=stop,
                planned=announce,
                standing=say_undecided,
                **how,
            )
        except TooManyFailedError as error:
            failed, results = error, Results.load(folder)
    counts = results.manifest["tiles"]
    open_ = results.manifest["data"]["n"] - sum(
        counts[name] for name in ("ok", "skipped", "failed")
    )
    if results.manifest.get("decided", {}).get("decided"):
        open_ = 0  # what is left is not needed
    if counts["ok"] or not (open_ or counts["failed"]):
        _finish(results, brief=brief)
    if failed is not None:
        err.print(f"error: {escape(str(failed))}", style="red", highlight=False)
        return SOME_FAILED
    if not counts["ok"] and counts["failed"]:
        _say_tiles(counts)
    if open_:
        err.print("stopped: the same command goes on where this one ended", style="yellow")
        return INTERRUPTED
    return SOME_FAILED if counts["failed"] else OK


def _workers(chosen: Study, tiles: int, how: Mapping[str, Any]) -> int:
    """How many processes where the command does not say."""
    if how["threads"] is not None or how["dask"] is not None or chosen.device != "cpu":
        return 1
    workers = best_workers(min(tiles, chosen.limit or tiles))
    if workers > 1:
        out.print(f"{workers} processes share tiles and threads (see --workers)")
    return workers


def _say_plan(plan: Plan, workers: int = 1) -> None:
    """What will be shown, how long that takes so many processes, and with which kernels."""
    each = plan.pace["seconds"][plan.pace["taken"]]
    minutes = plan.forwards * each / 60 / workers
    chosen = plan.study
    out.print(
        f"[bold]{escape(chosen.class_)}[/], preset {chosen.preset}: {plan.tiles} tiles,"
        f" {len(chosen.methods)} methods x {len(plan.layers)} layers,"
        f" fills {', '.join(plan.fills)}"
    )
    if plan.outline != "exact":
        asked = chosen.grow or chosen.roughen
        why = "" if asked else ", since no natural fill is valid without"
        out.print(f"regions: {plan.outline} px{why}")
    for fill, found in plan.probe.get(plan.outline, {}).items():
        if fill in plan.fills and found["mean_drop"] < VALID_DROP:
            err.print(
                f"fill {fill} misleads this network (removing the target changes its confidence by"
                f" {-found['mean_drop']:+.0%}); M1 and IoU drop under it are struck out",
                style="yellow",
            )
    out.print(
        f"at most {plan.forwards_per_tile:,} forwards a tile, {plan.forwards:,} in all;"
        f" about {minutes:.0f} min at {each * 1000:.0f} ms each (what is asked for twice is shown"
        " once; how much that is, the maps will tell)",
        style="dim",
    )
    if "asked" in plan.pace:
        _say_kernels(plan.pace)
    for layer, found in plan.pace.get("score_cam", {}).get("layers", {}).items():
        _say_shortcut(layer, found)
    if chosen.measures:
        spent = ", ".join(f"{name} {MAP_MEASURES[name].forwards}" for name in chosen.measures)
        out.print(f"and for each map by further measures, in forwards: {spent}", style="dim")


def _say_shortcut(layer: str, found: Mapping[str, float]) -> None:
    """How far Score-CAM of some channels is from that of all."""
    out.print(
        f"score_cam at {escape(layer)} shows {found['shown']:.0f} pictures instead of"
        f" {found['exact']:.0f}: Spearman correlation with the exact map {found['spearman']:.2f}"
        f" (lowest {found['spearman_min']:.2f}), IoU of the highest 20 %"
        f" {found['iou']:.2f} ({found['iou_min']:.2f}), {found['tiles']:.0f} tiles",
        style="dim",
    )


def _say_kernels(pace: Mapping[str, Any]) -> None:
    """Which kernels were taken, how fast each is, and by how much each changes the measures."""
    for name, seconds in pace["seconds"].items():
        found = pace["differences"].get(name)
        worst = f", measures differ by up to {max(found.values()):.4f}" if found else ""
        order = pace.get("orders", {}).get(name)
        if order:
            pairs = sum(found["pairs"] - found["tied"] for found in order.values())
            turned = sum(found["reversed"] for found in order.values())
            worst += f", {turned} of {pairs} pairs of methods and layers change places"
        taken = ": taken" if name == pace["taken"] else ""
        out.print(f"{name}: {seconds * 1000:.0f} ms a forward{worst}{taken}", style="dim")
    exact, taken = (pace["seconds"][name] for name in (EXACT.name, pace["taken"]))
    if taken > exact:
        err.print(
            f"{pace['taken']} is {taken / exact:.1f} times as slow as {EXACT.name} on this machine:"
            " --precision auto, or leave it out",
            style="yellow",
        )
    for name, reason in pace["failed"].items():
        err.print(f"{name} cannot be used here ({escape(reason)})", style="yellow")


def _finish(results: Results, *, brief: bool = False) -> None:
    """Write report.html and print the three tables and the verdict; `brief`: the ranking alone."""
    rows = results.rows
    if not (rows["strategy"] == "original").any():
        reasons = "; ".join(sorted(set(results.tiles["reason"]) - {""})) or "the run was stopped"
        raise StudyError(
            f"no tile that could be studied in {results.folder} ({reasons})",
            "tiles with the class, predicted at least once",
            "check --class, --data and the model",
        )
    page = render(
        rows,
        results.tiles,
        results.manifest,
        results.pictures(6),
        analysis=results.analysis,
        scores=results.judged(),
    )
    path = results.folder / "report.html"
    write_atomic(path, lambda stream: _write(stream, page.encode()))
    print_analysis(out, results.analysis, everything=not brief)
    _say_tiles(results.manifest["tiles"])
    _say_forwards(results.manifest)
    decided = results.manifest.get("decided")
    if decided:
        out.print(f"[bold]{escape(decided['sentence'])}[/]")
        out.print(escape(f"{decided['note']}\n"), style="yellow")
    if brief:
        out.print(f"again: {escape(results.manifest['command'])}", soft_wrap=True)
    out.print(f"report: {escape(str(path))}")


def _say_tiles(counts: Mapping[str, Any]) -> None:
    out.print(
        f"tiles: {counts['ok']} ok, {counts['skipped']} skipped, {counts['failed']} failed"
        + "".join(f"\n  {n} x {escape(reason)}" for reason, n in counts["reasons"].items())
    )


def _say_forwards(manifest: Mapping[str, Any]) -> None:
    """Forwards that were asked for and those that were needed."""
    spent = manifest["forwards"]
    asked = manifest.get("forwards_asked", spent)  # runs of an earlier version showed all
    out.print(f"forwards: {asked:,} asked for, {spent:,} shown", style="dim")


def _picture(
    image: Path | None, model: SegmentationModel, pictures: Pictures, side: int
) -> torch.Tensor:
    """The picture [B, H, W] that is named, or a generated one of the network's size."""
    if image is None:
        return example_picture(model, model.size or (side, side))
    return read_image(image, reading=reading_for(model, **pictures.settings()))["image"]


def _findings(
    image: Path | None, model: SegmentationModel, pictures: Pictures, class_: str | None
) -> Iterator[Finding]:
    """What `diagnose` finds; a picture that cannot be read for this network is a finding too."""
    try:
        picture = _picture(image, model, pictures, 256)
    except DataError as error:
        fix = f"{error.expected}; {error.fix}"
        yield Finding("problem", "picture", f"found {error.found}", fix)
        return
    yield from diagnose(model, picture, class_=class_)


def _check_images(
    images: Sequence[Path],
    mask: Path | None,
    model: SegmentationModel,
    reading: Reading,
    truth_of: Callable[[Path], tuple[torch.Tensor, torch.Tensor]],
) -> None:
    """Everything is read once before the first forward, so that nothing is left half-done."""
    stems: dict[str, Path] = {}
    for path in images:
        if path.stem in stems:
            raise DataError(
                f"{stems[path.stem]} and {path}", "distinct stems", "results would overwrite"
            )
        stems[path.stem] = path
        sample = read_image(path, reading=reading)
        model.check_units(sample["image"])
        if mask is not None:
            found = truth_of(mask)[0]
            if found.shape != sample["image"].shape[1:]:
                raise DataError(
                    f"mask {mask} of {tuple(found.shape)} pixels",
                    f"{tuple(sample['image'].shape[1:])}, the size of {path}",
                    "give the mask of this picture",
                )


def _write_explanation(
    folder: Path,
    path: Path,
    stem: str,
    image: torch.Tensor,
    made: Explanation,
    truth: torch.Tensor | None,
    fill: str | None,
    model: SegmentationModel,
) -> dict[str, Any]:
    heatmap = made.heatmap().cpu().numpy().astype(np.float32)
    write_atomic(folder / f"{stem}.npy", lambda stream: np.save(stream, heatmap))
    what = "" if made.target.region == "prediction" else f" ({made.target.region})"
    title = f"{method_label(made.method)}, {made.layer}, {made.target.class_}{what}: {stem}"
    note = "" if made.status == "ok" else f"status {made.status}: no heatmap"
    region = None if made.explained is None else made.explained.cpu().numpy()
    figure = overlay(
        image.numpy(),
        heatmap,
        title,
        region=region,
        truth=None if truth is None else truth.numpy(),
        note=note,
        limits=display_range(model.mean, model.std, model.bands),
    )
    write_atomic(folder / f"{stem}.png", lambda stream: _write(stream, png(figure)))
    masked = made.method in ("score_cam", "rise", "occlusion", "integrated_gradients")
    return {
        "image": str(path),
        "heatmap": f"{stem}.npy",
        "picture": f"{stem}.png",
        "class": made.target.class_,
        "method": made.method,
        "layer": made.layer,
        "region": made.target.region,
        "region_px": 0 if region is None else int(region.sum()),
        "space": made.target.space,
        "reduce": made.target.reduce,
        "rival": made.target.rival,
        "symmetries": made.symmetries,
        "padding_px": list(made.padding),
        "preset": made.target.preset,
        "status": made.status,
        "target_value": made.value,
        "effective_channels": made.effective_channels,
        "fill": (fill or DEFAULT_FILLS[made.target.preset]) if masked else None,
        "forwards": made.forwards + 1,
    }


def _write(stream: Any, data: bytes) -> None:
    stream.write(data)


def _from_file(config: Path | None) -> dict[str, Any]:
    """Settings of a study file: keys as the flags are spelled, lists or a,b,c."""
    if config is None:
        return {}
    settings: dict[str, Any] = {}
    for key, value in read_toml(config).items():
        name = key.replace("-", "_")
        if isinstance(value, str) and name in _LISTS:
            value = numbers_of(value, name) if name in _LEVELS else _names(value, _LISTS[name])
        settings[name] = value
    return settings


def _names(text: str | None, known: Sequence[str] = ()) -> tuple[str, ...] | None:
    """a,b,c as a tuple; `all` means every known name, `none` no name."""
    return tuple(known) if text == "all" and known else names_of(text)


if __name__ == "__main__":
    sys.exit(main())
