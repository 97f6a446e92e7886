"""Describes what a study is asked to do: one immutable model for Python, options and TOML.

Importing this module loads no torch: the command line derives its options from `Settings`. What
needs the network or the tiles is imported where it is used.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.config import JsonDict

from segproof.choices import PRECISIONS, PRESETS, Activation, Preset, Reduce, Space
from segproof.errors import SegproofError, StudyError, UnknownNameError, canonical
from segproof.explain import METHODS
from segproof.perturb import CONTROLS, FILLS

if TYPE_CHECKING:
    from segproof.data import FolderDataset, Reading
    from segproof.explain import Target
    from segproof.models import SegmentationModel

__all__ = [
    "CONTROLS",
    "GROUPS",
    "PUBLISHED",
    "Settings",
    "command_of",
    "names_of_setting",
    "read_toml",
    "reading_for",
]

NETWORK: Final = (*("classes", "activation", "mean", "std", "output", "inputs", "size", "weights"),)
LATER: Final = (
    *NETWORK[4:],
    *("images", "masks", "mask_values", "bands", "alpha", "divide_by"),
)
PUBLISHED: Final = tuple(name for name, method in METHODS.items() if method.default)
Fusion = Literal["mean", "max", "product"]
Reference = Literal["truth", "prediction"]

# The groups of settings in the order in which a reader meets them; each field names its own.
GROUPS: Final = (
    "The network",
    "The data",
    "What is explained",
    "How pictures are perturbed",
    "What is measured",
    "How it runs",
)
_NETWORK, _DATA, _EXPLAINED, _PERTURBED, _MEASURED, _RUNS = (
    JsonDict({"group": group}) for group in GROUPS
)


class Settings(BaseModel):
    """All settings of a study; immutable, the same keys in Python, in options and in TOML files.

    Every field carries its description and, in `json_schema_extra`, its group (one of GROUPS): the
    command line and the documentation are derived from them. The order of the fields is the order
    in which a run folder stores them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    model: str = Field(
        description="Network: a folder, a file of weights, or a source such as"
        " `smp:FOLDER` or `torchvision:NAME`.",
        json_schema_extra=_NETWORK,
    )
    data: str = Field(
        description="Folder of tiles with masks; `segproof check` shows how they are paired.",
        json_schema_extra=_DATA,
    )
    class_: str = Field(
        alias="class", description="Class to explain, by name.", json_schema_extra=_EXPLAINED
    )
    methods: tuple[str, ...] = Field(
        PUBLISHED,
        description="Explanation methods.",
        json_schema_extra=_EXPLAINED,
    )
    layers: tuple[str, ...] = Field(
        ("decoder:1", "decoder:2"),
        description="Layers at which methods explain, by alias or path; `segproof layers` lists"
        " them.",
        json_schema_extra=_EXPLAINED,
    )
    thresholds: tuple[float, ...] = Field(
        (0.1, 0.2, 0.3, 0.4, 0.5),
        description="Cut every heatmap at these values, between 0 and 1.",
        json_schema_extra=_PERTURBED,
    )
    areas: tuple[float, ...] = Field(
        (0.05, 0.1, 0.2, 0.3),
        description="Cut every heatmap so that it highlights these shares of the tile: all methods"
        " are compared at matched area.",
        json_schema_extra=_PERTURBED,
    )
    masses: tuple[float, ...] = Field(
        (),
        description="Cut the heatmaps of methods so that the region holds these shares of the sum"
        " of the heatmap.",
        json_schema_extra=_PERTURBED,
    )
    otsu: bool = Field(
        default=False,
        description="Cut the heatmaps of methods at Otsu's threshold too.",
        json_schema_extra=_PERTURBED,
    )
    soft: bool = Field(
        default=False,
        description="Use every heatmap as a soft mask too, without cutting it.",
        json_schema_extra=_PERTURBED,
    )
    grow: int = Field(
        default=0,
        ge=0,
        description="Dilate each region by N pixels so that its outline gives away less of the"
        " shape.",
        json_schema_extra=_PERTURBED,
    )
    roughen: int = Field(
        default=0,
        ge=0,
        description="Move the outline of each region by smooth noise of up to N pixels.",
        json_schema_extra=_PERTURBED,
    )
    outline: Literal["auto", "fixed"] = Field(
        default="auto",
        description="With auto, the study dilates or roughens regions where no natural fill is"
        " valid at their exact outline; with fixed, it leaves outlines as they are.",
        json_schema_extra=_PERTURBED,
    )
    preset: Preset = Field(
        default="strict",
        description="Protocol of the study: strict, or paper as published.",
        json_schema_extra=_EXPLAINED,
    )
    region: str = Field(
        default="truth",
        description="Pixels that are explained and measured: truth, prediction, fp, fn or ring:W.",
        json_schema_extra=_EXPLAINED,
    )
    references: tuple[Reference, ...] = Field(
        (),
        description="Measure M3 against these masks as well: truth, prediction.",
        json_schema_extra=_MEASURED,
    )
    boundary: bool = Field(
        default=False,
        description="Measure how well outlines agree as well; this takes longer.",
        json_schema_extra=_MEASURED,
    )
    space: Space = Field(
        default="logit",
        description="Output of the network that is explained at each pixel.",
        json_schema_extra=_EXPLAINED,
    )
    reduce: Reduce = Field(
        default="mean",
        description="How the values of the region's pixels become one number.",
        json_schema_extra=_EXPLAINED,
    )
    rival: str | None = Field(
        default=None,
        description="Class that the space margin compares with; without it, the strongest other"
        " class.",
        json_schema_extra=_EXPLAINED,
    )
    fills: tuple[str, ...] | None = Field(
        default=None,
        description="What replaces removed pixels; without it, preset strict chooses two valid"
        " fills and preset paper takes neutral.",
        json_schema_extra=_PERTURBED,
    )
    controls: tuple[str, ...] = Field(
        tuple(CONTROLS),
        description="Control pictures and control heatmaps that the methods have to beat.",
        json_schema_extra=_PERTURBED,
    )
    fuse: tuple[Fusion, ...] = Field(
        (),
        description="Join the heatmaps of all layers into one in these ways as well: mean, max,"
        " product.",
        json_schema_extra=_EXPLAINED,
    )
    measures: tuple[str, ...] = Field(
        (),
        description="Further measures, of whole heatmaps; `segproof measures` lists them.",
        json_schema_extra=_MEASURED,
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="Study the first N tiles; without it, all tiles.",
        json_schema_extra=_DATA,
    )
    min_area: int = Field(
        default=64,
        ge=1,
        description="Skip tiles whose region is smaller than N pixels.",
        json_schema_extra=_DATA,
    )
    ignore_index: int | None = Field(
        default=None,
        description="Mask value of pixels that do not count; without it, the network's own.",
        json_schema_extra=_DATA,
    )
    pad: bool = Field(
        default=False,
        description="Pad tiles to a size that the network takes; the added pixels are never"
        " measured.",
        json_schema_extra=_DATA,
    )
    batch: int = Field(
        default=4,
        ge=1,
        description="Number of pictures in one forward pass.",
        json_schema_extra=_RUNS,
    )
    seed: int = Field(
        default=0, description="Seed of everything that is random.", json_schema_extra=_RUNS
    )
    device: str = Field(
        default="cpu",
        description="Device that runs the network: cpu, cuda, cuda:1 ...",
        json_schema_extra=_RUNS,
    )
    precision: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        default="float32",
        description="Number format in which perturbed pictures are run; auto takes the fastest one"
        " that agrees with float32.",
        json_schema_extra=_RUNS,
    )
    score_channels: int | None = Field(
        default=None,
        ge=1,
        description="Approximate Score-CAM with N representative channels. This is faster, but a"
        " different map; its similarity to the exact one is reported. Without it, all channels.",
        json_schema_extra=_EXPLAINED,
    )
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="Names of the network's classes, where its files do not hold them.",
        json_schema_extra=_NETWORK,
    )
    activation: Activation | None = Field(
        default=None,
        description="How logits become probabilities: softmax (one class per pixel) or sigmoid"
        " (several).",
        json_schema_extra=_NETWORK,
    )
    mean: tuple[float, ...] | None = Field(
        default=None,
        description="Mean of each band that the network was normalised with.",
        json_schema_extra=_NETWORK,
    )
    std: tuple[float, ...] | None = Field(
        default=None,
        description="Standard deviation of each band that the network was normalised with.",
        json_schema_extra=_NETWORK,
    )
    output: str | int | None = Field(
        default=None,
        description="Which output of the network is read, and as what: logits, probabilities,"
        " log_probabilities, a place (0, out, decode.0), or both (0:probabilities). Without it, the"
        " output itself decides.",
        json_schema_extra=_NETWORK,
    )
    inputs: str | None = Field(
        default=None,
        description="How the network takes a picture: a keyword (pixel_values), a dictionary"
        " (dict:image), or groups of bands, one argument each (1,2,3;4).",
        json_schema_extra=_NETWORK,
    )
    size: int | tuple[int, int] | None = Field(
        default=None,
        description="Side, or height and width, in pixels to which pictures are resized for the"
        " network; its logits are resized back. Without it, the size of each picture.",
        json_schema_extra=_NETWORK,
    )
    weights: str | None = Field(
        default=None,
        description="Which weights to load where a file holds several: plain, ema (averaged), or"
        " their key.",
        json_schema_extra=_NETWORK,
    )
    images: str | None = Field(
        default=None,
        description="Pattern of the images inside the data folder, such as images/train/*.png;"
        " without it, they are found.",
        json_schema_extra=_DATA,
    )
    masks: str | None = Field(
        default=None,
        description="Pattern of the masks inside the data folder; without it, they are found.",
        json_schema_extra=_DATA,
    )
    mask_values: str | None = Field(
        default=None,
        description="What mask values and colours mean, such as"
        " 0=background,1|2=building,#ff0000=road,255=ignore. Without it, 0 and 255, or class"
        " indices.",
        json_schema_extra=_DATA,
    )
    bands: tuple[int, ...] | None = Field(
        default=None,
        description="Bands of the files in the network's order, counted from 1; without it, all"
        " bands.",
        json_schema_extra=_DATA,
    )
    alpha: str | int | None = Field(
        default=None,
        description="Which band holds transparency: none, its number, or auto (the band that the"
        " file marks, where the network does not need it). Without it, auto.",
        json_schema_extra=_DATA,
    )
    divide_by: float | None = Field(
        default=None,
        gt=0,
        description="Number by which stored pixel values are divided; without it, the file's scale"
        " and offset, else 255 for 8 bits and 1 for others.",
        json_schema_extra=_DATA,
    )

    @field_validator("methods", "fills", "controls", "measures")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None, info: Any) -> tuple[str, ...] | None:
        if names is None:
            return None
        existing = names_of_setting(info.field_name)
        for name in names:
            if canonical(name, existing) is None:
                raise UnknownNameError.of(info.field_name.removesuffix("s"), name, existing)
        return tuple(canonical(name, existing) or name for name in names)

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
        from segproof.explain import Region, check_region

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
                setting = getattr(self, name)
                raise StudyError(
                    f"preset paper with {name} {setting}",
                    "regions as published",
                    "use preset strict",
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

    def __repr__(self) -> str:
        others = [
            f"{info.alias or name}={value!r}"
            for name, info in type(self).model_fields.items()
            if name not in ("model", "data", "class_", "methods", "layers", "preset")
            and (value := getattr(self, name)) != info.default
        ]
        return (
            f"{type(self).__name__}(class {self.class_}, {len(self.methods)} methods x"
            f" {len(self.layers)} layers, preset {self.preset})\n"
            f"  model {self.model}\n  data {self.data}"
            + (f"\n  {', '.join(others)}" if others else "")
        )

    __str__ = __repr__

    @classmethod
    def of(cls, **settings: Any) -> Self:
        """Build a study; what is wrong with the settings comes out as one three-fact error.

        Raises:
            StudyError, UnknownNameError: the first setting that is not usable.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            # a key that is misspelled is also a setting that is missing: say what was written
            unknown = [item for item in error.errors() if item["type"] == "extra_forbidden"]
            first = (unknown or error.errors())[0]
            cause = first.get("ctx", {}).get("error")
            if isinstance(cause, SegproofError):
                raise cause from None
            name = ".".join(str(part) for part in first["loc"]) or "settings"
            if first["type"] == "missing":
                raise StudyError(
                    f"no {name}",
                    "a model, data and a class: a study needs all three",
                    f"add --{name}, or a `{name}` line to the study file",
                ) from None
            if first["type"] == "extra_forbidden":
                fields = [field.alias or key for key, field in cls.model_fields.items()]
                raise UnknownNameError.of("setting", name, fields) from None
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
        from segproof.explain import Target

        return Target(
            self.class_, self.region, self.space, self.reduce, self.preset, rival=self.rival
        )

    def command(self, out: str | Path, more: Sequence[str] = ()) -> str:
        """The command line of this study: every setting that is not the default, and `more`."""
        return command_of(self.model_dump(by_alias=True), out, more)

    def open_model(self, *, allow_code: bool = False) -> SegmentationModel:
        """Load the network that the settings name; `python:` only with `allow_code`."""
        from segproof.models import load_model

        given = {name: getattr(self, name) for name in NETWORK}
        return load_model(
            self.model,
            device=self.device,
            allow_code=allow_code,
            **{name: value for name, value in given.items() if value is not None},
        )

    def open_data(self, model: SegmentationModel) -> FolderDataset:
        """Open the tiles that the settings name, with masks of the model's classes."""
        from segproof.data import FolderDataset, MaskValues

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


def names_of_setting(field: str) -> Sequence[str]:
    """List the names that a setting may hold, none where any text will do."""
    if field == "methods":
        return tuple(METHODS)
    if field == "fills":
        return tuple(FILLS)
    if field == "measures":
        from segproof.measures import MAP_MEASURES

        return tuple(MAP_MEASURES)
    return tuple(CONTROLS) if field == "controls" else ()


def command_of(values: Mapping[str, Any], out: str | Path, more: Sequence[str] = ()) -> str:
    """The command line of a study with these settings, as `Settings` or run.db hold them: every
    one that is not the default, and `more`. Nothing is checked, so nothing has to be loaded.
    """
    words = ["segproof", "study"]
    for name, field in Settings.model_fields.items():
        value = values.get(field.alias or name)
        if isinstance(value, list):  # JSON has no tuples
            value = tuple(value)
        if value is None or value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}")
            continue
        text = ",".join(str(item) for item in value) if isinstance(value, tuple) else str(value)
        words += [f"--{(field.alias or name).replace('_', '-')}", text or "none"]
    return shlex.join([*words, *more, "--out", str(out)])


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
    from segproof.data import Reading

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
