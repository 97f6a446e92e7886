"""One contract for all networks: heads, shapes, layers, and folders of weights good and bad."""

from __future__ import annotations

import copy
import json
import math
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segproof.data import FolderDataset
from segproof.errors import ModelError, UnknownNameError
from segproof.models.contract import SIZES, SegmentationModel, all_finite, evaluating, probabilities
from segproof.models.loaders.load import demo_model_spec, load_model, save_model
from toys import ToyNet, toy_images, toy_model

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
CONFIG: dict[str, Any] = {
    "encoder_name": "resnet18",
    "encoder_weights": None,
    "decoder_channels": (16, 8, 8, 8, 8),
    "classes": 1,
}
SETTINGS = {"classes": ["roof"], "activation": "sigmoid", "mean": MEAN, "std": STD}


class Says(nn.Module):
    """A network that returns what `answer` makes of the normalised images."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(images)


def says(answer: Callable[[Tensor], Any], *classes: str, **how: Any) -> SegmentationModel:
    return SegmentationModel(Says(answer), classes=classes or ("roof",), **how)


# --- heads ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_one_channel_is_two_logits_exactly(activation: Any) -> None:
    model = says(lambda x: 40 * x[:, :1], activation=activation)
    assert model.classes == ("background", "roof")
    assert model.activation == "softmax"
    images = torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, 1, 8, 8)
    logits = model(images)
    assert torch.equal(logits[:, 0], torch.zeros(1, 8, 8, dtype=torch.float64))
    assert torch.equal(logits[:, 1], 40 * images[:, 0])
    chance = probabilities(logits, model.activation)
    assert (chance[:, 1] - torch.sigmoid(40 * images[:, 0])).abs().max() < 1e-15
    assert (chance[:, 0] - torch.sigmoid(-40 * images[:, 0])).abs().max() < 1e-15


def test_multi_label_channels_are_independent() -> None:
    model = says(lambda x: x[:, :2], "roof", "road", activation="sigmoid")
    assert (model.classes, model.activation) == (("roof", "road"), "sigmoid")
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(probabilities(model(images), "sigmoid"), torch.sigmoid(images[:, :2]))


def test_exclusive_classes_share_one() -> None:
    model = says(lambda x: x, "ground", "roof", "road")
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    chance = probabilities(model(images), model.activation)
    by_hand = images.exp() / images.exp().sum(dim=1, keepdim=True)
    assert (chance - by_hand).abs().max() < 1e-14


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_seen(broken: float) -> None:
    values = torch.randn(2, 3, 8, 8)
    assert all_finite(values)
    values[1, 2, 3, 4] = broken
    assert not all_finite(values)
    values[0, 0, 0, 0] = -broken  # their sum is NaN
    assert not all_finite(values)


def test_a_sum_that_overflows_is_looked_into() -> None:
    assert all_finite(torch.full((8, 8), 3e38))


def test_normalisation_is_inside_and_neutral_is_its_zero() -> None:
    model = says(lambda x: x, "a", "b", "c", mean=MEAN, std=STD)
    images = torch.rand(2, 3, 4, 4)
    for band in range(3):
        expected = (images[:, band] - MEAN[band]) / STD[band]
        assert (model(images)[:, band] - expected).abs().max() < 1e-6
    assert model.neutral.shape == (3, 1, 1)
    assert torch.equal(model(model.neutral.expand(1, 3, 4, 4)), torch.zeros(1, 3, 4, 4))
    plain = says(lambda x: x, "a", "b", "c")
    assert torch.equal(plain(images), images)
    assert plain.neutral.shape == (1, 1, 1)


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
def test_low_resolution_logits_are_resized_to_the_image(size: tuple[int, int]) -> None:
    model = says(lambda x: nn.functional.avg_pool2d(x[:, :2], 4), "a", "b")
    images = torch.rand(1, 3, *size)
    pooled = nn.functional.avg_pool2d(images[:, :2], 4)
    expected = nn.functional.interpolate(pooled, size=size, mode="bilinear", align_corners=False)
    assert torch.equal(model(images), expected)
    one = says(lambda x: nn.functional.avg_pool2d(x[:, :1], 4))(images)
    assert torch.equal(one[:, 1], expected[:, 0])
    assert not one[:, 0].any()


@pytest.mark.parametrize(
    ("answer", "pick"),
    [
        (lambda x: {"a": x[:, :2], "b": x[:, 1:]}, lambda result: result["a"]),
        (lambda x: (x, [x, x[:, :2]]), lambda result: result[1][1]),
    ],
)
def test_output_picks_the_logits(answer: Any, pick: Any) -> None:
    images = torch.rand(1, 3, 4, 4)
    assert torch.equal(says(answer, "a", "b", output=pick)(images), images[:, :2])
    with pytest.raises(ModelError, match="output="):
        says(answer, "a", "b")(images)


@pytest.mark.parametrize(
    ("answer", "structure"),
    [
        (lambda x: {"out": x, "aux": [x[0]]}, "{'out': a tensor (1, 3, 4, 4), 'aux': (a tensor (3"),
        (lambda x: (x[:, :1], "text", None), "(a tensor (1, 1, 4, 4), a str, a NoneType)"),
        (lambda x: x, "a tensor (1, 3, 4, 4)"),
        (lambda x: x[:, 0], "a tensor (1, 4, 4)"),
    ],
)
def test_errors_print_the_structure_found(answer: Any, structure: str) -> None:
    with pytest.raises(ModelError) as got:
        says(answer, "ground", "roof")(torch.rand(1, 3, 4, 4))
    assert structure in got.value.found
    assert "[N, 2, h, w] for classes ground, roof" in got.value.expected


# --- what does not fit ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"classes": []}, "classes []"),
        ({"classes": ["a", "a"]}, "distinct"),
        ({"classes": "road"}, "a list"),
        ({"classes": ["a"], "activation": "tanh"}, "tanh"),
        ({"classes": ["a"], "mean": [0.5]}, "both"),
        ({"classes": ["a"], "std": [0.5]}, "both"),
        ({"classes": ["a"], "mean": [0.5], "std": [0.5, 0.5]}, "one value per band"),
        ({"classes": ["a"], "mean": [0.5], "std": [0.0]}, "positive"),
        ({"classes": ["a"], "mean": [0.5], "std": [float("nan")]}, "positive"),
    ],
)
def test_settings_that_do_not_fit(how: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelError) as got:
        SegmentationModel(nn.Identity(), **how)
    assert word in str(got.value)


def test_wrong_bands_are_named(model: SegmentationModel) -> None:
    with pytest.raises(ModelError, match="images with 4 bands; expected 3"):
        model(torch.rand(1, 4, 16, 16, dtype=torch.float64))
    unknown = SegmentationModel(ToyNet(), classes=["roof"])  # no mean: the network itself objects
    with pytest.raises(ModelError, match="images with 4 bands"):
        unknown(torch.rand(1, 4, 16, 16))
    with pytest.raises(ModelError, match="add the batch"):
        model(torch.rand(3, 16, 16, dtype=torch.float64))


def test_sizes_that_the_network_cannot_take_name_the_padding() -> None:
    net = smp.Linknet("resnet18", encoder_weights=None, classes=1)
    model = SegmentationModel(net, classes=["roof"]).eval()
    with pytest.raises(ModelError) as got:
        model(torch.rand(1, 3, 60, 100))
    assert got.value.found == "images of 60 x 100 pixels"
    assert "32" in got.value.expected
    assert got.value.fix.startswith("pad by 4 px at the bottom and 28 px at the right")
    with pytest.raises(ModelError, match="pad by 0 px at the bottom and 30 px at the right"):
        model.layers((64, 34))


def test_skip_connections_of_other_sizes_name_the_padding(model: SegmentationModel) -> None:
    with pytest.raises(ModelError, match="pad by 14 px at the bottom and 16 px at the right"):
        model(toy_images(side=20)[:, :, :18, :16])


@pytest.mark.parametrize("error", [RuntimeError, TypeError, ValueError, KeyError, AssertionError])
def test_other_errors_of_the_network_say_what_it_was_given(error: type[Exception]) -> None:
    def fail(images: Tensor) -> Tensor:
        raise error("divisible by nothing")

    with pytest.raises(ModelError) as got:
        says(fail)(torch.rand(1, 3, 32, 64))  # no padding would help
    assert f"{error.__name__}: " in got.value.found
    assert "divisible by nothing" in got.value.found
    assert "float32 [1, 3, 32, 64]" in got.value.found
    assert isinstance(got.value.__cause__, error)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError, KeyboardInterrupt])
def test_lack_of_memory_and_a_stop_are_no_faults_of_the_network(error: Any) -> None:
    def fail(images: Tensor) -> Tensor:
        raise error("on purpose")

    with pytest.raises(error, match="on purpose"):
        says(fail)(torch.rand(1, 3, 32, 64))


# --- names ----------------------------------------------------------------------------------------
def test_class_index_by_name_and_number() -> None:
    model = says(lambda x: x, "ground", "roof", "road")
    assert [model.class_index(name) for name in ("ground", "roof", "road")] == [0, 1, 2]
    assert [model.class_index(number) for number in (0, 1, 2, "0", "2")] == [0, 1, 2, 0, 2]
    assert says(lambda x: x).class_index("roof") == 1
    named = says(lambda x: x, "1", "0")
    assert (named.class_index("0"), named.class_index(0)) == (1, 0)  # names go first


@pytest.mark.parametrize("name", ["roofs", "Roof", 3, -1, "3", "-1", "", "²"])
def test_unknown_classes(name: Any) -> None:
    with pytest.raises(UnknownNameError) as got:
        says(lambda x: x, "ground", "roof", "road").class_index(name)
    assert got.value.expected == "one of ground, roof, road"
    if str(name).lower().startswith("roof"):
        assert got.value.fix.startswith("did you mean roof")


# --- layers ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def unet() -> SegmentationModel:
    torch.manual_seed(0)
    return SegmentationModel(smp.Unet(**CONFIG), classes=["roof"], mean=MEAN, std=STD).eval()


def test_layers_of_a_unet(unet: SegmentationModel) -> None:
    found = [(x.alias, x.path, x.stride, x.channels, x.size) for x in unet.layers((64, 96))]
    assert found == [
        ("encoder:1", "encoder.relu", 2, 64, (32, 48)),
        ("encoder:2", "encoder.layer1", 4, 64, (16, 24)),
        ("encoder:3", "encoder.layer2", 8, 128, (8, 12)),
        ("encoder:4", "encoder.layer3", 16, 256, (4, 6)),
        ("encoder:5", "encoder.layer4", 32, 512, (2, 3)),
        ("decoder:1", "decoder.blocks.0", 16, 16, (4, 6)),
        ("decoder:2", "decoder.blocks.1", 8, 8, (8, 12)),
        ("decoder:3", "decoder.blocks.2", 4, 8, (16, 24)),
        ("decoder:4", "decoder.blocks.3", 2, 8, (32, 48)),
        ("decoder:5", "decoder.blocks.4", 1, 8, (64, 96)),
    ]
    wide = unet.layers((96, 64))
    assert [x.size for x in wide] == [(w, h) for *_, (h, w) in found]
    assert [x.stride for x in wide] == [stride for _, _, stride, _, _ in found]


def test_layers_leave_the_network_as_it_was(unet: SegmentationModel) -> None:
    unet.net.train()
    unet.net.decoder.eval()  # type: ignore[union-attr]
    modes = {name: module.training for name, module in unet.named_modules()}
    state = {name: value.clone() for name, value in unet.state_dict().items()}
    unet.layers(64)
    assert {name: module.training for name, module in unet.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in unet.state_dict().items())
    assert not any(module._forward_hooks for module in unet.modules())
    unet.eval()


def test_layers_of_other_decoders() -> None:
    torch.manual_seed(0)
    for name in ("FPN", "Linknet", "DeepLabV3Plus"):
        net = getattr(smp, name)("resnet18", encoder_weights=None, classes=2)
        model = SegmentationModel(net, classes=["ground", "roof"])
        layers = {layer.alias: layer for layer in model.layers(64)}
        modules = dict(net.named_modules())
        assert all(layer.path in modules for layer in layers.values()), name
        assert "decoder:1" in layers, name
        assert model.resolve_layer("decoder:-1", 64) in modules, name


def test_layers_of_a_network_for_other_bands() -> None:
    """Without a mean nobody says how many bands there are: the first convolution does."""
    model = SegmentationModel(ToyNet(bands=5), classes=["roof"])
    assert model.resolve_layer("decoder:1", 16) == "decoder.blocks.0"
    assert model.layers(16) == model.layers(16, bands=5)


def test_resolve_layer(unet: SegmentationModel) -> None:
    names = {
        "decoder:1": "decoder.blocks.0",
        "decoder:5": "decoder.blocks.4",
        "decoder:-1": "decoder.blocks.4",
        "decoder:-5": "decoder.blocks.0",
        "encoder:1": "encoder.relu",
        "encoder:-1": "encoder.layer4",
        "decoder.blocks.2.conv1": "decoder.blocks.2.conv1",
        "segmentation_head": "segmentation_head",
    }
    assert {name: unet.resolve_layer(name, 64) for name in names} == names


def test_all_aliases_of_a_network_are_found_by_one_forward_a_size() -> None:
    torch.manual_seed(0)
    model = SegmentationModel(smp.Unet(**CONFIG), classes=["roof"], mean=MEAN, std=STD).eval()
    sizes: list[tuple[int, ...]] = []
    model.net.register_forward_pre_hook(lambda _net, given: sizes.append(tuple(given[0].shape)))
    assert model.resolve_layer("decoder.blocks.1", (64, 96)) == "decoder.blocks.1"
    assert sizes == []
    found = model.layers((64, 96), bands=3)
    names = [layer.alias for layer in found] + ["decoder:-1", "bottleneck"]
    assert [model.resolve_layer(name, (64, 96)) for name in names][:-2] == [x.path for x in found]
    # the first size, and once another one that tells which axes follow height and width
    assert sizes == [(1, 3, 64, 96), (1, 3, 96, 32)]
    found.clear()  # the caller's own list
    assert model.layers((64, 96))[0].size == (32, 48)
    assert model.layers((96, 64))[0].size == (48, 32)
    assert sizes[2:] == [(1, 3, 96, 64)]
    # another module in its place: what was known of the network is known no more
    blocks: Any = model.net.get_submodule("decoder.blocks")
    blocks[4] = copy.deepcopy(blocks[4])
    assert model.layers((64, 96))[-1].path == "decoder.blocks.4"
    assert len(sizes) == 5
    assert copy.deepcopy(model).layers((64, 96)) == model.layers((64, 96))
    assert len(sizes) == 5  # a copy has modules of its own, and knows them


def test_layers_of_many_sizes_are_not_kept_for_ever() -> None:
    model = SegmentationModel(ToyNet(), classes=["roof"])
    for side in range(8, 8 + 4 * (SIZES + 3), 4):
        model.layers((8, side))
    assert len(model._layers_seen) <= SIZES


@pytest.mark.parametrize(
    "name",
    ["decoder:0", "decoder:6", "decoder:-6", "decoder:--1", "decoder:", "decoder", "", "deco:1"],
)
def test_unknown_layers(unet: SegmentationModel, name: str) -> None:
    if name == "decoder":  # a module, but asked for as a path: the capture says that it is no map
        assert unet.resolve_layer(name, 64) == name
        return
    with pytest.raises(UnknownNameError) as got:
        unet.resolve_layer(name, 64)
    near = "encoder:1, encoder.relu" if not name else "decoder:1, "
    assert near in got.value.expected
    assert got.value.expected.endswith("or of 16 more that segproof layers --model SPEC lists")
    if name == "decoder:6":
        assert "decoder:" in got.value.fix


def test_evaluating_gives_every_mode_back_also_after_an_error(unet: SegmentationModel) -> None:
    unet.net.decoder.train()  # type: ignore[union-attr]
    before = [module.training for module in unet.modules()]
    assert len(set(before)) == 2

    def inside() -> None:
        with evaluating(unet):
            assert not any(module.training for module in unet.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inside()
    assert [module.training for module in unet.modules()] == before
    unet.eval()


# --- folders of weights ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "unet"
    save_model(smp.Unet(**CONFIG), folder, classes=["roof"], config=CONFIG, mean=MEAN, std=STD)
    return folder


@pytest.fixture
def saved(template: Path, tmp_path: Path) -> Path:
    """A folder of its own for each test, with random weights."""
    return Path(shutil.copytree(template, tmp_path / "unet"))


@pytest.fixture
def dead_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Nothing can be reached; returns the attempts."""
    attempts: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        attempts.append(arguments[:2])
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_save_and_load_are_a_round_trip(saved: Path, dead_network: list[Any]) -> None:
    torch.manual_seed(0)
    net = smp.Unet(**CONFIG).eval()
    model = load_model(f"smp:{saved}")
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json",
        "model.safetensors",
        "segproof.json",
    ]
    assert (model.classes, model.activation) == (("background", "roof"), "softmax")
    assert not any(module.training for module in model.modules())
    images = torch.rand(1, 3, 32, 64)
    plain = SegmentationModel(net, classes=["roof"], mean=MEAN, std=STD)
    with torch.inference_mode():
        found, expected = model(images), plain(images)
    assert expected[:, 1].std() > 0.01
    assert (found - expected).abs().max() < 1e-5
    assert model.fingerprint() == plain.fingerprint()
    assert dead_network == []


