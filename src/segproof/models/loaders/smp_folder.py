"""Loads networks of segmentation_models_pytorch: folders, state dicts alone."""

from __future__ import annotations

import contextlib
import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import safetensors
import segmentation_models_pytorch as smp
from safetensors.torch import load_file
from torch import Tensor, nn

from segproof.errors import ModelError, UnknownNameError, canonical
from segproof.models.loaders.checkpoints import read_weights
from segproof.models.loaders.files import (
    MAX_CHANNELS,
    UNFIT,
    check_encoder,
    class_names,
    read_json,
    read_settings,
    unfit,
)
from segproof.models.loaders.fit import blueprint, check_shapes, choose, put, tell_beside

__all__ = ["ARCHITECTURES", "architecture", "head_channels", "load_folder", "load_state", "renamed"]

ARCHITECTURES: Final[dict[str, type[nn.Module]]] = {
    "Unet": smp.Unet,
    "UnetPlusPlus": smp.UnetPlusPlus,
    "MAnet": smp.MAnet,
    "Linknet": smp.Linknet,
    "FPN": smp.FPN,
    "PSPNet": smp.PSPNet,
    "PAN": smp.PAN,
    "DeepLabV3": smp.DeepLabV3,
    "DeepLabV3Plus": smp.DeepLabV3Plus,
    "UPerNet": smp.UPerNet,
    "Segformer": smp.Segformer,
    "DPT": smp.DPT,
}
ENCODER_OPTIONS: Final = ("img_size", "dynamic_img_size", "drop_rate", "drop_path_rate")

# options of a decoder that the first axis of one weight shows
WIDTHS: Final[dict[str, dict[str, str]]] = {
    "MAnet": {"decoder_pab_channels": "decoder.center.top_conv.weight"},
    "FPN": {
        "decoder_pyramid_channels": "decoder.p5.weight",
        "decoder_segmentation_channels": "decoder.seg_blocks.0.block.0.block.0.weight",
    },
    "PSPNet": {"psp_out_channels": "decoder.conv.0.weight"},
    "PAN": {"decoder_channels": "decoder.gau3.conv1.1.conv.weight"},
    "DeepLabV3": {"decoder_channels": "decoder.aspp.project.0.weight"},
    "DeepLabV3Plus": {"decoder_channels": "decoder.aspp.0.project.0.weight"},
    "UPerNet": {"decoder_channels": "decoder.fusion_block.0.weight"},
    "Segformer": {"decoder_segmentation_channels": "decoder.fuse_stage.0.weight"},
    "DPT": {"decoder_fusion_channels": "decoder.fusion_blocks.0.project.weight"},
}
# options that list the width of every block; the number of blocks is the depth
BLOCKS: Final[dict[str, tuple[str, str]]] = {
    "Unet": ("decoder_channels", "decoder.blocks.{}.conv1.0.weight"),
    "MAnet": ("decoder_channels", "decoder.blocks.{}.conv1.0.weight"),
    "UnetPlusPlus": ("decoder_channels", "decoder.blocks.x_0_{}.conv1.0.weight"),
    "Linknet": ("", "decoder.blocks.{}.block.0.0.weight"),
    "DPT": (
        "decoder_intermediate_channels",
        "decoder.reassemble_blocks.{}.project_to_out_channel.weight",
    ),
}
# what no weight shows, though the numbers depend on it
UNSEEN: Final[dict[str, tuple[str, ...]]] = {
    "DeepLabV3": ("encoder_output_stride", "decoder_atrous_rates"),
    "DeepLabV3Plus": ("encoder_output_stride", "decoder_atrous_rates"),
    "PAN": ("encoder_output_stride",),
}


def architecture(spelled: object) -> str:
    """The name in ARCHITECTURES of an architecture, however it is written: unet++, deeplabv3+.

    Raises:
        UnknownNameError: no such architecture.
    """
    name = canonical(spelled, ARCHITECTURES) if isinstance(spelled, str) else None
    if name is None:
        raise UnknownNameError.of("architecture", spelled, ARCHITECTURES)
    return name


