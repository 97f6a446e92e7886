"""Really built networks of many families, random weights: right logits, layers and maps."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from families import CLASSES, FAMILIES, Family, of_hf, of_smp, tv
from segproof.cli import app as cli
from segproof.errors import ModelError, UnknownNameError
from segproof.explain.api import explain
from segproof.explain.forward_pass import capture
from segproof.explain.target import Target
from segproof.models.axes import Axes, Doubt, Evidence, Result, Trace, others
from segproof.models.contract import SegmentationModel, queries, query_model
from segproof.models.loaders.load import load_model
from sideeffects import facts
from toys import toy_images, toy_model

HAS_HF = importlib.util.find_spec("transformers") is not None
needs_hf = pytest.mark.skipif(not HAS_HF, reason="transformers (the extra hf) is not installed")


# --- families -------------------------------------------------------------------------------------
LISTED = [name for name, made in FAMILIES.items() if made.encoder]


def picture(size: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, *size, generator=generator)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=needs_hf) if n.startswith("hf-") else n for n in FAMILIES],
)
def test_every_family_runs_at_its_sizes(name: str) -> None:
    made: Family = FAMILIES[name]
    model = SegmentationModel(made.make(), classes=CLASSES, output=made.output).eval()
    for size in made.sizes:
        with torch.inference_mode():
            logits = model(picture(size)[None])
        assert logits.shape == (1, 3, *size)
        assert bool(logits.isfinite().all())


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=needs_hf) if n.startswith("hf-") else n for n in LISTED],
)
def test_family(name: str) -> None:
    """Layers, logits at image size, maps at both ends of encoder and decoder, nothing changed."""
    made: Family = FAMILIES[name]
    torch.manual_seed(0)
    model = SegmentationModel(made.make(), classes=CLASSES, mean=[0.5] * 3, std=[0.25] * 3).eval()
    size = made.size
    known = {layer.alias: layer for layer in model.layers(size)}
    assert known["encoder:1"].size[0] > known["decoder:1"].size[0] or known["encoder:1"].stride > 1
    encoders = [layer for alias, layer in known.items() if alias.startswith("encoder")]
    decoders = [layer for alias, layer in known.items() if alias.startswith("decoder")]
    assert (encoders[-1].path, decoders[-1].path) == (made.encoder, made.decoder)
    assert [x.size for x in encoders] == sorted((x.size for x in encoders), reverse=True)
    assert [x.size[0] for x in decoders] == sorted(x.size[0] for x in decoders)
    for layer in known.values():
        h, w = layer.size
        assert abs(h / w * size[1] / size[0] - 1) < 0.4, layer  # as high and wide as the image
    before = facts(model)
    image, truth = picture(size), torch.ones(size, dtype=torch.bool)
    with torch.inference_mode():
        assert model(image[None]).shape == (1, 3, *size)
    for alias in ("encoder:-1", "decoder:-1", "decoder:1"):
        layer = known.get(alias) or (encoders if "encoder" in alias else decoders)[-1]
        found = set()
        for class_ in CLASSES:  # random weights may leave one class without any positive evidence
            target = Target(class_, region="truth")
            one = explain(model, image, layer=alias, target=target, truth=truth)
            assert tuple(one.raw.shape) == layer.size
            assert one.heatmap().shape == size
            assert bool(torch.isfinite(one.heatmap()).all())
            found.add(one.status)
        assert "ok" in found, alias
        assert found <= {"ok", "all_zero", "constant"}, alias
    assert facts(model) == before


class Plain(nn.Module):
    """A hand-written U-Net with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.inc = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.down1 = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.up1 = nn.Sequential(nn.Conv2d(14, 6, 3, padding=1), nn.ReLU())
        self.up2 = nn.Sequential(nn.Conv2d(10, 4, 3, padding=1), nn.ReLU())
        self.outc = nn.Conv2d(4, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        def up(x: Tensor) -> Tensor:
            return nn.functional.interpolate(x, scale_factor=2.0)

        a = self.inc(images)
        b = self.down1(self.pool(a))
        c = self.down2(self.pool(b))
        d = self.up1(torch.cat([up(c), b], dim=1))
        result: Tensor = self.outc(self.up2(torch.cat([up(d), a], dim=1)))
        return result


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Any:
        return {"out": self.inner(images)}


@pytest.mark.parametrize("wrapped", [False, True])
def test_networks_with_names_of_their_own(wrapped: bool) -> None:
    net: nn.Module = Wrapped(Plain()) if wrapped else Plain()
    before = "inner." if wrapped else ""
    model = SegmentationModel(net, classes=CLASSES)
    found = [(x.alias, x.path.removeprefix(before), x.stride) for x in model.layers((32, 48))]
    assert found == [
        ("encoder:1", "inc", 1),
        ("encoder:2", "down1", 2),
        ("encoder:3", "down2", 4),
        ("decoder:1", "up1", 2),
        ("decoder:2", "up2", 1),
    ]


def test_lightning_prefix() -> None:
    """A task that keeps the network under `model` has the same aliases."""
    model = SegmentationModel(Wrapped(of_smp("Unet")), classes=CLASSES)
    aliases = {layer.alias: layer.path for layer in model.layers(64)}
    assert aliases["encoder:5"] == "inner.encoder.layer4"
    assert aliases["decoder:1"] == "inner.decoder.blocks.0"


# --- outputs --------------------------------------------------------------------------------------
class Says(nn.Module):
    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(images)


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


@dataclass
class Odd:
    first: Tensor
    second: Tensor


Pair = namedtuple("Pair", ["score", "masks"])


def half(x: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(x, 2)


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: {"out": x[:, :2], "aux": x},
        lambda x: {"aux": x[:, 1:], "logits": x[:, :2]},
        lambda x: {"masks": x[:, :2], "iou": x.mean()},
        lambda x: {"semantic": x[:, :2], "features": x},
        lambda x: {"out": [x[:, :2], half(x)]},
        lambda x: Output(x[:, :2], (x[:, 1:],)),
        lambda x: Pair(x.mean(), x[:, :2]),
        lambda x: (x[:, :2], x),
        lambda x: (x, x[:, :2], None, "text"),
    ],
)
def test_logits_are_found(answer: Callable[[Tensor], Any]) -> None:
    images = torch.rand(1, 3, 8, 12)
    model = SegmentationModel(Says(answer), classes=["a", "b"])
    assert torch.equal(model(images), images[:, :2])


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        (lambda x: (x, [x, x[:, :2]]), '"1.1"'),
        (lambda x: (x, Odd(x, x[:, :2])), '"1.second"'),
        (lambda x: x[:, :2].permute(0, 2, 3, 1), "lambda result: result.permute(0, 3, 1, 2)"),
        (lambda x: {"x": Output(x), "y": [{"z": x[:, :2]}]}, '"y.0.z"'),
    ],
)
def test_the_error_writes_the_output_that_fits(answer: Any, source: str) -> None:
    images = torch.rand(1, 3, 8, 12)
    with pytest.raises(ModelError) as got:
        SegmentationModel(Says(answer), classes=["a", "b"])(images)
    assert got.value.fix == f"pass output={source}"
    pick = eval(got.value.fix.removeprefix("pass output="))  # noqa: S307 - our own words
    model = SegmentationModel(Says(answer), classes=["a", "b"], output=pick)
    assert torch.equal(model(images), images[:, :2])


