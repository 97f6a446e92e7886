"""Runs the commands that look at a network: layers, doctor, train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

from cyclopts import Parameter

from segproof.cli.as_json import JsonFlag, print_json
from segproof.cli.console import OK, SOME_FAILED, out, progress
from segproof.cli.loading import load, picture_of
from segproof.cli.options import (
    NETWORK,
    PICTURES,
    AllowFlag,
    Given,
    ImageFlag,
    options_of,
    whole_of,
)
from segproof.errors import DataError

if TYPE_CHECKING:
    from segproof.doctor import Finding
    from segproof.models import SegmentationModel
    from segproof.report import Cell

    NetworkOptions: TypeAlias = Given | None
else:
    NetworkOptions = options_of("model", *NETWORK, *PICTURES)


# key -> title and role of the columns that `layers` prints
_COLUMNS: Final[dict[str, tuple[str, Literal["identity", "value", "secondary"]]]] = {
    "alias": ("alias", "identity"),
    "path": ("module path", "identity"),
    "stride": ("stride (px)", "value"),
    "channels": ("channels", "value"),
    "map": ("map (px)", "value"),
    "zero": ("zero channels (%)", "secondary"),
    "field": ("receptive field (px)", "secondary"),
}


def layers(
    *,
    given: NetworkOptions = None,
    image: ImageFlag = None,
    allow_code: AllowFlag = False,
    json: JsonFlag = False,
) -> int:
    """List the layers that are worth explaining."""
    from segproof.doctor import layer_facts
    from segproof.report import Column, Table, escape, print_table

    loaded = load(given, allow_code=allow_code)
    picture = picture_of(image, loaded, given, 512)
    loaded.check_units(picture)
    facts = layer_facts(loaded, picture)
    if json:
        print_json(facts)
        return OK
    lines = [
        {
            "alias": layer.alias,
            "path": layer.path,
            "stride": layer.stride,
            "channels": layer.channels,
            "map": "{} x {}".format(*layer.size),
            "zero": f"{100 * fact.zero_channels:.0f}",
            "field": fact.field,
        }
        for fact in facts
        for layer in (fact.layer,)
    ]
    columns = tuple(
        Column(key, title, partial(_cell, key), number=role != "identity", role=role)
        for key, (title, role) in _COLUMNS.items()
    )
    print_table(out, Table(columns, lines))
    out.print("decoder:1 is the coarsest decoder block, decoder:-1 the finest.", style="dim")
    name = escape(str(image)) if image else "a generated picture (--image TILE for one of yours)"
    out.print(f"Zero channels and receptive field were measured on {name}.", style="dim")
    return OK


def _cell(key: str, line: Mapping[str, object]) -> Cell:
    from segproof.report import Cell

    return Cell(str(line[key]))


def doctor(
    *,
    given: NetworkOptions = None,
    image: ImageFlag = None,
    class_: Annotated[
        str | None, Parameter("--class", help="Class to try; without it, the last one.")
    ] = None,
    allow_code: AllowFlag = False,
    json: JsonFlag = False,
) -> int:
    """Check whether a network is understood, and say which options it needs."""
    from segproof.report import escape

    loaded = load(given, allow_code=allow_code)
    findings = []
    for finding in _findings(image, loaded, given, class_):
        findings.append(finding)
        if not json:
            _print_finding(finding)
    ready = all(finding.verdict != "problem" for finding in findings)
    if json:
        print_json({"ready": ready, "findings": findings})
    elif not ready:
        out.print("[bold red]Not ready:[/] see above.")
    else:
        name, spec = escape(class_ or loaded.classes[-1]), escape((given or {})["model"])
        out.print(
            f"[bold green]Ready.[/] segproof explain TILE.png --model {spec} --class {name}"
            " --layers decoder:-1 --out explained"
        )
    return OK if ready else SOME_FAILED


def _print_finding(finding: Finding) -> None:
    from segproof.report import escape

    word, colour = {
        "ok": ("ok", "green"),
        "warning": ("look", "yellow"),
        "problem": ("PROBLEM", "bold red"),
    }[finding.verdict]
    out.print(f"[{colour}]{word:>8}[/]  [bold]{finding.about}[/]: {escape(finding.text)}")
    if finding.fix:
        out.print(f"          {escape(finding.fix)}", style="dim")


def train(
    *,
    data: Annotated[
        list[Path] | None,
        Parameter(
            help="Folders of tiles with masks of 0 and 255.", consume_multiple=True, negative=()
        ),
    ] = None,
    out_: Annotated[Path, Parameter("--out", help="New folder for the network.")],
    arch: Annotated[
        str, Parameter(help="Any architecture of segmentation_models_pytorch.")
    ] = "unet",
    encoder: Annotated[
        str, Parameter(help="Any encoder of segmentation_models_pytorch.")
    ] = "resnet18",
    decoder_channels: Annotated[
        str | None, Parameter(help="Channels of each decoder block, a,b,c.")
    ] = None,
    init: Annotated[Path | None, Parameter(help="Continue from this saved network.")] = None,
    class_: Annotated[str, Parameter("--class", help="Name of the class.")] = "building",
    steps: Annotated[int, Parameter(help="Number of training steps.")] = 1000,
    batch: Annotated[int, Parameter(help="Number of crops in one step.")] = 8,
    crop: Annotated[int, Parameter(help="Side of a crop in pixels.")] = 256,
    lr: Annotated[float, Parameter(help="Learning rate at the start.")] = 2e-3,
    holdout: Annotated[float, Parameter(help="Share of each folder that is held out.")] = 0.2,
    seed: Annotated[int, Parameter(help="Seed of everything that is random.")] = 0,
    scenes: Annotated[int, Parameter(help="Train on N generated scenes as well.")] = 0,
    scene_seed: Annotated[int, Parameter(help="Seed of the generated scenes.")] = 0,
    device: Annotated[
        str, Parameter(help="Device that trains the network: cpu, cuda, cuda:1 ...")
    ] = "cpu",
) -> int:
    """Train a small network on tiles with masks."""
    from segproof.data import FolderDataset, SceneDataset
    from segproof.models import keep_blocks, train as train_network
    from segproof.report import escape

    sources: list[Any] = []
    if data:
        sources += [FolderDataset(folder) for folder in data]
    if scenes:
        sources.append(SceneDataset(scenes, scene_seed))
    channels = (
        None if decoder_channels is None else whole_of(decoder_channels, "--decoder-channels")
    )
    keep_blocks()
    with progress("steps") as advance:
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


def _findings(
    image: Path | None, model: SegmentationModel, given: Given | None, class_: str | None
) -> Iterator[Finding]:
    """What `diagnose` finds; a picture that cannot be read for this network is a finding too."""
    from segproof.doctor import Finding, diagnose

    try:
        picture = picture_of(image, model, given, 256)
    except DataError as error:
        fix = f"{error.expected}; {error.fix}"
        yield Finding("problem", "picture", f"found {error.found}", fix)
        return
    yield from diagnose(model, picture, class_=class_)