def load_folder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network and the settings in a folder that save_pretrained or save_model wrote."""
    config = read_json(folder / "config.json", "the folder that save_pretrained writes")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ModelError(f"no {weights}", "weights as safetensors", "save with save_pretrained")
    name = architecture(config.pop("_model_class", "Unet"))
    config |= {"encoder_weights": None}  # never asks a hub
    # anything else goes on to timm, some of whose options open files and hubs
    known = {*inspect.signature(ARCHITECTURES[name]).parameters, *ENCODER_OPTIONS}
    for key in config.keys() - known:
        raise ModelError(
            f"settings in {folder / 'config.json'} that do not fit ({key})",
            f"those of smp's {name}, or {', '.join(ENCODER_OPTIONS)}",
            "leave it out and save again",
        )
    check_encoder(config.get("encoder_name", "resnet34"), folder / "config.json")
    if config.get("activation") is not None:
        raise ModelError(
            f"activation {config['activation']!r} built into the network",
            "logits",
            "save it with activation=None",
        )
    expected = f"config.json and model.safetensors of one smp {name}"
    fix = "save both again with save_pretrained"
    _bounded(config, folder / "config.json")

    def make() -> nn.Module:
        return ARCHITECTURES[name](**config)

    try:
        plan = blueprint(make)
        state = renamed(plan, load_file(weights))
        check_shapes(plan, state, folder, expected, fix)
        net = put(make(), state, folder, expected)
    except (*UNFIT, safetensors.SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise unfit(folder, error, expected, fix) from error
    return net, read_settings(folder)


def load_state(rest: str, weights: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network of `ARCH:ENCODER:FILE`: its options are those that the weights show.

    Raises:
        ModelError: a file that does not fit that architecture and encoder.
        UnknownNameError: no such architecture or encoder.
    """
    spelled, _, tail = rest.partition(":")
    encoder, _, file = tail.partition(":")
    name, path = architecture(spelled), Path(file)
    check_encoder(encoder, f"smp:{rest}")
    found = read_weights(path)
    settings = read_settings(path.parent)
    stated = dict(settings.pop("options", {}))
    known = {*inspect.signature(ARCHITECTURES[name]).parameters, *ENCODER_OPTIONS}
    known -= {"encoder_name", "encoder_weights", "activation", "aux_params", "kwargs"}
    if stated.keys() - known:
        raise ModelError(
            f"options {', '.join(sorted(stated.keys() - known))} in segproof.json beside {path}",
            f"some of {', '.join(sorted(known))}",
            "leave them out",
        )
    _bounded(stated, path.parent / "segproof.json")
    expected = f"the state dict of smp's {name} with encoder {encoder}"
    fix = "check architecture and encoder; --model smp:DIR reads a folder of save_pretrained"

    def maker(**options: Any) -> Callable[[], nn.Module]:
        given = {"encoder_name": encoder, "encoder_weights": None, **options, **stated}
        return lambda: ARCHITECTURES[name](**given)

    try:
        plan = blueprint(maker())
    except KeyError as error:
        said = str(error).strip("\"'").splitlines()[0][:200]
        raise UnknownNameError(
            f"encoder {encoder!r} ({said})",
            "an encoder of segmentation_models_pytorch, or tu-NAME for one of timm",
            "check the spelling",
        ) from error
    except UNFIT as error:
        raise unfit(path, error, expected, fix) from error
    state = choose(found, plan.state_dict().keys(), path, weights)
    numbers = renamed(plan, state.weights)
    options = _options(name, plan, numbers)
    try:
        plan = blueprint(maker(**options))
        check_shapes(plan, numbers, path, expected, fix)
        net = put(maker(**options)(), numbers, path, expected)
    except UNFIT as error:
        if isinstance(error, ModelError):
            raise
        raise unfit(path, error, expected, fix) from error
    tell_beside(path, state)
    unseen = [key for key in UNSEEN.get(name, ()) if key not in stated]
    if unseen:
        defaults = inspect.signature(ARCHITECTURES[name]).parameters
        said = ", ".join(f"{key} {defaults[key].default}" for key in unseen)
        warnings.warn(
            f"the weights in {path} do not show {said}: smp's defaults are taken; where the network"
            f' was trained with others, write {{"options": {{"{unseen[0]}": ...}}}} into'
            f" {path.parent / 'segproof.json'}",
            stacklevel=4,
        )
    channels = head_channels(numbers)
    activation = {"activation": "softmax"} if channels > 1 else {}
    return net, {"classes": class_names(channels), **activation, **settings}


