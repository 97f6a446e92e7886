"""What a study leaves behind: run.db while it runs, parquet, csv and manifest.json as exports."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import sqlite3
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from segproof.analysis import KEYS, Analysis, heatmap_scores
from segproof.errors import DiskError, StudyError, UnknownNameError
from segproof.explain import PRESETS, Preset

__all__ = [
    "COLUMNS",
    "SCORES",
    "Results",
    "RunStore",
    "TileResult",
    "checksum",
    "in_use",
    "probe",
    "reading",
    "write_atomic",
]

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
_STORE: Final = 3  # the layout of run.db
_PROBE: Final = 1 << 20  # bytes that a folder has to take before anything is computed
_PATIENCE: Final = 0.5  # s: `status` holds the lock for a moment
_PICTURE: Final = 1 << 28  # bytes that the picture of a tile may unpack to


@dataclass(frozen=True)
class TileResult:
    """All that one tile yields: its status with a reason, its rows and perhaps a picture for
    people. `forwards` were spent, for `asked` pictures: what is asked for twice is shown once.
    """

    sample: str
    position: int
    status: str
    reason: str = ""
    rows: Sequence[tuple[object, ...]] = ()
    scores: Sequence[tuple[object, ...]] = ()
    picture: bytes | None = None
    forwards: int = 0
    asked: int = 0
    seconds: float = 0.0
    digest: str = ""

    def table(self) -> pd.DataFrame:
        """Its rows as a table, as `Results.rows` has them."""
        return _typed(pd.DataFrame(list(self.rows), columns=list(COLUMNS)))


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
        identity = {**identity, "store": _STORE}
        _check_folder(self.folder)
        with _disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.folder)
        try:
            self._open(identity)
        except BaseException:
            self._lock.close()
            raise

    def _open(self, identity: Mapping[str, Any]) -> None:
        if self.path.exists():
            with reading(self.path, alone=True) as stored:
                # killed before its first transaction: nothing in it, and nothing lost
                if stored.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                    _check_identity(self.folder, stored, identity)
        with _disk(self.folder):
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
                    checksum(self._db, tile.sample),
                ),
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _disk(self.folder):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled it back already
                    self._db.execute("ROLLBACK")
                raise


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
        try:
            manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            known = not manifest or manifest["preset"] in PRESETS
        except (ValueError, LookupError, TypeError):
            known = False
        if not known:
            raise StudyError(f"{path} that no study wrote", "its manifest", "run the study again")
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
        with reading(self.folder / "run.db") as db:
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
        names = ", ".join(f'scores."{name}"' for name in SCORES)
        query = (
            f"SELECT {names} FROM scores JOIN tiles USING (sample)"  # noqa: S608 - our own names
            " ORDER BY tiles.position, scores.sample, scores.place"
        )
        with reading(self.folder / "run.db") as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'scores'").fetchone():
                found: list[Any] = []  # a run of an earlier version
            else:
                found = db.execute(query).fetchall()
        frame = pd.DataFrame(found, columns=list(SCORES))
        return frame.astype({name: _PANDAS[kind] for name, kind in SCORES.items()})

    @cached_property
    def tiles(self) -> pd.DataFrame:
        """One row per tile: sample, status (ok, skipped, failed), reason, forwards spent and asked
        for, seconds.
        """
        names = ["sample", "status", "reason", "forwards", "asked", "seconds"]
        with reading(self.folder / "run.db") as db:
            known = {column for _, column, *_ in db.execute("PRAGMA table_info(tiles)")}
            # runs of an earlier version showed all that was asked for
            found = [name if name in known else "forwards" for name in names]
            query = f"SELECT {', '.join(found)} FROM tiles ORDER BY position, sample"  # noqa: S608
            return pd.DataFrame(db.execute(query).fetchall(), columns=names)

    def pictures(self, most: int = 4) -> list[dict[str, Any]]:
        """Image, truth, prediction and heatmaps of the first tiles, for figures."""
        query = (
            "SELECT sample, picture FROM tiles WHERE picture IS NOT NULL AND status = 'ok'"
            " ORDER BY position LIMIT ?"
        )
        with reading(self.folder / "run.db") as db:
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
            for block in _blocks(db):
                yield _csv(_cells(row) for row in block)

    @property
    def _db(self) -> Path:
        return self.folder / "run.db"


def _csv(lines: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()


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
        with suppress(OSError):
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
    with _picture(data), np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        maps = arrays["maps"].astype(np.float32) / 255
        names = [(str(method), str(layer)) for method, layer in arrays["names"]]
        return {
            "sample": sample,
            "image": arrays["image"].astype(np.float32) / 255,
            "truth": arrays["truth"],
            "prediction": arrays["prediction"],
            "heatmaps": dict(zip(names, maps, strict=True)),
        }


@contextmanager
def _picture(data: bytes) -> Iterator[None]:
    """A folder of results may come from anyone: what its pictures unpack to is looked at first."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            size = sum(entry.file_size for entry in packed.infolist())
        if size <= _PICTURE:
            yield
            return
        found = f"a picture in run.db of {size} bytes unpacked"
    except (ValueError, LookupError, OSError, TypeError, zipfile.BadZipFile, EOFError) as error:
        found = f"a picture in run.db that no study wrote ({error})"
    raise StudyError(found, "small pictures of tiles", "run the study again")


