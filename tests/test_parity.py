"""The paper preset against pytorch-grad-cam 1.5.7 with its own semantics: same map to 1e-5.

There the network returns probabilities, takes normalised pictures, and the target is the sum of
p_c * mask with mask = p_c * G, both as in the published notebook.
"""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import (
    AblationCAM,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    ScoreCAM,
    SegEigenCAM,
    XGradCAM,
)
from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget
from torch import Tensor, nn

from segproof.cam import PAPER_METHODS, RawMap
from segproof.capture import capture
from segproof.data import read_image, read_mask
from segproof.explain import normalise
from segproof.load import load_model
from segproof.model import SegmentationModel
from segproof.target import Target

TOLERANCE = 1e-5
THEIRS = {
    "grad_cam": GradCAM,
    "grad_cam_pp": GradCAMPlusPlus,
    "xgrad_cam": XGradCAM,
    "score_cam": ScoreCAM,
    "hires_cam": HiResCAM,
    "layer_cam": LayerCAM,
    "grad_cam_elementwise": GradCAMElementWise,
}
# Their sign is left to the SVD, except in Seg-Eigen-CAM.
EIGEN = {"eigen_cam": EigenCAM, "eigen_grad_cam": EigenGradCAM, "seg_eigen_cam": SegEigenCAM}
CHANNELWISE_SIDE = 128  # hundreds of pictures are shown twice: a smaller cut keeps it in seconds
COARSEST, FINEST = "decoder:1", "decoder:-1"


class Probabilities(nn.Module):
    """Their view of a network: normalised pictures in, probabilities out."""

    def __init__(self, net: nn.Module, activation: str) -> None:
        super().__init__()
        self.net, self.activation = net, activation

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits.softmax(dim=1) if self.activation == "softmax" else logits.sigmoid()


class Case:
    """A network, a picture, the truth of one class; and both tools' maps of it."""

    def __init__(self, model: SegmentationModel, image: Tensor, truth: Tensor, name: str) -> None:
        self.model, self.image, self.truth = model.eval(), image, truth
        self.target = Target(name, preset="paper")
        one_channel = model.channels == 1
        self.category = 0 if one_channel else model.class_index(name)
        self.theirs = Probabilities(model.net, "sigmoid" if one_channel else model.activation)
        self.size = (image.shape[1], image.shape[2])
        self.normalised = ((image - model.mean) / model.std)[None]

    def ours(self, method: str, layer: str) -> tuple[NDArray[np.float32], Tensor]:
        path = self.model.resolve_layer(layer, self.size)
        images = self.image[None]
        baseline = self.model.neutral.expand_as(images)
        seen = capture(self.model, images, self.target, [path], self.truth[None], baseline=baseline)
        result = PAPER_METHODS[method](seen, path, self.model)
        raw = (result.values if isinstance(result, RawMap) else result)[0]
        heat, status = normalise(raw, self.size, "paper")
        assert status == "ok"
        return heat.numpy(), raw

    def reference(self, kind: type, layer: str, inside: str = "") -> NDArray[np.float32]:
        """Their map at our layer, or at the module of the name `inside` in it."""
        with torch.no_grad():
            p = self.theirs(self.normalised)[0, self.category].numpy()
        target = SemanticSegmentationTarget(self.category, p * self.truth.numpy())
        block = self.model.net.get_submodule(self.model.resolve_layer(layer, self.size))
        block = block.get_submodule(inside)
        with kind(model=self.theirs, target_layers=[block]) as cam:
            result: NDArray[np.float32] = cam(input_tensor=self.normalised, targets=[target])[0]
        return result


