"""Takes pictures as users have them: paths, folders, globs, arrays, tensors, sample dicts."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from segproof.data.file_names import SUFFIXES, is_picture, pictures_of
from segproof.data.rasters import Raster, Reading, Sample, raster_of_pillow, read_image, sample_of
from segproof.errors import DataError

__all__ = ["as_sample", "as_samples", "expand_pictures"]

MOST_BANDS: Final = 16  # an axis of more is no axis of bands, unless the network says so
SMALLER: Final = 2  # how many times smaller than the sides an axis of bands plainly is


def expand_pictures(arguments: Sequence[str | Path]) -> list[Path]:
    """Paths, folders (their pictures, sorted) and globs (also **) as a list of files, each once.

    Raises:
        DataError: an argument that matches nothing, a folder without pictures.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            here = pictures_of(path)
            if not here:
                raise DataError(
                    f"no pictures in {path}",
                    f"files {', '.join(SUFFIXES)}",
                    "check the folder, or write a glob such as FOLDER/**/*.png",
                )
        elif path.exists() or not glob.has_magic(str(argument)):
            here = [path]  # a file may have [ in its name; what is missing is named on reading
            if not path.exists():
                raise DataError(
                    f"no file {path}", "a picture, a folder or a glob", "check the path"
                )
        else:
            matches = sorted(Path(name) for name in glob.glob(str(argument), recursive=True))  # noqa: PTH207 - absolute globs too
            here = [match for match in matches if match.is_file() and is_picture(match)]
            if not here:
                raise DataError(
                    f"no picture that {argument} matches",
                    f"files {', '.join(SUFFIXES)}",
                    "check the glob: * stops at /, ** does not",
                )
        found.update(dict.fromkeys(here))
    if not found:
        raise DataError("no pictures", "at least one path", "name a picture, a folder or a glob")
    return list(found)


def as_sample(picture: Any, *, reading: Reading = Reading()) -> Sample:
    """One picture in hand as a sample with `image` [B, H, W] float32.

    A path, a PIL picture, a numpy array (H x W, H x W x B or B x H x W), a float tensor [B, H, W]
    or [1, B, H, W], or a dict of TorchGeo or of `read_image`. uint8 arrays and PIL pictures are
    8-bit pictures and scaled to [0, 1]; other types and tensors keep their units.

    Raises:
        DataError: several pictures, axes that can be read in two ways, integer tensors.
    """
    samples = as_samples(picture, reading=reading)
    if len(samples) != 1:
        raise DataError(f"{len(samples)} pictures", "one", "give them one by one")
    return samples[0]


def as_samples(picture: Any, *, reading: Reading = Reading()) -> list[Sample]:
    """`as_sample` of each picture of a batch [N, B, H, W], or of the one picture given.

    Raises:
        DataError: as `as_sample`.
    """
    if isinstance(picture, str | Path):
        return [read_image(picture, reading=reading)]
    if isinstance(picture, Image.Image):
        return [sample_of(raster_of_pillow(picture, "picture"), reading)]
    if isinstance(picture, np.ndarray):
        return [sample_of(raster, reading) for raster in _of_array(picture, reading)]
    if isinstance(picture, Tensor):
        return [_of_tensor(image, reading) for image in _unbatched(picture)]
    if isinstance(picture, Mapping):
        return _of_dict(picture, reading)
    raise DataError(
        f"a picture of type {type(picture).__name__}",
        "a path, PIL picture, numpy array, tensor or sample dict",
        "convert it",
    )


def _raster(values: npt.NDArray[Any], names: Sequence[str] = ()) -> Raster:
    """An array [B, H, W] as if a file held it."""
    count = len(values)
    names = names or tuple(f"band {number}" for number in range(1, count + 1))
    return Raster(
        Path("array"),
        values,
        None,
        tuple(names),
        (),
        (None,) * count,
        ((1.0, 0.0),) * count,
        "array",
    )


def _of_array(array: npt.NDArray[Any], reading: Reading) -> list[Raster]:
    if array.dtype == bool or array.dtype.kind not in "uif":
        raise DataError(
            f"an array of {array.dtype}", "integers or real numbers", "convert it to float32"
        )
    if array.size == 0:
        raise DataError(f"an empty array {array.shape}", "H x W x B", "check what was read")
    if array.ndim == 2:
        return [_raster(array[None])]
    if array.ndim == 4:
        axis = _band_axis(array.shape[1:], reading)
        return [_raster(np.moveaxis(one, axis, 0)) for one in array]
    if array.ndim != 3:
        raise DataError(
            f"an array of shape {array.shape}", "H x W, H x W x B or B x H x W", "reshape it"
        )
    return [_raster(np.moveaxis(array, _band_axis(array.shape, reading), 0))]


