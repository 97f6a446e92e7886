"""Decides by what a folder or file holds how it has to be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from segproof.errors import ModelError
from segproof.models.loaders.checkpoints import read_weights
from segproof.models.loaders.files import read_json
from segproof.models.loaders.fit import blueprint, choose
from segproof.models.loaders.smp_folder import ARCHITECTURES
from segproof.models.loaders.torchvision_ import TORCHVISION, blueprint_names

__all__ = ["SCHEMES", "spec_of"]

SCHEMES: Final = (
    "smp:DIR",
    "smp:ARCH:ENCODER:FILE",
    "hf:DIR",
    "torchvision:NAME[:FILE]",
    "lightning:FILE",
    "python:MODULE:FACTORY",
)
STATES: Final = (".pth", ".pt", ".bin", ".safetensors")


def spec_of(path: Path) -> str:
    """The specification of a folder or file that says itself what it holds.

    Raises:
        ModelError: it does not; the specifications that could fit are listed.
    """
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".ckpt":
        return f"lightning:{path}"
    fits = _fitting(path) if path.suffix in STATES else [f"lightning:{path}"]
    raise ModelError(
        f"{path}, a file that does not say which network it belongs to",
        f"one of {', '.join(fits)}",
        "name the network before the file",
    )


def _folder(path: Path) -> str:
    config = path / "config.json"
    if config.is_file():
        written = read_json(config, "the folder that save_pretrained writes")
        of_smp = "_model_class" in written or "encoder_name" in written
        of_hf = "architectures" in written or "model_type" in written
        if of_smp != of_hf:
            return f"smp:{path}" if of_smp else f"hf:{path}"
        raise ModelError(
            f"{config}, which names {'two kinds of network' if of_smp else 'no network'}",
            "encoder_name (smp), or architectures (transformers)",
            f"write smp:{path} or hf:{path}",
        )
    inside = sorted(file.name for file in path.iterdir() if file.suffix in (*STATES, ".ckpt"))
    shown = ", ".join(inside[:5]) or "no weights"
    raise ModelError(
        f"{path} with {shown} and no config.json",
        f"a folder of save_pretrained, or one of {', '.join(SCHEMES)}",
        f"name the file: {path / inside[0]}" if inside else "check --model",
    )


def _fitting(path: Path) -> list[str]:
    """Specifications whose networks have the names that the weights in a file have."""
    found = read_weights(path)
    fits = [
        f"torchvision:{name}:{path}"
        for name in TORCHVISION
        if _share(found, blueprint_names(name), path) > 0.99
    ]
    shares = {}
    for name, kind in ARCHITECTURES.items():
        encoder = "tu-vit_tiny_patch16_224" if name == "DPT" else "resnet18"
        plan = blueprint(lambda kind=kind, encoder=encoder: kind(encoder, encoder_weights=None))  # type: ignore[misc]
        own = [key for key in plan.state_dict() if not key.startswith("encoder.")]
        shares[name] = _share(found, own, path)
    best = max(shares.values())
    if best > 0.5:
        fits += [f"smp:{name}:ENCODER:{path}" for name, share in shares.items() if share == best]
    if isinstance(found.get("hyper_parameters"), Mapping):
        fits.insert(0, f"lightning:{path}")
    return fits or [
        f"smp:ARCH:ENCODER:{path}", f"torchvision:NAME:{path}", "python:MODULE:FACTORY"
    ]  # fmt: skip


def _share(found: Mapping[object, object], names: list[str], path: Path) -> float:
    """The part of a network's names that some set of weights in the file has."""
    try:
        inside = choose(found, names, path).weights
    except ModelError:  # several sets that fit the same names
        values = [v for v in found.values() if isinstance(v, Mapping)]
        inside = next((dict(v) for v in values if _tensors(v)), {})
        return float(any(key.endswith(names[-1]) for key in inside))
    return len(set(names) & inside.keys()) / len(names)


def _tensors(value: Mapping[object, object]) -> bool:
    return any(isinstance(item, Tensor) and item.dtype != torch.bool for item in value.values())
