"""The exception tree. Every error says what was found, what was expected and what to do.

SegproofError
├── DataError          images, masks, folders of tiles
├── ModelError         weights, outputs, input shapes
├── UnknownNameError   a class, layer, method, fill ... that does not exist (also a LookupError)
└── StudyError         settings of a study, run folders
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Self

__all__ = ["DataError", "ModelError", "SegproofError", "StudyError", "UnknownNameError"]


class SegproofError(Exception):
    """Base of every error that segproof raises on purpose."""

    def __init__(self, found: str, expected: str, fix: str) -> None:
        super().__init__(found, expected, fix)
        self.found, self.expected, self.fix = found, expected, fix

    def __str__(self) -> str:
        return f"found {self.found}; expected {self.expected}; {self.fix}"


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
