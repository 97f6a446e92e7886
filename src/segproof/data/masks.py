"""Reads masks: class indices, 0/255, colours and one band per class, or values with a map."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segproof.data.rasters import is_nodata, read_raster
from segproof.errors import DataError, UnknownNameError

__all__ = ["IGNORE", "MaskFile", "MaskValues", "mask_of", "meanings", "open_mask", "read_mask"]

IGNORE: Final = -1  # in place of a class
MOST: Final = 12  # values or colours that an error lists
MAX_ENTRIES: Final = 4096
_RANGE: Final = re.compile(r"(-?\d{1,10})(?:-(-?\d{1,10}))?")
_COLOUR: Final = re.compile(r"#[0-9a-fA-F]{6}")


class Span(NamedTuple):
    """Mask values from `first` to `last` that mean one class, or IGNORE."""

    first: int
    last: int
    meaning: int


@dataclass(frozen=True)
class MaskValues:
    """Which values and colours of a mask mean which class; what it does not name is refused.

    `spans` of values and `colours` (0xrrggbb) lead to class indices, or to IGNORE.
    """

    text: str
    spans: tuple[Span, ...] = ()
    colours: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, told: str | Mapping[Any, Any], names: Sequence[str]) -> MaskValues:
        """Read `0=background, 1|2=building, 10-20=road, #ff0000=road, 255=ignore`, or a mapping of
        such values to classes. `names[i]` is the class of mask value i; an index i will do too.

        Raises:
            DataError: what is no value, or two classes for one value.
            UnknownNameError: a class that does not exist.
        """
        entries = list(_entries(told))
        spans: list[Span] = []
        colours: dict[int, int] = {}
        for left, right in entries:
            index = _class_of(right, names)
            for part in left.split("|"):
                atom = part.strip()
                if _COLOUR.fullmatch(atom):
                    code = int(atom[1:], 16)
                    if colours.setdefault(code, index) != index:
                        raise _twice(atom)
                elif match := _RANGE.fullmatch(atom):
                    first = int(match[1])
                    last = first if match[2] is None else int(match[2])
                    if last < first:
                        raise _not_a_value(atom)
                    for span in spans:
                        if span.meaning != index and first <= span.last and span.first <= last:
                            raise _twice(atom)
                    spans.append(Span(first, last, index))
                else:
                    raise _not_a_value(atom)
        if not entries:
            raise DataError("no mask values", "VALUE=CLASS, ...", "check --mask-values")
        if len(spans) + len(colours) > MAX_ENTRIES:
            raise DataError(
                f"{len(spans) + len(colours)} mask values", f"at most {MAX_ENTRIES}",
                "write ranges such as 10-20=road",
            )  # fmt: skip
        text = ", ".join(f"{left}={right}" for left, right in entries)
        return cls(text, tuple(spans), tuple(sorted(colours.items())))

    def class_of(self, value: float) -> int | None:
        """The class of a value, IGNORE, or None where it is not named."""
        return next((s.meaning for s in self.spans if s.first <= value <= s.last), None)

    def __str__(self) -> str:
        return self.text


def _entries(told: str | Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(told, Mapping):
        for left, right in told.items():
            if isinstance(left, tuple) and len(left) == 3:
                yield "#{:02x}{:02x}{:02x}".format(*left), str(right)
            else:
                yield str(left).strip(), str(right)
        return
    for part in told.split(","):
        if not part.strip():
            continue
        left, equals, right = part.partition("=")
        if not equals or not left.strip() or not right.strip():
            raise _not_a_value(part.strip())
        yield left.strip(), right.strip()


def _not_a_value(part: str) -> DataError:
    return DataError(
        f"{part[:80]!r} among the mask values",
        "VALUE=CLASS, where VALUE is 1, 1|2, 10-20 or #ff0000",
        "write for example --mask-values '0=background,1|2=building,255=ignore'",
    )


def _twice(atom: str) -> DataError:
    return DataError(
        f"two classes for the mask value {atom}", "one class for each", "check --mask-values"
    )


def _class_of(name: str, names: Sequence[str]) -> int:
    name = name.strip()
    exact = [index for index, known in enumerate(names) if known == name]
    folded = [index for index, known in enumerate(names) if known.casefold() == name.casefold()]
    found = exact or folded
    number = int(name) if re.fullmatch(r"\d{1,6}", name) else None
    if name == "ignore" and exact:
        raise DataError(
            "a class that is called ignore", "its index, or another name",
            f"write {exact[0]} for the class in --mask-values",
        )  # fmt: skip
    if name == "ignore":
        return IGNORE
    if len(found) == 1 and number in (None, found[0]):
        return found[0]
    if not found and number is not None and number < len(names):
        return number
    if len(found) > 1 or (found and number is not None):
        raise DataError(
            f"class {name!r} in --mask-values, which means more than one class",
            "an index or a name that stands once", "write the index",
        )  # fmt: skip
    raise UnknownNameError.of("class", name, [*names, "ignore"])


@dataclass(frozen=True)
class MaskFile:
    """What a mask file holds, before it is decided what it means.

    `codes` [H, W]: the values as stored, or colours as 0xrrggbb where `coloured`. `bands` [K, H, W]
    of the file where there are several; `same`: those that are no transparency are equal.
    `palette` [N, 3]: the colour of each index. `readable` [H, W]: False where the file itself says
    that there is no pixel.
    """

    path: Path
    kind: str
    codes: npt.NDArray[Any]
    coloured: bool
    readable: npt.NDArray[np.bool_]
    nodata: npt.NDArray[np.bool_] | None = None
    nodata_value: float | None = None
    bands: npt.NDArray[Any] | None = None
    palette: npt.NDArray[np.uint8] | None = None
    marked_rgb: bool = False
    same: bool = True
    place: dict[str, Any] = field(default_factory=dict)

    def shares(self) -> dict[str, int]:
        """Pixels of each value, or of each colour as #rrggbb, in the order of the values."""
        values, counts = np.unique(self.codes[self.readable], return_counts=True)
        return {self.name(v): int(n) for v, n in zip(values, counts, strict=True)}

    def name(self, value: float) -> str:
        """A value or a colour as it is written in --mask-values."""
        return f"#{int(value):06x}" if self.coloured else f"{value:g}"


