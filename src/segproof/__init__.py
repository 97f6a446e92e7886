"""segproof explains segmentation networks and puts the explanations on trial."""

import sys as _sys
from typing import Any as _Any

import lazy_loader as _lazy_loader

from segproof.moved import MovedFinder as _MovedFinder, place_of as _place_of

_load_name, __dir__, __all__ = _lazy_loader.attach_stub(__name__, __file__)
_sys.meta_path.append(_MovedFinder())


def __getattr__(name: str) -> _Any:
    """A public name, loaded when it is used; the version; for old names, where they are now."""
    if name == "__version__":
        from importlib.metadata import version

        return version("segproof")
    try:
        return _load_name(name)
    except AttributeError:
        place = _place_of(name)
        if not place:
            raise
        raise AttributeError(place, name=name) from None
