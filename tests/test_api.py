"""The public names are a promise: a change shows up in tests/golden/api.json."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path

import segproof

GOLDEN = Path(__file__).parent / "golden" / "api.json"
MEMBERS = GOLDEN.with_name("members.json")
RENEW = "SEGPROOF_RENEW=1 .venv/bin/python -m pytest tests/test_api.py"


def test_public_names_are_the_golden_ones() -> None:
    names = sorted(segproof.__all__)
    if os.environ.get("SEGPROOF_RENEW") == "1":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else []
    added, gone = sorted(set(names) - set(golden)), sorted(set(golden) - set(names))
    assert names == golden, f"added {added}, gone {gone}; if that is meant, renew: {RENEW}"


def members(value: object) -> list[str]:
    """Public attributes that our own classes give a class, or the names that a table lists."""
    if inspect.isclass(value):
        ours = [base for base in value.__mro__ if base.__module__.split(".")[0] == "segproof"]
        names = {name for base in ours for name in (*vars(base), *inspect.get_annotations(base))}
        return sorted(name for name in names if not name.startswith(("_", "model_config")))
    return list(value) if isinstance(value, Mapping | list | tuple) else []


def test_members_of_public_names_are_the_golden_ones() -> None:
    """Attributes of public classes; ids of methods, fills, measures, controls in their order."""
    listed = {name: members(getattr(segproof, name)) for name in sorted(segproof.__all__)}
    listed = {name: names for name, names in listed.items() if names}
    if os.environ.get("SEGPROOF_RENEW") == "1":
        MEMBERS.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    golden = json.loads(MEMBERS.read_text(encoding="utf-8")) if MEMBERS.exists() else {}
    changed = {
        name: (golden.get(name), listed.get(name))
        for name in {*golden, *listed}
        if golden.get(name) != listed.get(name)
    }
    assert not changed, f"before and now: {changed}; if that is meant, renew: {RENEW}"


def test_every_public_name_exists_once_and_is_documented() -> None:
    assert len(set(segproof.__all__)) == len(segproof.__all__)
    for name in segproof.__all__:
        value = getattr(segproof, name)
        if callable(value):
            assert value.__doc__, f"{name} has no docstring"


def test_types_ship() -> None:
    assert (Path(segproof.__file__).parent / "py.typed").is_file()
