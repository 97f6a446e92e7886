"""Loads the network and reads the picture that options name; says so before it takes time."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segproof.cli.commands import COMMANDS
from segproof.cli.console import log

if TYPE_CHECKING:
    import torch

    from segproof.cli.options import Network, Pictures
    from segproof.models import SegmentationModel

__all__ = ["load", "picture_of", "say_loading"]


def say_loading(words: Sequence[str]) -> None:
    """Say which network a command is about to load, before torch is imported for it."""
    command = COMMANDS.get(words[0]) if words else None
    if command is None or not command.loads or {"--help", "-h"} & set(words):
        return
    name = _network_of(words) or command.loads
    log.info("loading the network %s ...", name)


def _network_of(words: Sequence[str]) -> str | None:
    """The network that the words, or the study file among them, name."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--model":
            return following
        if word.startswith("--model="):
            return word.removeprefix("--model=")
    for word in words[1:]:
        if word.endswith(".toml"):
            try:
                with Path(word).open("rb") as stream:
                    return str(tomllib.load(stream)["model"])
            except (OSError, KeyError, tomllib.TOMLDecodeError):
                return None  # the command itself reads the file and says what is wrong
    return None


def load(spec: str, network: Network) -> SegmentationModel:
    """Load the network `spec` as the options of the group say."""
    from segproof.models import keep_blocks, load_model

    keep_blocks()
    return load_model(spec, allow_code=network.allow_code, **network.settings())


def picture_of(
    image: Path | None, model: SegmentationModel, pictures: Pictures, side: int
) -> torch.Tensor:
    """The picture [B, H, W] that is named, or a generated one of the network's size."""
    from segproof.data import read_image
    from segproof.doctor import example_picture
    from segproof.study import reading_for

    if image is None:
        return example_picture(model, model.size or (side, side))
    return read_image(image, reading=reading_for(model, **pictures.settings()))["image"]