def test_the_folder_that_smp_writes(tmp_path: Path, dead_network: list[Any]) -> None:
    torch.manual_seed(3)
    net = smp.Unet(**CONFIG | {"classes": 3, "in_channels": 4}).eval()
    net.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ModelError, match=r"no class names for .*theirs; expected segproof.json"):
        load_model(f"smp:{tmp_path / 'theirs'}")
    flags: dict[str, Any] = {"classes": ["ground", "roof", "road"], "mean": [0.5] * 4}
    model = load_model(f"smp:{tmp_path / 'theirs'}", **flags, std=[0.25] * 4, activation="sigmoid")
    assert (model.classes, model.activation) == (("ground", "roof", "road"), "sigmoid")
    images = torch.rand(1, 4, 32, 32)
    with torch.inference_mode():
        assert (model(images) - net((images - 0.5) / 0.25)).abs().max() < 1e-5
    # and without any normalisation
    assert load_model(f"smp:{tmp_path / 'theirs'}", classes=flags["classes"]).layers(32)
    assert dead_network == []


def test_flags_win_over_the_file(saved: Path) -> None:
    model = load_model(f"smp:{saved}", classes=["building"], mean=[0.0] * 3, std=[1.0] * 3)
    assert model.classes == ("background", "building")
    assert not model.neutral.any()
    assert torch.equal(load_model(f"smp:{saved}").neutral.flatten(), torch.tensor(MEAN))


