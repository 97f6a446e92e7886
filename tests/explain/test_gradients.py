"""Gradients and maps of every listed layer of every family, against independent ones.

The independent gradient puts a leaf into the module's own forward; the independent axes are those
that the packages' sources state.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from families import CLASSES, FAMILIES, HF_CLASSES, hf_config
from gradients import compare, cosine, first_tensor, independent, raw_map, swapped
from segproof.errors import ModelError
from segproof.explain.forward_pass import capture, rerun
from segproof.explain.target import Target
from segproof.models.contract import SegmentationModel

HAS_HF = importlib.util.find_spec("transformers") is not None
needs_hf = pytest.mark.skipif(not HAS_HF, reason="transformers (the extra hf) is not installed")
FAST = (
    "smp-Unet", "smp-UPerNet-swin", "smp-DPT-vit", "lraspp_mobilenet_v3_large", "hf-Segformer",
    "hf-UperNet", "hf-UperNet-convnext", "hf-Mask2Former", "hf-Beit", "hf-DPT", "hf-Eomt",
    "monai-UNet", "mmseg-predict", "terratorch", "nnunet-deep",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[
                *([needs_hf] if name.startswith("hf-") else []),
                *([] if name in FAST else [pytest.mark.slow]),
            ],
        )
        for name in FAMILIES
    ],
)
def test_every_layer_of_every_family(name: str) -> None:
    """Gradients are the independent ones on the first and on later calls, and so are maps."""
    for size in FAMILIES[name].sizes:
        found = compare(name, size)
        assert found
        for one in found:
            assert one.cosine >= 0.9999, (size, one)
            assert one.maps >= 0.9999, (size, one)
            assert one.same, (size, one)


# --- networks of transformers ---------------------------------------------------------------------
def segformer(**options: Any) -> SegmentationModel:
    hf: Any = importlib.import_module("transformers")
    hf.logging.set_verbosity_error()
    torch.manual_seed(0)
    net = getattr(hf, HF_CLASSES["Segformer"])(
        hf.SegformerConfig(
            depths=[1] * 4, id2label=dict(enumerate(CLASSES)), decoder_hidden_size=16, **options
        )
    )
    return SegmentationModel(net, classes=CLASSES).eval().requires_grad_(False)


@needs_hf
@pytest.mark.parametrize(
    ("sizes", "side", "stage"),
    [((32, 64, 160, 256), 512, 1), ((16, 32, 40, 64), 64, 0), ((8, 16, 24, 32), 128, 1)],
)
def test_as_many_channels_as_rows_and_columns(sizes: Any, side: int, stage: int) -> None:
    """A stage that ends in a LayerNorm and returns [N, C, C, C] is channels first: moving the
    picture by one stride moves the map by one cell.
    """
    model = segformer(hidden_sizes=sizes)
    layer = model.layers(side)[stage]
    assert (layer.channels, *layer.size) == (sizes[stage],) * 3
    assert (layer.axes, layer.decided) == ("channels first", "by two sizes")
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(2))
    box = (side // 4, side // 2, side // 8, side // 2)
    truth = torch.zeros(1, side, side, dtype=torch.bool)
    truth[:, box[0] : box[1], box[2] : box[3]] = True
    seen = capture(model, image, Target("roof", region="truth"), [layer.path], truth)
    A, D = independent(model, layer.path, image, box, 1)
    assert torch.equal(seen.activations[layer.path], A)
    assert cosine(seen.gradients[layer.path], D) > 0.9999
    [got] = raw_map("grad_cam", seen, layer.path, model)
    assert cosine(got, (D.mean(dim=(2, 3), keepdim=True) * A).sum(dim=1)[0]) > 0.9999


@needs_hf
def test_first_and_later_calls_are_bitwise_equal() -> None:
    """Also where the network begins to gather its features by hooks in its first run."""
    paths = [f"segformer.stages.{n}" for n in range(4)]
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    truth = torch.ones(1, 64, 64, dtype=torch.bool)
    model = segformer(hidden_sizes=[16, 32, 40, 64])
    calls = [capture(model, image, Target("roof", region="truth"), paths, truth) for _ in range(3)]
    for path in paths:
        D = independent(model, path, image, (0, 64, 0, 64), 1)[1]
        for one in calls:
            assert torch.equal(one.gradients[path], calls[0].gradients[path])
            assert cosine(one.gradients[path], D) > 0.9999


@needs_hf
@pytest.mark.parametrize(
    ("name", "path", "layout"),
    [
        ("Segformer", "segformer.stages.0", "first"),
        ("Segformer", "segformer.stages.2", "first"),
        ("Segformer", "decode_head.linear_projections.1", 0),
        ("UperNet", "backbone.hidden_states_norms.stage2", 0),
        ("Beit", "beit.layers.0", 1),
    ],
)
def test_ablating_reaches_every_reader_of_a_layer(name: str, path: str, layout: Any) -> None:
    """A re-run against the whole network whose module returns the ablated tensor."""
    hf: Any = importlib.import_module("transformers")
    torch.manual_seed(0)
    net = getattr(hf, HF_CLASSES[name])(hf_config(name)).eval().requires_grad_(False)
    model = SegmentationModel(net, classes=CLASSES).double()
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(2)).double()
    truth = torch.ones(1, 64, 64, dtype=torch.bool)
    A = capture(
        model, image[None], Target("roof", region="truth"), [path], truth, gradients=False
    ).activations[path]
    module = net.get_submodule(path)
    plain: Any = module.forward
    ablated = A.repeat(2, 1, 1, 1)
    ablated[0, 0], ablated[1, 1] = 0, 0

    def forward(*given: Any, **named: Any) -> Any:
        result = plain(*given, **named)
        value = first_tensor(result)
        new = value.clone()
        for n in range(len(new)):
            if layout == "first":
                new[n, n] = 0
            else:
                new[n, layout:, n] = 0
        return swapped(result, value, new)

    with rerun(model, path, image) as (clean, logits_of):
        got = logits_of(ablated)
        again = logits_of(A)
    assert torch.allclose(again, clean, rtol=1e-9, atol=0)
    module.forward = forward
    try:
        with torch.no_grad():
            wanted = model(image.expand(2, -1, -1, -1))
    finally:
        del module.forward
    change = (wanted - clean).abs().max()
    assert change > 1e-9 * clean.abs().max()
    assert (got - wanted).abs().max() < 1e-5 * change


# --- what networks do with a layer's result -------------------------------------------------------
class Reader(nn.Module):
    """Two convolutions with `between` in the middle; the layer is `first`."""

    def __init__(self, between: Callable[[Reader, Tensor], Tensor], first: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.first = first
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(4, 2, 1)
        self.between = between

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(self.between(self, self.stem(images)))
        return result


class Keeps(nn.Module):
    """Puts by what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.conv(x)
        return self.kept


