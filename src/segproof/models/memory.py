"""Halves the batch when memory runs out, again and again, and says where one is too much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import torch

from segproof.errors import ModelError

__all__ = ["OutOfMemoryError", "halving", "is_out_of_memory"]

T = TypeVar("T")
_SAID: Final = (
    "can't allocate memory",
    "DefaultCPUAllocator",
    "not enough memory",
    "bad_alloc",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",  # cuDNN's and cuBLAS's
)


class OutOfMemoryError(ModelError):
    """One picture at a time is too much for the memory of this machine."""


def halving(work: Callable[[int], T], batch: int) -> T:
    """`work(batch)`, with half the batch each time memory runs out.

    Raises:
        OutOfMemoryError: it ran out with a batch of 1.
    """
    while True:
        try:
            return work(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if batch == 1:
                said = (str(error).splitlines() or [type(error).__name__])[0][:200]
                raise OutOfMemoryError(
                    f"no memory for one picture ({said})",
                    "room for one forward and one partial backward",
                    "cut the tiles smaller, use fewer workers or another machine",
                ) from error
        # after the handler: its traceback kept the tensors that have to go
        batch //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what it was raised from, says that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID):
            return True
        error = error.__cause__
    return False
