"""Reads pictures: which bands a network is shown, which pixels count, and in which units."""

from __future__ import annotations

import math
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from PIL import Image, UnidentifiedImageError
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from torch import Tensor

from segproof.errors import DataError, printable

__all__ = ["Raster", "Reading", "Sample", "input_reading", "read_image", "read_raster"]

MAX_BYTES: Final = 1 << 30  # a small file may declare a picture of any size
MAX_BANDS: Final = 1024
SHOWN_BANDS: Final = 12  # that an error describes
_PIL_FORMATS: Final = ("PNG", "JPEG")
# GDAL opens TILE.tif.msk and .ovr with any driver: as VRT or WMS texts they lead elsewhere
_ALONE: Final = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
_SIGNATURES: Final = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",
    b"MM\x00+": "TIFF",
}
ORIENTATION: Final = 274  # the tag of EXIF and TIFF
DIVIDED: Final = re.compile(r"divided by ([0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?)")


class Sample(TypedDict, total=False):
    """One tile: `image` [B, H, W] in image units, `mask` and `valid` [H, W]."""

    image: Tensor
    mask: Tensor
    valid: Tensor
    id: str
    crs: Any
    transform: Any


@dataclass(frozen=True)
class Reading:
    """How a picture is read. `bands`: numbers of the file's bands, counted from 1, in the network's
    order; a number may stand twice. `alpha`: the band that is transparency, "none", or "auto".
    `divide_by`: what the stored values are divided by. `wanted`: how many bands the network takes.

    Raises:
        DataError: numbers that no file and no network can have.
    """

    bands: tuple[int, ...] | None = None
    alpha: Literal["auto", "none"] | int = "auto"
    divide_by: float | None = None
    wanted: int | None = None

    def __post_init__(self) -> None:
        if self.bands is not None and (not self.bands or min(self.bands) < 1):
            raise DataError(
                f"bands {list(self.bands)}", "numbers counted from 1", "write --bands 1,2,3"
            )
        if isinstance(self.alpha, str) and self.alpha not in ("auto", "none"):
            raise DataError(
                f"alpha {self.alpha!r}", "auto, none or the number of a band", "check --alpha"
            )
        if isinstance(self.alpha, int) and self.alpha < 1:
            raise DataError(
                f"alpha {self.alpha}", "the number of a band, counted from 1", "check --alpha"
            )
        if self.bands is not None and self.alpha in self.bands:
            raise DataError(
                f"band {self.alpha} as a band of the picture and as its transparency",
                "one use of each band",
                "take it out of --bands, or give --alpha none",
            )
        if self.divide_by is not None and not (0 < self.divide_by < math.inf):
            raise DataError(
                f"values divided by {self.divide_by}", "a number above 0", "check --divide-by"
            )
        if self.wanted is not None and self.wanted < 1:
            raise DataError(f"a network of {self.wanted} bands", "1 or more", "check the network")

    def record(self) -> dict[str, Any]:
        """The settings in a form that JSON can hold, for the manifest of a run."""
        return {
            "bands": None if self.bands is None else list(self.bands),
            "alpha": self.alpha,
            "divide_by": self.divide_by,
        }


@dataclass(frozen=True)
class Raster:
    """What a file holds, before it is decided what of it a network is shown.

    `values` [B, H, W] as stored, `mask` [H, W] (False: no pixel, by the file's own mask), `names`
    of the bands, `alpha` the positions that are marked as transparency.
    """

    path: Path
    values: npt.NDArray[Any]
    mask: npt.NDArray[np.bool_] | None
    names: tuple[str, ...]
    alpha: tuple[int, ...]
    nodata: tuple[float | None, ...]
    scaling: tuple[tuple[float, float], ...]
    kind: str
    place: dict[str, Any] = field(default_factory=dict)
    palette: npt.NDArray[np.uint8] | None = None

    @property
    def count(self) -> int:
        """How many bands the file has."""
        return int(self.values.shape[0])

    def describe(self) -> str:
        """Every band with its number, name, type and range."""
        parts = []
        for number, (name, band) in enumerate(zip(self.names, self.values, strict=True), 1):
            if number > SHOWN_BANDS:
                parts.append("...")
                break
            low, high = (band.min(), band.max()) if band.size else (0, 0)
            parts.append(f"{number} {name} {band.dtype} {low:g} to {high:g}")
        return f"{self.count} bands in {self.path} ({', '.join(parts)})"


