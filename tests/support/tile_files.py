"""Writes pictures and masks as files, good ones and hostile ones."""

from __future__ import annotations

import http.server
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

Bytes = NDArray[np.uint8]
H, W = 12, 20


def colours(seed: int = 0, bands: int = 3) -> Bytes:
    """[B, H, W]"""
    return np.random.default_rng(seed).integers(0, 256, (bands, H, W), dtype=np.uint8)


def half() -> NDArray[np.bool_]:
    """Roof on the left, [H, W]."""
    return np.broadcast_to(np.arange(W) < W // 2, (H, W)).copy()


def save_tiff(path: Path, bands: NDArray[Any], **how: Any) -> Path:
    bands = bands[None] if bands.ndim == 2 else bands
    count, height, width = bands.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=count,
            height=height,
            width=width,
            dtype=bands.dtype,
            **how,
        ) as raster:
            raster.write(bands)
    return path


def save(path: Path, bands: NDArray[Any], **how: Any) -> Path:
    """Bands [B, H, W] or one [H, W] in the format of the file's name."""
    if path.suffix in (".tif", ".tiff"):
        return save_tiff(path, bands, **how)
    array = bands if bands.ndim == 2 else np.moveaxis(bands, 0, 2)
    Image.fromarray(array).save(path, **how)
    return path


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes) -> Path:
    """A PNG from scratch: `rows` begin with their filter byte."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def tiles(root: Path, images: str, masks: str, names: dict[str, str]) -> Path:
    """A folder of tiles; `names`: image file -> mask file ("" = none)."""
    (root / images).mkdir(parents=True)
    (root / masks).mkdir()
    for seed, (image, mask) in enumerate(names.items()):
        save(root / images / image, colours(seed))
        if mask:
            save(root / masks / mask, np.roll(half(), seed, 1).astype(np.uint8) * 255)
    return root


class Server:
    """A local web server that counts what it is asked for."""

    def __init__(self) -> None:
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_error(404)

            do_HEAD = do_GET  # noqa: N815  # the name is http.server's

            def log_message(self, *_: Any) -> None:
                pass

        self.asked = asked
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def vrt(source: str) -> str:
    return (
        f'<VRTDataset rasterXSize="{W}" rasterYSize="{H}"><Metadata>'
        '<MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>'
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{source}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )


def wms(url: str) -> str:
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}/${{x}}/${{y}}.png</ServerUrl>'
        "</Service><DataWindow><UpperLeftX>-1</UpperLeftX><UpperLeftY>1</UpperLeftY>"
        "<LowerRightX>1</LowerRightX><LowerRightY>-1</LowerRightY><TileLevel>0</TileLevel>"
        "<TileCountX>1</TileCountX><TileCountY>1</TileCountY></DataWindow>"
        "<Projection>EPSG:4326</Projection><BandsCount>3</BandsCount></GDAL_WMS>"
    )


def huge_tiff(path: Path, side: int) -> Path:
    """A few hundred bytes that declare side x side pixels in one tile."""
    tags = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: 65536, 323: 65536}
    tags |= {324: 8, 325: 9}  # where that tile would be
    body = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    body += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(body + struct.pack("<I", 0))
    return path


NAMES = ("background", "building", "road")
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def striped(*values: int, dtype: Any = np.uint8) -> NDArray[Any]:
    """[H, W]: columns with these values in turn."""
    return np.broadcast_to(np.array(values, dtype)[np.arange(W) % len(values)], (H, W)).copy()


def painted(*rgb: tuple[int, int, int]) -> NDArray[np.uint8]:
    """[3, H, W]: columns of these colours in turn."""
    columns = np.array(rgb, np.uint8)[np.arange(W) % len(rgb)]
    return np.moveaxis(np.broadcast_to(columns, (H, W, 3)), 2, 0).copy()
