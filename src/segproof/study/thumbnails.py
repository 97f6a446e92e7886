"""Packs a tile, its masks and its heatmaps into a few kB, from which reports draw figures."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segproof.errors import StudyError

__all__ = ["pack_picture", "unpack_picture"]

MOST_BYTES: Final = 1 << 28  # that the picture of a tile may unpack to


def pack_picture(
    image: npt.NDArray[np.float32],
    truth: npt.NDArray[np.bool_],
    prediction: npt.NDArray[np.bool_],
    heatmaps: Mapping[tuple[str, str], npt.NDArray[np.float32]],
) -> bytes:
    """Pack image [B, H, W], masks [H, W] and heatmaps in 8 bits, for figures only."""
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:
        image = (image - low) / max(high - low, 1e-12)
    arrays = {
        "image": np.round(image * 255).astype(np.uint8),
        "truth": truth,
        "prediction": prediction,
        "maps": np.stack([np.round(item * 255).astype(np.uint8) for item in heatmaps.values()])
        if heatmaps
        else np.zeros((0, *truth.shape), dtype=np.uint8),
        "names": np.array([list(key) for key in heatmaps] or np.zeros((0, 2)), dtype=np.str_),
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def unpack_picture(sample: str, data: bytes) -> dict[str, Any]:
    """Unpack what `pack_picture` made, as figures and reports read it.

    Raises:
        StudyError: a picture that no study wrote.
    """
    with _checked(data), np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        maps = arrays["maps"].astype(np.float32) / 255
        names = [(str(method), str(layer)) for method, layer in arrays["names"]]
        return {
            "sample": sample,
            "image": arrays["image"].astype(np.float32) / 255,
            "truth": arrays["truth"],
            "prediction": arrays["prediction"],
            "heatmaps": dict(zip(names, maps, strict=True)),
        }


@contextmanager
def _checked(data: bytes) -> Iterator[None]:
    """A folder of results may come from anyone: what its pictures unpack to is looked at first."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            size = sum(entry.file_size for entry in packed.infolist())
        if size <= MOST_BYTES:
            yield
            return
        problem = f"a picture in run.db of {size} bytes unpacked"
    except (ValueError, LookupError, OSError, TypeError, zipfile.BadZipFile, EOFError) as error:
        problem = f"a picture in run.db that no study wrote ({error})"
    raise StudyError(problem, "small pictures of tiles", "run the study again")
