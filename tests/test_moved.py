"""Old names say where they are now; the package shows its public names alone."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import version

import pytest

import segproof
from segproof.moved import MODULES, NAMES


@pytest.mark.parametrize("name", sorted(MODULES))
def test_an_old_module_names_its_new_place(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"segproof.{MODULES[name]}") as told:
        importlib.import_module(f"segproof.{name}")
    assert told.value.name == f"segproof.{name}"
    assert importlib.import_module(f"segproof.{MODULES[name]}").__all__


def test_other_modules_are_not_found_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'segproof\.nothing'"):
        importlib.import_module("segproof.nothing")


def test_an_old_name_is_told() -> None:
    for old, new in NAMES.items():
        with pytest.raises(AttributeError, match=f"segproof.{new}"):
            getattr(segproof, old)
        assert getattr(segproof, new)
    with pytest.raises(AttributeError, match=r"segproof\.analysis"):
        _ = segproof.tables  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="nothing"):
        _ = segproof.nothing  # type: ignore[attr-defined]


def test_the_package_shows_its_public_names_and_loads_nothing() -> None:
    assert sorted(dir(segproof)) == sorted(segproof.__all__)
    assert segproof.__version__ == version("segproof")
    code = "import segproof, sys; dir(segproof); segproof.__version__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"torch", "numpy", "pandas", "pydantic"})
