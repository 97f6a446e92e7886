"""The paper preset against pytorch-grad-cam 1.5.7 with its own semantics: same map to 1e-5.

There the network returns probabilities, takes normalised pictures, and the target is the sum of
p_c * mask with mask = p_c * G, both as in the published notebook.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, ScoreCAM, XGradCAM
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
}
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

    def reference(self, kind: type, layer: str) -> NDArray[np.float32]:
        with torch.no_grad():
            p = self.theirs(self.normalised)[0, self.category].numpy()
        target = SemanticSegmentationTarget(self.category, p * self.truth.numpy())
        block = self.model.net.get_submodule(self.model.resolve_layer(layer, self.size))
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


def check_eigen(case: Case, layer: str) -> None:
    """Theirs leaves the sign to the SVD: compared up to sign before the ReLU."""
    ours, raw = case.ours("eigen_cam", layer)
    theirs = case.reference(EigenCAM, layer)
    other = normalise(-raw, case.size, "paper")[0].numpy()
    assert theirs.std() > 0.01
    differences = [float(np.abs(mine - theirs).max()) for mine in (ours, other)]
    print(f"\nparity eigen_cam {layer}: {min(differences):.2e}")
    assert min(differences) <= TOLERANCE
    assert max(differences) > 0.1


@pytest.mark.parametrize("layer", [COARSEST, "decoder:2"])
def test_random_unet_eigen_cam(case: Case, layer: str) -> None:
    # a full SVD of the finest block asks for (pixels)^2 numbers: small layers only
    check_eigen(case, layer)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [COARSEST, FINEST])
@pytest.mark.parametrize("method", sorted(THEIRS))
def test_real_network(shared: Path, method: str, layer: str) -> None:
    # Score-CAM shows 256 masked pictures twice: a smaller cut keeps it in seconds
    check(real_case(shared, 128 if method == "score_cam" else 256), method, layer)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [COARSEST, "decoder:2"])
def test_real_network_eigen_cam(shared: Path, layer: str) -> None:
    check_eigen(real_case(shared, 256), layer)


def test_the_comparison_would_notice(case: Case) -> None:
    """Another target (no mask) or another eps is further away than the tolerance."""
    ours, _ = case.ours("grad_cam", COARSEST)
    theirs = case.reference(GradCAMPlusPlus, COARSEST)
    assert np.abs(ours - theirs).max() > 100 * TOLERANCE