def input_reading(told: str | Mapping[str, Any] | None) -> float | None:
    """The divisor that a network's `input` setting names: None (8-bit pictures are scaled to
    [0, 1], others keep their units) or a number by which stored values are divided.

    Raises:
        DataError: another text.
    """
    if told is None:
        return None
    if isinstance(told, Mapping) and set(told) == {"divide_by"}:
        number: Any = told["divide_by"]
        if isinstance(number, int | float) and not isinstance(number, bool):
            try:
                divisor = float(number)
            except OverflowError:  # an integer of JSON has any length
                divisor = math.inf
            if 0 < divisor < math.inf:
                return divisor
    elif isinstance(told, str):
        text = " ".join(told.casefold().split())
        if text in ("uint8 scaled to [0, 1]", "uint8 scaled to [0,1]"):
            return None
        if text == "as stored":
            return 1.0
        if match := DIVIDED.fullmatch(text):
            divisor = float(match[1])
            if 0 < divisor < math.inf:
                return divisor
    raise DataError(
        f"input {str(told)[:80]!r}",
        '"uint8 scaled to [0, 1]", "as stored", "divided by N" or {"divide_by": N}',
        "write one of these into the network's settings, or give --divide-by",
    )


def read_image(path: str | Path, *, reading: Reading = Reading()) -> Sample:
    """Read a PNG, JPEG or GeoTIFF as a float32 image [B, H, W].

    8-bit pictures are scaled to [0, 1]; 16-bit and float rasters keep their own units, or those of
    their scale and offset. Pixels that are nodata in all bands, transparent, or NaN in any band are
    False in `valid` and 0 in `image`. GeoTIFFs carry `crs` and `transform`. Files beside the image
    (.msk, .ovr, .aux.xml, .tfw) are not read. An orientation tag is applied.

    Raises:
        DataError: not a regular file, another format, damaged, several pages, 16-bit colour in a
            PNG, larger than 1 GiB in memory, or bands that do not fit `reading`.
    """
    return sample_of(read_raster(Path(path)), reading)


def sample_of(raster: Raster, reading: Reading) -> Sample:
    """The picture that `reading` makes of a file's bands."""
    chosen, alpha = choose_bands(raster, reading)
    valid = _valid(raster, chosen, alpha)
    image = torch.empty((len(chosen), *valid.shape), dtype=torch.float32)
    for place, band in enumerate(chosen):
        image[place] = _in_units(raster, band, reading.divide_by)
        valid &= torch.isfinite(image[place]).numpy()
    usable = torch.from_numpy(valid)
    image[:, ~usable] = 0.0
    found = Sample(image=image, valid=usable, id=printable(raster.path.stem))
    if raster.place:
        found["crs"], found["transform"] = raster.place["crs"], raster.place["transform"]
    return found


def choose_bands(raster: Raster, reading: Reading) -> tuple[list[int], int | None]:
    """Positions of the bands that are shown, and of the band that is transparency.

    Raises:
        DataError: bands that do not fit the network, or that can be read in two ways.
    """
    count, wanted = raster.count, reading.wanted
    for number in (*(reading.bands or ()), *([reading.alpha] * isinstance(reading.alpha, int))):
        if int(number) > count:
            raise DataError(
                f"no band {number} in {raster.path}: {raster.describe()}",
                f"numbers from 1 to {count}",
                "check --bands and --alpha",
            )
    alpha: int | None = None
    if isinstance(reading.alpha, int):
        alpha = reading.alpha - 1
    elif reading.alpha == "auto" and len(raster.alpha) == 1 and count > 1:
        alpha = _marked_alpha(raster, reading)
    if reading.bands is not None:
        chosen = [number - 1 for number in reading.bands]
    else:
        chosen = [band for band in range(count) if band != alpha]
    if wanted is not None and len(chosen) != wanted:
        raise _other_count(raster, chosen, wanted)
    return chosen, alpha


