"""What `check` says of a folder: pairs, what the mask values mean, pictures, and alike problems."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

import tiny
from segproof.data import MaskValues, Reading
from segproof.errors import DataError
from segproof.report.terminal import print_check
from segproof.study import survey
from tile_files import NAMES, RED, WHITE, H, W, colours, painted, save, striped, tiles


def folder(root: Path, *masks: NDArray[np.uint8]) -> Path:
    """Pictures with these masks."""
    tiles(root, "images", "masks", {f"t{n}.png": "" for n in range(len(masks))})
    for number, mask in enumerate(masks):
        save(root / "masks" / f"t{number}.png", mask)
    return root


def lines_of(report: survey.DataReport) -> list[tuple[str, str, float]]:
    return [(line.value, line.meaning, round(line.share, 4)) for line in report.values]


def test_a_shift_of_the_labels_is_seen(tmp_path: Path) -> None:
    """Masks that hold class + 1 name the wrong class, and the last value is refused."""
    root = folder(tmp_path / "t", striped(0, 1), striped(1, 2), striped(2, 3), striped(1, 1))
    report = survey.survey_data(root, classes=3, names=NAMES)
    assert lines_of(report) == [
        ("0", "background", 0.125),
        ("1", "building", 0.5),
        ("2", "road", 0.125),
        ("2", "refused", 0.125),
        ("3", "refused", 0.125),
    ]
    assert (report.good, report.bad, report.tiles) == (3, 1, 4)
    # void at 0 and one class more: what a network of shifted labels is read with
    shifted = survey.survey_data(
        root, classes=4, ignore_index=0, names=["void", "wall", "building", "tree"]
    )
    assert lines_of(shifted) == [
        ("1", "wall", 0.5),
        ("2", "building", 0.25),
        ("3", "tree", 0.125),
        ("0", "does not count", 0.125),
    ]
    assert shifted.bad == 0


def test_a_class_that_no_pixel_has_is_listed(tmp_path: Path) -> None:
    root = folder(tmp_path / "t", striped(0, 2), striped(0, 0))
    report = survey.survey_data(root, classes=3, names=NAMES)
    assert lines_of(report) == [
        ("0", "background", 0.75),
        ("", "building", 0.0),
        ("2", "road", 0.25),
    ]


def test_colours_and_bands(tmp_path: Path) -> None:
    root = folder(tmp_path / "t", painted(RED, WHITE), painted(WHITE, WHITE))
    values = MaskValues.of("#ff0000=building,#ffffff=ignore", NAMES)
    report = survey.survey_data(root, classes=3, names=NAMES, values=values)
    assert ("#ff0000", "building", 0.25) in lines_of(report)
    assert ("#ffffff", "does not count", 0.25) in lines_of(report)
    assert ("255", "does not count", 0.5) in lines_of(report)  # the tile without a colour
    refused = survey.survey_data(root, classes=3, names=NAMES)
    # the tile of one grey colour is no colour mask
    assert ("#ff0000", "refused", 0.25) in lines_of(refused)


def test_alike_problems_stand_once(tmp_path: Path) -> None:
    root = folder(tmp_path / "t", *[striped(1, 2)] * 5, striped(0, 1), striped(0, 9, 4))
    (root / "masks" / "t5.png").write_bytes(b"hello")
    report = survey.survey_data(root)
    assert report.bad == 7
    assert [(p.count, p.names) for p in report.problems] == [
        (5, ("images/t0.png", "images/t1.png", "images/t2.png")),
        (1, ("images/t5.png",)),
        (1, ("images/t6.png",)),
    ]
    assert "--mask-values 1=0,2=1" in report.problems[0].fix


def test_pictures_and_their_range(tmp_path: Path) -> None:
    root = folder(tmp_path / "t", striped(0, 1), striped(0, 1))
    save(root / "images" / "t1.png", np.full((H, W), 1815, np.uint16))
    report = survey.survey_data(root)
    assert report.pictures == ((f"1 x {H} x {W} uint16", 1), (f"3 x {H} x {W} uint8", 1))
    assert (report.low, report.high) == (float(colours(0).min()), 1815.0)
    assert report.examples == (("images/t0.png", "masks/t0.png"), ("images/t1.png", "masks/t1.png"))


def test_the_network_decides_the_bands(tmp_path: Path) -> None:
    root = folder(tmp_path / "t", striped(0, 1))
    alpha = np.full((1, H, W), 255, np.uint8)
    save(root / "images" / "t0.png", np.concatenate([colours(), alpha]))
    model = tiny.network()
    assert [reason for _, reason in survey.check(root, model=model)] == [""]
    assert survey.survey_data(root, model=model).values[1].meaning == "building"
    alpha[0, 0, 0] = 7
    save(root / "images" / "t0.png", np.concatenate([colours(), alpha]))
    [(_, reason)] = survey.check(root, model=model)
    assert "--bands 1,2,3" in reason
    chosen = Reading(bands=(1, 2, 3))
    assert [reason for _, reason in survey.check(root, model=model, reading=chosen)] == [""]


def test_printed(tmp_path: Path) -> None:
    root = folder(tmp_path / "t", *[striped(1, 2)] * 4, striped(0, 1))
    for part in ("images", "masks"):
        (root / part / "t0.png").rename(root / part / "\x1b[31m[red].png")
    out = io.StringIO()
    print_check(Console(file=out, width=80), survey.survey_data(root, names=NAMES[:2]))
    said = out.getvalue()
    assert "\x1b" not in said
    assert r"images/\x1b[31m[red].png" in said
    assert "Images are images/*, masks are masks/*" in said
    assert f"5 of 3 x {H} x {W} uint8; stored values from 0 to 255" in said
    assert "4 x " in said
    assert "--mask-values 1=background,2=building or" in said
    assert "1 good, 4 bad" in said
    table = [line.split() for line in said.splitlines()]
    assert ["0", "background", "10.00", "%"] in table
    assert ["2", "refused", "40.00", "%"] in table


def test_memory_does_not_grow_with_the_tiles(tmp_path: Path) -> None:
    few, many = (folder(tmp_path / str(n), *[striped(0, 1)] * n) for n in (5, 60))
    peaks = []
    for root in (few, few, many):  # the first run fills caches
        tracemalloc.start()
        survey.survey_data(root)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 300_000


def test_a_folder_that_cannot_be_paired(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        survey.survey_data(tmp_path / "nowhere")


def test_real_tiles(shared: Path) -> None:
    names = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
             "pedestrian", "bicyclist"]  # fmt: skip
    report = survey.survey_data(shared / "camvid", classes=11, ignore_index=11, names=names)
    assert (report.good, report.bad) == (39, 0)
    assert [line.meaning for line in report.values] == [*names, "does not count"]
    assert sum(line.share for line in report.values) == pytest.approx(1)
