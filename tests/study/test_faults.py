"""Bad files among good ones: each ends with a reason that names what is wrong, the others with a
result, and `check` finds the bad ones before any work.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image

import tiny
from segproof import DataError, FolderDataset, Study
from segproof.cli import app as cli
from segproof.data import survey
from segproof.study.survey import check
from tile_files import huge_tiff, raw_png, save, save_tiff, vrt

S = tiny.SIDE
GRID = rasterio.Affine(0.3, 0.0, 500_000.0, 0.0, -0.3, 5_000_000.0)
TURNED = rasterio.Affine(0.28, 0.1, 500_000.0, 0.1, -0.28, 5_000_000.0)
PLACE: dict[str, Any] = {"crs": "EPSG:32633", "transform": GRID}


def picture() -> NDArray[np.uint8]:
    """[B, H, W], a bright roof on dark ground."""
    image = np.random.default_rng(3).integers(0, 80, (3, S, S), dtype=np.uint8)
    image[:, 5:20, 5:20] = 220
    return image


def roof() -> NDArray[np.uint8]:
    mask = np.zeros((S, S), np.uint8)
    mask[5:20, 5:20] = 255
    return mask


# writes what is wrong with an image or its mask; the suffix is its own
Make = Callable[[Path, Path], object]


def image(suffix: str, bands: NDArray[Any], **how: Any) -> Make:
    return lambda at, _: save(at.with_suffix(suffix), bands, **how)


def mask(suffix: str, values: NDArray[Any], **how: Any) -> Make:
    return lambda _, at: save(at.with_suffix(suffix), values, **how)


def cut(suffix: str, share: float, *, of_mask: bool = False, **how: Any) -> Make:
    def make(at: Path, beside: Path) -> None:
        path = (beside if of_mask else at).with_suffix(suffix)
        save(path, roof() if of_mask else picture(), **how)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return make


def content(name: str, data: bytes, *, of_mask: bool = False) -> Make:
    return lambda at, beside: (beside if of_mask else at).with_suffix(name).write_bytes(data)


def placed(**of_mask: Any) -> Make:
    def make(at: Path, beside: Path) -> None:
        save_tiff(at.with_suffix(".tif"), picture(), **PLACE)
        save_tiff(beside.with_suffix(".tif"), roof(), **(PLACE | of_mask))

    return make


def flipped(at: Path, _: Path) -> None:
    path = save(at.with_suffix(".png"), picture())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def palette_mask(_: Path, at: Path) -> None:
    made = Image.fromarray((np.arange(S * S).reshape(S, S) % 6).astype(np.uint8))
    made.putpalette([value for n in range(6) for value in (40 * n, 0, 0)])
    made.save(at.with_suffix(".png"))


def sparse(at: Path, _: Path) -> None:
    size = {"count": 1, "height": 60_000, "width": 60_000, "dtype": "uint8"}
    rasterio.open(
        at.with_suffix(".tif"), "w", driver="GTiff", tiled=True, sparse_ok=True, **size, **PLACE
    ).close()


def as_pixels(at: Path, _: Path) -> None:
    bands = (picture().astype(np.float32) - 0.5) * 1e6
    save_tiff(at.with_suffix(".tif"), bands)


BAD: dict[str, tuple[Make, str]] = {
    "cut-png": (cut(".png", 0.5), "damaged"),
    "cut-jpg": (cut(".jpg", 0.5), "damaged"),
    "cut-tif": (cut(".tif", 0.5), "cannot be read"),
    "cut-deflate": (cut(".tif", 0.6, compress="deflate"), "cannot be read"),
    "cut-head": (content(".png", b"\x89PNG\r\n\x1a\n\0\0"), "damaged"),
    "flipped-bits": (flipped, "damaged"),
    "empty-png": (content(".png", b""), "an empty file"),
    "empty-tif": (content(".tif", b""), "an empty file"),
    "text": (content(".png", b"hello"), "begins with b'hello'"),
    "gif": (content(".png", b"GIF89a" + b"\0" * 40), "begins with b'GIF89a"),
    "bmp": (content(".jpg", b"BM" + b"\0" * 60), "begins with b'BM"),
    "vrt": (content(".tif", vrt("/etc/hostname").encode()), "begins with b'<VRTData"),
    "zip": (content(".tif", b"PK\x03\x04" + b"\0" * 60), "begins with b'PK"),
    "smaller-mask": (mask(".png", roof()[:-1]), f"{S - 1} x {S} pixels; expected {S} x {S}"),
    "larger-mask": (mask(".tif", np.zeros((2 * S, S), np.uint8)), f"{2 * S} x {S} pixels"),
    "16-bit-colour": (
        lambda at, _: raw_png(at.with_suffix(".png"), S, S, 16, 2, (b"\0" + b"\1" * 6 * S) * S),
        "16 bits per colour",
    ),
    "16-bit-alpha": (
        lambda at, _: raw_png(at.with_suffix(".png"), S, S, 16, 6, (b"\0" + b"\1" * 8 * S) * S),
        "16 bits per colour",
    ),
    "16-bit-tif": (image(".tif", picture().astype(np.uint16) * 257), "deviations from the mean"),
    "float-tif": (as_pixels, "deviations from the mean"),
    "16-bit-grey": (image(".png", picture()[0].astype(np.uint16) * 200), "1 bands"),
    "grey": (image(".png", picture()[0]), "1 bands"),
    "four-bands": (
        image(".tif", np.concatenate([picture(), picture()[:1]]), photometric="MINISBLACK"),
        "4 bands",
    ),
    "complex": (image(".tif", np.ones((3, S, S), np.complex64)), "complex64"),
    "palette-mask": (palette_mask, "6 values (0, 1, 2, 3, 4, 5)"),
    "jpeg-mask": (
        mask(".jpg", np.random.default_rng(0).integers(0, 2, (S, S), np.uint8) * 255),
        "JPEG",
    ),
    "unknown-value": (mask(".png", np.where(roof() > 0, 127, 0).astype(np.uint8)), "(0, 127)"),
    "third-value": (mask(".png", np.minimum(roof(), 7)), "7)"),
    "negative": (mask(".tif", -(roof() > 0).astype(np.int16)), "(-1, 0)"),
    "fractions": (mask(".tif", (roof() / 510).astype(np.float32)), "fractions"),
    "colours": (mask(".png", picture()), "a mask with colours"),
    "cut-mask": (cut(".png", 0.6, of_mask=True), "damaged"),
    "empty-mask": (content(".png", b"", of_mask=True), "an empty file"),
    "other-crs": (placed(crs="EPSG:32634"), "EPSG:32634"),
    "rotated": (placed(transform=TURNED), "moved, scaled, rotated"),
    "moved": (placed(transform=rasterio.Affine(0.3, 0, 500_000.9, 0, -0.3, 5e6)), "up to 3.0 px"),
    "png-bomb": (
        lambda at, _: raw_png(at.with_suffix(".png"), 200_000, 200_000, 8, 2, b"\0" * 100),
        "at most 1 GiB",
    ),
    "tif-bomb": (lambda at, _: huge_tiff(at.with_suffix(".tif"), 200_000), "at most 1 GiB"),
    "mask-bomb": (lambda _, at: huge_tiff(at.with_suffix(".tif"), 200_000), "at most 1 GiB"),
    "sparse-bomb": (sparse, "at most 1 GiB"),
    "pipe": (lambda at, _: os.mkfifo(at.with_suffix(".png")), "no file"),
    os.fsdecode(b"latin-\xe4"): (image(".png", picture()), "not UTF-8"),
}
"""Name -> what is written in place of a good image or mask, and a word of the reason."""


def clear(at: Path, _: Path) -> None:
    """A corner that is transparent."""
    alpha = np.full((1, S, S), 255, np.uint8)
    alpha[:, :3, :3] = 0
    save(at.with_suffix(".png"), np.concatenate([picture(), alpha]))


def holes(at: Path, _: Path) -> None:
    bands = picture().astype(np.float32) / 255
    bands[:, :3] = np.nan
    bands[:, 30:] = -9999
    save_tiff(at.with_suffix(".tif"), bands, nodata=-9999)


def coloured(at: Path, _: Path) -> None:
    made = Image.fromarray((roof() > 0).astype(np.uint8))
    made.putpalette([10, 10, 10, 230, 220, 225])
    made.save(at.with_suffix(".png"))


ODD: dict[str, Make] = {  # unusual, and all right
    "transparent": clear,
    "nodata and NaN": holes,
    "palette": coloured,
    "named.wrongly": lambda at, _: save(at.with_suffix(".tif"), picture()).rename(
        at.with_suffix(".png")
    ),
    "jpeg image": image(".jpg", picture(), quality=95),
    "mask without CRS": lambda at, _: save_tiff(at.with_suffix(".tif"), picture(), **PLACE),
    "mask in colour": mask(".png", np.stack([roof()] * 3)),
    "=cmd|'calc'!A0": image(".png", picture()),
    "\x1b]0;title\x07": image(".png", picture()),
    "屋根": image(".png", picture()),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 good pairs, ten of them unusual, and the bad ones."""
    folder = tiny.write_tiles(tmp_path_factory.mktemp("faults") / "data", 50)
    for name, make in [*((name, make) for name, (make, _) in BAD.items()), *ODD.items()]:
        at, beside = folder / "image" / f"{name}.x", folder / "label" / f"{name}.x"
        make(at, beside)
        for part, array in (("image", picture()), ("label", roof())):
            if not [p for p in (folder / part).iterdir() if p.stem == at.stem]:
                save(folder / part / f"{at.stem}.png", array)
    return folder


