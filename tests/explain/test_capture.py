"""One forward, one partial backward: right numbers, and the user's model as it was before."""

from __future__ import annotations

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from segproof.errors import ModelError, UnknownNameError
from segproof.explain.api import explain_all
from segproof.explain.forward_pass import capture, observe, rerun
from segproof.explain.target import Target
from segproof.models.contract import SegmentationModel
from sideeffects import Fails, facts, told, unsettle
from toys import LAYERS, toy_images, toy_model, toy_truth

TARGETS = [
    Target("roof"),
    Target("roof", region="truth"),
    Target("roof", region="truth", space="probability", reduce="sum"),
    Target("roof", region="truth", space="log_probability"),
    Target("roof", region="truth", space="margin"),
    Target("roof", preset="paper"),
]
PAPER = TARGETS[-1]


def bumped(model: SegmentationModel, path: str, bump: Tensor, images: Tensor) -> Tensor:
    """Logits when `bump` is added to the output of the layer."""
    handle = model.net.get_submodule(path).register_forward_hook(lambda m, i, o: o + bump)
    try:
        with torch.no_grad():
            return model(images)  # type: ignore[no-any-return]
    finally:
        handle.remove()


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.region}-{t.space}-{t.preset}")
@pytest.mark.parametrize("path", LAYERS)
def test_gradients_are_finite_differences(target: Target, path: str) -> None:
    # SiLU: smooth, so that central differences converge
    model = toy_model(3, act="silu")
    images, truth = toy_images(3, n=2), toy_truth(3, n=2)
    seen = capture(model, images, target, [path], truth)
    D = seen.gradients[path]
    assert D.std() > 0
    generator = torch.Generator().manual_seed(5)
    direction = torch.randn(D.shape, generator=generator, dtype=D.dtype)
    step = 1e-5
    above = seen.bound.score(bumped(model, path, step * direction, images))
    below = seen.bound.score(bumped(model, path, -step * direction, images))
    slope = (D * direction).sum(dim=(1, 2, 3))
    assert torch.allclose(slope, (above - below) / (2 * step), rtol=1e-6, atol=1e-9)
    assert slope.abs().min() > 1e-6


def test_target_scalar_by_hand() -> None:
    """Y of the six kinds of target, from the logits alone."""
    model = toy_model(3)
    images, truth = toy_images(3), toy_truth(3)
    with torch.no_grad():
        z = model(images)[0]
    p = z.softmax(dim=0)[1]
    G, P = truth[0], z.argmax(dim=0) == 1
    expected = [
        z[1][P].mean(),
        z[1][G].mean(),
        p[G].sum(),
        p[G].log().mean(),
        (z[1] - z[0])[G].mean(),
        (p[G] ** 2).sum(),
    ]
    for target, value in zip(TARGETS, expected, strict=True):
        seen = capture(model, images, target, LAYERS, truth)
        assert float(seen.bound.score(seen.logits)[0]) == pytest.approx(float(value), abs=1e-12)


def test_several_classes_by_hand() -> None:
    """The margin is to the strongest rival; log-probability and P follow the activation."""
    classes = ("ground", "roof", "road")
    images, truth = toy_images(5), toy_truth(5)
    for activation in ("softmax", "sigmoid"):
        model = toy_model(5, classes=classes, activation=activation)
        with torch.no_grad():
            z = model(images)[0]
        p = z.softmax(dim=0) if activation == "softmax" else z.sigmoid()
        P = p.argmax(dim=0) == 1 if activation == "softmax" else p[1] >= 0.5
        G = truth[0]
        rival = torch.maximum(z[0], z[2])
        assert ((rival == z[0]) & G).any()
        assert ((rival == z[2]) & G).any()
        margin = Target("roof", region="truth", space="margin")
        log = Target("roof", region="truth", space="log_probability")
        for target, value in (
            (margin, (z[1] - rival)[G].mean()),
            (log, p[1][G].log().mean()),
            (Target("roof"), z[1][P].mean()),
            (PAPER, (p[1][G] ** 2).sum()),
        ):
            seen = capture(model, images, target, LAYERS, truth)
            assert float(seen.bound.score(seen.logits)[0]) == pytest.approx(float(value), abs=1e-12)
            assert torch.equal(seen.bound.prediction[0], P)


