"""The exception tree. Every error says what was found, what was expected and what to do.

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
import unicodedata
from collections.abc import Iterable
from typing import Self

__all__ = [
    "DataError",
    "DiskError",
    "ModelError",
    "SegproofError",
    "StudyError",
    "TooManyFailedError",
    "UnknownNameError",
    "printable",
]

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
    def of(cls, kind: str, name: object, known: Iterable[object]) -> Self:
        """Build the error for `name`, naming up to three near matches and all known names."""
        names = [str(item) for item in known]
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
        listed = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
        fix = f"did you mean {' or '.join(near)}?" if near else f"choose a known {kind}"
        return cls(f"{kind} {str(name)!r}", f"one of {listed or '(none)'}", fix)


class StudyError(SegproofError, ValueError):
    """A study's settings or its run folder are not usable."""


class TooManyFailedError(StudyError):
    """More than 5 % of a study's tiles failed: it stopped, and what is finished is stored."""


class DiskError(SegproofError):
    """A run folder cannot be written; what is finished is stored and gone on with."""