class Returns(nn.Module):
    """A convolution whose result comes in a list, tuple, dict or record."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.conv(x))


@dataclass
class Record:
    features: Tensor
    all: tuple[Tensor, ...] = ()


def conv(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Conv2d(4, 4, 3, padding=1)


def stash(net: Reader, x: Tensor) -> Tensor:
    y: Tensor = net.first(x)
    kept = net.first.kept
    assert isinstance(kept, Tensor)
    return y.sin() + kept.cos() * 2


def in_place(net: Reader, x: Tensor) -> Tensor:
    y: Tensor = net.relu(net.first(x).mul_(2).add_(x)).sin()
    return y


def twice(net: Reader, x: Tensor) -> Tensor:
    y: Tensor = net.first(net.first(x).sin())
    return y.cos()


def skip(net: Reader, x: Tensor) -> Tensor:
    y: Tensor = net.first(x)
    return y.sin() + x.cos() * 2


READERS: dict[str, tuple[Any, Callable[[], nn.Module]]] = {
    "in place": (in_place, conv),
    "twice": (twice, conv),
    "identity": (skip, nn.Identity),
    "its input, changed": (skip, lambda: nn.ReLU(inplace=True)),
    "view of its input": (
        lambda net, x: net.first(x).unflatten(2, x.shape[2:]).sin() + x.cos(),
        lambda: nn.Flatten(2),
    ),
    "re-entrant segment": (
        lambda net, x: checkpoint(lambda y: net.first(y).sin(), x, use_reentrant=True),
        conv,
    ),
    "segment": (
        lambda net, x: checkpoint(lambda y: net.first(y).sin(), x, use_reentrant=False).cos(),
        conv,
    ),
    "parametrized": (
        lambda net, x: net.first(x).sin(),
        lambda: nn.utils.parametrizations.weight_norm(conv()),
    ),
    "tuple": (lambda net, x: net.first(x)[0].sin(), lambda: Returns(lambda y: (y, "more"))),
    "list": (lambda net, x: net.first(x)[0].sin(), lambda: Returns(lambda y: [y, None])),
    "dict": (lambda net, x: net.first(x)["a"].sin(), lambda: Returns(lambda y: {"a": y, "n": 1})),
    "record": (
        lambda net, x: net.first(x).features.sin() + net.first(x).all[0].cos(),
        lambda: Returns(lambda y: Record(y, (y,))),
    ),
}


def reader(kind: str) -> SegmentationModel:
    between, first = READERS[kind]
    torch.manual_seed(1)
    return SegmentationModel(Reader(between, first()), classes=["a", "b"]).double().eval()


def difference(
    model: SegmentationModel, path: str, image: Tensor, direction: Tensor, last: int
) -> float:
    """Slope of the mean logit along a direction of the layer's values in its run number `last`."""
    module = model.net.get_submodule(path)
    plain: Any = module.forward
    values = []
    for step in (1e-5, -1e-5):
        runs = 0

        def forward(*given: Any, step: float = step) -> Any:
            nonlocal runs
            runs += 1
            result = plain(*given)
            parts = result if isinstance(result, list | tuple) else [result]
            if isinstance(result, dict):
                parts = [result["a"]]
            value = result.features if isinstance(result, Record) else parts[0]
            if runs == last:
                new = value.detach().clone() + step * direction.reshape(value.shape)
                if isinstance(result, Record):
                    return Record(new, (new,))
                if isinstance(result, dict):
                    return {"a": new}
                return new if result is value else type(result)([new, *result[1:]])
            return result

        module.forward = forward
        with torch.no_grad():
            values.append(float(model(image)[0, 1].mean()))
        del module.forward
    return (values[0] - values[1]) / 2e-5


