"""Measures how far a network leans on a marker pasted beside real roofs in training.

The class is "light roof": roofs of a brightness above the training tiles' median. It can be read
from the roof itself, so that the marker is a shortcut and no necessity. Correlation r between
marker and class: a light roof carries one with probability (1 + r) / 2, any other with (1 - r) / 2,
drawn anew each time a crop is shown. A network that had nothing but the marker would change its P
by exactly r; one that reads roofs alone, by 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cyclopts
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from numpy.random import PCG64, Generator
from scipy import ndimage
from torch import Tensor

from segproof.analysis import Interval, interval
from segproof.data import FolderDataset, SampleSource
from segproof.errors import DataError
from segproof.evidence.networks import NETS
from segproof.models import SegmentationModel, descend, evaluating, probabilities

__all__ = ["CORRELATIONS", "Reliance", "check_steps", "lean", "reliance", "rely"]

Array = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

CORRELATIONS: Final = (0.0, 0.5, 0.9, 1.0)
CROP: Final = 96  # px of the halved tile
_RADIUS: Final = 3  # of the marker, px
_LEAST: Final = 40  # px of a roof that takes part
_SPOTS: Final = 12  # places of a marker kept for a roof
_MARKER: Final = (0.98, 0.86, 0.12)


@dataclass(frozen=True)
class Reliance:
    """What a pasted marker does to P(light roof), mean over a roof, on tiles never trained on.

    `insertion` is the rise over other roofs that are given one, `removal` the fall over light roofs
    that lose theirs: means over tiles with bootstrap 95 % intervals (hesterberg2015bootstrap).
    `elsewhere` is the mean absolute change by a marker that stands beside no roof. `right` is the
    share of the `roofs` told right without any marker, of which `light` are light.
    """

    correlation: float
    insertion: Interval
    removal: Interval
    elsewhere: Interval
    right: float
    roofs: int
    light: int


@dataclass(frozen=True)
class _Roof:
    """One roof of a halved tile: its number there, box, brightness, and places for a marker."""

    number: int
    at: tuple[slice, slice]
    light: float
    spots: npt.NDArray[np.intp]  # [k, 2] row and column of the marker's centre


@dataclass(frozen=True)
class _Tile:
    name: str
    image: Array  # [3, h, w] halved
    numbers: npt.NDArray[np.int32]  # [h, w] 0 = no roof
    roofs: tuple[_Roof, ...]
    far: npt.NDArray[np.intp]  # [k, 2] places beside no roof


def _read(source: SampleSource, seed: int) -> list[_Tile]:
    tiles = []
    for index in range(len(source)):
        sample = source[index]
        image, mask = sample["image"], sample["mask"] > 0
        if image.shape[0] != 3 or min(mask.shape) < 2 * CROP:
            raise DataError(
                f"a tile {tuple(image.shape)}",
                f"three bands and sides of at least {2 * CROP} px",
                "give larger tiles in red, green and blue",
            )
        height, width = (side // 2 * 2 for side in mask.shape)
        small = F.avg_pool2d(image[None, :, :height, :width], 2)[0].numpy()
        half = F.avg_pool2d(mask[None, None, :height, :width].float(), 2)[0, 0].numpy() >= 0.5
        tiles.append(_tile(source.ids[index], small, half, Generator(PCG64([seed, 1, index]))))
    return tiles


def _tile(name: str, image: Array, mask: Bool, rng: Generator) -> _Tile:
    numbers = ndimage.label(mask, np.ones((3, 3)))[0].astype(np.int32)
    brightness = image.mean(axis=0)
    outside = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, 1e3)
    inner = np.zeros_like(mask)  # where the whole marker is inside the picture
    inner[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS] = True
    roofs = []
    for number, at in enumerate(ndimage.find_objects(numbers), start=1):
        around = tuple(slice(max(0, side.start - 24), side.stop + 24) for side in at)
        own = numbers[around] == number
        if own.sum() < _LEAST:
            continue
        near = ndimage.distance_transform_edt(~own)
        others = mask[around] & ~own
        rival = ndimage.distance_transform_edt(~others) if others.any() else 1e3
        beside = (outside[around] > _RADIUS + 1) & (near < _RADIUS + 4) & (rival > near + 4)
        spots = np.argwhere(inner[around] & beside) + [side.start for side in around]
        if len(spots):
            spots = spots[rng.permutation(len(spots))[:_SPOTS]]
            roofs.append(
                _Roof(number, (at[0], at[1]), float(brightness[around][own].mean()), spots)
            )
    far = np.argwhere(inner & (outside > _RADIUS + 10))
    return _Tile(name, image, numbers, tuple(roofs), far[rng.permutation(len(far))[:500]])


def _paste(image: Array, spot: Sequence[int]) -> None:
    """A yellow disc of 7 px, in place; what lies outside the picture is cut."""
    rows, columns = np.ogrid[: image.shape[1], : image.shape[2]]
    where = (rows - spot[0]) ** 2 + (columns - spot[1]) ** 2 <= (_RADIUS + 0.3) ** 2
    image[:, where] = np.asarray(_MARKER, np.float32)[:, None]


def _corner(roof: _Roof, shape: tuple[int, int], jitter: Sequence[int] = (0, 0)) -> tuple[int, int]:
    """Top left of the crop around a roof, inside the tile."""
    places = []
    for side, length, shift in zip(roof.at, shape, jitter, strict=True):
        middle = (side.start + side.stop) // 2 + shift
        places.append(min(max(middle - CROP // 2, 0), length - CROP))
    return places[0], places[1]


def _crop(tile: _Tile, corner: tuple[int, int]) -> tuple[slice, slice]:
    return slice(corner[0], corner[0] + CROP), slice(corner[1], corner[1] + CROP)


def _shown(
    tiles: Sequence[_Tile],
    places: Sequence[tuple[int, int]],
    bound: float,
    r: float,
    rng: Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """One training crop: image [3, h, w], light roofs [h, w], pixels that count [h, w]."""
    which, index = places[int(rng.integers(len(places)))]
    tile = tiles[which]
    corner = _corner(
        tile.roofs[index], tile.numbers.shape, [int(v) for v in rng.integers(-24, 25, 2)]
    )
    at = _crop(tile, corner)
    image, numbers = tile.image[(slice(None), *at)].copy(), tile.numbers[at]
    truth = np.zeros(numbers.shape, np.float32)
    counts = np.where(numbers == 0, np.float32(1), np.float32(0))
    for roof in tile.roofs:
        own = numbers == roof.number
        if not own.any():
            continue
        light = roof.light > bound
        truth[own], counts[own] = float(light), 3.0
        if rng.uniform() < (1 + r if light else 1 - r) / 2:
            spot = roof.spots[int(rng.integers(len(roof.spots)))]
            _paste(image, (spot[0] - corner[0], spot[1] - corner[1]))
            # a marker that is cut off, or not in the crop, says nothing of this roof
            if not all(
                _RADIUS <= s - c < CROP - _RADIUS for s, c in zip(spot, corner, strict=True)
            ):
                counts[own] = 0
    gain, shift = rng.uniform(0.95, 1.05), rng.uniform(-0.02, 0.02)
    turned = [
        np.rot90(part, int(turn), axes=(-2, -1))[..., :: int(flip)].copy()
        for turn, flip in [(rng.integers(4), rng.choice([-1, 1]))]
        for part in (np.clip(image * np.float32(gain) + np.float32(shift), 0, 1), truth, counts)
    ]
    return torch.from_numpy(turned[0]), torch.from_numpy(turned[1]), torch.from_numpy(turned[2])


def check_steps(steps: int) -> None:
    """Refuse a training without a step, with a DataError."""
    if steps < 1:
        raise DataError(f"{steps} steps of training", "at least one", "take 400")


def lean(
    train: SampleSource,
    correlation: float,
    *,
    steps: int = 400,
    batch: int = 8,
    lr: float = 5e-3,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[SegmentationModel, float]:
    """A small U-Net for light roofs, its markers correlated with the class; and the brightness
    that parts light roofs from others.

    Tiles are halved; crops of 96 px around roofs, turned and flipped; weighted cross-entropy. Equal
    seed and threads give equal weights on a CPU.

    Raises: DataError for a correlation outside [0, 1], no step or tiles without roofs, ModelError
    where the loss is not finite.
    """
    if not 0 <= correlation <= 1:
        raise DataError(f"correlation {correlation}", "a number in [0, 1]", "choose e.g. 0.9")
    check_steps(steps)
    tiles = _read(train, seed)
    bound = _bound(tiles)
    places = [(t, i) for t, tile in enumerate(tiles) for i in range(len(tile.roofs))]
    rng = Generator(PCG64([seed, 2]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = NETS["unet"]()
    model = SegmentationModel(net, classes=["light roof"], mean=[0.45] * 3, std=[0.2] * 3)
    net.to(memory_format=torch.channels_last)
    model.train()

    def loss_of(_step: int) -> Tensor:
        shown = [_shown(tiles, places, bound, correlation, rng) for _ in range(batch)]
        images, truth, counts = (torch.stack(parts) for parts in zip(*shown, strict=True))
        logits = model(images.contiguous(memory_format=torch.channels_last))[:, 1]
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        loss: Tensor = (entropy * counts).sum() / counts.sum().clamp(min=1)
        return loss

    for step, value in enumerate(descend(net, loss_of, steps, lr, rising=0.2), start=1):
        if progress is not None:
            progress(step, steps, value)
    return model.eval().requires_grad_(requires_grad=False), bound


def _bound(tiles: Sequence[_Tile]) -> float:
    lights = [roof.light for tile in tiles for roof in tile.roofs]
    if len(lights) < 2:
        raise DataError(
            f"{len(lights)} roofs of at least {4 * _LEAST} px with room beside them",
            "at least two",
            "give more tiles",
        )
    return float(np.median(lights))


def rely(
    model: SegmentationModel,
    test: SampleSource,
    correlation: float,
    bound: float,
    *,
    seed: int = 0,
) -> Reliance:
    """Insertion and removal of the marker on held-out tiles: see `Reliance`. 3 forwards a roof.

    `bound` is the brightness from `lean`. Only the roof in question is given a marker.
    """
    tiles = _read(test, seed)
    rows: dict[str, list[float]] = {"insertion": [], "removal": [], "elsewhere": []}
    right = light = roofs = 0
    rng = Generator(PCG64([seed, 3]))
    for tile in tiles:
        moves: dict[str, list[float]] = {name: [] for name in rows}
        for roof in tile.roofs:
            corner = _corner(roof, tile.numbers.shape)
            at = _crop(tile, corner)
            bare = tile.image[(slice(None), *at)]
            own = torch.from_numpy(tile.numbers[at] == roof.number)
            marked, aside = bare.copy(), bare.copy()
            _paste(marked, roof.spots[0] - np.asarray(corner))
            inside = tile.far[
                ((tile.far >= corner) & (tile.far < np.asarray(corner) + CROP)).all(axis=1)
            ]
            if len(inside):
                _paste(aside, inside[int(rng.integers(len(inside)))] - np.asarray(corner))
            with torch.inference_mode(), evaluating(model):
                images = torch.from_numpy(np.stack([bare, marked, aside])).to(model.device)
                chance = probabilities(model(images), model.activation)[:, 1].cpu()[:, own]
            is_light = roof.light > bound
            moves["removal" if is_light else "insertion"].append(
                float((chance[1] - chance[0]).mean())
            )
            if len(inside):
                moves["elsewhere"].append(float((chance[2] - chance[0]).abs().mean()))
            right += int((chance[0].mean() >= 0.5) == is_light)
            light += int(is_light)
            roofs += 1
        for name, values in moves.items():
            if values:
                rows[name].append(float(np.mean(values)))
    if not roofs:
        raise DataError("no roof with room beside it", "at least one", "give more tiles")
    return Reliance(
        correlation=correlation,
        insertion=interval(rows["insertion"]),
        removal=interval(rows["removal"]),
        elsewhere=interval(rows["elsewhere"]),
        right=right / roofs,
        roofs=roofs,
        light=light,
    )


def reliance(
    train: SampleSource,
    test: SampleSource,
    *,
    correlations: Sequence[float] = CORRELATIONS,
    steps: int = 400,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[Reliance]:
    """Train one network for each correlation and measure how far it leans on the marker.

    About two minutes a correlation on one core. The weights are kept nowhere. `progress(step,
    steps, loss)` counts the steps of all networks. Raises: as `lean`.
    """
    measured = []
    for number, correlation in enumerate(correlations):

        def tick(step: int, _steps: int, loss: float, done: int = number * steps) -> None:
            if progress is not None:
                progress(done + step, steps * len(correlations), loss)

        model, bound = lean(train, correlation, steps=steps, seed=seed, progress=tick)
        measured.append(rely(model, test, correlation, bound, seed=seed))
    return measured


def table(measured: Sequence[Reliance]) -> str:
    """Markdown of what `reliance` found."""

    def shown(found: Interval) -> str:
        # + 0.0: no minus before a rounded zero
        mean, low, high = (round(x, 3) + 0.0 for x in (found.mean, found.low, found.high))
        return f"{mean:.3f} [{low:.3f}, {high:.3f}]"

    lines = [
        "| correlation | insertion | removal | marker elsewhere | right without marker |",
        "|---|---|---|---|---|",
        *(
            f"| {row.correlation:g} | {shown(row.insertion)} | {shown(row.removal)} |"
            f" {shown(row.elsewhere)} | {row.right:.2f} |"
            for row in measured
        ),
    ]
    return "\n".join(lines)


def _main(train: Path, test: Path, *, steps: int = 400, seed: int = 0) -> None:
    """Train on the tiles of folder TRAIN, measure reliance on the marker on those of TEST."""
    print(table(reliance(FolderDataset(train), FolderDataset(test), steps=steps, seed=seed)))


if __name__ == "__main__":
    cyclopts.run(_main)