def test_other_architectures_and_encoders_of_timm(tmp_path: Path, dead_network: list[Any]) -> None:
    torch.manual_seed(1)
    config = {"encoder_name": "tu-mobilenetv3_small_050", "encoder_weights": None, "classes": 2}
    net = smp.FPN(**config).eval()
    folder = tmp_path / "fpn"
    how: dict[str, Any] = {"config": config, "mean": MEAN, "std": STD, "activation": "softmax"}
    save_model(net, folder, classes=["ground", "roof"], **how)
    model = load_model(f"smp:{folder}")
    images = torch.rand(1, 3, 64, 64)
    # the last and outermost module of each size, not one inside the next block
    found = [layer.path for layer in model.layers(64) if layer.alias.startswith("encoder")]
    inside = "encoder.model"
    stages = [f"{inside}.act1", *(f"{inside}.blocks.{n}" for n in (0, 1, 3, 5))]
    assert found == stages
    with torch.inference_mode():
        expected = net((images - torch.tensor(MEAN).view(3, 1, 1)) / model.std)
        assert (model(images) - expected).abs().max() < 1e-4
    assert dead_network == []


@pytest.mark.parametrize("length", [0, 4, 9, 5000, -1])
def test_cut_weights(saved: Path, length: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelError, match="that do not fit") as got:
        load_model(f"smp:{saved}")
    assert str(saved) in str(got.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ModelError, match=name) as got:
        load_model(f"smp:{saved}")
    assert "save_pretrained" in str(got.value)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no readable"):
        load_model(f"smp:{tmp_path / 'nowhere'}")


