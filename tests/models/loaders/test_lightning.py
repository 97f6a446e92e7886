"""Checkpoints of Lightning: the layout that TorchGeo writes, read as data and never as code."""

from __future__ import annotations

import json
import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from segproof.cli import app as cli
from segproof.errors import ModelError, UnknownNameError
from segproof.explain.api import explain
from segproof.explain.target import Target
from segproof.models.loaders.load import load_model

SMALL: dict[str, Any] = {"decoder_channels": [16, 8, 8, 4, 4]}


class Fcn(nn.Module):
    """TorchGeo's FCN, from its description: five 3 x 3 convolutions, leaky ReLUs, a 1 x 1 head."""

    def __init__(self, bands: int, classes: int, filters: int) -> None:
        super().__init__()
        places = (0, 2, 4, 6, 8)
        self.backbone = nn.ModuleDict(
            {
                str(place): nn.Conv2d(bands if place == 0 else filters, filters, 3, padding=1)
                for place in places
            }
        )
        self.last = nn.Conv2d(filters, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.backbone.values():
            x = nn.functional.leaky_relu(layer(x))
        result: Tensor = self.last(x)
        return result


def hyper(**given: Any) -> dict[str, Any]:
    """Hyper-parameters as TorchGeo 0.8 saves them (weights are left out there)."""
    return {
        "model": "unet", "backbone": "resnet18", "in_channels": 3, "task": "multiclass",
        "num_classes": None, "num_labels": None, "num_filters": 3, "loss": "ce",
        "class_weights": None, "ignore_index": None, "lr": 0.001, "patience": 10,
        "freeze_backbone": False, "freeze_decoder": False, **given,
    }  # fmt: skip


def save(path: Path, net: nn.Module, given: Any, *, prefix: str = "model.", **beside: Any) -> Path:
    """A checkpoint of the layout of Lightning 2: state, hyper-parameters and all around them."""
    state: OrderedDict[str, Any] = OrderedDict(
        (prefix + name, value) for name, value in net.state_dict().items()
    )
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]}
    torch.save(
        {
            "epoch": 1, "global_step": 1, "pytorch-lightning_version": "2.6.0",
            "state_dict": state | beside, "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
            "optimizer_states": [optimizer], "lr_schedulers": [],
            "hparams_name": "kwargs", "hyper_parameters": given,
        },
        path,
    )  # fmt: skip
    return path


def picture(bands: int = 3, sides: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.rand(2, bands, *sides, generator=torch.Generator().manual_seed(1))


def unet(classes: int, bands: int = 3, **options: Any) -> nn.Module:
    net: nn.Module = smp.Unet(
        "resnet18", encoder_weights=None, in_channels=bands, classes=classes, **options
    ).eval()
    return net


@pytest.fixture
def roofs(tmp_path: Path) -> Path:
    """A multi-class U-Net's checkpoint."""
    given = hyper(num_classes=3, **SMALL)
    return save(tmp_path / "roofs.ckpt", unet(3, **SMALL), given)


# --- networks -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("unet", smp.Unet),
        ("deeplabv3+", smp.DeepLabV3Plus),
        ("upernet", smp.UPerNet),
        ("segformer", smp.Segformer),
        ("Unet++", smp.UnetPlusPlus),
        ("FPN", smp.FPN),
    ],
)
def test_every_architecture_gives_its_own_logits(name: str, kind: Any, tmp_path: Path) -> None:
    net = kind("resnet18", encoder_weights=None, in_channels=4, classes=3).eval()
    path = save(tmp_path / "a.ckpt", net, hyper(model=name, in_channels=4, num_classes=3))
    model = load_model(f"lightning:{path}", mean=[0.1, 0.2, 0.3, 0.4], std=[0.5] * 4)
    assert model.classes == ("class_0", "class_1", "class_2")
    assert model.activation == "softmax"
    images = picture(bands=4)
    with torch.inference_mode():
        expected = net((images - torch.tensor([0.1, 0.2, 0.3, 0.4]).view(-1, 1, 1)) / 0.5)
        assert (model(images) - expected).abs().max() < 1e-4 * (1 + expected.abs().max())
        model.net.to(memory_format=torch.contiguous_format)
        plain = model(images)
    assert (plain - expected).abs().max() < 1e-6 * (1 + expected.abs().max())