def _marked_alpha(raster: Raster, reading: Reading) -> int | None:
    """The band marked as transparency, where it is one. rasterio marks the fourth of four bands,
    whatever it holds, so that the mark alone proves nothing.
    """
    [band] = raster.alpha
    if reading.bands is None and reading.wanted == raster.count:
        return None
    if reading.bands is not None and band + 1 in reading.bands:
        return None
    believed = _only_ends(raster.values[band])
    if believed or reading.bands is not None or reading.wanted != raster.count - 1:
        return band if believed else None
    others = ",".join(str(number + 1) for number in range(raster.count) if number != band)
    raise DataError(
        f"band {band + 1} that is marked as transparency and holds other values than 0 and the"
        f" highest one: {raster.describe()}",
        f"{reading.wanted} bands, as the network was trained",
        f"give --bands {others} if band {band + 1} is a measurement that the network does not take,"
        f" or --alpha {band + 1} if it is transparency",
    )


def _only_ends(band: npt.NDArray[Any]) -> bool:
    """Nothing but 0 and the highest value of the type (1 for floats)."""
    top = np.iinfo(band.dtype).max if band.dtype.kind in "iu" else 1
    return bool(((band == 0) | (band == top)).all())


def _other_count(raster: Raster, chosen: Sequence[int], wanted: int) -> DataError:
    if len(chosen) > wanted:
        example = ",".join(str(band + 1) for band in chosen[:wanted])
        fix = f"choose the bands in the network's order, for example --bands {example}"
    elif raster.count >= wanted:
        fix = "give --alpha none if all bands are measurements, or choose them with --bands"
    elif raster.count == 1:
        fix = f"give --bands {','.join(['1'] * wanted)} to show the one band {wanted} times"
    else:
        fix = "use pictures with the bands that the network was trained on"
    shown = f"{len(chosen)} bands; " if len(chosen) != raster.count else ""
    return DataError(f"{shown}{raster.describe()}", f"{wanted}, as the network was trained", fix)


def _valid(raster: Raster, chosen: Sequence[int], alpha: int | None) -> npt.NDArray[np.bool_]:
    """GDAL's dataset mask over the chosen bands: nodata only where all of them are."""
    valid = np.ones(raster.values.shape[1:], dtype=bool)
    if raster.mask is not None:
        valid &= raster.mask
    if alpha is not None:
        valid &= np.asarray(raster.values[alpha] > 0)
    if any(raster.nodata[band] is not None for band in chosen):
        empty = np.ones_like(valid)
        for band in set(chosen):
            empty &= is_nodata(raster.values[band], raster.nodata[band])
        valid &= ~empty
    return valid


def is_nodata(band: npt.NDArray[Any], nodata: float | None) -> npt.NDArray[np.bool_]:
    """Where a band holds its nodata value, rounded to the band's type as GDAL does."""
    if nodata is None:
        return np.zeros(band.shape, dtype=bool)
    if band.dtype.kind == "f":
        if math.isnan(nodata):
            return np.asarray(np.isnan(band))
        with np.errstate(over="ignore"):
            return np.asarray(band == np.array(nodata).astype(band.dtype))
    return np.asarray(band == nodata)


def _in_units(raster: Raster, band: int, divide_by: float | None) -> Tensor:
    """A band [H, W] in float32: divided, by its own scale and offset, or 8 bits as 0 to 1."""
    values = raster.values[band]
    scale, offset = raster.scaling[band]
    with np.errstate(over="ignore", invalid="ignore"):
        if divide_by is None and (scale, offset) != (1.0, 0.0):
            return torch.from_numpy((values.astype(np.float64) * scale + offset).astype(np.float32))
        image = torch.from_numpy(values.astype(np.float32))
    if divide_by is not None:
        return image / divide_by
    return image / 255 if values.dtype == np.uint8 else image


