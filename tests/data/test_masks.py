"""Masks of any values, colours and one band per class: mapped, evident, or refused with the map."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from segproof.data import FolderDataset, MaskValues, read_mask
from segproof.errors import DataError, UnknownNameError
from tile_files import (
    BLUE,
    GREEN,
    NAMES,
    RED,
    WHITE,
    H,
    W,
    colours,
    half,
    painted,
    save,
    save_tiff,
    striped,
    tiles,
)


def indices(*classes: int) -> torch.Tensor:
    return torch.from_numpy(striped(*classes).astype(np.int64))


# --- the map --------------------------------------------------------------------------------------
def test_values_ranges_and_lists(tmp_path: Path) -> None:
    values = MaskValues.of("0=background, 1|2=building, 10-20=road, 255=ignore", NAMES)
    path = save(tmp_path / "a.png", striped(0, 1, 2, 10, 20, 255))
    mask, counts = read_mask(path, classes=3, values=values)
    assert torch.equal(mask, indices(0, 1, 1, 2, 2, 0))
    assert torch.equal(counts, torch.from_numpy(striped(0, 1, 2, 10, 20, 255) != 255))
    assert str(values) == "0=background, 1|2=building, 10-20=road, 255=ignore"
    assert MaskValues.of(str(values), NAMES) == values


@pytest.mark.parametrize(
    "told",
    [
        "1=0,2=1",
        "1 = background , 2 = Building",
        {1: "background", "2": 1},
        {"1": 0, 2: "building"},
    ],
)
def test_the_same_map_in_other_words(tmp_path: Path, told: Any) -> None:
    path = save(tmp_path / "a.png", striped(1, 2))
    assert torch.equal(read_mask(path, values=MaskValues.of(told, NAMES[:2]))[0], indices(0, 1))


def test_a_value_that_is_not_named_is_refused_with_its_share(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", striped(0, 1, 7, 7))
    values = MaskValues.of("0=background,1=building", NAMES)
    with pytest.raises(DataError, match=r"1 values in the mask .*\(7 50 %\)") as got:
        read_mask(path, values=values)
    assert "7=ignore" in got.value.fix
    # the ignored value may be given by its own option
    _, counts = read_mask(path, values=values, ignore_index=7)
    assert torch.equal(counts, torch.from_numpy(striped(0, 1, 7, 7) != 7))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_colours(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, painted(RED, WHITE, (10, 20, 30), (0, 0, 0)))
    values = MaskValues.of("#FF0000=road,#ffffff|#0a141e=building,#000000=ignore", NAMES)
    mask, counts = read_mask(path, classes=3, values=values)
    assert torch.equal(mask, indices(2, 1, 1, 0))
    assert torch.equal(counts, torch.from_numpy(striped(1, 1, 1, 0) > 0))
    same = MaskValues.of({RED: "road", "#ffffff|#0a141e": 1, (0, 0, 0): "ignore"}, NAMES)
    assert torch.equal(read_mask(path, classes=3, values=same)[0], mask)
    # a tile of the same set that holds grey colours only
    plain = save(tmp_path / f"grey-{name}", painted(WHITE, (0, 0, 0)))
    assert torch.equal(read_mask(plain, classes=3, values=values)[0], indices(1, 0))
    with pytest.raises(DataError, match=r"2 colours in the mask .*#00ff00 35 %, #0000ff 30 %"):
        read_mask(save(tmp_path / "b.png", painted(RED, GREEN, BLUE)), classes=3, values=values)


def palette(path: Path, values: NDArray[np.uint8], *rgb: tuple[int, int, int]) -> Path:
    picture = Image.fromarray(values)
    picture.putpalette([part for colour in rgb for part in colour])
    picture.save(path)
    return path


def test_palettes_by_index_or_by_colour(tmp_path: Path) -> None:
    path = palette(tmp_path / "a.png", striped(0, 1, 2), (0, 0, 0), RED, GREEN)
    for told in ("0=0,1=2,2=1", "#000000=0,#ff0000=2,#00ff00=1", "0=0,#ff0000=2,2=1"):
        mask, _ = read_mask(path, classes=3, values=MaskValues.of(told, NAMES))
        assert torch.equal(mask, indices(0, 2, 1)), told
    with pytest.raises(DataError, match="means another class"):
        read_mask(path, classes=3, values=MaskValues.of("0=0,1=1,2=1,#ff0000=2", NAMES))


@pytest.mark.parametrize(
    "told",
    ["", "1", "=1", "1=", "a=1", "#ff=1", "1.5=1", "5-1=1", "0=0,0=1", "0-9=0,5=1",
     "#000000=0,#000000=1", "1=0;2=1"],
)  # fmt: skip
def test_maps_that_say_nothing_or_two_things(told: str) -> None:
    with pytest.raises((DataError, UnknownNameError)):
        MaskValues.of(told, NAMES)


def test_classes_that_do_not_exist() -> None:
    with pytest.raises(UnknownNameError, match="building"):
        MaskValues.of("1=bulding", NAMES)
    with pytest.raises(UnknownNameError):
        MaskValues.of("1=3", NAMES)
    with pytest.raises(DataError, match="more than one class"):
        MaskValues.of("7=1", ("1", "background"))
    with pytest.raises(DataError, match="called ignore"):
        MaskValues.of("7=ignore", ("ground", "ignore"))


def test_a_map_decides_what_nodata_is(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", striped(0, 1, 9), nodata=9)
    _, counts = read_mask(path, values=MaskValues.of("0=0,1=1", NAMES))
    assert torch.equal(counts, torch.from_numpy(striped(0, 1, 9) != 9))
    mask, counts = read_mask(path, values=MaskValues.of("0=0,1|9=1", NAMES))
    assert counts.all()
    assert torch.equal(mask, indices(0, 1, 1))


def test_a_folder_with_a_map(tmp_path: Path) -> None:
    root = tiles(tmp_path / "t", "images", "masks", {"a.png": ""})
    save(root / "masks" / "a.png", striped(1, 2))
    values = MaskValues.of("1=background,2=building", NAMES[:2])
    data = FolderDataset(root, values=values)
    assert torch.equal(data[0]["mask"], indices(0, 1))
    assert data.record()["mask_values"] == "1=background, 2=building"
    assert data.record()["reading"] == {"bands": None, "alpha": "auto", "divide_by": None}


# --- without a map --------------------------------------------------------------------------------
@pytest.mark.parametrize(("low", "high"), [(1, 2), (0, 100), (2, 7), (0, 128), (100, 200)])
def test_two_other_values_are_refused_with_both_readings(
    tmp_path: Path, low: int, high: int
) -> None:
    path = save(tmp_path / "a.png", striped(low, high))
    with pytest.raises(DataError) as got:
        read_mask(path, names=NAMES[:2])
    one = f"--mask-values {low}=background,{high}=building"
    two = f"--mask-values {low}=building,{high}=background"
    assert one in got.value.fix
    assert two in got.value.fix
    for option, wanted in ((one, indices(0, 1)), (two, indices(1, 0))):
        values = MaskValues.of(option.removeprefix("--mask-values "), NAMES[:2])
        assert torch.equal(read_mask(path, values=values)[0], wanted)
    with pytest.raises(DataError, match=f"{low}=0,{high}=1"):
        read_mask(path)


def test_colours_without_a_map_are_listed_with_their_shares(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", painted(RED, RED, WHITE, (0, 0, 0)))
    with pytest.raises(DataError) as got:
        read_mask(path, classes=3, names=NAMES)
    assert "#ff0000 50 %" in got.value.found
    assert "#000000 25 %" in got.value.found
    assert "#ff0000=CLASS" in got.value.fix
    assert "background, building, road or ignore" in got.value.fix
    many = save(tmp_path / "b.png", colours())
    with pytest.raises(DataError) as got:
        read_mask(many)
    assert got.value.found.count("#") == 12


@pytest.mark.parametrize("top", [1, 255])
@pytest.mark.parametrize("classes", [2, 4, 5])
def test_one_band_per_class(tmp_path: Path, top: int, classes: int) -> None:
    truth = striped(*range(classes))
    bands = np.stack([(truth == index) * top for index in range(classes)]).astype(np.uint8)
    whole = save_tiff(tmp_path / "whole.tif", bands)
    assert torch.equal(read_mask(whole, classes=classes)[0], indices(*range(classes)))
    if classes > 2 and not (classes == 4 and top == 255):
        without = save_tiff(tmp_path / "without.tif", bands[1:])
        assert torch.equal(read_mask(without, classes=classes)[0], indices(*range(classes)))
    # two bands in one pixel are no classes that exclude each other
    bands[:, 0, 0] = top
    with pytest.raises(DataError):
        read_mask(save_tiff(tmp_path / "both.tif", bands), classes=classes)
    with pytest.raises(DataError):
        read_mask(whole, classes=classes + 2)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_three_bands_of_0_and_1_are_classes_and_pure_colours_are_either(
    tmp_path: Path, name: str
) -> None:
    truth = striped(0, 1, 2)
    bands = np.stack([truth == index for index in range(3)]).astype(np.uint8)
    path = save(tmp_path / name, bands)
    assert torch.equal(read_mask(path, classes=3)[0], indices(0, 1, 2))
    path = save(tmp_path / name, bands * 255)
    with pytest.raises(DataError) as got:
        read_mask(path, classes=3, names=NAMES)
    [told] = re.findall(r"one band per class: --mask-values '([^']*)'", got.value.fix)
    assert told == "#ff0000=background,#00ff00=building,#0000ff=road"
    values = MaskValues.of(told, NAMES)
    assert torch.equal(read_mask(path, classes=3, values=values)[0], indices(0, 1, 2))


def test_a_mask_with_transparency_keeps_its_values(tmp_path: Path) -> None:
    grey = half().astype(np.uint8) * 255
    opaque = np.full_like(grey, 255)
    for name, bands in (("la.png", [grey, opaque]), ("rgba.png", [grey, grey, grey, opaque])):
        path = save(tmp_path / name, np.stack(bands))
        assert torch.equal(read_mask(path)[0], torch.from_numpy(half()).long())


def test_bands_that_differ_are_refused_in_any_number(tmp_path: Path) -> None:
    bands = np.zeros((5, H, W), np.uint8)
    bands[4, 0, 0] = 3
    with pytest.raises(DataError, match="bands that differ"):
        read_mask(save_tiff(tmp_path / "a.tif", bands), classes=9)
