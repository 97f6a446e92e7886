"""Files of others: weights, images, archives, names, results. Nothing in them runs or leads
elsewhere. (Checkpoints: test_lightning; texts beside and instead of TIFFs: test_data.)
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import os
import pickle  # noqa: TID251 - the attacks are pickles
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

import segproof
from run_folders import IDENTITY, row
from segproof import (
    DataError,
    FolderDataset,
    Results,
    SegproofError,
    StudyError,
    load_model,
    read_image,
    read_mask,
)
from segproof.cli import app as cli
from segproof.models.loaders.load import demo_model_spec
from segproof.study.store import RunStore, TileResult
from tile_files import Server, chunk, colours, save, server, vrt, wms

__all__ = ["server"]  # the fixture

PACKAGE = Path(segproof.__file__).parent


# --- weights --------------------------------------------------------------------------------------
class Runs:
    """What an unpickler would call."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.ran}",)


def attack(folder: Path, ran: Path, how: str) -> str:
    """Writes weights that would run code; returns the specification that names them."""
    bomb = pickle.dumps(Runs(ran))
    demo = Path(demo_model_spec().removeprefix("smp:"))
    net = folder / "net"
    if how in ("pickle as safetensors", "torch file as safetensors", "bin beside"):
        shutil.copytree(demo, net)
        (net / "model.safetensors").unlink()
        if how == "pickle as safetensors":
            (net / "model.safetensors").write_bytes(bomb)
        elif how == "torch file as safetensors":
            torch.save(Runs(ran), net / "model.safetensors")
        else:
            torch.save(Runs(ran), net / "pytorch_model.bin")
        return f"smp:{net}"
    if how == "torchvision .pt":
        torch.save({"x": Runs(ran)}, folder / "weights.pt")
        return f"torchvision:fcn_resnet50:{folder / 'weights.pt'}"
    if how == "torchvision pickle":
        (folder / "weights.safetensors").write_bytes(bomb)
        return f"torchvision:fcn_resnet50:{folder / 'weights.safetensors'}"
    net.mkdir()
    (net / "modeling_evil.py").write_text(f"import os; os.system('touch {ran}')\nNet = None\n")
    config = {"architectures": ["Net"], "model_type": "segformer"}
    config["auto_map"] = {"AutoModel": "modeling_evil.Net"}  # type: ignore[assignment]
    if how == "hf bin":
        config["architectures"] = ["SegformerForSemanticSegmentation"]
        torch.save({"x": Runs(ran)}, net / "pytorch_model.bin")
    else:
        (net / "model.safetensors").write_bytes(bomb)
    (net / "config.json").write_text(json.dumps(config))
    return f"hf:{net}"


@pytest.mark.parametrize(
    "how",
    [
        "pickle as safetensors",
        "torch file as safetensors",
        "bin beside",
        "torchvision .pt",
        "torchvision pickle",
        "hf code",
        "hf bin",
    ],
)
def test_nothing_in_a_weight_file_runs(how: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    spec = attack(tmp_path, ran, how)
    with pytest.raises(SegproofError) as caught:
        load_model(spec, classes=["a"])
    assert not isinstance(caught.value, StudyError)
    assert not ran.exists()


def test_these_attacks_are_real(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Runs(tmp_path / "ran")))  # noqa: S301 - to show that it would
    assert (tmp_path / "ran").exists()


# --- images ---------------------------------------------------------------------------------------
def mrf(url: str) -> str:
    return (
        f"<MRF_META><CachedSource><Source>/vsicurl/{url}/x.tif</Source></CachedSource><Raster>"
        '<Size x="20" y="12" c="3"/></Raster></MRF_META>'
    )


