"""Loads the network and reads the picture that options name; says so before it takes time."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segproof.cli.commands import COMMANDS
from segproof.cli.console import log
from segproof.errors import StudyError

if TYPE_CHECKING:
    import torch

    from segproof.cli.options import Given
    from segproof.models import SegmentationModel

__all__ = ["load", "picture_of", "say_loading"]


def say_loading(words: Sequence[str]) -> None:
    """Say which network a command is about to load, before torch is imported for it."""
    command = COMMANDS.get(words[0]) if words else None
    if command is None or {"--help", "-h"} & set(words):
        return
    name = _network_of(words)
    network = command.loads if name is None else f"the network {name}"
    if network:
        log.info("loading %s ...", network)


def _network_of(words: Sequence[str]) -> str | None:
    """The network that the words, or the study file among them, name."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--model":
            return following
        if word.startswith("--model="):
            return word.removeprefix("--model=")
    if words[0] == "init" and len(words) > 1 and not words[1].startswith("-"):
        return words[1]
    for word in words[1:]:
        if word.endswith(".toml"):
            try:
                with Path(word).open("rb") as stream:
                    return str(tomllib.load(stream)["model"])
            except (OSError, KeyError, tomllib.TOMLDecodeError):
                return None  # the command itself reads the file and says what is wrong
    return None


def load(given: Given | None, *, allow_code: bool) -> SegmentationModel:
    """Load the network that the options name, as they describe it.

    Raises:
        StudyError: no network is named.
    """
    from segproof.cli.options import NETWORK, part_of
    from segproof.models import keep_blocks, load_model

    spec = (given or {}).get("model")
    if spec is None:
        raise StudyError("no network", "--model NETWORK", "name a folder or a file of weights")
    keep_blocks()
    began = time.perf_counter()
    model = load_model(spec, allow_code=allow_code, **part_of(given, NETWORK))
    log.debug("loaded in %.1f s: classes %s", time.perf_counter() - began, list(model.classes))
    return model


def picture_of(
    image: Path | None, model: SegmentationModel, given: Given | None, side: int
) -> torch.Tensor:
    """The picture [B, H, W] that is named, or a generated one of the network's size."""
    from segproof.cli.options import PICTURES, part_of
    from segproof.data import read_image
    from segproof.doctor import example_picture
    from segproof.study import reading_for

    if image is None:
        return example_picture(model, model.size or (side, side))
    return read_image(image, reading=reading_for(model, **part_of(given, PICTURES)))["image"]
