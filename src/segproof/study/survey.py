"""Surveys the tiles of a data set before they are studied: pairs, mask values, what is wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from segproof.data import IGNORE, Raster, Reading, Surveyed, find_pairs, surveyed
from segproof.errors import DataError
from segproof.models import SegmentationModel

__all__ = ["DataReport", "Problem", "ValueShare", "check", "survey_data"]

EXAMPLES: Final = 3  # pairs and names that a report shows
MOST_VALUES: Final = 512  # different mask values that are counted
MOST_KINDS: Final = 64  # different sizes of pictures, and different problems


def check(
    data: str | Path,
    *,
    model: SegmentationModel | None = None,
    ignore_index: int | None = None,
    classes: int = 2,
    pad: bool = False,
    **how: Any,
) -> Iterator[tuple[Path, str]]:
    """Every image of a folder of tiles with the reason why it cannot be studied, "" where it can.

    Images and masks are read whole, no network is run; with a `model` its bands, its mask values,
    the sizes that it takes and the range of its normalisation are compared too. `how`: images,
    masks, values, reading and names, as FolderDataset takes them.

    Raises:
        DataError: images and masks that cannot be told apart or paired, or no image at all.
    """
    how |= {"ignore_index": ignore_index, "classes": classes}
    for tile in _surveyed(data, model, how, pad=pad):
        yield tile.path, tile.reason


def _surveyed(
    data: str | Path, model: SegmentationModel | None, how: dict[str, Any], *, pad: bool
) -> Iterator[Surveyed]:
    """Every image with its mask as they are read, compared with the network."""
    if model is not None:
        chosen = how.get("reading") or Reading()
        wanted = chosen.wanted or model.input_bands
        # a caller whose masks hold class + 1 says so with more classes than the network has
        classes = max(how["classes"], model.mask_values)
        how = {**how, "classes": classes, "reading": replace(chosen, wanted=wanted)}
    for tile in surveyed(data, **how):
        if tile.sample is None or model is None:
            yield tile
            continue
        try:
            _check_fit(model, tile.sample["image"].shape, pad=pad)
            model.check_units(tile.sample["image"])
        except DataError as error:
            yield tile._replace(reason=str(error), error=error)
        else:
            yield tile


@dataclass(frozen=True)
class Problem:
    """What keeps some tiles from being studied: an example in words, how many tiles, the first
    names, and what mends it.
    """

    found: str
    expected: str
    fix: str
    count: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class ValueShare:
    """A value or colour of the masks, what it is read as, and its share of all their pixels."""

    value: str
    meaning: str
    pixels: int
    share: float


@dataclass(frozen=True)
class DataReport:
    """What a folder of tiles holds: how images and masks were paired, what the mask values mean,
    what the pictures are, and what is wrong, alike problems once.
    """

    rule: str
    examples: tuple[tuple[str, str], ...]
    good: int
    bad: int
    values: tuple[ValueShare, ...]
    pictures: tuple[tuple[str, int], ...]
    low: float | None
    high: float | None
    problems: tuple[Problem, ...]
    unused_images: int = 0
    unused_masks: int = 0
    more_values: int = 0

    @property
    def tiles(self) -> int:
        """Images that were looked at."""
        return self.good + self.bad


def survey_data(
    data: str | Path,
    *,
    model: SegmentationModel | None = None,
    ignore_index: int | None = None,
    classes: int = 2,
    pad: bool = False,
    names: Sequence[str] | None = None,
    tick: Callable[[int], None] = lambda tiles: None,
    **how: Any,
) -> DataReport:
    """Read every image and mask of a folder and say what it holds; memory does not grow with it.

    `names[i]` is the class of mask value i (those of the `model` where one is given). `how`:
    images, masks, values and reading, as FolderDataset takes them. `tick` is called per tile.

    Raises:
        DataError: images and masks that cannot be told apart or paired, or no image at all.
    """
    root = Path(data)
    pairing = find_pairs(root, how.get("images"), how.get("masks"))
    if model is not None:
        classes = max(classes, model.mask_values)
        names = model.mask_names if names is None else names
    names = names or [str(index) for index in range(classes)]
    how |= {"ignore_index": ignore_index, "classes": classes, "made": pairing, "names": names}
    tally = _Tally(root)
    for number, tile in enumerate(_surveyed(data, model, how, pad=pad), 1):
        tally.add(tile)
        tick(number)
    pairs = pairing.pairs[:EXAMPLES]
    return DataReport(
        pairing.rule,
        tuple((_below(root, image), _below(root, mask)) for image, mask in pairs),
        tally.good,
        tally.bad,
        tally.shares(names, ignore_index),
        tuple(sorted(tally.pictures.items(), key=lambda item: (-item[1], item[0]))),
        tally.low,
        tally.high,
        tally.problems(),
        len(pairing.unused_images),
        len(pairing.unused_masks),
        tally.more,
    )


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


class _Tally:
    """Counts over the tiles, of bounded size."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.good, self.bad, self.more = 0, 0, 0
        self.values: Counter[tuple[str, int | None]] = Counter()
        self.pictures: Counter[str] = Counter()
        self.low: float | None = None
        self.high: float | None = None
        self._problems: dict[tuple[str, str], tuple[DataError, list[str], list[int]]] = {}

    def add(self, tile: Surveyed) -> None:
        """Count one tile."""
        self.good, self.bad = self.good + (not tile.reason), self.bad + bool(tile.reason)
        if tile.picture is not None:
            self._add_picture(tile.picture)
        if tile.meanings is not None:
            self._add_values({(value, index): n for value, (index, n) in tile.meanings.items()})
        elif tile.mask is not None:
            self._add_values({(value, None): n for value, n in tile.mask.shares().items()})
        if tile.error is not None:
            self._add_problem(tile.path, tile.error)

    def _add_picture(self, picture: Raster) -> None:
        count, height, width = picture.values.shape
        kind = f"{count} x {height} x {width} {picture.values.dtype}"
        # pictures of any size would make a list as long as the set
        if kind not in self.pictures and len(self.pictures) >= MOST_KINDS:
            kind = "other sizes"
        self.pictures[kind] += 1
        values = picture.values
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        if values.size:
            low, high = float(values.min()), float(values.max())
            self.low = low if self.low is None else min(low, self.low)
            self.high = high if self.high is None else max(high, self.high)

    def _add_values(self, pixels: Mapping[tuple[str, int | None], int]) -> None:
        for key, number in pixels.items():
            if key in self.values or len(self.values) < MOST_VALUES:
                self.values[key] += number
            else:
                self.more += number

    def _add_problem(self, path: Path, error: Exception) -> None:
        if not isinstance(error, DataError):
            error = DataError(
                str(error) or type(error).__name__, "a file that can be read", "check the file"
            )
        # what differs from file to file: its name and the numbers in the sentence
        alike = re.sub(rf"{re.escape(str(self.root))}/?[^\s:;,()]*", "FILE", error.found)
        alike = alike.replace(path.name, "FILE").replace(path.stem, "FILE")
        alike = re.sub(r"#[0-9a-f]{6}|\d+(?:\.\d+)?", "N", alike)
        key = alike, re.sub(r"\d+", "N", error.expected)
        if key not in self._problems and len(self._problems) >= MOST_KINDS:
            key = "", ""
            error = DataError("other problems", "files that can be read", "mend the others first")
        _, names, count = self._problems.setdefault(key, (error, [], [0]))
        count[0] += 1
        if len(names) < EXAMPLES:
            names.append(_below(self.root, path))

    def problems(self) -> tuple[Problem, ...]:
        """Alike problems once, the most frequent first."""
        ordered = sorted(self._problems.values(), key=lambda entry: -entry[2][0])
        return tuple(
            Problem(error.found, error.expected, error.fix, count[0], tuple(names))
            for error, names, count in ordered
        )

    def shares(self, names: Sequence[str], ignore_index: int | None) -> tuple[ValueShare, ...]:
        """Value, class and share, in the order of the classes; classes without a pixel too."""
        total = sum(self.values.values()) + self.more
        lines = []
        for (value, index), pixels in self.values.items():
            if index is None:
                order, meaning = len(names) + 1, "refused"
            elif index == IGNORE:
                order, meaning = len(names), "does not count"
            else:
                order, meaning = index, names[index] if index < len(names) else str(index)
            lines.append((order, value, ValueShare(value, meaning, pixels, pixels / total)))
        present = {index for _, index in self.values}
        lines += [
            (index, "", ValueShare("", name, 0, 0.0))
            for index, name in enumerate(names)
            if index not in present and index != ignore_index
        ]
        return tuple(line for *_, line in sorted(lines, key=lambda line: line[:2]))


def _check_fit(model: SegmentationModel, shape: Sequence[int], *, pad: bool) -> None:
    bands, height, width = shape
    if model.input_bands != bands:
        raise DataError(
            f"{bands} bands", f"{model.input_bands}, as the network was trained", "select the bands"
        )
    strict = bool(getattr(model.net, "requires_divisible_input_shape", False))
    if strict and not pad and model.padding((height, width)) != (0, 0):
        raise DataError(
            f"{height} x {width} px", f"multiples of {model.stride} px", "pass --pad, or cut them"
        )
