"""State dicts in every container, prefix and kind of number that trainers write; averaged ones."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from families import of_hf, tv
from segproof.errors import ModelError, UnknownNameError
from segproof.models.loaders.checkpoints import LEGACY
from segproof.models.loaders.load import as_model, load_model, save_model
from segproof.models.loaders.smp_folder import ARCHITECTURES

SMALL: dict[str, Any] = {"decoder_channels": [16, 8, 8, 4, 4]}
SPEC = "smp:Unet:resnet18"


def unet(classes: int = 3, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    net: nn.Module = smp.Unet(
        "resnet18", encoder_weights=None, classes=classes, **{**SMALL, **options}
    ).eval()
    return net


def state(seed: int = 0) -> dict[str, Tensor]:
    return dict(unet(seed=seed).state_dict())


def before(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


def write(path: Path, found: Any, **how: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in found.items()}, path)
    else:
        torch.save(found, path, **how)
    return path


def same(model: Any, weights: Mapping[str, Tensor]) -> bool:
    own = model.net.state_dict()
    return own.keys() == weights.keys() and all(torch.equal(own[k], weights[k]) for k in weights)


# --- files ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_a_state_dict_alone(suffix: str, tmp_path: Path) -> None:
    """Classes and decoder widths are those that the weights show; logits are the network's."""
    net = unet(5)
    path = write(tmp_path / f"net{suffix}", net.state_dict())
    model = load_model(f"{SPEC}:{path}", mean=[0.5] * 3, std=[0.25] * 3)
    assert model.classes == ("class_0", "class_1", "class_2", "class_3", "class_4")
    assert model.activation == "softmax"
    assert not model.training
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        assert (model(images) - net((images - 0.5) / 0.25)).abs().max() < 1e-4


def test_a_file_of_before_torch_1_6(tmp_path: Path) -> None:
    path = write(tmp_path / "net.pth", state(), _use_new_zipfile_serialization=False)
    assert path.read_bytes().startswith(LEGACY)
    assert same(load_model(f"{SPEC}:{path}"), state())


CONTAINERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda s: s,
    "ordered": lambda s: OrderedDict(s),
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "best": torch.tensor(0.5)},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}},
    "net": lambda s: {"net": s, "acc": 0.9},
    "network_weights": lambda s: {"network_weights": s, "init_args": {}, "trainer_name": "t"},
    "own key": lambda s: {"weights_of_the_best_epoch": s},
    "two levels": lambda s: {"checkpoint": {"model": s}, "args": {"lr": 0.1}},
    "module.": lambda s: before("module.", s),
    "_orig_mod.": lambda s: before("_orig_mod.", s),
    "model.": lambda s: {"state_dict": before("model.", s)},
    "net.": lambda s: before("net.", s),
    "module._orig_mod.": lambda s: before("module._orig_mod.", s),
    "_orig_mod.module.": lambda s: before("_orig_mod.module.", s),
    "model._orig_mod.": lambda s: {"state_dict": before("model._orig_mod.", s)},
    "module.model.": lambda s: {"state_dict": before("module.model.", s)},
    "_forward_module.model.": lambda s: {"state_dict": before("_forward_module.model.", s)},
    "own prefix": lambda s: before("task.segmenter.", s),
    "encoder compiled": lambda s: {k.replace("encoder.", "encoder._orig_mod."): s[k] for k in s},
    "with a loss": lambda s: {**before("model.", s), "criterion.weight": torch.ones(3)},
    "AveragedModel": lambda s: {**before("module.", s), "n_averaged": torch.tensor(7)},
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_and_prefixes(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "net.pth", CONTAINERS[kind](state()))
    assert same(load_model(f"{SPEC}:{path}"), state())


def test_what_stands_beside_the_weights_is_named(tmp_path: Path) -> None:
    beside = {"image_mean": torch.ones(3), "projector.weight": torch.ones(2)}
    path = write(tmp_path / "net.pth", {**before("model.", state()), **beside})
    with pytest.warns(UserWarning, match=r"also holds image_mean, projector\.weight"):
        assert same(load_model(f"{SPEC}:{path}"), state())