def test_pickled_weights_are_never_loaded(saved: Path, tmp_path: Path) -> None:
    """The file would create another one if anything unpickled it."""
    trap = tmp_path / "executed"
    (saved / "model.safetensors").unlink()
    code = f"cposix\nsystem\n(S'touch {trap}'\ntR.".encode()
    for name in ("pytorch_model.bin", "model.pt", "model.safetensors.bin"):
        (saved / name).write_bytes(code)
    with pytest.raises(ModelError, match="weights as safetensors"):
        load_model(f"smp:{saved}")
    (saved / "model.safetensors").write_bytes(code)
    with pytest.raises(ModelError, match="that do not fit"):
        load_model(f"smp:{saved}")
    assert not trap.exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"', "\x00"])
@pytest.mark.parametrize("name", ["config.json", "segproof.json"])
def test_files_that_are_no_json_object(saved: Path, name: str, content: str) -> None:
    (saved / name).write_text(content)
    with pytest.raises(ModelError, match=name):
        load_model(f"smp:{saved}")


@pytest.mark.parametrize("name", ["Unett", "Other", ["Unet"], "__class__"])
def test_unknown_architectures_are_never_looked_up(saved: Path, name: Any) -> None:
    rewrite(saved / "config.json", _model_class=name)
    with pytest.raises(UnknownNameError, match="architecture") as got:
        load_model(f"smp:{saved}")
    assert "Unet, UnetPlusPlus" in got.value.expected
    assert got.value.expected.endswith("or of 7 more")
    if name == "Unett":
        assert got.value.fix.startswith("did you mean Unet")