def test_nothing_fits() -> None:
    model = SegmentationModel(Says(lambda x: Odd(x, x)), classes=["a", "b"])
    with pytest.raises(ModelError) as got:
        model(torch.rand(1, 3, 8, 12))
    assert got.value.found.endswith(
        "Odd(first=a tensor (1, 3, 8, 12), second=a tensor (1, 3, 8, 12))"
    )
    assert "or the right class names" in got.value.fix


def test_a_map_without_a_channel_axis() -> None:
    with pytest.raises(ModelError, match=r"output=lambda result: result\[:, None\]"):
        SegmentationModel(Says(lambda x: x[:, 0]), classes=["roof"])(torch.rand(1, 3, 8, 12))


def test_queries_become_a_class_map() -> None:
    """s_k = sum_q p(k | q) m_q by loops; what the network says is s_k / sum_j s_j."""
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randn(1, 5, 4, generator=generator, dtype=torch.float64)
    masks = 3 * torch.randn(1, 5, 6, 9, generator=generator, dtype=torch.float64)
    answer = {"class_queries_logits": kinds, "masks_queries_logits": masks}
    model = SegmentationModel(Says(lambda _: answer), classes=CLASSES)
    found = model(torch.rand(1, 3, 6, 9)).softmax(dim=1)
    for y in range(6):
        for x in range(9):
            scores = [
                sum(
                    float(kinds[0, q].softmax(0)[k]) * float(masks[0, q, y, x].sigmoid())
                    for q in range(5)
                )
                for k in range(3)
            ]
            for k in range(3):
                assert found[0, k, y, x].item() == pytest.approx(scores[k] / sum(scores), abs=1e-12)


