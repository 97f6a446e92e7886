"""Options that commands share reach the network and the files, from flags and from TOML."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import rasterio
import segmentation_models_pytorch as smp
import torch
from PIL import Image

from families import of_hf
from segproof import Study
from segproof.cli import app as cli, options
from segproof.cli.options import from_file, sides_of
from segproof.data.scenes import write_scenes
from segproof.errors import StudyError
from segproof.explain import LAYERLESS, METHODS
from segproof.models.loaders.load import demo_model_spec, load_model, save_model
from segproof.perturb import CONTROLS
from segproof.study.settings import LATER, Settings

DEMO = demo_model_spec()
HAS_HF = importlib.util.find_spec("transformers") is not None
needs_hf = pytest.mark.skipif(not HAS_HF, reason="transformers (the extra hf) is not installed")
FACTORY = """
import torch
from segproof.models import demo_model_spec, load_model

def net():
    return torch.nn.Sequential(load_model(demo_model_spec()).net, torch.nn.Sigmoid())
"""


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "tiles", 2, seed=2, size=96)
    return tmp_path / "tiles"


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def option_types(annotation: Any) -> dict[str, Any]:
    """The annotations of single options, by name."""
    optional = get_args(annotation)[0]
    return get_type_hints(get_args(optional)[0], include_extras=True)


def test_every_setting_is_an_option_with_its_description() -> None:
    shared = (*options.NETWORK, *options.DATA)
    assert set(shared) <= set(Settings.model_fields)
    kinds = option_types(options.options_of("class", *shared))
    for name in shared:
        [parameter] = get_args(kinds[name])[1:]
        assert parameter.name == (f"--{name.replace('_', '-')}",)
        assert parameter.help.startswith(Settings.model_fields[name].description)


def test_defaults_of_a_command_stand_in_its_help() -> None:
    kinds = option_types(options.options_of("limit", "layers", "methods", limit=20))
    helps = {name: get_args(kind)[1].help for name, kind in kinds.items()}
    assert helps["limit"].endswith("[default: 20]")
    assert helps["layers"].endswith("[default: decoder:1, decoder:2]")
    assert "One or more of grad_cam, " in helps["methods"]


def test_what_is_typed_becomes_settings() -> None:
    given = options.settings_of(
        {
            "class": "b", "classes": "a, b", "activation": "softmax", "mean": "0.5", "std": "0.5",
            "output": "0:probabilities", "inputs": "1,2;3", "size": "64,96", "weights": "ema",
            "bands": "3,2,1", "alpha": "none", "divide_by": 10.0, "mask_values": "1=a,2=b",
            "ignore_index": 7, "images": "i/*", "masks": "m/*", "measures": "none",
            "references": "all", "controls": "all", "methods": "all",
        }
    )  # fmt: skip
    assert given["methods"] == tuple(name for name in METHODS if name not in LAYERLESS)
    assert (given["controls"], given["references"]) == (tuple(CONTROLS), ("truth", "prediction"))
    assert (given["classes"], given["mean"], given["measures"]) == (("a", "b"), (0.5,), ())
    study = Study.of(model="m", data="d", **given)
    assert (study.size, study.bands, study.output) == ((64, 96), (3, 2, 1), "0:probabilities")
    command = study.command("out")
    for words in (
        "--output 0:probabilities", "--inputs '1,2;3'", "--size 64,96", "--weights ema",
        "--bands 3,2,1", "--alpha none", "--divide-by 10.0", "--mask-values 1=a,2=b",
        "--images 'i/*'", "--masks 'm/*'",
    ):  # fmt: skip
        assert words in command


def test_settings_that_came_later_change_no_earlier_run() -> None:
    plain = Study.of(model="m", data="d", **{"class": "b"})
    assert not set(LATER) & set(plain.identity())
    assert Study.of(model="m", data="d", **{"class": "b"}, bands=(1,)).identity()["bands"] == [1]


@pytest.mark.parametrize("text", ["x", "0", "1,2,3", "1.5", ""])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(StudyError):
        sides_of(text)


def test_folders_and_patterns_of_pictures(tiles: Path, tmp_path: Path) -> None:
    for place, pictures in enumerate((tiles / "image", f"{tiles}/image/*.png")):
        out = tmp_path / f"out{place}"
        code = run("explain", pictures, "--model", DEMO, "--class", "building", "--out", out)
        assert code == cli.OK
        records = json.loads((out / "explanations.json").read_text())
        assert len(records) == 2
    assert run("explain", tmp_path / "no*", "--model", DEMO, "--class", "1", "--out", "x") == 2


def test_probabilities_are_refused_and_taken_when_named(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped network with a sigmoid at its end gives the map of its logits."""
    (tmp_path / "ended_in_a_sigmoid.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    [image, _] = sorted((tiles / "image").iterdir())
    shipped = load_model(DEMO)
    numbers = [",".join(map(str, v.flatten().tolist())) for v in (shipped.mean, shipped.std)]
    words: list[object] = [
        "explain", image, "--model", "python:ended_in_a_sigmoid:net", "--allow-code",
        "--classes", "building", "--mean", numbers[0], "--std", numbers[1],
        "--class", "building", "--layer", "0.decoder.blocks.1", "--out",
    ]  # fmt: skip
    assert run(*words, tmp_path / "no") == cli.WRONG_INPUT
    assert "--output" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert run(*words, tmp_path / "yes", "--output", "probabilities") == cli.OK
    plain = [
        "--model",
        DEMO,
        "--class",
        "building",
        "--layer",
        "decoder:2",
        "--out",
        tmp_path / "p",
    ]
    assert run("explain", image, *plain) == cli.OK
    found, right = (np.load(tmp_path / name / f"{image.stem}.npy") for name in ("yes", "p"))
    assert np.abs(found - right).max() < 2e-3


def save_tiff(path: Path, values: np.ndarray[Any, Any]) -> Path:
    bands, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=values.dtype
    ) as opened:
        opened.write(values)
    return path


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_four_bands_are_what_the_network_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A 4-band GeoTIFF, whose last band rasterio marks as transparency, and networks of 4 and 3."""
    torch.manual_seed(0)
    for bands in (3, 4):
        net = smp.Unet("resnet18", encoder_weights=None, classes=1, in_channels=bands)
        config = {"encoder_name": "resnet18", "in_channels": bands, "classes": 1}
        how: dict[str, Any] = {"classes": ["roof"], "mean": [0.5] * bands, "std": [0.25] * bands}
        save_model(net, tmp_path / f"net{bands}", config=config, **how)
    values = np.random.default_rng(0).integers(0, 256, (4, 64, 64), dtype=np.uint8)
    tile = save_tiff(tmp_path / "four.tif", values)
    rest: list[object] = ["--class", "roof", "--region", "box:8,8,40,40", "--out", tmp_path / "out"]
    assert run("explain", tile, "--model", tmp_path / "net4", *rest) == cli.OK
    assert run("explain", tile, "--model", tmp_path / "net3", *rest) == cli.WRONG_INPUT
    said = " ".join(capsys.readouterr().err.split())
    assert "--bands 1,2,3" in said
    assert "--alpha 4" in said
    assert run("explain", tile, "--model", tmp_path / "net3", "--bands", "3,2,1", *rest) == cli.OK
    wide = save_tiff(tmp_path / "wide.tif", values[:3].astype(np.uint16) * 40)
    assert run("explain", wide, "--model", tmp_path / "net3", *rest) == cli.WRONG_INPUT
    assert "--divide-by" in " ".join(capsys.readouterr().err.split())
    assert run("explain", wide, "--model", tmp_path / "net3", "--divide-by", 10200, *rest) == cli.OK


def test_a_study_by_mask_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks of 1 and 2 in folders of other names: refused by check, studied with their meaning."""
    images = write_scenes(tmp_path / "tiles", 2, seed=2, size=96)
    for image in images:
        mask = image.parent.parent / "label" / image.name
        values = (np.array(Image.open(mask)) > 0).astype(np.uint8) + 1
        Image.fromarray(values).save(mask)
    (tmp_path / "tiles" / "image").rename(tmp_path / "tiles" / "sat")
    (tmp_path / "tiles" / "label").rename(tmp_path / "tiles" / "map")
    data, mapping = tmp_path / "tiles", "1=background,2=building"
    assert run("check", data, "--model", DEMO) == cli.SOME_FAILED
    assert "--mask-values 1=background,2=building" in capsys.readouterr().out
    assert run("check", data, "--model", DEMO, "--mask-values", mapping) == cli.OK
    text = capsys.readouterr().out
    assert "sat/" in text
    assert "building" in text
    code = run(
        "study", "--model", DEMO, "--data", data, "--class", "building", "--mask-values", mapping,
        "--methods", "gradcam", "--layers", "decoder:1", "--thresholds", "0.5", "--areas", "none",
        "--fills", "black", "--controls", "none", "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == cli.OK
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    reading = manifest["data"]["reading"]
    assert reading["mask_values"] == "1=background, 2=building"
    assert reading["images"] == "sat/*"
    assert manifest["study"]["methods"] == ["grad_cam"]
    assert "read as logits" in manifest["model"]["output"]


def test_settings_of_a_file_are_those_of_the_options(tmp_path: Path) -> None:
    config = tmp_path / "study.toml"
    config.write_text(
        'model = "m"\ndata = "d"\nclass = "b"\nbands = [3, 2, 1]\nmask-values = "1=a"\n'
        'output = "probabilities"\nsize = 224\nimages = "i/*"\n'
    )
    study = Study.of(**from_file(config))
    assert study.bands == (3, 2, 1)
    assert study.mask_values == "1=a"
    assert (study.output, study.size, study.images) == ("probabilities", 224, "i/*")


@needs_hf
def test_labels_that_the_processor_shifts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Masks of a class plus one, and 0 for void, as ADE20K's: the processor says so."""
    torch.manual_seed(0)
    net: Any = of_hf("Segformer")
    net.save_pretrained(tmp_path / "net")
    told = {"do_reduce_labels": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps(told))
    images = write_scenes(tmp_path / "tiles", 1, seed=2, size=64)
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:, 16:32], mask[:, 32:] = 1, 2  # a quarter void, a quarter ground, half roofs
    Image.fromarray(mask).save(tmp_path / "tiles" / "label" / images[0].name)
    model = load_model(tmp_path / "net")
    study = Study.of(model="m", data=str(tmp_path / "tiles"), **{"class": "roof"})
    sample = study.open_data(model)[0]
    assert torch.equal(sample["valid"], torch.from_numpy(mask > 0))
    value = model.mask_value(model.class_index("roof"))
    assert torch.equal(sample["mask"] == value, torch.from_numpy(mask == 2))
    assert run("check", tmp_path / "tiles", "--model", tmp_path / "net") == cli.OK
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0", "does", "not", "count", "25.00", "%"] in lines
    assert ["1", "ground", "25.00", "%"] in lines
    assert ["2", "roof", "50.00", "%"] in lines
