"""What the coordinator spends: writing a tile, and exporting; bytes on disk and in memory.

python benchmarks/store.py
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from segproof.study.results import Results
from segproof.study.store import COLUMNS, Row, RunStore, TileResult

TILES, ROWS = 60, 2500


def main() -> None:
    """Measure and print."""
    draw = np.random.default_rng(0)

    def row(sample: str) -> Row:
        values = {"TEXT": "highlighted_and_target", "INTEGER": 0}
        cells: dict[str, Any] = {
            name: values.get(kind, float(draw.random())) for name, kind in COLUMNS.items()
        }
        return Row(**(cells | {"sample": sample}))

    spent: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with RunStore(folder, {}) as store:
            for number in range(TILES):
                sample = f"{number:05}"
                rows = [row(sample) for _ in range(ROWS)]
                started = time.perf_counter()
                store.write(TileResult(sample, number, "ok", rows=rows))
                spent.append(time.perf_counter() - started)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
        started = time.perf_counter()
        Results.load(folder).export({"preset": "strict"})
        export = (time.perf_counter() - started) / TILES
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"write: {1000 * statistics.median(spent):.0f} ms a tile of {ROWS} rows (median)")
        read = Results.load(folder).rows
        each = float(read.memory_usage(deep=True).sum()) / len(read) / 1024
        print(f"export: {1000 * export:.0f} ms a tile, {peak / 1024:.0f} MiB of memory")
        print(f"all rows in memory: {each:.2f} KiB a row")
        for file in ("run.db", "results.csv", "results.parquet"):
            print(f"{file}: {(folder / file).stat().st_size / TILES / 1024:.0f} KiB a tile")


if __name__ == "__main__":
    main()
