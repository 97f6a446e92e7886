"""Folders of transformers: every family, its processor's units and labels, and no hub asked."""

from __future__ import annotations

import contextlib
import importlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from families import CLASSES, FAMILIES, HF_CLASSES, of_hf
from segproof.errors import ModelError, UnknownNameError
from segproof.models.contract import SegmentationModel
from segproof.models.loaders.hf_config import plain_config, preprocessing
from segproof.models.loaders.hugging_face import HF, load_hugging_face
from segproof.models.loaders.load import as_model, load_model

hf: Any = pytest.importorskip("transformers", reason="the extra hf is not installed")
ONE_INPUT = [name for name in HF_CLASSES if name != "OneFormer"]


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every address that anything asked for; none may be."""
    seen: list[Any] = []

    def refuse(*given: Any, **_: Any) -> None:
        seen.append(given)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield seen
    assert seen == []


def folder_of(name: str, folder: Path, kind: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    net: Any = of_hf(name).eval().to(kind)
    net.save_pretrained(folder)
    return net


def rewrite(path: Path, **changes: Any) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    written |= changes
    path.write_text(json.dumps(written))
    return written


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ONE_INPUT)
def test_every_family_loads_bit_for_bit(name: str, kind: torch.dtype, tmp_path: Path) -> None:
    net = folder_of(name, tmp_path, kind)
    model = load_model(tmp_path)
    own, got = net.state_dict(), model.net.state_dict()
    assert own.keys() == got.keys()
    assert [key for key in own if got[key].dtype != kind and got[key].is_floating_point()] == []
    assert [key for key in own if not torch.equal(own[key], got[key])] == []
    assert len(model.classes) == 3
    if kind is torch.float32:
        image = torch.rand(1, 3, *FAMILIES[f"hf-{name}"].sizes[-1])
        plain = SegmentationModel(net, classes=CLASSES)
        with torch.inference_mode():
            assert (model(image) - plain((image - model.mean) / model.std)).abs().max() < 1e-5


def test_every_class_that_can_be_loaded_is_one_of_a_family() -> None:
    assert set(HF) == set(HF_CLASSES.values())
    known = set(
        vars(hf.models.auto.modeling_auto)["MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES"].values()
    )
    assert known <= set(HF)


def test_a_second_input_is_asked_for(tmp_path: Path) -> None:
    folder_of("OneFormer", tmp_path)
    with pytest.raises(ModelError, match="reads a task beside the picture") as got:
        load_model(tmp_path)
    assert "extra=" in got.value.fix
    net, _ = load_hugging_face(tmp_path)
    assert type(net).__name__ == "OneFormerForUniversalSegmentation"


def test_networks_of_one_size_say_it(tmp_path: Path) -> None:
    for name in ("Data2VecVision", "Eomt", "EomtDinov3"):
        folder_of(name, tmp_path / name)
        assert load_hugging_face(tmp_path / name)[1]["size"] == 64
    folder_of("Beit", tmp_path)
    assert "size" not in load_hugging_face(tmp_path)[1]


def test_weights_in_parts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net: Any = of_hf("Segformer").eval()
    net.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    got = load_model(tmp_path).net.state_dict()
    assert all(torch.equal(value, got[key]) for key, value in net.state_dict().items())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ModelError, match="plain file names"):
        load_model(tmp_path)


# --- the processor --------------------------------------------------------------------------------
UNITS: list[dict[str, Any]] = [
    {},
    {"do_rescale": True, "rescale_factor": 1 / 255, "image_mean": [0.1, 0.2, 0.3]},
    {"do_rescale": False, "image_mean": [123.7, 116.3, 103.5], "image_std": [58.4, 57.1, 57.4]},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    {"rescale_factor": 1 / 127.5, "do_normalize": False},
    {"do_normalize": False},
]


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Segformer", "SegformerImageProcessor"),
        ("Beit", "BeitImageProcessor"),
        ("DPT", "DPTImageProcessor"),
        ("MobileNetV2", "MobileNetV2ImageProcessor"),
        ("MobileViT", "MobileViTImageProcessor"),
        ("Eomt", "EomtImageProcessor"),
    ],
)
def test_the_network_sees_what_the_processor_makes(
    name: str, kind: str, units: dict[str, Any], tmp_path: Path
) -> None:
    """Against the processor itself, on a picture that it need not resize."""
    net = folder_of(name, tmp_path)
    whole = {"do_resize": False, "do_center_crop": False, "do_pad": False}
    processor = getattr(importlib.import_module("transformers"), kind)(**whole, **units)
    processor.save_pretrained(tmp_path)
    pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    seen = processor(pixels, return_tensors="pt", do_resize=False)["pixel_values"].float()
    model = load_model(tmp_path)
    with torch.inference_mode():
        expected = first_answer(net, lambda: net(seen))
        turned = first_answer(net, lambda: net(seen.flip(1)))
        found = first_answer(model.net, lambda: model((pixels / 255)[None]))
    largest = expected.abs().max()
    assert (turned - expected).abs().max() > 1e-2 * largest  # the order of the bands matters
    assert (found - expected).abs().max() < 1e-5 * largest


def first_answer(net: nn.Module, run: Callable[[], Any]) -> Tensor:
    """What the first convolution makes of the picture, which later layers may hardly show."""
    answers: list[Tensor] = []
    first = next(part for part in net.modules() if isinstance(part, nn.Conv2d))
    with first.register_forward_hook(lambda _m, _i, answer: answers.append(answer)):
        run()
    return answers[0]


def test_units_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    rewrite(path, do_rescale=False, image_mean=[127.5] * 3, image_std=[51.0] * 3)
    found = preprocessing(tmp_path, "segformer")
    assert found == {"mean": pytest.approx([0.5] * 3), "std": pytest.approx([0.2] * 3)}
    rewrite(path, do_normalize=False)
    found = preprocessing(tmp_path, "segformer")
    assert found == {"mean": [0.0] * 3, "std": pytest.approx([1 / 255] * 3)}
    rewrite(path, do_rescale=True)
    assert preprocessing(tmp_path, "segformer") == {"mean": None, "std": None}
    for changes in ({"image_mean": "high"}, {"image_std": [1.0]}, {"rescale_factor": "x"}):
        path.write_text(json.dumps({"do_normalize": True, **changes}))
        with pytest.raises(ModelError, match="image_mean"):
            preprocessing(tmp_path, "segformer")


@pytest.mark.parametrize(
    ("changes", "reduced"),
    [
        ({"do_reduce_labels": True}, True),
        ({"reduce_labels": True}, True),
        ({"do_reduce_labels": False}, False),
        ({}, False),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_reduced_labels_are_handed_on(
    changes: dict[str, Any], reduced: bool, nested: bool, tmp_path: Path
) -> None:
    folder_of("Segformer", tmp_path)
    if nested:
        rewrite(tmp_path / "processor_config.json", image_processor=changes)
    else:
        rewrite(tmp_path / "preprocessor_config.json", **changes)
    _, settings = load_hugging_face(tmp_path)
    assert settings.get("reduce_labels", False) is reduced
    load_model(tmp_path)


def test_arguments_and_segproof_json_win_over_the_processor(tmp_path: Path) -> None:
    folder_of("Segformer", tmp_path)
    rewrite(tmp_path / "preprocessor_config.json", image_mean=[0.1] * 3, image_std=[0.5] * 3)
    rewrite(tmp_path / "segproof.json", mean=[0.2] * 3)
    assert load_model(tmp_path).neutral.flatten().tolist() == pytest.approx([0.2] * 3)
    given = load_model(tmp_path, mean=[0.3] * 3, std=[1.0] * 3)
    assert given.neutral.flatten().tolist() == pytest.approx([0.3] * 3)


# --- no hub, no other file ------------------------------------------------------------------------
def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values that are text, or nothing, in a config."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list):
            yield from places(item, (*here, key))
        elif isinstance(item, str) or item is None:
            yield (*here, key)


def put(config: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        config = config[key]
    config[place[-1]] = value


ADDED = [
    ("backbone",), ("_name_or_path",), ("name_or_path",), ("transformers_weights",),
    ("_attn_implementation",), ("attn_implementation",), ("quantization_config",), ("auto_map",),
    ("backbone_config", "backbone"), ("backbone_config", "_name_or_path"), ("dtype",),
    ("use_timm_backbone",), ("use_pretrained_backbone",), ("base_model_name_or_path",),
    ("text_config",), ("encoder_config",), ("model_type",), ("backbone_config", "model_type"),
]  # fmt: skip


@pytest.mark.parametrize("bad", ["hf-hub:x/y", "x/y", "https://x", "/etc", "../x", "timm/resnet18"])
@pytest.mark.parametrize("name", ["Segformer", "UperNet", "DPT", "Mask2Former"])
def test_no_text_of_a_config_leads_anywhere(
    name: str, bad: str, tmp_path: Path, asked: list[Any]
) -> None:
    """A place in any value: refused, or without effect; sockets are asked for nothing."""
    folder_of(name, tmp_path)
    path = tmp_path / "config.json"
    plain = json.loads(path.read_text())
    for place in [*places(plain), *ADDED]:
        config = json.loads(json.dumps(plain))
        if len(place) == 2 and not isinstance(config.get(place[0]), dict):
            config[place[0]] = {}
        put(config, place, bad)
        path.write_text(json.dumps(config))
        with contextlib.suppress(ModelError, UnknownNameError):
            load_model(tmp_path)
        assert asked == [], place


@pytest.mark.parametrize("inside", ["dpt", "upernet", "mask2former", "detr", None])
def test_no_backbone_inside_a_backbone_leads_anywhere(inside: Any, tmp_path: Path) -> None:
    """A plain name is enough for transformers to ask a hub, at any depth."""
    folder_of("UperNet", tmp_path)
    nested = {"backbone": "own-resnet", "backbone_config": None, "model_type": inside}
    for config in (nested, {"model_type": "upernet", "backbone_config": nested}):
        rewrite(tmp_path / "config.json", backbone_config=config)
        with pytest.raises(ModelError, match="ask a hub"):
            load_model(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"backbone": "resnet18", "use_timm_backbone": True, "use_pretrained_backbone": True},
        {"backbone": "resnet18", "use_pretrained_backbone": True},
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18"}},
    ],
)
def test_a_plain_backbone_of_timm_is_built_here(
    config: dict[str, Any], tmp_path: Path, asked: list[Any]
) -> None:
    made = plain_config({"model_type": "upernet", **config}, tmp_path)
    assert made["backbone_config"]["backbone"] == "resnet18"
    assert made["backbone_config"]["model_type"] == "timm_backbone"
    built = hf.UperNetConfig.from_dict(made)
    assert type(built.backbone_config).__name__ == "TimmBackboneConfig"
    with pytest.raises(ModelError, match="ask a hub"):
        plain_config({"model_type": "upernet", "backbone": "own-resnet"}, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModel": "own.py--Own"}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"depths": [10**9, 1, 1, 1]},
        {"num_encoder_blocks": 10**9},
        {"hidden_sizes": [10**6] * 4},
        {"decoder_hidden_size": 10**6},
        {"id2label": {str(n): "a" for n in range(5000)}},
        {"id2label": {"a": "b"}},
        {"id2label": "all"},
        {"hidden_sizes": "wide"},
        {"num_channels": 1e400},
        {"depths": [[[[[[[[[[[1]]]]]]]]]]]},
    ],
)
def test_configs_that_ask_for_too_much(changes: dict[str, Any], tmp_path: Path) -> None:
    folder_of("Segformer", tmp_path)
    rewrite(tmp_path / "config.json", **changes)
    with pytest.raises(ModelError):
        load_model(tmp_path)


def test_all_names_without_a_value_are_shown(tmp_path: Path) -> None:
    folder_of("Segformer", tmp_path)
    path = tmp_path / "model.safetensors"
    weights: dict[str, Tensor] = load_file(path)
    gone = sorted(weights)[:7]
    save_file({k: v for k, v in weights.items() if k not in gone}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="7 names without a value that fits") as got:
        load_model(tmp_path)
    assert got.value.fix.count("\n  ") == 7


def test_names_of_earlier_versions_are_still_read(tmp_path: Path) -> None:
    """SegFormers on the hub carry the names of transformers 4."""
    net = folder_of("Segformer", tmp_path)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    assert any(key.startswith("segformer.encoder.") for key in stored)  # the names of version 4
    assert not any(key.startswith("segformer.encoder.") for key in net.state_dict())
    got = load_model(tmp_path).net.state_dict()
    assert all(torch.equal(value, got[key]) for key, value in net.state_dict().items())


# --- modules --------------------------------------------------------------------------------------
def test_a_module_of_transformers_names_its_classes() -> None:
    net = of_hf("Segformer")
    model = as_model(net)
    assert model.classes == CLASSES
    assert model.net is net
    assert not net.training
    assert as_model(net, classes=["a", "b", "c"]).classes == ("a", "b", "c")
