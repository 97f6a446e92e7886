"""Study files: what --print-config writes is a study file, and says what every key means."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from segproof.cli import app as cli
from segproof.cli.study_file import study_file
from segproof.data.scenes import write_scenes
from segproof.models.loaders.load import demo_model_spec
from segproof.study.settings import Settings

NAMED = ["--model", "m", "--data", "d", "--class", "b"]


def test_what_is_printed_is_a_study_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--layers", "decoder:1", "--size", "64,96", "--otsu", "--out", "my run"]
    assert cli.main(["study", *NAMED, *more, "--print-config"]) == cli.OK
    text = capsys.readouterr().out
    config = tmp_path / "study.toml"
    config.write_text(text, encoding="utf-8")
    read = tomllib.loads(text)
    assert read.pop("out") == "my run"
    assert Settings.of(**read) == Settings.of(
        model="m", data="d", **{"class": "b"}, layers=("decoder:1",), size=(64, 96), otsu=True
    )
    # read and written again it is the same
    assert cli.main(["study", str(config), "--print-config"]) == cli.OK
    assert capsys.readouterr().out == text


def test_every_key_stands_with_its_description_and_default() -> None:
    text = study_file({})
    lines = text.splitlines()
    words = " ".join(text.replace("#", " ").split())
    read = tomllib.loads(text)
    for name, info in Settings.model_fields.items():
        key = info.alias or name
        assert " ".join((info.description or "").replace("#", " ").split()) in words
        default = None if info.is_required() else info.default
        if default is None:
            assert f"# {key} =" in lines
        else:
            value = tuple(read[key]) if isinstance(read[key], list) else read[key]
            assert value == default
    assert "model" not in read


@pytest.mark.parametrize("value", ['a"b', "a\\b", "a\nb", "\x7f", "é", "#"])
def test_any_text_comes_back(value: str) -> None:
    assert tomllib.loads(study_file({"model": value}))["model"] == value


def test_an_unknown_key_names_the_near_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "study.toml"
    config.write_text('model = "m"\ndata = "d"\nclass = "b"\nlimits = 3\n', encoding="utf-8")
    assert cli.main(["study", str(config), "--out", str(tmp_path / "run")]) == cli.WRONG_INPUT
    assert "did you mean limit" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_init_writes_a_file_for_a_network_and_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path / "tiles", 2, seed=2, size=96)
    config = tmp_path / "study.toml"
    words = ["init", demo_model_spec(), str(tmp_path / "tiles"), "--out", str(config)]
    assert cli.main(words) == cli.OK
    told = capsys.readouterr()
    assert "loading the network" in told.err
    assert "class building of background, building; 2 tiles" in told.out
    read = tomllib.loads(config.read_text(encoding="utf-8"))
    assert read.pop("out") == "run"
    study = Settings.of(**read)
    assert (study.class_, study.layers) == ("building", ("decoder:1", "decoder:2"))
    config.write_text("mine", encoding="utf-8")
    assert cli.main(words) == cli.WRONG_INPUT
    assert "--force" in capsys.readouterr().err
    assert config.read_text(encoding="utf-8") == "mine"
    assert cli.main([*words, "--force", "--class", "background"]) == cli.OK
    read = tomllib.loads(config.read_text(encoding="utf-8"))
    assert read["class"] == "background"


def test_init_names_the_near_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path / "tiles", 1, seed=2, size=96)
    words = ["init", demo_model_spec(), str(tmp_path / "tiles"), "--class", "bilding"]
    out = tmp_path / "study.toml"
    assert cli.main([*words, "--out", str(out)]) == cli.WRONG_INPUT
    assert "did you mean building" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_study_file_that_no_study_would_take_is_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "study.toml"
    config.write_text('modle = "net"\n', encoding="utf-8")
    for words, near in (
        (["--methods", "grad_kam"], "did you mean grad_cam"),
        (["--config", str(config)], "did you mean model"),
    ):
        assert cli.main(["study", "--print-config", *words]) == cli.WRONG_INPUT
        told = capsys.readouterr()
        assert near in " ".join(told.err.split())
        assert told.out == ""