# --- files ----------------------------------------------------------------------------------------
def read_raster(path: Path, *, palette: bool = False) -> Raster:
    """All bands of a PNG, JPEG or TIFF as they are stored; with `palette`, indices stay indices.

    Raises:
        DataError: as `read_image`.
    """
    kind = _signature(path)
    raster = _read_tiff(path) if kind == "TIFF" else _read_pillow(path, kind, keep=palette)
    if raster.values.dtype == bool or raster.values.dtype.kind not in "uif":
        raise _strange_type(path, raster.values.dtype)
    if kind == "TIFF" and raster.palette is not None and not palette:
        return _in_colours(raster)
    return raster


def _in_colours(raster: Raster) -> Raster:
    """A TIFF whose one band is an index into colours, as red, green and blue."""
    assert raster.palette is not None  # noqa: S101 - asked by the caller
    index = raster.values[0]
    if index.max(initial=0) >= len(raster.palette):
        raise DataError(
            f"index {index.max()} in {raster.path}", f"colours 0 to {len(raster.palette) - 1}",
            "export it again",
        )  # fmt: skip
    mask = ~is_nodata(index, raster.nodata[0])
    return replace(
        raster,
        values=np.moveaxis(raster.palette[index], 2, 0),
        mask=mask if raster.mask is None else mask & raster.mask,
        names=("red", "green", "blue"),
        nodata=(None,) * 3,
        scaling=((1.0, 0.0),) * 3,
    )


def _strange_type(path: Path, dtype: object) -> DataError:
    return DataError(f"pixels of type {dtype} in {path}", "integers or real numbers", "convert it")


def _signature(path: Path) -> str:
    """The format by the file's first bytes, never by its name: a text named .tif can be a VRT."""
    if not path.is_file():
        raise DataError(f"no file {path}", "a PNG, JPEG or TIFF file", "check the path")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"a name that is not UTF-8: {path}", "names in UTF-8", "rename it"
        ) from error
    with path.open("rb") as stream:
        head = stream.read(26)
    # bit depth and colour type: Pillow would keep 8 of the 16 bits without a word
    if head.startswith(b"\x89PNG") and head[24:25] == b"\x10" and head[25:26] != b"\x00":
        raise DataError(
            f"a PNG with 16 bits per colour: {path}",
            "8 bits per colour, or one 16-bit band",
            "export it as GeoTIFF, which keeps all bits",
        )
    for start, name in _SIGNATURES.items():
        if head.startswith(start):
            return name
    what = "an empty file" if not head else f"a file that begins with {head[:8]!r}"
    raise DataError(f"{what}: {path}", "a PNG, JPEG or TIFF file", "convert it")


def _check_size(path: Path, width: int, height: int, bands: int, itemsize: int) -> None:
    """The stored values and their copy in float32 must fit before anything is read."""
    if bands > MAX_BANDS:
        raise DataError(f"{bands} bands in {path}", f"at most {MAX_BANDS}", "select the bands")
    if width * height * bands * (itemsize + 4) > MAX_BYTES:
        raise DataError(
            f"{path} of {width} x {height} pixels, {bands} bands of {itemsize} bytes",
            "at most 1 GiB in memory",
            "cut it into tiles",
        )


def _read_pillow(path: Path, kind: str, *, keep: bool) -> Raster:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own size limit and of damaged EXIF
            with Image.open(path, formats=_PIL_FORMATS) as opened:
                width, height = opened.size
                deep = 4 if opened.mode[:1] in ("I", "F") else 1
                _check_size(path, width, height, len(opened.getbands()), deep)
                _one_frame(path, kind, opened)
                return _of_pillow(path, opened, kind, keep=keep)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, struct.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"a damaged file {path} ({error})", "a whole PNG or JPEG", "copy or export it again"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: {error}", "at most 1 GiB in memory", "cut it into tiles"
        ) from error