@pytest.mark.filterwarnings("ignore:None of the inputs")  # of a segment without a gradient
@pytest.mark.parametrize("kind", READERS)
def test_whatever_reads_a_layer(kind: str) -> None:
    """Gradients against finite differences, on the first and on the second call."""
    model = reader(kind)
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    truth = torch.ones(1, 16, 16, dtype=torch.bool)
    before = {name: vars(checkpoint_names).get(name) for name in vars(checkpoint_names)}
    calls = [capture(model, image, Target("b", region="truth"), ["first"], truth) for _ in range(2)]
    assert {name: vars(checkpoint_names).get(name) for name in vars(checkpoint_names)} == before
    D = calls[0].gradients["first"]
    assert torch.equal(D, calls[1].gradients["first"])
    direction = torch.randn(D.shape, generator=torch.Generator().manual_seed(3), dtype=D.dtype)
    last = {"twice": 2, "record": 2}.get(kind, 1)
    wanted = difference(model, "first", image, direction, last)
    if kind == "record":  # the last of two runs has one of the two readers
        assert abs(wanted) > 1e-9
    assert float((D * direction).sum()) == pytest.approx(wanted, rel=1e-5)


checkpoint_names = importlib.import_module("torch.utils.checkpoint")


def test_a_result_that_is_put_by_counts_twice() -> None:
    """y.sin() + 2 y.cos() of a module that returns y and keeps it: d = cos y - 2 sin y."""
    torch.manual_seed(1)
    model = SegmentationModel(Reader(stash, Keeps()), classes=["a", "b"]).double().eval()
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    truth = torch.ones(1, 16, 16, dtype=torch.bool)
    head = model.net.get_parameter("head.weight")[1].detach()
    for _ in range(2):
        seen = capture(model, image, Target("b", region="truth"), ["first"], truth)
        y = seen.activations["first"]
        wanted = head * (y.cos() - 2 * y.sin()) / 256
        assert torch.allclose(seen.gradients["first"], wanted, rtol=1e-9, atol=1e-15)
    with rerun(model, "first", image[0]) as (_, logits_of):
        put = torch.rand(3, 4, 16, 16, dtype=torch.float64)
        got = logits_of(put)
    with torch.no_grad():
        right = model.net.get_submodule("head")(put.sin() + 2 * put.cos())
    assert torch.allclose(got, right, rtol=1e-9)


