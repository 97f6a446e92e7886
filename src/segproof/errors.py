"""Holds the exception tree. Every error says what was found, what was expected and what to do.

SegproofError
├── DataError          images, masks, folders of tiles
├── ModelError         weights, outputs, input shapes
├── UnknownNameError   a class, layer, method, fill ... that does not exist (also a LookupError)
├── StudyError         settings of a study, run folders
│   └── TooManyFailedError  a study that stopped because tiles kept failing
└── DiskError          a run folder that cannot be written: full, read-only, failing
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from typing import Final, Self

__all__ = [
    "DataError",
    "DiskError",
    "ModelError",
    "SegproofError",
    "StudyError",
    "TooManyFailedError",
    "UnknownNameError",
    "canonical",
    "nearest",
    "printable",
]

# the commands that list what exists, by the kind of name
_LISTS: Final = {
    "layer": "segproof layers --model SPEC",
    "measure": "segproof measures",
    "fill": "segproof fills --model SPEC --data TILES",
    "method": "segproof explain --help",
    "control": "segproof study --help",
    "setting": "segproof study --help",
}
_SHOWN: Final = 5  # names in a message
_LIKE: Final = 0.4  # of 1: so much of two names has to be equal

_TURNS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # make a text read as another one


def printable(text: str, *, keep: str = "") -> str:
    """`text` that is safe to store and to print: what is not UTF-8, control characters (terminals
    obey them) and changes of the direction of writing are spelled out; those in `keep` stay.
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if char not in keep and (unicodedata.category(char) in ("Cc", "Cs") or ord(char) in _TURNS)
        else char
        for char in text
    )


def canonical(name: str, known: Iterable[object]) -> str | None:
    """The known name that `name` spells: itself, else the only one that is the same without case,
    spaces, hyphens and underscores, `+` and "plus" read as "p"; None where none or several are.

    Signs stay (decoder:-1), and so do separators between digits (x_0_4).
    """
    names = [str(item) for item in known]
    if name in names:
        return name
    folded = _folded(name)
    same = list(dict.fromkeys(item for item in names if _folded(item) == folded))
    return same[0] if len(same) == 1 and folded else None


def nearest(name: object, known: Iterable[object]) -> list[str]:
    """Known names that look like `name`, the likest first, five at most."""
    names = list(dict.fromkeys(str(item) for item in known))
    folded: dict[str, list[str]] = {}
    for item in names:
        folded.setdefault(_folded(item), []).append(item)
    asked = difflib.SequenceMatcher(b=_folded(str(name)))
    likeness = {}
    for key in folded:
        asked.set_seq1(key)
        if asked.quick_ratio() >= _LIKE and asked.ratio() >= _LIKE:
            likeness[key] = asked.ratio()
    near = sorted(likeness, key=lambda key: -likeness[key])  # equally like ones as they are listed
    return [item for key in near for item in folded[key]][:_SHOWN]


def _folded(name: str) -> str:
    text = name.casefold().replace("plus", "p").replace("+", "p")
    # all separators, but for those between digits and the sign of a number
    return re.sub(r"(?<!\d)[\s_]+|[\s_]+(?!\d)|-(?!\d)|(?<=[^\W\d])-", "", text)


class SegproofError(Exception):
    """Base of every error that segproof raises on purpose."""

    def __init__(self, found: str, expected: str, fix: str) -> None:
        super().__init__(found, expected, fix)
        self.found, self.expected, self.fix = found, expected, fix

    def __str__(self) -> str:
        text = f"found {self.found}; expected {self.expected}; {self.fix}"
        return printable(text, keep="\n")  # names of files are in it


class DataError(SegproofError, ValueError):
    """An image, a mask or a folder of tiles cannot be used as it is."""


class ModelError(SegproofError, ValueError):
    """A network, its weights or its output cannot be used as they are."""


class UnknownNameError(SegproofError, LookupError):
    """A name that does not exist; the message lists the nearest ones that do."""

    @classmethod
    def of(
        cls, kind: str, name: object, known: Iterable[object], *, listed_by: str | None = None
    ) -> Self:
        """Build the error for `name`: all known names where there are five at most, else the
        nearest five, how many others there are, and the command that lists them (`listed_by`, or
        that of the kind).
        """
        names = list(dict.fromkeys(str(item) for item in known))
        near = nearest(name, names)
        ordered = [*near, *(item for item in names if item not in near)]
        shown = ordered[:_SHOWN] if len(names) > _SHOWN else names
        command = listed_by or _LISTS.get(kind)
        others = len(names) - len(shown)
        expected = f"one of {', '.join(shown) or '(none)'}"
        if others:
            expected += f", or of {others} more"
            expected += f" that {command} lists" if command else ""
        likely = near[:3]
        fix = f"did you mean {' or '.join(likely)}?" if likely else f"choose a known {kind}"
        return cls(f"{kind} {str(name)!r}", expected, fix)


class StudyError(SegproofError, ValueError):
    """A study's settings or its run folder are not usable."""


class TooManyFailedError(StudyError):
    """More than 5 % of a study's tiles failed: it stopped, and what is finished is stored."""


class DiskError(SegproofError):
    """A run folder cannot be written; what is finished is stored, and a next run resumes it."""
