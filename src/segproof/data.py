"""Tiles and masks: one sample dict (TorchGeo's), readers that refuse what they cannot vouch for."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypedDict

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from PIL import Image, UnidentifiedImageError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from torch import Tensor

from segproof.errors import DataError, printable

__all__ = [
    "FolderDataset",
    "Sample",
    "SampleSource",
    "digest_of",
    "read_image",
    "read_mask",
    "survey",
]

LAYOUTS: Final = {
    "WHU": ("image", "label"),
    "Inria": ("images", "gt"),
    "plain": ("images", "masks"),
}
SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SHIFT: Final = 0.5  # px that a mask may lie beside its image
MAX_BYTES: Final = 1 << 30  # a small file may declare a picture of any size
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


class Sample(TypedDict, total=False):
    """One tile: `image` [B, H, W] in image units, `mask` and `valid` [H, W]."""

    image: Tensor
    mask: Tensor
    valid: Tensor
    id: str
    crs: Any
    transform: Any


class SampleSource(Protocol):
    """What a study reads from: a length, stable names and samples by position."""

    @property
    def ids(self) -> Sequence[str]:
        """Names used in tables and files, one per sample."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def read_image(path: str | Path) -> Sample:
    """Read a PNG, JPEG or GeoTIFF as a float32 image [B, H, W].

    8-bit pictures are scaled to [0, 1]; 16-bit and float rasters keep their own units. Pixels that
    are nodata, transparent or NaN are False in `valid` and 0 in `image`. GeoTIFFs carry `crs`,
    `transform`. Files beside the image (.msk, .ovr, .aux.xml, .tfw) are not read.

    Raises:
        DataError: not a regular file, another format, damaged, 16-bit colour in a PNG, or larger
            than 1 GiB in memory.
    """
    path = Path(path)
    if _signature(path) == "TIFF":
        return _read_tiff(path)
    array = _read_pillow(path)
    valid = np.ones(array.shape[:2], dtype=bool)
    if array.ndim == 3 and array.shape[2] in (2, 4):
        valid = array[..., -1] > 0
        array = array[..., :-1]
    bands = array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)
    return _sample(path, bands, valid)


def read_mask(
    path: str | Path, *, classes: int = 2, ignore_index: int | None = None
) -> tuple[Tensor, Tensor]:
    """Read a mask as class indices int64 [H, W] and the pixels that count, bool [H, W].

    Of two classes a mask of 0 and 255 is binary (255 becomes class 1) unless 255 is `ignore_index`;
    any other values must be class indices below `classes`. `ignore_index` pixels become class 0 and
    do not count, nor do a GeoTIFF's nodata pixels unless its nodata value is a class.

    Raises:
        DataError: unknown values (a JPEG mask has dozens), bands that differ, damaged files.
    """
    sample = _read_mask(Path(path), classes, ignore_index)
    return sample["mask"], sample["valid"]


