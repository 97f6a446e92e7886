"""Our maps beside those of other tools: networks, layers, and one table of what is compared.

`test_parity.py` asserts the table, `docs/_make/parity.py` writes it. With grad-cam and
attribution-quality the preset is `paper`, whose target (the sum of p_c * m with m = p_c * G held
fixed) and guards are theirs; with captum and torchcam it is `strict` (the mean of z_c over G),
except for Score-CAM.
"""

from __future__ import annotations

import copy
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import attribution_quality as quality
import numpy as np
import pytorch_grad_cam as pgc
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerVit
from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget
from torch import Tensor, nn
from torch.nn.functional import interpolate

from segproof.explain.api import normalise
from segproof.explain.cam import RawMap
from segproof.explain.forward_pass import capture
from segproof.explain.methods import CHANNELWISE, METHODS, PAPER_METHODS
from segproof.explain.target import Preset, Target
from segproof.models.contract import SegmentationModel

with warnings.catch_warnings():
    # raised while they are imported, by their own dependencies
    warnings.simplefilter("ignore")
    captum: Any = importlib.import_module("captum.attr")
    torchcam: Any = importlib.import_module("torchcam.methods")

Array = NDArray[np.float32]
TOLERANCE: Final = 1e-5
EITHER_SIGN: Final = ("eigen_cam", "eigen_grad_cam")  # theirs is left to the SVD
EIGEN: Final = (*EITHER_SIGN, "seg_eigen_cam")


# --- networks -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Network:
    """A network with random weights, seeded; `head` is its last layer, `side` the picture's."""

    title: str
    make: Callable[[], nn.Module]
    head: str
    classes: int = 3
    side: int = 64
    explained: int = 1  # a class of which no method's map is flat


def _unet(classes: int) -> nn.Module:
    widths = (48, 32, 24, 16, 8)
    net: nn.Module = smp.Unet(
        "resnet18", encoder_weights=None, classes=classes, decoder_channels=widths
    )
    return net


def _deeplab() -> nn.Module:
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large as make

    net: nn.Module = make(weights=None, weights_backbone=None, num_classes=3)
    return net


def _segformer() -> nn.Module:
    hf: Any = importlib.import_module("transformers")
    hf.logging.set_verbosity_error()
    # their defaults are the encoder of B0; the decoder has 256 channels there
    config = hf.SegformerConfig(num_labels=3, decoder_hidden_size=64)
    net: nn.Module = hf.SegformerForSemanticSegmentation(config)
    return net


NETWORKS: Final = {
    "unet": Network("smp.Unet, resnet18, softmax", lambda: _unet(3), "segmentation_head.0"),
    "unet-1": Network(
        "smp.Unet, resnet18, one channel, sigmoid", lambda: _unet(1), "segmentation_head.0", 1
    ),
    "deeplab": Network(
        "torchvision deeplabv3_mobilenet_v3_large", _deeplab, "classifier.4", side=96, explained=0
    ),
    "segformer": Network(
        "transformers SegFormer, encoder of B0, 64 channels in the decoder",
        _segformer,
        "decode_head.classifier",
    ),
}


@functools.cache
def random_model(name: str, seed: int = 0) -> SegmentationModel:
    """Random weights, running statistics that fit, and logits that spread, so that maps have
    relief.
    """
    network = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = network.make()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # plain averages
        shown = torch.stack([picture(n, network.side)[0] for n in range(80)])
        batches = ((shown - 0.5) / 0.25).view(20, 4, *shown.shape[1:])
        with torch.no_grad():
            net.train()
            for batch in batches:
                net(batch)
            net.eval()
            head, logits = net.get_submodule(network.head), Theirs(net)(batches[0])
            head.bias.sub_(logits.mean(dim=(0, 2, 3)))  # type: ignore[operator]
            for parameter in head.parameters():
                parameter.mul_(2 / logits.std(dim=(0, 2, 3)).mean())
    count = network.classes
    names = ["roof"] if count == 1 else [f"class_{k}" for k in range(count)]
    return SegmentationModel(net, classes=names, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])


