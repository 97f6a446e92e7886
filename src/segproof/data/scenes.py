"""Makes aerial scenes at 0.3 m per pixel, pictures with exact roof masks, from a seed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from segproof.data.rasters import Sample
from segproof.data.scene_canvas import RESOLUTION
from segproof.data.scene_painter import paint
from segproof.errors import DataError

__all__ = ["RESOLUTION", "SceneDataset", "scene", "write_scenes"]


def scene(seed: int, size: int = 256, *, empty: float = 1 / 12) -> Sample:
    """One generated aerial picture with the mask of its visible roofs.

    `seed` >= 0 decides everything; `size` is the side in pixels (0.3 m each, at least 32);
    `empty` is the share of scenes that hold no building. Roof under a tree crown counts as tree.
    Returns image float32 [3, size, size] in [0, 1] (whole 8-bit levels), mask int64 0/1
    [size, size] and id. Raises DataError for a seed, size or share out of range.
    """
    if seed < 0:
        raise DataError(f"scene seed {seed}", "a whole number >= 0", "choose another seed")
    if size < 32:
        raise DataError(f"scene size {size}", "at least 32 pixels", "ask for a larger scene")
    if not 0 <= empty <= 1:
        raise DataError(f"empty={empty}", "a share in [0, 1]", "give e.g. empty=0.1")
    image, share = paint(seed, size, empty)
    return Sample(
        image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)),
        mask=torch.from_numpy((share >= 0.5).astype(np.int64)),
        id=f"scene-{seed}",
    )


class SceneDataset(Dataset[Sample]):
    """`n` scenes; scene i has the seed `seed * 1_000_000 + i`: two seeds never share a scene."""

    def __init__(self, n: int, seed: int = 0, size: int = 256, *, empty: float = 1 / 12) -> None:
        if not 1 <= n <= 1_000_000:
            raise DataError(f"{n} scenes", "1 to 1000000", "ask for another number of scenes")
        if seed < 0:
            raise DataError(f"scene seed {seed}", "a whole number >= 0", "choose another seed")
        self.seed = seed
        self.seeds = range(seed * 1_000_000, seed * 1_000_000 + n)
        self.size, self.empty = size, empty
        self.ids = [f"scene-{one}" for one in self.seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> Sample:
        return scene(self.seeds[index], self.size, empty=self.empty)


def write_scenes(folder: str | Path, n: int, seed: int = 0, size: int = 256) -> list[Path]:
    """Write `n` scenes as `folder/image/ID.png` and `folder/label/ID.png` (0/255); image paths."""
    root = Path(folder)
    for part in ("image", "label"):
        (root / part).mkdir(parents=True, exist_ok=True)
    written = []
    dataset = SceneDataset(n, seed, size)
    for index, name in enumerate(dataset.ids):
        sample = dataset[index]
        pixels = (sample["image"] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        written.append(root / "image" / f"{name}.png")
        Image.fromarray(pixels).save(written[-1])
        label = (sample["mask"] * 255).to(torch.uint8).numpy()
        Image.fromarray(label).save(root / "label" / f"{name}.png")
    return written
