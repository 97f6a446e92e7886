"""Chooses how perturbed pictures are run: number format, memory layout, allocator."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from segproof.choices import PRECISIONS, Precision

__all__ = ["EXACT", "PRECISIONS", "Kernels", "Precision", "keep_blocks"]

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # of mallopt, malloc.h
_KEPT: Final = 2_000_000_000  # bytes


@dataclass(frozen=True)
class Kernels:
    """Number format and memory layout of the forwards of perturbed pictures.

    `float32` is what the network does by itself, up to the rounding of another layout; `bfloat16`
    and `float16` are torch's autocast: convolutions and products in that format, sums of softmax
    and the like in float32.
    """

    precision: Precision = "float32"
    channels_last: bool = False

    @property
    def name(self) -> str:
        """The choice in words."""
        return self.precision + (", channels last" if self.channels_last else "")

    def run(self, network: Callable[[Tensor], Any], images: Tensor) -> Any:
        """What the network returns for images [N, B, H, W] under these kernels."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.precision == "float32":
            return network(images)
        with torch.autocast(images.device.type, getattr(torch, self.precision)):
            return network(images)


EXACT: Final = Kernels()


def keep_blocks() -> bool:
    """Let the allocator of this process keep freed blocks instead of handing them back at once.

    Fresh pages cost a batched forward on the CPU up to half of its time. True where it took effect
    (glibc); elsewhere nothing changes, and no result ever depends on it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all([library.mallopt(_MMAP_MAX, 0), library.mallopt(_TRIM_THRESHOLD, _KEPT)])
