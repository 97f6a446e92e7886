"""Layouts, readers and what they refuse: small files of every kind, good and bad."""

from __future__ import annotations

import contextlib
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor

from segproof import data
from segproof.data import FolderDataset, read_image, read_mask
from segproof.errors import DataError
from tile_files import (
    H,
    Server,
    W,
    colours,
    half,
    huge_tiff,
    raw_png,
    save,
    save_tiff,
    server,
    tiles,
    vrt,
    wms,
)

__all__ = ["server"]  # the fixture


def refused(path: Path, *words: str, mask: bool = False, **how: Any) -> DataError:
    """The error of reading `path`: three facts, the file's name and `words` in them."""
    with pytest.raises(DataError) as caught:
        read_mask(path, **how) if mask else read_image(path)
    error = caught.value
    assert all((error.found, error.expected, error.fix))
    for word in (path.name, *words):
        assert word in str(error)
    return error


def values_of(tensor: Tensor) -> list[int]:
    return sorted(set(tensor.flatten().tolist()))


# --- folders --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("layout", "images", "masks"),
    [("WHU", "image", "label"), ("Inria", "images", "gt"), ("plain", "images", "masks")],
)
def test_the_three_layouts_pair_by_stem(
    tmp_path: Path, layout: str, images: str, masks: str
) -> None:
    names = {"b.png": "b.tif", "a.jpg": "a.png", "10.tif": "10.png", "C.tiff": "C.png"}
    folder = FolderDataset(tiles(tmp_path / "t", images, masks, names))
    assert folder.layout == layout
    assert folder.ids == ["10", "C", "a", "b"]
    assert len(folder) == 4
    for position, (stem, seed) in enumerate((("10", 2), ("C", 3), ("a", 1), ("b", 0))):
        sample = folder[position]
        assert sample["id"] == stem
        assert sample["image"].shape == (3, H, W)
        assert sample["image"].dtype == torch.float32
        assert sample["mask"].dtype == torch.int64
        assert torch.equal(sample["mask"], torch.from_numpy(np.roll(half(), seed, 1)).long())
        assert sample["valid"].all()
        if stem != "a":  # JPEG is near, not equal
            expected = torch.from_numpy(colours(seed)).float() / 255
            assert torch.equal(sample["image"], expected)
    assert [sample["id"] for sample in folder] == folder.ids


def test_capital_suffixes_and_other_files(tmp_path: Path) -> None:
    root = tiles(tmp_path / "t", "image", "label", {"a.png": "a.png"})
    (root / "image" / "a.png").rename(root / "image" / "a.PNG")
    (root / "image" / "notes.txt").write_text("not a picture")
    (root / "image" / ".hidden.png").write_bytes(b"")
    (root / "label" / "unused.png").write_bytes(b"")
    folder = FolderDataset(root)
    assert folder.ids == ["a"]
    assert folder.unused_masks == ["unused"]


def test_missing_masks_are_named(tmp_path: Path) -> None:
    names = {f"{n}.png": "" for n in range(7)} | {"whole.png": "whole.png"}
    root = tiles(tmp_path / "t", "images", "gt", names)
    with pytest.raises(
        DataError, match=r"7 of 8 images without a mask: 0, 1, 2, 3, 4, \.\."
    ) as got:
        FolderDataset(root)
    assert str(root / "gt") in got.value.expected


def test_two_files_of_one_stem(tmp_path: Path) -> None:
    root = tiles(tmp_path / "t", "image", "label", {"a.png": "a.png"})
    save(root / "label" / "a.tif", half().astype(np.uint8))
    with pytest.raises(DataError, match=r"a\.png and a\.tif in .*one file per stem"):
        FolderDataset(root)


def test_no_images(tmp_path: Path) -> None:
    root = tiles(tmp_path / "t", "image", "label", {})
    with pytest.raises(DataError, match="no images in"):
        FolderDataset(root)


def test_unknown_layout_says_what_is_there_and_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError) as got:
        FolderDataset(tmp_path)
    assert "pictures inside" in got.value.found
    for folders in ("image/ + label/", "images/ + gt/", "images/ + masks/"):
        assert folders in got.value.expected
    with pytest.raises(DataError, match="nothing inside"):
        FolderDataset(tmp_path / "pictures")
    with pytest.raises(DataError, match="no folder"):
        FolderDataset(tmp_path / "nowhere")


