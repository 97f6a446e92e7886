"""Writes study files: every setting with its description, its default or what was chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any, Final

from segproof.study import GROUPS, Settings

__all__ = ["study_file"]

_WIDTH: Final = 88


def study_file(settings: Mapping[str, Any], out: Path | str | None = None) -> str:
    """The text of a study file in TOML: `settings` where they are given, else the defaults.

    A setting without a value stands as a comment: what happens without it is in its description.
    """
    lines = ["# A study of segproof. Run it with: segproof study THIS_FILE"]
    for group in GROUPS:
        lines += ["", f"# {group}"]
        for name, info in Settings.model_fields.items():
            extra = info.json_schema_extra
            if not isinstance(extra, dict) or extra["group"] != group:
                continue
            key = info.alias or name
            value = settings.get(key, None if info.is_required() else info.default)
            lines += ["", *(f"# {line}" for line in wrap(info.description or "", _WIDTH))]
            lines.append(f"# {key} =" if value is None else f"{key} = {_toml(value)}")
    text = "Folder for the results; a run of the same study that it holds is resumed."
    lines += ["", f"# {text}", "# out =" if out is None else f"out = {_toml(str(out))}"]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """A value as TOML writes it; its strings are those of JSON but for the escaped DEL."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