def test_paper_weights_are_detached() -> None:
    """D of the published scalar is p_c G dp_c/dA: half of what an undetached p_c^2 would give."""
    model = toy_model(3)
    images, truth = toy_images(3), toy_truth(3)
    paper = capture(model, images, Target("roof", preset="paper"), LAYERS, truth)
    found: list[Tensor] = []
    block = model.net.get_submodule(LAYERS[1])

    def remember(m: nn.Module, i: object, o: Tensor) -> Tensor:
        found.append(o)
        return o.clone()

    handle = block.register_forward_hook(remember)
    z = model(images)
    handle.remove()
    square = (z.softmax(dim=1)[0, 1][truth[0]] ** 2).sum()
    [whole] = torch.autograd.grad(square, found)
    assert whole.abs().max() > 1e-6
    assert torch.allclose(paper.gradients[LAYERS[1]], whole / 2, atol=1e-12)


def test_activations_are_the_layers_own() -> None:
    model, images = toy_model(1), toy_images(1, n=2)
    seen = capture(model, images, Target("roof"), LAYERS)
    found: dict[str, Tensor] = {}
    for path in LAYERS:

        def remember(m: nn.Module, i: object, o: Tensor, path: str = path) -> None:
            found[path] = o.detach().clone()

        model.net.get_submodule(path).register_forward_hook(remember)
    with torch.no_grad():
        logits = model(images)
    assert torch.equal(seen.logits, logits)
    for path in LAYERS:
        assert found[path].std() > 0
        assert torch.equal(seen.activations[path], found[path])
        assert not seen.activations[path].requires_grad


def test_all_layers_at_once_are_one_at_a_time() -> None:
    model, images = toy_model(2), toy_images(2, n=2)
    both = capture(model, images, Target("roof"), LAYERS)
    for path in LAYERS:
        alone = capture(model, images, Target("roof"), [path])
        assert both.gradients[path].std() > 0
        assert torch.equal(both.activations[path], alone.activations[path])
        assert torch.equal(both.gradients[path], alone.gradients[path])


def test_one_channel_network_is_two_logits() -> None:
    """[0, z] is exactly softmax: p = sigmoid(z), and the gradients are those of z."""
    model, images = toy_model(4), toy_images(4)
    seen = capture(model, images, Target("roof"), LAYERS)
    assert torch.equal(seen.logits[:, 0], torch.zeros_like(seen.logits[:, 0]))
    torch.testing.assert_close(
        seen.logits.softmax(dim=1)[:, 1], seen.logits[:, 1].sigmoid(), atol=1e-15, rtol=0
    )


def test_a_layer_without_influence_has_no_gradient() -> None:
    model = toy_model(0)
    model.net.register_module("idle", nn.Conv2d(3, 2, 1).double())
    plain = model.net.forward

    def forward(images: Tensor) -> Tensor:
        model.net.get_submodule("idle")(images)
        result: Tensor = plain(images)
        return result

    model.net.forward = forward
    seen = capture(model, toy_images(0), Target("roof"), ["idle", LAYERS[0]])
    assert torch.equal(seen.gradients["idle"], torch.zeros_like(seen.activations["idle"]))
    assert seen.gradients[LAYERS[0]].std() > 0