def test_counters_of_training_may_be_missing(tmp_path: Path) -> None:
    """Files of before torch 0.4.1 have no num_batches_tracked; no number depends on it."""
    net = unet()
    kept = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    model = load_model(f"{SPEC}:{write(tmp_path / 'net.pth', kept)}")
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert (model(images) - net(images)).abs().max() < 1e-4


# --- options that the weights show ----------------------------------------------------------------
OPTIONS: dict[str, dict[str, Any]] = {
    "Unet": {"decoder_channels": [16, 8, 8, 4], "encoder_depth": 4},
    "UnetPlusPlus": {"decoder_channels": [16, 8, 8, 4, 4]},
    "MAnet": {"decoder_channels": [16, 8, 8, 4, 4], "decoder_pab_channels": 16},
    "Linknet": {},
    "FPN": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    "PSPNet": {"psp_out_channels": 32},
    "PAN": {"decoder_channels": 16},
    "DeepLabV3": {"decoder_channels": 16},
    "DeepLabV3Plus": {"decoder_channels": 16},
    "UPerNet": {"decoder_channels": 16},
    "Segformer": {"decoder_segmentation_channels": 16},
    "DPT": {"decoder_fusion_channels": 16, "decoder_intermediate_channels": [8, 8, 16, 16]},
}


@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_options_are_read_off_the_weights(name: str, bands: int, tmp_path: Path) -> None:
    encoder = "tu-vit_tiny_patch16_224" if name == "DPT" else "resnet18"
    net = ARCHITECTURES[name](
        encoder_name=encoder, encoder_weights=None, in_channels=bands, classes=2, **OPTIONS[name]
    ).eval()
    path = write(tmp_path / "net.pth", net.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those that say what the weights do not show
        model = load_model(f"smp:{name}:{encoder}:{path}")
    side = 224 if name == "DPT" else 128
    images = torch.rand(1, bands, side, side)
    with torch.inference_mode():
        expected = net(images)
        assert (model(images) - expected).abs().max() < 1e-4 * (1 + expected.abs().max())


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("Unet", {"decoder_attention_type": "scse", "decoder_channels": [32, 32, 16, 16, 16]}),
        ("Unet", {"decoder_use_norm": False, **SMALL}),
        ("FPN", {"decoder_merge_policy": "cat"}),
    ],
)
def test_more_options_that_weights_show(arch: str, options: dict[str, Any], tmp_path: Path) -> None:
    net = ARCHITECTURES[arch](encoder_name="resnet18", encoder_weights=None, **options).eval()
    path = write(tmp_path / "net.pth", net.state_dict())
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        found = load_model(f"smp:{arch}:resnet18:{path}")(images)[:, 1:]
        assert (found - net(images)).abs().max() < 1e-4


@pytest.mark.parametrize("encoder", ["tu-resnet18", "mobilenet_v2", "mit_b0", "tu-pvt_v2_b0"])
def test_other_encoders_with_five_bands(encoder: str, tmp_path: Path) -> None:
    bands = 3 if encoder == "mit_b0" else 5  # smp's mit takes three alone
    net = smp.FPN(encoder, encoder_weights=None, in_channels=bands, classes=1).eval()
    path = write(tmp_path / "net.pth", net.state_dict())
    model = load_model(f"smp:fpn:{encoder}:{path}")
    assert model.classes == ("background", "object")
    images = torch.rand(1, bands, 64, 64)
    with torch.inference_mode():
        assert (model(images)[:, 1:] - net(images)).abs().max() < 1e-4


def test_what_no_weight_shows_is_said_and_can_be_stated(tmp_path: Path) -> None:
    """Dilation is in no weight: right logits need the stride that the network was trained with."""
    net = smp.DeepLabV3(
        "resnet18", encoder_weights=None, classes=2, encoder_output_stride=16
    ).eval()
    path = write(tmp_path / "net.pth", net.state_dict())
    images = torch.rand(1, 3, 64, 64)
    with pytest.warns(UserWarning, match="do not show encoder_output_stride 8"):
        other = load_model(f"smp:DeepLabV3:resnet18:{path}")
    stated = {"encoder_output_stride": 16, "decoder_atrous_rates": [12, 24, 36]}
    (tmp_path / "segproof.json").write_text(json.dumps({"options": stated}))
    model = load_model(f"smp:DeepLabV3:resnet18:{path}")
    with torch.inference_mode():
        expected = net(images)
        assert (model(images) - expected).abs().max() < 1e-4
        assert (other(images) - expected).abs().max() > 1e-2
    (tmp_path / "segproof.json").write_text(json.dumps({"options": {"pretrained": "x"}}))
    with pytest.raises(ModelError, match="options pretrained"):
        load_model(f"smp:DeepLabV3:resnet18:{path}")


