"""Records what every method is: its function, label, paper, cost, colour and limits.

Menus, help texts, defaults, near matches, figures and checks are derived from these records; this
module alone has to change for a method to be added. It loads no PyTorch: built-in functions are
imported when they are first called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from segproof.deferred import Deferred
from segproof.errors import SegproofError

if TYPE_CHECKING:
    from torch import Tensor

    from segproof.explain.cam import RawMap
    from segproof.explain.forward_pass import Capture
    from segproof.models import SegmentationModel

__all__ = [
    "CHANNELWISE",
    "INPUT_LAYER",
    "INTEGRATED_STEPS",
    "LAYERLESS",
    "METHODS",
    "PAPER_METHODS",
    "RISE_MASKS",
    "Method",
    "MethodFunction",
    "method_name",
    "reads_baseline",
    "record_of",
    "register",
]

MethodFunction: TypeAlias = Callable[["Capture", str, "SegmentationModel"], "RawMap | Tensor"]

INPUT_LAYER: Final = "input"  # stands in tables where a layer's name does
RISE_MASKS: Final = 512
INTEGRATED_STEPS: Final = 32


@dataclass(frozen=True)
class Method:
    """What is known of one method; calling the record calls its function.

    `function` maps (capture, layer, model) to a signed map; `meaning` says in one sentence what the
    map shows; `paper` is a key of docs/references.bib. `per_channel` forwards are run for each
    channel of the layer. Without `needs_layer` the map is at the picture's size and costs
    `per_picture` forwards, a number or a function of (H, W). `baseline` says what the capture's
    baseline is for: it "hides" pixels, or the path "starts" there. `lacks` names the properties of
    `segproof.testing.check_method` that the method is known not to have. `published` holds the
    arguments of the published variant, `extra` the optional dependency, `colour` and `marker` how
    figures draw it (else a spare pair). `default` methods are those of a study that names none.
    """

    name: str
    function: MethodFunction
    label: str
    meaning: str
    paper: str = ""
    per_channel: int = 0
    needs_layer: bool = True
    per_picture: int | Callable[[tuple[int, int]], int] = 0
    baseline: Literal["hides", "starts"] | None = None
    lacks: frozenset[str] = frozenset()
    published: Mapping[str, Any] = field(default_factory=dict)
    extra: str = ""
    colour: str = ""
    marker: str = ""
    default: bool = False

    def __call__(
        self, capture: Capture, layer: str, model: SegmentationModel, **options: Any
    ) -> RawMap | Tensor:
        """The method's map of one capture at one layer."""
        return self.function(capture, layer, model, **options)

    @property
    def hides_pixels(self) -> bool:
        """Whether the network is shown pictures with hidden pixels."""
        return self.baseline == "hides"

    @property
    def reads_baseline(self) -> bool:
        """Whether a fill has to be made before the method runs."""
        return self.baseline is not None

    @property
    def cost(self) -> str:
        """What one map costs beside the shared forward and backward, in words."""
        if self.per_channel:
            forwards = "1 forward" if self.per_channel == 1 else f"{self.per_channel} forwards"
            return f"{forwards} per channel of the layer"
        if self.needs_layer:
            return "no further forward"
        if callable(self.per_picture):
            return f"{self.forwards((512, 512))} forwards on a picture of 512 x 512"
        return "1 forward" if self.per_picture == 1 else f"{self.per_picture} forwards"

    @property
    def help(self) -> str:
        """The label, what the map shows and what it costs, as sentences."""
        return f"{self.label}: {self.meaning} Cost: {self.cost}."

    def forwards(self, size: tuple[int, int]) -> int:
        """Forwards that a method without a layer spends on a picture of `size` (H, W)."""
        return self.per_picture(size) if callable(self.per_picture) else self.per_picture


# name -> record, in the order of every menu; public, and callable as functions are
METHODS: Final[dict[str, Method]] = {}
# the same with the constants of the published protocol (measures.md, "paper" in detail)
PAPER_METHODS: Final[dict[str, MethodFunction]] = {}
# methods that run the network for each channel of the layer -> forwards per channel
CHANNELWISE: Final[dict[str, int]] = {}
# methods that no layer takes part in -> forwards on a picture of (H, W)
LAYERLESS: Final[dict[str, Callable[[tuple[int, int]], int]]] = {}


def register(method: Method) -> Method:
    """Add a method to every list that is derived from the records.

    Raises:
        SegproofError: a method of this name exists.
    """
    if method.name in METHODS:
        raise SegproofError(
            f"a second method named {method.name}", "names that are not taken", "rename it"
        )
    METHODS[method.name] = method
    PAPER_METHODS[method.name] = (
        functools.partial(method, **method.published) if method.published else method
    )
    if method.per_channel:
        CHANNELWISE[method.name] = method.per_channel
    if not method.needs_layer:
        LAYERLESS[method.name] = method.forwards
    return method


def record_of(method: str | MethodFunction) -> Method | None:
    """The record of a name, a record, a function of the package or a partial one; else None."""
    if isinstance(method, str):
        return METHODS.get(method)
    if isinstance(method, functools.partial):
        return record_of(method.func)
    if isinstance(method, Method):
        return method
    place = f"{getattr(method, '__module__', '')}:{getattr(method, '__qualname__', '')}"
    for record in METHODS.values():
        if method is record.function or record.function == Deferred(place):
            return record
    return None


def method_name(method: MethodFunction) -> str:
    """The name of a callable: its record's, else its own, else that of its type."""
    if record := record_of(method):
        return record.name
    function = method.func if isinstance(method, functools.partial) else method
    return str(getattr(function, "__name__", type(function).__name__))


def reads_baseline(method: MethodFunction) -> bool:
    """Whether a method may show pictures with hidden pixels; of one without a record, it may."""
    record = record_of(method)
    return record is None or record.reads_baseline