def open_mask(path: str | Path) -> MaskFile:
    """Read a mask file as it is stored.

    Raises:
        DataError: damaged files, and all else that `read_image` refuses.
    """
    raster = read_raster(Path(path), palette=True)
    values, readable = raster.values, np.ones(raster.values.shape[1:], dtype=bool)
    if raster.mask is not None:
        readable &= raster.mask
    if values.dtype.kind == "f":
        readable &= np.isfinite(values).all(axis=0)
        values = np.where(readable, values, 0)
    nodata = None
    if raster.nodata[0] is not None:
        nodata = is_nodata(values[0], raster.nodata[0])
    rgb = raster.kind != "TIFF" or raster.place["colours"][:3] == ("red", "green", "blue")
    bands: npt.NDArray[Any] | None = values if len(values) > 1 else None
    colours = values[[band for band in range(len(values)) if band not in raster.alpha]]
    same = all(np.array_equal(band, colours[0]) for band in colours[1:])
    if same:
        codes, coloured = (colours if len(colours) else values)[0], False
        if len(colours) == len(values):
            bands = None
    elif len(colours) == 3 and colours.dtype == np.uint8:
        wide = colours.astype(np.int64)
        codes, coloured = (wide[0] << 16) | (wide[1] << 8) | wide[2], True
    else:
        codes, coloured = colours[0], False
    return MaskFile(
        raster.path, raster.kind, codes, coloured, readable, nodata, raster.nodata[0], bands,
        raster.palette, rgb, same, raster.place,
    )  # fmt: skip