def test_layers_behind_each_other_are_as_alone() -> None:
    """An identity between two recorded layers has only its own readers."""

    def between(net: Reader, x: Tensor) -> Tensor:
        y = net.first(x)
        z: Tensor = y[0](x) if isinstance(y, list) else y
        return z.sin() + x.cos()

    torch.manual_seed(1)
    model = SegmentationModel(Reader(between, nn.Identity()), classes=["a", "b"]).double().eval()
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    target, truth = Target("b", region="truth"), torch.ones(1, 16, 16, dtype=torch.bool)
    both = capture(model, image, target, ["stem", "first"], truth)
    for path in ("stem", "first"):
        alone = capture(model, image, target, [path], truth)
        assert both.gradients[path].any()
        assert torch.equal(both.gradients[path], alone.gradients[path])
    y = both.activations["first"]
    head = model.net.get_parameter("head.weight")[1].detach()
    assert torch.allclose(both.gradients["first"], head * y.cos() / 256, rtol=1e-9)
    assert torch.allclose(both.gradients["stem"], head * (y.cos() - y.sin()) / 256, rtol=1e-9)


def test_a_layer_without_gradients_is_refused() -> None:
    def frozen(net: Reader, x: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = net.first(x).sin()
        return y

    model = SegmentationModel(Reader(frozen, conv()), classes=["a", "b"]).eval()
    with pytest.raises(ModelError, match="layer first, which the network runs with gradients"):
        capture(model, torch.rand(1, 3, 16, 16), Target("b"), ["first"])


def test_a_pyramid_is_refused_with_its_levels() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Levels()
            self.head = nn.Conv2d(3, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            result: Tensor = self.head(self.encoder(images)[0])
            return result

    class Levels(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return images * 2, nn.functional.avg_pool2d(images, 2)

    model = SegmentationModel(Pyramid(), classes=["a", "b"])
    with pytest.raises(ModelError) as got:
        capture(model, torch.rand(1, 3, 64, 64), Target("b"), ["encoder"])
    assert "channels first ([0]: 64 x 64 cells) or channels first ([1]: 32 x 32 cells)" in str(
        got.value
    )


def test_hooks_of_others_see_what_they_saw() -> None:
    """One that was there before runs behind ours, sees the same values, and stays."""
    model = reader("in place")
    layer = model.net.get_submodule("first")
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda _m, _i, result: seen.append(result.detach().clone()))
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        model(image)
    capture(model, image, Target("b"), ["first"])
    model.layers(16)
    assert len(layer._forward_hooks) == 1
    same = [value for value in seen if value.shape == seen[0].shape and value.any()]
    assert torch.equal(seen[0], same[-2]) or any(torch.equal(seen[0], v) for v in same[1:])


# --- compiled networks ----------------------------------------------------------------------------
@pytest.mark.parametrize("inner", [False, True])
def test_compiled_networks_are_as_the_uncompiled_ones(inner: bool) -> None:
    """Bit for bit, without a compilation while hooks are on; outside, the compiled network runs."""
    compiled: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    compile_: Any = torch.compile
    torch._dynamo.reset()
    plain, net = reader("twice").float(), reader("twice").float().net
    image = torch.rand(1, 3, 16, 16)
    target, truth = Target("b", region="truth"), torch.ones(1, 16, 16, dtype=torch.bool)
    if inner:
        vars(net)["_modules"]["first"] = compile_(net.first, backend=backend)
        whole: nn.Module = net
    else:
        whole = compile_(net, backend=backend)
    model = SegmentationModel(whole, classes=["a", "b"]).eval()
    with torch.no_grad():
        assert torch.allclose(model(image), plain(image), atol=1e-6)
    count = len(compiled)
    assert count
    assert [x.path for x in model.layers(16)] == [x.path for x in plain.layers(16)]
    assert model.resolve_layer("_orig_mod.first") == "first"
    wanted = capture(plain, image, target, ["first"], truth)
    for spelled in ("first", "first._orig_mod" if inner else "_orig_mod.first"):
        seen = capture(model, image, target, [spelled], truth)
        assert torch.equal(seen.gradients[spelled], wanted.gradients["first"])
        assert torch.equal(seen.activations[spelled], wanted.activations["first"])
    with rerun(model, "first", image[0]) as (_, logits_of):
        got = logits_of(0 * wanted.activations["first"])
    with rerun(plain, "first", image[0]) as (_, logits_of):
        assert torch.equal(got, logits_of(0 * wanted.activations["first"]))
    with pytest.raises(ModelError, match="not finite"):
        capture(model, image * torch.nan, target, ["first"], truth)
    with torch.no_grad():
        model(image)
    assert len(compiled) == count
    assert torch._dynamo.eval_frame._stance.stance == "default"
    torch._dynamo.reset()