GDAL: dict[str, Callable[[str, str], str]] = {
    "VRT of a file": lambda secret, url: vrt(secret),
    "VRT of an address": lambda secret, url: vrt(f"/vsicurl/{url}/x"),
    "VRT of a zip": lambda secret, url: vrt(f"/vsizip/{secret}"),
    "VRT in Python": lambda secret, url: vrt(secret).replace(
        "<SimpleSource>",
        "<PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python"
        "</PixelFunctionLanguage><SimpleSource>",
    ),
    "warped VRT": lambda secret, url: vrt(secret).replace(
        "<VRTDataset ", '<VRTDataset subClass="VRTWarpedDataset" '
    ),
    "WMS": lambda secret, url: wms(url),
    "WMTS": lambda secret, url: (
        f"<GDAL_WMTS><GetCapabilitiesUrl>{url}/c</GetCapabilitiesUrl></GDAL_WMTS>"
    ),
    "WCS": lambda secret, url: (
        f"<WCS_GDAL><ServiceURL>{url}/?</ServiceURL><CoverageName>a</CoverageName></WCS_GDAL>"
    ),
    "MRF": lambda secret, url: mrf(url),
    "STAC": lambda secret, url: json.dumps(
        {"type": "Feature", "stac_version": "1.0.0", "assets": {"a": {"href": f"{url}/x.tif"}}}
    ),
    "GDALG": lambda secret, url: json.dumps(
        {"type": "gdal_streamed_alg", "command_line": f"gdal raster read {secret}"}
    ),
    "a connection": lambda secret, url: f"PG:host=127.0.0.1 port={url.rsplit(':', 1)[1]} dbname=a",
    "TIFF head, then VRT": lambda secret, url: "II*\0" + vrt(secret),
}


@pytest.mark.parametrize("how", GDAL)
def test_texts_for_gdal_are_no_pictures(how: str, tmp_path: Path, server: Server) -> None:
    secret = save(tmp_path / "secret.tif", np.full((12, 20), 255, np.uint8))
    for name in ("a.tif", "a.png", "a.tiff"):
        (tmp_path / name).write_text(GDAL[how](str(secret), server.url))
        for read in (read_image, read_mask):
            with pytest.raises(DataError):
                read(tmp_path / name)
    assert server.asked == []


def test_files_that_gdal_finds_beside_a_tiff_are_not_read(tmp_path: Path, server: Server) -> None:
    path = save(tmp_path / "a.tif", colours())
    for name in ("a.tfw", "a.IMD", "a_RPC.TXT", "a.RPB", "a.prj", "a.tif.vrt", "METADATA.DIM"):
        (tmp_path / name).write_text(vrt(f"/vsicurl/{server.url}/{name}"))
    sample = read_image(path)
    assert sample["crs"] is None
    assert sample["transform"] == rasterio.Affine.identity()
    assert server.asked == []


def text_bomb(path: Path) -> None:
    """A PNG whose compressed text unpacks to 200 MB."""
    body = b"k\0\0" + zlib.compress(bytes(200_000_000), 9)
    whole = save(path, colours()).read_bytes()
    path.write_bytes(whole[:33] + chunk(b"zTXt", body) + whole[33:])


PILLOW: dict[str, bytes | Callable[[Path], None]] = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch ran) run\n",
    "PSD": b"8BPS\0\1" + b"\0" * 60,
    "FLI": b"\0\0\0\0\x12\xaf" + b"\0" * 150,
    "ICNS": b"icns\0\0\1\0",
    "PDF": b"%PDF-1.4\n/Launch /F (touch ran)",
    "WMF": b"\xd7\xcd\xc6\x9a" + b"\0" * 60,
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "text bomb": text_bomb,
}


@pytest.mark.parametrize("how", PILLOW)
def test_formats_that_pillow_would_open_are_refused(how: str, tmp_path: Path) -> None:
    content = PILLOW[how]
    for name in ("a.png", "a.jpg", "a.tif"):
        path = tmp_path / name
        if callable(content):
            content(tmp_path / "a.png")
            shutil.copy(tmp_path / "a.png", tmp_path / "b")
            (tmp_path / "b").rename(path)
        else:
            path.write_bytes(content)
        for read in (read_image, read_mask):
            with pytest.raises(DataError):
                read(path)


# --- archives -------------------------------------------------------------------------------------
def archives(folder: Path) -> list[Path]:
    """Of every common kind, with a name that leads out of it."""
    inside = folder / "x.png"
    save(inside, colours())
    with zipfile.ZipFile(folder / "a.zip", "w") as packed:
        packed.write(inside, "../../image/x.png")
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(inside, "../../image/x.png")
    with tarfile.open(folder / "a.tar.gz", "w:gz") as tar:
        tar.add(inside, "/image/x.png")
    (folder / "a.gz").write_bytes(gzip.compress(inside.read_bytes()))
    inside.unlink()
    return sorted(folder.iterdir())


def test_archives_are_never_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "archives").mkdir()
    (tmp_path / "data" / "image").mkdir(parents=True)
    (tmp_path / "data" / "label").mkdir()
    packed = archives(tmp_path / "archives")
    before = sorted(tmp_path.rglob("*"))
    for path in packed:
        with pytest.raises(DataError, match="unpack an archive yourself: none is opened here"):
            FolderDataset(path)
        assert cli.main(["check", str(path)]) == cli.WRONG_INPUT
        copy = tmp_path / "data" / "image" / "a.png"
        copy.write_bytes(path.read_bytes())
        with pytest.raises(DataError, match="begins with"):
            read_image(copy)
        copy.unlink()
    assert sorted(tmp_path.rglob("*")) == before
    assert "unpack" in capsys.readouterr().err


