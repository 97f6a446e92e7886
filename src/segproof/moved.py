"""Names the new place of modules and names that moved, where an old one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Final

__all__ = ["MODULES", "NAMES", "MovedFinder", "place_of"]

# Folder -> old modules whose names it offers now.
_FOLDERS: Final = {
    "data": ("scenes",),
    "models": (
        *("axes", "backoff", "inputs", "kernels", "layers", "load", "model", "outputs", "train"),
    ),
    "perturb": ("impute",),
    "explain": ("cam", "capture", "target"),
    "measures": ("curves", "judge", "quality"),
    "analysis": ("compare", "stats", "tables"),
    "study": (*("audit", "pace", "probe", "results", "sequential", "settings", "spread", "trial"),),
    "report": ("plot", "terminal"),
    "evidence": ("benchmark", "constructed", "nets", "planted", "reliance"),
    "testing": ("specimens",),
    "cli": ("options",),
}
MODULES: Final = {name: folder for folder, names in _FOLDERS.items() for name in names}
# Old public name -> the present one.
NAMES: Final = {"Until": "StopRule"}


def place_of(name: str) -> str:
    """Where an old name of the package is now, as a sentence; "" where there never was one."""
    if name in NAMES:
        return f"segproof.{name} is now called segproof.{NAMES[name]}"
    if name in MODULES:
        place = f"segproof.{MODULES[name]}"
        return f"the module segproof.{name} has moved: import its names from {place}"
    return ""


class MovedFinder(MetaPathFinder):
    """Is asked last, for modules that no other finder knows."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Raise ModuleNotFoundError with the new place of an old module; None for all others."""
        package, _, name = fullname.partition(".")
        if package == "segproof" and name in MODULES:
            raise ModuleNotFoundError(place_of(name), name=fullname)
