"""What the doctor says of networks that are well, and of those that are not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import CLASSES, FAMILIES, of_smp
from segproof.cli import app as cli
from segproof.data.scenes import write_scenes
from segproof.doctor import Finding, diagnose, example_picture, layer_facts
from segproof.models.contract import SegmentationModel
from segproof.models.layers import Layer
from segproof.models.loaders.load import demo_model_spec, load_model, save_model
from sideeffects import facts
from toys import ToyNet, toy_model

HAS_HF = importlib.util.find_spec("transformers") is not None
needs_hf = pytest.mark.skipif(not HAS_HF, reason="transformers (the extra hf) is not installed")


def findings(model: SegmentationModel, size: tuple[int, int] = (64, 96)) -> dict[str, Finding]:
    found = list(diagnose(model, example_picture(model, size)))
    assert len({item.about for item in found}) == len(found)
    return {item.about: item for item in found}


# --- layers -------------------------------------------------------------------------------------
class Boxes(nn.Module):
    """Means over 3 x 3 px, one after the other, then over 2 x 2 with a stride; a dead channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        self.third = nn.Conv2d(1, 1, 2, stride=2)
        for layer in (self.first, self.second, self.third):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.first.weight[3:].detach())

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.third(self.second(self.first(images)))
        return result


def test_receptive_fields_and_dead_channels_by_hand() -> None:
    """3 px; 5 px; with a mean of 2 x 2 behind them 6 px: 95 % needs all of them."""
    model = SegmentationModel(Boxes(), classes=["roof"])
    with torch.no_grad():
        model.net.get_parameter("first.weight")[3] = 0
    image = 1 + torch.rand(1, 24, 16, generator=torch.Generator().manual_seed(0))
    layers = [Layer(path, "", 1, 1, (24, 16)) for path in ("first", "second", "third")]
    found = layer_facts(model, image, layers)
    assert [item.zero_channels for item in found] == pytest.approx([0.25, 0, 0])
    # weights of (1 2 3 2 1)/9 in a row: 3 px hold (7/9)^2; of (1 3 5 5 3 1)/18: 4 px (16/18)^2
    assert [item.field for item in found] == [3, 5, 6]


