"""Reads the small files beside weights, and words the errors that all loaders share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from segproof.errors import ModelError

__all__ = [
    "IMAGENET",
    "MAX_CHANNELS",
    "UNFIT",
    "check_encoder",
    "class_names",
    "first_line",
    "read_json",
    "read_settings",
    "unfit",
]

IMAGENET: Final = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
MAX_CHANNELS: Final = 4096
MAX_SIDE: Final = 1 << 16  # px
MAX_JSON: Final = 16 << 20  # bytes; the longest real one, with 150 class names, has 20 kB
# what a constructor of smp, timm or torchvision raises, and load_state_dict after it
UNFIT: Final = (
    *(TypeError, KeyError, ValueError, RuntimeError, AttributeError, IndexError, AssertionError),
)


def _is_side(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIDE


# further keys of segproof.json: what they may hold, and that in words
OTHERS: Final[tuple[tuple[str, Callable[[Any], bool], str], ...]] = (
    ("options", lambda value: isinstance(value, Mapping), "a JSON object"),
    ("output", lambda value: type(value) in (str, int), "the name or number of an output"),
    ("inputs", lambda value: isinstance(value, str), "a keyword, dict:KEY, or groups of bands"),
    ("reduce_labels", lambda value: isinstance(value, bool), "true or false"),
    (
        "size",
        lambda value: (
            _is_side(value)
            or (isinstance(value, list) and len(value) == 2 and all(map(_is_side, value)))
        ),
        "one side, or height and width, px",
    ),
)


def class_names(channels: int) -> list[str]:
    """Names where a file holds none: "object" for one channel, else class_0, class_1, ..."""
    return ["object"] if channels == 1 else [f"class_{i}" for i in range(channels)]


def first_line(error: Exception) -> str:
    """The first line of what an error says, shortened; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def unfit(path: Path, error: Exception | str, expected: str, fix: str = "") -> ModelError:
    """The error of weights or settings in `path` that do not fit."""
    said = error if isinstance(error, str) else first_line(error)
    return ModelError(
        f"weights or settings in {path} that do not fit ({said})",
        expected,
        fix or "save both again",
    )


def check_encoder(name: object, where: str | Path) -> None:
    """Refuse the name of an encoder that says where to load it from.

    Raises:
        ModelError: timm would ask a hub for it, or open a file.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise ModelError(
            f"encoder_name {name!r} in {where}",
            "the plain name of an encoder",
            "write the name without a place to load it from",
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """What `segproof.json` in a folder says; nothing where there is none."""
    path = folder / "segproof.json"
    written = read_json(path, "a JSON object") if path.is_file() else {}
    settings = {key: value for key, value in written.items() if value is not None}
    for key, kinds in (("classes", str), ("mean", int | float), ("std", int | float)):
        value = settings.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, kinds) for item in value):
            wanted = "names" if kinds is str else "numbers, one per band"
            shown = repr(value)[:200]
            raise ModelError(f"{key} {shown} in {path}", f"a list of {wanted}", "write it again")
        if len(value) > MAX_CHANNELS:
            raise ModelError(
                f"{len(value)} {key} in {path}", f"at most {MAX_CHANNELS}", "write it again"
            )
    for key, fits, wanted in OTHERS:
        if key in settings and not fits(settings[key]):
            shown = repr(settings[key])[:200]
            raise ModelError(f"{key} {shown} in {path}", wanted, "write it again")
    if isinstance(settings.get("size"), list):
        settings["size"] = tuple(settings["size"])
    return settings


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelError: no such file, one that is too long or nested too deeply, or no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise ModelError(f"{path} of {path.stat().st_size} bytes", expected, "write it again")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"no readable {path}", expected, "check --model") from error
    except (ValueError, RecursionError) as error:
        said = first_line(error) if isinstance(error, ValueError) else "nested too deeply"
        raise ModelError(f"{path} is not JSON ({said})", expected, "write it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}", expected, "write it again")
    return value
