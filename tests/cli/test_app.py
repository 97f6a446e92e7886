"""The command line as scripts use it: names, files, exit codes, messages."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import segmentation_models_pytorch as smp
import torch
from affine import Affine
from PIL import Image

from segproof.cli import app as cli, running
from segproof.data.scenes import write_scenes
from segproof.models.loaders.load import demo_model_spec, save_model
from segproof.perturb.records import FILLS

ROOT = Path(__file__).resolve().parents[2]
MODEL = demo_model_spec()
Run = Callable[..., tuple[int, str, str]]
SHORT = "--methods grad_cam --layers decoder:1,decoder:2 --thresholds 0.3 --areas 0.1 --seed 1"


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "data"
    write_scenes(folder, 3, seed=2, size=96)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(item) for item in arguments])
        found = capsys.readouterr()
        return code, found.out, " ".join(found.err.split())

    return call


def study(data: Path, out: Path, *more: str) -> list[str]:
    base = ["study", "--model", MODEL, "--data", str(data), "--class", "building"]
    return [*base, *SHORT.split(), "--out", str(out), *more]


def picture(tiles: Path, index: int = 0) -> tuple[Path, Path]:
    images = sorted((tiles / "image").iterdir())
    return images[index], tiles / "label" / images[index].name


def test_layers_prints_the_table(run: Run) -> None:
    code, out, _ = run("layers", "--model", MODEL, "--size", 256)
    assert code == 0
    line = next(line.split() for line in out.splitlines() if line.strip().startswith("decoder:1 "))
    assert line[:-2] == ["decoder:1", "decoder.blocks.0", "16", "64", "16", "x", "16"]
    zero, field = map(int, line[-2:])
    assert 0 <= zero < 100
    assert 16 < field <= 256
    assert "stride (px)" in out


def test_explain_with_void_in_the_mask(run: Run, tiles: Path, tmp_path: Path) -> None:
    image, mask = picture(tiles)
    with Image.open(mask) as opened:
        values = (np.array(opened) > 0).astype(np.uint8)
    inside = np.argwhere(values)
    values[: inside[len(inside) // 2][0]] = 7
    Image.fromarray(values).save(tmp_path / "mask.png")
    base = ("explain", "--model", MODEL, "--class", "building", "--region", "truth", image)
    how = ("--mask", tmp_path / "mask.png", "--out", tmp_path / "e")
    code, _, err = run(*base, *how)
    assert code == cli.WRONG_INPUT
    assert "ignore_index" in err
    code, _, _ = run(*base, *how, "--ignore-index", 7)
    assert code == 0
    [record] = json.loads((tmp_path / "e" / "explanations.json").read_text())
    assert record["region_px"] == int((values == 1).sum()) > 0


def test_a_study_names_what_the_networks_folder_does_not(
    run: Run, tiles: Path, tmp_path: Path
) -> None:
    """A network without segproof.json: classes and normalisation as flags, kept in the command."""
    shutil.copytree(MODEL.removeprefix("smp:"), tmp_path / "net")
    settings = json.loads((tmp_path / "net" / "segproof.json").read_text())
    (tmp_path / "net" / "segproof.json").unlink()
    arguments = study(tiles, tmp_path / "run", "--limit", "1", "--controls", "none")
    arguments[arguments.index(MODEL)] = f"smp:{tmp_path / 'net'}"
    code, _, err = run(*arguments)
    assert code == cli.WRONG_INPUT
    assert "--classes" in err
    flags = []
    for key in ("classes", "mean", "std"):
        flags += [f"--{key}", ",".join(map(str, settings[key]))]
    assert run(*arguments, *flags)[0] == 0
    made = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert made["model"]["classes"] == ["background", "building"]
    assert f"--classes {','.join(settings['classes'])}" in made["command"]
    plain = study(tiles, tmp_path / "plain", "--limit", "1", "--controls", "none")
    assert run(*plain)[0] == 0
    assert (tmp_path / "plain" / "results.csv").read_bytes() == (
        tmp_path / "run" / "results.csv"
    ).read_bytes()


@pytest.mark.parametrize("method", ["grad_cam", "score_cam"])
def test_explain_writes_its_three_files(run: Run, tiles: Path, tmp_path: Path, method: str) -> None:
    image, mask = picture(tiles)
    code, _, _ = run(
        "explain", "--model", MODEL, "--class", "building", "--method", method,
        "--layer", "decoder:2", "--region", "truth", "--mask", mask, image, "--out", tmp_path / "e",
    )  # fmt: skip
    assert code == 0
    names = {path.name for path in (tmp_path / "e").iterdir()}
    assert names == {f"{image.stem}.npy", f"{image.stem}.png", "explanations.json"}
    heatmap = np.load(tmp_path / "e" / f"{image.stem}.npy")
    assert heatmap.dtype == np.float32
    assert heatmap.shape == (96, 96)
    assert heatmap.min() >= 0
    assert heatmap.max() == 1
    [record] = json.loads((tmp_path / "e" / "explanations.json").read_text())
    assert record["status"] == "ok"
    assert np.isfinite(record["target_value"])
    assert (record["effective_channels"] is not None) == (method == "score_cam")
    with Image.open(tmp_path / "e" / f"{image.stem}.png") as shown:
        assert shown.size[0] > 600


def test_many_tiles_are_shared_where_nobody_says_how(
    run: Run, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def two(count: int) -> int:
        asked.append(count)
        return 2

    monkeypatch.setattr(running, "best_workers", two)
    code, said, err = run(*study(tiles, tmp_path / "shared"))
    assert code == 0, err
    assert asked == [3]
    assert "2 processes share tiles and threads" in " ".join(said.split())
    manifest = json.loads((tmp_path / "shared" / "manifest.json").read_text())
    threads = max(1, torch.get_num_threads() // 2)
    assert manifest["machine"]["threads"] == threads
    for name, how in (("threads", ["--threads", str(threads)]), ("workers", ["--workers", "1"])):
        code, said, err = run(*study(tiles, tmp_path / name, *how))
        assert code == 0, err
        assert "processes" not in said
    assert asked == [3]
    tables = [(tmp_path / name / "results.csv").read_bytes() for name in ("shared", "threads")]
    assert tables[0] == tables[1]


def test_explain_objects_one_by_one(run: Run, tiles: Path, tmp_path: Path) -> None:
    image, mask = picture(tiles)
    code, _, _ = run(
        "explain", "--model", MODEL, "--class", "building", "--objects", "--region", "truth",
        "--mask", mask, "--min-area", 40, "--method", "hires_cam", image, "--out", tmp_path / "e",
    )  # fmt: skip
    assert code == 0
    records = json.loads((tmp_path / "e" / "explanations.json").read_text())
    assert len(records) >= 2
    sizes = [record["region_px"] for record in records]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] >= 40
    for number, record in enumerate(records, start=1):
        assert record["region"] == f"object:{number}@truth"
        assert record["heatmap"] == f"{image.stem}-object{number}.npy"
        assert (tmp_path / "e" / record["heatmap"]).is_file()
        assert (tmp_path / "e" / record["picture"]).is_file()
    with Image.open(mask) as opened:
        buildings = int((np.array(opened) > 0).sum())
    assert sum(sizes) <= buildings


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--region", "box:10,20,40,60"], {"region": "box:10,20,40,60", "region_px": 1200}),
        (["--region", "points:3,4;5,6"], {"region_px": 2}),
        (["--region", "ring:2"], {"region": "ring:2"}),
        (["--space", "margin", "--rival", "background"], {"rival": "background"}),
        (["--space", "log_probability", "--reduce", "sum"], {"reduce": "sum"}),
        (["--smooth"], {"symmetries": 8, "forwards": 8}),
        (["--method", "occlusion", "--fill", "black"], {"layer": "input", "fill": "black"}),
        (["--pad"], {"padding_px": [0, 0]}),
    ],
)  # fmt: skip
def test_explain_options(
    run: Run, tiles: Path, tmp_path: Path, flags: list[str], said: dict[str, object]
) -> None:
    image, _ = picture(tiles)
    code, _, err = run(
        "explain", "--model", MODEL, "--class", "building", *flags, image, "--out", tmp_path / "e"
    )
    assert code == 0, err
    [record] = json.loads((tmp_path / "e" / "explanations.json").read_text())
    assert record["status"] == "ok"
    assert {key: record[key] for key in said} == said


def test_explain_says_where_there_is_nothing_to_explain(
    run: Run, tiles: Path, tmp_path: Path
) -> None:
    images = sorted((tiles / "image").iterdir())
    mask = picture(tiles, 1)[1]
    code, _, err = run(
        "explain", "--model", MODEL, "--class", "building", "--region", "truth",
        "--mask", mask, images[1], "--out", tmp_path / "e",
    )  # fmt: skip
    assert code == 0
    assert "no_target" in err
    assert not np.load(tmp_path / "e" / f"{images[1].stem}.npy").any()


def test_study_report_and_toml(run: Run, tiles: Path, tmp_path: Path) -> None:
    code, out, _ = run(*study(tiles, tmp_path / "a"), "--all")
    assert code == 0
    for title in ("Task 1", "Task 2", "Task 3", "report: "):
        assert title in out
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"results.parquet", "results.csv", "manifest.json", "report.html"} <= files
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Task 3" in page
    assert "http://" not in page.replace("http://www.w3.org", "")

    (tmp_path / "study.toml").write_text(
        f'model = "{MODEL}"\ndata = "{tiles}"\nclass = "building"\nmethods = ["grad_cam"]\n'
        'layers = "decoder:1,decoder:2"\nthresholds = "0.3"\nareas = [0.1]\nseed = 7\n'
    )
    code, _, _ = run("study", tmp_path / "study.toml", "--seed", 1, "--out", tmp_path / "b")
    assert code == 0
    assert (tmp_path / "b" / "results.csv").read_bytes() == (
        tmp_path / "a" / "results.csv"
    ).read_bytes()

    (tmp_path / "a" / "report.html").unlink()
    code, again, _ = run("report", tmp_path / "a", "--all")
    assert code == 0
    assert (tmp_path / "a" / "report.html").read_text() == page
    assert "Task 2" in again


def test_multispectral_tiles_from_end_to_end(run: Run, tmp_path: Path) -> None:
    """Eight bands of 16 bits as GeoTIFF: doctor, explain and a study."""
    [written, _] = write_scenes(tmp_path / "rgb", 2, seed=2, size=96)
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    with Image.open(written) as image, Image.open(tmp_path / "rgb/label" / written.name) as mask:
        colours = np.moveaxis(np.array(image), 2, 0).astype(np.uint16)
        truth = np.array(mask)
    bands = np.stack([colours[k % 3] * (20 + k) for k in range(8)])
    place = {"crs": "EPSG:32636", "transform": Affine(0.3, 0, 5e5, 0, -0.3, 1e5)}
    size = {"driver": "GTiff", "height": 96, "width": 96, **place}
    image_path = tmp_path / "data/images/tile.tif"
    with rasterio.open(image_path, "w", count=8, dtype="uint16", **size) as to:
        to.write(bands)
    with rasterio.open(tmp_path / "data/masks/tile.tif", "w", count=1, dtype="uint8", **size) as to:
        to.write(truth, 1)
    net = smp.Unet("resnet18", encoder_weights=None, classes=1, in_channels=8)
    net.train()
    for _ in range(5):  # running statistics that fit, so that maps have relief
        net(torch.randn(4, 8, 64, 64))
    config = {"encoder_name": "resnet18", "classes": 1, "in_channels": 8}
    save_model(
        net, tmp_path / "net", classes=["building"], mean=[2000.0] * 8, std=[1000.0] * 8,
        config=config,
    )  # fmt: skip
    model = f"smp:{tmp_path / 'net'}"
    code, out, _ = run("doctor", "--model", model, "--image", image_path)
    assert code == 0
    assert "8 bands in" in out
    code, _, _ = run(
        "explain", "--model", model, "--class", "building", "--region", "box:10,10,60,60",
        image_path, "--out", tmp_path / "e",
    )  # fmt: skip
    assert code == 0
    assert np.load(tmp_path / "e" / "tile.npy").max() == 1
    code, out, _ = run(
        "study", "--model", model, "--data", tmp_path / "data", "--class", "building",
        *SHORT.split(), "--controls", "random", "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 0
    assert "1 ok, 0 skipped, 0 failed" in out
    (tmp_path / "rgb/image" / written.name).rename(tmp_path / "three.png")
    code, _, err = run("doctor", "--model", model, "--image", tmp_path / "three.png")
    assert code == cli.SOME_FAILED
    assert err == f"loading the network {model} ..."


def test_fills_prints_every_fill_under_every_outline(run: Run, tiles: Path) -> None:
    how = ("--model", MODEL, "--data", str(tiles), "--class", "building")
    code, out, _ = run("fills", *how, "--limit", "1")
    assert code == 0
    assert "mean (lowest) of 1 tile" in out
    for name in ("exact", "grow 4 px", "grow 10 px", "roughen 10 px"):
        assert name in out.splitlines()[1]
    lines = {line.split()[0]: line for line in out.splitlines()[2:] if line.split()}
    for fill in FILLS:
        assert len(re.findall(r"\d\.\d{3} \(.?\d\.\d{3}\)", lines[fill])) == 4
    assert sum("taken" in lines[fill] for fill in FILLS) == 2


def test_fills_need_a_tile_with_the_class(run: Run, tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", 1, seed=2, size=96)
    [mask] = (tmp_path / "data" / "label").iterdir()
    Image.fromarray(np.zeros((96, 96), dtype=np.uint8)).save(mask)
    how = ("--model", MODEL, "--data", str(tmp_path / "data"), "--class", "building")
    code, _, said = run("fills", *how)
    assert code == cli.WRONG_INPUT
    assert "no tile with building in the truth" in said


def test_flags_of_regions_reach_the_study(run: Run, tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('references = "all"\n', encoding="utf-8")
    flags = "--soft --roughen 2 --outline fixed --boundary --limit 1 --fills black --controls none"
    code, out, _ = run(
        *study(tiles, tmp_path / "run"), *flags.split(), str(tmp_path / "study.toml")
    )
    assert code == 0
    assert "regions: roughen 2 px" in out
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["study"]["references"] == ["truth", "prediction"]
    assert manifest["outline"] == {"name": "roughen 2", "grow": 0, "roughen": 2}
    for flag in ("--soft", "--boundary", "--roughen 2", "--outline fixed"):
        assert flag in manifest["command"]


def test_failed_tiles_change_the_exit_code(run: Run, tmp_path: Path) -> None:
    _, second, _ = write_scenes(tmp_path / "data", 3, seed=2, size=96)
    second.write_bytes(second.read_bytes()[:300])
    code, _, err = run(*study(tmp_path / "data", tmp_path / "run"))
    assert code == cli.SOME_FAILED
    assert "pass --keep-going" in err
    code, out, _ = run(*study(tmp_path / "data", tmp_path / "run"), "--keep-going")
    assert code == cli.SOME_FAILED
    assert "1 failed" in out
    assert "damaged file" in out


def test_train_then_layers(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(
        "train", "--scenes", 5, "--out", tmp_path / "net", "--encoder", "tu-mobilenetv3_small_050",
        "--decoder-channels", "16,8,8,8,8", "--steps", 2, "--batch", 2, "--crop", 64,
    )  # fmt: skip
    assert code == 0
    assert "held-out IoU" in out
    assert run("layers", "--model", f"smp:{tmp_path / 'net'}", "--size", 64)[0] == 0


WRONG = [
    (["layers", "--model", "smp:/nowhere"], "config.json"),
    (["layers", "--model", "zip:/nowhere"], "smp:DIR"),
    (["lairs"], "layers"),
    (["study", "--out", "OUT"], "class"),
    (["STUDY", "--class", "bilding"], "did you mean building"),
    (["STUDY", "--methods", "grad_kam"], "did you mean grad_cam"),
    (["STUDY", "--layers", "decoder:1,decodr:2"], "did you mean decoder:2"),
    (["STUDY", "--thresholds", "0.1,1.5"], "between 0 and 1"),
    (["STUDY", "--thresholds", "0.1,high"], "numbers, a,b,c"),
    (["STUDY", "--preset", "papers"], 'Did you mean "paper"?'),
    (["STUDY", "--data", "/nowhere"], "no folder /nowhere"),
    (["STUDY", "--limits", "3"], "--limit"),
    (["EXPLAIN", "--method", "grad-kam"], "did you mean grad_cam"),
    (["EXPLAIN", "--layer", "decoder:7"], "did you mean decoder:"),
    (["EXPLAIN", "--mask", "/nowhere.png", "--region", "truth"], "no file /nowhere.png"),
    (["EXPLAIN", "--region", "truth"], "no truth mask"),
    (["EXPLAIN", "--preset", "paper", "--region", "prediction"], "region truth, as published"),
    (["EXPLAIN", "/nowhere.png"], "no file /nowhere.png"),
    (["EXPLAIN", "--region", "box:0,0,97,9"], "a picture of 96 x 96 px"),
    (["EXPLAIN", "--region", "box:0,0,9"], "expected box:X0,Y0,X1,Y1"),
    (["EXPLAIN", "--region", "object:99"], "a number from 1 (the largest)"),
    (["EXPLAIN", "--region", "predicted"], "did you mean prediction"),
    (["EXPLAIN", "--region", "fp"], "no truth mask for region fp"),
    (["EXPLAIN", "--rival", "background"], "space margin"),
    (["EXPLAIN", "--space", "margin", "--rival", "backgroud"], "did you mean background"),
    (["EXPLAIN", "--objects", "--min-area", "9999"], "no object of 9999 px or more"),
    (["EXPLAIN", "--objects", "--smooth"], "one of both"),
    (["EXPLAIN", "--query", "0"], "a network of queries"),
    (["STUDY", "--region", "object:1"], "for a set of tiles"),
    (["STUDY", "--measures", "deletoin"], "did you mean deletion"),
    (["STUDY", "--masses", "1.5"], "between 0 and 1"),
    (["measures", "deletoin"], "did you mean deletion"),
    (
        [
            "recommend",
            "--model",
            "MODEL",
            "--data",
            "/nowhere",
            "--class",
            "building",
            "--out",
            "OUT",
        ],
        "no folder /nowhere",
    ),
    (["doctor", "--model", "smp:/nowhere"], "config.json"),
    (["layers", "--model", "MODEL", "--image", "/nowhere.png"], "no file /nowhere.png"),
    (["EXPLAIN", "SMALL_MASK"], "the size of"),
    (["report", "/nowhere"], "no run.db"),
    (["train", "--out", "OUT"], "no tiles"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda item: str(item)[:60])
def test_wrong_input_is_a_message_and_nothing_else(
    run: Run, tiles: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "out"
    image, _ = picture(tiles)
    Image.fromarray(np.zeros((64, 64), dtype=np.uint8)).save(tmp_path / "small.png")
    base = {
        "STUDY": study(tiles, out),
        "EXPLAIN": [
            *("explain", "--model", MODEL, "--class", "building", "--out", str(out), str(image)),
        ],
        "SMALL_MASK": ["--mask", str(tmp_path / "small.png"), "--region", "truth"],
        "OUT": [str(out)],
        "MODEL": [MODEL],
    }
    given: list[str] = []
    for argument in arguments:
        # a flag given twice: the later one wins in the parser's eyes only if the first is removed
        if argument.startswith("--") and argument in given:
            place = given.index(argument)
            del given[place : place + 2]
        given += base.get(argument, [argument])
    code, stdout, err = run(*given)
    assert code == cli.WRONG_INPUT, (stdout, err)
    assert message in err
    assert "Traceback" not in err
    assert not out.exists()


def test_another_study_in_the_folder(run: Run, tiles: Path, tmp_path: Path) -> None:
    short = ["--limit", "1", "--controls", "none"]
    assert run(*study(tiles, tmp_path / "run", *short))[0] == 0
    code, _, err = run(*study(tiles, tmp_path / "run", *short, "--batch", "2"))
    assert code == cli.WRONG_INPUT
    assert "found another study" in err
    assert "batch = 4" in err


def test_ctrl_c_finishes_the_tile(run: Run, tiles: Path, tmp_path: Path) -> None:
    """A real process, really interrupted."""
    arguments = study(tiles, tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-m", "segproof", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "forward passes a tile" in line:  # the plan is made, the first tile begins
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode in (cli.INTERRUPTED, 0), err
    assert "Traceback" not in err
    code, out, _ = run(*arguments)
    assert code == 0
    assert "2 ok, 1 skipped, 0 failed" in out


def test_the_package_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "main", lambda: 4)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("segproof", run_name="__main__")
    assert ended.value.code == 4