# --- names and cells ------------------------------------------------------------------------------
@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_cells_that_a_spreadsheet_would_calculate_are_quoted(first: str, tmp_path: Path) -> None:
    name = f'{first}HYPERLINK("http://x")'
    with RunStore(tmp_path, IDENTITY) as store:
        store.write(
            TileResult(
                name, 0, "ok", rows=[row(name)], scores=[(name, "=", "+a", "@b", "=c", -0.5, "=d")]
            )
        )
    Results.load(tmp_path).export({"preset": "strict"})
    for table in ("results.csv", "scores.csv"):
        with (tmp_path / table).open(newline="", encoding="utf-8") as stream:
            [_, line] = csv.reader(stream)
        assert line[0] == f"'{name}"
        assert not any(cell.startswith(("=", "+", "@")) for cell in line)


def test_names_cannot_command_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b]0;owned\x07\x1b[31m[red]\u202egnp"
    for part in ("image", "label"):
        (tmp_path / "data" / part).mkdir(parents=True)
        (tmp_path / "data" / part / f"{name}.png").write_bytes(b"hello")
    code = cli.main(["check", str(tmp_path / "data")])
    assert code == cli.SOME_FAILED
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert r"\x1b]0;owned\x07\x1b[31m[red]\u202egnp" in said.out.replace("\n", "")
    [stem] = FolderDataset(tmp_path / "data").ids
    assert stem == r"\x1b]0;owned\x07\x1b[31m[red]\u202egnp"


# --- results folders of others --------------------------------------------------------------------
@pytest.mark.parametrize("text", ["not json", "[1]", '{"preset": "=evil"}', '{"a": 1}', "{", "3"])
def test_a_manifest_that_no_study_wrote(text: str, tmp_path: Path) -> None:
    RunStore(tmp_path, IDENTITY).__exit__()
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StudyError, match="no study wrote"):
        Results.load(tmp_path)


def pickled() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=True, image=np.array([{}], dtype=object))
    return stream.getvalue()


def swollen() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("maps.npy", bytes(300_000_000))
    return stream.getvalue()


@pytest.mark.parametrize("make", [lambda: b"no zip", pickled, swollen])
def test_pictures_in_a_store_of_others(make: Callable[[], bytes], tmp_path: Path) -> None:
    with RunStore(tmp_path, IDENTITY) as store:
        store.write(TileResult("a", 0, "ok", picture=make()))
    with pytest.raises(StudyError, match=r"a picture in run\.db"):
        Results.load(tmp_path).pictures()


def test_a_store_with_a_program_in_it(tmp_path: Path) -> None:
    """A view in place of a table may call functions: only harmless ones are allowed."""
    db = sqlite3.connect(tmp_path / "run.db")
    db.execute("CREATE VIEW tiles AS SELECT load_extension('/tmp/evil.so') AS sample")
    db.commit()
    db.close()
    with pytest.raises(StudyError, match="cannot be read"):
        _ = Results.load(tmp_path).tiles


# --- network --------------------------------------------------------------------------------------
GUARD = """
import ipaddress, socket, sys
asked = []

def local(address):
    host = address[0] if isinstance(address, tuple) else address
    if not isinstance(host, str) or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

def guard(function, place):
    def wrapped(*given, **how):
        if not local(given[place]):
            asked.append(repr(given[place]))
            raise OSError("no network here")
        return function(*given, **how)
    return wrapped

for name, place in (("connect", 1), ("connect_ex", 1)):
    setattr(socket.socket, name, guard(getattr(socket.socket, name), place))
real = socket.socket.sendto
socket.socket.sendto = lambda self, *given: guard(lambda *_: real(self, *given), 0)(given[-1])
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, guard(getattr(socket, name), 0))

try:
    socket.create_connection(("192.0.2.1", 80), 1)
except OSError:
    pass
assert asked == ["('192.0.2.1', 80)"], asked  # the guard guards
asked.clear()

import json
from segproof import cli
from segproof.cli import study
study.DEMO_SIZE = 96
for arguments, wanted in json.loads(sys.argv[1]):
    code = cli.main(arguments)
    print("command", arguments[0], code)
    assert code in wanted, (arguments, code)
print("asked:", asked)
sys.exit(bool(asked))
"""