def reason_of(name: str) -> str:
    return BAD[name][1]


def test_bad_files_have_reasons_and_good_ones_results(data: Path, tmp_path: Path) -> None:
    assert len(BAD) >= 40
    study = Study.of(data=str(data), **tiny.QUICK)
    made = study.run(tmp_path / "run", allow_code=True, keep_going=True)
    assert len(made.tiles) == len(BAD) + 60
    failed = made.tiles[made.tiles["status"] == "failed"]
    reasons = dict(zip(failed["sample"], failed["reason"], strict=True))
    names = {name: "latin-\\udce4" if name.startswith("latin") else name for name in BAD}
    assert sorted(reasons) == sorted(names.values())
    for name, shown in names.items():
        assert reason_of(name) in reasons[shown], (name, reasons[shown])
        assert reasons[shown].startswith("found ")
    rest = made.tiles[made.tiles["status"] != "failed"]
    assert len(rest) == 60
    assert set(rest["reason"]) == {"", "no building in the truth"}
    assert made.rows["confidence"].notna().all()
    odd = made.tiles[made.tiles["sample"].isin([*ODD, r"\x1b]0;title\x07"])]
    assert odd["status"].tolist() == ["ok"] * 10


def test_check_finds_them_before_any_work(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.network()
    monkeypatch.setattr(tiny.Tiny, "forward", lambda *_: pytest.fail("a forward"))
    found = {path.stem: reason for path, reason in check(data, model=model)}
    assert len(found) == len(BAD) + 60
    bad = {stem: reason for stem, reason in found.items() if reason}
    assert sorted(bad) == sorted(BAD)
    for name, reason in bad.items():
        assert reason_of(name) in reason
    arguments = ["check", str(data), "--model", "python:tiny:network", "--allow-code"]
    assert cli.main(arguments) == cli.SOME_FAILED
    said = capsys.readouterr().out
    assert f"60 good, {len(BAD)} bad" in said
    assert "\x1b" not in said
    without = {path.stem for path, reason in check(data) if reason}
    assert set(BAD) - without == {"16-bit-tif", "float-tif", "16-bit-grey", "grey", "four-bands"}


def test_check_names_what_keeps_a_folder_from_being_opened(tmp_path: Path) -> None:
    folder = tiny.write_tiles(tmp_path / "data", 4)
    (folder / "label" / "t001.png").unlink()
    save(folder / "label" / "t002.tif", roof())
    save(folder / "image" / "t003.tif", picture())
    with pytest.raises(DataError):
        FolderDataset(folder)
    found = [(path.name, reason) for path, reason, _ in survey(folder)]
    assert [name for name, _ in found] == [
        "t000.png",
        "t001.png",
        "t002.png",
        "t003.png",
        "t003.tif",
    ]
    words = ["", "no mask for", "t002.png and t002.tif", "", "t003.png and t003.tif"]
    for (_, reason), word in zip(found, words, strict=True):
        assert word in reason
        assert bool(word) == bool(reason)
    assert cli.main(["check", str(tmp_path / "nowhere")]) == cli.WRONG_INPUT


def test_masks_that_lie_where_the_image_does(tmp_path: Path) -> None:
    """Half a pixel is rounding; the same system may be written in two ways."""
    folder = tiny.write_tiles(tmp_path / "data", 1)
    at, beside = folder / "image" / "a.x", folder / "label" / "a.x"
    near = rasterio.Affine(0.3, 0, 500_000.1, 0, -0.3, 5e6)
    for of_mask in ({}, {"transform": near}, {"crs": rasterio.CRS.from_epsg(32633).to_wkt()}):
        placed(**of_mask)(at, beside)
        assert FolderDataset(folder)[0]["mask"].any()
    flat = rasterio.Affine(0.3, 0.3, 0, 0.3, 0.3, 0)
    save_tiff(at.with_suffix(".tif"), picture(), crs="EPSG:32633", transform=flat)
    with pytest.raises(DataError, match="map nothing"):
        FolderDataset(folder)[0]