def picture(seed: int, side: int) -> tuple[Tensor, Tensor]:
    """Smooth bright boxes on noise, and the boxes."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.3 + 0.2 * torch.rand(3, side, side, generator=generator)
    truth = torch.zeros(side, side, dtype=torch.bool)
    for _ in range(3):
        top, left = torch.randint(0, side * 2 // 3, (2,), generator=generator).tolist()
        truth[top : top + side // 4, left : left + side // 3] = True
    return torch.where(truth, image + 0.4, image), truth


class Theirs(nn.Module):
    """A network as peers want it: normalised pictures in, one tensor of the picture's size out."""

    def __init__(self, net: nn.Module, activation: str = "") -> None:
        super().__init__()
        self.net, self.activation = net, activation

    def forward(self, images: Tensor) -> Tensor:
        result = self.net(images)
        if isinstance(result, dict):
            result = result["out"] if "out" in result else result["logits"]
        logits: Tensor = result
        if logits.shape[-2:] != images.shape[-2:]:
            size = (images.shape[-2], images.shape[-1])
            logits = interpolate(logits, size=size, mode="bilinear", align_corners=False)
        if self.activation == "softmax":
            return logits.softmax(dim=1)
        return logits.sigmoid() if self.activation == "sigmoid" else logits


# --- places and cases ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Place:
    """A layer of a network. `inside` names the module in it whose result is the layer's, for a
    peer whose stand-in takes one argument.
    """

    network: str
    layer: str
    inside: str = ""
    signed: bool = False  # has activations below 0
    tokens: bool = False  # [N, L, C]
    kernel: bool = False  # a convolution without a bias
    fine: bool = False  # of the picture's size
    heavy: bool = False  # a forward per channel takes many seconds


PLACES: Final = (
    Place("unet", "decoder.blocks.0", inside="conv2"),
    Place("unet", "decoder.blocks.4", inside="conv2", fine=True),
    Place("unet", "decoder.blocks.0.conv2.0", signed=True, kernel=True),
    Place("unet-1", "decoder.blocks.0", inside="conv2", heavy=True),
    Place("unet-1", "decoder.blocks.4", inside="conv2", fine=True),
    Place("unet-1", "decoder.blocks.0.conv2.0", signed=True, kernel=True, heavy=True),
    Place("deeplab", "backbone.12", signed=True, heavy=True),
    Place("deeplab", "classifier.1", signed=True, kernel=True, heavy=True),
    Place("deeplab", "classifier.3", heavy=True),
    Place("segformer", "decode_head.linear_projections.1", signed=True, tokens=True),
    Place("segformer", "decode_head.linear_fuse", signed=True, kernel=True),
    Place("segformer", "decode_head.activation"),
)


