"""Calls a function of one's own that returns a network, where code is allowed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

from segproof.errors import ModelError, SegproofError

__all__ = ["run_factory"]


def run_factory(rest: str, *, allow_code: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The network that `MODULE:FACTORY` returns; it runs with `allow_code` only.

    Raises:
        ModelError: code that may not run or fails, or a result that is no network.
    """
    name, _, factory = rest.partition(":")
    if not factory:
        raise ModelError(f"python:{rest}", "python:MODULE:FACTORY", "name the function too")
    if not allow_code:
        raise ModelError(
            f"python:{rest}, which runs code",
            "your word that this code may run",
            "pass --allow-code (allow_code=True) if you trust it",
        )
    here = str(Path.cwd())
    sys.path.insert(0, here)  # a script of the console has no working folder in it
    try:
        net = getattr(importlib.import_module(name), factory)()
    except SegproofError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name}.{factory}() ending in {type(error).__name__}: {error}",
            "a function without arguments that returns the network",
            "run it in Python to see where it fails",
        ) from error
    finally:
        sys.path.remove(here)
    if not isinstance(net, nn.Module):
        raise ModelError(
            f"{name}.{factory}() returning a {type(net).__name__}",
            "a torch.nn.Module",
            "return the network",
        )
    return net, {}