@pytest.mark.parametrize("name", ["UNet", "unet", "u-net"])
def test_architectures_are_forgiven_their_spelling(saved: Path, name: str) -> None:
    plain = load_model(f"smp:{saved}").fingerprint()
    rewrite(saved / "config.json", _model_class=name)
    assert load_model(f"smp:{saved}").fingerprint() == plain


def test_the_bottleneck_is_the_last_encoder_stage() -> None:
    model = toy_model()
    assert model.resolve_layer("bottleneck", 16) == model.resolve_layer("encoder:-1", 16)
    assert model.resolve_layer("bottleneck", 16) == "encoder.1"
    with pytest.raises(UnknownNameError, match="did you mean bottleneck"):
        model.resolve_layer("bottlenek", 16)


@pytest.mark.parametrize(
    "changes",
    [
        {"_model_class": "FPN"},
        {"encoder_name": "resnet34"},
        {"classes": 2},
        {"decoder_channels": [8, 8, 8, 8, 8]},
        {"decoder_channels": [8]},
        {"decoder_channels": "many"},
        {"encoder_depth": 9},
        {"encoder_name": "resnet_none"},
        {"encoder_name": "tu-resnet_none"},
        {"in_channels": None},
        # timm would open that file, or ask a hub
        {"checkpoint_path": "/etc/passwd"},
        {"pretrained_cfg": {"hf_hub_id": "a/b"}},
    ],
)
def test_weights_of_another_network(
    saved: Path, changes: dict[str, Any], dead_network: list[Any]
) -> None:
    rewrite(saved / "config.json", **changes)
    with pytest.raises(ModelError, match="that do not fit"):
        load_model(f"smp:{saved}")
    assert dead_network == []