def random_unet(classes: int, seed: int = 0) -> SegmentationModel:
    """smp.Unet with random weights and fitting running statistics, so that maps have relief."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        widths = (48, 32, 24, 16, 8)
        net = smp.Unet("resnet18", encoder_weights=None, classes=classes, decoder_channels=widths)
        net.train()
        with torch.no_grad():
            for _ in range(20):
                net(torch.randn(4, 3, 64, 64))
            net.segmentation_head[0].weight.mul_(4)
    names = ["roof"] if classes == 1 else [f"class_{k}" for k in range(classes)]
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


@pytest.fixture(scope="module", params=[1, 3], ids=["sigmoid", "softmax"])
def case(request: pytest.FixtureRequest) -> Case:
    model = random_unet(request.param)
    image, truth = picture(1, 64)
    return Case(model, image, truth, model.classes[1])


def real_case(shared: Path, side: int) -> Case:
    """The published tile, cut to its middle."""
    model = load_model(f"smp:{shared / 'models' / 'roofs-unet-lite0'}")
    test = shared / "whu" / "test"
    image = read_image(test / "image" / "2_566.png")["image"]
    mask = read_mask(test / "label" / "2_566.png")[0]
    cut = slice(256 - side // 2, 256 + side // 2)
    return Case(model, image[:, cut, cut], (mask == 1)[cut, cut], "building")


def check(case: Case, method: str, layer: str) -> None:
    ours, _ = case.ours(method, layer)
    theirs = case.reference(THEIRS[method], layer)
    assert theirs.std() > 0.01
    assert theirs.max() == pytest.approx(1, abs=1e-3)
    difference = float(np.abs(ours - theirs).max())
    print(f"\nparity {method} {layer}: {difference:.2e}")
    assert difference <= TOLERANCE


@pytest.mark.parametrize("layer", [COARSEST, FINEST])
@pytest.mark.parametrize("method", sorted(THEIRS))
def test_random_unet(case: Case, method: str, layer: str) -> None:
    check(case, method, layer)


def check_eigen(case: Case, method: str, layer: str) -> None:
    """Theirs leaves the sign to the SVD: compared up to sign before the ReLU."""
    ours, raw = case.ours(method, layer)
    theirs = case.reference(EIGEN[method], layer)
    other = normalise(-raw, case.size, "paper")[0].numpy()
    assert theirs.std() > 0.01
    differences = [float(np.abs(mine - theirs).max()) for mine in (ours, other)]
    print(f"\nparity {method} {layer}: {min(differences):.2e}")
    assert min(differences) <= TOLERANCE
    if method == "seg_eigen_cam":
        assert differences[0] <= TOLERANCE
    assert max(differences) > 0.1


@pytest.mark.parametrize("layer", [COARSEST, "decoder:2", FINEST])
@pytest.mark.parametrize("method", sorted(EIGEN))
def test_random_unet_eigen(case: Case, method: str, layer: str) -> None:
    if layer == FINEST:
        # their full SVD asks for (pixels)^2 numbers
        cut = slice(16, 48)
        case = Case(
            case.model, case.image[:, cut, cut], case.truth[cut, cut], case.model.classes[1]
        )
    check_eigen(case, method, layer)


def check_ablation(case: Case, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a ReLU, where the least activation is 0, both put zeros in a channel's place.

    In float64 throughout: a channel of the coarsest block changes Y by 1e-2 at most, and they round
    Y to float32 before they subtract, which alone moves their map by up to 2e-5. Their stand-in
    takes one argument and a block of this decoder two: it stands in the block's last convolution
    (with its ReLU), whose result is the block's.
    """
    model = copy.deepcopy(case.model).double()
    exact = Case(model, case.image.double(), case.truth, model.classes[1])
    ours, _ = exact.ours("ablation_cam", layer)
    rounded = exact.reference(AblationCAM, layer, "conv2")
    unrounded = SimpleNamespace(float32=np.float64, int32=np.int32, argsort=np.argsort)
    monkeypatch.setattr("pytorch_grad_cam.ablation_cam.np", unrounded)
    theirs = exact.reference(AblationCAM, layer, "conv2")
    assert theirs.std() > 0.01
    differences = [float(np.abs(ours - other).max()) for other in (theirs, rounded)]
    print(f"\nparity ablation_cam {layer}: {differences[0]:.2e} (rounded: {differences[1]:.2e})")
    assert differences[0] <= TOLERANCE
    assert differences[1] <= 10 * TOLERANCE


@pytest.mark.parametrize("layer", [COARSEST, FINEST])
def test_random_unet_ablation(case: Case, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_ablation(case, layer, monkeypatch)


def test_ablation_of_signed_activations_differs_on_purpose(case: Case) -> None:
    """Where the least activation is below 0 they put that minus 1e7 in a channel's place, not 0:
    far outside of what the network has seen, and not the published method.
    """
    layer = "encoder.layer1.0.conv2"  # before its normalisation and ReLU
    ours, _ = case.ours("ablation_cam", layer)
    theirs = case.reference(AblationCAM, layer)
    assert np.abs(ours - theirs).max() > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("layer", [COARSEST, FINEST])
@pytest.mark.parametrize("method", sorted(THEIRS))
def test_real_network(shared: Path, method: str, layer: str) -> None:
    side = CHANNELWISE_SIDE if method == "score_cam" else 256
    check(real_case(shared, side), method, layer)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [COARSEST, FINEST])
def test_real_network_ablation(shared: Path, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_ablation(real_case(shared, CHANNELWISE_SIDE), layer, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [COARSEST, "decoder:2"])
@pytest.mark.parametrize("method", sorted(EIGEN))
def test_real_network_eigen(shared: Path, method: str, layer: str) -> None:
    check_eigen(real_case(shared, 256), method, layer)


def test_the_comparison_would_notice(case: Case) -> None:
    """Another target (no mask) or another eps is further away than the tolerance."""
    ours, _ = case.ours("grad_cam", COARSEST)
    theirs = case.reference(GradCAMPlusPlus, COARSEST)
    assert np.abs(ours - theirs).max() > 100 * TOLERANCE
