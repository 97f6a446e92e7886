"""The public names are a promise: a change shows up in tests/golden/api.json."""

from __future__ import annotations

import json
import os
from pathlib import Path

import segproof

GOLDEN = Path(__file__).parent / "golden" / "api.json"
RENEW = "SEGPROOF_RENEW=1 .venv/bin/python -m pytest tests/test_api.py"


def test_public_names_are_the_golden_ones() -> None:
    names = sorted(segproof.__all__)
    if os.environ.get("SEGPROOF_RENEW") == "1":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else []
    added, gone = sorted(set(names) - set(golden)), sorted(set(golden) - set(names))
    assert names == golden, f"added {added}, gone {gone}; if that is meant, renew: {RENEW}"


def test_every_public_name_exists_once_and_is_documented() -> None:
    assert len(set(segproof.__all__)) == len(segproof.__all__)
    for name in segproof.__all__:
        value = getattr(segproof, name)
        if callable(value):
            assert value.__doc__, f"{name} has no docstring"


def test_types_ship() -> None:
    assert (Path(segproof.__file__).parent / "py.typed").is_file()
