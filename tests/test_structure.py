"""Modules import only from modules that stand before them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import segproof

# The one way through the package: a module may import from those before it, never from those after.
ORDER = [
    "errors",
    "backoff",
    "data",
    "scenes",
    "axes",
    "layers",
    "outputs",
    "inputs",
    "kernels",
    "model",
    "load",
    "train",
    "nets",
    "target",
    "impute",
    "perturb",
    "capture",
    "cam",
    "explain",
    "measures",
    "judge",
    "planted",
    "curves",
    "quality",
    "stats",
    "reliance",
    "tables",
    "compare",
    "sequential",
    "results",
    "settings",
    "trial",
    "probe",
    "pace",
    "dask_executor",
    "spread",
    "study",
    "audit",
    "constructed",
    "evidence",
    "plot",
    "benchmark",
    "report",
    "terminal",
    "specimens",
    "testing",
    "doctor",
    "options",
    "cli",
]
PACKAGE = Path(segproof.__file__).parent


def modules() -> dict[str, list[Path]]:
    """Name -> source files; a folder with __init__.py is one module."""
    found = {path.stem: [path] for path in PACKAGE.glob("*.py") if path.stem[:2] != "__"}
    for path in PACKAGE.glob("*/__init__.py"):
        found[path.parent.name] = sorted(path.parent.rglob("*.py"))
    return found


def imported(name: str, files: list[Path]) -> set[str]:
    """Own modules that `name` imports anywhere, also inside functions."""
    found = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                full = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}: relative import"
                base = node.module or ""
                full = [
                    f"{base}.{alias.name}" if base == "segproof" else base for alias in node.names
                ]
            else:
                continue
            found |= {item.split(".")[1] for item in full if item.startswith("segproof.")}
    return found - {name}


def test_every_module_has_its_place() -> None:
    assert sorted(set(modules()) - set(ORDER)) == []


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_backwards(name: str) -> None:
    before = set(ORDER[: ORDER.index(name)])
    upward = imported(name, modules()[name]) - before
    names = sorted(item for item in upward if item in ORDER)
    assert names == [], f"{name} imports {names}, which come after it"


def test_the_order_would_notice(tmp_path: Path) -> None:
    source = tmp_path / "errors.py"
    source.write_text("def f():\n    from segproof.cli import main\n    return main\n")
    assert imported("errors", [source]) == {"cli"}
