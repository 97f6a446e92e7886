"""Lists the tiles of a folder with their masks, and reads the samples of a study."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from torch import Tensor

from segproof.data.layouts import Matching, find_pairs
from segproof.data.masks import MaskFile, MaskValues, mask_of, meanings, open_mask
from segproof.data.rasters import Raster, Reading, Sample, read_image, read_raster, sample_of
from segproof.errors import DataError, printable

__all__ = ["FolderDataset", "SampleSource", "Surveyed", "digest_of", "survey"]

SHIFT: Final = 0.5  # px that a mask may lie beside its image


class SampleSource(Protocol):
    """What a study reads from: a length, stable names and samples by position."""

    @property
    def ids(self) -> Sequence[str]:
        """Names used in tables and files, one per sample."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class FolderDataset:
    """A folder of images with masks. Pairs are found by the names of folders and files (`rule`
    says how, `layout` is the short name), or by the globs `images` and `masks` below `root`.

    `values` maps mask values to classes, `reading` says how pictures are read; `names` of the
    classes stand in messages. Pairs are sorted by path. No sample is read before it is asked for.

    Raises:
        DataError: images without a mask (named), several pairings that fit, no image at all.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes: int = 2,
        ignore_index: int | None = None,
        images: str | None = None,
        masks: str | None = None,
        values: MaskValues | None = None,
        reading: Reading = Reading(),
        names: Sequence[str] | None = None,
    ) -> None:
        self.root = Path(root)
        self.classes, self.ignore_index = classes, ignore_index
        self.values, self.reading, self.names = values, reading, names
        self._globs = images, masks
        made = find_pairs(self.root, images, masks)
        self.layout, self.rule = made.layout, made.rule
        self.images, self.masks = made.images, made.masks
        _refuse_doubles(made.table)
        for found in made.table.values():
            if len(found) > 1:
                raise _double(*found[:2])
        missing = sorted(path.stem for path, found in made.table.items() if not found)
        if missing:
            where = sorted({str(mask.parent) for _, mask in made.pairs}) or [made.masks]
            where += sorted({str(mask.parent) for mask in made.unused_masks} - set(where))
            raise DataError(
                f"{len(missing)} of {len(made.table)} images without a mask: {_few(missing)}",
                f"a file of the same stem in {where[0]}",
                "add these masks, move these images away, or choose files (--images, --masks)",
            )
        self.pairs = made.pairs
        self.unused_masks = sorted(path.stem for path in made.unused_masks)
        self.unused_images = sorted(path.stem for path in made.unused_images)
        self._ids = _ids_of(self.root, [image for image, _ in self.pairs])
        if len({image.stem for image, _ in self.pairs}) == len(self.pairs):
            self.pairs.sort(key=lambda pair: pair[0].stem)
            self._ids = [printable(image.stem) for image, _ in self.pairs]

    @property
    def ids(self) -> list[str]:
        """File stems, sorted: the names used in every table. Where folders repeat a stem, the path
        below the root with _ in place of /.
        """
        return list(self._ids)

    def record(self) -> dict[str, Any]:
        """How images, masks and pairs are read, in a form that JSON can hold."""
        return {
            "rule": self.rule,
            "images": self.images,
            "masks": self.masks,
            "chosen": any(glob is not None for glob in self._globs),
            "mask_values": None if self.values is None else str(self.values),
            "ignore_index": self.ignore_index,
            "reading": self.reading.record(),
        }

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        image, mask = self.pairs[index]
        how = _Masks(self.classes, self.ignore_index, self.values, self.names)
        sample = read_image(image, reading=self.reading)
        opened = open_mask(mask)
        sample = _joined(sample, mask, opened, *how.read(opened))
        sample["id"] = self._ids[index]
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def _ids_of(root: Path, images: Sequence[Path]) -> list[str]:
    """Unique names; refused where two files would bear one name in tables."""
    several = len({image.stem for image in images}) < len(images)
    names = []
    for image in images:
        inside = image.relative_to(root).with_suffix("")
        names.append(printable("_".join(inside.parts) if several else image.stem))
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        equal = [str(i) for i, name in zip(images, names, strict=True) if name == doubled[0]]
        raise DataError(
            f"{' and '.join(equal[:2])}, both named {doubled[0]} in tables",
            "file names that stay different where control characters are spelled out",
            "rename one of them",
        )
    return names


def _refuse_doubles(table: dict[Path, list[Path]]) -> None:
    seen: dict[Path, Path] = {}
    for path in table:
        before = seen.setdefault(path.with_suffix(""), path)
        if before is not path:
            raise _double(before, path)


class Surveyed(NamedTuple):
    """An image of a folder, read with its mask. `reason`: why it cannot be studied ("" = it can),
    `error`: the same in three facts; `sample`, `picture` and `mask`: what was read; `meanings`: the
    class and the pixels of each value of the mask.
    """

    path: Path
    reason: str
    sample: Sample | None
    picture: Raster | None
    mask: MaskFile | None
    error: Exception | None
    meanings: dict[str, tuple[int, int]] | None = None


def survey(
    root: str | Path, *, classes: int = 2, ignore_index: int | None = None, **how: Any
) -> Iterator[tuple[Path, str, Sample | None]]:
    """Every image of a folder of tiles, read with its mask: path, why it cannot be studied, sample.

    The reason is "" where the pair is good, the sample None where it is not. Masks without an image
    are left out: they are not used. `how`: as FolderDataset.

    Raises:
        DataError: images and masks that cannot be told apart or paired, or no image at all.
    """
    for found in surveyed(root, classes=classes, ignore_index=ignore_index, **how):
        yield found.path, found.reason, found.sample


def surveyed(
    root: str | Path,
    *,
    classes: int = 2,
    ignore_index: int | None = None,
    images: str | None = None,
    masks: str | None = None,
    values: MaskValues | None = None,
    reading: Reading = Reading(),
    names: Sequence[str] | None = None,
    made: Matching | None = None,
) -> Iterator[Surveyed]:
    """`survey`, with what the mask file holds. `made`: pairs that are found already."""
    made = find_pairs(Path(root), images, masks) if made is None else made
    how = _Masks(classes, ignore_index, values, names)
    seen: dict[Path, Path] = {}
    for path, found in made.table.items():
        picture: Raster | None = None
        opened: MaskFile | None = None
        try:
            before = seen.get(path.with_suffix(""))
            mask = _only_mask(path, before, found, made)
            picture = read_raster(path)
            sample = sample_of(picture, reading)
            opened = open_mask(mask)
            truth, counts = how.read(opened)
            table = meanings(opened, truth, counts)
            sample = _joined(sample, mask, opened, truth, counts)
            result = Surveyed(path, "", sample, picture, opened, None, table)
        except (DataError, OSError, MemoryError) as error:
            reason = printable(str(error)) or type(error).__name__
            result = Surveyed(path, reason, None, picture, opened, error)
        yield result
        seen[path.with_suffix("")] = path


def _only_mask(path: Path, before: Path | None, found: list[Path], made: Matching) -> Path:
    if before is not None:
        raise _double(before, path)
    if not found:
        raise DataError(
            f"no mask for {path}", f"one of {made.masks} that pairs with {path.stem}", "add it"
        )
    if len(found) > 1:
        raise _double(*found[:2])
    return found[0]


class _Masks(NamedTuple):
    """How masks are read."""

    classes: int
    ignore_index: int | None
    values: MaskValues | None
    names: Sequence[str] | None

    def read(self, opened: MaskFile) -> tuple[Tensor, Tensor]:
        return mask_of(
            opened,
            self.classes,
            ignore_index=self.ignore_index,
            values=self.values,
            names=self.names,
        )


def _joined(sample: Sample, mask: Path, opened: MaskFile, truth: Tensor, counts: Tensor) -> Sample:
    """An image with its mask, which has its size and, where both say so, its place on earth."""
    height, width = sample["image"].shape[1:]
    if truth.shape != (height, width):
        raise DataError(
            f"mask {mask} of {truth.shape[0]} x {truth.shape[1]} pixels",
            f"{height} x {width}, the size of its image",
            "resample the mask (nearest neighbour) to the image",
        )
    _check_place(sample, opened.place, mask, (height, width))
    sample["mask"] = truth
    sample["valid"] = sample["valid"] & counts
    return sample


def _check_place(
    sample: Sample, truth: Mapping[str, Any], mask: Path, size: tuple[int, int]
) -> None:
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


def _double(one: Path, other: Path) -> DataError:
    return DataError(
        f"{one.name} and {other.name} in {one.parent}", "one file per stem", "move one of them away"
    )


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


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
