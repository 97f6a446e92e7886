"""What the README shows must run: its Python lines as they stand, its commands with real names."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from safetensors.torch import save_file

from families import MmSegmentor, MonaiUnet, NnUnet, TerraTorch, of_hf
from segproof import SegmentationModel, Study
from segproof.cli import app as cli
from segproof.cli.options import from_file
from segproof.data.scenes import write_scenes
from segproof.models.loaders.load import demo_model_spec, load_model

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with TILE.png and TILES, and the network in place of `smp:DIR`."""
    images = write_scenes(tmp_path / "TILES", 1, seed=2, size=96)
    (tmp_path / "TILE.png").write_bytes(images[0].read_bytes())
    (tmp_path / "DIR").symlink_to(demo_model_spec().removeprefix("smp:"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_lines_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, *_ = blocks("python")
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - our own page
    assert capsys.readouterr().out.startswith("ok torch.Size([96, 96]) tensor(922)")


@pytest.mark.parametrize("place", [1, 2, 3, 4], ids=["hf", "torchvision", "lightning", "own"])
def test_networks_of_other_kinds_run(folder: Path, place: int) -> None:
    code = blocks("python")[place]
    torch.manual_seed(0)
    if "SEGFORMER" in code:
        hf: Any = pytest.importorskip("transformers", reason="the extra hf is not installed")
        labels = {
            "id2label": {0: "ground", 1: "building"},
            "label2id": {"ground": 0, "building": 1},
        }
        small = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "decoder_hidden_size": 16}
        config = hf.SegformerConfig(**small, num_attention_heads=[1, 1, 2, 2], **labels)
        hf.SegformerForSemanticSegmentation(config).save_pretrained("SEGFORMER")
    if "DEEPLAB" in code:
        net = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=2
        )
        save_file(net.state_dict(), "DEEPLAB.safetensors")
    if "TASK.ckpt" in code:
        unet = smp.Unet("resnet18", encoder_weights=None, classes=2)
        state = {f"model.{name}": value for name, value in unet.state_dict().items()}
        task = {"model": "unet", "backbone": "resnet18", "num_classes": 2, "task": "multiclass"}
        torch.save({"state_dict": state, "hyper_parameters": task}, "TASK.ckpt")
    found: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), found)  # noqa: S102 - our own page
    assert found["made"].heatmap().shape == (96, 96)
    assert found["made"].status in ("ok", "all_zero", "no_target")


NETWORKS = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
HOW_TOS = re.findall(r"## (.+?)\n(?:(?!\n## ).)*?```python\n(.*?)```", NETWORKS, flags=re.DOTALL)
# the modules that these how-tos import and that are not installed here, with what they build
ABSENT: dict[str, dict[str, Any]] = {
    "mmseg.apis": {"init_model": lambda *_, **__: MmSegmentor("predict")},
    "terratorch.tasks": {
        "SemanticSegmentationTask": SimpleNamespace(
            load_from_checkpoint=lambda _: SimpleNamespace(model=TerraTorch())
        )
    },
    "nnunetv2.utilities.get_network_from_plans": {"get_network_from_plans": lambda *_: NnUnet()},
    "monai.networks.nets": {"UNet": lambda channels, **_: MonaiUnet(channels)},
}


def test_every_network_has_its_how_to() -> None:
    assert len(HOW_TOS) == NETWORKS.count("```python") == 13


@pytest.mark.parametrize("title", [title for title, _ in HOW_TOS])
def test_how_tos_run(title: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with files of random weights; packages that are not installed by their stand-ins."""
    code = dict(HOW_TOS)[title]
    torch.manual_seed(0)
    for name, members in ABSENT.items():
        for length in range(1, name.count(".") + 2):
            module = ".".join(name.split(".")[:length])
            monkeypatch.setitem(sys.modules, module, ModuleType(module))
        vars(sys.modules[name]).update(members)
    unet = smp.Unet("resnet18", encoder_weights=None, classes=2)
    if '"SMP"' in code:
        smp.Unet("resnet18", encoder_weights=None, classes=1).save_pretrained("SMP")
    torch.save({"state_dict": unet.state_dict()}, "STATE.pth")
    torch.save({f"model.{k}": v for k, v in unet.half().state_dict().items()}, "HALF.pth")
    if "LRASPP" in code:
        net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=2
        )
        torch.save({"model": net.state_dict()}, "LRASPP.pth")
    if "SEGFORMER" in code:
        pytest.importorskip("transformers", reason="the extra hf is not installed")
        segformer: Any = of_hf("Segformer")
        segformer.config.id2label = {0: "ground", 1: "building", 2: "road"}
        segformer.save_pretrained("SEGFORMER")
    if "TASK.ckpt" in code:
        state = {f"model.{name}": value for name, value in unet.float().state_dict().items()}
        task = {"model": "unet", "backbone": "resnet18", "num_classes": 2, "task": "multiclass"}
        torch.save({"state_dict": state, "hyper_parameters": task}, "TASK.ckpt")
    torch.save(MonaiUnet((4, 6, 8, 10)).state_dict(), "MONAI.pth")
    known = inspect.signature(SegmentationModel).parameters
    if "extra" not in known and any(word in code for word in ("HALF", "size=", "extra=")):
        pytest.skip("the contract of this version takes no such network")
    found: dict[str, Any] = {}
    exec(compile(code, title, "exec"), found)  # noqa: S102 - our own page
    assert found["made"].heatmap().shape == (96, 96)
    assert found["made"].status in ("ok", "all_zero", "no_target")


def test_commands_run(folder: Path) -> None:
    for line in "".join(blocks("bash")).strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "segproof"
        if arguments[0] == "study":
            arguments += shlex.split(
                "--methods grad_cam --thresholds 0.3 --areas 0.1 --controls none"
            )
        assert cli.main(arguments) == 0, line
    assert (folder / "run" / "report.html").is_file()
    assert (folder / "explained" / "TILE.png").is_file()
    assert (folder / "roofs" / "TILE-object1.png").is_file()


def test_the_page_on_data_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = blocks("python", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"))
    exec(compile(code, "data.md", "exec"), {})  # noqa: S102 - our own page
    assert capsys.readouterr().out.startswith("1 Images are image")


def test_objects_one_by_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = [block for block in blocks("python") if "explain_objects" in block]
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - our own page
    first = capsys.readouterr().out.splitlines()[0].split()
    assert first[0] == "object:1"
    assert int(first[1]) >= 64


def test_the_settings_file_is_one_that_loads() -> None:
    [text] = blocks("json")
    assert set(json.loads(text)) <= {"classes", "activation", "mean", "std", "bands", "input"}
    assert load_model(demo_model_spec(), **json.loads(text)).classes == ("background", "building")


@pytest.mark.parametrize("path", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_study_file_is_one_that_loads() -> None:
    settings = from_file(ROOT / "studies" / "roofs.toml")
    study = Study.of(model="smp:DIR", data="TILES", **settings)
    assert len(study.methods) == 5
    assert "random" in study.controls
