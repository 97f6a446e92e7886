"""Names the choices that settings, options and results share; importing it loads no torch."""

from __future__ import annotations

from typing import Final, Literal, get_args

__all__ = [
    "ACTIVATIONS",
    "ASKED",
    "LEAST",
    "MARGIN",
    "PRECISIONS",
    "PRESETS",
    "REDUCES",
    "REGIONS",
    "SPACES",
    "Activation",
    "Asked",
    "Precision",
    "Preset",
    "Reduce",
    "Space",
]

Preset = Literal["strict", "paper"]
Space = Literal["logit", "probability", "log_probability", "margin"]
Reduce = Literal["mean", "sum"]
Activation = Literal["softmax", "sigmoid"]
Asked = Literal["best", "ranking", "controls"]
Precision = Literal["float32", "bfloat16", "float16"]

PRESETS: Final[tuple[Preset, ...]] = get_args(Preset)
SPACES: Final[tuple[Space, ...]] = get_args(Space)
REDUCES: Final[tuple[Reduce, ...]] = get_args(Reduce)
ACTIVATIONS: Final[tuple[Activation, ...]] = get_args(Activation)
ASKED: Final[tuple[Asked, ...]] = get_args(Asked)
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

MARGIN = 0.02  # in the unit of the measure: less is not called worse
LEAST: Final = 10  # tiles before anything is said

# What `Region.of` reads: name -> how it is written.
REGIONS: Final = {
    "prediction": "prediction",
    "truth": "truth",
    "fp": "fp",
    "fn": "fn",
    "box": "box:X0,Y0,X1,Y1",
    "points": "points:X,Y or points:X,Y;X,Y",
    "object": "object:N or object:X,Y",
    "ring": "ring:W",
}