def _built_in(name: str, module: str, label: str, meaning: str, **known: Any) -> None:
    place = f"segproof.explain.{module}:{name}"
    register(Method(name, Deferred(place), label, meaning, **known))


_built_in(
    "grad_cam",
    "cam",
    "Grad-CAM",
    "Weighs each channel by its mean gradient and adds them up.",
    paper="selvaraju2017gradcam",
    colour="#0072B2",
    marker="o",
    default=True,
)
_built_in(
    "grad_cam_pp",
    "cam",
    "Grad-CAM++",
    "Weighs each channel by its positive gradients, pixels with strong ones counting more.",
    paper="chattopadhay2018gradcampp",
    # a = 1 / (2 + S D): D enters as a number, not as a ratio
    lacks=frozenset({"target_scaled", "channel_doubled"}),
    published={"eps": 1e-6},
    colour="#E69F00",
    marker="s",
    default=True,
)
_built_in(
    "xgrad_cam",
    "cam",
    "XGrad-CAM",
    "Weighs each channel by its gradients, averaged with the activations as weights.",
    paper="fu2020xgradcam",
    published={"eps": 1e-7},
    colour="#009E73",
    marker="^",
    default=True,
)
_built_in(
    "score_cam",
    "masked",
    "Score-CAM",
    "Shows the network the picture behind each channel as a mask and weighs it by its score.",
    paper="wang2020scorecam",
    per_channel=1,
    baseline="hides",
    # a mask per channel and a weight per mask: how often and how loud a channel is drawn counts
    lacks=frozenset({"channel_doubled", "channel_rescaled"}),
    published={"weights": "softmax"},
    colour="#D55E00",
    marker="D",
    default=True,
)
_built_in(
    "eigen_cam",
    "cam",
    "Eigen-CAM",
    "Shows the main direction in which activations vary, whatever the class.",
    paper="muhammad2020eigencam",
    # variance is what an eigenvector sees
    lacks=frozenset({"channel_doubled", "channel_rescaled"}),
    colour="#CC79A7",
    marker="v",
    default=True,
)
_built_in(
    "hires_cam",
    "cam",
    "HiRes-CAM",
    "Multiplies gradients and activations pixel by pixel and adds the channels up.",
    paper="draelos2020hirescam",
    colour="#56B4E9",
    marker="P",
)
_built_in(
    "layer_cam",
    "cam",
    "Layer-CAM",
    "Multiplies positive gradients and activations pixel by pixel and adds the channels up.",
    paper="jiang2021layercam",
    colour="#7F5539",
    marker="X",
)
_built_in(
    "grad_cam_elementwise",
    "cam",
    "Grad-CAM element-wise",
    "Adds up the positive products of gradients and activations, pixel by pixel.",
    paper="gildenblat2021cam",
)
_built_in(
    "seg_xres_cam",
    "cam",
    "Seg-XRes-CAM",
    "Averages gradients over windows, multiplies them with activations and adds the channels up.",
    paper="hasany2023segxrescam",
    # windows lie on a grid of their own, as random masks do
    lacks=frozenset({"translated"}),
)
_built_in(
    "seg_eigen_cam",
    "cam",
    "Seg-Eigen-CAM",
    "Shows the main direction in which activations times the size of their gradients vary.",
    paper="chung2025segeigencam",
    lacks=frozenset({"channel_doubled"}),
)
_built_in(
    "eigen_grad_cam",
    "cam",
    "Eigen-Grad-CAM",
    "Shows the main direction in which gradients times activations vary.",
    paper="gildenblat2021cam",
    lacks=frozenset({"channel_doubled"}),
)
_built_in(
    "ablation_cam",
    "masked",
    "Ablation-CAM",
    "Weighs each channel by what the score loses when the channel is set to zero.",
    paper="desai2020ablation",
    per_channel=1,
    # as Score-CAM: a weight per channel
    lacks=frozenset({"channel_doubled", "channel_rescaled"}),
)
_built_in(
    "kernel_weighted",
    "masked",
    "Kernel-Weighted",
    "Weighs each channel by what is lost without it and by what it keeps up alone.",
    paper="mullan2023kernelweighted",
    per_channel=2,
    # as Ablation-CAM; losses of p are one-sided, so float32 rounding adds up where p is saturated
    lacks=frozenset({"batch", "channel_doubled", "channel_rescaled"}),
)
_built_in(
    "rise",
    "masked",
    "RISE",
    "Averages the score over random smooth masks that show a pixel.",
    paper="petsiuk2018rise",
    needs_layer=False,
    per_picture=RISE_MASKS,
    baseline="hides",
    lacks=frozenset({"turned", "translated"}),
    published={"centred": False},
)
_built_in(
    "occlusion",
    "masked",
    "Occlusion",
    "Averages what the score loses when a square window that covers a pixel is hidden.",
    paper="zeiler2014visualizing",
    needs_layer=False,
    per_picture=Deferred("segproof.explain.masked:occlusion_forwards"),
    baseline="hides",
    lacks=frozenset({"translated"}),
)
_built_in(
    "input_x_gradient",
    "input_gradients",
    "Gradient \N{MULTIPLICATION SIGN} input",
    "Multiplies each pixel with the gradient of the score there.",
    paper="shrikumar2016notjust",
    needs_layer=False,
    per_picture=1,
    extra="captum",
)
_built_in(
    "integrated_gradients",
    "input_gradients",
    "Integrated gradients",
    "Adds the gradients up along the way from the filled picture to the picture itself.",
    paper="sundararajan2017axiomatic",
    needs_layer=False,
    per_picture=INTEGRATED_STEPS,
    baseline="starts",
    extra="captum",
)
