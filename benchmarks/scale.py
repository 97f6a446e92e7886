"""How the time of a tile grows with its pixels and with the channels of a layer.

    python benchmarks/scale.py [--repeats N] [--quick]

The shared network; tiles of 256, 512 and 1024 px cut from four tiles of WHU side by side. The study
is two methods, two layers, two thresholds, three strategies; Score-CAM is asked for at decoder
blocks of 16 to 256 channels of a tile of 256 px. Time = constant x size^k, k by least squares of
the logarithms. Asked: linear, k at most 1.1; the bare forward's own k is shown beside.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from bench import Contestant, Figure, contest, options, parsed, report
from segproof import FolderDataset, Study, explain, load_model
from segproof.data import Sample
from segproof.models.contract import SegmentationModel, evaluating
from segproof.study.tile import study_tile
from subjects import LITE0, Subject, Tiles, first

SIDES = (256, 512, 1024)
CHANNELS = {256: "decoder:1", 128: "decoder:2", 64: "decoder:3", 32: "decoder:4", 16: "decoder:5"}
LAYERS = ("decoder.blocks.3", "decoder.blocks.4")


def power(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """K of seconds = constant x size^k."""
    slope, _ = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(slope)


def powers(seconds: Mapping[str, Sequence[float]], sizes: Mapping[str, float]) -> list[float]:
    """K in each round, over the contestants with these sizes."""
    rounds = zip(*(seconds[name] for name in sizes), strict=True)
    return [power(list(sizes.values()), each) for each in rounds]


def mosaic(tiles: Tiles) -> Sample:
    """Four tiles of one size as one."""
    a, b, c, d = tiles.samples

    def joined(name: str) -> torch.Tensor:
        rows = [torch.cat([a[name], b[name]], -1), torch.cat([c[name], d[name]], -1)]  # type: ignore[literal-required]
        return torch.cat(rows, -2)

    return Sample(image=joined("image"), mask=joined("mask"), id="mosaic")


def cut(whole: Sample, side: int) -> Sample:
    """Its middle, side x side px."""
    start = (whole["image"].shape[-1] - side) // 2
    inside = slice(start, start + side)
    image, mask = whole["image"][:, inside, inside], whole["mask"][inside, inside]
    return Sample(image=image.contiguous(), mask=mask.contiguous(), id=f"{side} px")


def study(model: SegmentationModel, tile: Sample) -> Contestant:
    """The study of a tile, planned before."""
    tiles = Tiles((tile,))
    plan = Study.of(
        **{"model": "lite0", "data": "tiles", "class": "building"}, layers=LAYERS, controls=(),
        methods=("grad_cam", "eigen_cam"), thresholds=(0.2, 0.4), areas=(), fills=("neutral",),
    ).plan(model, tiles)  # fmt: skip

    def work(_turn: int) -> None:
        made = study_tile(plan, model, tiles, 0)
        if made.status != "ok":
            raise SystemExit(f"tile {made.sample} is {made.status}: {made.reason}")

    return Contestant(work)


def forward(model: SegmentationModel, tile: Sample, batch: int) -> Contestant:
    """One bare forward of a batch of this tile."""

    def work(_turn: int) -> None:
        with torch.inference_mode(), evaluating(model):
            model(tile["image"].repeat(batch, 1, 1, 1))

    return Contestant(work)


def score_cam(subject: Subject, path: str) -> Contestant:
    """One map of Score-CAM."""

    def work(turn: int) -> None:
        explain(
            subject.model, subject.image(turn), method="score_cam", layer=path,
            target=subject.target, truth=subject.truth(turn), fill="neutral",
        )  # fmt: skip

    return Contestant(work)


def figures(given: argparse.Namespace) -> list[Figure]:
    """Both claims."""
    model = load_model(f"smp:{given.shared / LITE0}")
    whole = mosaic(first(FolderDataset(given.shared / "whu" / "test"), 4))
    tiles = {side: cut(whole, side) for side in SIDES}
    small = Subject("lite0", model, Tiles((tiles[SIDES[0]],)), LAYERS)
    paths = {k: model.resolve_layer(layer, SIDES[0]) for k, layer in CHANNELS.items()}
    seconds = contest(
        {
            **{f"study, {side} px": study(model, tile) for side, tile in tiles.items()},
            **{f"forwards, {side} px": forward(model, tile, 4) for side, tile in tiles.items()},
            **{f"Score-CAM, {k} channels": score_cam(small, path) for k, path in paths.items()},
        },
        given,
        warm=False,
        title="Sizes",
    )
    pixels = {side: float(side * side) for side in SIDES}
    bare = powers(seconds, {f"forwards, {side} px": n for side, n in pixels.items()})
    found = {
        "scale-pixels": {f"study, {side} px": n for side, n in pixels.items()},
        "scale-channels": {f"Score-CAM, {k} channels": float(k) for k in paths},
    }
    return [
        Figure(
            claim,
            powers(seconds, sizes),
            {name: seconds[name] for name in sizes},
            {"power of the bare forward, median": float(np.median(bare))}
            if claim == "scale-pixels"
            else {},
        )
        for claim, sizes in found.items()
    ]


def main() -> None:
    """Measure, print and write."""
    given = parsed(options(__doc__, quick=2))
    if not (given.shared / LITE0).is_dir():
        raise SystemExit(f"no {given.shared / LITE0}; this needs the shared network: --shared DIR")
    report("scale", figures(given), given)


if __name__ == "__main__":
    main()
