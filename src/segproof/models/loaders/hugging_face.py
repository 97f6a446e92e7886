"""Loads networks of transformers from folders that save_pretrained wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from segproof.errors import ModelError, SegproofError, UnknownNameError
from segproof.models.loaders.checkpoints import read_weights
from segproof.models.loaders.files import MAX_CHANNELS, first_line, read_json, read_settings, unfit
from segproof.models.loaders.fit import blueprint
from segproof.models.loaders.hf_config import plain_config, preprocessing

__all__ = ["HF", "load_hugging_face"]

HF: Final = (
    "SegformerForSemanticSegmentation",
    "UperNetForSemanticSegmentation",
    "BeitForSemanticSegmentation",
    "Data2VecVisionForSemanticSegmentation",
    "DPTForSemanticSegmentation",
    "MobileNetV2ForSemanticSegmentation",
    "MobileViTForSemanticSegmentation",
    "MobileViTV2ForSemanticSegmentation",
    "Sapiens2ForSemanticSegmentation",
    "Tipsv2DptForSemanticSegmentation",
    "MaskFormerForInstanceSegmentation",
    "Mask2FormerForUniversalSegmentation",
    "EomtForUniversalSegmentation",
    "EomtDinov3ForUniversalSegmentation",
    "OneFormerForUniversalSegmentation",
)
# networks whose tables are made for one size of picture
FIXED: Final = (
    "Data2VecVisionForSemanticSegmentation",
    "EomtForUniversalSegmentation",
    "EomtDinov3ForUniversalSegmentation",
)


def load_hugging_face(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network and the settings in a folder of transformers; no hub is asked for anything.

    Raises:
        ModelError: files that are missing or do not fit, values that lead elsewhere.
        UnknownNameError: a network that is none for segmentation.
    """
    path = folder / "config.json"
    written = read_json(path, "the folder that save_pretrained writes")
    names = written.get("architectures")
    name = names[0] if isinstance(names, list) and names else names
    if name not in HF:
        raise UnknownNameError.of("architecture", name, HF)
    files = _weight_files(folder)
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            "no transformers in this environment",
            "the extra hf for hf:DIR",
            'pip install "segproof[hf]"',
        ) from error
    kind = getattr(transformers, str(name), None)
    if kind is None:
        raise ModelError(
            f"{name} in {path}, which transformers {transformers.__version__} does not have",
            "a network that the installed version has",
            "update transformers",
        )
    plain = plain_config(written, path)
    wanted = f"config.json and weights of one {name}"
    state: dict[str, Tensor] = {}
    for file in files:
        state |= {str(key): value for key, value in read_weights(file).items()}
    try:
        config = kind.config_class.from_dict(plain)
        # looked at without memory: a config may ask for any number of numbers
        plan = blueprint(lambda: _built(kind, config))
    except SegproofError:
        raise
    except Exception as error:  # a foreign package on a foreign file raises anything
        raise unfit(folder, first_line(error), wanted) from error
    asked = sum(value.numel() for value in {*plan.parameters(), *plan.buffers()})
    given = sum(value.numel() for value in state.values())
    if asked > 2 * given + 10_000_000:
        raise unfit(folder, f"{asked:,} numbers where the file has {given:,}", wanted)
    try:
        net, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=_kind_of_number(state),
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise unfit(folder, first_line(error), wanted) from error
    lacking = sorted(map(str, report["missing_keys"]))
    lacking += sorted(str(key[0] if isinstance(key, tuple) else key)
                      for key in report["mismatched_keys"])  # fmt: skip
    if lacking:
        raise unfit(
            folder,
            f"{len(lacking)} names without a value that fits",
            wanted,
            "save both again. Without a value:" + "".join(f"\n  {key}" for key in lacking),
        )
    return _with_settings(net, config, folder, str(name))


def _with_settings(
    net: nn.Module, config: Any, folder: Path, name: str
) -> tuple[nn.Module, dict[str, Any]]:
    labels = sorted((int(key), str(label)) for key, label in config.id2label.items())
    if not 1 <= len(labels) <= MAX_CHANNELS:
        raise ModelError(
            f"{len(labels)} classes in {folder}", f"1 to {MAX_CHANNELS}", "save config.json again"
        )
    settings: dict[str, Any] = {"classes": [label for _, label in labels]}
    settings |= preprocessing(folder, str(config.model_type))
    if settings.pop("reversed", False):
        _reverse_bands(net, folder)
    if name in FIXED and config.image_size is not None:
        size = config.image_size
        settings["size"] = tuple(size) if isinstance(size, list | tuple) else size
    return net, settings | read_settings(folder)


def _built(kind: Any, config: Any) -> nn.Module:
    net: nn.Module = kind(config)
    return net


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder: one file, or the parts that its index lists."""
    one = folder / "model.safetensors"
    if one.is_file():
        return [one]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = read_json(index, "the index of parts").get("weight_map")
        names = sorted({str(v) for v in listed.values()}) if isinstance(listed, Mapping) else []
        if not names or any(not re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
            raise ModelError(f"{index} without plain file names", "weight_map", "save again")
        return [folder / name for name in names]
    found = sorted(folder.glob("model*.safetensors"))
    if len(found) != 1:
        what = f"{len(found)} files model*.safetensors" if found else "no model.safetensors"
        raise ModelError(f"{what} in {folder}", "weights as safetensors", "save_pretrained")
    return found


def _kind_of_number(state: Mapping[str, Tensor]) -> torch.dtype:
    """The kind in which most of the weights are stored."""
    sizes: dict[torch.dtype, int] = {}
    for value in state.values():
        if value.is_floating_point():
            sizes[value.dtype] = sizes.get(value.dtype, 0) + value.numel()
    return max(sizes, key=lambda kind: sizes[kind]) if sizes else torch.float32


def _reverse_bands(net: nn.Module, folder: Path) -> None:
    """Let a network that was trained on blue, green, red see red, green, blue."""
    first = next(
        (part for part in net.modules() if isinstance(part, nn.Conv2d) and part.groups == 1), None
    )
    if first is None or first.in_channels != 3:
        raise ModelError(
            f"do_flip_channel_order in {folder} and a network of no three bands",
            "three bands to reverse",
            "set do_flip_channel_order to false and give the bands in the network's order",
        )
    with torch.no_grad():
        first.weight.copy_(first.weight.flip(1))