def test_a_data_set_one_level_below_is_pointed_at(tmp_path: Path) -> None:
    tiles(tmp_path / "test", "image", "label", {"a.png": "a.png"})
    tiles(tmp_path / "train", "images", "gt", {"a.png": "a.png"})
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError) as got:
        FolderDataset(tmp_path)
    assert got.value.fix.endswith(f"{tmp_path / 'test'}, {tmp_path / 'train'}")


def test_sizes_that_differ(tmp_path: Path) -> None:
    root = tiles(tmp_path / "t", "image", "label", {"a.png": "a.png"})
    save(root / "label" / "a.png", np.zeros((H, W - 1), np.uint8))
    folder = FolderDataset(root)
    with pytest.raises(DataError, match=f"of {H} x {W - 1} pixels; expected {H} x {W}"):
        folder[0]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize(
    "stem", ["two words", "Dächer-Łódź-屋根", "a;b&c$(d)", "zip!x", "q?x=1", "#1%20", "-o", "a,b"]
)
def test_unusual_names_are_just_names(tmp_path: Path, stem: str, suffix: str) -> None:
    root = tiles(tmp_path / "a b é", "images", "masks", {stem + suffix: stem + ".tif"})
    sample = FolderDataset(root)[0]
    assert sample["id"] == stem
    assert sample["mask"].sum() == H * W // 2


def test_reading_changes_and_keeps_open_nothing(tmp_path: Path) -> None:
    root = tiles(tmp_path / "t", "images", "masks", {"a.png": "a.png", "b.tif": "b.tif"})
    before = {path: path.read_bytes() for path in root.rglob("*.*")}
    FolderDataset(root)[0]
    FolderDataset(root)[1]
    held = [link.resolve() for link in Path("/proc/self/fd").glob("*")]
    assert not [path for path in held if root in path.parents]
    assert {path: path.read_bytes() for path in root.rglob("*.*")} == before


# --- images ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_eight_bits_are_scaled(tmp_path: Path, name: str) -> None:
    bands = colours()
    bands[:, 0, :2] = [[0, 255]] * 3
    image = read_image(save(tmp_path / name, bands))["image"]
    assert torch.equal(image, torch.from_numpy(bands).float() / 255)
    assert image[:, 0, 0].max() == 0
    assert image[:, 0, 1].min() == 1


def test_jpeg_is_near(tmp_path: Path) -> None:
    bands = np.broadcast_to(np.arange(W, dtype=np.uint8) * 10, (3, H, W)).copy()
    image = read_image(save(tmp_path / "a.jpg", bands, quality=95))["image"]
    assert (image * 255 - torch.from_numpy(bands)).abs().max() < 8


def test_grey_and_palette_images(tmp_path: Path) -> None:
    grey = colours(bands=1)[0]
    assert torch.equal(
        read_image(save(tmp_path / "grey.png", grey))["image"], torch.from_numpy(grey)[None] / 255
    )
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 51])
    picture.save(tmp_path / "palette.png")
    image = read_image(tmp_path / "palette.png")["image"]
    assert (image[:, 0] * 255).T.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 51]]


def test_sixteen_bits_and_floats_keep_their_units(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 1000, 40000, 65535]], np.uint16)
    expected = torch.tensor([[[0.0, 255, 256, 1000, 40000, 65535]]])
    assert torch.equal(read_image(save(tmp_path / "a.png", values))["image"], expected)
    assert torch.equal(read_image(save(tmp_path / "a.tif", values))["image"], expected)
    metres = np.array([[-1.5, 0.25, 8848.0]], np.float32)
    assert read_image(save(tmp_path / "m.tif", metres))["image"].tolist() == [metres.tolist()]
    signed = np.array([[-300, 5]], np.int16)
    assert read_image(save(tmp_path / "s.tif", signed))["image"].tolist() == [[[-300, 5]]]


