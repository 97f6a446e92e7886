"""Reads what a study leaves behind, and exports it: results.parquet, csv and manifest.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from segproof.analysis import KEYS, Analysis, heatmap_scores
from segproof.choices import Preset
from segproof.errors import StudyError, UnknownNameError
from segproof.study.files import write_atomic
from segproof.study.store import COLUMNS, SCORES, Row, RunReader, read_manifest, reading
from segproof.study.thumbnails import unpack_picture

__all__ = ["Results", "table_of"]

_PANDAS: Final = {"TEXT": "str", "REAL": "float64", "INTEGER": "int64"}
_ARROW: Final = {"TEXT": pa.string(), "REAL": pa.float64(), "INTEGER": pa.int64()}
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Results:
    """The results of a run: rows, tiles, manifest, and the tables of the three tasks."""

    folder: Path
    manifest: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        if not self.manifest:
            return f"Results({str(self.folder)!r}: the run has not ended)"
        counts = ", ".join(
            f"{self.manifest['tiles'][name]} {name}" for name in ("ok", "skipped", "failed")
        )
        return (
            f"Results({str(self.folder)!r}: {self.manifest['data']['n']} tiles, {counts})\n"
            f"  preset {self.preset}, fills {', '.join(self.manifest['fills'])}"
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open the results of a run, finished or not.

        Raises:
            StudyError: no run in that folder.
        """
        folder = Path(folder)
        return cls(folder, read_manifest(folder))

    def finished(self) -> Self:
        """These results, if their run came to an end (complete, or stopped by hand).

        Raises:
            StudyError: the run was cut off or is still going on.
        """
        if not self.manifest:
            raise StudyError(
                f"no manifest.json in {self.folder}",
                "a run that ended",
                "repeat the study with the same settings: it resumes where it was cut off",
            )
        return self

    @property
    def preset(self) -> Preset:
        """The protocol that made these results: strict or paper."""
        return "paper" if self.manifest["preset"] == "paper" else "strict"

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per sample, method, layer, binarisation, level, strategy, reference and fill."""
        with reading(self._db) as db:
            parts = list(_chunks(db))
        if not parts:
            return _typed(pd.DataFrame({name: [] for name in COLUMNS}))
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def analysis(self) -> Analysis:
        """Every table of this run, and its verdict."""
        return Analysis(self.rows, self.preset)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Measures of whole heatmaps: one row per sample, method, layer and measure, with `value`
        or the `reason` why it has none. Empty where the study asked for none.
        """
        with reading(self._db) as db:
            frame = pd.DataFrame(db.score_lines(), columns=list(SCORES))
        return frame.astype({name: _PANDAS[kind] for name, kind in SCORES.items()})

    @cached_property
    def tiles(self) -> pd.DataFrame:
        """One row per tile: sample, status (ok, skipped, failed), reason, forwards spent and asked
        for, seconds.
        """
        names = ["sample", "status", "reason", "forwards", "asked", "seconds"]
        with reading(self._db) as db:
            return pd.DataFrame(db.tile_lines(), columns=names)

    def pictures(self, most: int = 4) -> list[dict[str, Any]]:
        """Image, truth, prediction and heatmaps of the first tiles, for figures."""
        with reading(self._db) as db:
            return [unpack_picture(name, data) for name, data in db.pictures(most)]

    def mean(self, column: str) -> pd.DataFrame:
        """Mean and n over tiles of any number column, per method, layer, level, strategy, fill.

        Raises:
            UnknownNameError: no such column; near matches are named.
        """
        numbers = [name for name, kind in COLUMNS.items() if kind == "REAL" and name != "level"]
        if column not in numbers:
            raise UnknownNameError.of("column", column, numbers)
        ok = self.rows[self.rows["status"] == "ok"]
        grouped = ok.groupby(KEYS, sort=False, dropna=False)
        summary = grouped[column].agg(["mean", "count"])
        return summary.rename(columns={"count": "n"}).reset_index()

    def sweep(self) -> pd.DataFrame:
        """Task 1: every measure along thresholds and areas; see `analysis.tables.sweep`."""
        return self.analysis.sweep

    def best(self) -> pd.DataFrame:
        """Task 1: the best method at each level; see `analysis.tables.best`."""
        return self.analysis.best

    def faithfulness(self) -> pd.DataFrame:
        """Task 2: methods ranked by the drop in IoU; see `analysis.tables.faithfulness`."""
        return self.analysis.faithfulness

    def layers(self) -> pd.DataFrame:
        """Task 3: paired differences between layers; see `analysis.tables.layers`."""
        return self.analysis.layers

    def judged(self) -> pd.DataFrame:
        """Measures of whole heatmaps, averaged over tiles; see `heatmap_scores`."""
        return heatmap_scores(self.scores)

    def validity(self) -> pd.DataFrame:
        """Which fills this network is not fooled by; see `Analysis.validity`."""
        return Analysis(self.rows).validity  # needs no manifest

    def export(self, manifest: Mapping[str, Any]) -> None:
        """Write results.parquet, results.csv (scores.csv too, where there are any) and
        manifest.json, each replaced as a whole.
        """
        schema = pa.schema([(name, _ARROW[kind]) for name, kind in COLUMNS.items()])

        def parquet(stream: BinaryIO) -> None:
            with pq.ParquetWriter(stream, schema) as writer, reading(self._db) as db:
                for part in _chunks(db):
                    writer.write_table(pa.Table.from_pandas(part, schema, preserve_index=False))

        def table(stream: BinaryIO) -> None:
            for part in self.csv_parts():
                stream.write(part)

        def scores(stream: BinaryIO) -> None:
            stream.write(_csv([SCORES]))
            stream.write(_csv(_cells(row) for row in self.scores.itertuples(index=False)))

        write_atomic(self.folder / "results.parquet", parquet)
        write_atomic(self.folder / "results.csv", table)
        if len(self.scores):
            write_atomic(self.folder / "scores.csv", scores)
        text = json.dumps(manifest, indent=2, ensure_ascii=False, default=str) + "\n"
        write_atomic(
            self.folder / "manifest.json",
            lambda stream: _put(stream, text.encode(errors="backslashreplace")),
        )

    def csv_parts(self) -> Iterator[bytes]:
        """results.csv, a chunk of rows at a time."""
        with reading(self._db) as db:
            yield _csv([COLUMNS])
            for block in db.blocks():
                yield _csv(_cells(row) for row in block)

    @property
    def _db(self) -> Path:
        return self.folder / "run.db"


def table_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a table, as `Results.rows` has them."""
    return _typed(pd.DataFrame([row.values() for row in rows], columns=list(COLUMNS)))


def _csv(lines: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()


def _put(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


def _chunks(db: RunReader) -> Iterator[pd.DataFrame]:
    for block in db.blocks():
        yield _typed(pd.DataFrame(block, columns=list(COLUMNS)))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype({name: _PANDAS[kind] for name, kind in COLUMNS.items()})


def _cells(row: Iterable[object]) -> Iterator[object]:
    """Cells for spreadsheets: texts that look like formulas are quoted, NaN is empty."""
    for value in row:
        if isinstance(value, str):
            yield f"'{value}" if value.startswith(_FORMULA) else value
        else:
            yield "" if value is None or value != value else repr(value)
