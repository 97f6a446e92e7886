"""Stores a run in run.db: every statement of SQL, for the one writer and for readers beside it."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from segproof.choices import PRESETS
from segproof.errors import StudyError
from segproof.study.files import check_folder, disk_errors, lock_folder

__all__ = [
    "COLUMNS",
    "SCORES",
    "Kept",
    "Row",
    "RunReader",
    "RunStore",
    "StoredTile",
    "TileResult",
    "read_manifest",
    "reading",
]


@dataclass(frozen=True, slots=True)
class Row:
    """One perturbed picture of one tile and its measures; None: it has no such number.

    The fields are the columns of the results, in their order.
    """

    sample: str
    method: str
    layer: str
    binarisation: str
    level: float | None
    strategy: str
    reference: str
    fill: str
    area: float | None = None
    coverage: float | None = None
    confidence: float | None = None
    entropy: float | None = None
    kept: float | None = None
    certainty: float | None = None
    iou: float | None = None
    iou_delta: float | None = None
    status: str = "ok"
    dice: float | None = None
    iou_prediction: float | None = None
    boundary_f: float | None = None
    boundary_f_prediction: float | None = None
    effective_channels: float | None = None
    seed: int = 0
    preset: str = "strict"

    def values(self) -> tuple[Any, ...]:
        """Its cells in the order of the columns."""
        return _cells(self)


_SQL_TYPES: Final = {"str": "TEXT", "int": "INTEGER", "float | None": "REAL"}
COLUMNS: Final[dict[str, str]] = {item.name: _SQL_TYPES[str(item.type)] for item in fields(Row)}
# Measures of whole heatmaps, where a study computes them: a number, or why there is none.
SCORES: Final[dict[str, str]] = {
    "sample": "TEXT",
    "method": "TEXT",
    "layer": "TEXT",
    "measure": "TEXT",
    "fill": "TEXT",
    "value": "REAL",
    "reason": "TEXT",
}
LAYOUT: Final = 3  # of the tables of run.db
BLOCK: Final = 50_000  # rows that are read at once: memory does not grow with the study
_cells = attrgetter(*COLUMNS)


@dataclass(frozen=True)
class TileResult:
    """All that one tile yields: its status with a reason, its rows and perhaps a picture for
    figures. `forwards` were spent for `asked` pictures: identical pictures are run once.
    """

    sample: str
    position: int
    status: str
    reason: str = ""
    rows: Sequence[Row] = ()
    scores: Sequence[tuple[object, ...]] = ()
    picture: bytes | None = None
    forwards: int = 0
    asked: int = 0
    seconds: float = 0.0
    digest: str = ""


@dataclass(frozen=True)
class Kept:
    """What a run has kept when it is resumed or stopped: `done` of `of` tiles, and the mean
    `seconds` of a studied one, None where there is none yet.
    """

    done: int
    of: int
    seconds: float | None = None

    def seconds_left(self, workers: int = 1) -> float | None:
        """Seconds that `workers` need for the other tiles, if all of them are studied."""
        return None if self.seconds is None else (self.of - self.done) * self.seconds / workers


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
        identity = {**identity, "store": LAYOUT}
        check_folder(self.folder)
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.folder)
        try:
            self._open(identity)
        except BaseException:
            self._lock.close()
            raise

    def _open(self, identity: Mapping[str, Any]) -> None:
        if self.path.exists():
            with reading(self.path, alone=True) as stored:
                # killed before its first transaction: nothing in it, and nothing lost
                if stored.has_tables():
                    _check_identity(self.folder, stored.meta().get("identity") or {}, identity)
        with disk_errors(self.folder):
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
        columns, scored = (
            ", ".join(f'"{name}" {kind}' for name, kind in table.items())
            for table in (COLUMNS, SCORES)
        )
        with self._transaction():
            self._db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT)")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS tiles"
                " (sample TEXT PRIMARY KEY, position INTEGER, status TEXT, reason TEXT,"
                " forwards INTEGER, asked INTEGER, seconds REAL, digest TEXT, picture BLOB,"
                " ended REAL, checksum TEXT)"
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

    def failed(self) -> dict[str, str]:
        """Tiles that failed, with the reason."""
        query = "SELECT sample, reason FROM tiles WHERE status = 'failed'"
        return dict(self._db.execute(query))

    def mean_seconds(self) -> float | None:
        """Mean seconds of the tiles that were studied; None where there is none."""
        query = "SELECT AVG(seconds) FROM tiles WHERE status = 'ok'"
        seconds: float | None = self._db.execute(query).fetchone()[0]
        return seconds

    def get(self, key: str) -> Any:
        """A value stored with `put`, or None."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, **values: Any) -> None:
        """Store JSON values under their names, all or none."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                [(key, json.dumps(value)) for key, value in values.items()],
            )

    def keep_only(self, samples: Iterable[str]) -> None:
        """Leave out all tiles but these."""
        others = set(self.done()) - set(samples)
        with self._transaction():
            for table in ("rows", "scores", "tiles"):
                self._db.executemany(
                    f"DELETE FROM {table} WHERE sample = ?",  # noqa: S608 - one of three names
                    [(name,) for name in sorted(others)],
                )

    def write(self, tile: TileResult) -> None:
        """Store one finished tile, rows and status together or not at all."""
        with self._transaction():
            self._replace("rows", COLUMNS, tile.sample, (row.values() for row in tile.rows))
            self._replace("scores", SCORES, tile.sample, tile.scores)
            self._db.execute(
                "INSERT OR REPLACE INTO tiles VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    tile.sample,
                    tile.position,
                    tile.status,
                    tile.reason,
                    tile.forwards,
                    tile.asked,
                    tile.seconds,
                    tile.digest,
                    tile.picture,
                    time.time(),
                    RunReader(self._db).checksum(tile.sample),
                ),
            )

    def _replace(
        self,
        table: str,
        columns: Mapping[str, str],
        sample: str,
        lines: Iterable[tuple[object, ...]],
    ) -> None:
        """The lines of one tile in a table, in place of those that a former try left there."""
        marks = ", ".join("?" * (len(columns) + 1))
        self._db.execute(f"DELETE FROM {table} WHERE sample = ?", (sample,))  # noqa: S608 - ours
        self._db.executemany(
            f"INSERT INTO {table} VALUES ({marks})",  # noqa: S608 - as above
            ((place, *line) for place, line in enumerate(lines)),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with disk_errors(self.folder):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled it back already
                    self._db.execute("ROLLBACK")
                raise


class StoredTile(NamedTuple):
    """What run.db holds of a finished tile besides its rows."""

    sample: str
    position: int
    status: str
    digest: str
    checksum: str


class RunReader:
    """Reads an open run.db, also while another process writes it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def has_tables(self) -> bool:
        """Whether the first transaction of a run was finished."""
        return self._db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None

    def meta(self) -> dict[str, Any]:
        """Everything that was stored with `RunStore.put`, and the identity of the study."""
        query = "SELECT key, value FROM meta"
        return {key: json.loads(value) for key, value in self._db.execute(query)}

    def counts(self) -> dict[str, int]:
        """Finished tiles by status."""
        return dict(self._db.execute("SELECT status, COUNT(*) FROM tiles GROUP BY status"))

    def reasons(self) -> dict[str, int]:
        """Why tiles were skipped or failed, the most frequent reason first."""
        return dict(
            self._db.execute(
                "SELECT reason, COUNT(*) FROM tiles WHERE status != 'ok'"
                " GROUP BY reason ORDER BY COUNT(*) DESC, reason"
            )
        )

    def studied_since(self, began: float) -> tuple[int, float | None]:
        """Tiles that were studied since then, and when the last tile of any status ended."""
        count, last = self._db.execute(
            "SELECT COALESCE(SUM(status = 'ok'), 0), MAX(ended) FROM tiles WHERE ended > ?",
            (began,),
        ).fetchone()
        return int(count), last

    def integrity_problems(self) -> list[str]:
        """What SQLite itself finds wrong with the file; [] is nothing."""
        lines = [str(line) for (line,) in self._db.execute("PRAGMA integrity_check(10)")]
        return [] if lines == ["ok"] else lines

    def tiles(self) -> list[StoredTile]:
        """Finished tiles in the order of the data."""
        query = "SELECT sample, position, status, digest, checksum FROM tiles ORDER BY position"
        return [StoredTile(*line) for line in self._db.execute(query)]

    def tile_lines(self) -> list[tuple[Any, ...]]:
        """Sample, status, reason, forwards, pictures asked for and seconds of each tile."""
        names = ["sample", "status", "reason", "forwards", "asked", "seconds"]
        columns = {column for _, column, *_ in self._db.execute("PRAGMA table_info(tiles)")}
        # runs of an earlier version ran every picture, identical ones too
        stored = [name if name in columns else "forwards" for name in names]
        query = f"SELECT {', '.join(stored)} FROM tiles ORDER BY position, sample"  # noqa: S608
        return self._db.execute(query).fetchall()

    def row_counts(self) -> dict[str, int]:
        """How many rows each tile has, also tiles that are not finished."""
        return dict(self._db.execute("SELECT sample, COUNT(*) FROM rows GROUP BY sample"))

    def rows_of(self, sample: str) -> list[Row]:
        """The rows of one tile, in their order."""
        names = ", ".join(f'"{column}"' for column in COLUMNS)
        query = f"SELECT {names} FROM rows WHERE sample = ? ORDER BY place"  # noqa: S608 - ours
        return [Row(*line) for line in self._db.execute(query, (sample,))]

    def blocks(self) -> Iterator[list[tuple[Any, ...]]]:
        """All rows in the order of COLUMNS, some at a time; tiles by name."""
        stored = {column for _, column, *_ in self._db.execute("PRAGMA table_info(rows)")}
        # a run of an earlier version lacks the columns that came later
        names = ", ".join(
            f'"{name}"' if name in stored else f'NULL AS "{name}"' for name in COLUMNS
        )
        cursor = self._db.execute(f"SELECT {names} FROM rows ORDER BY sample, place")  # noqa: S608
        while block := cursor.fetchmany(BLOCK):
            yield block

    def score_lines(self) -> list[tuple[Any, ...]]:
        """All scores in the order of SCORES, tiles in the order of the data."""
        exists = "SELECT 1 FROM sqlite_master WHERE name = 'scores'"
        if not self._db.execute(exists).fetchone():
            return []  # a run of an earlier version
        names = ", ".join(f'scores."{name}"' for name in SCORES)
        query = (
            f"SELECT {names} FROM scores JOIN tiles USING (sample)"  # noqa: S608 - our own names
            " ORDER BY tiles.position, scores.sample, scores.place"
        )
        return self._db.execute(query).fetchall()

    def pictures(self, most: int) -> list[tuple[str, bytes]]:
        """Sample and packed picture of the first tiles that have one."""
        query = (
            "SELECT sample, picture FROM tiles WHERE picture IS NOT NULL AND status = 'ok'"
            " ORDER BY position LIMIT ?"
        )
        return self._db.execute(query, (most,)).fetchall()

    def checksum(self, sample: str) -> str:
        """SHA-256 of a tile's rows and scores as they are stored: SQLite itself would not notice a
        changed number.
        """
        digest = hashlib.sha256()
        for table, columns in (("rows", COLUMNS), ("scores", SCORES)):
            names = ", ".join(f'"{name}"' for name in ("place", *columns))
            query = f"SELECT {names} FROM {table} WHERE sample = ? ORDER BY place"  # noqa: S608
            for line in self._db.execute(query, (sample,)):
                digest.update(repr(line).encode())
        return digest.hexdigest()


