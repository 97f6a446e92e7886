"""The table of commands: each exists, says the same as its function, and has an example that runs
as far as its options; the first help loads none of them.
"""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from segproof.cli.app import app
from segproof.cli.commands import COMMANDS
from segproof.cli.renamed import RENAMED
from segproof.study.store import RunStore, TileResult

HEAVY = ("torch", "pandas", "numpy", "matplotlib", "scipy", "rasterio", "transformers")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_says_what_its_function_does(name: str) -> None:
    module, function = COMMANDS[name].function.split(":")
    called = getattr(importlib.import_module(module), function)
    assert called.__doc__.splitlines()[0] == COMMANDS[name].help.splitlines()[0]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_an_example_is_a_command_line_that_parses(name: str) -> None:
    words = shlex.split(COMMANDS[name].example)
    assert words[:2] == ["segproof", name]
    # raises where an option or an argument does not exist
    _, bound, unused = app.parse_known_args(words[1:])[:3]
    assert not unused
    assert bound.arguments


@pytest.mark.parametrize("name", sorted(RENAMED))
def test_a_renamed_option_has_its_new_name_and_no_longer_the_old_one(name: str) -> None:
    options = {
        flag for argument in app[name].assemble_argument_collection() for flag in argument.names
    }
    for old, new in RENAMED[name].items():
        assert new in options
        assert old not in options


def loaded_by(*words: str) -> set[str]:
    """Top-level modules that a command line has loaded when it ends, in a process of its own."""
    code = (
        "import json, sys\n"
        "from segproof.cli import main\n"
        "code = main(json.loads(sys.argv[1]))\n"
        "print('\\n' + json.dumps([code, sorted({name.split('.')[0] for name in sys.modules})]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(words)], capture_output=True, text=True, check=True
    )
    code_, names = json.loads(done.stdout.splitlines()[-1])
    assert code_ == 0, done.stderr
    return set(names)


@pytest.mark.parametrize("words", [(), ("--help",), ("--version",)])
def test_the_first_help_loads_no_command(words: tuple[str, ...]) -> None:
    names = loaded_by(*words)
    assert "cyclopts" in names
    assert names.isdisjoint(HEAVY)
    assert "pydantic" not in names


@pytest.mark.parametrize("words", [("measures",), ("measures", "contrast")])
def test_measures_load_no_torch(words: tuple[str, ...]) -> None:
    assert loaded_by(*words).isdisjoint(HEAVY)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"evidence"}))
def test_help_of_a_command_loads_neither_torch_nor_pandas(name: str) -> None:
    assert loaded_by(name, "--help").isdisjoint(HEAVY)


def test_status_loads_neither_torch_nor_the_tables(tmp_path: Path) -> None:
    with RunStore(tmp_path, {"weights": "w"}) as store:
        store.put(count=3, began=0.0, settings={"model": "m", "data": "d", "class": "b"})
        store.write(TileResult("a", 0, "ok"))
    for words in (["status", str(tmp_path)], ["status", str(tmp_path), "--json"]):
        names = loaded_by(*words)
        assert "sqlite3" in names
        assert names.isdisjoint(HEAVY)