def _read_mask(path: Path, classes: int, ignore_index: int | None) -> Sample:
    """`read_mask`, with the place on earth that a GeoTIFF names."""
    found = Sample()
    kind = _signature(path)
    if kind == "TIFF":
        sample = _read_tiff(path, scale=False, classes=classes)
        found["crs"], found["transform"] = sample["crs"], sample["transform"]
        bands, readable = sample["image"].numpy(), sample["valid"]
        array = bands[0]
        same = all(np.array_equal(band, array) for band in bands[1:])
    else:
        array = _read_pillow(path, palette=False)
        readable = torch.ones(array.shape[:2], dtype=torch.bool)
        if array.ndim == 3:
            colour = array[..., :3] if array.shape[2] >= 3 else array[..., :1]
            same = bool((colour == colour[..., :1]).all())
            array = array[..., 0]
        else:
            same = True
    if not same:
        raise DataError(
            f"a mask with colours: {path}",
            "one band of 0/255 or class indices",
            "save it with one band (palette PNGs keep their indices)",
        )
    values = np.unique(array)
    wanted = f"class indices 0..{classes - 1}"
    if classes <= 2:
        wanted = f"0/255, or {wanted}"
    if ignore_index is not None:
        wanted += f" and {ignore_index} (ignored)"
    if not np.array_equal(values, np.round(values)):
        raise DataError(f"fractions in the mask {path}", wanted, "save whole class indices")
    ignored = (
        array == ignore_index if ignore_index is not None else np.zeros(array.shape, dtype=bool)
    )
    kept = values[values != ignore_index] if ignore_index is not None else values
    mask = array.astype(np.int64)
    # of more classes 255 is no class: often the void of someone who forgot to say so
    if classes <= 2 and set(kept.tolist()) <= {0, 255}:
        mask = (mask == 255).astype(np.int64)
    elif kept.size and (kept.min() < 0 or kept.max() >= classes):
        strange = kept[(kept < 0) | (kept >= classes)]
        # of a long list, those that are no class are shown first
        shown = kept if kept.size <= 6 else [*strange, *np.setdiff1d(kept, strange)][:6]
        listed = ", ".join(f"{value:g}" for value in shown) + (", ..." if kept.size > 6 else "")
        hint = "map these values to classes, or name one with ignore_index"
        if kind == "JPEG":
            hint = "save it again from its source as PNG: JPEG blurs class values"
        elif kept.min() >= 0 and kept.max() > 127 and kept.size > 3:
            hint += "; if these are soft edges of a 0/255 mask, save (mask > 127) * 255"
        raise DataError(f"{kept.size} values ({listed}) in the mask {path}", wanted, hint)
    mask[ignored] = 0
    found["mask"] = torch.from_numpy(mask)
    found["valid"] = readable & torch.from_numpy(~ignored)
    return found


