"""Names the choices that settings, options and results share; importing it loads no torch."""

from __future__ import annotations

from typing import Final, Literal, get_args

__all__ = [
    "ACTIVATIONS",
    "PRECISIONS",
    "PRESETS",
    "REDUCES",
    "SPACES",
    "Activation",
    "Precision",
    "Preset",
    "Reduce",
    "Space",
]

Preset = Literal["strict", "paper"]
Space = Literal["logit", "probability", "log_probability", "margin"]
Reduce = Literal["mean", "sum"]
Activation = Literal["softmax", "sigmoid"]
Precision = Literal["float32", "bfloat16", "float16"]

PRESETS: Final[tuple[Preset, ...]] = get_args(Preset)
SPACES: Final[tuple[Space, ...]] = get_args(Space)
REDUCES: Final[tuple[Reduce, ...]] = get_args(Reduce)
ACTIVATIONS: Final[tuple[Activation, ...]] = get_args(Activation)
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
