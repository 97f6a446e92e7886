"""Bands, transparency, nodata, units, orientation and sizes: what a network is shown of a file."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from segproof.data import (
    FolderDataset,
    Reading,
    as_sample,
    as_samples,
    expand_pictures,
    input_reading,
    read_image,
    read_mask,
)
from segproof.errors import DataError
from tile_files import H, W, colours, half, save, save_tiff

GRID: dict[str, Any] = {
    "crs": "EPSG:32633",
    "transform": rasterio.Affine(0.3, 0.0, 500_000.0, 0.0, -0.3, 5_000_000.0),
}
FOUR = np.concatenate([colours(), colours(9, 1)])
CLEAR = np.concatenate([colours(), half().astype(np.uint8)[None] * 255])


def scaled(bands: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(bands.astype(np.float32)) / 255


def dataset_mask(path: Path) -> NDArray[np.bool_]:
    with rasterio.open(path) as raster:
        return np.asarray(raster.dataset_mask() > 0)


# --- bands and transparency -----------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_the_networks_number_decides_what_a_fourth_band_is(tmp_path: Path, name: str) -> None:
    """Rasterio marks the fourth of four 8-bit bands as alpha, also where it is near infrared."""
    path = save(tmp_path / name, FOUR)
    sample = read_image(path, reading=Reading(wanted=4))
    assert torch.equal(sample["image"], scaled(FOUR))
    assert sample["valid"].all()
    with pytest.raises(DataError) as got:
        read_image(path, reading=Reading(wanted=3))
    assert "--bands 1,2,3" in got.value.fix
    assert "--alpha 4" in got.value.fix
    assert "4 alpha uint8 0 to 25" in got.value.found
    both = [Reading(bands=(1, 2, 3), wanted=3), Reading(alpha=4, wanted=3)]
    shown, clear = (read_image(path, reading=reading) for reading in both)
    assert torch.equal(shown["image"], scaled(FOUR[:3]))
    assert shown["valid"].all()
    assert torch.equal(clear["valid"], torch.from_numpy(FOUR[3] > 0))
    # with no network known, a band that holds measurements is a band
    assert read_image(path)["image"].shape[0] == 4


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_alpha_of_0_and_255_is_believed_unless_the_network_wants_it(
    tmp_path: Path, name: str
) -> None:
    path = save(tmp_path / name, CLEAR)
    for reading in (Reading(), Reading(wanted=3), Reading(bands=(3, 2, 1), wanted=3)):
        sample = read_image(path, reading=reading)
        assert sample["image"].shape[0] == 3
        assert torch.equal(sample["valid"], torch.from_numpy(half()))
    order = read_image(path, reading=Reading(bands=(3, 2, 1), alpha="none"))
    assert torch.equal(order["image"], scaled(CLEAR[[2, 1, 0]]))
    for reading in (Reading(wanted=4), Reading(alpha="none")):
        sample = read_image(path, reading=reading)
        assert torch.equal(sample["image"], scaled(CLEAR))
        assert sample["valid"].all()


@pytest.mark.parametrize(
    ("dtype", "top"), [(np.uint16, 65535), (np.int16, 32767), (np.float32, 1.0)]
)
def test_alpha_of_other_types(tmp_path: Path, dtype: type[Any], top: float) -> None:
    bands = np.ones((2, H, W), dtype)
    bands[1] = np.where(half(), 0, top)
    path = tmp_path / "a.tif"
    save_tiff(path, bands, **GRID)
    with rasterio.open(path, "r+") as raster:
        raster.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    assert torch.equal(read_image(path)["valid"], torch.from_numpy(~half()))
    assert read_image(path, reading=Reading(wanted=2))["image"].shape[0] == 2


def test_grey_with_alpha(tmp_path: Path) -> None:
    Image.fromarray(np.moveaxis(CLEAR[2:], 0, 2)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", reading=Reading(wanted=1))["image"].shape[0] == 1
    assert read_image(tmp_path / "a.png", reading=Reading(wanted=2))["image"].shape[0] == 2


def test_bands_that_do_not_fit_are_refused_with_the_option(tmp_path: Path) -> None:
    eight = save_tiff(tmp_path / "eight.tif", np.ones((8, 4, 4), np.uint16))
    with pytest.raises(DataError, match="--bands 1,2,3"):
        read_image(eight, reading=Reading(wanted=3))
    chosen = read_image(eight, reading=Reading(bands=(5, 3, 2), wanted=3))
    assert chosen["image"].shape[0] == 3
    with pytest.raises(DataError, match=r"no band 9 in .*; expected numbers from 1 to 8"):
        read_image(eight, reading=Reading(bands=(1, 2, 9)))
    with pytest.raises(DataError, match="no band 9"):
        read_image(eight, reading=Reading(alpha=9))
    grey = save(tmp_path / "grey.png", colours(bands=1)[0])
    with pytest.raises(DataError, match="--bands 1,1,1"):
        read_image(grey, reading=Reading(wanted=3))
    thrice = read_image(grey, reading=Reading(bands=(1, 1, 1), wanted=3))["image"]
    assert torch.equal(thrice[0], thrice[2])
    with pytest.raises(DataError, match="expected 4, as the network"):
        read_image(save(tmp_path / "rgb.png", colours()), reading=Reading(wanted=4))


@pytest.mark.parametrize(
    "how",
    [
        {"bands": ()},
        {"bands": (0, 1)},
        {"alpha": "yes"},
        {"alpha": 0},
        {"bands": (1, 4), "alpha": 4},
        {"divide_by": 0},
        {"divide_by": float("nan")},
        {"wanted": 0},
    ],
)
def test_settings_that_no_file_has(how: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Reading(**how)


# --- valid pixels ---------------------------------------------------------------------------------
@pytest.mark.parametrize("nodata", [0, 255, 7])
def test_nodata_is_where_all_bands_are(tmp_path: Path, nodata: int) -> None:
    bands = np.full((3, H, W), 100, np.uint8)
    bands[:, 0, 0] = nodata
    bands[1:, 1, 1] = nodata
    bands[0, 2, 2] = nodata
    path = save_tiff(tmp_path / "a.tif", bands, nodata=nodata, **GRID)
    sample = read_image(path)
    assert (~sample["valid"]).nonzero().tolist() == [[0, 0]]
    assert np.array_equal(sample["valid"].numpy(), dataset_mask(path))
    assert torch.equal(sample["image"][:, 1, 1], scaled(bands[:, 1, 1]))
    # over the bands that are used: the two others are nodata at (1, 1)
    two = read_image(path, reading=Reading(bands=(2, 3)))
    assert (~two["valid"]).nonzero().tolist() == [[0, 0], [1, 1]]


def test_a_mask_inside_the_file_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", count=3, height=H, width=W, dtype="uint8", **GRID
        ) as raster,
    ):
        raster.write(colours())
        raster.write_mask(half())
    sample = read_image(path)
    assert torch.equal(sample["valid"], torch.from_numpy(half()))
    assert np.array_equal(sample["valid"].numpy(), dataset_mask(path))


def test_nan_in_a_band_that_is_not_used_does_not_matter(tmp_path: Path) -> None:
    bands = np.ones((2, H, W), np.float32)
    bands[1, 0, 0] = np.nan
    path = save_tiff(tmp_path / "a.tif", bands)
    assert not read_image(path)["valid"][0, 0]
    assert read_image(path, reading=Reading(bands=(1,)))["valid"].all()


def test_nodata_that_the_type_rounds(tmp_path: Path) -> None:
    bands = np.full((1, H, W), 0.5, np.float32)
    bands[0, 0, 0] = np.float32(-3.4028235e38)
    bands[0, 1, 1] = np.float32(0.1)
    for nodata, hole in ((-3.4028234663852886e38, [0, 0]), (0.1, [1, 1])):
        path = save_tiff(tmp_path / "a.tif", bands, nodata=nodata)
        assert (~read_image(path)["valid"]).nonzero().tolist() == [hole]


# --- units ----------------------------------------------------------------------------------------
def test_units_by_option_by_metadata_and_by_type(tmp_path: Path) -> None:
    values = np.array([[[0, 1000, 10_000]], [[1, 2, 3]]], np.uint16)
    path = save_tiff(tmp_path / "a.tif", values, **GRID)
    assert read_image(path)["image"].tolist() == values.tolist()
    divided = read_image(path, reading=Reading(divide_by=10_000))["image"]
    assert divided[0, 0].tolist() == pytest.approx([0, 0.1, 1])
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = (0.0001, 2.0), (-0.1, 5.0)
    own = read_image(path)["image"]
    assert own[0, 0].tolist() == pytest.approx([-0.1, 0, 0.9], abs=1e-7)
    assert own[1, 0].tolist() == [7, 9, 11]
    # the option wins over the file
    assert torch.equal(read_image(path, reading=Reading(divide_by=10_000))["image"], divided)
    eight = save(tmp_path / "b.png", colours())
    assert torch.equal(
        read_image(eight, reading=Reading(divide_by=1))["image"], scaled(colours()) * 255
    )


def test_a_scale_of_zero_is_refused(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", colours(), **GRID)
    with rasterio.open(path, "r+") as raster:
        raster.scales = (0.0, 1.0, 1.0)
    with pytest.raises(DataError, match="scale of 0"):
        read_image(path)


@pytest.mark.parametrize(
    ("told", "number"),
    [
        (None, None),
        ("uint8 scaled to [0, 1]", None),
        ("as stored", 1.0),
        ("divided by 10000", 10_000.0),
        ("Divided by 2.5e3", 2500.0),
        ({"divide_by": 255}, 255.0),
    ],
)
def test_what_a_networks_settings_say_of_units(told: Any, number: float | None) -> None:
    assert input_reading(told) == number


@pytest.mark.parametrize(
    "told",
    ["normalised", "divided by 0", "divided by", "divided by 1e999", {"divide_by": 10**400},
     {"divide_by": -1}, {"divide_by": True}, {"divide": 2}, 3, ["as stored"], "divided by 1.2.3"],
)  # fmt: skip
def test_other_texts_are_refused_with_those_that_are_understood(told: Any) -> None:
    with pytest.raises(DataError, match='"as stored"'):
        input_reading(told)


# --- orientation, frames, pages -------------------------------------------------------------------
def turned(bands: NDArray[Any], orientation: int) -> NDArray[Any]:
    """What EXIF 2.3 says of each tag, as flips and quarter turns of [B, H, W]."""
    flipped = bands[..., ::-1] if orientation in (2, 4, 5, 7) else bands
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: -1, 7: -1, 8: 1}[orientation]
    return np.rot90(flipped, turns, axes=(1, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_orientation_is_applied_to_picture_and_mask(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    grey = np.add.outer(np.arange(16), 6 * np.arange(24)).astype(np.uint8)
    how: dict[str, Any] = {"exif": exif} if suffix != ".tif" else {"tiffinfo": {274: orientation}}
    picture = Image.fromarray(grey)
    picture.save(tmp_path / f"a{suffix}", **how)
    image = read_image(tmp_path / f"a{suffix}")["image"]
    expected = turned(grey[None], orientation)
    assert image.shape == expected.shape
    assert float((image - scaled(expected.copy())).abs().max()) < (
        0.03 if suffix == ".jpg" else 1e-6
    )
    if suffix == ".png":
        upright = (grey > 40).astype(np.uint8)
        Image.fromarray(upright).save(tmp_path / "mask.png", **how)
        mask, _ = read_mask(tmp_path / "mask.png")
        assert np.array_equal(mask.numpy(), turned(upright[None], orientation)[0])


def test_a_turned_picture_and_its_upright_mask_pair(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.moveaxis(colours(), 0, 2)).save(tmp_path / "images" / "a.png", exif=exif)
    save(tmp_path / "masks" / "a.png", half().astype(np.uint8).T)
    assert FolderDataset(tmp_path)[0]["image"].shape == (3, W, H)
    save(tmp_path / "masks" / "a.png", half().astype(np.uint8))
    with pytest.raises(DataError, match=f"{H} x {W} pixels; expected {W} x {H}"):
        FolderDataset(tmp_path)[0]


def oriented(path: Path, number: int) -> Path:
    """Append a first directory with an orientation tag to a classic little-endian TIFF."""
    data = bytearray(path.read_bytes())
    [start] = struct.unpack_from("<I", data, 4)
    [count] = struct.unpack_from("<H", data, start)
    entries = [bytes(data[start + 2 + 12 * n : start + 14 + 12 * n]) for n in range(count)]
    entries.append(struct.pack("<HHIHH", 274, 3, 1, number, 0))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry)[0])
    data += b"\0" * (len(data) % 2)
    struct.pack_into("<I", data, 4, len(data))
    data += struct.pack("<H", count + 1) + b"".join(entries) + b"\0\0\0\0"
    path.write_bytes(bytes(data))
    return path


def test_a_geotiff_with_another_orientation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="orientation 6"):
        read_image(oriented(save_tiff(tmp_path / "a.tif", colours(), **GRID), 6))
    assert read_image(oriented(save_tiff(tmp_path / "b.tif", colours(), **GRID), 1))["image"].any()
    with pytest.raises(DataError, match="number from 1 to 8"):
        read_image(oriented(save_tiff(tmp_path / "c.tif", colours()), 11))


def test_several_frames_and_pages_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(colours(n, 1)[0]) for n in range(3)]
    pages[0].save(tmp_path / "a.png", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    for name, word in (("a.png", "animated PNG of 3 frames"), ("a.tif", "TIFF of 3 pages")):
        for read in (read_image, read_mask):
            with pytest.raises(DataError, match=word):
                read(tmp_path / name)


def test_overviews_and_masks_inside_are_no_pages(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", np.tile(colours(), (1, 40, 40)), **GRID)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as raster:
        raster.build_overviews([2, 4])
        raster.write_mask(np.ones(raster.shape, bool))
    assert read_image(path)["valid"].all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_palette_pictures_are_their_colours(tmp_path: Path, suffix: str) -> None:
    table = {0: (9, 8, 7), 1: (255, 0, 0), 2: (0, 51, 0)}
    index = (np.arange(H * W).reshape(H, W) % 3).astype(np.uint8)
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        picture = Image.fromarray(index)
        picture.putpalette([part for colour in table.values() for part in colour])
        picture.save(path)
    else:
        save_tiff(path, index, photometric="palette", nodata=1, **GRID)
        with rasterio.open(path, "r+") as raster:
            raster.write_colormap(1, table)
    sample = read_image(path, reading=Reading(wanted=3))
    colour = np.array(list(table.values()), np.uint8)[index]
    valid = sample["valid"].numpy()
    assert np.array_equal(valid, index != 1 if suffix == ".tif" else index < 3)
    assert torch.equal(sample["image"], scaled(np.moveaxis(colour * valid[..., None], 2, 0)))
    assert read_mask(path, classes=3)[0].max() == 2


def test_a_tiff_in_which_0_is_white_is_refused(tmp_path: Path) -> None:
    """A mask would be read with its classes exchanged."""
    path = save_tiff(tmp_path / "a.tif", half().astype(np.uint8) * 255, photometric="MINISWHITE")
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match="0 is white"):
            read(path)


# --- sizes ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "word"),
    [
        ({"count": 1, "height": 16_384, "width": 16_384, "dtype": "float64"}, "at most 1 GiB"),
        ({"count": 3, "height": 9_000, "width": 9_000, "dtype": "uint16"}, "at most 1 GiB"),
        ({"count": 65_535, "height": 1, "width": 1, "dtype": "uint8"}, "at most 1024"),
    ],
)
def test_bytes_are_counted_by_type_and_copies(
    tmp_path: Path, size: dict[str, Any], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        rasterio.open(path, "w", driver="GTiff", tiled=True, sparse_ok=True, **size).close()
    monkeypatch.setattr(rasterio.DatasetReader, "read", lambda *_, **__: pytest.fail("was read"))
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=word):
            read(path)


# --- pictures in hand -----------------------------------------------------------------------------
def test_a_picture_in_hand_is_what_its_file_is(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", colours())
    wanted = scaled(colours())
    array = np.moveaxis(colours(), 0, 2)
    for given in (path, str(path), Image.open(path), array, colours(), wanted, wanted[None],
                  wanted.double(), {"image": wanted, "crs": None, "bbox": (0, 1)},
                  read_image(path), {"image": array}):  # fmt: skip
        sample = as_sample(given)
        assert torch.equal(sample["image"], wanted)
        assert sample["valid"].all()
    grey = as_sample(colours(bands=1)[0])
    assert grey["image"].shape == (1, H, W)
    sixteen = as_sample(colours().astype(np.uint16))["image"]
    assert torch.equal(sixteen, wanted * 255)


def test_a_batch_is_several_pictures() -> None:
    batch = torch.rand(3, 4, H, W)
    masks = torch.ones(3, H, W, dtype=torch.long)
    samples = as_samples({"image": batch, "mask": masks})
    assert torch.equal(torch.stack([sample["image"] for sample in samples]), batch)
    assert samples[2]["mask"].shape == (H, W)
    with pytest.raises(DataError, match="3 pictures"):
        as_sample(batch)
    assert len(as_samples(np.zeros((2, H, W, 3), np.uint8))) == 2


def test_masks_and_valid_pixels_of_a_dict_are_kept() -> None:
    image = torch.rand(3, H, W)
    image[0, 0, 0] = torch.nan
    valid = torch.ones(H, W, dtype=torch.bool)
    valid[1, 1] = False
    sample = as_sample({"image": image, "mask": torch.ones(1, H, W), "valid": valid, "id": "t7"})
    assert (~sample["valid"]).nonzero().tolist() == [[0, 0], [1, 1]]
    assert sample["mask"].dtype == torch.int64
    assert sample["id"] == "t7"
    assert image[0, 0, 0].isnan()  # the caller's own tensor is untouched
    with pytest.raises(DataError, match="a mask of shape"):
        as_sample({"image": image, "mask": torch.ones(2, 2)})


@pytest.mark.parametrize(
    ("dtype", "top", "factor"),
    [(torch.uint8, 255, 255), (torch.int64, 255, 255), (torch.int32, 1815, 10_000),
     (torch.int32, 65_535, 65_535)],
)  # fmt: skip
def test_integer_tensors_are_refused_with_the_factor(
    dtype: torch.dtype, top: int, factor: int
) -> None:
    picture = torch.full((3, H, W), top, dtype=dtype)
    with pytest.raises(DataError, match=rf"divide by {factor} "):
        as_sample(picture)
    shown = as_sample(picture, reading=Reading(divide_by=factor))["image"]
    assert float(shown.max()) == pytest.approx(top / factor)


@pytest.mark.parametrize("shape", [(4, 300, 3), (64, 64, 64), (3, 3, 3), (300, 3, 300)])
def test_axes_that_can_be_read_in_two_ways(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"first axis .* last one"):
        as_sample(np.zeros(shape, np.uint8))


def test_the_networks_bands_decide_the_axis() -> None:
    assert as_sample(np.zeros((4, 5, 3)), reading=Reading(wanted=3))["image"].shape == (3, 4, 5)
    assert as_sample(np.zeros((4, 5, 3)), reading=Reading(wanted=4))["image"].shape == (4, 5, 3)
    many = as_sample(np.zeros((64, 64, 32)), reading=Reading(wanted=32))
    assert many["image"].shape == (32, 64, 64)
    with pytest.raises(DataError, match="3 as the network"):
        as_sample(np.zeros((3, 9, 3)), reading=Reading(wanted=3))
    with pytest.raises(DataError, match="--bands 1,2,3"):
        as_sample(np.zeros((64, 64, 4)), reading=Reading(wanted=3))


@pytest.mark.parametrize("given", [3, None, [1, 2], {"mask": 1}, {}, np.array(["a"]),
                                   np.zeros(5), torch.zeros(5), np.zeros((0, 3, 3))])  # fmt: skip
def test_what_is_no_picture(given: Any) -> None:
    with pytest.raises(DataError):
        as_sample(given)


def test_paths_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.tif", "b/notes.txt", "b/deep/3.jpg", "a[1].png", ".hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    one = tmp_path / "a[1].png"
    assert expand_pictures([one, tmp_path / "b", one]) == [
        one, tmp_path / "b" / "1.tif", tmp_path / "b" / "2.png",
    ]  # fmt: skip
    assert [p.name for p in expand_pictures([f"{tmp_path}/**/*.*"])] == [
        "a[1].png", "1.tif", "2.png", "3.jpg",
    ]  # fmt: skip
    for nothing in (["nowhere.png"], [f"{tmp_path}/*.tif"], [tmp_path / "b" / "none"], []):
        with pytest.raises(DataError):
            expand_pictures(nothing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in"):
        expand_pictures([tmp_path / "empty"])
