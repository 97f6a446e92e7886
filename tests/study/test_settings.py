"""Settings describe themselves, and reading them costs little."""

from __future__ import annotations

import subprocess
import sys

import pytest

from segproof.study.settings import GROUPS, Settings

HEAVY = {"torch", "pandas", "matplotlib", "scipy", "transformers", "segmentation_models_pytorch"}


@pytest.mark.parametrize("module", ["segproof.study.settings", "segproof.choices"])
def test_what_the_command_line_reads_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


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
