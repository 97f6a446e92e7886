"""A network of a few weights and tiles of 32 px, for studies of hundreds of tiles in seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from segproof.models.contract import SegmentationModel

SIDE = 32
POISON = 7  # the tile on whose pixels `poisoned` kills the process that shows them
SETTINGS: dict[str, Any] = {
    "model": "python:tiny:network",
    "class": "building",
    "methods": ("grad_cam",),
    "layers": ("decoder.blocks.0", "decoder.blocks.1"),
    "thresholds": (0.3,),
    "areas": (0.2,),
    "fills": ("black", "noise"),
    "controls": ("random",),
}
QUICK: dict[str, Any] = {
    **SETTINGS,
    "preset": "paper",
    "layers": ("decoder.blocks.0",),
    "areas": (),
    "fills": ("neutral",),
    "controls": (),
}


class Tiny(nn.Module):
    """Logits that follow the brightness, through two blocks."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.decoder = nn.Module()
        sizes = ((3, 4), (4, 4))
        blocks = [nn.Conv2d(inner, outer, 3, padding=1, bias=False) for inner, outer in sizes]
        with torch.no_grad():
            for block in blocks:
                weight = torch.rand(block.weight.shape, generator=draw)
                block.weight.copy_(weight / weight.sum(dim=(1, 2, 3), keepdim=True))
        self.decoder.blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> Tensor:
        features = nn.functional.avg_pool2d(images, 2)
        for block in self.decoder.blocks:  # type: ignore[union-attr]
            features = torch.relu(block(features))
        return 9 * features.mean(dim=1, keepdim=True) - 4


def network() -> SegmentationModel:
    """What `python:tiny:network` loads."""
    return SegmentationModel(Tiny(), classes=["building"], mean=[0.0] * 3, std=[1.0] * 3).eval()


class Deadly(Tiny):
    """Dies on one tile, in workers only."""

    def forward(self, images: Tensor) -> Tensor:
        if bool((images[:, :, 0, 0] == 1).all()) and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        result: Tensor = super().forward(images)
        return result


class Slow(Tiny):
    """Takes its time, in workers only."""

    def forward(self, images: Tensor) -> Tensor:
        if multiprocessing.parent_process() is not None:
            time.sleep(0.05)
        result: Tensor = super().forward(images)
        return result


def slow() -> SegmentationModel:
    """What `python:tiny:slow` loads."""
    return SegmentationModel(Slow(), classes=["building"], mean=[0.0] * 3, std=[1.0] * 3).eval()


def deadly() -> SegmentationModel:
    """What `python:tiny:deadly` loads."""
    return SegmentationModel(Deadly(), classes=["building"], mean=[0.0] * 3, std=[1.0] * 3).eval()


def write_tiles(folder: Path, count: int) -> Path:
    """Tiles with one bright roof each; every tenth has none."""
    for part in ("image", "label"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        draw = np.random.default_rng(number)
        image = draw.integers(0, 80, (SIDE, SIDE, 3), dtype=np.uint8)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        top, left = draw.integers(2, 14, 2)
        if number % 10 != 9:
            mask[top : top + 14, left : left + 14] = 255
        image[mask > 0] = draw.integers(170, 255, (int((mask > 0).sum()), 3), dtype=np.uint8)
        image[0, 0] = 255 if number == POISON else 0
        Image.fromarray(image).save(folder / "image" / f"t{number:03}.png")
        Image.fromarray(mask).save(folder / "label" / f"t{number:03}.png")
    return folder
