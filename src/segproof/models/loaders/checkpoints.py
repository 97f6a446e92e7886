"""Reads weights from files as data, never as code: safetensors, and what torch.save wrote."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from segproof.errors import ModelError
from segproof.models.loaders.files import unfit

__all__ = ["MAX_CHECKPOINT", "read_checkpoint", "read_weights"]

PLAIN: Final = """\
import torch
old = torch.load({path!r}, map_location="cpu", weights_only=False)
plain = {{k: v for k, v in old["hyper_parameters"].items() if type(v) in (str, int, float, list)}}
torch.save({{"state_dict": dict(old["state_dict"]), "hyper_parameters": plain}}, {new!r})"""
PLAIN_STATE: Final = """\
import torch
old = torch.load({path!r}, map_location="cpu", weights_only=False)
state = old.state_dict() if hasattr(old, "state_dict") else old.get("state_dict", old)
torch.save({{k: v for k, v in state.items() if torch.is_tensor(v)}}, {new!r})"""
MAX_CHECKPOINT: Final = 4 << 30  # bytes once unpacked: optimizers keep twice the weights as well
MAX_PICKLE: Final = 64 << 20  # bytes of structure: names, shapes and hyper-parameters
MAX_NAMES: Final = 100_000
# the number that torch wrote first before it wrote zip files
LEGACY: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
NUMBERS: Final = frozenset(
    {
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    }
)


def read_weights(path: Path) -> Mapping[Any, Any]:
    """What a file of weights holds: names and tensors, or mappings of them one inside the other.

    Raises:
        ModelError: no such file, a damaged or too large one, or one that wants to run code.
    """
    if path.suffix != ".safetensors":
        wanted = "a state dict: weights by name, as torch.save or safetensors write them"
        return read_checkpoint(path, wanted, PLAIN_STATE)
    if not path.is_file():
        raise ModelError(f"no weights {path}", "a file of safetensors", "check the path")
    wanted = "a whole file of safetensors"
    if path.stat().st_size > MAX_CHECKPOINT:
        raise _too_large(path, path.stat().st_size)
    try:
        found = load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise unfit(path, error, wanted) from error
    _check(found, path, path.stat().st_size)
    return found


def read_checkpoint(path: Path, wanted: str, plain: str = PLAIN) -> Mapping[Any, Any]:
    """What torch.save wrote, as data; nothing in it is imported, called or executed.

    Raises:
        ModelError: as in `read_weights`.
    """
    size = _check_container(path, wanted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats; what they hold is checked below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _names_code(path, error, wanted, plain) or unfit(path, error, wanted) from error
    if isinstance(found, Tensor) or not isinstance(found, Mapping):
        raise ModelError(f"a {type(found).__name__} in {path}", wanted, "save the checkpoint")
    _check(found, path, size)
    return found


def _check_container(path: Path, wanted: str) -> int:
    """The size of a file once unpacked, in bytes, from what it says itself."""
    if not path.is_file():
        raise ModelError(f"no file {path}", wanted, "check --model")
    if not zipfile.is_zipfile(path):
        with path.open("rb") as opened:
            legacy = opened.read(len(LEGACY)) == LEGACY
        if not legacy:
            raise ModelError(
                f"{path}, which is no zip file and no older file of torch.save",
                wanted,
                "save it again with torch.save, or check --model",
            )
        if path.stat().st_size > MAX_CHECKPOINT:
            raise _too_large(path, path.stat().st_size)
        return path.stat().st_size
    try:
        with zipfile.ZipFile(path) as opened_zip:
            entries = opened_zip.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise unfit(path, error, wanted) from error
    size = sum(entry.file_size for entry in entries)
    pickled = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if size > MAX_CHECKPOINT or pickled > MAX_PICKLE:
        raise _too_large(path, size)
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise ModelError(f"{path}, a TorchScript program", wanted, "save the module's state_dict()")
    return size


def _too_large(path: Path, size: int) -> ModelError:
    return ModelError(
        f"{path} of {size / 2**30:.1f} GiB unpacked",
        f"at most {MAX_CHECKPOINT / 2**30:.0f} GiB, {MAX_PICKLE >> 20} MiB of it names and numbers",
        "save with save_weights_only=True, which leaves out the optimizer",
    )


def _check(found: Any, path: Path, size: int) -> None:
    """Refuse tensors that stand for more numbers than the file holds, or for other things."""
    total = count = 0
    pending = [(found, 0)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, Mapping) and depth < 8:
            count += len(value)
            pending += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list | tuple) and depth < 8:
            count += len(value)
            pending += [(item, depth + 1) for item in value]
        elif isinstance(value, Tensor):
            dense = value.layout is torch.strided and value.device.type == "cpu"
            if not dense or value.is_quantized:
                raise ModelError(
                    f"tensors in {path} that are sparse, quantised or without numbers",
                    "plain tensors of numbers",
                    "save the state dict of the network as it was trained",
                )
            total += value.numel() * value.element_size()
        # views of one number can stand for any amount of memory
        if total > 2 * size + (64 << 20):
            raise ModelError(
                f"tensors in {path} that stand for more numbers than it holds",
                "one stored number for each",
                "save the weights with .clone()",
            )
        if count > MAX_NAMES * 10:
            raise ModelError(f"{path} with over a million entries", "weights by name", "save again")


def _names_code(path: Path, error: Exception, wanted: str, plain: str) -> ModelError | None:
    """The error that names what a file would import; None where it names nothing."""
    try:
        names = sorted(get_unsafe_globals_in_checkpoint(path))  # reads the names, imports none
    except Exception:
        # files before torch 1.6 are not searched; the reader names the first import that it met
        names = sorted(set(re.findall(r"GLOBAL ([\w.]+)", str(error))))
    if not names:
        return None
    text = plain.format(path=str(path), new=f"{path.stem}-plain{path.suffix}")
    return ModelError(
        f"{path}, which wants to import {', '.join(names[:6])}{', ...' * (len(names) > 6)}",
        f"{wanted}: numbers and text alone, nothing in a file is run",
        "save it again with plain hyper-parameters (weights=None); or, only if you trust the file,"
        f" keep its data alone, where its packages are installed:\n{text}",
    )
