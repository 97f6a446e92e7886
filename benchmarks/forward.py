"""Seconds of one forward by number format and memory layout, with and without freed blocks kept.

OMP_NUM_THREADS=1 python benchmarks/forward.py --model smp:DIR [--size 512] [--batch 4] [--compiled]

Pictures are random numbers; the best of five batches after one that warms up. `--compiled` adds
torch.compile of the network, frozen, which takes a compiler and about a minute.
"""

from __future__ import annotations

import argparse
import time

import torch

from segproof import load_model
from segproof.kernels import EXACT, Kernels, keep_blocks
from segproof.model import SegmentationModel
from segproof.pace import forward_seconds

TRIED = (
    EXACT,
    Kernels("float32", channels_last=True),
    Kernels("bfloat16"),
    Kernels("bfloat16", channels_last=True),
)


def show(model: SegmentationModel, pictures: torch.Tensor, what: str) -> None:
    """Measure each of TRIED and print it."""
    for kernels in TRIED:
        seconds = forward_seconds(model, kernels, pictures, repeats=5)
        print(f"{what}, {kernels.name}: {1000 * seconds:.0f} ms")


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--model", required=True)
    asked.add_argument("--size", type=int, default=512)
    asked.add_argument("--batch", type=int, default=4)
    asked.add_argument("--compiled", action="store_true")
    given = asked.parse_args()
    model = load_model(given.model)
    generator = torch.Generator().manual_seed(0)
    shape = (given.batch, model.input_bands, given.size, given.size)
    pictures = torch.rand(shape, generator=generator)
    print(f"{torch.get_num_threads()} threads, batches of {given.batch}, {given.size} px")
    show(model, pictures, "as it comes")
    kept = keep_blocks()
    show(model, pictures, "freed blocks kept" if kept else "blocks cannot be kept here")
    if given.compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True
        started = time.perf_counter()
        model.net = torch.compile(model.net)  # type: ignore[assignment]
        with torch.no_grad():
            model(pictures)
        print(f"compiled in {time.perf_counter() - started:.0f} s (the first format)")
        show(model, pictures, "compiled")


if __name__ == "__main__":
    main()
