"""What a network returns is read by evidence: which output, and what its numbers are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, log_softmax, logsigmoid

from segproof import FolderDataset, SegmentationModel, Target, explain, load_model
from segproof.errors import ModelError, UnknownNameError
from segproof.explain.target import hard_mask
from segproof.models.contract import probabilities


class Ends(nn.Module):
    """A fixed mixture of the bands into `channels`, and what a network may end in."""

    def __init__(self, channels: int, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, channels, 1)
        self.end = end
        generator = torch.Generator().manual_seed(channels)
        with torch.no_grad():
            self.mix.weight.copy_(4 * torch.randn(channels, 3, 1, 1, generator=generator))
            self.mix.bias = nn.Parameter(torch.randn(channels, generator=generator))

    def forward(self, images: Tensor) -> Any:
        return self.end(self.mix(images))


def softmax(z: Tensor) -> Tensor:
    return z.softmax(dim=1)


def model_of(channels: int, end: Callable[[Tensor], Any], **how: Any) -> SegmentationModel:
    names = ["roof"] if channels == 1 else [f"class{k}" for k in range(channels)]
    return SegmentationModel(Ends(channels, end), classes=names, **how).eval()


def picture(seed: int = 0) -> Tensor:
    return torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(seed))


PROBABILITIES: list[tuple[int, str, Callable[[Tensor], Tensor]]] = [
    (1, "sigmoid", torch.sigmoid),
    (1, "softmax", torch.sigmoid),
    (3, "sigmoid", torch.sigmoid),
    (3, "softmax", torch.sigmoid),  # argmax would be right, every probability wrong
    (2, "softmax", softmax),
    (4, "softmax", softmax),
    (4, "sigmoid", softmax),
    (1, "sigmoid", lambda z: avg_pool2d(z.sigmoid(), 2)),
    (1, "sigmoid", lambda z: z.sigmoid().half()),
    (3, "softmax", lambda z: softmax(z).bfloat16()),
    (1, "sigmoid", lambda z: (z / 6 + 0.5).clamp(0, 1)),  # a hard sigmoid
]


@pytest.mark.parametrize(("channels", "activation", "end"), PROBABILITIES)
def test_probabilities_are_never_taken_for_logits(
    channels: int, activation: Any, end: Callable[[Tensor], Tensor]
) -> None:
    model = model_of(channels, end, activation=activation)
    with pytest.raises(ModelError) as got:
        model(picture())
    assert 'output="probabilities"' in got.value.fix
    assert 'output="logits"' in got.value.fix
    assert "read as probabilities: " in got.value.found
    assert "read as logits: " in got.value.found
    with torch.inference_mode(), pytest.raises(ModelError):
        model(picture(1))  # nothing is remembered of a refusal


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("kind", ["probabilities", "log_probabilities", "logits"])
def test_each_kind_gives_the_probabilities_of_the_network(
    kind: Any, channels: int, activation: Any
) -> None:
    separate = activation == "sigmoid" or channels == 1
    ends: dict[str, Callable[[Tensor], Tensor]] = {
        "probabilities": torch.sigmoid if separate else softmax,
        "log_probabilities": logsigmoid if separate else lambda z: log_softmax(z, dim=1),
        "logits": lambda z: z,
    }
    model = model_of(channels, ends[kind], activation=activation, output=kind).double()
    plain = model_of(channels, lambda z: z, activation=activation).double()
    images = picture().double()
    found = probabilities(model(images), model.activation)
    right = probabilities(plain(images), plain.activation)
    assert (found - right).abs().max() < 1e-12
    if separate and channels == 1:
        assert (model(images) - plain(images)).abs().max() < 1e-9


def test_saturated_probabilities_stay_finite() -> None:
    model = model_of(1, lambda z: (1000 * (z - z.mean())).sigmoid(), output="probabilities")
    logits = model(picture()).detach()
    assert logits.isfinite().all()
    assert float(logits[:, 1].min()) < -80  # the smallest number
    assert float(logits[:, 1].max()) > 16  # the largest below 1


@pytest.mark.parametrize(
    ("channels", "activation", "end"),
    [
        (3, "softmax", lambda z: log_softmax(z, dim=1)),
        (2, "softmax", lambda z: log_softmax(z, dim=1)),
        (1, "sigmoid", lambda z: logsigmoid(40 * z)),
        (3, "sigmoid", lambda z: logsigmoid(40 * z)),
    ],
)
def test_logarithms_of_probabilities_are_told(
    channels: int, activation: Any, end: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(ModelError, match='output="log_probabilities"'):
        model_of(channels, end, activation=activation)(picture())


@pytest.mark.parametrize(
    "end",
    [
        lambda z: z,
        lambda z: z.relu(),  # never below 0, but above 1
        lambda z: -z.relu() - 1,  # never a roof
        lambda z: z / 1000,  # small by chance
        lambda z: z.relu() / 1000,
        lambda z: avg_pool2d(z / 1e6, 2),
        lambda z: z.half(),
        lambda z: torch.zeros_like(z) + z.amax() * 0 - 3,
    ],
)
def test_logits_need_no_word(end: Callable[[Tensor], Tensor]) -> None:
    model = model_of(1, end)
    images = picture()
    right = end(model.net.mix(images)).float()  # type: ignore[operator]
    if right.shape[-2:] != images.shape[-2:]:
        right = nn.functional.interpolate(right, size=(12, 16), mode="bilinear")
    assert torch.equal(model(images)[:, 1:], right)


def test_the_network_runs_once_where_one_picture_tells() -> None:
    runs: list[int] = []

    def counted(z: Tensor) -> Tensor:
        runs.append(len(z))
        return z

    model = model_of(1, counted)
    model(picture())
    model(picture(1))
    assert len(runs) == 2
    assert "leave the range" in model.reader.text


def test_a_picture_without_the_class_does_not_decide() -> None:
    """Logits that are all below 0 stay undecided until a picture shows that they are logarithms."""
    net = model_of(1, lambda z: logsigmoid(z - 60))
    assert (
        float(net(picture()).detach()[:, 1].max()) < 0
    )  # nothing says yet that these are no logits
    assert "so far" in net.reader.text
    net.net.end = lambda z: logsigmoid(z + 60)  # type: ignore[assignment]
    with pytest.raises(ModelError, match="log_probabilities"):
        net(picture())


def test_a_kind_that_cannot_be() -> None:
    with pytest.raises(ModelError, match="from 0 to 1"):
        model_of(1, lambda z: z, output="probabilities")(picture())
    with pytest.raises(ModelError, match="read as log probabilities"):
        model_of(1, lambda z: z, output="log_probabilities")(picture())


# --- which output ---------------------------------------------------------------------------------
@dataclass
class Output:
    output: Tensor
    auxiliary_heads: dict[str, Tensor]


class Sample:
    """As MMSegmentation's: a picture's result, without a batch."""

    def __init__(self, data: Tensor) -> None:
        self.seg_logits = data


DEEP: list[tuple[Callable[[Tensor], Any], list[str]]] = [
    (lambda z: (z - 3, z - 2, z - 1, z), ["0", "1", "2", "3"]),  # the last is the final one
    (lambda z: [z, avg_pool2d(z, 2), avg_pool2d(z, 4)], ["0", "1", "2"]),
    (lambda z: {"main": z, "side": z - 1}, ['"main"', '"side"']),
    (lambda z: {"out": [z, z - 1]}, ['"out.0"', '"out.1"']),
    (lambda z: {"out": z, "logits": z - 1}, ['"logits"', '"out"']),
    (lambda z: (z, [z - 1, z - 2]), ["0", '"1.0"', '"1.1"']),
]


@pytest.mark.parametrize(("end", "places"), DEEP)
def test_several_outputs_that_fit_are_listed_and_none_is_taken(
    end: Callable[[Tensor], Any], places: list[str]
) -> None:
    with pytest.raises(ModelError) as got:
        model_of(1, end)(picture())
    assert got.value.found.startswith(f"{len(places)} outputs that could be the logits")
    for place in places:
        assert f"output={place}" in got.value.found
        assert f"output={place}" in got.value.fix
    assert "mean" in got.value.found
    assert "roof" in got.value.found  # with the share of each


@pytest.mark.parametrize(
    ("end", "output"),
    [
        (lambda z: (z - 3, z - 2, z - 1, z), 3),
        (lambda z: (z - 3, z - 2, z - 1, z), "3"),
        (lambda z: (z - 3, z - 2, z - 1, z), "-1"),
        (lambda z: (z - 3, z - 2, z - 1, z), -1),
        (lambda z: {"out": [z - 1, z]}, "out.1"),
        (lambda z: {"main": z, "side": z - 1}, "main"),
        (lambda z: Output(z, {"aux": z - 1}), "output"),
        (lambda z: Output(z, {"aux": z - 1}), None),  # its name says it
        (lambda z: Output(z - 1, {"aux": z}), "auxiliary_heads.aux"),
        (lambda z: {"main": (z.sigmoid(), z - 1)}, "main.0:probabilities"),
        (lambda z: (z, z.sigmoid()), (1, "probabilities")),
        (lambda z: (z, z.sigmoid()), "1:probabilities"),
        (lambda z: (logsigmoid(z), z - 1), (lambda r: r[0], "log_probabilities")),
        (lambda z: [Sample(one) for one in z], lambda r: torch.stack([x.seg_logits for x in r])),
    ],
)
def test_an_output_is_taken_by_its_place(end: Callable[[Tensor], Any], output: Any) -> None:
    model = model_of(1, end, output=output)
    right = model_of(1, lambda z: z)
    images = torch.cat([picture(1), picture(2)])
    assert (model(images) - right(images)).abs().max() < 1e-5


@pytest.mark.parametrize("output", ["", "a:b", "logits:x", True, 1.5, ("out", "scores")])
def test_an_output_that_says_nothing(output: Any) -> None:
    with pytest.raises((ModelError, UnknownNameError)):
        model_of(1, lambda z: z, output=output)


@pytest.mark.parametrize("output", [4, "aux", "out.5", "out.x", lambda r: r["aux"]])
def test_a_place_that_is_not_there(output: Any) -> None:
    with pytest.raises(ModelError) as got:
        model_of(1, lambda z: {"out": [z, z - 1]}, output=output)(picture())
    assert 'output="out.0"' in got.value.fix


def test_the_reader_says_what_it_read() -> None:
    model = model_of(1, lambda z: (z, z.sigmoid()), output="1:probabilities")
    model(picture())
    assert model.reader.text == "output 1, read as probabilities (as output= says)"


# --- real -----------------------------------------------------------------------------------------
def test_the_roof_network_with_a_sigmoid_at_its_end(shared: Any) -> None:
    """nz_38: 23.8 % are roofs; read as logits, everything would be."""
    whole = load_model(f"smp:{shared / 'models' / 'roofs-unet-lite0'}")
    how: dict[str, Any] = {"classes": ["building"], "mean": [0.5] * 3, "std": [0.5] * 3}
    net = nn.Sequential(whole.net, nn.Sigmoid())
    data = FolderDataset(shared / "whu" / "test")
    image = data[data.ids.index("nz_38")]["image"]
    with pytest.raises(ModelError) as got:
        SegmentationModel(net, **how)(image[None])
    assert "read as logits: building 100.0%" in got.value.found
    assert "read as probabilities: building 23.8%" in got.value.found
    model = SegmentationModel(net, **how, output="probabilities").eval()
    with torch.inference_mode():
        p = probabilities(model(image[None]), model.activation)
        right = probabilities(whole(image[None]), whole.activation)
    assert (p - right).abs().max() < 1e-5
    share = hard_mask(p, 1, model.activation).double().mean()
    assert float(share) == pytest.approx(0.238, abs=5e-4)


@pytest.mark.parametrize("end", ["sigmoid", "softmax2d", "log"])
def test_an_activation_that_smp_builds_in(end: str) -> None:
    net: nn.Module = smp.Unet(
        "resnet18",
        encoder_weights=None,
        classes=1 if end == "sigmoid" else 3,
        activation=None if end == "log" else end,
    )
    net = nn.Sequential(net, nn.LogSoftmax(dim=1)) if end == "log" else net
    names = ["roof"] if end == "sigmoid" else ["a", "b", "c"]
    model = SegmentationModel(net, classes=names, mean=[0.5] * 3, std=[0.5] * 3).eval()
    kind = "log_probabilities" if end == "log" else "probabilities"
    image = torch.rand(3, 64, 64)
    with pytest.raises(ModelError, match=f'output="{kind}"'):
        explain(model, image, target=Target(names[0]))
    told = SegmentationModel(
        net, classes=names, mean=[0.5] * 3, std=[0.5] * 3, output=kind
    ).eval()  # fmt: skip
    made = explain(told, image, target=Target(names[0], region="box:8,8,40,40"))
    assert made.status in ("ok", "all_zero")


def test_a_network_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = model_of(1, torch.sigmoid)
        with pytest.raises(ModelError, match="probabilities"):
            model(picture())