# --- tokens ---------------------------------------------------------------------------------------
def two_sizes(first: tuple[int, int], shape: Any, *more: Any) -> Axes | Doubt | None:
    """How a result is read that had other shapes for pictures of other sizes: size, shape, ..."""
    seen = {
        size: Trace(
            {
                "stem": Result({(): (1, 8, *size)}, "alone", full=True),
                "layer": Result({(): tuple(found)}, "alone", full=True),
            }
        )
        for size, found in ((first, shape), *zip(more[::2], more[1::2], strict=True))
    }
    return Evidence(seen, tried=True).find("layer", first, seen[first].results["layer"])


def one_size(size: tuple[int, int], shape: tuple[int, ...]) -> Axes | Doubt | None:
    return Evidence(tried=True).find("layer", size, Result({(): shape}, "alone", full=True))


@pytest.mark.parametrize("patch", [4, 8, 14, 16, 32])
@pytest.mark.parametrize("before", [0, 1, 2, 5, 7, 17])
def test_token_grids_of_even_sizes(patch: int, before: int) -> None:
    for h in (2, 3, 4, 7, 16, 24):
        for w in (2, 3, 5, 8, 16, 31):
            size, other = (patch * h, patch * w), (patch * (h + 2), patch * max(1, w - 1))
            cells = (h + 2) * max(1, w - 1)
            if cells == h * w:
                continue
            read = two_sizes(size, (1, h * w + before, 6), other, (1, cells + before, 6))
            assert read == Axes((2, 1), (h, w), before), size


