"""Turns the settings of a study into options, and what is typed into settings.

A setting is described once, in `segproof.study.settings`: its option has its name, its description,
its default and its group. Lists are typed as a,b,c; `all` names everything, `none` nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypedDict, get_args, get_origin

from cyclopts import Group, Parameter

from segproof.cli.console import Switch
from segproof.errors import StudyError
from segproof.study import GROUPS, Settings, names_of_setting, read_toml

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = [
    "DATA",
    "NETWORK",
    "PICTURES",
    "AllFlag",
    "AllowFlag",
    "Given",
    "ImageFlag",
    "from_file",
    "list_of",
    "listed",
    "options_of",
    "part_of",
    "settings_of",
    "whole_of",
]

Given = dict[str, Any]  # settings by name, those that were given alone

# What several commands have to be told of a network and of its pictures and masks.
NETWORK: Final = (
    *("classes", "activation", "mean", "std", "output", "inputs", "size", "weights", "device"),
)
PICTURES: Final = ("bands", "alpha", "divide_by")
DATA: Final = ("images", "masks", "mask_values", "ignore_index", *PICTURES)

_GROUPS: Final = {name: Group(name, sort_key=place) for place, name in enumerate(GROUPS, start=10)}
_FIELDS: Final[dict[str, FieldInfo]] = {
    info.alias or name: info for name, info in Settings.model_fields.items()
}

AllowFlag = Annotated[
    Switch,
    Parameter(
        "--allow-code", help="Allow python:MODULE:NAME to import the module and run its code."
    ),
]
AllFlag = Annotated[
    Switch, Parameter("--all", help="Print every table of the study, not the ranking alone.")
]
ImageFlag = Annotated[
    Path | None,
    Parameter("--image", help="Picture to look at; without it, one is generated."),
]


def options_of(*names: str, **defaults: object) -> Any:
    """The annotation of a parameter that takes these settings as options; `defaults` are those that
    the command has instead of the study's own.
    """
    fields = {name: _option(name, defaults.get(name, _FIELDS[name].default)) for name in names}
    kind = TypedDict("Options", fields, total=False)  # type: ignore[misc]  # the names are data
    return Annotated[kind | None, Parameter(name="*")]


def _option(name: str, default: object) -> Any:
    """One setting as an annotation: how it is typed, what its help says, where it stands."""
    info = _FIELDS[name]
    kind = _typed_as(info)
    extra = info.json_schema_extra
    place = "The network" if name == "device" else isinstance(extra, dict) and extra["group"]
    group = _GROUPS[str(place)]
    text = f"{info.description}{_choices(name, kind)}{_default(default, info)}"
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        return Annotated[bool, Parameter(flag, help=text, group=group, negative=())]
    return Annotated[kind, Parameter(flag, help=text, group=group)]


def _typed_as(info: FieldInfo) -> Any:
    """The type of an option: bool, int, float, a choice; lists and the like are text."""
    kinds = [kind for kind in get_args(info.annotation) if kind is not type(None)]
    kind = kinds[0] if len(kinds) == 1 and type(None) in get_args(info.annotation) else None
    kind = kind or info.annotation
    return kind if kind in (bool, int, float) or get_origin(kind) is Literal else str


def _choices(name: str, kind: Any) -> str:
    """What a list may hold, where its names are known."""
    names = names_of_setting(name) if kind is str else ()
    return f" One or more of {', '.join(names)}; or all." if names else ""


def _default(value: object, info: FieldInfo) -> str:
    if info.is_required() or value is None or isinstance(value, bool):
        return ""
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f" [default: {text or 'none'}]"


def part_of(given: Given | None, names: Sequence[str]) -> Given:
    """The settings of a group, as values; empty where nothing was given."""
    return {name: value for name, value in settings_of(given).items() if name in names}


def settings_of(given: Mapping[str, Any] | None) -> Given:
    """Settings as typed on the command line, or written in a file, as values.

    Raises:
        StudyError: a list that is no list of numbers, a size that is none.
    """
    return {name: _value(name, value) for name, value in (given or {}).items()}


def _value(name: str, value: Any) -> Any:
    if not isinstance(value, str) or name not in _FIELDS:
        return value
    if name == "size":
        return sides_of(value)
    item = _item_of(_FIELDS[name])
    flag = f"--{name.replace('_', '-')}"
    if item is float:
        return numbers_of(value, flag)
    if item is int:
        return whole_of(value, flag)
    return value if item is None else list_of(value, name)


def _item_of(info: FieldInfo) -> Any:
    """What a list holds; None where a setting is no list."""
    for kind in (info.annotation, *get_args(info.annotation)):
        if get_origin(kind) is tuple:
            return get_args(kind)[0]
    return None


def from_file(config: Path | None) -> Given:
    """Settings of a study file: keys as the options are spelled, lists or a,b,c."""
    if config is None:
        return {}
    return settings_of({key.replace("-", "_"): value for key, value in read_toml(config).items()})


def list_of(text: str, name: str) -> tuple[str, ...]:
    """a,b,c of the names that the setting `name` may hold; all methods are those with a layer."""
    names = names_of_setting(name) or get_args(_item_of(_FIELDS[name]))
    if text == "all" and name == "methods":
        from segproof.explain import LAYERLESS  # loads torch, which other options do without

        names = [method for method in names if method not in LAYERLESS]
    return listed(text, names)


def listed(text: str, names: Sequence[str] = ()) -> tuple[str, ...]:
    """a,b,c as a tuple; `all` means every one of `names`, `none` no name."""
    if text in ("none", ""):
        return ()
    if text == "all" and names:
        return tuple(names)
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers_of(text: str, flag: str) -> tuple[float, ...]:
    """a,b,c as numbers.

    Raises:
        StudyError: what is no number.
    """
    try:
        return tuple(float(name) for name in listed(text))
    except ValueError:
        raise StudyError(f"{flag} {text}", "numbers, a,b,c", "check the list") from None


def whole_of(text: str, flag: str) -> tuple[int, ...]:
    """a,b,c as whole numbers, at least one.

    Raises:
        StudyError: what is no whole number.
    """
    numbers = numbers_of(text, flag)
    if not numbers or any(number != int(number) for number in numbers):
        raise StudyError(f"{flag} {text}", "whole numbers, a,b,c", "check the list")
    return tuple(int(number) for number in numbers)


def sides_of(text: str) -> int | tuple[int, int]:
    """N, or height and width, in pixels.

    Raises:
        StudyError: anything else.
    """
    sides = whole_of(text, "--size")
    if len(sides) > 2 or min(sides) < 1:
        raise StudyError(f"--size {text}", "one side, or height and width, px", "check --size")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
