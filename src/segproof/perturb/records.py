"""Records what every fill and every control is; lists, texts, colours and choices derive from it.

It loads no PyTorch: the functions that make fills are imported when they are first called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from segproof.choices import Preset
from segproof.deferred import Deferred
from segproof.errors import SegproofError

if TYPE_CHECKING:
    from torch import Tensor

    from segproof.perturb.fill_context import FillContext

__all__ = [
    "CONTROLS",
    "CONTROL_PREFIX",
    "DEFAULT_FILLS",
    "FILLS",
    "Control",
    "Fill",
    "FillFunction",
    "control_id",
    "control_name",
    "control_of",
    "is_control",
    "register_fill",
]

# (images [N or 1, B, H, W], keep bool [N, H, W]) -> images with the rest replaced
FillFunction: TypeAlias = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class Fill:
    """What is known of one fill; calling the record makes the fill for one tile.

    `make` maps a FillContext to the baseline b [B, H, W] of the tile or, where what is filled
    depends on what is kept (`reads_kept`), to a FillFunction. `meaning` says in a sentence what
    removed pixels become. Two fills of one `kind` agree for that reason; "texture" and "ground" are
    natural. A study chooses among fills that are `quick`, others have to be named. `donates` fills
    take ground of another tile. `default` is the preset whose methods hide pixels with it.
    """

    name: str
    make: Callable[[FillContext], Tensor | FillFunction]
    kind: Literal["texture", "ground", "smooth", "flat", "noise"]
    meaning: str
    quick: bool = True
    reads_kept: bool = False
    donates: bool = False
    default: Preset | None = None

    def __call__(self, clean: FillContext) -> Tensor | FillFunction:
        """The baseline or the function that fills pictures of the tile."""
        return self.make(clean)

    @property
    def natural(self) -> bool:
        """Whether the network has seen the like of it."""
        return self.kind in ("texture", "ground")


# name -> record, in the order in which `strict` tries them: least artificial first
FILLS: Final[dict[str, Fill]] = {}
# the fill with which methods hide pixels where none is named
DEFAULT_FILLS: Final[dict[Preset, str]] = {}


def register_fill(fill: Fill) -> Fill:
    """Add a fill to every list that is derived from the records.

    Raises:
        SegproofError: a fill of this name exists.
    """
    if fill.name in FILLS:
        raise SegproofError(
            f"a second fill named {fill.name}", "names that are not taken", "rename it"
        )
    FILLS[fill.name] = fill
    if fill.default is not None:
        DEFAULT_FILLS[fill.default] = fill.name
    return fill


def _make(name: str) -> Deferred:
    return Deferred(f"segproof.perturb.fills:{name}")


for _fill in (
    Fill(
        "background_texture",
        _make("background_texture"),
        "texture",
        "The tile's own background pixels, shuffled and slightly blurred.",
        default="strict",
    ),
    Fill(
        "inpaint",
        _make("inpaint"),
        "texture",
        "Background texture, shifted smoothly so that it meets the kept pixels without a step.",
        reads_kept=True,
    ),
    Fill(
        "borrowed",
        _make("borrowed"),
        "ground",
        "Ground of another tile that meets the kept pixels without a step.",
        reads_kept=True,
        donates=True,
    ),
    Fill(
        "linear",
        _make("linear"),
        "smooth",
        "The weighted mean of the neighbouring pixels, with a little noise.",
        # it solves a system for each picture
        quick=False,
        reads_kept=True,
    ),
    Fill("blur", _make("blur"), "smooth", "The picture itself, strongly blurred."),
    Fill("image_mean", _make("image_mean"), "flat", "The mean of each band of the tile."),
    Fill(
        "neutral",
        _make("neutral"),
        "flat",
        "The value that the network's normalisation turns into zero.",
        default="paper",
    ),
    Fill("black", _make("black"), "flat", "Zero in every band."),
    Fill("noise", _make("noise"), "noise", "Uniform noise over the range of each band."),
):
    register_fill(_fill)


CONTROL_PREFIX: Final = "control:"  # stands before a control's name where a method's stands


@dataclass(frozen=True)
class Control:
    """What is known of one control: a reference that knows nothing of the method under study.

    A "picture" is shown as it is, a "heatmap" is cut and measured as a method's is, `seeds` of it
    where it is random. `phrase` says what it is. `scored` ones are measured as whole heatmaps too;
    a method has to beat its `rivals`, the scored ones that need no truth, before it is believed.
    Figures draw those that have a `colour`, with `dash` as their line.
    """

    name: str
    kind: Literal["picture", "heatmap"]
    label: str
    phrase: str
    seeds: int = 1
    scored: bool = False
    rival: bool = False
    colour: str = ""
    dash: tuple[int, tuple[float, float]] | None = None

    @property
    def id(self) -> str:
        """The control as it stands in the column `method` of results."""
        return CONTROL_PREFIX + self.name


# name -> record, in the order of menus and settings
CONTROLS: Final[dict[str, Control]] = {
    control.name: control
    for control in (
        Control("original", "picture", "original", "the image itself"),
        Control("empty", "picture", "empty", "nothing but the fill"),
        Control("target_only", "picture", "target_only", "only the target"),
        Control("target_removed", "picture", "target_removed", "exactly the target removed"),
        Control(
            "random",
            "heatmap",
            "random blobs",
            "smooth random blobs, as coherent as a heatmap",
            seeds=5,
            scored=True,
            rival=True,
            colour="#8a949e",
            dash=(0, (1.5, 1.5)),
        ),
        Control(
            "p_c",
            "heatmap",
            "probability map",
            "the predicted probability of the class",
            scored=True,
            rival=True,
            colour="#3c4650",
            dash=(0, (5, 2)),
        ),
        Control("edges", "heatmap", "image edges", "the strength of edges in the picture"),
        Control("truth", "heatmap", "truth as heatmap", "the true mask", scored=True),
        Control("uniform", "heatmap", "uniform (scattered pixels)", "pixels scattered at random"),
        Control(
            "inverse",
            "heatmap",
            "1 \N{MINUS SIGN} S of all maps",
            "the least highlighted pixels of every heatmap",
        ),
    )
}


def control_id(name: str) -> str:
    """The name of a control as it stands in the column `method` of results."""
    return CONTROL_PREFIX + name


def is_control(method: str) -> bool:
    """Whether an entry of the column `method` is a control."""
    return method.startswith(CONTROL_PREFIX)


def control_name(method: str) -> str:
    """The name of a control without the prefix; other names stay as they are."""
    return method.removeprefix(CONTROL_PREFIX)


def control_of(method: str) -> Control | None:
    """The record of an entry of the column `method`; None for methods and unknown controls."""
    return CONTROLS.get(control_name(method)) if is_control(method) else None