def test_valid_pixels_bound_the_region() -> None:
    model, images = toy_model(0), toy_images(0)
    valid = torch.zeros(1, 16, 16, dtype=torch.bool)
    valid[:, :9] = True
    free = capture(model, images, Target("roof"), LAYERS)
    bound = capture(model, images, Target("roof"), LAYERS, valid=valid).bound
    assert (free.bound.region & ~valid).any()
    assert torch.equal(bound.region, free.bound.region & valid)
    assert float(bound.weights.sum()) == pytest.approx(1)
    truth = torch.ones(1, 16, 16, dtype=torch.bool)
    for target in (Target("roof", region="truth"), PAPER):
        seen = capture(model, images, target, LAYERS, truth, valid=valid).bound
        assert torch.equal(seen.region, valid)
        assert not seen.weights[~valid].any()


def test_errors_name_what_was_found() -> None:
    model, images = toy_model(0), toy_images(0)
    with pytest.raises(UnknownNameError, match=r"decoder\.blocks\.1"):
        capture(model, images, Target("roof"), ["decoder.blocks.11"])
    with pytest.raises(UnknownNameError, match="roof"):
        capture(model, images, Target("rooof"), LAYERS)
    with pytest.raises(ModelError, match="not finite"):
        capture(model, images * torch.nan, Target("roof"), LAYERS)


@pytest.mark.parametrize("gradients", [True, False])
def test_nothing_is_left_behind(gradients: bool) -> None:
    model, images = toy_model(0), toy_images(0)
    unsettle(model)
    before = facts(model, images)
    seen = capture(model, images, Target("roof"), LAYERS, gradients=gradients)
    assert facts(model, images) == before
    assert bool(seen.gradients) == gradients