class FolderDataset:
    """A folder of tiles with masks: `image/label` (WHU), `images/gt` (Inria) or `images/masks`.

    Pairs are made by file stem and sorted by it. Nothing is read before a sample is asked for.

    Raises:
        DataError: no known layout, images without a mask (named), no tile at all.
    """

    def __init__(
        self, root: str | Path, *, classes: int = 2, ignore_index: int | None = None
    ) -> None:
        self.root = Path(root)
        self.classes, self.ignore_index = classes, ignore_index
        self.layout, images, masks = _find_layout(self.root)
        pictures, labels = _by_stem(images), _by_stem(masks)
        missing = sorted(pictures.keys() - labels.keys())
        if missing:
            raise DataError(
                f"{len(missing)} of {len(pictures)} images without a mask: {_few(missing)}",
                f"a file of the same stem in {masks}",
                "add these masks or move these images away",
            )
        if not pictures:
            raise DataError(
                f"no images in {images}", f"files {', '.join(SUFFIXES)}", "check --data"
            )
        self.unused_masks = sorted(labels.keys() - pictures.keys())
        self.pairs = [(pictures[stem], labels[stem]) for stem in sorted(pictures)]

    @property
    def ids(self) -> list[str]:
        """File stems, sorted: the names used in every table."""
        return [printable(image.stem) for image, _ in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        return _read_pair(*self.pairs[index], self.classes, self.ignore_index)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def survey(
    root: str | Path, *, classes: int = 2, ignore_index: int | None = None
) -> Iterator[tuple[Path, str, Sample | None]]:
    """Every image of a folder of tiles, read with its mask: path, why it cannot be studied, sample.

    The reason is "" where the pair is good, the sample None where it is not. Masks without an image
    are left out: they are not used.

    Raises:
        DataError: no known layout, or no image at all.
    """
    _, images, masks = _find_layout(Path(root))
    pictures, labels = _files(images), _files(masks)
    if not pictures:
        raise DataError(f"no images in {images}", f"files {', '.join(SUFFIXES)}", "check the path")
    by_stem: dict[str, list[Path]] = {}
    for path in labels:
        by_stem.setdefault(path.stem, []).append(path)
    seen: dict[str, Path] = {}
    for path in pictures:
        try:
            mask = _only_mask(path, seen.get(path.stem), by_stem.get(path.stem, []), masks)
            yield path, "", _read_pair(path, mask, classes, ignore_index)
        except (DataError, OSError, MemoryError) as error:
            yield path, printable(str(error)) or type(error).__name__, None
        seen[path.stem] = path


def _only_mask(path: Path, before: Path | None, found: list[Path], folder: Path) -> Path:
    if before is not None:
        raise _double(before, path)
    if not found:
        raise DataError(f"no mask for {path}", f"{path.stem} with a suffix in {folder}", "add it")
    if len(found) > 1:
        raise _double(*found[:2])
    return found[0]


def _read_pair(image: Path, mask: Path, classes: int, ignore_index: int | None) -> Sample:
    """An image with its mask, which has its size and, where both say so, its place on earth."""
    sample, truth = read_image(image), _read_mask(mask, classes, ignore_index)
    height, width = sample["image"].shape[1:]
    if truth["mask"].shape != (height, width):
        raise DataError(
            f"mask {mask} of {truth['mask'].shape[0]} x {truth['mask'].shape[1]} pixels",
            f"{height} x {width}, the size of its image",
            "resample the mask (nearest neighbour) to the image",
        )
    _check_place(sample, truth, mask, (height, width))
    sample["mask"] = truth["mask"]
    sample["valid"] = sample["valid"] & truth["valid"]
    return sample


def _check_place(sample: Sample, truth: Sample, mask: Path, size: tuple[int, int]) -> None:
    """A mask without coordinates is taken as it is; one that lies elsewhere is not."""
    here, there = sample.get("crs"), truth.get("crs")
    if here is None or there is None:
        return
    fix = "warp the mask (nearest neighbour) to the image's grid"
    if here != there and (here.to_epsg() is None or here.to_epsg() != there.to_epsg()):
        raise DataError(f"mask {mask} in {there}", f"{here}, as its image", fix)
    grid = sample["transform"]
    if grid.is_degenerate:
        raise DataError(
            f"coordinates of the image of {mask} that map nothing", "a pixel size", "set it again"
        )
    corners = [(x, y) for x in (0, size[1]) for y in (0, size[0])]
    moved = [_apply(~grid, *_apply(truth["transform"], *corner)) for corner in corners]
    off = max(
        abs(a - b)
        for one, two in zip(corners, moved, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    if off > SHIFT:
        raise DataError(
            f"mask {mask} that lies up to {off:.1f} px beside its image (moved, scaled, rotated)",
            f"the same place to {SHIFT} px",
            fix,
        )


def _apply(grid: Any, x: float, y: float) -> tuple[float, float]:
    return grid.a * x + grid.b * y + grid.c, grid.d * x + grid.e * y + grid.f


def _find_layout(root: Path) -> tuple[str, Path, Path]:
    if root.is_file():
        raise DataError(
            f"a file {root}", "a folder of tiles", "unpack an archive yourself: none is opened here"
        )
    if not root.is_dir():
        raise DataError(f"no folder {root}", "a folder of tiles", "check the path")
    for name, (images, masks) in LAYOUTS.items():
        if (root / images).is_dir() and (root / masks).is_dir():
            return name, root / images, root / masks
    known = " or ".join(f"{images}/ + {masks}/" for images, masks in LAYOUTS.values())
    below = [
        child.name
        for child in sorted(root.iterdir())
        if any((child / i).is_dir() and (child / m).is_dir() for i, m in LAYOUTS.values())
    ]
    if below:
        fix = f"name one of the data sets inside: {', '.join(str(root / name) for name in below)}"
    else:
        fix = "rename the folders, images and masks of one stem each"
    inside = sorted(child.name for child in root.iterdir())
    raise DataError(f"{root} with {_few(inside) or 'nothing'} inside", known, fix)


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _files(folder):
        if path.stem in found:
            raise _double(found[path.stem], path)
        found[path.stem] = path
    return found


def _files(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]


def _double(one: Path, other: Path) -> DataError:
    return DataError(
        f"{one.name} and {other.name} in {one.parent}", "one file per stem", "move one of them away"
    )


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


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


def _check_size(path: Path, values: int, width: int, height: int) -> None:
    if values * 4 > MAX_BYTES:
        raise DataError(
            f"{path} of {width} x {height} pixels", "at most 1 GiB in memory", "cut it into tiles"
        )


def _read_pillow(path: Path, *, palette: bool = True) -> npt.NDArray[Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # own limit below
            with Image.open(path, formats=_PIL_FORMATS) as opened:
                picture: Image.Image = opened
                width, height = picture.size
                _check_size(path, width * height * len(picture.getbands()), width, height)
                if palette and "transparency" in picture.info and picture.mode in ("L", "P", "RGB"):
                    picture = picture.convert("LA" if picture.mode == "L" else "RGBA")
                elif palette and picture.mode == "P":
                    picture = picture.convert("RGB")
                elif picture.mode == "1":
                    picture = picture.convert("L")
                elif picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
                    picture = picture.convert("RGB")
                return np.array(picture)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"a damaged file {path} ({error})", "a whole PNG or JPEG", "copy or export it again"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: {error}", "at most 1 GiB in memory", "cut it into tiles"
        ) from error


def _read_tiff(path: Path, *, scale: bool = True, classes: int = 0) -> Sample:
    """Read a GeoTIFF. A nodata value below `classes` is a class: burned masks name 0 nodata."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a plain TIFF is welcome too
            # the driver is named: otherwise GDAL follows VRT and WMS texts to other files and hosts
            with rasterio.Env(**_ALONE), rasterio.open(path.resolve(), driver="GTiff") as raster:
                _check_size(path, raster.count * raster.width * raster.height, *raster.shape[::-1])
                bands = raster.read()
                valid = (raster.read_masks() > 0).all(axis=0)
                if raster.nodata is not None and 0 <= raster.nodata < classes:
                    valid[:] = True
                crs, transform = raster.crs, raster.transform
                alpha = [c.name for c in raster.colorinterp]
    except (RasterioError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"a TIFF that cannot be read: {path} ({error})", "a whole GeoTIFF", "export it again"
        ) from error
    if "alpha" in alpha and bands.shape[0] > 1:
        bands = bands[[index for index, name in enumerate(alpha) if name != "alpha"]]
    sample = _sample(path, bands, valid, scale=scale)
    sample["crs"], sample["transform"] = crs, transform
    return sample


def _sample(
    path: Path, bands: npt.NDArray[Any], valid: npt.NDArray[np.bool_], *, scale: bool = True
) -> Sample:
    if bands.dtype == bool or bands.dtype.kind not in "uif":
        raise DataError(
            f"pixels of type {bands.dtype} in {path}", "integers or real numbers", "convert it"
        )
    image = torch.from_numpy(bands.astype(np.float32))
    if scale and bands.dtype == np.uint8:
        image /= 255
    finite = torch.isfinite(image).all(dim=0)
    usable = torch.from_numpy(np.ascontiguousarray(valid)) & finite
    return Sample(image=torch.where(usable, image, 0.0), valid=usable, id=printable(path.stem))


def digest_of(data: SampleSource, position: int) -> str:
    """SHA-256 of a tile's files, or of its pixels where the data set is not a folder."""
    digest = hashlib.sha256()
    if isinstance(data, FolderDataset):
        for path in data.pairs[position]:
            if not path.is_file():  # a pipe would be waited for
                raise DataError(f"no file {path}", "a PNG, JPEG or TIFF file", "check the path")
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    else:
        sample = data[position]
        for tensor in (sample["image"], sample["mask"]):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
