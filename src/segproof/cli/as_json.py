"""Prints results as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from segproof.cli.console import Switch, out

__all__ = ["JsonFlag", "print_json"]

JsonFlag = Annotated[Switch, Parameter("--json", help="Print the result as JSON.")]


def print_json(value: object) -> None:
    """Print records, mappings and lists as one JSON document; what is no number is null."""
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False)
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