def renamed(net: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that `net` has today; smp renames those of its earlier versions."""
    names = {name: value.to("meta") for name, value in weights.items()}
    plan = net if all(value.is_meta for value in net.parameters()) else None
    if plan is not None:
        with warnings.catch_warnings(), contextlib.suppress(*UNFIT):
            warnings.simplefilter("ignore")
            plan.load_state_dict(names)  # renames in `names` itself, whether they fit or not
    if len(names) != len(weights):
        return dict(weights)
    return dict(zip(names, weights.values(), strict=True))


def head_channels(weights: Mapping[str, Tensor]) -> int:
    """Channels of the last convolution: that of smp's head or of TorchGeo's FCN."""
    heads = [v for k, v in weights.items() if k.startswith(("segmentation_head.", "last."))]
    return next((len(value) for value in reversed(heads) if value.ndim == 4), 0)


def _options(name: str, plan: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of an smp network that its weights show."""
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    options: dict[str, Any] = {}
    if channels := head_channels(weights):
        options["classes"] = channels
    own = {key: tuple(value.shape) for key, value in plan.state_dict().items()}
    for key, shape in own.items():
        other = shapes.get(key, shape)
        # the first convolutions alone see the bands; some encoders fold several pixels into them
        if key.startswith("encoder.") and len(shape) == len(other) == 4 and shape != other:
            if (shape[0], *shape[2:]) == (other[0], *other[2:]) and other[1] * 3 % shape[1] == 0:
                options["in_channels"] = other[1] * 3 // shape[1]
            break
    for option, key in WIDTHS.get(name, {}).items():
        if shapes.get(key):
            options[option] = shapes[key][0]
    option, pattern = BLOCKS.get(name, ("", ""))
    widths: list[int] = []
    while pattern and (block := shapes.get(pattern.format(len(widths)))):
        widths.append(block[0])
    if widths:
        options["encoder_depth"] = len(widths)
        if option:
            options[option] = widths
    if name in ("Unet", "UnetPlusPlus") and any(".attention1.attention.cSE" in k for k in shapes):
        options["decoder_attention_type"] = "scse"
    if name == "FPN" and "segmentation_head.0.weight" in shapes:
        parts = shapes["segmentation_head.0.weight"][1:2]
        if parts == (4 * options.get("decoder_segmentation_channels", 0),):
            options["decoder_merge_policy"] = "cat"
    norm = any(re.fullmatch(r"decoder\.(?!.*attention).*running_mean", key) for key in shapes)
    parameters = inspect.signature(ARCHITECTURES[name]).parameters
    if "decoder_use_norm" in parameters and not norm and widths:
        options["decoder_use_norm"] = False
    numbers = [n for v in options.values() for n in (v if isinstance(v, list) else [v])]
    if any(isinstance(n, int) and n > MAX_CHANNELS for n in numbers):
        raise ModelError(
            f"weights with {max(n for n in numbers if isinstance(n, int))} channels",
            f"at most {MAX_CHANNELS}",
            "check the file",
        )
    return options


def _bounded(config: Mapping[str, Any], path: Path) -> None:
    """Refuse numbers that would build a network without bounds."""
    for key, value in config.items():
        listed = value if isinstance(value, list) else [value]
        if len(listed) > 64 or any(
            isinstance(number, int | float) and not 0 <= number <= 2 * MAX_CHANNELS
            for number in listed
        ):
            raise ModelError(
                f"{key} {str(value)[:80]} in {path}",
                f"numbers from 0 to {2 * MAX_CHANNELS}, 64 at most",
                "write it again",
            )
