"""Studies small tiles and reads what a run leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
from segproof import (
    Results,
    Study,
)
from segproof.study.store import COLUMNS, Row, TileResult

IDENTITY = {"seed": 0, "weights": "abc"}


def row(sample: str, confidence: float | None = 0.5) -> Row:
    numbers = {name: 0.25 for name, kind in COLUMNS.items() if kind == "REAL"}
    texts = {name: "" for name, kind in COLUMNS.items() if kind == "TEXT"}
    more: dict[str, Any] = {"sample": sample, "confidence": confidence, "status": "ok", "seed": 0}
    return Row(**(numbers | texts | more))


def tile(sample: str, position: int = 0, rows: int = 2) -> TileResult:
    return TileResult(sample, position, "ok", rows=[row(sample)] * rows, digest=f"d-{sample}")


def study_of(folder: Path, **more: Any) -> Study:
    return Study.of(data=str(folder), **(tiny.QUICK | more))


def run(folder: Path, out: Path, **how: Any) -> Results:
    return study_of(folder).run(out, allow_code=True, **how)


def exports(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("results.csv", "results.parquet")]
