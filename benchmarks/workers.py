"""How the same threads are best shared: one process with all of them, or several with fewer each.

    python benchmarks/workers.py --model smp:DIR --data TILES --class building --tiles 4

Prints tiles per minute for each split, in turns, median of `--rounds`, and the greatest difference
of the rows: another number of threads changes the last bits. The time to start workers is part of
it. Take figures on a quiet machine only.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from segproof import Study
from segproof.models.precision import keep_blocks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    for name in ("--model", "--data", "--class"):
        parser.add_argument(name, required=True)
    parser.add_argument("--tiles", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = vars(parser.parse_args())
    tiles, rounds, threads = (given.pop(name) for name in ("tiles", "rounds", "threads"))
    keep_blocks()
    torch.set_num_threads(threads)
    study = Study.of(
        **given, limit=tiles, methods=("grad_cam", "eigen_cam"), thresholds=(0.3,), areas=(0.1,),
        fills=("background_texture",), controls=("random",),
    )  # fmt: skip
    splits = [count for count in (1, 2, 4) if threads % count == 0]
    rates: dict[int, list[float]] = {count: [] for count in splits}
    tables: list[pd.DataFrame] = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            for workers in splits:
                started = time.perf_counter()
                made = study.run(
                    Path(folder) / f"{workers}-{turn}", workers=workers, threads=threads // workers
                )
                rates[workers].append(60 * tiles / (time.perf_counter() - started))
                tables.append(made.rows.select_dtypes("number"))
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {tiles} tiles")
    for workers, found in rates.items():
        spread = f"{min(found):.1f} to {max(found):.1f}"
        each = threads // workers
        print(f"{workers} x {each} threads: {statistics.median(found):.1f} tiles/min ({spread})")
    off = max(float((table - tables[0]).abs().max().max()) for table in tables)
    print(f"greatest difference between two exports: {off:.1e}")


if __name__ == "__main__":
    main()