@pytest.mark.slow
def test_no_command_asks_a_network(tmp_path: Path) -> None:
    """Python's own sockets; what GDAL's could ask is shown by the tests with a server above."""
    from segproof.data.scenes import write_scenes

    first, *_ = write_scenes(tmp_path / "data", 2, seed=2, size=96)
    model, data, out = demo_model_spec(), str(tmp_path / "data"), tmp_path / "run"
    of_class = ["--model", model, "--class", "building"]
    short = ["--methods", "grad_cam", "--areas", "0.1", "--thresholds", "0.3", "--limit", "1"]
    commands: list[tuple[list[str], list[int]]] = [
        (["layers", "--model", model, "--size", "64"], [0]),
        (["doctor", "--model", model, "--size", "64"], [0, 4]),
        (["explain", *of_class, str(first), "--out", str(tmp_path / "e")], [0]),
        (["check", data, "--model", model], [0]),
        (["study", *of_class, "--data", data, *short, "--out", str(out)], [0]),
        (["study", *of_class, "--data", data, *short, "--workers", "2", "--out", f"{out}2"], [0]),
        (["status", str(out)], [0]),
        (["verify", str(out)], [0]),
        (["report", str(out)], [0]),
        (["compare", str(out), f"{out}2"], [0, 2, 3]),
        (["recommend", *of_class, "--data", data, "--tiles", "1", "--methods", "grad_cam",
          "--out", str(tmp_path / "quick")], [0]),
        (["study", *of_class, "--data", data, *short, "--dry-run"], [0]),
        (["fills", *of_class, "--data", data, "--tiles", "1"], [0]),
        (["evidence", "--tier", "a", "--scenes", "1", "--method", "grad_cam", "--measure",
          "m1_confidence", "--out", str(tmp_path / "known")], [0]),
        (["measures"], [0]),
        (["init", model, data, "--out", str(tmp_path / "study.toml")], [0]),
        (["train", "--scenes", "5", "--out", str(tmp_path / "net"), "--encoder",
          "tu-mobilenetv3_small_050", "--decoder-channels", "16,8,8,8,8", "--steps", "1",
          "--batch", "2", "--crop", "64"], [0]),
        (["layers", "--model", "smp:someone/net"], [2]),
        (["layers", "--model", "hf:someone/net"], [2]),
        (["layers", "--model", "https://example.org/net"], [2]),
        (["check", "s3://bucket/tiles"], [2]),
        (["demo", "--tiles", "1", "--out", str(tmp_path / "demo")], [0]),
    ]  # fmt: skip
    named = {arguments[0] for arguments, _ in commands}
    assert named == {name for name in cli.app if not name.startswith("-")}
    done = subprocess.run(
        [sys.executable, "-c", GUARD, json.dumps(commands)],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "asked: []" in done.stdout


# --- code -----------------------------------------------------------------------------------------
UNSAFE = {
    "eval", "exec", "compile", "__import__", "pickle", "marshal", "shelve", "dill", "cloudpickle",
    "joblib", "yaml", "torch.hub", "torch.jit", "torch.package", "pandas.read_pickle",
    "pd.read_pickle", "os.system", "os.popen", "subprocess", "requests", "urllib.request",
}  # fmt: skip


def unsafe_in(text: str) -> list[str]:
    """Calls and imports that run what is in a file, or ask a network."""
    found = []
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            names = [name, name.rpartition(".")[0]]
            how = {key.arg: ast.unparse(key.value) for key in node.keywords}
            if name == "torch.load" and how.get("weights_only") != "True":
                found.append("torch.load without weights_only=True")
            if name in ("np.load", "numpy.load") and how.get("allow_pickle", "False") != "False":
                found.append("np.load with allow_pickle")
            if name.endswith("Image.open") and "formats" not in how:
                found.append("Image.open without formats")
            if name == "rasterio.open" and "driver" not in how:
                found.append("rasterio.open without driver")
            if name.endswith("extractall"):
                found.append("an archive unpacked")
        found += [name for name in names if name in UNSAFE]
    return found


def test_the_package_loads_nothing_unsafely() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        assert unsafe_in(path.read_text(encoding="utf-8")) == [], path.name


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "Image.open(path)",
        "rasterio.open(path)",
        "eval(text)",
        "import pickle",
        "from torch.hub import load",
        "torch.jit.load(path)",
        "archive.extractall(folder)",
    ],
)
def test_the_search_would_notice(line: str) -> None:
    assert unsafe_in(line)