def test_names_of_earlier_versions_of_smp(tmp_path: Path) -> None:
    net = smp.DeepLabV3("resnet18", encoder_weights=None, decoder_channels=16).eval()
    earlier = {
        "decoder.aspp.": "decoder.0.",
        "decoder.conv.": "decoder.1.",
        "decoder.bn.": "decoder.2.",
    }
    old = {}
    for name, value in net.state_dict().items():
        for new, former in earlier.items():
            name = former + name.removeprefix(new) if name.startswith(new) else name
        old[name] = value
    path = write(tmp_path / "net.pth", old)
    (tmp_path / "segproof.json").write_text(
        '{"options": {"encoder_output_stride": 8, "decoder_atrous_rates": [12, 24, 36],'
        ' "decoder_channels": 16}}'
    )
    assert same(load_model(f"smp:DeepLabV3:resnet18:{path}"), net.state_dict())


# --- torchvision ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 1},
        lambda s: {"model": before("module.", s), "scaler": {"scale": torch.tensor(1.0)}},
        lambda s: before("_orig_mod.", s),
    ],
)
def test_torchvision_state_dicts(wrap: Any, tmp_path: Path) -> None:
    net = tv("lraspp_mobilenet_v3_large")
    path = write(tmp_path / "net.pth", wrap(net.state_dict()))
    assert same(load_model(f"torchvision:lraspp_mobilenet_v3_large:{path}"), net.state_dict())
    named = load_model(f"torchvision:LRASPP-MobileNet-V3-Large:{path}")
    assert named.classes == ("class_0", "class_1", "class_2")


