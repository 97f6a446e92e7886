"""Commands that look at a network: layers, doctor, train."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from segproof.cli.console import OK, SOME_FAILED, out, progress
from segproof.cli.loading import load, picture_of
from segproof.cli.options import (
    ImageFlag,
    ModelFlag,
    Network,
    NetworkFlags,
    PictureFlags,
    Pictures,
    whole_of,
)
from segproof.data import FolderDataset, SceneDataset
from segproof.doctor import Finding, diagnose, layer_facts
from segproof.errors import DataError
from segproof.models import SegmentationModel, keep_blocks, train as train_network
from segproof.report import escape


def layers(
    *,
    model: ModelFlag,
    image: ImageFlag = None,
    pictures: PictureFlags = Pictures(),
    network: NetworkFlags = Network(),
) -> int:
    """List the layers that are worth explaining."""
    loaded = load(model, network)
    picture = picture_of(image, loaded, pictures, 512)
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


def doctor(
    *,
    model: ModelFlag,
    image: ImageFlag = None,
    class_: Annotated[str | None, Parameter("--class", help="Class to try.")] = None,
    pictures: PictureFlags = Pictures(),
    network: NetworkFlags = Network(),
) -> int:
    """Check whether a network is understood, and say which options it needs."""
    loaded = load(model, network)
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
    """Train a small network on tiles with masks."""
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
    image: Path | None, model: SegmentationModel, pictures: Pictures, class_: str | None
) -> Iterator[Finding]:
    """What `diagnose` finds; a picture that cannot be read for this network is a finding too."""
    try:
        picture = picture_of(image, model, pictures, 256)
    except DataError as error:
        fix = f"{error.expected}; {error.fix}"
        yield Finding("problem", "picture", f"found {error.found}", fix)
        return
    yield from diagnose(model, picture, class_=class_)