@contextmanager
def reading(path: Path, *, alone: bool = False) -> Iterator[RunReader]:
    """Open a run.db for reading, also while it is written; `alone`: surely nobody does.

    Raises:
        StudyError: it is damaged, or no database.
    """
    _check_length(path)
    how = "mode=ro"
    # a journal is left by a run that was killed while it made the file: no reader may roll it back,
    # and there is nothing in the file yet
    killed_early = path.with_name(f"{path.name}-journal").exists()
    alone = alone or killed_early or not os.access(path.parent, os.W_OK)
    if alone and not _has_wal(path):
        how += "&immutable=1"  # SQLite makes files beside it otherwise
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True)
        try:
            db.execute("PRAGMA trusted_schema=OFF")
            yield RunReader(db)
        finally:
            db.close()
    except sqlite3.DatabaseError as error:
        raise StudyError(
            f"{path} that cannot be read ({error})", "a run of `study`", "restore it or run again"
        ) from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest.json of a run folder; empty where the run has not ended.

    Raises:
        StudyError: no run in that folder, or a manifest that no study wrote.
    """
    if not (folder / "run.db").is_file():
        raise StudyError(f"no run.db in {folder}", "a folder made by `study`", "check the path")
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        ours = not manifest or manifest["preset"] in PRESETS
    except (ValueError, LookupError, TypeError):
        ours = False
    if not ours:
        raise StudyError(f"{path} that no study wrote", "its manifest", "run the study again")
    return dict(manifest)


def _has_wal(path: Path) -> bool:
    """Whether transactions stand beside the file that are not in it yet."""
    wal = path.with_name(f"{path.name}-wal")
    return wal.exists() and wal.stat().st_size > 0


def _check_length(path: Path) -> None:
    """SQLite takes a last page that is cut short for one that ends in zeros."""
    if _has_wal(path):
        return  # the rest is in there
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(32)
    page = {1: 1 << 16}.get(number := int.from_bytes(head[16:18], "big"), number)
    if head.startswith(b"SQLite format 3\0") and size < page * int.from_bytes(head[28:], "big"):
        raise StudyError(f"{path} that cannot be read (cut short)", "a whole run.db", "run again")


def _check_identity(folder: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(identity))
    for key in sorted({*stored, *wanted}):
        if stored.get(key) != wanted.get(key):
            raise StudyError(
                f"another study in {folder} ({key} = {_short(stored.get(key))})",
                f"{key} = {_short(wanted.get(key))}",
                "choose another --out, or repeat the same settings to resume the run",
            )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
