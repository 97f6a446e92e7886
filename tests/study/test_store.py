"""The store: whole transactions, one writer, readers beside it, rows that stay what they were."""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import pytest

from run_folders import IDENTITY, row, tile
from segproof import Results, StudyError
from segproof.study.integrity import status
from segproof.study.store import COLUMNS, Kept, Row, RunStore, TileResult, reading


def test_a_tile_is_stored_once_and_as_a_whole(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run", IDENTITY) as store:
        store.write(tile("b", 1))
        store.write(tile("a", 0))
        store.write(tile("a", 0, rows=3))
        unstorable = replace(row("c"), status=object())  # type: ignore[arg-type]
        bad = TileResult("c", 2, "ok", rows=[row("c"), unstorable])
        with pytest.raises(sqlite3.Error):
            store.write(bad)
        assert store.done() == {"a": "d-a", "b": "d-b"}
    results = Results.load(tmp_path / "run")
    assert results.rows["sample"].tolist() == ["a", "a", "a", "b", "b"]
    assert results.tiles["sample"].tolist() == ["a", "b"]


def test_identity_is_checked_field_by_field(tmp_path: Path) -> None:
    RunStore(tmp_path / "run", IDENTITY).__exit__()
    with pytest.raises(StudyError, match=r'weights = "abc".*expected weights = "other"'):
        RunStore(tmp_path / "run", IDENTITY | {"weights": "other"})
    with RunStore(tmp_path / "run", IDENTITY) as store:
        assert store.done() == {}


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run", IDENTITY), pytest.raises(StudyError, match="in use"):
        RunStore(tmp_path / "run", IDENTITY)


def test_a_damaged_store_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "run.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StudyError, match="cannot be read"):
        RunStore(tmp_path, IDENTITY)
    with pytest.raises(StudyError, match="cannot be read"):
        _ = Results.load(tmp_path).rows


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    first, second = replace(row("a"), level=0.1, seed=4), replace(row("a", None), status="flat")
    with RunStore(tmp_path, IDENTITY) as store:
        store.write(TileResult("a", 0, "ok", rows=[first, second]))
        with reading(tmp_path / "run.db") as db:
            assert db.rows_of("a") == [first, second]
            assert db.rows_of("b") == []
            assert db.row_counts() == {"a": 2}


def test_the_columns_are_the_fields_of_a_row() -> None:
    assert list(COLUMNS) == [field.name for field in fields(Row)]
    assert row("a").values() == tuple(getattr(row("a"), name) for name in COLUMNS)
    assert {COLUMNS[name] for name in ("sample", "fill", "status")} == {"TEXT"}
    assert {COLUMNS[name] for name in ("level", "iou", "effective_channels")} == {"REAL"}
    assert COLUMNS["seed"] == "INTEGER"


def test_a_changed_number_changes_the_checksum(tmp_path: Path) -> None:
    with RunStore(tmp_path, IDENTITY) as store:
        store.write(tile("a"))
    with reading(tmp_path / "run.db") as db:
        [stored] = db.tiles()
        assert db.checksum("a") == stored.checksum
    changed = sqlite3.connect(tmp_path / "run.db")
    with changed:
        changed.execute("UPDATE rows SET iou = iou + 1e-9 WHERE place = 1")
    changed.close()
    with reading(tmp_path / "run.db") as db:
        assert db.checksum("a") != stored.checksum


def test_a_run_that_was_killed_while_it_made_its_store(tmp_path: Path) -> None:
    """SQLite leaves a journal that a reader may not roll back: nothing is in the file yet."""
    with closing(sqlite3.connect(tmp_path / "run.db")) as db:
        db.execute("PRAGMA user_version = 1")
    # magic, records, nonce, pages before, bytes of a sector and of a page
    head = bytes.fromhex("d9d505f920a163d7") + struct.pack(">IIIII", 0, 1, 0, 512, 4096)
    (tmp_path / "run.db-journal").write_bytes(head.ljust(512, b"\0"))
    with reading(tmp_path / "run.db") as reader:
        assert not reader.has_tables()
    assert status(tmp_path).count is None
    with RunStore(tmp_path, IDENTITY) as store:
        store.write(tile("a"))
    assert status(tmp_path).ok == 1


def test_studied_tiles_alone_tell_the_rate(tmp_path: Path) -> None:
    with RunStore(tmp_path, IDENTITY) as store:
        assert store.mean_seconds() is None
        for position, (status, seconds) in enumerate(
            (("ok", 2.0), ("skipped", 0.0), ("ok", 4.0), ("failed", 9.0))
        ):
            store.write(TileResult(f"t{position}", position, status, seconds=seconds))
        assert store.mean_seconds() == 3.0
        with reading(tmp_path / "run.db") as db:
            count, last = db.studied_since(0.0)
            assert count == 2
            assert last is not None
            assert db.studied_since(last) == (0, None)


def test_what_is_kept_tells_how_long_the_rest_takes() -> None:
    assert Kept(12, 96, 2.0).seconds_left(workers=2) == 84.0
    assert Kept(0, 96).seconds_left() is None
