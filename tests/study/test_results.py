"""The store: transactions, one writer, whole exports, safe cells."""

from __future__ import annotations

import csv
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pytest

from run_folders import IDENTITY, row, tile
from segproof import Results, StudyError, UnknownNameError
from segproof.study.files import write_atomic
from segproof.study.store import RunStore, TileResult
from segproof.study.thumbnails import pack_picture, unpack_picture


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


def test_exports_agree_and_undefined_is_empty(tmp_path: Path) -> None:
    with RunStore(tmp_path, IDENTITY) as store:
        values = TileResult("=cmd|' /C calc'!A0", 0, "ok", rows=[row("=cmd|' /C calc'!A0", None)])
        store.write(values)
        store.write(tile("plain", 1))
    Results.load(tmp_path).export({"preset": "strict"})
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as stream:
        read = list(csv.DictReader(stream))
    assert read[0]["sample"] == "'=cmd|' /C calc'!A0"
    assert read[0]["confidence"] == ""
    assert read[1]["confidence"] == "0.5"
    frame = pd.read_parquet(tmp_path / "results.parquet")
    assert frame["sample"].tolist() == ["=cmd|' /C calc'!A0", "plain", "plain"]
    assert np.isnan(frame["confidence"].iloc[0])


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("old")

    def broken(stream: BinaryIO) -> None:
        stream.write(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomic(path, broken)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["results.csv"]


def test_pictures_come_back() -> None:
    generator = np.random.default_rng(0)
    image = generator.random((3, 8, 9), dtype=np.float32)
    truth = generator.random((8, 9)) > 0.5
    heat = generator.random((8, 9), dtype=np.float32)
    data = pack_picture(image, truth, ~truth, {("grad_cam", "decoder:1"): heat})
    back = unpack_picture("tile", data)
    np.testing.assert_allclose(back["image"], image, atol=0.5 / 255)
    np.testing.assert_array_equal(back["truth"], truth)
    np.testing.assert_array_equal(back["prediction"], ~truth)
    np.testing.assert_allclose(back["heatmaps"]["grad_cam", "decoder:1"], heat, atol=0.5 / 255)


def test_means_of_a_column_and_near_names(tmp_path: Path) -> None:
    with RunStore(tmp_path, IDENTITY) as store:
        for position, value in enumerate((0.2, 0.4, None)):
            name = f"t{position}"
            store.write(TileResult(name, position, "ok", rows=[row(name, value)]))
    results = Results.load(tmp_path)
    [line] = results.mean("confidence").to_dict("records")
    assert line["mean"] == pytest.approx(0.3, abs=1e-12)
    assert line["n"] == 2
    with pytest.raises(UnknownNameError, match="did you mean confidence"):
        results.mean("confidance")
    with pytest.raises(StudyError, match="resumes where it was cut off"):
        results.finished()


def test_no_run_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no run\.db"):
        Results.load(tmp_path)