@pytest.mark.parametrize(
    "name",
    ["tu-hf-hub:owner/name", "tu-hf_hub:owner/name", "tu-local-dir:/etc", "hf-hub:owner/name", 5],
)
def test_a_config_cannot_send_for_an_encoder(
    saved: Path, name: Any, dead_network: list[Any]
) -> None:
    rewrite(saved / "config.json", encoder_name=name)
    with pytest.raises(ModelError, match="the plain name of an encoder"):
        load_model(f"smp:{saved}")
    assert dead_network == []


def test_a_config_cannot_send_for_weights(saved: Path, dead_network: list[Any]) -> None:
    rewrite(saved / "config.json", encoder_weights="imagenet")
    assert load_model(f"smp:{saved}").classes == ("background", "roof")
    assert dead_network == []


def test_a_network_with_its_own_activation(saved: Path) -> None:
    rewrite(saved / "config.json", activation="sigmoid")
    with pytest.raises(ModelError, match="activation 'sigmoid' built into the network"):
        load_model(f"smp:{saved}")


def test_a_missing_or_extra_weight(saved: Path) -> None:
    path = saved / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "extra": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="that do not fit"):
        load_model(f"smp:{saved}")
    del weights["segmentation_head.0.bias"]
    save_file(weights, path)
    with pytest.raises(ModelError, match="that do not fit"):
        load_model(f"smp:{saved}")


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": "roof"},
        {"classes": 1},
        {"classes": [1]},
        {"mean": 0.5},
        {"std": ["a", "b", "c"]},
        {"mean": MEAN[:2]},
        {"activation": "tanh"},
        {"activation": 5},
        {"output": ["out"]},
        {"inputs": 3},
        {"reduce_labels": "yes"},
        {"size": "64"},
        {"size": [64, 64, 64]},
        {"size": 0},
        {"options": []},
        {"classes": ["a"] * 5000},
    ],
)
def test_settings_of_another_kind(saved: Path, changes: dict[str, Any]) -> None:
    rewrite(saved / "segproof.json", **changes)
    with pytest.raises(ModelError) as got:
        load_model(f"smp:{saved}")
    [(key, _)] = changes.items()
    assert key in got.value.found


