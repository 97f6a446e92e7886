"""What README and guide show must run: Python as it stands, commands with real names."""

from __future__ import annotations

import ast
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

from families import MmSegmentor, MonaiUnet, NnUnet, TerraTorch, of_hf
from segproof import SegmentationModel, Study
from segproof.cli import app as cli
from segproof.cli.options import from_file
from segproof.data.scenes import write_scenes
from segproof.models.loaders.load import demo_model_spec, load_model
from test_structure import ORDER

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "guide"
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WITH_COMMANDS = ("first-report.md", "one-picture.md")


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


NETWORKS = (GUIDE / "your-network.md").read_text(encoding="utf-8")
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
    assert len(HOW_TOS) == NETWORKS.count("```python") == 14


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
    names: dict[str, Any] = {}
    exec(compile(code, title, "exec"), names)  # noqa: S102 - our own page
    assert names["explanation"].heatmap().shape == (96, 96)
    assert names["explanation"].status in ("ok", "all_zero", "no_target")


def test_commands_run(folder: Path) -> None:
    pages = [README, *((GUIDE / name).read_text(encoding="utf-8") for name in WITH_COMMANDS)]
    lines = "".join(block for page in pages for block in blocks("bash", page)).splitlines()
    for line in dict.fromkeys(re.sub(" +", " ", line) for line in lines):  # each command once
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
    [code] = blocks(
        "python", (ROOT / "docs" / "guide" / "your-data.md").read_text(encoding="utf-8")
    )
    exec(compile(code, "data.md", "exec"), {})  # noqa: S102 - our own page
    assert capsys.readouterr().out.startswith("1 Images are image")


def test_objects_one_by_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = blocks("python", (GUIDE / "one-picture.md").read_text(encoding="utf-8"))
    exec(compile(code, "one-picture.md", "exec"), {})  # noqa: S102 - our own page
    first = capsys.readouterr().out.splitlines()[0].split()
    assert first[0] == "object:1"
    assert int(first[1]) >= 64


def test_the_settings_file_is_one_that_loads() -> None:
    [text] = blocks("json", NETWORKS)
    assert set(json.loads(text)) <= {"classes", "activation", "mean", "std", "bands", "input"}
    assert load_model(demo_model_spec(), **json.loads(text)).classes == ("background", "building")


@pytest.mark.parametrize("path", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_architecture_names_files_that_are_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    paths = re.findall(r"`(\w+/[\w/]+\.(?:py|css))`", text)
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / "src" / "segproof" / path).is_file() or (ROOT / path).is_file(), path


def test_the_architecture_shows_the_folders_in_their_order() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert re.findall(r"^  (\w+)  +\w", text, re.M) == ORDER[::-1]


def test_every_section_of_a_report_is_explained() -> None:
    page = (GUIDE / "reading-a-report.md").read_text(encoding="utf-8").lower()
    titles = section_titles()
    assert len(titles) >= 13
    assert [title for title in titles if title.lower() not in page] == []


def section_titles() -> list[str]:
    """The titles that the modules of the report give their sections."""
    titles = []
    for path in sorted((ROOT / "src" / "segproof" / "report").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant)]
                if node.func.id == "Section" and len(names) == 2 and names[0]:
                    titles.append(str(names[1]))
    return titles


def test_every_command_is_on_its_page() -> None:
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
    commands = {name for name in cli.app if not name.startswith("-")}
    assert set(re.findall(r"\| `segproof (\w+)` \|", page)) == commands


def test_the_study_file_is_one_that_loads() -> None:
    settings = from_file(ROOT / "studies" / "roofs.toml")
    study = Study.of(model="smp:DIR", data="TILES", **settings)
    assert len(study.methods) == 5
    assert "random" in study.controls