def read_mask(
    path: str | Path,
    *,
    classes: int = 2,
    ignore_index: int | None = None,
    values: MaskValues | None = None,
    names: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Read a mask as class indices int64 [H, W] and the pixels that count, bool [H, W].

    Of two classes a mask of 0 and 255 is binary (255 becomes class 1) unless 255 is `ignore_index`;
    one band per class is read as classes; any other values must be class indices below `classes`,
    or be named by `values`. `ignore_index` pixels become class 0 and do not count, nor do a
    GeoTIFF's nodata pixels unless its nodata value is a class. `names` stand in messages.

    Raises:
        DataError: unknown values (a JPEG mask has dozens), colours without a map, damaged files.
    """
    opened = open_mask(path)
    return mask_of(opened, classes, ignore_index=ignore_index, values=values, names=names)


def mask_of(
    opened: MaskFile,
    classes: int,
    *,
    ignore_index: int | None = None,
    values: MaskValues | None = None,
    names: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """`read_mask` of an opened file."""
    if values is not None:
        index = _mapped(opened, values, ignore_index)
    else:
        names = names if names is not None and len(names) == classes else None
        index = _evident(opened, classes, ignore_index, names)
    counts = opened.readable & (index != IGNORE)
    mask = np.where(index == IGNORE, 0, index).astype(np.int64)
    mask[~opened.readable] = 0
    return torch.from_numpy(mask), torch.from_numpy(counts)


def meanings(opened: MaskFile, mask: Tensor, counts: Tensor) -> dict[str, tuple[int, int]]:
    """Each value or colour of a mask file that was read: its class (IGNORE: does not count) and its
    pixels. One band per class has the names of the bands.
    """
    indices = np.where(counts.numpy(), mask.numpy(), IGNORE)[opened.readable]
    by_band = opened.bands is not None and not opened.same and not opened.coloured
    codes = indices if by_band else opened.codes[opened.readable]
    values, first, number = np.unique(codes, return_index=True, return_counts=True)
    return {
        f"band of class {value}" if by_band else opened.name(value): (int(indices[at]), int(n))
        for value, at, n in zip(values, first, number, strict=True)
    }


# --- with a map -----------------------------------------------------------------------------------
def _mapped(
    opened: MaskFile, values: MaskValues, ignore_index: int | None
) -> npt.NDArray[np.int64]:
    """Classes [H, W] by the map, IGNORE where pixels do not count."""
    found, place = np.unique(opened.codes, return_inverse=True)
    place = place.reshape(opened.codes.shape)
    colours = dict(values.colours)
    table = np.full(len(found), IGNORE, dtype=np.int64)
    unnamed = np.zeros(len(found), dtype=bool)
    for number, value in enumerate(found):
        meaning = _named(opened, float(value), values, colours)
        if meaning is not None:
            table[number] = meaning
        elif opened.coloured or value not in (ignore_index, opened.nodata_value):
            unnamed[number] = True
    counts = np.bincount(place[opened.readable], minlength=len(found))
    strange = [
        (opened.name(value), count)
        for value, count, new in zip(found, counts, unnamed, strict=True)
        if new and count
    ]
    if strange:
        what = "colours" if opened.coloured else "values"
        raise DataError(
            f"{len(strange)} {what} in the mask {opened.path} that --mask-values does not name"
            f" ({_shares(strange, int(counts.sum()))})",
            f"only {values}",
            f"add them to --mask-values, for example {strange[0][0]}=ignore",
        )
    return np.asarray(table[place])


def _named(
    opened: MaskFile, value: float, values: MaskValues, colours: Mapping[int, int]
) -> int | None:
    if opened.coloured:
        return colours.get(int(value))
    by_value = values.class_of(value)
    colour: int | None = None
    if colours:
        if opened.palette is not None and 0 <= value < len(opened.palette):
            red, green, blue = (int(part) for part in opened.palette[int(value)])
            colour = red << 16 | green << 8 | blue
        elif opened.palette is None and 0 <= value <= 255 and value == int(value):
            colour = int(value) * 0x010101  # a grey picture of a set in colours
    by_colour = None if colour is None else colours.get(colour)
    if by_value is not None and by_colour is not None and by_value != by_colour:
        raise DataError(
            f"value {value:g} of the mask {opened.path}, whose colour #{colour:06x} means another"
            " class",
            "one class for each pixel",
            "name only the values or only the colours in --mask-values",
        )
    return by_colour if by_value is None else by_value


def _shares(counted: Iterable[tuple[str, int]], total: int) -> str:
    """`#ff0000 12.5 %, ...`, the most frequent first, at most a dozen."""
    ordered = sorted(counted, key=lambda pair: -pair[1])
    listed = ", ".join(
        f"{name} {100 * count / max(total, 1):.3g} %" for name, count in ordered[:MOST]
    )
    return listed + (f", ... {len(ordered)} in all" if len(ordered) > MOST else "")


# --- by evidence ----------------------------------------------------------------------------------
def _evident(
    opened: MaskFile, classes: int, ignore_index: int | None, names: Sequence[str] | None
) -> npt.NDArray[np.int64]:
    """Classes [H, W] where the values themselves say what they mean; IGNORE: do not count."""
    if opened.bands is not None:
        hot = _one_hot(opened, classes)
        if hot is not None:
            return hot
        if not opened.same:
            raise _colours(opened, classes, names)
    array = opened.codes
    values = np.unique(array)
    wanted = f"class indices 0..{classes - 1}"
    if classes <= 2:
        wanted = f"0/255, or {wanted}"
    if ignore_index is not None:
        wanted += f" and {ignore_index} (ignored)"
    if not np.array_equal(values, np.round(values)):
        raise DataError(f"fractions in the mask {opened.path}", wanted, "save whole class indices")
    void = np.zeros(array.shape, dtype=bool) if ignore_index is None else array == ignore_index
    # burned masks name 0 nodata: a value that is a class stays one
    if opened.nodata is not None and not 0 <= (opened.nodata_value or 0) < classes:
        void = void | opened.nodata
    kept = np.unique(array[~void & opened.readable])
    index = array.astype(np.int64)
    # of more classes 255 is no class: often the void of someone who forgot to say so
    if classes <= 2 and set(kept.tolist()) <= {0, 255}:
        index = (index == 255).astype(np.int64)
    elif kept.size and (kept.min() < 0 or kept.max() >= classes):
        raise _other_values(opened, kept, classes, wanted, names)
    index[void] = IGNORE
    return index


def _one_hot(opened: MaskFile, classes: int) -> npt.NDArray[np.int64] | None:
    """One band per class: 0 and one other value (1 or 255), exactly one band set in each pixel, or
    at most one where the background has no band of its own. None where the bands are otherwise.
    """
    bands = opened.bands
    if bands is None or len(bands) not in (classes, classes - 1):
        return None
    present = np.unique(bands)
    if not (set(present.tolist()) <= {0, 1} or set(present.tolist()) <= {0, 255}):
        return None
    layers = (bands != 0).sum(axis=0)[opened.readable]
    whole = len(bands) == classes
    if layers.size == 0 or layers.max() > 1 or (whole and layers.min() < 1):
        return None
    # red, green and blue are colours as well
    if len(bands) == 3 and 255 in present and bands.dtype == np.uint8 and opened.marked_rgb:
        return None
    index = bands.argmax(axis=0).astype(np.int64)
    return index if whole else np.where((bands != 0).any(axis=0), index + 1, 0)


def _other_values(
    opened: MaskFile,
    kept: npt.NDArray[Any],
    classes: int,
    wanted: str,
    names: Sequence[str] | None,
) -> DataError:
    strange = kept[(kept < 0) | (kept >= classes)]
    # of a long list, those that are no class are shown first
    shown = kept if kept.size <= 6 else [*strange, *np.setdiff1d(kept, strange)][:6]
    listed = ", ".join(f"{value:g}" for value in shown) + (", ..." if kept.size > 6 else "")
    hint = "map these values to classes with --mask-values, or name one with ignore_index"
    hint += " (--ignore-index)"
    if opened.kind == "JPEG":
        hint = "save it again from its source as PNG: JPEG blurs class values"
    elif kept.min() >= 0 and kept.max() > 127 and kept.size > 3:
        hint += "; if these are soft edges of a 0/255 mask, save (mask > 127) * 255"
    elif kept.size == 2 and classes == 2:
        one, two = (f"{value:g}" for value in kept)
        a, b = names or ("0", "1")
        hint += f": --mask-values {one}={a},{two}={b} or --mask-values {one}={b},{two}={a}"
    elif kept.size == classes:
        pairs = zip(kept, names or range(classes), strict=True)
        hint += ": for example --mask-values " + ",".join(f"{v:g}={name}" for v, name in pairs)
    else:
        counts = [(f"{v:g}", int((opened.codes == v).sum())) for v in kept[: MOST * 8]]
        hint += f"; shares: {_shares(counts, opened.codes.size)}"
    return DataError(f"{kept.size} values ({listed}) in the mask {opened.path}", wanted, hint)


def _colours(opened: MaskFile, classes: int, names: Sequence[str] | None) -> DataError:
    wanted = "one band of 0/255 or class indices, one band per class, or --mask-values"
    if not opened.coloured:
        bands = 0 if opened.bands is None else len(opened.bands)
        return DataError(
            f"a mask with colours or bands that differ: {opened.path} ({bands} bands)",
            wanted,
            "save it with one band (palette PNGs keep their indices)",
        )
    shares = opened.shares()
    ordered = sorted(shares.items(), key=lambda pair: -pair[1])
    fix = "save it with one band (palette PNGs keep their indices)"
    if opened.kind == "JPEG":
        fix = "save it again from its source as PNG: JPEG blurs colours"
    elif len(ordered) <= 256:
        known = list(names or [str(index) for index in range(classes)])
        written = ",".join(f"{colour}=CLASS" for colour, _ in ordered[:MOST])
        fix = f"name the class of each colour: --mask-values '{written}' ({', '.join(known[:MOST])}"
        fix += f"{', ...' if len(known) > MOST else ''} or ignore)"
        if _primaries(opened):
            parts = [f"{c}={name}" for c, name in zip(("#ff0000", "#00ff00", "#0000ff"), known[-3:],
                                                      strict=False)]  # fmt: skip
            parts += [f"#000000={known[0]}"] * (len(known) == 4)
            fix += f"; if it has one band per class: --mask-values '{','.join(parts)}'"
    return DataError(
        f"a mask with colours: {opened.path} ({_shares(ordered, sum(shares.values()))})",
        wanted,
        fix,
    )


def _primaries(opened: MaskFile) -> bool:
    """Pure red, green and blue can be three bands of classes."""
    return {"#ff0000", "#00ff00", "#0000ff", "#000000"} >= opened.shares().keys()