class HeatmapCase:
    """A network, a picture and the truth of one class; our map of it, and what peers are given."""

    def __init__(self, model: SegmentationModel, image: Tensor, truth: Tensor, name: str) -> None:
        self.model, self.image, self.truth, self.name = model.eval(), image, truth, name
        one_channel = model.channels == 1
        self.category = 0 if one_channel else model.class_index(name)
        self.logits = Theirs(model.net)
        self.probabilities = Theirs(model.net, "sigmoid" if one_channel else model.activation)
        self.size = (image.shape[1], image.shape[2])
        self.normalised = ((image - model.mean) / model.std)[None]

    def double(self) -> HeatmapCase:
        model = copy.deepcopy(self.model).double()
        return HeatmapCase(model, self.image.double(), self.truth, self.name)

    def cut(self, side: int) -> HeatmapCase:
        rows, columns = (slice((n - side) // 2, (n + side) // 2) for n in self.size)
        image, truth = self.image[:, rows, columns], self.truth[rows, columns]
        return HeatmapCase(self.model, image, truth, self.name)

    def ours(self, method: str, path: str, preset: Preset) -> Tensor:
        """Our raw map [h, w]."""
        images = self.image[None]
        target = Target(self.name, region="truth", preset=preset)
        baseline = self.model.neutral.expand_as(images)
        seen = capture(
            self.model, images, target, [path], self.truth[None], baseline=baseline, batch=16
        )
        result = (PAPER_METHODS if preset == "paper" else METHODS)[method](seen, path, self.model)
        return (result.values if isinstance(result, RawMap) else result)[0]

    def heat(self, raw: Tensor, preset: Preset) -> Array:
        """The heatmap of a raw map [h, w] that is not flat."""
        heat, status = normalise(raw, self.size, preset)
        if status != "ok":
            raise ValueError(f"a map that is {status} shows nothing")
        return heat.numpy()

    def mask(self) -> Tensor:
        """The published m = p_c * G, held fixed."""
        with torch.no_grad():
            output: Tensor = self.probabilities(self.normalised)
        return output[0, self.category] * self.truth

    def published(self, output: Tensor) -> Tensor:
        """Sum of p_c * m of an output [C, H, W]."""
        return (output[self.category] * self.mask()).sum()

    def mean_logit(self, output: Tensor) -> Tensor:
        """Mean of z_c over G of an output [C, H, W]."""
        picked: Tensor = output[self.category][self.truth]
        return picked.mean()


def case_of(place: Place, method: str) -> HeatmapCase:
    model = copy.deepcopy(random_model(place.network))
    network = NETWORKS[place.network]
    image, truth = picture(100, network.side)
    case = HeatmapCase(model, image, truth, model.classes[network.explained])
    # a full SVD asks for (pixels of the layer)^2 numbers
    return case.cut(32) if method in EIGEN and place.fine else case


def as_map(tokens: Tensor) -> Tensor:
    """Square [N, L, C] -> [N, C, h, w]."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)


# --- peers --------------------------------------------------------------------------------------
def of_grad_cam(case: HeatmapCase, kind: Any, place: Place, preset: Preset) -> Array:
    """Their whole path: target, ReLU, scaling, OpenCV's resize, scaling."""
    target = SemanticSegmentationTarget(case.category, case.mask().numpy())
    how: dict[str, Any] = {"reshape_transform": as_map} if place.tokens else {}
    layer = case.model.net.get_submodule(place.layer)
    if kind is pgc.AblationCAM:
        layer = layer.get_submodule(place.inside)
        how["ablation_layer"] = AblationLayerVit() if place.tokens else AblationLayer()
    bars = patch("tqdm.tqdm", iter)
    with bars, kind(model=case.probabilities, target_layers=[layer], **how) as cam:
        heat: Array = cam(input_tensor=case.normalised, targets=[target])[0]
    return heat


def of_captum(case: HeatmapCase, kind: Any, place: Place, preset: Preset) -> Array:
    def score(images: Tensor) -> Tensor:
        return case.mean_logit(case.logits(images)[0])[None]

    layer = case.model.net.get_submodule(place.layer)
    found: Tensor = kind(score, layer).attribute(case.normalised).detach()
    return case.heat((as_map(found) if place.tokens else found).sum(dim=1)[0], preset)


def of_torchcam(case: HeatmapCase, kind: Any, place: Place, preset: Preset) -> Array:
    paper = preset == "paper"
    view, target = (case.probabilities, case.published) if paper else (case.logits, case.mean_logit)
    how = {"reshape_transform": as_map} if place.tokens else {}
    with kind(view, case.model.net.get_submodule(place.layer), **how) as cam:
        output = view(case.normalised)
        [found] = cam(scores=output, targets=target, normalized=False)
    return case.heat(found[0].detach(), preset)


def of_quality(case: HeatmapCase, kind: Any, place: Place, preset: Preset) -> Array:
    """Their maps at the layer's size: scaling comes before the resize there, and with 1e-7."""
    kernels = kind is quality.KernelWeighted
    mask = case.truth if kernels else case.mask()
    how: dict[str, Any] = {"n_spatial_dim": 2, "use_cuda": False, "resize_to_input": False}
    # the split form is for one network of nnU-Net only
    how |= {"allow_splitnet": False} if kernels else {}
    if kind is not quality.ScoreCAM and not kernels:
        how |= {"rescale_output_range": False}
    layer = case.model.net.get_submodule(place.layer)
    with kind(case.probabilities, [layer], **how) as cam, warnings.catch_warnings():
        # it indexes tensors with lists, which torch deprecates
        warnings.simplefilter("ignore", UserWarning)
        [found] = cam(case.normalised, lambda output: output[:, [case.category]] * mask)
    return case.heat(torch.from_numpy(found[0, 0]).relu(), preset)


@dataclass(frozen=True)
class Peer:
    """A tool: its name on the package index, how to ask it, which preset is its own."""

    distribution: str
    ask: Callable[[HeatmapCase, Any, Place, Preset], Array]
    preset: Preset
    methods: dict[str, Any]
    presets: dict[str, Preset] = field(default_factory=dict)  # where another one is


PEERS: Final = {
    "grad-cam": Peer(
        "grad-cam",
        of_grad_cam,
        "paper",
        {
            "grad_cam": pgc.GradCAM,
            "grad_cam_pp": pgc.GradCAMPlusPlus,
            "xgrad_cam": pgc.XGradCAM,
            "score_cam": pgc.ScoreCAM,
            "eigen_cam": pgc.EigenCAM,
            "hires_cam": pgc.HiResCAM,
            "layer_cam": pgc.LayerCAM,
            "grad_cam_elementwise": pgc.GradCAMElementWise,
            "seg_eigen_cam": pgc.SegEigenCAM,
            "eigen_grad_cam": pgc.EigenGradCAM,
            "ablation_cam": pgc.AblationCAM,
        },
    ),
    "captum": Peer(
        "captum",
        of_captum,
        "strict",
        {"grad_cam": captum.LayerGradCam, "hires_cam": captum.LayerGradientXActivation},
    ),
    "torchcam": Peer(
        "torchcam",
        of_torchcam,
        "strict",
        {
            "grad_cam": torchcam.GradCAM,
            "grad_cam_pp": torchcam.GradCAMpp,
            "xgrad_cam": torchcam.XGradCAM,
            "score_cam": torchcam.ScoreCAM,
            "layer_cam": torchcam.LayerCAM,
        },
        {"score_cam": "paper"},
    ),
    "attribution-quality": Peer(
        "attribution-quality",
        of_quality,
        "paper",
        {
            "grad_cam": quality.GradCAM,
            "grad_cam_pp": quality.GradCAMPlusPlus,
            "xgrad_cam": quality.XGradCAM,
            "score_cam": quality.ScoreCAM,
            "hires_cam": quality.HiResCAM,
            "layer_cam": quality.LayerCAM,
            "grad_cam_elementwise": quality.GradCAMElementWise,
            "kernel_weighted": quality.KernelWeighted,
        },
    ),
}


@contextmanager
def unrounded() -> Iterator[None]:
    """Scores of grad-cam's Ablation-CAM and Score-CAM stay what they are: they round each to
    float32 before they subtract, or take the softmax.
    """
    scores = SimpleNamespace(float32=np.float64, int32=np.int32, argsort=np.argsort)
    tensors = SimpleNamespace(
        no_grad=torch.no_grad,
        nn=nn,
        from_numpy=torch.from_numpy,
        Tensor=functools.partial(torch.tensor, dtype=torch.float64),
    )
    with (
        patch("pytorch_grad_cam.ablation_cam.np", scores),
        patch("pytorch_grad_cam.score_cam.torch", tensors),
    ):
        yield


# --- the table ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cell:
    """One comparison. `note`: why the definitions differ there, a key of NOTES; "" where they must
    agree. `exact`: in float64, with the peer's rounding taken out.
    """

    peer: str
    method: str
    place: Place
    note: str = ""
    exact: bool = False

    @property
    def id(self) -> str:
        return f"{self.peer}-{self.method}-{self.place.network}-{self.place.layer}"

    @property
    def slow(self) -> bool:
        return (self.place.heavy or self.note != "") and self.method in CHANNELWISE

    def holds(self, figure: float) -> bool:
        """Whether the figure is what the table says: the same map, or clearly another one."""
        if self.note == "score-masks" and not self.place.signed:
            return True  # all weight is on one channel there, whichever way masks are made
        return figure > 100 * TOLERANCE if self.note else figure <= TOLERANCE


# Where a peer has the method and computes something else; measured all the same.
NOTES: Final = {
    "ablation-signed": "where the least activation is below 0, grad-cam puts it minus 1e7 in a"
    " channel's place (for tokens minus 1e5), not 0: far outside of what the network has seen",
    "score-masks": "torchcam scales masks before it upsamples them (half-pixel centres), the"
    " published protocol after (aligned corners); on a layer of the picture's size both are one,"
    " and a small figure is a softmax that puts all weight on one channel either way",
    "score-classes": "attribution-quality takes the softmax over classes, not over channels: for"
    " one class every weight is 1",
    "pp-undivided": "torchcam divides a copy: the denominator of alpha has no effect, and weights"
    " are the sums of D^2 ReLU(D)",
}
# Where a peer has the method and cannot be asked.
CANNOT: Final = {
    "tokens": "takes the second dimension for channels, which are last in tokens; it has no"
    " reshape_transform",
    "kernels": "zeroes kernels, not activations: compared on convolutions without a bias, where"
    " both are one",
}


def cannot(peer: str, method: str, place: Place) -> str:
    """Why a peer cannot be compared a method that it has, a key of CANNOT; "" where it can."""
    if place.tokens and (peer == "attribution-quality" or (peer, method) == ("captum", "grad_cam")):
        return "tokens"
    return "kernels" if method == "kernel_weighted" and not place.kernel else ""


def _note(peer: str, method: str, place: Place) -> str:
    if method == "ablation_cam" and place.signed:
        return "ablation-signed"
    if (peer, method) == ("torchcam", "score_cam") and not place.fine:
        return "score-masks"
    if (peer, method) == ("attribution-quality", "score_cam"):
        return "score-classes"
    return "pp-undivided" if (peer, method) == ("torchcam", "grad_cam_pp") else ""


def _exact(peer: str, method: str, place: Place) -> bool:
    if method in ("grad_cam_pp", "xgrad_cam"):
        return place.signed and not _note(peer, method, place)
    return peer == "grad-cam" and method in ("ablation_cam", "score_cam")


CELLS: Final = tuple(
    Cell(peer, method, place, _note(peer, method, place), _exact(peer, method, place))
    for place in PLACES
    for peer, tool in PEERS.items()
    for method in tool.methods
    if not cannot(peer, method, place)
)


def distance(case: HeatmapCase, peer: str, method: str, place: Place) -> float:
    """Greatest difference between our heatmap and a peer's, both in [0, 1] and not flat; for maps
    whose sign a peer leaves open, with the sign that fits.
    """
    tool = PEERS[peer]
    preset = tool.presets.get(method, tool.preset)
    raw = case.ours(method, place.layer, preset)
    theirs = tool.ask(case, tool.methods[method], place, preset)
    flat = theirs.std() <= 0.01 or abs(theirs.max() - 1) > 1e-3
    if flat and not _note(peer, method, place):
        raise ValueError("a peer's map without relief shows nothing")
    signs = (1, -1) if method in EITHER_SIGN else (1,)
    return min(float(np.abs(case.heat(sign * raw, preset) - theirs).max()) for sign in signs)


def measure(cell: Cell) -> float:
    """The figure of a cell."""
    case = case_of(cell.place, cell.method)
    if not cell.exact:
        return distance(case, cell.peer, cell.method, cell.place)
    with unrounded():
        return distance(case.double(), cell.peer, cell.method, cell.place)