def test_token_grids_of_uneven_sizes() -> None:
    """Two sizes leave the right reading, three leave it alone."""
    for size in ((100, 75), (97, 131), (375, 500), (511, 513), (640, 427)):
        sizes = [size, *others(size, 32)[:2]]
        for stride in (4, 8, 16, 32):
            grids = [(-(-h // stride), -(-w // stride)) for h, w in sizes]
            flat: list[Any] = []
            for sides, (h, w) in zip(sizes, grids, strict=True):
                flat += [sides, (1, h * w, 6)]
            right, read = Axes((2, 1), grids[0]), two_sizes(*flat[:4])
            assert right in (read.readings if isinstance(read, Doubt) else (read,)), (size, stride)
            assert two_sizes(*flat) == right, (size, stride)


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (24, 40), (64, 64), (512, 512), (375, 500)])
def test_the_second_size_tells_every_axis(size: tuple[int, int]) -> None:
    """One side grows and one shrinks where there is room, by multiples of the stride, and no grid
    has as many cells as before.
    """
    tried = others(size, 32)
    assert (tried[0][0] - size[0]) % 32 == (tried[0][1] - size[1]) % 32 == 0
    if min(size) >= 64:
        assert (tried[0][0] > size[0]) != (tried[0][1] > size[1])
    for other in tried:
        assert other != size
        for stride in (4, 8, 16, 32):
            cells = [-(-h // stride) * -(-w // stride) for h, w in (size, other)]
            assert cells[0] != cells[1]


@pytest.mark.parametrize(
    ("shape", "other", "order", "grid"),
    [
        # 64 channels of a grid of 64 x 64, as the second stage of SegFormer b0 at 512 px has
        ((1, 64, 64, 64), (1, 64, 80, 32), (1, 2, 3), (64, 64)),
        ((1, 64, 64, 64), (1, 80, 32, 64), (3, 1, 2), (64, 64)),
        ((1, 64, 64, 64), (1, 64, 32, 80), (1, 3, 2), (64, 64)),
        ((1, 64, 64, 64), (1, 32, 80, 64), (3, 2, 1), (64, 64)),
        ((1, 5, 8, 8), (1, 5, 10, 4), (1, 2, 3), (8, 8)),
        ((1, 7, 60, 60), (1, 7, 76, 28), (1, 2, 3), (60, 60)),  # borders that are lost
        ((1, 64, 4096), (1, 64, 2560), (1, 2), (64, 64)),  # tokens last
        ((1, 64, 64), (1, 64, 40), (1, 2), (8, 8)),
        ((1, 64, 64), (1, 40, 64), (2, 1), (8, 8)),
    ],
)
def test_axes_follow_the_sides(shape: Any, other: Any, order: Any, grid: Any) -> None:
    read = two_sizes((512, 512), shape, (640, 256), other)
    assert isinstance(read, Axes)
    assert (read.order, read.grid, read.before) == (order, grid, 0)
    value = torch.arange(float(torch.tensor(shape).prod())).view(shape)
    assert torch.equal(read.write(value, read.read(value)), value)


@pytest.mark.parametrize(
    ("shape", "other"),
    [
        ((1, 64, 1, 1), (1, 64, 1, 1)),  # a gate
        ((1, 64, 2, 2), (1, 64, 2, 2)),  # a level of a pyramid of pooling
        ((1, 5, 64), (1, 5, 64)),  # queries
        ((1, 2, 4097, 4097), (1, 2, 2561, 2561)),  # attention
        ((64, 49, 96), (40, 49, 96)),  # windows
        ((1, 5440, 64), (1, 3392, 64)),  # tokens of several grids, one after the other
    ],
)
def test_what_does_not_follow_the_sides_is_no_picture(shape: Any, other: Any) -> None:
    assert two_sizes((512, 512), shape, (640, 256), other) is None


def test_one_size_tells_what_fits_one_reading() -> None:
    how = "by its only size"
    assert one_size((224, 224), (1, 768, 14, 14)) == Axes((1, 2, 3), (14, 14), decided=how)
    assert one_size((64, 96), (1, 16, 24, 96)) == Axes((3, 1, 2), (16, 24), decided=how)
    assert one_size((64, 96), (1, 8, 24, 16)) == Axes((1, 3, 2), (16, 24), decided=how)
    doubt = one_size((512, 512), (1, 64, 64, 64))
    assert isinstance(doubt, Doubt)
    assert str(doubt) == "channels first (64 x 64 cells) or channels last (64 x 64 cells)"
    # as many queries as a grid has cells are no grid: a change of the picture has to show it
    assert one_size((224, 224), (1, 197, 768)) is None
    assert one_size((224, 224), (1, 300, 8)) is None


class Mixer(nn.Module):
    """A layer in a layout of its own, smooth, with `before` extra tokens that matter."""

    def __init__(self, layout: str, before: int) -> None:
        super().__init__()
        self.layout, self.before = layout, before
        self.extra = nn.Parameter(torch.randn(1, before, 6))
        self.mix = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        if self.layout == "nhwc":
            return torch.tanh(self.mix(x.permute(0, 2, 3, 1)))
        tokens = torch.cat([self.extra.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        tokens = torch.tanh(self.mix(tokens + tokens.mean(dim=1, keepdim=True)))
        return (tokens, "kept") if self.layout == "tuple" else tokens


class TokenNet(nn.Module):
    def __init__(self, layout: str, before: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.encoder = nn.ModuleList([Mixer(layout, before)])
        self.head = nn.Conv2d(6, 2, 1)
        self.before = before

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        h, w = x.shape[2:]
        y = self.encoder[0](x)
        if isinstance(y, tuple):
            assert y[1] == "kept"
            y = y[0]
        if y.ndim == 3:
            # class tokens act on every cell, as in a readout; view asks for contiguous memory
            lead = y[:, : self.before].sum(dim=1, keepdim=True)
            y = (y.view(-1).view(y.shape)[:, self.before :] * (1 + lead)).view(len(x), h, w, 6)
        result: Tensor = self.head(y.permute(0, 3, 1, 2))
        return result


LAYOUTS = [("tokens", 0), ("tokens", 1), ("tokens", 5), ("tuple", 1), ("nhwc", 0)]


@pytest.mark.parametrize(("layout", "before"), LAYOUTS)
def test_token_layers_are_grids_with_right_gradients(layout: str, before: int) -> None:
    torch.manual_seed(2)
    # frozen, since torch multiplies in another order where weights ask for gradients
    net = TokenNet(layout, before).double().eval().requires_grad_(False)
    model = SegmentationModel(net, classes=["a", "b"])
    images = torch.rand(2, 3, 24, 40, dtype=torch.float64)
    truth = torch.ones(2, 24, 40, dtype=torch.bool)
    outputs: list[Any] = []
    handle = net.encoder[0].register_forward_hook(lambda m, i, o: outputs.append(o))
    with torch.no_grad():
        logits = model(images)
    handle.remove()
    plain = outputs[0][0] if layout == "tuple" else outputs[0]
    target = Target("b", region="truth")
    seen = capture(model, images, target, ["encoder.0"], truth)
    A, D = seen.activations["encoder.0"], seen.gradients["encoder.0"]
    # exactly the same numbers go on; with gradients torch may choose another product
    plainly = capture(model, images, target, ["encoder.0"], truth, gradients=False)
    assert torch.equal(plainly.logits, logits)
    assert (seen.logits - logits).abs().max() < 1e-14
    assert A.shape == D.shape == (2, 6, 6, 10)
    for n in range(2):
        for y in range(6):
            for x in range(10):
                cell = plain[n, y, x] if layout == "nhwc" else plain[n, before + 10 * y + x]
                assert torch.equal(plainly.activations["encoder.0"][n, :, y, x], cell)
                assert (A[n, :, y, x] - cell).abs().max() < 1e-14
    direction = torch.randn(A.shape, generator=torch.Generator().manual_seed(1), dtype=A.dtype)

    def bumped(step: float) -> Tensor:
        def hook(_m: nn.Module, _i: Any, result: Any) -> Any:
            moved = (result[0] if layout == "tuple" else result).clone()
            if layout == "nhwc":
                moved += step * direction.permute(0, 2, 3, 1)
            else:
                moved[:, before:] += step * direction.flatten(2).transpose(1, 2)
            return (moved, "kept") if layout == "tuple" else moved

        handle = net.encoder[0].register_forward_hook(hook)
        with torch.no_grad():
            value = seen.bound.score(model(images))
        handle.remove()
        return value

    slope = (bumped(1e-5) - bumped(-1e-5)) / 2e-5
    assert torch.allclose((D * direction).sum(dim=(1, 2, 3)), slope, rtol=1e-6, atol=1e-9)
    assert slope.abs().min() > 1e-6


class Strips(nn.Module):
    """Tokens down the columns, or a network of one size, or a layer that leaves two readings."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.encoder = nn.ModuleList([nn.Conv2d(3, 16, 4, stride=4), Turned(kind)])
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        if self.kind != "columns" and images.shape[2:] != (64, 64):
            raise ValueError("64 x 64 only")
        x = self.encoder[0](images)
        y = self.encoder[1](x)
        if self.kind == "columns":
            y = y.transpose(1, 2).reshape(len(x), 16, x.shape[3], x.shape[2]).transpose(2, 3)
        elif self.kind == "last":
            y = y.permute(0, 3, 1, 2)
        result: Tensor = self.head(y)
        return result


class Turned(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "columns":
            return torch.tanh(x.transpose(2, 3).flatten(2).transpose(1, 2))
        if self.kind == "last":
            return torch.tanh(x.permute(0, 2, 3, 1))
        return torch.tanh(x) if self.kind == "first" else 0 * x


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_tokens_down_the_columns(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = SegmentationModel(Strips("columns"), classes=["a", "b"])
    image, truth = torch.rand(1, 3, *size), torch.ones(1, *size, dtype=torch.bool)
    seen = capture(model, image, Target("b", region="truth"), ["encoder.0", "encoder.1"], truth)
    plain = torch.tanh(seen.activations["encoder.0"])
    assert torch.equal(seen.activations["encoder.1"], plain)
    assert seen.gradients["encoder.1"].any()


@pytest.mark.parametrize(("kind", "axes"), [("first", "channels first"), ("last", "channels last")])
def test_one_size_and_as_many_channels_as_cells(kind: str, axes: str) -> None:
    """[1, 16, 16, 16] of 64 px, in a network that takes no other size: a change of the picture
    shows where the cells are.
    """
    torch.manual_seed(0)
    model = SegmentationModel(Strips(kind), classes=["a", "b"])
    known = {layer.path: layer for layer in model.layers(64)}
    assert known["encoder.1"].axes == axes
    assert known["encoder.1"].decided == "by where a change of the picture shows"
    image, truth = torch.rand(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool)
    seen = capture(model, image, Target("b", region="truth"), ["encoder.0", "encoder.1"], truth)
    plain = torch.tanh(seen.activations["encoder.0"])
    assert torch.equal(seen.activations["encoder.1"], plain)


def test_two_readings_are_refused_with_both() -> None:
    model = SegmentationModel(Strips("still"), classes=["a", "b"])
    assert "encoder.1" not in [layer.path for layer in model.layers(64)]
    with pytest.raises(ModelError) as got:
        capture(model, torch.rand(1, 3, 64, 64), Target("b"), ["encoder.1"])
    assert got.value.found == (
        "layer encoder.1 returning (1, 16, 16, 16) for images of 64 x 64 pixels, which may be read"
        " as channels first (16 x 16 cells) or channels last (16 x 16 cells)"
    )


def test_a_layer_that_is_no_picture_is_named() -> None:
    model = SegmentationModel(TokenNet("tokens", 40).eval(), classes=["a", "b"])
    with pytest.raises(
        ModelError, match=r"layer encoder.0 returning \(1, 100, 6\) for images of 24"
    ):
        capture(model, torch.rand(1, 3, 24, 40), Target("b"), ["encoder.0"])


# --- loaders --------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something asked for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def lraspp(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(tv("lraspp_mobilenet_v3_large").state_dict(), path)
    return path


def test_torchvision_weights(lraspp: Path) -> None:
    torch.manual_seed(0)
    net = tv("lraspp_mobilenet_v3_large").eval()
    model = load_model(f"torchvision:lraspp_mobilenet_v3_large:{lraspp}")
    assert model.classes == ("class_0", "class_1", "class_2")
    assert not model.training
    image = picture((64, 96))[None]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = net((image - mean.view(3, 1, 1)) / std.view(3, 1, 1))["out"]
        assert (model(image) - expected).abs().max() < 1e-4
    (lraspp.parent / "segproof.json").write_text(
        json.dumps({"classes": CLASSES, "mean": [0.5] * 3, "std": [0.5] * 3})
    )
    model = load_model(f"torchvision:lraspp_mobilenet_v3_large:{lraspp}")
    assert model.classes == CLASSES
    assert model.neutral.flatten().tolist() == [0.5] * 3
    named = load_model(f"torchvision:lraspp_mobilenet_v3_large:{lraspp}", classes=["a", "b", "c"])
    assert named.classes == ("a", "b", "c")


def test_torchvision_without_weights_says_so() -> None:
    with pytest.warns(UserWarning, match="random numbers"):
        model = load_model("torchvision:lraspp_mobilenet_v3_large", classes=["roof"])
    assert model.classes == ("background", "roof")
    with pytest.raises(ModelError, match="no class names"):
        load_model("torchvision:lraspp_mobilenet_v3_large")


def test_torchvision_with_its_second_head(tmp_path: Path) -> None:
    options = {"weights": None, "weights_backbone": None, "num_classes": 2, "aux_loss": True}
    net = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(**options)
    path = tmp_path / "w.safetensors"
    save_file(net.state_dict(), path)
    model = load_model(f"torchvision:deeplabv3_mobilenet_v3_large:{path}")
    assert model(picture((64, 64))[None]).shape == (1, 2, 64, 64)


def test_torchvision_weights_that_do_not_fit(lraspp: Path, tmp_path: Path) -> None:
    name = "lraspp_mobilenet_v3_large"
    with pytest.raises(ModelError, match="that do not fit"):
        load_model(f"torchvision:fcn_resnet50:{lraspp}")
    with pytest.raises(UnknownNameError, match="did you mean lraspp"):
        load_model(f"torchvision:lraspp_mobilenet_v3:{lraspp}")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(f"torchvision:{name}:{tmp_path / 'w.pth'}")
    with pytest.raises(ModelError, match="1, h, w"):
        load_model(f"torchvision:{name}:{lraspp}", classes=["a"])(picture((64, 64))[None])
    lraspp.write_bytes(lraspp.read_bytes()[:5000])
    with pytest.raises(ModelError, match="whole file"):
        load_model(f"torchvision:{name}:{lraspp}")


@needs_hf
@pytest.mark.parametrize("name", ["Segformer", "UperNet", "Mask2Former"])
def test_hugging_face_folders(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net: Any = of_hf(name).eval()
    net.save_pretrained(tmp_path)
    model = load_model(f"hf:{tmp_path}")
    assert len(model.classes) == 3
    if name != "Mask2Former":
        assert model.classes == CLASSES
    image = picture((64, 96))[None]
    plain = SegmentationModel(net, classes=CLASSES)
    with torch.inference_mode():
        assert (model(image) - plain((image - model.mean) / model.std)).abs().max() < 1e-4
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert load_model(f"hf:{tmp_path}").neutral.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


@needs_hf
@pytest.mark.parametrize("name", ["Mask2Former", "MaskFormer"])
def test_one_query_is_a_target(name: str) -> None:
    """Logits, prediction and map of one query's mask, against the network's own output."""
    torch.manual_seed(0)
    net: Any = of_hf(name).eval()
    model = SegmentationModel(net, classes=CLASSES, mean=[0.5] * 3, std=[0.25] * 3)
    image = picture((64, 96))
    listed = queries(model, image)
    assert sorted(query.index for query in listed) == list(range(5))
    assert [q.chance for q in listed] == sorted((q.chance for q in listed), reverse=True)
    with torch.no_grad():
        returned = net((image[None] - 0.5) / 0.25)
    kinds, masks = returned.class_queries_logits[0], returned.masks_queries_logits[0]
    for query in listed:
        p = kinds[query.index].softmax(0)[:3]
        assert query.chance == pytest.approx(float(p.max()), abs=1e-6)
        assert query.class_ == CLASSES[int(p.argmax())]
        assert query.share == pytest.approx(float((masks[query.index] >= 0).float().mean()))
    index = listed[0].index
    before = facts(model)
    one = query_model(model, index)
    assert facts(model) == before
    assert one.classes == ("background", f"query {index}")
    with torch.no_grad():
        wanted = torch.nn.functional.interpolate(
            masks[None, index, None], size=(64, 96), mode="bilinear", align_corners=False
        )[0, 0]
        assert (one(image[None])[0, 1] - wanted).abs().max() < 1e-5
    box = Target(f"query {index}", "box:0,0,96,64")
    made = explain(one, image, layer="decoder:-1", target=box, method="hires_cam")
    assert made.value == pytest.approx(float(wanted.mean()), abs=1e-5)
    assert made.raw.any()
    assert facts(model) == before
    with pytest.raises(ModelError, match="query 5; expected a number from 0 to 4"):
        query_model(model, 5)(image[None])


def test_other_networks_have_no_queries() -> None:
    model = toy_model()
    assert queries(model, toy_images()[0]) == []
    with pytest.raises(ModelError, match="a network of queries"):
        query_model(model, 0)(toy_images())


@needs_hf
def test_hugging_face_folders_that_do_not_fit(tmp_path: Path) -> None:
    net: Any = of_hf("Segformer")
    net.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    first = next(iter(weights))
    save_file({k: v for k, v in weights.items() if k != first}, tmp_path / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(ModelError, match="without a value that fits"):
        load_model(f"hf:{tmp_path}")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(f"hf:{tmp_path}")
    config = json.loads((tmp_path / "config.json").read_text())
    code = {"architectures": ["Own"], "auto_map": {"AutoModel": "own.py--Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config | code))
    with pytest.raises(UnknownNameError, match="architecture 'Own'"):
        load_model(f"hf:{tmp_path}")


def test_hugging_face_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["SegformerForSemanticSegmentation"]})
    )
    with pytest.raises(ModelError, match="safetensors"):
        load_model(f"hf:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r'pip install "segproof\[hf\]"'):
        load_model(f"hf:{tmp_path}")


FACTORY = """
from pathlib import Path
from torch import nn
from toys import ToyNet, toy_model
Path("ran").touch()
def net():
    return ToyNet(3)
def model():
    return toy_model().float()
def number():
    return 5
def broken():
    raise RuntimeError("out of tea")
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{os.getpid()}_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return f"python:{name}"


def test_own_code_runs_only_when_it_may(factory: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--allow-code"):
        load_model(f"{factory}:net", classes=CLASSES)
    assert not (tmp_path / "ran").exists()
    path = list(sys.path)
    model = load_model(f"{factory}:net", classes=CLASSES, allow_code=True)
    assert (tmp_path / "ran").exists()
    assert sys.path == path
    assert model.classes == CLASSES
    ready = load_model(f"{factory}:model", allow_code=True)
    assert ready.classes == toy_model().classes
    assert ready(toy_images().float()).shape == (1, 2, 16, 16)


@pytest.mark.parametrize(
    ("tail", "word"),
    [
        (":number", "returning a int"),
        (":broken", "out of tea"),
        (":nothing", "AttributeError"),
        ("_x:net", "ModuleNotFoundError"),
        ("", "MODULE:FACTORY"),
        (":net", "no class names"),
    ],
)
def test_own_code_that_does_not_work(factory: str, tail: str, word: str) -> None:
    with pytest.raises(ModelError, match=word):
        load_model(f"{factory}{tail}", allow_code=True)
    with pytest.raises(ModelError, match="one of both"):
        load_model(f"{factory}:model", classes=["a"], allow_code=True)


def test_own_code_from_the_command_line(
    factory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["layers", "--model", f"{factory}:net", "--classes", "a,b,c", "--size", "32"]
    assert cli.main(arguments) == cli.WRONG_INPUT
    assert "--allow-code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert cli.main([*arguments, "--allow-code"]) == 0
    assert "decoder.blocks.0" in capsys.readouterr().out
