"""Accepts old names of options for one release, with a notice that gives the new name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from segproof.cli.console import log

__all__ = ["RENAMED", "renamed"]

RENAMED: Final = {
    "explain": {"--method": "--methods", "--layer": "--layers"},
    "recommend": {"--tiles": "--limit"},
    "fills": {"--tiles": "--limit"},
    "verify": {"--tiles": "--limit"},
    "evidence": {"--method": "--methods", "--measure": "--measures"},
}


def renamed(words: Sequence[str]) -> list[str]:
    """The words of a command line with the present names of its options; a notice for each."""
    names = RENAMED.get(words[0], {}) if words else {}
    given = []
    for word in words:
        option, equals, value = word.partition("=")
        if option in names:
            log.warning("%s is now called %s; the old name will be removed", option, names[option])
        given.append(names.get(option, option) + equals + value)
    return given
