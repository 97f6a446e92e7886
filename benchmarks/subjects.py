"""What contests run on: two networks with tiles of 512 px, and the study of such a tile."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from claims import NETWORKS
from segproof import FolderDataset, SegmentationModel, Study, Target, explain_all, load_model
from segproof.data import Sample, SampleSource
from segproof.data.scenes import SceneDataset
from segproof.models.precision import Precision
from segproof.study.plan import Plan
from segproof.study.speed import choose_kernels
from segproof.study.tile import study_tile

__all__ = [
    "GRADIENT_AND_EIGEN", "LAYERS", "SIDE", "Planned", "Subject", "Tiles", "planned", "subjects",
]  # fmt: skip

SIDE: Final = 512
LAYERS: Final = ("decoder:-2", "decoder:-1")
GRADIENT_AND_EIGEN: Final = ("grad_cam", "grad_cam_pp", "xgrad_cam", "eigen_cam")
THRESHOLDS: Final = (0.1, 0.2, 0.3, 0.4, 0.5)
LITE0: Final = Path("models", "roofs-unet-lite0")
SEEDS: Final = 20  # of random weights, tried until no map is flat


@dataclass(frozen=True)
class Tiles:
    """Tiles held in memory, so that reading files is no part of a contest."""

    samples: tuple[Sample, ...]

    @property
    def ids(self) -> list[str]:
        """Their names."""
        return [sample["id"] for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


@dataclass(frozen=True)
class Subject:
    """A network, its tiles, and the module paths of LAYERS."""

    name: str
    model: SegmentationModel
    tiles: Tiles
    paths: tuple[str, ...]

    def image(self, turn: int) -> Tensor:
        """The picture [B, H, W] of a round."""
        return self.tiles[turn % len(self.tiles)]["image"]

    def truth(self, turn: int) -> Tensor:
        """The truth bool [H, W] of a round."""
        return self.tiles[turn % len(self.tiles)]["mask"] == 1

    @property
    def target(self) -> Target:
        """The class over its truth."""
        return Target("building", "truth")


def subjects(given: argparse.Namespace) -> Iterator[Subject]:
    """The networks asked for by `--networks`, one after the other."""
    names = ["lite0"] if given.quick and not given.networks else (given.networks or "").split(",")
    for name in names if names != [""] else NETWORKS:
        if name not in NETWORKS:
            raise SystemExit(f"network {name}; expected {' or '.join(NETWORKS)}; see --networks")
        made = _lite0(given.shared, given.tiles) if name == "lite0" else _resnet34(given.tiles)
        if made is None:
            print(f"lite0 is left out: no {given.shared / LITE0}; see --shared")
        else:
            yield made


def _lite0(shared: Path, count: int) -> Subject | None:
    if not (shared / LITE0).is_dir():
        return None
    model = load_model(f"smp:{shared / LITE0}")
    return _subject("lite0", model, first(FolderDataset(shared / "whu" / "test"), count))


def first(data: SampleSource, count: int) -> Tiles:
    """The first tiles that show the class."""
    found: list[Sample] = []
    for position in range(len(data)):
        sample = data[position]
        if bool((sample["mask"] == 1).any()):
            found.append(sample)
        if len(found) == count:
            return Tiles(tuple(found))
    raise SystemExit(f"{len(found)} tiles with the class; --tiles {count} is too many")


def _resnet34(count: int) -> Subject:
    """Random weights: time does not depend on them, except that a flat map costs no forward."""
    tiles = first(SceneDataset(2 * count, 0, SIDE), count)
    for seed in range(SEEDS):
        made = _subject("resnet34", random_unet(tiles[0]["image"], seed), tiles)
        maps = explain_all(
            made.model, made.image(0), methods=GRADIENT_AND_EIGEN, layers=made.paths,
            target=made.target, truth=made.truth(0),
        )  # fmt: skip
        if all(item.status == "ok" for item in maps):
            return made
    raise SystemExit(f"no random network of {SEEDS} without a flat map")


def random_unet(image: Tensor, seed: int) -> SegmentationModel:
    """A Unet of smp, resnet34, with two classes, each predicted on this picture [3, H, W]."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        net: nn.Module = smp.Unet("resnet34", encoder_weights=None, classes=2)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the picture's own statistics
        shown = ((image - 0.5) / 0.25)[None]
        net.train()(shown)
        logits = net.eval()(shown)
        head: nn.Conv2d = net.get_submodule("segmentation_head.0")  # type: ignore[assignment]
        head.weight.mul_(2 / logits.std())
        head.bias.copy_((head.bias - logits.mean(dim=(0, 2, 3))) * 2 / logits.std())  # type: ignore[union-attr]
    names = ["ground", "building"]
    return SegmentationModel(net, classes=names, mean=[0.5] * 3, std=[0.25] * 3).eval()


def _subject(name: str, model: SegmentationModel, tiles: Tiles) -> Subject:
    paths = tuple(model.resolve_layer(layer, SIDE) for layer in LAYERS)
    return Subject(name, model, tiles, paths)


@dataclass(frozen=True)
class Planned:
    """A study that has been planned, with the seconds that took: once a study, not once a tile."""

    plan: Plan
    once: float
    run: Callable[[int], int]


def planned(subject: Subject, precision: Precision | str) -> Planned:
    """Five methods, two layers, five thresholds, three strategies, one fill, no further controls.

    `run(turn)` studies the round's tile and returns its forwards.
    """
    model, tiles = subject.model, subject.tiles
    study = Study.of(
        **{"model": subject.name, "data": "tiles", "class": "building"}, layers=subject.paths,
        thresholds=THRESHOLDS, areas=(), fills=("neutral",), controls=(), precision=precision,
    )  # fmt: skip
    started = time.perf_counter()
    plan = choose_kernels(study.plan(model, tiles), model, tiles)
    once = time.perf_counter() - started

    def run(turn: int) -> int:
        made = study_tile(plan, model, tiles, turn % len(tiles))
        if made.status != "ok":
            raise SystemExit(f"tile {made.sample} is {made.status}: {made.reason}")
        return made.forwards

    return Planned(plan, once, run)