def test_what_a_layer_does_not_see() -> None:
    """A field of the whole picture is not more than the picture; a constant has none."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(3, 2, 1))
            self.decoder = nn.Sequential(nn.Conv2d(2, 2, 31, padding=15))
            self.head = nn.Conv2d(2, 1, 1)

        def forward(self, images: Tensor) -> Tensor:
            result: Tensor = self.head(self.decoder(self.encoder(images)))
            return result

    model = SegmentationModel(Both(), classes=["roof"])
    with torch.no_grad():
        model.net.get_parameter("decoder.0.weight").fill_(1.0)
    found = {item.layer.path: item.field for item in layer_facts(model, torch.rand(3, 16, 16))}
    assert found["encoder.0"] == 1
    assert found["decoder.0"] == 16
    with torch.no_grad():
        model.net.get_parameter("decoder.0.weight").zero_()
    found = {item.layer.path: item.field for item in layer_facts(model, torch.rand(3, 16, 16))}
    assert found["decoder.0"] == 0


def test_layer_facts_change_nothing() -> None:
    model = toy_model(3)
    image = torch.rand(3, 16, 16, dtype=torch.float64)
    before = facts(model, image)
    assert len(layer_facts(model, image)) == 4
    assert facts(model, image) == before


# --- networks that are well ---------------------------------------------------------------------
def test_the_shipped_network_is_well() -> None:
    model = load_model(demo_model_spec())
    image = example_picture(model, (96, 96))
    before = facts(model, image)
    found = findings(model, (96, 96))
    assert facts(model, image) == before
    assert {name: item.verdict for name, item in found.items()} == dict.fromkeys(
        (
            "network", "units", "forward", "output", "sizes", "chance", "classes", "layers",
            "axes", "gradients", "maps", "behaviour", "speed",
        ),
        "ok",
    )  # fmt: skip
    assert found["axes"].text.endswith(": channels first, by two sizes")
    assert "encoder:" in found["gradients"].text
    assert "3 bands in, classes background, building" in found["network"].text
    assert "a tensor (1, 1, 96, 96)" in found["forward"].text
    assert " of 12 maps of building over its prediction have relief" in found["maps"].text


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=needs_hf) if n.startswith("hf-") else n
        for n, made in FAMILIES.items()
        if made.encoder
    ],
)
def test_every_family_is_well(name: str) -> None:
    torch.manual_seed(0)
    made = FAMILIES[name]
    model = SegmentationModel(made.make(), classes=CLASSES, mean=[0.5] * 3, std=[0.25] * 3).eval()
    size = made.size if "swin" in name or "vit" in name else (128, 192)
    found = findings(model, size)
    assert all(item.verdict != "problem" for item in found.values()), found
    assert found["forward"].verdict == "ok"
    assert found["maps"].verdict == "ok"
    assert ("queries" in found) == (name in ("hf-Mask2Former", "hf-MaskFormer"))


def test_sizes_that_a_network_does_not_take() -> None:
    model = SegmentationModel(of_smp("Linknet"), classes=CLASSES, mean=[0.5] * 3, std=[0.2] * 3)
    found = findings(model)["sizes"]
    assert (found.verdict, found.text) == ("warning", "takes no images of 61 x 91 pixels")
    assert "--pad" in found.fix


class OneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4))
        self.decoder = nn.Sequential(nn.Conv2d(4, 4, 1))
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (64, 64):
            raise ValueError("not my size")
        result: Tensor = self.head(self.decoder(self.encoder(images)))
        return result


def test_a_network_of_one_size() -> None:
    found = findings(SegmentationModel(OneSize(), classes=CLASSES), (64, 64))
    assert found["sizes"].verdict == "warning"
    assert found["sizes"].text.startswith("takes only 64 x 64")
    assert found["sizes"].fix == "pass --size 64"
    assert "by its only size" in found["axes"].text
    assert found["gradients"].verdict == "ok"


# --- networks that are not ----------------------------------------------------------------------
class Says(nn.Module):
    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(self.layer(images))


def out_of_tea(images: Tensor) -> Tensor:
    raise RuntimeError("out of tea")


@pytest.mark.parametrize(
    ("answer", "text", "fix"),
    [
        (lambda x: {"a": x, "b": x}, "2 outputs that could be the logits", 'output="a"'),
        (lambda x: x.mean(), "a tensor ()", "or the right class names"),
        (lambda x: x / 0, "not finite", "mean and std"),
        (out_of_tea, "RuntimeError: out of tea", "alone"),
    ],
)  # fmt: skip
def test_what_does_not_work_is_said_in_plain_words(answer: Any, text: str, fix: str) -> None:
    model = SegmentationModel(Says(answer), classes=CLASSES)
    found = findings(model)
    assert list(found) == ["network", "units", "forward"]
    assert found["network"].verdict == "warning"
    assert "--mean and --std" in found["network"].fix
    assert found["forward"].verdict == "problem"
    assert text in found["forward"].text
    assert fix in found["forward"].fix


def test_a_class_that_no_layer_matters_for() -> None:
    model = SegmentationModel(
        Says(lambda x: 0 * x + torch.eye(3)[1].view(-1, 1, 1)), classes=CLASSES, output="logits"
    )
    found = findings(model)
    assert found["classes"].verdict == "warning"
    assert "one class everywhere" in found["classes"].text
    assert found["maps"].verdict == "problem"
    assert "all_zero" in found["maps"].text


def test_a_network_that_depends_on_its_batch() -> None:
    model = SegmentationModel(Says(lambda x: x - x.mean(dim=0)), classes=CLASSES, output="logits")
    found = findings(model)["behaviour"]
    assert found.verdict == "problem"
    assert "batch" in found.text


@pytest.mark.parametrize(
    ("answer", "verdict", "text"),
    [
        (lambda x: nn.functional.dropout(x), "problem", "the network (Says) is the first"),
        (lambda x: x + torch.rand(1), "problem", "gives other logits each time"),
        (lambda x: x, "ok", "bit for bit"),
    ],
)
def test_a_network_that_draws_random_numbers(answer: Any, verdict: str, text: str) -> None:
    found = findings(SegmentationModel(Says(answer), classes=CLASSES))["chance"]
    assert found.verdict == verdict
    assert text in found.text


def test_parts_that_read_their_batch() -> None:
    net = Says(lambda x: x)
    net.layer = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))  # type: ignore[assignment]
    found = findings(SegmentationModel(net, classes=CLASSES))["chance"]
    assert found.verdict == "warning"
    assert "layer.1 reads the statistics of its batch" in found.text


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (lambda x: x.sin(), "ok"),
        (lambda x: x.relu() + x.detach().sin(), "problem"),  # half of it is cut from the gradient
        (lambda x: 0 * x + torch.eye(3)[1].view(-1, 1, 1), "warning"),
    ],
)
def test_gradients_are_compared_with_differences(answer: Any, verdict: str) -> None:
    model = SegmentationModel(Says(answer), classes=CLASSES, output="logits")
    found = findings(model)["gradients"]
    assert found.verdict == verdict
    assert "against" in found.text


def test_saturated_probabilities() -> None:
    model = SegmentationModel(Says(lambda x: 1e4 * x), classes=CLASSES)
    assert findings(model)["slopes"].verdict == "warning"


def test_pictures_in_other_units_are_a_problem() -> None:
    model = load_model(demo_model_spec())
    found = {f.about: f for f in diagnose(model, 255 * example_picture(model, (64, 64)))}
    assert list(found) == ["network", "units"]
    assert found["units"].verdict == "problem"
    assert "divide the picture by 255" in found["units"].fix


def test_outputs_that_are_probabilities_are_a_problem() -> None:
    shipped = load_model(demo_model_spec())
    net = nn.Sequential(shipped.net, nn.Sigmoid())
    how: dict[str, Any] = {"classes": ["roof"], "mean": [0.5] * 3, "std": [0.5] * 3}
    found = findings(SegmentationModel(net, **how))
    assert found["forward"].verdict == "problem"
    assert 'output="probabilities"' in found["forward"].fix
    told = findings(SegmentationModel(net, **how, output="probabilities"))
    assert told["output"].text.endswith("read as probabilities (as output= says)")
    assert "problem" not in {item.verdict for item in told.values()}


# --- from the command line ----------------------------------------------------------------------
def test_doctor_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--model", demo_model_spec(), "--size", "96"]) == cli.OK
    text = capsys.readouterr().out
    assert "Ready. segproof explain" in text
    net = of_smp("Unet")
    nn.init.constant_(net.get_parameter("segmentation_head.0.bias"), float("nan"))
    save_model(
        net, tmp_path / "net", classes=CLASSES, activation="softmax", mean=[0.5] * 3, std=[0.2] * 3,
        config={"encoder_name": "resnet18", "classes": 3},
    )  # fmt: skip
    code = cli.main(["doctor", "--model", f"smp:{tmp_path / 'net'}", "--size", "64"])
    text = " ".join(capsys.readouterr().out.split())
    assert code == cli.SOME_FAILED
    assert "segmentation_head.0 (Conv2d) is the first" in text
    assert "Not ready" in text


def test_layers_of_a_picture_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path, 1, seed=2, size=96)
    [tile] = (tmp_path / "image").iterdir()
    assert cli.main(["layers", "--model", demo_model_spec(), "--image", str(tile)]) == cli.OK
    text = capsys.readouterr().out
    assert "receptive field (px)" in text
    assert "6 x 6" in text
    assert tile.name in text.replace("\n", "")


def test_pictures_of_other_bands() -> None:
    model = SegmentationModel(ToyNet(1, bands=5), classes=["roof"])
    image = example_picture(model, (32, 40))
    assert image.shape == (5, 32, 40)
    assert findings(model, (32, 40))["forward"].verdict == "ok"
