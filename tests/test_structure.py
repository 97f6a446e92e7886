"""Folders import only from folders that stand before them, and only what those offer."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import segproof

# The one way through the package: a folder may import from those before it, never from those after.
ORDER = [
    "moved",
    "errors",
    "deferred",
    "choices",
    "data",
    "models",
    "perturb",
    "explain",
    "measures",
    "analysis",
    "study",
    "report",
    "evidence",
    "testing",
    "doctor",
    "cli",
]
# Names that are read past a folder's face: importing file -> module. It only ever gets shorter.
PAST_THE_FACE: dict[str, set[str]] = {}
PACKAGE = Path(segproof.__file__).parent


def modules() -> dict[str, list[Path]]:
    """Name -> source files; a folder is one room."""
    found = {path.stem: [path] for path in PACKAGE.glob("*.py") if path.stem[:2] != "__"}
    for path in PACKAGE.glob("*/__init__.py"):
        found[path.parent.name] = sorted(path.parent.rglob("*.py"))
    return found


def imports(path: Path) -> list[str]:
    """Full names of what a file imports of the package anywhere, also inside functions."""
    full = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            full += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            full += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in full if name.startswith("segproof.")]


def face(folder: Path) -> set[str]:
    """Names that a folder offers: those of its `__init__.pyi`."""
    stub = (folder / "__init__.pyi").read_text(encoding="utf-8")
    return set(re.findall(r"\b(\w+) as \1\b", stub))


def past_the_face(name: str, path: Path) -> set[str]:
    """What a file of the room `name` imports from other folders but is not on their face."""
    found = set()
    for full in imports(path):
        _, room, *rest = full.split(".")
        folder = PACKAGE / room
        if room != name and folder.is_dir() and (len(rest) != 1 or rest[0] not in face(folder)):
            found.add(full)
    return found


def test_every_module_has_its_place() -> None:
    assert sorted(set(modules()) - set(ORDER)) == []


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_backwards(name: str) -> None:
    before = set(ORDER[: ORDER.index(name)])
    rooms = {full.split(".")[1] for path in modules()[name] for full in imports(path)} - {name}
    upward = sorted(room for room in rooms - before if room in ORDER)
    assert upward == [], f"{name} imports {upward}, which come after it"


@pytest.mark.parametrize("name", sorted(modules()))
def test_others_import_only_the_face(name: str) -> None:
    for path in modules()[name]:
        allowed = PAST_THE_FACE.get(str(path.relative_to(PACKAGE)), set())
        assert past_the_face(name, path) == allowed, f"{path.relative_to(PACKAGE)}"


@pytest.mark.parametrize("name", sorted(name for name in modules() if (PACKAGE / name).is_dir()))
def test_no_circle_in_a_folder(name: str) -> None:
    arrows = {}
    for path in modules()[name]:
        own = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        arrows[own] = {
            full.removeprefix("segproof.").rsplit(".", 1)[0]
            for full in imports(path)
            if full.startswith(f"segproof.{name}.")
        } - {own}
    try:
        tuple(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        pytest.fail(f"{name}: {' -> '.join(error.args[1])}")


def test_the_rules_would_notice(tmp_path: Path) -> None:
    source = tmp_path / "errors.py"
    source.write_text("def f():\n    from segproof.cli import main\n    return main\n")
    assert imports(source) == ["segproof.cli.main"]
    assert past_the_face("errors", source) == set()
    source.write_text("from segproof.study.run import Study\nfrom segproof.study import Study\n")
    assert past_the_face("errors", source) == {"segproof.study.run.Study"}
