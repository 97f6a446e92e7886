"""Writes study files: every setting with its description, its default or what was chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from cyclopts import Parameter

from segproof.cli.console import OK, Switch, out
from segproof.cli.options import DATA, NETWORK, AllowFlag, Given, options_of, settings_of
from segproof.errors import StudyError, UnknownNameError, printable
from segproof.study import GROUPS, Settings, write_atomic

if TYPE_CHECKING:
    from segproof.models import SegmentationModel

    InitOptions: TypeAlias = Given | None
else:
    InitOptions = options_of("class", *NETWORK, *DATA)

__all__ = ["init", "study_file"]

_WIDTH: Final = 88


def init(
    model: Annotated[str, Parameter(help="Network, as for `segproof study --model`.")],
    data: Annotated[str, Parameter(help="Folder of tiles with masks.")],
    *,
    given: InitOptions = None,
    out_: Annotated[Path, Parameter("--out", help="Study file to write.")] = Path("study.toml"),
    force: Annotated[Switch, Parameter(help="Replace the file if it exists.")] = False,
    allow_code: AllowFlag = False,
) -> int:
    """Write a study file for a network and a folder of tiles."""
    if out_.exists() and not force:
        raise StudyError(f"{out_}, which exists", "a new file", "name another --out, or --force")
    settings = {"model": model, "data": data, "class": "", **settings_of(given)}
    network = Settings.of(**settings).open_model(allow_code=allow_code)
    settings["class"] = settings["class"] or network.classes[-1]
    network.class_index(settings["class"])  # an unknown class is told here, not by the study
    wish = Settings.of(**settings)
    tiles = wish.open_data(network)
    size = tuple(tiles[0]["image"].shape[-2:])
    settings["layers"] = _layers(network, size, wish.layers)
    text = study_file(settings, "run")
    write_atomic(out_, lambda stream: stream.write(f"{text}\n".encode()))
    classes = ", ".join(network.classes)
    facts = f"class {settings['class']} of {classes}; {len(tiles)} tiles"
    layers = ", ".join(settings["layers"])
    for line in (
        f"written: {out_} ({facts}; layers {layers})",
        f"Look through it, then run: segproof study {out_}",
    ):
        out.print(printable(line), markup=False, highlight=False, soft_wrap=True)
    return OK


def _layers(
    network: SegmentationModel, size: tuple[int, ...], wanted: tuple[str, ...]
) -> tuple[str, ...]:
    """The layers of the settings where the network has them, else its last two."""
    height, width = size
    try:
        for name in wanted:
            network.resolve_layer(name, (height, width))
    except UnknownNameError:
        return tuple(layer.alias for layer in network.layers((height, width))[-2:])
    return wanted


def study_file(settings: Mapping[str, Any], folder: Path | str | None = None) -> str:
    """The text of a study file in TOML: `settings` where they are given, else the defaults.

    A setting without a value stands as a comment: what happens without it is in its description.

    Raises:
        StudyError, UnknownNameError: the first setting that a study would refuse.
    """
    required = {
        info.alias or name: "" for name, info in Settings.model_fields.items() if info.is_required()
    }
    Settings.of(**{**required, **settings})  # a file that is written is one that can be read
    lines = ["# A study of segproof. Run it with: segproof study THIS_FILE"]
    for group in GROUPS:
        lines += ["", f"# --- {group} ---"]
        for name, info in Settings.model_fields.items():
            extra = info.json_schema_extra
            if not isinstance(extra, dict) or extra["group"] != group:
                continue
            key = info.alias or name
            value = settings.get(key, None if info.is_required() else info.default)
            lines += ["", *(f"# {line}" for line in wrap(info.description or "", _WIDTH))]
            lines.append(f"# {key} =" if value is None else f"{key} = {_toml(value)}")
    text = "Folder for the results; an unfinished run of the same study in it is resumed."
    lines += ["", f"# {text}", "# out =" if folder is None else f"out = {_toml(str(folder))}"]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """A value as TOML writes it; its strings are those of JSON but for the escaped DEL."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