# --- averaged weights -----------------------------------------------------------------------------
PLAIN, EMA = state(1), state(2)
BOTH: dict[str, Any] = {
    "timm": {"state_dict": PLAIN, "state_dict_ema": EMA, "epoch": 1},
    "torchvision": {
        "model": PLAIN,
        "model_ema": {**before("module.", EMA), "n_averaged": torch.tensor(4)},
    },
    "ema_state_dict": {"model_state_dict": PLAIN, "ema_state_dict": EMA},
    "ema": {"model": PLAIN, "ema": EMA},
    "ema.model": {"model": PLAIN, "ema": {"model": before("module.", EMA), "updates": 5}},
    "prefixes": {"state_dict": {**before("model.", PLAIN), **before("ema_model.", EMA)}},
    "ema. inside": {"state_dict": {**PLAIN, **before("ema.", EMA)}},
    "model_ema.module.": {
        "state_dict": {**before("model.", PLAIN), **before("model_ema.module.", EMA)}
    },
    "net_ema": {"state_dict": {**before("net.", PLAIN), **before("net_ema.", EMA)}},
    "online": {
        **before("online_model.", PLAIN), **before("ema_model.", EMA),
        "initted": torch.tensor(True), "step": torch.tensor(9),
    },
    "swa": {"state_dict": PLAIN, "swa_state_dict": before("module.", EMA)},
    "averaged_model": {"model": PLAIN, "averaged_model": EMA},
    # Lightning's WeightAveraging keeps the average as state_dict
    "Lightning": {
        "state_dict": before("model.", EMA), "current_model_state": before("model.", PLAIN),
        "averaging_state": {"n_averaged": torch.tensor(5)},
    },
    # MMEngine's EMAHook swaps the two when it saves
    "MMEngine": {
        "meta": {"epoch": 1}, "state_dict": EMA,
        "ema_state_dict": {**before("module.", PLAIN), "steps": torch.tensor(5)},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", BOTH)
def test_averaged_weights_are_chosen_by_name_alone(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "net.pth", BOTH[kind])
    with pytest.raises(ModelError, match="2 sets of weights that differ") as got:
        load_model(f"{SPEC}:{path}")
    assert "--weights ema or --weights plain" in got.value.fix
    assert "(averaged)" in got.value.fix
    assert "(as trained)" in got.value.fix
    assert same(load_model(f"{SPEC}:{path}", weights="plain"), PLAIN)
    assert same(load_model(f"{SPEC}:{path}", weights="ema"), EMA)
    assert same(as_model(f"{SPEC}:{path}", weights="ema"), EMA)
    with pytest.raises(ModelError, match="weights 'best'"):
        load_model(f"{SPEC}:{path}", weights="best")


def test_equal_copies_need_no_choice(tmp_path: Path) -> None:
    path = write(tmp_path / "net.pth", {"state_dict": PLAIN, "state_dict_ema": copy.copy(PLAIN)})
    assert same(load_model(f"{SPEC}:{path}"), PLAIN)


def test_averaged_weights_alone_are_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "net.pth", {"state_dict_ema": EMA})
    assert same(load_model(f"{SPEC}:{path}"), EMA)
    assert same(load_model(f"{SPEC}:{path}", weights="ema"), EMA)
    with pytest.raises(ModelError, match=r"weights 'plain' where .* holds state_dict_ema"):
        load_model(f"{SPEC}:{path}", weights="plain")


def test_other_twins_are_chosen_by_their_key(tmp_path: Path) -> None:
    found = {"state_dict": {**before("student.", PLAIN), **before("teacher.", EMA)}}
    path = write(tmp_path / "net.pth", found)
    with pytest.raises(ModelError, match="2 sets of weights that differ") as got:
        load_model(f"{SPEC}:{path}")
    assert "--weights student or --weights teacher" in got.value.fix
    assert same(load_model(f"{SPEC}:{path}", weights="teacher"), EMA)
    path = write(tmp_path / "net.pth", {"last": PLAIN, "best": EMA})
    assert same(load_model(f"{SPEC}:{path}", weights="best"), EMA)


def test_a_choice_where_there_is_none_to_make(tmp_path: Path) -> None:
    net = unet(1)
    save_model(net, tmp_path, classes=["roof"], config={}, mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(ModelError, match="weights='ema' for smp"):
        load_model(f"smp:{tmp_path}", weights="ema")


# --- kinds of numbers -----------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_keep_the_numbers_of_their_weights(
    kind: torch.dtype, suffix: str, tmp_path: Path
) -> None:
    net = unet().to(kind)
    path = write(tmp_path / f"net{suffix}", net.state_dict())
    model = load_model(f"{SPEC}:{path}")
    assert {value.dtype for value in model.net.parameters()} == {kind}
    assert same(model, net.state_dict())
    net = tv("lraspp_mobilenet_v3_large").to(kind)
    path = write(tmp_path / f"tv{suffix}", net.state_dict())
    model = load_model(f"torchvision:lraspp_mobilenet_v3_large:{path}")
    assert same(model, net.state_dict())
    assert model.net.state_dict()["backbone.0.0.weight"].dtype == kind


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_folders_keep_the_numbers_of_their_weights(kind: torch.dtype, tmp_path: Path) -> None:
    net = unet().to(kind)
    config = {"encoder_name": "resnet18", "classes": 3, **SMALL}
    save_model(net, tmp_path, classes=["a", "b", "c"], config=config, mean=[0.5] * 3, std=[1] * 3)
    assert same(load_model(f"smp:{tmp_path}"), net.state_dict())


def test_mixed_numbers_stay_mixed(tmp_path: Path) -> None:
    mixed = {k: v.half() if "conv" in k else v for k, v in state().items()}
    model = load_model(f"{SPEC}:{write(tmp_path / 'net.pth', mixed)}")
    assert {k: v.dtype for k, v in model.net.state_dict().items()} == {
        k: v.dtype for k, v in mixed.items()
    }


def test_numbers_of_no_network_are_named(tmp_path: Path) -> None:
    odd = {k: v.to(torch.complex64) if "head" in k else v for k, v in state().items()}
    with pytest.raises(ModelError, match=r"2 of another kind of number") as got:
        load_model(f"{SPEC}:{write(tmp_path / 'net.pth', odd)}")
    assert "segmentation_head.0.weight torch.complex64" in got.value.fix


# --- weights that do not fit ----------------------------------------------------------------------
def test_every_name_that_does_not_fit_is_shown(tmp_path: Path) -> None:
    """12 names too few, 9 too many, 1 of another shape: all of them stand in the error."""
    weights = state()
    gone = [name for name in weights if name.startswith("encoder.layer4.1.")]
    assert len(gone) == 12
    for name in gone:
        del weights[name]
    more = [f"decoder.blocks.0.extra{n}.weight" for n in range(9)]
    weights |= {name: torch.ones(2) for name in more}
    weights["encoder.bn1.weight"] = torch.ones(65)
    path = write(tmp_path / "net.pth", weights)
    with pytest.raises(ModelError, match="10 missing, 9 unexpected, 1 of another shape") as got:
        load_model(f"{SPEC}:{path}")
    shown = got.value.fix
    needed = [name for name in gone if not name.endswith("num_batches_tracked")]
    assert [name for name in [*needed, *more] if f"\n  {name}\n" not in shown + "\n"] == []
    assert "encoder.bn1.weight [65] in the file, [64] in the network" in shown
    assert "..." not in shown


def test_another_network_than_the_spec_says(tmp_path: Path) -> None:
    path = write(tmp_path / "net.pth", state())
    with pytest.raises(ModelError, match=r"missing.*the state dict of smp's Unet with encoder res"):
        load_model(f"smp:Unet:resnet34:{path}")
    with pytest.raises(ModelError, match="the state dict of smp's FPN"):
        load_model(f"smp:FPN:resnet18:{path}")
    with pytest.raises(UnknownNameError, match="did you mean Unet"):
        load_model(f"smp:Unett:resnet18:{path}")
    with pytest.raises(UnknownNameError, match="encoder 'resnet19'"):
        load_model(f"smp:Unet:resnet19:{path}")
    with pytest.raises(ModelError, match="plain name"):
        load_model(f"smp:Unet:tu-hf-hub/a:{path}")
    with pytest.raises(ModelError, match="no file"):
        load_model(f"smp:Unet:resnet18:{tmp_path / 'other.pth'}")
    with pytest.raises(ModelError, match="deeplabv3_resnet50"):
        load_model(f"torchvision:deeplabv3_resnet50:{path}")
    with pytest.raises(ModelError, match="no weights by name"):
        load_model(f"{SPEC}:{write(tmp_path / 'none.pth', {'epoch': 1, 'lr': 0.1})}")


# --- files that are not to be trusted -------------------------------------------------------------
class Runs:
    """What an unpickler would call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("scheme", [SPEC, "torchvision:fcn_resnet50", "lightning"])
def test_no_file_runs_code(scheme: str, zipped: bool, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    how = {"_use_new_zipfile_serialization": zipped}
    path = write(tmp_path / "bad.pth", {"state_dict": {"a": Runs(ran)}}, **how)
    with pytest.raises(ModelError, match=rf"wants to import {os.name}\.system"):
        load_model(f"{scheme}:{path}", classes=["a"])
    assert not ran.exists()
    torch.load(path, weights_only=False)
    assert ran.exists()  # it is a real attack


def test_a_whole_network_in_a_file_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(Path("net.pth"), unet())
    with pytest.raises(ModelError, match=r"wants to import segmentation_models") as got:
        load_model(f"{SPEC}:{path}")
    _, _, code = got.value.fix.partition("\n")
    exec(compile(code, "the advice", "exec"), {})  # noqa: S102 - our own message
    assert same(load_model(f"{SPEC}:net-plain.pth"), state())


@pytest.mark.parametrize(
    "huge",
    [
        torch.zeros(1).expand(10**6, 10**6),
        torch.zeros(1).expand(4096, 4096, 3, 64),
        torch.empty(10**7, 10**6, device="meta"),
        torch.eye(3).to_sparse(),
    ],
)
def test_views_that_stand_for_more_than_the_file_holds(huge: Tensor, tmp_path: Path) -> None:
    path = write(tmp_path / "net.pth", {**state(), "segmentation_head.0.weight": huge})
    with pytest.raises(ModelError, match="tensors in"):
        load_model(f"{SPEC}:{path}")


def test_a_head_of_no_numbers_and_many_channels(tmp_path: Path) -> None:
    empty = torch.zeros(10**9, 0, 3, 3)
    path = write(tmp_path / "net.pth", {**state(), "segmentation_head.0.weight": empty})
    with pytest.raises(ModelError, match="1000000000 channels"):
        load_model(f"{SPEC}:{path}")


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": 10**9},
        {"decoder_channels": [4096] * 5},
        {"in_channels": 10**7},
        {"decoder_channels": [8] * 1000},
        {"encoder_depth": 10**12},
    ],
)
def test_nothing_huge_is_built_for_a_config(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shapes of the file are compared on a network without memory."""
    config = {"encoder_name": "resnet18", "classes": 1, **SMALL}
    save_model(unet(1), tmp_path, classes=["a"], config=config, mean=[0] * 3, std=[1] * 3)
    (tmp_path / "config.json").write_text(json.dumps({"_model_class": "Unet", **config, **changes}))
    real = []

    class Watched(smp.Unet):  # type: ignore[misc]
        def __init__(self, **how: Any) -> None:
            super().__init__(**how)
            real.append(next(self.parameters()).device.type)

    monkeypatch.setitem(ARCHITECTURES, "Unet", Watched)
    with pytest.raises(ModelError):
        load_model(f"smp:{tmp_path}")
    assert "cpu" not in real


def test_cut_and_empty_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "net.pth", state()).read_bytes()
    legacy = write(tmp_path / "old.pth", state(), _use_new_zipfile_serialization=False).read_bytes()
    for content in (b"", b"x" * 100, whole[: len(whole) // 2], legacy[:500], legacy[:-10]):
        path = tmp_path / "cut.pth"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"cut\.pth"):
            load_model(f"{SPEC}:{path}")


# --- Lightning ------------------------------------------------------------------------------------
HYPER = {"model": "unet", "backbone": "resnet18", "num_classes": 3, "task": "multiclass", **SMALL}


@pytest.mark.parametrize(
    "prefix",
    [
        "model.",
        "net.",
        "model._orig_mod.",
        "_orig_mod.model.",
        "module.model.",
        "network.",
        "model.module.",
    ],
)
def test_compiled_and_parallel_tasks(prefix: str, tmp_path: Path) -> None:
    found = {"state_dict": before(prefix, state()), "hyper_parameters": HYPER}
    path = write(tmp_path / "task.ckpt", found)
    assert same(load_model(f"lightning:{path}"), state())
    assert same(load_model(path), state())


@pytest.mark.parametrize(
    "found",
    [
        {"state_dict": before("model.", EMA), "current_model_state": before("model.", PLAIN)},
        {"state_dict": before("model.", PLAIN), "ema_state_dict": before("model.", EMA)},
        {"state_dict": {**before("model.", PLAIN), **before("ema_model.module.", EMA)}},
        {
            "state_dict": before("model.", PLAIN),
            "callbacks": {"EMACallback": {"ema_state_dict": before("model.", EMA)}},
        },
    ],
)
def test_averaged_weights_of_tasks(found: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "task.ckpt", {**found, "hyper_parameters": HYPER})
    with pytest.raises(ModelError, match="2 sets of weights that differ"):
        load_model(f"lightning:{path}")
    assert same(load_model(f"lightning:{path}", weights="ema"), EMA)
    assert same(load_model(path, weights="plain"), PLAIN)


def test_half_precision_tasks(tmp_path: Path) -> None:
    weights = dict(unet().half().state_dict())
    found = {"state_dict": before("model.", weights), "hyper_parameters": HYPER}
    assert same(load_model(write(tmp_path / "task.ckpt", found)), weights)


# --- without a scheme -----------------------------------------------------------------------------
def test_a_folder_says_what_it_is(tmp_path: Path) -> None:
    save_model(
        unet(1), tmp_path / "own", classes=["roof"], mean=[0.5] * 3, std=[0.5] * 3,
        config={"encoder_name": "resnet18", "classes": 1, **SMALL},
    )  # fmt: skip
    assert load_model(str(tmp_path / "own")).classes == ("background", "roof")
    assert load_model(tmp_path / "own").classes == ("background", "roof")
    assert as_model(tmp_path / "own", classes=["house"]).classes == ("background", "house")
    pytest.importorskip("transformers")
    net: Any = of_hf("Segformer")
    net.save_pretrained(tmp_path / "hf")
    assert load_model(tmp_path / "hf").classes == ("ground", "roof", "road")


def test_what_does_not_say_it_is_refused_with_what_could_fit(tmp_path: Path) -> None:
    def refused(path: Path, word: str) -> ModelError:
        with pytest.raises(ModelError, match=word) as got:
            load_model(path)
        return got.value

    path = write(tmp_path / "net.pth", {"state_dict": before("model.", state())})
    assert f"one of smp:Unet:ENCODER:{path}" in refused(path, "does not say").expected
    lraspp = tv("lraspp_mobilenet_v3_large").state_dict()
    path = write(tmp_path / "tv.safetensors", lraspp)
    expected = refused(path, "does not say").expected
    assert expected == f"one of torchvision:lraspp_mobilenet_v3_large:{path}"
    path = write(tmp_path / "own.pt", nn.Linear(2, 2).state_dict())
    assert "smp:ARCH:ENCODER:" in refused(path, "does not say").expected
    refused(tmp_path, "no config.json")
    refused(tmp_path / "nowhere", "no .*nowhere")
    (tmp_path / "config.json").write_text('{"encoder_name": "resnet18", "model_type": "segformer"}')
    refused(tmp_path, "two kinds of network")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "no network")


