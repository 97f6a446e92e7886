"""Names a function that is imported when it is first called, so that records stay light."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

__all__ = ["Deferred"]


@dataclass(frozen=True)
class Deferred:
    """A function of the package by its place, `module:name`; calling it imports the module.

    Menus, help texts and checks of names read the records alone and never load PyTorch.
    """

    place: str

    def resolve(self) -> Callable[..., Any]:
        """The function itself.

        Raises:
            ImportError: no such module.
            AttributeError: no such function in it.
        """
        function: Callable[..., Any] = resolve_name(self.place)
        return function

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """What the function returns."""
        return self.resolve()(*arguments, **keywords)
