"""Options that several commands share: what a network is, how pictures and masks are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Group, Parameter

from segproof.errors import StudyError
from segproof.explain import LAYERLESS, METHODS
from segproof.perturb import FILLS
from segproof.study import CONTROLS, MAP_MEASURES, read_toml

__all__ = [
    "NETWORK",
    "READING",
    "Masks",
    "Network",
    "Pairs",
    "Pictures",
    "names_of",
    "numbers_of",
    "sides_of",
    "whole_of",
]

NETWORK: Final = Group("Network", sort_key=2)
READING: Final = Group("How files are read", sort_key=3)


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is to be known of a network that its files do not say."""

    classes: Annotated[
        str | None,
        Parameter("--classes", help="Class names, a,b,c, where segproof.json has none."),
    ] = None
    activation: Annotated[
        Literal["softmax", "sigmoid"] | None,
        Parameter("--activation", help="softmax (one class per pixel) or sigmoid (several)."),
    ] = None
    mean: Annotated[str | None, Parameter("--mean", help="Normalisation mean per band, a,b,c.")] = (
        None
    )
    std: Annotated[
        str | None, Parameter("--std", help="Normalisation deviation per band, a,b,c.")
    ] = None
    output: Annotated[
        str | None,
        Parameter(
            "--output",
            help="Which output is read, and as what: logits, probabilities, log_probabilities, a"
            " place (0, out, decode.0), or both (0:probabilities). [decided by what it returns]",
        ),
    ] = None
    inputs: Annotated[
        str | None,
        Parameter(
            "--inputs",
            help="How the network takes a picture: a keyword (pixel_values), a dictionary"
            " (dict:image), or groups of bands, one argument each (1,2,3;4).",
        ),
    ] = None
    size: Annotated[
        str | None,
        Parameter(
            "--size",
            help="Side of the pictures that the network is given, px (N, or HEIGHT,WIDTH): pictures"
            " are resized for it and its logits back. [the picture's own]",
        ),
    ] = None
    weights: Annotated[
        str | None,
        Parameter(
            "--weights",
            help="Which weights, where a file holds several: plain, ema (averaged), or their key.",
        ),
    ] = None
    device: Annotated[
        str | None,
        Parameter("--device", help="Where the network runs: cpu, cuda, cuda:1 ... [cpu]"),
    ] = None
    allow_code: Annotated[
        bool,
        Parameter("--allow-code", negative=(), help="Let python:MODULE:FACTORY run its code."),
    ] = False

    def settings(self) -> dict[str, Any]:
        """What is given, under the names of `load_model` and of a study's settings."""
        given = {
            "classes": names_of(self.classes),
            "activation": self.activation,
            "mean": numbers_of(self.mean, "--mean"),
            "std": numbers_of(self.std, "--std"),
            "output": self.output,
            "inputs": self.inputs,
            "size": sides_of(self.size),
            "weights": self.weights,
            "device": self.device,
        }
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """How stored pixels become a picture in the network's units."""

    bands: Annotated[
        str | None,
        Parameter(
            "--bands",
            help="Bands of the files in the network's order, counted from 1: 1,2,3. [all]",
        ),
    ] = None
    alpha: Annotated[
        str | None,
        Parameter(
            "--alpha",
            help="Which band is transparency: none, its number, or auto: the band that the file"
            " marks, where the network does not need it. [auto]",
        ),
    ] = None
    divide_by: Annotated[
        float | None,
        Parameter(
            "--divide-by",
            help="What stored pixel values are divided by. [the file's scale and offset; else 255"
            " for 8 bits, 1 for others]",
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """What is given, under the names of a study's settings."""
        given = {
            "bands": whole_of(self.bands, "--bands"),
            "alpha": self.alpha,
            "divide_by": self.divide_by,
        }
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Masks:
    """What the values of mask files mean."""

    mask_values: Annotated[
        str | None,
        Parameter(
            "--mask-values",
            help="What mask values and colours mean: 0=background,1|2=building,#ff0000=road,"
            "255=ignore. [0/255, or class indices]",
        ),
    ] = None
    ignore_index: Annotated[
        int | None, Parameter("--ignore-index", help="Mask value that does not count.")
    ] = None

    def settings(self) -> dict[str, Any]:
        """What is given, under the names of a study's settings."""
        given = {"mask_values": self.mask_values, "ignore_index": self.ignore_index}
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Where the pictures and the masks of a data set are."""

    images: Annotated[
        str | None,
        Parameter(
            "--images",
            help="Images inside the data folder, as a pattern: images/train/*.png. [found]",
        ),
    ] = None
    masks: Annotated[
        str | None,
        Parameter("--masks", help="Masks inside the data folder, as a pattern. [found]"),
    ] = None

    def settings(self) -> dict[str, Any]:
        """What is given, under the names of a study's settings."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: value for key, value in given.items() if value is not None}


def names_of(text: str | None) -> tuple[str, ...] | None:
    """a,b,c as a tuple; `none` is no name."""
    if text is None:
        return None
    if text in ("none", ""):
        return ()
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers_of(text: str | None, flag: str) -> tuple[float, ...] | None:
    """a,b,c as numbers.

    Raises:
        StudyError: what is no number.
    """
    names = names_of(text)
    if names is None:
        return None
    try:
        return tuple(float(name) for name in names)
    except ValueError:
        raise StudyError(f"{flag} {text}", "numbers, a,b,c", "check the list") from None


def whole_of(text: str | None, flag: str) -> tuple[int, ...] | None:
    """a,b,c as whole numbers, at least one.

    Raises:
        StudyError: what is no whole number.
    """
    if text is None:
        return None
    numbers = numbers_of(text, flag) or ()
    if not numbers or any(number != int(number) for number in numbers):
        raise StudyError(f"{flag} {text}", "whole numbers, a,b,c", "check the list")
    return tuple(int(number) for number in numbers)


def sides_of(text: str | None) -> int | tuple[int, int] | None:
    """N, or height and width, px.

    Raises:
        StudyError: anything else.
    """
    sides = whole_of(text, "--size")
    if sides is None:
        return None
    if len(sides) > 2 or min(sides) < 1:
        raise StudyError(f"--size {text}", "one side, or height and width, px", "check --size")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


LEVELS: Final = ("thresholds", "areas", "masses")
LISTS: Final[dict[str, Sequence[str]]] = {
    "methods": tuple(name for name in METHODS if name not in LAYERLESS),
    "layers": (),
    "thresholds": (),
    "areas": (),
    "masses": (),
    "fills": tuple(FILLS),
    "controls": tuple(CONTROLS),
    "fuse": (),
    "measures": tuple(MAP_MEASURES),
    "references": ("truth", "prediction"),
}


ModelFlag = Annotated[
    str,
    Parameter(
        "--model",
        help="A folder or a checkpoint; or smp:DIR, smp:ARCH:ENCODER:FILE, hf:DIR,"
        " torchvision:NAME:FILE, lightning:FILE or python:MODULE:FACTORY.",
    ),
]
NetworkFlags = Annotated[Network, Parameter(name="*", group=NETWORK)]
PictureFlags = Annotated[Pictures, Parameter(name="*", group=READING)]
MaskFlags = Annotated[Masks, Parameter(name="*", group=READING)]
PairFlags = Annotated[Pairs, Parameter(name="*", group=READING)]
ImageFlag = Annotated[
    Path | None, Parameter("--image", help="A picture of yours; else one is generated.")
]

ScoreFlag = Annotated[
    int | None,
    Parameter(
        "--score-channels",
        help="Score-CAM of so many channels that stand for the others: another map, its distance"
        " from the exact one is shown. [all]",
    ),
]
AllowFlag = Annotated[
    bool, Parameter("--allow-code", negative=(), help="Let python:MODULE:FACTORY run its code.")
]


def given_by(*given: Pairs | Pictures | Masks | Network) -> dict[str, Any]:
    """Settings of a study that these groups of options give."""
    return {key: value for group in given for key, value in group.settings().items()}


def from_file(config: Path | None) -> dict[str, Any]:
    """Settings of a study file: keys as the flags are spelled, lists or a,b,c."""
    if config is None:
        return {}
    settings: dict[str, Any] = {}
    for key, value in read_toml(config).items():
        name = key.replace("-", "_")
        if isinstance(value, str) and name in LISTS:
            value = numbers_of(value, name) if name in LEVELS else listed(value, LISTS[name])
        settings[name] = value
    return settings


def listed(text: str | None, known: Sequence[str] = ()) -> tuple[str, ...] | None:
    """a,b,c as a tuple; `all` means every known name, `none` no name."""
    return tuple(known) if text == "all" and known else names_of(text)
