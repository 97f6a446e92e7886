"""Modules import only from modules that stand before them, and from folders only their face."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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
# Imports from inside a folder that are still to go, as "importing file: imported name".
ALLOWED: set[str] = set()


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


def folders(package: Path) -> dict[str, set[str]]:
    """Folder -> the names in `__all__` of its `__init__`: its face."""
    faces = {}
    for path in package.glob("*/__init__.py"):
        names: set[str] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(item, ast.Name) and item.id == "__all__" for item in targets):
                    names = set(ast.literal_eval(node.value))
        faces[path.parent.name] = names
    return faces


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Full name of all that a file takes from the package, also through a folder's name."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                if alias.asname:
                    aliases[alias.asname] = alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name
                aliases[alias.asname or alias.name] = name
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=local), attr=name):
                owner = aliases.get(local, "")
                if owner.count(".") == 1:  # a module or folder of the package, not a name in one
                    yield f"{owner}.{name}"
            case ast.Attribute(
                value=ast.Attribute(value=ast.Name(id="segproof"), attr=folder), attr=name
            ):
                yield f"segproof.{folder}.{name}"


def past_the_face(package: Path) -> set[str]:
    """Imports of what a folder does not name in its `__all__`, by files outside that folder."""
    faces = folders(package)
    breaches = set()
    for path in package.rglob("*.py"):
        inside = path.relative_to(package)
        for name in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
            top, folder, *rest = [*name.split("."), ""][:3]
            if top != "segproof" or folder not in faces or folder == inside.parts[0]:
                continue
            if rest[0] and rest[0] not in faces[folder]:
                breaches.add(f"{inside.as_posix()}: {name}")
    return breaches


def test_folders_are_entered_by_their_face() -> None:
    breaches = past_the_face(PACKAGE)
    assert sorted(breaches - ALLOWED) == [], "import names of the folder's __all__ instead"
    assert sorted(ALLOWED - breaches) == [], "no such import any more: remove it from ALLOWED"


def test_every_folder_has_a_face() -> None:
    assert folders(PACKAGE)
    assert [name for name, names in folders(PACKAGE).items() if not names] == []


@pytest.mark.parametrize(
    ("line", "breach"),
    [
        ("from segproof.data import read", None),
        ("from segproof import data\ndata.read()", None),
        ("import segproof.data as tiles\ntiles.read()", None),
        ("from segproof.data.rasters import read", "segproof.data.rasters.read"),
        ("import segproof.data.rasters", "segproof.data.rasters"),
        ("from segproof.data import rasters", "segproof.data.rasters"),
        ("from segproof.data import _hidden", "segproof.data._hidden"),
        ("from segproof.data import *", "segproof.data.*"),
        ("from segproof import data\ndata.rasters.read()", "segproof.data.rasters"),
        ("import segproof.data as tiles\ntiles.rasters.read()", "segproof.data.rasters"),
        ("import segproof.data\nx = segproof.data.rasters", "segproof.data.rasters"),
        ("def f():\n    from segproof.data.rasters import read", "segproof.data.rasters.read"),
    ],
)
def test_the_face_rule_would_notice(line: str, breach: str | None, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("__all__ = ['load']\n")
    (tmp_path / "data" / "__init__.py").write_text("__all__ = ['read']\n")
    # inside its own folder a file imports its siblings by module
    (tmp_path / "data" / "tiles.py").write_text("from segproof.data.rasters import read\n")
    for importer in ("model.py", "model/load.py"):
        (tmp_path / importer).write_text(line)
        names = past_the_face(tmp_path)
        (tmp_path / importer).unlink()
        assert names == (set() if breach is None else {f"{importer}: {breach}"})