def test_dpt(tmp_path: Path) -> None:
    net = smp.DPT("tu-vit_tiny_patch16_224", encoder_weights=None, classes=3).eval()
    given = hyper(model="dpt", backbone="tu-vit_tiny_patch16_224", num_classes=3)
    model = load_model(f"lightning:{save(tmp_path / 'a.ckpt', net, given)}")
    images = picture(sides=(224, 224))[:1]
    with torch.inference_mode():
        expected = net(images)
        assert (model(images) - expected).abs().max() < 1e-5 * (1 + expected.abs().max())


def test_fcn_of_torchgeo(tmp_path: Path) -> None:
    net = Fcn(4, 3, 5)
    given = hyper(model="fcn", in_channels=4, num_classes=3, num_filters=5, backbone="resnet50")
    model = load_model(f"lightning:{save(tmp_path / 'a.ckpt', net, given)}")
    images = picture(bands=4)
    with torch.inference_mode():
        assert (model(images) - net(images)).abs().max() < 1e-6
    assert [layer.alias for layer in model.layers(64, bands=4)] == ["encoder:1", "decoder:1"]


def test_binary_has_two_logits(tmp_path: Path) -> None:
    net = unet(1, **SMALL)
    path = save(tmp_path / "a.ckpt", net, hyper(task="binary", loss="bce", **SMALL))
    model = load_model(f"lightning:{path}")
    assert model.classes == ("background", "object")
    images = picture()
    with torch.inference_mode():
        z, p = net(images), model(images).softmax(dim=1)
    assert (p[:, 1] - z[:, 0].sigmoid()).abs().max() < 1e-5
    assert load_model(f"lightning:{path}", classes=["roof"]).classes == ("background", "roof")


def test_multilabel_is_sigmoid(tmp_path: Path) -> None:
    given = hyper(task="multilabel", num_labels=2, **SMALL)
    model = load_model(f"lightning:{save(tmp_path / 'a.ckpt', unet(2, **SMALL), given)}")
    assert model.activation == "sigmoid"
    assert model(picture()).shape == (2, 2, 64, 96)


def test_smp_network_of_any_module(tmp_path: Path) -> None:
    """The names of smp's own examples, the network in `net`, options of the constructor."""
    wide: dict[str, Any] = {"decoder_channels": [16] * 5}
    net = unet(2, decoder_attention_type="scse", **wide)
    given = {
        "arch": "Unet", "encoder_name": "resnet18", "in_channels": 3, "out_classes": 2,
        "encoder_weights": "imagenet", "decoder_attention_type": "scse", "T_max": 50,
        "class_names": ["ground", "roof"], **wide,
    }  # fmt: skip
    path = save(tmp_path / "a.ckpt", net, given, prefix="net.")
    model = load_model(f"lightning:{path}")
    assert model.classes == ("ground", "roof")
    with torch.inference_mode():
        assert (model(picture()) - net(picture())).abs().max() < 1e-4
    older = {"segmentation_model": "unet", "encoder_name": "resnet18", "num_classes": 2, **SMALL}
    path = save(tmp_path / "b.ckpt", unet(2, **SMALL), older)
    assert len(load_model(f"lightning:{path}").classes) == 2


def test_names_and_normalisation_come_from_the_folder_and_arguments_win(roofs: Path) -> None:
    assert load_model(f"lightning:{roofs}").neutral.flatten().tolist() == [0.0]
    (roofs.parent / "segproof.json").write_text(
        json.dumps({"classes": ["a", "b", "c"], "mean": [0.1, 0.2, 0.3], "std": [0.5] * 3})
    )
    model = load_model(f"lightning:{roofs}")
    assert model.classes == ("a", "b", "c")
    assert model.neutral.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    given = load_model(f"lightning:{roofs}", classes=["x", "y", "z"], mean=[0.0] * 3, std=[1.0] * 3)
    assert given.classes == ("x", "y", "z")
    assert given.neutral.flatten().tolist() == [0.0] * 3


def test_losses_and_metrics_are_left_out_and_the_rest_is_named(tmp_path: Path) -> None:
    net = unet(3, **SMALL)
    known: dict[str, Any] = {"criterion.weight": torch.ones(3)}
    known |= {"train_metrics.Accuracy.tp": torch.zeros(3), "loss_fn.weight": torch.ones(3)}
    path = save(tmp_path / "a.ckpt", net, hyper(num_classes=3, **SMALL), **known)
    load_model(f"lightning:{path}")  # a warning would be an error
    unknown: dict[str, Any] = {"mean": torch.ones(3), "teacher.weight": torch.ones(3)}
    save(path, net, hyper(num_classes=3, **SMALL), **known, **unknown)
    with pytest.warns(UserWarning, match=r"also holds mean, teacher\.weight, which are not used"):
        load_model(f"lightning:{path}")