# --- networks that are there already --------------------------------------------------------------
class States(nn.Module):
    """A network that says something about its classes."""

    def __init__(self, channels: int = 2, **said: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)
        for name, value in said.items():
            setattr(self, name, value)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.conv(images)
        return result


@pytest.mark.parametrize(
    ("make", "classes"),
    [
        (lambda: unet(1), ("background", "object")),
        (lambda: unet(3), ("class_0", "class_1", "class_2")),
        (lambda: tv("fcn_resnet50"), ("class_0", "class_1", "class_2")),
        (lambda: tv("lraspp_mobilenet_v3_large"), ("class_0", "class_1", "class_2")),
        (lambda: States(num_classes=2), ("class_0", "class_1")),
        (lambda: States(n_classes=2), ("class_0", "class_1")),
        (lambda: States(1, out_channels=1), ("background", "object")),
        (lambda: States(classes=["ground", "roof"], num_classes=2), ("ground", "roof")),
        (lambda: States(hparams={"num_classes": 2, "lr": 0.1}), ("class_0", "class_1")),
        (lambda: nn.DataParallel(States(num_classes=2)), ("class_0", "class_1")),
        (lambda: torch.compile(States(num_classes=2)), ("class_0", "class_1")),
    ],
)
def test_a_network_says_its_classes(make: Callable[[], Any], classes: tuple[str, ...]) -> None:
    net = make()
    model = as_model(net)
    assert model.classes == classes
    assert model.net is net
    assert not net.training
    assert as_model(model) is model


@pytest.mark.parametrize(
    ("thing", "how", "word"),
    [
        (States(), {}, "States that does not say its classes"),
        (States(num_classes=2, out_channels=3), {}, "num_classes 2, out_channels 3"),
        (as_model(States(num_classes=2)), {"mean": [0.5] * 3}, "a SegmentationModel and mean"),
        (5, {}, "a int as a network"),
        ("unet", {}, "model scheme 'unet'"),
    ],
)
def test_what_is_no_network_or_says_too_little(thing: Any, how: Any, word: str) -> None:
    with pytest.raises((ModelError, UnknownNameError), match=word):
        as_model(thing, **how)


def test_settings_of_a_network_go_to_the_contract() -> None:
    net = States(num_classes=2)
    model = as_model(net, mean=[0.5] * 3, std=[0.25] * 3, output=lambda result: result.flip(1))
    images = torch.rand(1, 3, 4, 4)
    with torch.inference_mode():
        assert torch.equal(model(images), net((images - 0.5) / 0.25).flip(1))
    assert as_model(net, activation="sigmoid", classes=["a", "b"]).activation == "sigmoid"
    with pytest.raises(TypeError, match="takes no colour"):
        as_model(net, colour="red")