def _band_axis(shape: Sequence[int], reading: Reading) -> int:
    """0 or 2: by the bands that the network takes, else the axis that is plainly the bands.

    Raises:
        DataError: both axes can be it, or neither.
    """
    needed = max(reading.bands or (1,))
    if reading.wanted is not None:
        # more bands than are wanted may be chosen from, one more may be transparency
        sizes: set[int] = {reading.wanted} if reading.bands is None else set()
        fits = [axis for axis in (0, 2) if shape[axis] in sizes]
        if not fits:
            fits = [axis for axis in (0, 2) if _plain(shape, axis) and shape[axis] >= needed]
    else:
        fits = [axis for axis in (0, 2) if _plain(shape, axis) and shape[axis] >= needed]
    if len(fits) == 1:
        return fits[0]
    first, _, last = shape
    raise DataError(
        f"an array of shape {tuple(shape)}, whose bands can be the first axis ({first} bands of"
        f" {shape[1]} x {last} px) or the last one ({last} bands of {first} x {shape[1]} px)",
        "an axis that is plainly the bands"
        + ("" if reading.wanted is None else f", {reading.wanted} as the network was trained"),
        "give a tensor [B, H, W], or move the axis with numpy.moveaxis(picture, -1, 0)",
    )


def _plain(shape: Sequence[int], axis: int) -> bool:
    """At most 16, and at least two times smaller than both other axes."""
    others = [size for place, size in enumerate(shape) if place != axis]
    return shape[axis] <= MOST_BANDS and shape[axis] * SMALLER <= min(others)


def _unbatched(images: Tensor) -> list[Tensor]:
    if images.ndim == 2:
        return [images[None]]
    if images.ndim == 3:
        return [images]
    if images.ndim == 4:
        return list(images)
    raise DataError(
        f"a tensor of shape {tuple(images.shape)}", "[B, H, W] or [N, B, H, W]", "reshape it"
    )


def _of_tensor(image: Tensor, reading: Reading, told: Mapping[str, Any] | None = None) -> Sample:
    """A float tensor [B, H, W] keeps its units; an integer one could have any."""
    if not image.dtype.is_floating_point and reading.divide_by is None:
        top = int(image.max()) if image.numel() and image.dtype != torch.bool else 1
        factor = 255 if top <= 255 else 65_535 if top > 32_767 else 10_000
        likely = "8-bit pictures" if factor == 255 else "pictures of 16 bits"
        raise DataError(
            f"a tensor of {str(image.dtype).removeprefix('torch.')}, values up to {top}",
            "floats in the units that the network was trained on",
            f"divide by {factor} if the network was trained on {likely} scaled to [0, 1]:"
            f" image.float() / {factor}",
        )
    if image.numel() == 0:
        raise DataError(f"an empty tensor {tuple(image.shape)}", "[B, H, W]", "check what was read")
    values = image.detach().to("cpu", torch.float32).numpy()
    sample = sample_of(_raster(values), reading)
    sample["id"] = "picture"
    return _with(sample, told or {})


def _with(sample: Sample, told: Mapping[str, Any]) -> Sample:
    """Mask, valid pixels, name and place of the dict that the picture came in.

    Raises:
        DataError: a mask of another size.
    """
    size = tuple(sample["image"].shape[1:])
    for key in ("mask", "valid"):
        given = told.get(key)
        if given is None:
            continue
        plane = torch.as_tensor(given).detach().cpu()
        plane = plane[0] if plane.ndim == 3 and len(plane) == 1 else plane
        if tuple(plane.shape) != size:
            raise DataError(
                f"a {key} of shape {tuple(plane.shape)}", f"{size}, as its image", "resample it"
            )
        if key == "mask":
            sample["mask"] = plane.to(torch.int64)
        else:
            sample["valid"] = sample["valid"] & plane.bool()
    if isinstance(told.get("id"), str):
        sample["id"] = told["id"]
    for key in ("crs", "transform"):
        if key in told:
            sample[key] = told[key]  # type: ignore[literal-required]  # both are keys of Sample
    return sample


def _of_dict(told: Mapping[str, Any], reading: Reading) -> list[Sample]:
    if "image" not in told:
        raise DataError(
            f"a dict with {', '.join(map(str, list(told)[:6])) or 'nothing'}",
            "the key image, as in TorchGeo's samples",
            "put the picture under image",
        )
    image = told["image"]
    if not isinstance(image, Tensor):
        return [_with(sample, told) for sample in as_samples(image, reading=reading)]
    images = _unbatched(image)
    if len(images) == 1:
        return [_of_tensor(images[0], reading, told)]
    parts = []
    for number, one in enumerate(images):
        own = {
            key: told[key][number]
            for key in ("mask", "valid", "id", "crs", "transform")
            if isinstance(told.get(key), Tensor | list) and len(told[key]) == len(images)
        }
        parts.append(_of_tensor(one, reading, own))
    return parts
