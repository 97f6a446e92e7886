"""What a study leaves behind: run.db while it runs, parquet, csv and manifest.json as exports."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from segproof import tables
from segproof.errors import StudyError, UnknownNameError
from segproof.target import Preset

__all__ = ["COLUMNS", "SCORES", "Results", "RunStore", "TileResult", "write_atomic"]

COLUMNS: Final[dict[str, str]] = {
    "sample": "TEXT",
    "method": "TEXT",
    "layer": "TEXT",
    "binarisation": "TEXT",
    "level": "REAL",
    "strategy": "TEXT",
    "reference": "TEXT",
    "fill": "TEXT",
    "area": "REAL",
    "coverage": "REAL",
    "confidence": "REAL",
    "entropy": "REAL",
    "kept": "REAL",
    "certainty": "REAL",
    "iou": "REAL",
    "iou_delta": "REAL",
    "status": "TEXT",
    "dice": "REAL",
    "iou_prediction": "REAL",
    "boundary_f": "REAL",
    "boundary_f_prediction": "REAL",
    "effective_channels": "REAL",
    "seed": "INTEGER",
    "preset": "TEXT",
}
# Measures of whole heatmaps, where a study asks for them: a number, or why there is none.
SCORES: Final[dict[str, str]] = {
    "sample": "TEXT",
    "method": "TEXT",
    "layer": "TEXT",
    "measure": "TEXT",
    "fill": "TEXT",
    "value": "REAL",
    "reason": "TEXT",
}
_PANDAS: Final = {"TEXT": "str", "REAL": "float64", "INTEGER": "int64"}
_ARROW: Final = {"TEXT": pa.string(), "REAL": pa.float64(), "INTEGER": pa.int64()}
_CHUNK: Final = 50_000  # rows per step of an export: memory does not grow with the study
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class TileResult:
    """All that one tile yields: its status with a reason, its rows and perhaps a picture for
    people.
    """

    sample: str
    position: int
    status: str
    reason: str = ""
    rows: Sequence[tuple[object, ...]] = ()
    scores: Sequence[tuple[object, ...]] = ()
    picture: bytes | None = None
    forwards: int = 0
    seconds: float = 0.0
    digest: str = ""


class RunStore:
    """The one writer of a run folder: SQLite (WAL, synchronous FULL), one transaction per tile.

    `identity` ties the folder to one study: opening it with another one names the first field that
    differs and changes nothing.

    Raises:
        StudyError: another study's folder, a foreign folder, or one that another process writes.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "run.db"
        if self.folder.exists() and not self.folder.is_dir():
            raise StudyError(f"a file at {self.folder}", "a folder", "choose another --out")
        if not self.path.exists() and self.folder.is_dir() and any(self.folder.iterdir()):
            raise StudyError(
                f"{self.folder} with other files in it",
                "a new or empty folder, or a run to go on with",
                "choose another --out",
            )
        if self.path.exists():
            with _reading(self.path) as stored:
                _check_identity(self.folder, stored, identity)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StudyError(
                f"{self.folder} in use by another process",
                "one writer",
                "wait, or choose another --out",
            ) from error
        self._db = sqlite3.connect(self.path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        columns, scored = (
            ", ".join(f'"{name}" {kind}' for name, kind in known.items())
            for known in (COLUMNS, SCORES)
        )
        with self._transaction():
            self._db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT)")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS tiles"
                " (sample TEXT PRIMARY KEY, position INTEGER, status TEXT, reason TEXT,"
                " forwards INTEGER, seconds REAL, digest TEXT, picture BLOB)"
            )
            self._db.execute(
                f"CREATE TABLE IF NOT EXISTS rows (place INTEGER, {columns},"
                " PRIMARY KEY (sample, place)) WITHOUT ROWID"
            )
            self._db.execute(
                f"CREATE TABLE IF NOT EXISTS scores (place INTEGER, {scored},"
                " PRIMARY KEY (sample, place)) WITHOUT ROWID"
            )
            self._db.execute(
                "INSERT OR IGNORE INTO meta VALUES ('identity', ?)", (json.dumps(identity),)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._lock.close()

    def done(self) -> dict[str, str]:
        """Finished tiles and the digest of what they were made from."""
        return dict(self._db.execute("SELECT sample, digest FROM tiles"))

    def get(self, key: str) -> Any:
        """A value stored with `put`, or None."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        """Store a JSON value under `key`."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def write(self, tile: TileResult) -> None:
        """Store one finished tile, rows and status together or not at all."""
        with self._transaction():
            for table, known, found in (
                ("rows", COLUMNS, tile.rows),
                ("scores", SCORES, tile.scores),
            ):
                marks = ", ".join("?" * (len(known) + 1))
                self._db.execute(
                    f"DELETE FROM {table} WHERE sample = ?",  # noqa: S608 - one of two names
                    (tile.sample,),
                )
                self._db.executemany(
                    f"INSERT INTO {table} VALUES ({marks})",  # noqa: S608 - as above
                    ((place, *row) for place, row in enumerate(found)),
                )
            self._db.execute(
                "INSERT OR REPLACE INTO tiles VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    tile.sample,
                    tile.position,
                    tile.status,
                    tile.reason,
                    tile.forwards,
                    tile.seconds,
                    tile.digest,
                    tile.picture,
                ),
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


@dataclass(frozen=True)
class Results:
    """A run folder, read: rows, tiles and manifest, and the three tasks made from the rows."""

    folder: Path
    manifest: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open the results of a run, finished or not.

        Raises:
            StudyError: no run in that folder.
        """
        folder = Path(folder)
        if not (folder / "run.db").is_file():
            raise StudyError(f"no run.db in {folder}", "a folder made by `study`", "check the path")
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return cls(folder, manifest)

    def finished(self) -> Self:
        """These results, if their run came to an end (complete, or stopped by hand).

        Raises:
            StudyError: the run was cut off or is still going on.
        """
        if not self.manifest:
            raise StudyError(
                f"no manifest.json in {self.folder}",
                "a run that ended",
                "repeat the study with the same settings: it goes on where it was cut off",
            )
        return self

    @property
    def preset(self) -> Preset:
        """The protocol that made these results: strict or paper."""
        return "paper" if self.manifest["preset"] == "paper" else "strict"

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per sample, method, layer, binarisation, level, strategy, reference and fill."""
        with _reading(self.folder / "run.db") as db:
            parts = list(_chunks(db))
        if not parts:
            return _typed(pd.DataFrame({name: [] for name in COLUMNS}))
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Measures of whole heatmaps: one row per sample, method, layer and measure, with `value`
        or the `reason` why it has none. Empty where the study asked for none.
        """
        names = ", ".join(f'scores."{name}"' for name in SCORES)
        query = (
            f"SELECT {names} FROM scores JOIN tiles USING (sample)"  # noqa: S608 - our own names
            " ORDER BY tiles.position, scores.sample, scores.place"
        )
        with _reading(self.folder / "run.db") as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'scores'").fetchone():
                found: list[Any] = []  # a run of an earlier version
            else:
                found = db.execute(query).fetchall()
        frame = pd.DataFrame(found, columns=list(SCORES))
        return frame.astype({name: _PANDAS[kind] for name, kind in SCORES.items()})

    @cached_property
    def tiles(self) -> pd.DataFrame:
        """One row per tile: sample, status (ok, skipped, failed), reason, forwards, seconds."""
        names = ["sample", "status", "reason", "forwards", "seconds"]
        with _reading(self.folder / "run.db") as db:
            query = f"SELECT {', '.join(names)} FROM tiles ORDER BY position, sample"  # noqa: S608
            return pd.DataFrame(db.execute(query).fetchall(), columns=names)

    def pictures(self, most: int = 4) -> list[dict[str, Any]]:
        """Image, truth, prediction and heatmaps of the first tiles, for figures."""
        query = (
            "SELECT sample, picture FROM tiles WHERE picture IS NOT NULL AND status = 'ok'"
            " ORDER BY position LIMIT ?"
        )
        with _reading(self.folder / "run.db") as db:
            return [unpack_picture(name, data) for name, data in db.execute(query, (most,))]

    def mean(self, column: str) -> pd.DataFrame:
        """Mean and n over tiles of any number column, per method, layer, level, strategy, fill.

        Raises:
            UnknownNameError: no such column; near matches are named.
        """
        numbers = [name for name, kind in COLUMNS.items() if kind == "REAL" and name != "level"]
        if column not in numbers:
            raise UnknownNameError.of("column", column, numbers)
        ok = self.rows[self.rows["status"] == "ok"]
        grouped = ok.groupby(tables.KEYS, sort=False, dropna=False)
        summary = grouped[column].agg(["mean", "count"])
        return summary.rename(columns={"count": "n"}).reset_index()

    def sweep(self) -> pd.DataFrame:
        """Task 1: every measure along thresholds and areas; see `tables.sweep`."""
        return tables.sweep(self.rows, self.preset)

    def best(self) -> pd.DataFrame:
        """Task 1: the best method at each level; see `tables.best`."""
        return tables.best(self.rows, self.preset)

    def faithfulness(self) -> pd.DataFrame:
        """Task 2: methods ranked by the drop in IoU; see `tables.faithfulness`."""
        return tables.faithfulness(self.rows, self.preset)

    def layers(self) -> pd.DataFrame:
        """Task 3: paired differences between layers; see `tables.layers`."""
        return tables.layers(self.rows, self.preset)

    def judged(self) -> pd.DataFrame:
        """Measures of whole heatmaps, averaged over tiles; see `tables.judged`."""
        return tables.judged(self.scores)

    def validity(self) -> pd.DataFrame:
        """Which fills this network is not fooled by; see `tables.validity`."""
        return tables.validity(self.rows)

    def export(self, manifest: Mapping[str, Any]) -> None:
        """Write results.parquet, results.csv (scores.csv too, where there are any) and
        manifest.json, each replaced as a whole.
        """
        schema = pa.schema([(name, _ARROW[kind]) for name, kind in COLUMNS.items()])

        def parquet(stream: BinaryIO) -> None:
            with pq.ParquetWriter(stream, schema) as writer, _reading(self._db) as db:
                for part in _chunks(db):
                    writer.write_table(pa.Table.from_pandas(part, schema, preserve_index=False))

        def table(stream: BinaryIO) -> None:
            text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
            writer = csv.writer(text)
            writer.writerow(COLUMNS)
            with _reading(self._db) as db:
                for part in _chunks(db):
                    writer.writerows(_cells(row) for row in part.itertuples(index=False))
            text.flush()
            text.detach()

        def scores(stream: BinaryIO) -> None:
            text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
            writer = csv.writer(text)
            writer.writerow(SCORES)
            writer.writerows(_cells(row) for row in self.scores.itertuples(index=False))
            text.flush()
            text.detach()

        write_atomic(self.folder / "results.parquet", parquet)
        write_atomic(self.folder / "results.csv", table)
        if len(self.scores):
            write_atomic(self.folder / "scores.csv", scores)
        text = json.dumps(manifest, indent=2, ensure_ascii=False, default=str) + "\n"
        write_atomic(self.folder / "manifest.json", lambda stream: _put(stream, text.encode()))

    @property
    def _db(self) -> Path:
        return self.folder / "run.db"


def write_atomic(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file whole or not at all: temporary file, fsync, replace, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def pack_picture(
    image: npt.NDArray[np.float32],
    truth: npt.NDArray[np.bool_],
    prediction: npt.NDArray[np.bool_],
    heatmaps: Mapping[tuple[str, str], npt.NDArray[np.float32]],
) -> bytes:
    """Image [B, H, W], masks [H, W] and heatmaps in 8 bits, for figures only."""
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
    """The inverse of `pack_picture`, as `plot` and `report` read it."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        maps = arrays["maps"].astype(np.float32) / 255
        names = [(str(method), str(layer)) for method, layer in arrays["names"]]
        return {
            "sample": sample,
            "image": arrays["image"].astype(np.float32) / 255,
            "truth": arrays["truth"],
            "prediction": arrays["prediction"],
            "heatmaps": dict(zip(names, maps, strict=True)),
        }


def _put(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            yield db
        finally:
            db.close()
    except sqlite3.DatabaseError as error:
        raise StudyError(
            f"{path} that cannot be read ({error})", "a run of `study`", "restore it or run again"
        ) from error


def _check_identity(folder: Path, db: sqlite3.Connection, identity: Mapping[str, Any]) -> None:
    row = db.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
    stored = json.loads(row[0]) if row else {}
    wanted = json.loads(json.dumps(identity))
    for key in sorted({*stored, *wanted}):
        if stored.get(key) != wanted.get(key):
            raise StudyError(
                f"another study in {folder} ({key} = {_short(stored.get(key))})",
                f"{key} = {_short(wanted.get(key))}",
                "choose another --out, or repeat the same settings to go on",
            )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _chunks(db: sqlite3.Connection) -> Iterator[pd.DataFrame]:
    there = {row[1] for row in db.execute("PRAGMA table_info(rows)")}
    # a run of an earlier version lacks the columns that came later
    names = ", ".join(f'"{name}"' if name in there else f'NULL AS "{name}"' for name in COLUMNS)
    cursor = db.execute(f"SELECT {names} FROM rows ORDER BY sample, place")  # noqa: S608
    while block := cursor.fetchmany(_CHUNK):
        yield _typed(pd.DataFrame(block, columns=list(COLUMNS)))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype({name: _PANDAS[kind] for name, kind in COLUMNS.items()})


def _cells(row: Iterable[object]) -> Iterator[object]:
    """Cells for spreadsheets: texts that look like formulas are quoted, NaN is empty."""
    for value in row:
        if isinstance(value, str):
            yield f"'{value}" if value.startswith(_FORMULA) else value
        else:
            yield "" if value != value else repr(value)
