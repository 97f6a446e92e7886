"""What a study is asked to do: immutable settings, checked, the same in Python, flags and TOML."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from segproof.data import FolderDataset, MaskValues, Reading
from segproof.errors import SegproofError, StudyError, UnknownNameError, canonical
from segproof.explain import METHODS, PRESETS, Preset, Reduce, Region, Space, Target, check_region
from segproof.measures import Card, curves, robustness as quality
from segproof.models import PRECISIONS, Activation, SegmentationModel, load_model
from segproof.perturb import FILLS

__all__ = ["CONTROLS", "MAP_MEASURES", "PUBLISHED", "Settings", "reading_for"]

CONTROLS: Final = (
    "original",
    "empty",
    "target_only",
    "target_removed",
    "random",
    "p_c",
    "edges",
    "truth",
    "uniform",
    "inverse",
)
MAP_MEASURES: Final[dict[str, Card]] = {**curves.CARDS, **quality.CARDS}
NETWORK: Final = (*("classes", "activation", "mean", "std", "output", "inputs", "size", "weights"),)
LATER: Final = (
    *NETWORK[4:],
    *("images", "masks", "mask_values", "bands", "alpha", "divide_by"),
)
PUBLISHED: Final = ("grad_cam", "grad_cam_pp", "xgrad_cam", "score_cam", "eigen_cam")
Fusion = Literal["mean", "max", "product"]
Reference = Literal["truth", "prediction"]


class Settings(BaseModel):
    """All settings of a study; immutable, the same keys in Python, on the command line and in TOML.

    `region` is what is explained and read ("truth", as published, "prediction", "fp", "fn",
    "ring:W"); `fills` None means neutral in `paper` and the two least artificial valid ones in
    `strict`. `methods` are the five published ones unless others of METHODS are named,
    `measures` further ones, of whole heatmaps (MAP_MEASURES). `masses` (shares of the sum of S) and
    `otsu` cut the methods' maps, not the controls'; `soft` shows S itself as a mask too. `grow`
    widens every region, and the target that is removed as a control, by so many px, `roughen` moves
    their outlines by smooth noise of so many; where both are 0, `outline` "auto" looks for what
    outlines have to be for a natural fill to be valid, "fixed" leaves them. M3 is read against
    `references` too. `boundary` adds how well outlines agree. `pad` allows to continue tiles to a
    size that the network takes; these pixels count nowhere. `precision` is the number format of
    perturbed pictures, "auto" the fastest that agrees with float32. `score_channels` lets Score-CAM
    show so many channels that stand for the others. `classes`, `activation`, `mean`, `std`,
    `output`, `inputs`, `size` and `weights` are those of the network, where its files do not say
    them (see `load_model`). `images` and `masks` are patterns inside `data`, `mask_values` say what
    masks mean, `bands`, `alpha` and `divide_by` how pictures are read (docs/guide/your-data.md).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    model: str
    data: str
    class_: str = Field(alias="class")
    methods: tuple[str, ...] = PUBLISHED
    layers: tuple[str, ...] = ("decoder:1", "decoder:2")
    thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    areas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    masses: tuple[float, ...] = ()
    otsu: bool = False
    soft: bool = False
    grow: int = Field(default=0, ge=0)
    roughen: int = Field(default=0, ge=0)
    outline: Literal["auto", "fixed"] = "auto"
    preset: Preset = "strict"
    region: str = "truth"
    references: tuple[Reference, ...] = ()
    boundary: bool = False
    space: Space = "logit"
    reduce: Reduce = "mean"
    rival: str | None = None
    fills: tuple[str, ...] | None = None
    controls: tuple[str, ...] = CONTROLS
    fuse: tuple[Fusion, ...] = ()
    measures: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)
    min_area: int = Field(default=64, ge=1)
    ignore_index: int | None = None
    pad: bool = False
    batch: int = Field(default=4, ge=1)
    seed: int = 0
    device: str = "cpu"
    precision: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    score_channels: int | None = Field(default=None, ge=1)
    classes: tuple[str, ...] | None = None
    activation: Activation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    output: str | int | None = None
    inputs: str | None = None
    size: int | tuple[int, int] | None = None
    weights: str | None = None
    images: str | None = None
    masks: str | None = None
    mask_values: str | None = None
    bands: tuple[int, ...] | None = None
    alpha: str | int | None = None
    divide_by: float | None = Field(default=None, gt=0)

    @field_validator("methods", "fills", "controls", "measures")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None, info: Any) -> tuple[str, ...] | None:
        lists: dict[str, Sequence[str]] = {
            "methods": tuple(METHODS),
            "fills": tuple(FILLS),
            "controls": CONTROLS,
            "measures": tuple(MAP_MEASURES),
        }
        known = lists[info.field_name]
        for name in names or ():
            if canonical(name, known) is None:
                raise UnknownNameError.of(info.field_name.removesuffix("s"), name, known)
        return None if names is None else tuple(canonical(name, known) or name for name in names)

    @field_validator("preset", mode="before")
    @classmethod
    def _preset(cls, name: Any) -> Any:
        if name not in PRESETS:
            raise UnknownNameError.of("preset", name, PRESETS)
        return name

    @field_validator("precision", mode="before")
    @classmethod
    def _precision(cls, name: Any) -> Any:
        if name not in (*PRECISIONS, "auto"):
            raise UnknownNameError.of("precision", name, [*PRECISIONS, "auto"])
        return name

    @field_validator("thresholds", "areas", "masses")
    @classmethod
    def _inside(cls, levels: tuple[float, ...], info: Any) -> tuple[float, ...]:
        for level in levels:
            if not 0 < level < 1:
                raise StudyError(
                    f"{info.field_name} with {level:g}",
                    "numbers between 0 and 1, both excluded",
                    "check the list",
                )
        return levels

    @model_validator(mode="after")
    def _complete(self) -> Self:
        listed = (
            "methods",
            "layers",
            "thresholds",
            "areas",
            "masses",
            "fills",
            "controls",
            "fuse",
            "measures",
            "references",
        )
        for name in listed:
            values = getattr(self, name) or ()
            if len(set(values)) != len(values):
                raise StudyError(
                    f"{name} with a repetition", "distinct values", "remove the double"
                )
        if not self.methods or not self.layers:
            raise StudyError("no method or no layer", "at least one of each", "name them")
        if not self.thresholds and not self.areas:
            # controls are cut at these alone: without them nothing is ranked
            raise StudyError("no thresholds and no areas", "at least one level", "name them")
        check_region(self.preset, self.region)
        if Region.of(self.region).one_picture:
            raise StudyError(
                f"region {self.region} for a set of tiles",
                "prediction, truth, fp, fn or ring:W",
                "explain places of one picture with `segproof explain`",
            )
        if self.preset == "paper" and (self.space, self.reduce) != ("logit", "mean"):
            raise StudyError(
                f"preset paper with space {self.space}, reduce {self.reduce}",
                "neither: its target is the published one",
                "use preset strict for other targets",
            )
        changed = {"grow": self.grow, "roughen": self.roughen, "soft": self.soft}
        changed["references"] = len(self.references)
        for name, value in changed.items():
            if self.preset == "paper" and value:
                shown = getattr(self, name)
                raise StudyError(
                    f"preset paper with {name} {shown}", "regions as published", "use preset strict"
                )
        if self.preset == "paper" and self.precision != "float32":
            raise StudyError(
                f"preset paper with precision {self.precision}",
                "float32: the published figures are reproduced to 1e-5",
                "use preset strict for faster kernels",
            )
        if self.score_channels is not None and (
            self.preset == "paper" or "score_cam" not in self.methods
        ):
            raise StudyError(
                f"score_channels {self.score_channels} with preset {self.preset} and methods"
                f" {', '.join(self.methods)}",
                "preset strict and score_cam among the methods",
                "leave it out, or name score_cam",
            )
        _ = self.target  # a rival without its space, and the like
        if self.fills is not None and not self.fills:
            raise StudyError("an empty list of fills", "at least one", "name them or leave it out")
        return self

    @classmethod
    def of(cls, **settings: Any) -> Self:
        """Build a study; what is wrong with the settings comes out as one three-fact error.

        Raises:
            StudyError, UnknownNameError: the first setting that is not usable.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            cause = first.get("ctx", {}).get("error")
            if isinstance(cause, SegproofError):
                raise cause from None
            name = ".".join(str(part) for part in first["loc"]) or "settings"
            if first["type"] == "missing":
                raise StudyError(
                    f"no {name}", "model, data and class", f"give {name} (--{name}, or in the file)"
                ) from None
            if first["type"] == "extra_forbidden":
                known = [field.alias or key for key, field in cls.model_fields.items()]
                raise UnknownNameError.of("setting", name, known) from None
            raise StudyError(
                f"{name} = {first.get('input')!r}", first["msg"].lower(), "check this setting"
            ) from None

    @classmethod
    def from_toml(cls, path: str | Path, **overrides: Any) -> Self:
        """Read settings from a TOML file; `overrides` win over it. Keys are those of the class.

        Raises:
            StudyError: no such file, or not TOML.
        """
        return cls.of(**{**read_toml(path), **overrides})

    @property
    def further(self) -> tuple[Reference, ...]:
        """References of M3 besides `region`."""
        return tuple(name for name in self.references if name != self.region)

    @property
    def target(self) -> Target:
        """What is explained, as the core knows it."""
        return Target(
            self.class_, self.region, self.space, self.reduce, self.preset, rival=self.rival
        )

    def command(self, out: str | Path, more: Sequence[str] = ()) -> str:
        """The command line of this study: every setting that is not the default, and `more`."""
        words = ["segproof", "study"]
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if value is None or value == info.default:
                continue
            if isinstance(value, bool):
                words.append(f"--{name}")
                continue
            text = ",".join(str(item) for item in value) if isinstance(value, tuple) else str(value)
            words += [f"--{(info.alias or name).replace('_', '-')}", text or "none"]
        return shlex.join([*words, *more, "--out", str(out)])

    def open_model(self, *, allow_code: bool = False) -> SegmentationModel:
        """Load the network that the settings name; `python:` only with `allow_code`."""
        given = {name: getattr(self, name) for name in NETWORK}
        return load_model(
            self.model,
            device=self.device,
            allow_code=allow_code,
            **{name: value for name, value in given.items() if value is not None},
        )

    def open_data(self, model: SegmentationModel) -> FolderDataset:
        """Open the tiles that the settings name, with masks of the model's classes."""
        return FolderDataset(
            self.data,
            classes=model.mask_values,
            ignore_index=model.mask_ignore if self.ignore_index is None else self.ignore_index,
            images=self.images,
            masks=self.masks,
            values=None
            if self.mask_values is None
            else MaskValues.of(self.mask_values, model.mask_names),
            reading=reading_for(model, self.bands, self.alpha, self.divide_by),
        )

    def identity(self) -> dict[str, Any]:
        """What the numbers of a study depend on, but for the network and the tiles, as JSON.

        Settings that came later are left out where they are not set, so that earlier run folders
        stay what they are.
        """
        settings = self.model_dump(mode="json", by_alias=True, exclude={"model", "data"})
        return {k: v for k, v in settings.items() if k not in LATER or v is not None}


def reading_for(
    model: SegmentationModel | None,
    bands: Sequence[int] | None = None,
    alpha: str | int | None = None,
    divide_by: float | None = None,
) -> Reading:
    """How pictures are read for a network, or for none: what is given wins over what its folder
    says.

    Raises:
        DataError: bands, a transparency or a divisor that no file can have.
    """
    if isinstance(alpha, str) and alpha.isdecimal():
        alpha = int(alpha)
    return Reading(
        bands=None if bands is None else tuple(bands),
        alpha="auto" if alpha is None else alpha,  # type: ignore[arg-type]  # it checks the word
        divide_by=model.divide_by if model is not None and divide_by is None else divide_by,
        wanted=None if model is None else model.input_bands,
    )


def read_toml(path: str | Path) -> dict[str, Any]:
    """Settings of a study file.

    Raises:
        StudyError: no such file, or not TOML.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise StudyError(
            f"no readable {path}", "a TOML file of settings", "check --config"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise StudyError(
            f"{path} that is not TOML ({error})", "key = value lines", "mend it"
        ) from error