@pytest.mark.parametrize(("colour", "bands"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colour_in_a_png_is_refused(tmp_path: Path, colour: int, bands: int) -> None:
    """Pillow would keep the upper half of the bits and say nothing."""
    path = raw_png(tmp_path / "a.png", 2, 1, 16, colour, b"\0" + bytes(range(4 * bands)))
    refused(path, "16 bits per colour", "GeoTIFF")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_transparent_pixels_do_not_count(tmp_path: Path, name: str) -> None:
    alpha = np.where(half(), 0, 255).astype(np.uint8)
    how = {"photometric": "RGB", "alpha": "yes"} if name.endswith("tif") else {}
    path = save(tmp_path / name, np.concatenate([colours(), alpha[None]]), **how)
    sample = read_image(path)
    assert sample["image"].shape == (3, H, W)
    assert torch.equal(sample["valid"], torch.from_numpy(alpha > 0))
    expected = np.where(alpha > 0, colours(), 0)
    assert torch.equal(sample["image"], torch.from_numpy(expected) / 255)


def test_transparent_colours_of_a_png_do_not_count(tmp_path: Path) -> None:
    grey = colours(bands=1)[0]
    grey[:2] = 7
    grey[2:] = np.where(grey[2:] == 7, 8, grey[2:])
    clear = torch.from_numpy(grey == 7)
    Image.fromarray(grey).save(tmp_path / "grey.png", transparency=7)
    rgb = np.stack([grey] * 3, axis=2)
    Image.fromarray(rgb).save(tmp_path / "rgb.png", transparency=(7, 7, 7))
    palette = Image.fromarray(grey)
    palette.putpalette([value for value in range(256) for _ in range(3)])
    palette.save(tmp_path / "palette.png", transparency=7)
    for name, bands in (("grey", 1), ("rgb", 3), ("palette", 3)):
        sample = read_image(tmp_path / f"{name}.png")
        assert sample["image"].shape[0] == bands, name
        assert torch.equal(sample["valid"], ~clear), name
        assert torch.equal(sample["image"][0], torch.from_numpy(np.where(clear, 0, grey)) / 255), (
            name
        )


def test_nodata_nan_and_infinity_do_not_count(tmp_path: Path) -> None:
    values = np.linspace(1, 2, 3 * H * W, dtype=np.float32).reshape(3, H, W)
    values[:, 0, 0] = -9999
    values[1, 1, 1] = np.nan
    values[2, 2, 2] = np.inf
    sample = read_image(save(tmp_path / "a.tif", values, nodata=-9999))
    holes = [[0, 0], [1, 1], [2, 2]]
    assert (~sample["valid"]).nonzero().tolist() == holes
    assert torch.isfinite(sample["image"]).all()
    for row, column in holes:
        assert sample["image"][:, row, column].tolist() == [0, 0, 0]
    assert torch.equal(sample["image"][:, 3:], torch.from_numpy(values[:, 3:]))


def test_crs_and_transform_are_kept(tmp_path: Path) -> None:
    place = rasterio.Affine(0.3, 0.0, 500_000.0, 0.0, -0.3, 5_000_000.0)
    path = save(tmp_path / "a.tif", colours(), crs="EPSG:32633", transform=place)
    sample = read_image(path)
    assert sample["crs"].to_epsg() == 32633
    assert sample["transform"] == place
    plain = read_image(save(tmp_path / "plain.tif", colours()))  # and without a warning
    assert plain["crs"] is None
    assert "crs" not in read_image(save(tmp_path / "a.png", colours()))


def test_complex_pixels_are_refused(tmp_path: Path) -> None:
    refused(save(tmp_path / "a.tif", np.ones((H, W), np.complex64)), "complex64")


# --- files that are not what they seem ------------------------------------------------------------
def test_a_png_named_tif_and_a_tiff_named_png_are_read_as_what_they_are(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", colours()).rename(tmp_path / "really-tiff.png")
    save(tmp_path / "b.png", colours()).rename(tmp_path / "really-png.tif")
    expected = torch.from_numpy(colours()) / 255
    assert torch.equal(read_image(tmp_path / "really-tiff.png")["image"], expected)
    assert torch.equal(read_image(tmp_path / "really-png.tif")["image"], expected)


@pytest.mark.parametrize(
    "content", [b"", b"II", b"hello", b"GIF89a" + b"\0" * 40, b"BM" + b"\0" * 60, b"%!PS-Adobe"]
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_empty_and_foreign_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "an empty file" if not content else repr(content[:8]))
    refused(tmp_path / name, mask=True)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_folder_and_a_missing_file(tmp_path: Path, name: str) -> None:
    refused(tmp_path / name, "no file")
    (tmp_path / name).mkdir()
    refused(tmp_path / name, "no file")
    refused(tmp_path / name, mask=True)


@pytest.mark.parametrize(
    "name", ["/vsicurl/http://127.0.0.1/a.tif", "http://127.0.0.1/a.tif", "GTIFF_DIR:1:a.tif"]
)
def test_names_that_lead_elsewhere_are_no_files(name: str) -> None:
    with pytest.raises(DataError, match="no file"):
        read_image(name)


def test_texts_named_tif_open_no_other_file_and_no_address(tmp_path: Path, server: Server) -> None:
    secret = save(tmp_path / "secret.tif", half().astype(np.uint8) * 255)
    for n, text in enumerate((vrt(str(secret)), vrt(f"/vsicurl/{server.url}/x"), wms(server.url))):
        for name in (f"{n}.tif", f"{n}.png"):
            (tmp_path / name).write_text(text)
            refused(tmp_path / name, "begins with")
            refused(tmp_path / name, mask=True)
            # and behind the first check, the driver is named
            with pytest.raises(DataError, match="a TIFF that cannot be read"):
                data.rasters._read_tiff(tmp_path / name)
    assert server.asked == []


@pytest.mark.parametrize("beside", [".msk", ".MSK", ".ovr", ".aux.xml"])
def test_files_beside_a_tiff_lead_nowhere(tmp_path: Path, server: Server, beside: str) -> None:
    """GDAL opens TILE.tif.msk with any driver: a VRT text there leads to files and addresses."""
    path = save(tmp_path / "a.tif", colours())
    secret = save(tmp_path / "secret.tif", half().astype(np.uint8) * 255)
    pam = '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{}</MDI></Metadata>'
    for source in (str(secret), f"/vsicurl/{server.url}/x.tif"):
        text = pam.format(source) + "</PAMDataset>" if beside == ".aux.xml" else vrt(source)
        (tmp_path / f"a.tif{beside}").write_text(text)
        sample = read_image(path)
        assert sample["valid"].all()
        assert torch.equal(sample["image"], torch.from_numpy(colours()) / 255)
    assert server.asked == []


# --- damaged files --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.png", {}),
        ("a.jpg", {"quality": 60}),
        ("a.tif", {}),
        ("deflate.tif", {"compress": "deflate"}),
        ("lzw-tiled.tif", {"compress": "lzw", "tiled": True, "blockxsize": 16, "blockysize": 16}),
    ],
)
def test_cut_files_are_refused_or_whole(tmp_path: Path, name: str, how: dict[str, Any]) -> None:
    """Wherever a file ends: an error, or exactly the picture. Never zeros in place of pixels."""
    path = save(tmp_path / name, colours(), **how)
    whole, content = read_image(path)["image"], path.read_bytes()
    cut = path.with_name(f"cut{path.suffix}")
    cuts = sorted({*range(0, len(content), 23), len(content) // 2, len(content) - 1})
    refusals = 0
    for length in cuts:
        cut.write_bytes(content[:length])
        try:
            image = read_image(cut)["image"]
        except DataError:
            refusals += 1
        else:
            assert torch.equal(image, whole), length
    assert refusals >= 0.9 * len(cuts)
    cut.write_bytes(content[: len(content) // 2])
    refused(cut, "damaged" if path.suffix != ".tif" else "cannot be read")
    refused(cut, mask=True)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    names = ("a.png", "a.jpg", "a.tif", "b.tif")
    return {
        name: save(
            folder / name, colours(), **({"compress": "deflate"} if name == "b.tif" else {})
        ).read_bytes()
        for name in names
    }


@settings(max_examples=120)
@given(
    name=st.sampled_from(["a.png", "a.jpg", "a.tif", "b.tif"]),
    changes=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_bytes_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory,
    whole_files: dict[str, bytes],
    name: str,
    changes: list[tuple[int, int]],
) -> None:
    content = bytearray(whole_files[name])
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    path.write_bytes(bytes(content))
    for read in (read_image, read_mask):
        with contextlib.suppress(DataError):
            read(path)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("kind", ["png", "smaller png", "tif", "sparse tif"])
def test_files_that_declare_a_huge_picture_are_refused_before_reading(
    tmp_path: Path, kind: str, mask: bool
) -> None:
    side = 200_000
    if kind == "png":
        path = raw_png(tmp_path / "a.png", side, side, 8, 2, b"\0" * 100)
    elif kind == "smaller png":  # under Pillow's own limit, over ours
        path = raw_png(tmp_path / "a.png", 10_000, 10_000, 8, 2, b"\0" * 100)
    elif kind == "tif":
        path = huge_tiff(tmp_path / "a.tif", side)
    else:
        path = tmp_path / "b.tif"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            size = {"count": 1, "height": 60_000, "width": 60_000, "dtype": "uint8"}
            rasterio.open(path, "w", driver="GTiff", tiled=True, sparse_ok=True, **size).close()
    assert path.stat().st_size < 10e6
    tracemalloc.start()
    refused(path, "at most 1 GiB", mask=mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


# --- masks ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_binary_masks_of_0_and_255(tmp_path: Path, name: str) -> None:
    mask, counts = read_mask(save(tmp_path / name, half().astype(np.uint8) * 255))
    assert mask.dtype == torch.int64
    assert torch.equal(mask, torch.from_numpy(half()).long())
    assert counts.dtype == torch.bool
    assert counts.all()
    for value, wanted in ((0, 0), (255, 1)):  # a tile without roofs, a tile of roof only
        whole, _ = read_mask(save(tmp_path / name, np.full((H, W), value, np.uint8)))
        assert values_of(whole) == [wanted]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_class_indices(tmp_path: Path, dtype: type[Any]) -> None:
    values = np.arange(H * W).reshape(H, W) % 5
    path = save(tmp_path / "a.tif", values.astype(dtype))
    mask, counts = read_mask(path, classes=5)
    assert torch.equal(mask, torch.from_numpy(values).long())
    assert counts.all()
    error = refused(path, "5 values (0, 1, 2, 3, 4)", mask=True, classes=4)
    assert error.expected == "class indices 0..3"
    # of three classes and more 255 is none: a forgotten void must not become class 1
    void = save(tmp_path / "void.png", ((values == 1) * 255).astype(np.uint8))
    assert read_mask(void)[0].sum() == (values == 1).sum()
    refused(void, "2 values (0, 255)", mask=True, classes=5)
    assert not read_mask(void, classes=5, ignore_index=255)[0].any()
    binary, _ = read_mask(save(tmp_path / "b.tif", half().astype(dtype)))
    assert torch.equal(binary, torch.from_numpy(half()).long())


def test_one_bit_masks(tmp_path: Path) -> None:
    Image.fromarray(half()).save(tmp_path / "a.png")
    assert torch.equal(read_mask(tmp_path / "a.png")[0], torch.from_numpy(half()).long())


def test_negative_and_fractional_classes(tmp_path: Path) -> None:
    refused(save(tmp_path / "a.tif", half().astype(np.int16) * -1), "-1", mask=True)
    soft = save(tmp_path / "b.tif", half().astype(np.float32) * 0.5)
    refused(soft, "fractions", mask=True)


def test_a_jpeg_mask_has_dozens_of_values(tmp_path: Path) -> None:
    edges = np.random.default_rng(0).random((H, W)) > 0.5
    path = save(tmp_path / "a.jpg", edges.astype(np.uint8) * 255, quality=75)
    error = refused(path, ", ...)", "PNG", "JPEG", mask=True)
    assert int(error.found.split()[0]) > 24
    few = save(tmp_path / "b.jpg", half().astype(np.uint8) * 250)  # fewer values, the same advice
    assert "JPEG" in refused(few, mask=True).fix
    clean = save(tmp_path / "c.jpg", np.full((16, 16), 255, np.uint8))
    assert values_of(read_mask(clean)[0]) == [1]


def test_palette_masks_keep_their_indices(tmp_path: Path) -> None:
    values = (np.arange(H * W).reshape(H, W) % 3).astype(np.uint8)
    picture = Image.fromarray(values)
    picture.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "clear.png", transparency=0)
    for name in ("a.png", "clear.png"):
        mask, counts = read_mask(tmp_path / name, classes=3)
        assert torch.equal(mask, torch.from_numpy(values).long())
        assert counts.all()


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_colour_masks_need_equal_bands(tmp_path: Path, name: str) -> None:
    grey = half().astype(np.uint8) * 255
    mask, _ = read_mask(save(tmp_path / name, np.stack([grey] * 3)))
    assert torch.equal(mask, torch.from_numpy(half()).long())
    coloured = np.stack([grey, grey, grey])
    coloured[2, -1, -1] = 1
    refused(save(tmp_path / name, coloured), "a mask with colours", mask=True)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_ignored_pixels_become_background_that_does_not_count(tmp_path: Path, name: str) -> None:
    values = np.ones((H, W), np.uint8)
    values[0], values[1] = 0, 255
    path = save(tmp_path / name, values)
    error = refused(path, "3 values (0, 1, 255)", "ignore_index", mask=True)
    assert "ignored" not in error.expected
    mask, counts = read_mask(path, ignore_index=255)
    assert (mask[:2] == 0).all()
    assert (mask[2:] == 1).all()
    assert values_of((~counts).nonzero()[:, 0]) == [1]
    refused(path, "and 9 (ignored)", mask=True, ignore_index=9)


def test_255_is_ignored_where_it_is_said_so_although_the_mask_looks_binary(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", half().astype(np.uint8) * 255)
    mask, counts = read_mask(path, ignore_index=255)
    assert mask.sum() == 0
    assert torch.equal(counts, torch.from_numpy(~half()))


def test_other_ignored_values(tmp_path: Path) -> None:
    values = np.where(half(), 11, 10).astype(np.uint8)
    mask, counts = read_mask(save(tmp_path / "a.png", values), classes=11, ignore_index=11)
    assert values_of(mask) == [0, 10]
    assert torch.equal(counts, torch.from_numpy(~half()))
    binary = np.where(half(), 255, 0).astype(np.uint8)
    binary[0] = 7
    mask, counts = read_mask(save(tmp_path / "b.png", binary), ignore_index=7)
    assert torch.equal(mask[1:], torch.from_numpy(half()[1:]).long())
    assert mask[0].sum() == 0
    assert not counts[0].any()


def test_nodata_of_image_and_mask_both_reach_valid(tmp_path: Path) -> None:
    root = tiles(tmp_path / "t", "images", "masks", {"a.tif": ""})
    bands = colours().astype(np.float32)
    bands[:, 0] = -1
    save(root / "images" / "a.tif", bands, nodata=-1)
    values = half().astype(np.uint8)
    values[1] = 99
    values[2] = 255
    save(root / "masks" / "a.tif", values, nodata=99)
    sample = FolderDataset(root, ignore_index=255)[0]
    assert (~sample["valid"]).all(dim=1).tolist() == [True, True, True] + [False] * (H - 3)
    assert sample["valid"][3:].all()
    assert torch.equal(sample["mask"][3:], torch.from_numpy(half()[3:]).long())
    assert (sample["mask"][1:3] == 0).all()


def test_real_tiles(shared: Path) -> None:
    whu = FolderDataset(shared / "whu" / "test")
    assert (whu.layout, len(whu)) == ("WHU", 8)
    assert "2_566" in whu.ids
    sample = whu[whu.ids.index("2_566")]
    assert sample["image"].shape == (3, 512, 512)
    assert values_of(sample["mask"]) == [0, 1]
    assert round(sample["mask"].float().mean().item(), 3) == 0.182  # the published share of roofs
    assert FolderDataset(shared / "inria" / "train").layout == "Inria"
    assert FolderDataset(shared / "banepa").layout == "plain"
    with pytest.raises(DataError, match="name one of the data sets inside"):
        FolderDataset(shared / "whu")
    streets = FolderDataset(shared / "camvid", classes=11, ignore_index=11)[0]
    assert streets["mask"].max() < 11


def test_nodata_of_a_mask_that_is_a_class_counts(tmp_path: Path) -> None:
    """Burned masks name 0 nodata: their background must stay background."""
    values = half().astype(np.uint8)[None]
    burned = save_tiff(tmp_path / "burned.tif", values, nodata=0)
    mask, counts = read_mask(burned)
    assert torch.equal(mask.bool(), torch.from_numpy(half()))
    assert bool(counts.all())
    values[0, 0, 0] = 9
    outside = save_tiff(tmp_path / "outside.tif", values, nodata=9)
    mask, counts = read_mask(outside)
    assert int((~counts).sum()) == 1
    assert not bool(counts[0, 0])


def test_nodata_in_one_band_is_a_pixel_and_in_all_bands_none(tmp_path: Path) -> None:
    """As GDAL's dataset mask: red (200, 0, 0) is a colour where 0 is nodata."""
    bands = np.ones((3, 4, 5), dtype=np.float32)
    bands[1, 2, 3] = -9999
    bands[:, 0, 0] = -9999
    path = save_tiff(tmp_path / "a.tif", bands, nodata=-9999, crs="EPSG:32633",
                     transform=rasterio.Affine(1.0, 0.0, 5.0, 0.0, -1.0, 5.0))  # fmt: skip
    sample = read_image(path)
    assert (~sample["valid"]).nonzero().tolist() == [[0, 0]]
    assert sample["image"][:, 2, 3].tolist() == [1, -9999, 1]
    with rasterio.open(path) as raster:
        assert np.array_equal(sample["valid"].numpy(), raster.dataset_mask() > 0)