def _one_frame(path: Path, kind: str, picture: Image.Image) -> None:
    # cameras put a preview behind a JPEG, which is no second picture
    frames = int(getattr(picture, "n_frames", 1))
    if kind == "PNG" and frames > 1:
        raise DataError(
            f"an animated PNG of {frames} frames: {path}", "one picture a file", "save its frames"
        )


def _of_pillow(path: Path, picture: Image.Image, kind: str, *, keep: bool) -> Raster:
    picture.load()  # an EXIF chunk may stand behind the pixels
    orientation = picture.getexif().get(ORIENTATION, 1)
    palette: npt.NDArray[np.uint8] | None = None
    hidden = "transparency" in picture.info and picture.mode in ("L", "P", "RGB")
    if keep and picture.mode == "P":
        colours = picture.getpalette("RGB") or []
        palette = np.array(colours, dtype=np.uint8).reshape(-1, 3)
    elif not keep and hidden:
        picture = picture.convert("LA" if picture.mode == "L" else "RGBA")
    elif picture.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "PA", "RGBX"):
        picture = picture.convert("RGBA" if picture.mode == "PA" else "RGB")
    elif picture.mode == "1":
        picture = picture.convert("L")
    names = {"L": ("gray",), "P": ("index",), "LA": ("gray", "alpha")}.get(picture.mode)
    array = np.array(picture)
    bands = array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)
    if names is None:
        names = ("red", "green", "blue", "alpha")[: len(bands)] if len(bands) > 1 else ("gray",)
    mask: npt.NDArray[np.bool_] | None = None
    if hidden and not keep:  # a colour or a palette entry that is clear is no band of its own
        mask, bands, names = bands[-1] > 0, bands[:-1], names[:-1]
    turned = _turned(path, bands, orientation)
    return Raster(
        path,
        turned,
        None if mask is None else _turned(path, mask[None], orientation)[0],
        names,
        tuple(place for place, name in enumerate(names) if name == "alpha"),
        (None,) * len(names),
        ((1.0, 0.0),) * len(names),
        kind,
        palette=palette,
    )


def raster_of_pillow(picture: Image.Image, name: str) -> Raster:
    """The bands of a Pillow picture in memory; an orientation tag is applied.

    Raises:
        DataError: its file is damaged.
    """
    try:
        return _of_pillow(Path(name), picture, "picture", keep=False)
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"a damaged picture ({error})", "one that Pillow can load", "open it again"
        ) from error


def _turned(path: Path, bands: npt.NDArray[Any], orientation: object) -> npt.NDArray[Any]:
    """[B, H, W] as the orientation tag says that it is looked at."""
    if orientation in (0, 1):  # 0 is written for "not known"
        return bands
    turns: dict[object, npt.NDArray[Any]] = {
        2: bands[:, :, ::-1],
        3: bands[:, ::-1, ::-1],
        4: bands[:, ::-1],
        5: bands.transpose(0, 2, 1),
        6: bands.transpose(0, 2, 1)[:, :, ::-1],
        7: bands.transpose(0, 2, 1)[:, ::-1, ::-1],
        8: bands.transpose(0, 2, 1)[:, ::-1],
    }
    if not isinstance(orientation, int) or orientation not in turns:
        raise DataError(
            f"orientation {orientation!r} in {path}", "a number from 1 to 8", "save it again"
        )
    return np.ascontiguousarray(turns[orientation])