@pytest.mark.parametrize("error", [RuntimeError, IndexError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["network", "target", "score"])
def test_nothing_is_left_behind_after(error: type[BaseException], place: str) -> None:
    model, images = toy_model(0), toy_images(0)
    unsettle(model)
    failing = Fails(error)
    target = failing.target(place, Target("roof")) if place != "network" else Target("roof")
    with failing.network(model, after=0 if place == "network" else None):
        before = facts(model, images)
        with pytest.raises(told(error, place)):
            capture(model, images, target, LAYERS)
        assert facts(model, images) == before
    assert failing.raised == 1


def test_an_in_place_step_behind_the_layer_changes_nothing() -> None:
    """The normalisation's output is overwritten by a ReLU: what is kept is what it returned."""
    model, images, path = toy_model(2), toy_images(2), "decoder.blocks.1.norm"
    seen = capture(model, images, Target("roof"), [path])
    A, D = seen.activations[path], seen.gradients[path]
    assert (A < 0).any()
    # behind the ReLU there is no slope where A is negative
    assert not D[A < 0].any()
    assert D[A > 0].any()


# --- going on from a layer ------------------------------------------------------------------------
class Counts(nn.Conv2d):
    """A convolution that counts its runs."""

    runs = 0

    def forward(self, images: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(images)


class Odd(nn.Module):
    """What a network may do before and behind the layer `shared`, which runs twice.

    A constant from a module, in-place changes whose result is not used, dicts and tuples of maps,
    a result whose first dimension is not the picture's, a block that is used on both sides.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.first = Counts(3, 4, 3, padding=1)
        self.split = Split()
        self.grid = Grid()
        self.relu = nn.ReLU(inplace=True)
        self.shared = Counts(4, 4, 3, padding=1)
        self.both = nn.Sequential(Counts(4, 4, 1), nn.SiLU())
        self.head = Counts(8, 1, 1)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(0.4 * torch.randn(value.shape, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        parts = self.split(self.first(images))
        self.relu(parts["low"])
        joined = torch.cat([parts["low"], parts["rest"][0]], dim=1) + self.grid()
        once = self.shared(self.both(joined).sigmoid())
        folded = self.split.fold(once)
        twice = self.shared(folded)
        result: Tensor = self.head(torch.cat([once, self.both(twice)], dim=1))
        return result


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fold = Fold()

    def forward(self, maps: Tensor) -> dict[str, object]:
        return {"low": maps[:, :2] - 0.2, "rest": (maps[:, 2:], None)}


class Fold(nn.Module):
    """Rows of tiles as pictures of their own, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.tile = nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        n, k, h, w = maps.shape
        tiles = self.tile(
            maps.reshape(n, k, 2, h // 2, w).transpose(1, 2).reshape(-1, k, h // 2, w)
        )
        centred: Tensor = tiles - tiles.mean(dim=(2, 3), keepdim=True)
        return centred.reshape(n, 2, k, h // 2, w).transpose(1, 2).reshape(n, k, h, w)


class Grid(nn.Module):
    def forward(self) -> Tensor:
        return torch.linspace(-1, 1, 16, dtype=torch.float64).view(1, 1, 1, 16)


def odd_model() -> SegmentationModel:
    return SegmentationModel(Odd(), classes=["roof"]).double().eval()


def replaced(model: SegmentationModel, path: str, put: Tensor, image: Tensor, run: int) -> Tensor:
    """The whole network on n equal pictures, the layer's result replaced in its run `run`."""
    runs = 0

    def hook(_module: nn.Module, _inputs: object, _result: object) -> Tensor | None:
        nonlocal runs
        runs += 1
        return put.clone() if runs == run else None

    handle = model.net.get_submodule(path).register_forward_hook(hook)
    try:
        with torch.no_grad():
            return model(image.expand(len(put), *image.shape))  # type: ignore[no-any-return]
    finally:
        handle.remove()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("path", "last"),
    [("first", 1), ("shared", 2), ("split.fold", 1), ("both", 2), ("head", 1)],
)
def test_rerun_is_the_whole_network_with_the_layer_replaced(path: str, last: int, n: int) -> None:
    model, image = odd_model(), toy_images(4)[0]
    channels = 1 if path == "head" else 4
    generator = torch.Generator().manual_seed(n)
    with rerun(model, path, image) as (clean, logits_of):
        with torch.no_grad():
            assert torch.equal(clean, model(image[None]))
        for _ in range(2):  # nothing is used up
            put = torch.randn(n, channels, 16, 16, generator=generator, dtype=torch.float64)
            before = put.clone()
            got = logits_of(put)
            wanted = replaced(model, path, put, image, last)
            assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)
            assert (got - clean).abs().max() > 1e-3
            assert torch.equal(put, before)


class Bumps(nn.Module):
    """Changes its argument and returns something else."""

    def forward(self, images: Tensor) -> Tensor:
        images.add_(1.0)
        return images.mean(dim=1, keepdim=True)


class Bumped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.bump = nn.Conv2d(3, 4, 1), Bumps()
        self.layer, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        start = self.first(images)
        self.bump(start)
        result: Tensor = self.head(self.layer(start) + start)
        return result


def test_rerun_runs_again_what_changes_its_input() -> None:
    model = SegmentationModel(Bumped(), classes=["roof"]).double().eval()
    image = toy_images(4)[0]
    put = torch.zeros(2, 4, 16, 16, dtype=torch.float64)
    with rerun(model, "layer", image) as (_, logits_of):
        got = logits_of(put)
    assert torch.allclose(got, replaced(model, "layer", put, image, 1), rtol=1e-12, atol=1e-12)


def test_an_in_place_step_behind_the_layer_leaves_what_was_put() -> None:
    model, image = toy_model(2), toy_images(2)[0]
    put = torch.randn(2, 5, 16, 16, dtype=torch.float64)
    before = put.clone()
    assert (put < 0).any()
    with rerun(model, "decoder.blocks.1.norm", image) as (_, logits_of):
        logits_of(put)
    assert torch.equal(put, before)


@pytest.mark.parametrize("path", LAYERS)
@pytest.mark.parametrize("act", ["relu", "silu"])
def test_rerun_with_what_was_captured_changes_nothing(path: str, act: str) -> None:
    model, images = toy_model(3, act=act), toy_images(3)
    seen = capture(model, images, Target("roof"), [path])
    with rerun(model, path, images[0]) as (_, logits_of):
        again = logits_of(seen.activations[path].repeat(3, 1, 1, 1))
    assert torch.allclose(again, seen.logits.expand_as(again), rtol=1e-12, atol=1e-12)


def test_rerun_spares_what_comes_before_the_layer() -> None:
    model, image = odd_model(), toy_images(4)[0]
    net = model.net
    assert isinstance(net, Odd)
    put = torch.zeros(2, 4, 16, 16, dtype=torch.float64)
    with rerun(model, "shared", image) as (_, logits_of):
        inner = net.both[0]
        assert isinstance(inner, Counts)
        before = (net.first.runs, inner.runs, net.shared.runs, net.head.runs)
        logits_of(put)
        spent = (net.first.runs, inner.runs, net.shared.runs, net.head.runs)
    # of the runs on both sides of the layer only those behind its first one
    assert [after - old for after, old in zip(spent, before, strict=True)] == [0, 1, 1, 1]


def test_hooks_inside_are_served_in_a_rerun() -> None:
    """A network may carry features around by hooks: they see n pictures, not one."""
    model, image = odd_model(), toy_images(4)[0]
    net = model.net
    assert isinstance(net, Odd)
    sizes: list[int] = []
    net.both[0].register_forward_hook(lambda m, i, o: sizes.append(len(o)))
    with rerun(model, "head", image) as (_, logits_of):
        sizes.clear()
        logits_of(torch.zeros(3, 1, 16, 16, dtype=torch.float64))
    assert sizes == [3, 3]


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_rerun_leaves_nothing_behind(after: int, error: type[BaseException]) -> None:
    model, images = toy_model(3), toy_images(3)
    unsettle(model)
    own = model.net.get_submodule("encoder.0")
    vars(own)["forward"] = own.forward  # someone's own wrapper stays
    before, fails = facts(model, images), Fails(error)

    def go() -> None:
        with rerun(model, LAYERS[0], images[0]) as (_, logits_of):
            for _ in range(2):
                logits_of(torch.zeros(2, 7, 8, 8, dtype=torch.float64))

    with fails.network(model, after), pytest.raises(error):
        go()
    assert facts(model, images) == before
    go()
    assert facts(model, images) == before


# --- one forward, many targets --------------------------------------------------------------------
def test_one_pass_serves_any_number_of_targets() -> None:
    model, images, truth = toy_model(3), toy_images(3, n=2), toy_truth(3, n=2)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.evidence((16, 16))  # runs of its own, once for a network
    with_hook = model.net.register_forward_pre_hook(count)
    seen = observe(model, images, LAYERS)
    found = [seen.read(target, truth) for target in TARGETS]
    again = seen.read(TARGETS[0], truth, last=True)
    with_hook.remove()
    assert calls == 1
    for target, one in zip(TARGETS, found, strict=True):
        alone = capture(model, images, target, LAYERS, truth)
        for path in LAYERS:
            assert alone.gradients[path].any()
            assert torch.equal(one.gradients[path], alone.gradients[path])
            assert torch.equal(one.activations[path], alone.activations[path])
    assert torch.equal(again.gradients[LAYERS[0]], found[0].gradients[LAYERS[0]])
    with pytest.raises(RuntimeError, match="second time"):
        seen.read(TARGETS[0], truth)  # the last one has freed the graph


# --- networks from elsewhere ----------------------------------------------------------------------
def in_inference_mode(seed: int) -> SegmentationModel:
    """All weights and statistics made in inference mode, as by a loader inside of it."""
    with torch.inference_mode():
        model = toy_model(seed)
    assert all(value.is_inference() for value in model.net.parameters())
    assert any(value.is_inference() for value in model.net.buffers())
    return model


@pytest.mark.parametrize("frozen", [False, True])
def test_networks_made_in_inference_mode_or_frozen(frozen: bool) -> None:
    images, truth = toy_images(3), toy_truth(3)
    plain = capture(toy_model(3), images, TARGETS[1], LAYERS, truth)
    model = toy_model(3).requires_grad_(False) if frozen else in_inference_mode(3)
    before = facts(model, images)
    tensors = [id(value) for value in (*model.parameters(), *model.buffers())]
    seen = capture(model, images, TARGETS[1], LAYERS, truth)
    assert facts(model, images) == before
    assert [id(value) for value in (*model.parameters(), *model.buffers())] == tensors
    for path in LAYERS:
        assert seen.gradients[path].any()
        assert torch.equal(seen.gradients[path], plain.gradients[path])


def test_callers_in_inference_mode() -> None:
    model, truth = toy_model(3), toy_truth(3)
    plain = capture(model, toy_images(3), TARGETS[1], LAYERS, truth)
    with torch.inference_mode():
        seen = capture(model, toy_images(3), TARGETS[1], LAYERS, truth)
        assert torch.is_inference_mode_enabled()
    for path in LAYERS:
        assert torch.equal(seen.gradients[path], plain.gradients[path])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("encoder.1.0.weight", "encoder.1.0 (Conv2d)"),
        ("decoder.blocks.0.norm.running_var", "decoder.blocks.0.norm (BatchNorm2d)"),
        ("segmentation_head.bias", "segmentation_head (Conv2d)"),
    ],
)
def test_the_first_layer_with_broken_numbers_is_named(path: str, name: str) -> None:
    model = toy_model(3)
    with torch.no_grad():
        model.net.state_dict()[path].fill_(float("nan"))
    before = facts(model)
    with pytest.raises(ModelError) as got:
        capture(model, toy_images(3), Target("roof"), LAYERS)
    assert got.value.found == (
        f"logits that are not finite; {name} is the first to return such values"
    )
    assert facts(model) == before


