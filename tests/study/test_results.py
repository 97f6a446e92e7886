"""Results: exports that agree, safe cells, near names."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from run_folders import IDENTITY, row, tile
from segproof import Results, StudyError, UnknownNameError
from segproof.study.store import RunStore, TileResult


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
