"""Settings describe themselves, and reading them costs little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from run_folders import IDENTITY, tile
from segproof.errors import UnknownNameError
from segproof.study.settings import GROUPS, Settings
from segproof.study.store import RunStore

HEAVY = {"torch", "pandas", "matplotlib", "scipy", "transformers", "segmentation_models_pytorch"}


@pytest.mark.parametrize(
    "module", ["segproof.study.settings", "segproof.choices", "segproof.study.integrity"]
)
def test_what_the_command_line_reads_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_progress_of_a_run_is_told_without_heavy_libraries(tmp_path: Path) -> None:
    with RunStore(tmp_path, IDENTITY) as store:
        store.put(count=2, settings={"model": "net", "data": "tiles", "class": "roof", "seed": 3})
        store.write(tile("a"))
    code = (
        "import sys; from segproof.study import status; found = status(sys.argv[1])"
        f"; print(found.ok, found.count, found.command, sorted({HEAVY} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    command = f"segproof study --model net --data tiles --class roof --seed 3 --out {tmp_path}"
    assert run.stdout.strip() == f"1 2 {command} []"


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_says_what_it_is_and_where_it_belongs(name: str) -> None:
    field = Settings.model_fields[name]
    sentence = field.description or ""
    assert sentence[:1].isupper()
    assert sentence.endswith((".", "..."))
    assert isinstance(field.json_schema_extra, dict)
    assert field.json_schema_extra["group"] in GROUPS


def test_every_group_holds_settings() -> None:
    extras = [field.json_schema_extra for field in Settings.model_fields.values()]
    assert {extra["group"] for extra in extras if isinstance(extra, dict)} == set(GROUPS)


def test_a_misspelled_key_is_named_before_what_is_missing_for_it(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('modle = "smp:net"\ndata = "tiles"\nclass = "building"\n')
    with pytest.raises(UnknownNameError, match="did you mean model"):
        Settings.from_toml(file)