def _read_tiff(path: Path) -> Raster:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a plain TIFF is welcome too
            # the driver is named: otherwise GDAL follows VRT and WMS texts to other files and hosts
            with rasterio.Env(**_ALONE), rasterio.open(path.resolve(), driver="GTiff") as raster:
                _check_header(path, raster)
                values = raster.read()
                own = MaskFlags.per_dataset in raster.mask_flag_enums[0]
                own &= MaskFlags.alpha not in raster.mask_flag_enums[0]
                mask = raster.read_masks(1) > 0 if own else None
                crs, transform = raster.crs, raster.transform
                colours = tuple(colour.name for colour in raster.colorinterp)
                told = raster.descriptions
                nodata, scaling = raster.nodatavals, zip(raster.scales, raster.offsets, strict=True)
                palette = _colour_table(raster) if colours[0] == "palette" else None
    except (RasterioError, OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"a TIFF that cannot be read: {path} ({error})", "a whole GeoTIFF", "export it again"
        ) from error
    scales = tuple((float(scale), float(offset)) for scale, offset in scaling)
    if not all(math.isfinite(a) and a and math.isfinite(b) for a, b in scales):
        raise DataError(
            f"scales and offsets {scales[:SHOWN_BANDS]} in {path}", "finite numbers, no scale of 0",
            "give --divide-by, or set them again",
        )  # fmt: skip
    orientation = _orientation(path)
    if orientation not in (0, 1):
        if crs is not None or not transform.is_identity:
            raise DataError(
                f"a GeoTIFF with orientation {orientation}: {path}",
                "orientation 1, in which the coordinates are meant",
                "export it again with its first row at the top",
            )
        values = _turned(path, values, orientation)
        mask = None if mask is None else _turned(path, mask[None], orientation)[0]
    return Raster(
        path,
        values,
        mask,
        tuple(name or colour for name, colour in zip(told, colours, strict=True)),
        tuple(place for place, colour in enumerate(colours) if colour == "alpha"),
        tuple(nodata),
        scales,
        "TIFF",
        {"crs": crs, "transform": transform, "colours": colours},
        palette,
    )


def _check_header(path: Path, raster: Any) -> None:
    """Everything that can be refused before a pixel is read."""
    for dtype in set(raster.dtypes):
        if dtype.startswith("complex"):
            raise _strange_type(path, dtype)
    itemsize = max(np.dtype(dtype).itemsize for dtype in raster.dtypes)
    _check_size(path, raster.width, raster.height, raster.count, itemsize)
    # one block is decoded as a whole, with all bands where they are stored pixel by pixel
    together = (
        raster.count if str(raster.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE")) == "PIXEL" else 1
    )
    high, wide = raster.block_shapes[0]
    if high * wide * itemsize * together > MAX_BYTES:
        raise DataError(
            f"{path} with blocks of {wide} x {high} pixels", "at most 1 GiB in memory",
            "save it with smaller blocks",
        )  # fmt: skip
    if raster.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE"):
        raise DataError(
            f"a TIFF in which 0 is white: {path}", "values that grow with the brightness",
            "save it with photometric interpretation MINISBLACK",
        )  # fmt: skip
    if pages := len(raster.subdatasets):
        raise DataError(
            f"a TIFF of {pages} pages: {path}", "one picture a file", "save each page as a file"
        )


def _colour_table(raster: Any) -> npt.NDArray[np.uint8] | None:
    table = raster.colormap(1)
    colours = np.zeros((max(table) + 1, 3), dtype=np.uint8)
    for index, colour in table.items():
        colours[index] = colour[:3]
    return colours


def _orientation(path: Path) -> int:
    """The orientation tag of a TIFF's first directory, which GDAL does not tell; 1 without one."""
    with path.open("rb") as stream:
        order = "<" if stream.read(2) == b"II" else ">"
        [version] = struct.unpack(f"{order}H", stream.read(2))
        try:
            return _tag(stream, order, ORIENTATION, big=version == 43)
        except struct.error:
            return 1  # GDAL has read it, so that the tags were whole


def _tag(stream: BinaryIO, order: str, wanted: int, *, big: bool) -> int:
    if big:
        stream.seek(8)
    [start] = struct.unpack(order + "QI"[not big], stream.read(8 if big else 4))
    stream.seek(start)
    [count] = struct.unpack(order + "QH"[not big], stream.read(8 if big else 2))
    for _ in range(min(count, 65_536)):
        entry = stream.read(20 if big else 12)
        tag, kind = struct.unpack(f"{order}HH", entry[:4])
        if tag == wanted:
            place = 12 if big else 8
            size = "H" if kind == 3 else "I"
            return int(struct.unpack_from(order + size, entry, place)[0])
    return 1