def test_from_the_command_line(roofs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["layers", "--model", f"lightning:{roofs}", "--classes", "a,b,c", "--size", "64"]
    assert cli.main(arguments) == 0
    assert "decoder.blocks.4" in capsys.readouterr().out
    target = Target("b", region="truth")
    truth = torch.ones(64, 96, dtype=torch.bool)
    model = load_model(f"lightning:{roofs}", classes=["a", "b", "c"])
    made = explain(model, picture()[0], layer="decoder:-1", target=target, truth=truth)
    assert made.heatmap().shape == (64, 96)


# --- files that name code -------------------------------------------------------------------------
class Runs:
    """What an unpickler would call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "callbacks", "file"])
@pytest.mark.parametrize("attack", ["system", "eval", "exec", "import"])
def test_nothing_in_a_file_is_executed(attack: str, place: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    line = f"__import__('pathlib').Path({str(ran)!r}).touch()"
    thing, name = {
        "system": (Runs(os.system, f"touch {ran}"), f"{os.name}.system"),
        "eval": (Runs(eval, line), "builtins.eval"),
        "exec": (Runs(exec, line), "builtins.exec"),
        "import": (Runs(__import__, "antigravity"), "builtins.__import__"),
    }[attack]
    path = tmp_path / "bad.ckpt"
    found: dict[str, Any] = {"state_dict": {}, "hyper_parameters": {}, "callbacks": {}}
    if place != "file":
        found[place]["model.x"] = thing
    torch.save(thing if place == "file" else found, path)
    with pytest.raises(ModelError, match="wants to import") as caught:
        load_model(f"lightning:{path}", classes=["a"])
    assert name in caught.value.found
    assert not ran.exists()
    # the file is a real attack: an unpickler that trusts it runs the code
    if attack != "import":
        torch.load(path, weights_only=False)
        assert ran.exists()


def test_code_in_a_pickle_of_another_protocol(tmp_path: Path) -> None:
    """Protocol 4 spells imports otherwise: no name is read from it, and nothing runs either."""
    ran, path = tmp_path / "ran", tmp_path / "bad.ckpt"
    torch.save({"state_dict": Runs(os.system, f"touch {ran}")}, path, pickle_protocol=4)
    with pytest.raises(ModelError, match=r"bad\.ckpt"):
        load_model(f"lightning:{path}", classes=["a"])
    assert not ran.exists()


def test_environment_cannot_open_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    ran, path = tmp_path / "ran", tmp_path / "bad.ckpt"
    torch.save({"state_dict": Runs(os.system, f"touch {ran}")}, path)
    with pytest.raises(ModelError, match=r"import \w+\.system"):
        load_model(f"lightning:{path}", classes=["a"])
    assert not ran.exists()


def test_weights_enum_is_named_and_the_advice_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = unet(3, **SMALL)
    given = hyper(num_classes=3, weights=ResNet18_Weights.IMAGENET1K_V1, **SMALL)
    path = save(tmp_path / "a.ckpt", net, given)
    with pytest.raises(ModelError, match=r"torchvision\.models\.resnet\.ResNet18_Weights") as found:
        load_model(f"lightning:{path}")
    assert "weights=None" in found.value.fix
    monkeypatch.chdir(tmp_path)
    _, _, code = found.value.fix.partition("\n")
    exec(compile(code, "the advice", "exec"), {})  # noqa: S102 - our own message
    model = load_model("lightning:a-plain.ckpt")
    with torch.inference_mode():
        assert (model(picture()) - net(picture())).abs().max() < 1e-4


@pytest.mark.parametrize("encoder", ["hf-hub:someone/net", "tu-hf-hub:a/b", "/etc/x", "a/b"])
def test_encoders_are_names_not_places(encoder: str, tmp_path: Path) -> None:
    given = hyper(num_classes=3, backbone=encoder)
    path = save(tmp_path / "a.ckpt", unet(3, **SMALL), given)
    with pytest.raises(ModelError, match="plain name"):
        load_model(f"lightning:{path}")


def test_hyper_parameters_reach_smp_only(tmp_path: Path) -> None:
    """`checkpoint_path` would make timm open another file, `encoder_weights` a hub."""
    given = hyper(num_classes=3, checkpoint_path="/nowhere", encoder_weights="imagenet", **SMALL)
    given |= {"pretrained": True, "activation": "sigmoid", "aux_params": {"classes": 2}}
    net = unet(3, **SMALL)
    model = load_model(f"lightning:{save(tmp_path / 'a.ckpt', net, given)}")
    with torch.inference_mode():
        assert (model(picture()) - net(picture())).abs().max() < 1e-4


# --- files that do not fit ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"num_classes": 4}, "hyper_parameters and weights of one Unet"),
        ({"backbone": "resnet34"}, "hyper_parameters and weights of one Unet"),
        ({"backbone": "resnet19"}, "resnet19"),
        ({"backbone": None, "encoder_name": 5}, "plain name"),
        ({"in_channels": 10**9}, "a whole number, 1 to 4096"),
        ({"num_classes": "3"}, "a whole number"),
        ({"in_channels": True}, "a whole number"),
        ({"model": None}, "names an architecture"),
        ({"task": "regression"}, "binary, multiclass, multilabel"),
        ({"decoder_channels": [1, 2]}, "hyper_parameters of one smp Unet"),
    ],
)
def test_hyper_parameters_that_do_not_fit(changed: Any, word: str, tmp_path: Path) -> None:
    given = hyper(num_classes=3, **SMALL) | changed
    path = save(tmp_path / "a.ckpt", unet(3, **SMALL), given)
    with pytest.raises(ModelError, match=word):
        load_model(f"lightning:{path}")


def test_unknown_architecture(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", unet(3, **SMALL), hyper(model="deeplabv3+plus", num_classes=3))
    with pytest.raises(UnknownNameError, match="did you mean deeplabv3"):
        load_model(f"lightning:{path}")
    save(path, unet(3, **SMALL), hyper(model="resnet18", num_classes=3))
    with pytest.raises(UnknownNameError, match="architecture 'resnet18'"):
        load_model(f"lightning:{path}")


def test_a_task_of_another_name_can_be_explained(tmp_path: Path) -> None:
    given = hyper(num_classes=3, **SMALL) | {"task": "roofs"}
    path = save(tmp_path / "a.ckpt", unet(3, **SMALL), given)
    (tmp_path / "segproof.json").write_text('{"activation": "sigmoid"}')
    assert load_model(f"lightning:{path}").activation == "sigmoid"


def test_files_that_are_no_checkpoint(
    roofs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, word: str) -> None:
        with pytest.raises(ModelError, match=word) as found:
            load_model(f"lightning:{path}")
        assert all((found.value.found, found.value.expected, found.value.fix))

    other = tmp_path / "other.ckpt"
    refused(other, "no file")
    refused(tmp_path, "no file")
    other.write_text("x" * 100)
    refused(other, "no zip file")
    torch.save({"state_dict": {}}, other, _use_new_zipfile_serialization=False)
    refused(other, "save_hyperparameters")  # files of before torch 1.6 are read as well
    with zipfile.ZipFile(other, "w") as opened:
        opened.writestr("a.txt", "a")
    refused(other, "other.ckpt")
    with zipfile.ZipFile(other, "w") as opened:
        opened.writestr("archive/constants.pkl", "a")
    refused(other, "TorchScript")
    whole = roofs.read_bytes()
    other.write_bytes(whole[: len(whole) // 2])
    refused(other, "no zip file")
    other.write_bytes(whole[: len(whole) // 2] + whole[-5000:])
    refused(other, "other.ckpt")
    torch.save([1, 2], other)
    refused(other, "a list")
    torch.save({"state_dict": {"model.a": torch.ones(1)}}, other)
    refused(other, "save_hyperparameters")
    torch.save({"state_dict": {"a.b": torch.ones(1)}, "hyper_parameters": hyper()}, other)
    refused(other, r"model\. or net\.")
    torch.save({"state_dict": {}, "hyper_parameters": {}}, other)
    refused(other, "none")
    monkeypatch.setattr("segproof.models.loaders.checkpoints.MAX_CHECKPOINT", 1 << 20)
    refused(roofs, "GiB unpacked")


def test_a_bomb_is_refused_by_its_declared_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zip of few bytes that unpacks to many: the limit holds for what it unpacks to."""
    monkeypatch.setattr("segproof.models.loaders.checkpoints.MAX_CHECKPOINT", 1 << 20)
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("archive/data/0", bytes(1 << 22))
    assert path.stat().st_size < 1 << 14
    with pytest.raises(ModelError, match="GiB unpacked"):
        load_model(f"lightning:{path}")