def test_a_layer_that_never_runs_names_those_that_do() -> None:
    model = toy_model(3)
    model.net.register_module("decoder_old", nn.Conv2d(1, 1, 1))
    before = facts(model)
    with pytest.raises(LookupError, match="did you mean decoder or encoder") as got:
        capture(model, toy_images(3), Target("roof"), [LAYERS[0], "decoder_old"])
    assert "decoder.blocks.0" in str(got.value)
    assert facts(model) == before


def test_nothing_before_the_first_asked_layer_enters_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four methods at two decoder blocks: one forward, one backward through what follows them."""
    torch.manual_seed(0)
    net = smp.Unet("resnet18", encoder_weights=None, classes=1)
    model = SegmentationModel(net, classes=["roof"]).eval()
    shown: list[int] = []
    asked: list[tuple[int, object]] = []
    convolutions: list[int] = []
    grad = torch.autograd.grad

    def noted(score: Tensor, layers: list[Tensor], **how: Any) -> Any:
        asked.append((len(layers), how["retain_graph"]))
        convolutions.append(sum("Convolution" in name for name in graph(score)))
        return grad(score, layers, **how)

    net.register_forward_pre_hook(lambda _net, given: shown.append(len(given[0])))
    model.layers(64)
    monkeypatch.setattr("torch.autograd.grad", noted)
    made = explain_all(
        model,
        torch.rand(3, 64, 64),
        methods=["grad_cam", "grad_cam_pp", "hires_cam", "eigen_cam"],
        layers=["decoder:1", "decoder:2"],
        target=Target("roof", region="box:0,0,64,64"),
    )
    assert len(made) == 8
    # the list of layers, the second size that tells the axes of all, and the picture
    assert shown == [1, 1, 1]
    assert asked == [(2, False)]
    # four more blocks of two convolutions, and the head
    assert convolutions == [4 * 2 + 1]


def graph(score: Tensor) -> list[str]:
    """Names of all steps that a backward from `score` would take."""
    found: list[str] = []
    seen: set[Any] = set()
    waiting = [score.grad_fn]
    while waiting:
        step = waiting.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        found.append(step.name())
        waiting += [before for before, _ in step.next_functions]
    return found