def test_settings_may_be_null(saved: Path) -> None:
    rewrite(saved / "segproof.json", mean=None, std=None, activation=None)
    assert load_model(f"smp:{saved}").bands is None


@pytest.mark.parametrize("spec", ["", "smp:", "smp", "torch:x", "unet.pt"])
def test_unknown_schemes(spec: str) -> None:
    with pytest.raises(UnknownNameError, match="smp:DIR"):
        load_model(spec)


# --- fingerprint ----------------------------------------------------------------------------------
def test_the_fingerprint_follows_every_number_and_nothing_else() -> None:
    model = toy_model()
    first = model.fingerprint()
    assert len(first) == 64
    assert toy_model().fingerprint() == first
    model.net.to(memory_format=torch.channels_last)
    assert model.fingerprint() == first
    model.train()
    assert model.fingerprint() == first
    for name, value in model.net.state_dict().items():
        kept = value.clone()
        last = (-1,) * value.ndim
        is_real = value.is_floating_point()
        value[last] = torch.nextafter(value[last], value[last] + 1) if is_real else 7
        assert model.fingerprint() != first, name
        value.copy_(kept)
    assert model.fingerprint() == first
    model.mean[0] += 1e-6
    assert model.fingerprint() != first


def test_the_fingerprint_knows_names_and_heads() -> None:
    net = nn.Conv2d(3, 2, 1)
    how: list[dict[str, Any]] = [
        {"classes": ["a", "b"]},
        {"classes": ["b", "a"]},
        {"classes": ["a", "b"], "activation": "sigmoid"},
        {"classes": ["a", "b"], "mean": [0.0], "std": [2.0]},
        {"classes": ["a", "b"], "mean": [2.0], "std": [1.0]},
    ]
    assert len({SegmentationModel(net, **one).fingerprint() for one in how}) == len(how)


# --- real networks --------------------------------------------------------------------------------
def test_the_network_in_the_package() -> None:
    model = load_model(demo_model_spec())
    aliases = [layer.alias for layer in model.layers(64)]
    assert {"decoder:1", "decoder:2"} <= set(aliases)


def test_the_shared_network_draws_the_known_mask(shared: Path) -> None:
    """IoU of roofs on one tile, as stated beside the weights."""
    model = load_model(f"smp:{shared / 'models' / 'roofs-unet-lite0'}")
    data = FolderDataset(shared / "whu" / "test")
    sample = data[data.ids.index("2_566")]
    with torch.inference_mode():
        chance = probabilities(model(sample["image"][None]), model.activation)
    drawn, truth = chance[0, model.class_index("building")] > 0.5, sample["mask"] == 1
    iou = (drawn & truth).sum() / (drawn | truth).sum()
    assert abs(iou.item() - 0.786) <= 0.003