def _put(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


def probe(folder: str | Path) -> None:
    """Refuse a run folder that cannot take a run, before any work; nothing is left behind.

    Raises:
        StudyError: a file, a folder of other things, or one that another process writes.
        DiskError: a MiB cannot be written there.
    """
    folder = Path(folder)
    _check_folder(folder)
    if in_use(folder):
        raise _busy(folder)
    base = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    with _disk(folder), tempfile.TemporaryFile(dir=base) as stream:
        stream.write(bytes(_PROBE))
        stream.flush()
        os.fsync(stream.fileno())


def in_use(folder: str | Path) -> bool:
    """Whether a process writes this run folder now."""
    path = Path(folder) / ".lock"
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock(folder: Path) -> BinaryIO:
    stream = (folder / ".lock").open("wb")
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end:
                stream.close()
                raise _busy(folder) from error
            time.sleep(0.05)
        else:
            return stream


def _busy(folder: Path) -> StudyError:
    return StudyError(
        f"{folder} in use by another process", "one writer", "wait, or choose another --out"
    )


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"a file at {folder}", "a folder", "choose another --out")
    known = not folder.is_dir() or (folder / "run.db").exists()
    # a run that was killed while it began leaves its lock
    if not known and any(path.name != ".lock" for path in folder.iterdir()):
        raise StudyError(
            f"{folder} with other files in it",
            "a new or empty folder, or a run to go on with",
            "choose another --out",
        )


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """What a full, failing or read-only disk answers, as one error."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        code = getattr(error, "sqlite_errorname", "SQLITE_FULL")
        if not code.startswith(
            ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")
        ):
            raise
        raise DiskError(
            f"{folder} that cannot be written ({error})",
            "a folder with room for the run",
            "make room or choose another --out; what is finished is stored, and the same command"
            " goes on from there",
        ) from error


def checksum(db: sqlite3.Connection, sample: str) -> str:
    """SHA-256 of a tile's rows and scores as they are stored: SQLite itself would not notice a
    changed number.
    """
    digest = hashlib.sha256()
    for table, known in (("rows", COLUMNS), ("scores", SCORES)):
        names = ", ".join(f'"{name}"' for name in ("place", *known))
        query = f"SELECT {names} FROM {table} WHERE sample = ? ORDER BY place"  # noqa: S608 - ours
        for row in db.execute(query, (sample,)):
            digest.update(repr(row).encode())
    return digest.hexdigest()


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


@contextmanager
def reading(path: Path, *, alone: bool = False) -> Iterator[sqlite3.Connection]:
    """A run.db opened for reading, also while it is written; `alone`: surely nobody does.

    Raises:
        StudyError: it is damaged, or no database.
    """
    _check_length(path)
    how = "mode=ro"
    alone = alone or not os.access(path.parent, os.W_OK)
    if alone and not _has_wal(path):
        how += "&immutable=1"  # SQLite makes files beside it otherwise
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True)
        try:
            db.execute("PRAGMA trusted_schema=OFF")
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


def _blocks(db: sqlite3.Connection) -> Iterator[list[tuple[Any, ...]]]:
    there = {row[1] for row in db.execute("PRAGMA table_info(rows)")}
    # a run of an earlier version lacks the columns that came later
    names = ", ".join(f'"{name}"' if name in there else f'NULL AS "{name}"' for name in COLUMNS)
    cursor = db.execute(f"SELECT {names} FROM rows ORDER BY sample, place")  # noqa: S608
    while block := cursor.fetchmany(_CHUNK):
        yield block


def _chunks(db: sqlite3.Connection) -> Iterator[pd.DataFrame]:
    for block in _blocks(db):
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
