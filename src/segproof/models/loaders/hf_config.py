"""Checks a configuration of transformers before that package sees it, and reads its processor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from segproof.errors import ModelError
from segproof.models.loaders.files import IMAGENET, MAX_CHANNELS, read_json

__all__ = ["plain_config", "preprocessing"]

# what these hold is no part of the network's shape; some of them name places to load from
DROPPED: Final = frozenset(
    {
        *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version"),
        *("transformers_weights", "attn_implementation", "_attn_implementation"),
        *("_attn_implementation_autoset", "_attn_implementation_internal"),
        *("experts_implementation", "_experts_implementation", "experts_implementation_internal"),
        *("use_pretrained_backbone", "dtype", "torch_dtype", "finetuning_task"),
        *("task_specific_params", "problem_type", "tokenizer_class", "processor_class"),
        *("fusion_config", "distributed_config", "tp_plan", "base_model_tp_plan"),
    }
)
REFUSED: Final = ("auto_map", "custom_pipelines", "quantization_config", "adapter_kwargs")
LABELS: Final = frozenset({"id2label", "label2id"})
PLAIN: Final = re.compile(r"[\w.+-]*")
MAX_DEPTH: Final = 8
MAX_ITEMS: Final = 20_000
MAX_LAYERS: Final = 512
MAX_NUMBER: Final = 1_000_000
MAX_SIDE: Final = 16_384


def plain_config(written: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A configuration whose values are numbers and plain names: no place to load anything from.

    Raises:
        ModelError: a key that would run code, or a value that looks like a path, an address or the
            name of a repository, or a number beyond all networks.
    """
    counter = [0]
    config: dict[str, Any] = _clean(written, path, "", counter)
    return config


def _clean(written: Mapping[str, Any], path: Path, place: str, counter: list[int]) -> Any:
    if place.count(".") > MAX_DEPTH:
        raise ModelError(f"{place} in {path}, nested too deeply", "a plain config", "save it again")
    config: dict[str, Any] = {}
    for key, value in written.items():
        here = f"{place}.{key}" if place else key
        if key in REFUSED and value is not None:
            raise ModelError(
                f"{here} in {path}, which sends transformers for code or other weights",
                "the config of one of its own networks with plain weights",
                f"leave {key} out and save again",
            )
        if key in DROPPED:
            continue
        if key in LABELS:
            config[key] = _labels(value, path, here)
        else:
            config[key] = _value(value, path, here, counter)
    _named_backbone(config, path, f"{place}." if place else "")
    return config


def _value(value: Any, path: Path, here: str, counter: list[int]) -> Any:
    counter[0] += 1
    if counter[0] > MAX_ITEMS:
        raise ModelError(f"over {MAX_ITEMS} values in {path}", "a plain config", "save it again")
    if isinstance(value, Mapping):
        return _clean(value, path, here, counter)
    if isinstance(value, list):
        if here.count(".") > MAX_DEPTH:
            raise ModelError(f"{here} in {path}, nested too deeply", "a plain config", "save again")
        return [_value(item, path, f"{here}.{place}", counter) for place, item in enumerate(value)]
    if isinstance(value, str):
        if not PLAIN.fullmatch(value) or value.startswith("."):
            raise ModelError(
                f"{here} {value[:100]!r} in {path}",
                "a plain name: nothing is downloaded, and no other file is opened",
                "write the network's own settings there, or leave it out, and save again",
            )
        return value
    if isinstance(value, bool) or value is None:
        return value
    name = re.sub(r"\.\d+", "", here).rpartition(".")[2]
    most = MAX_NUMBER
    if re.search(r"layer(?!_?norm)|depth|block|stages|num_heads", name):
        most = MAX_LAYERS
    elif re.search(r"(image|patch|crop|window)_size|num_channels|num_labels", name):
        most = MAX_SIDE
    if not isinstance(value, int | float) or not abs(value) <= most:
        raise ModelError(
            f"{here} {str(value)[:40]} in {path}",
            f"numbers up to {most}",
            "save the config again",
        )
    return value


def _labels(value: Any, path: Path, here: str) -> Any:
    """Names of classes may hold anything, but not any number of it."""
    fits = isinstance(value, Mapping) and len(value) <= MAX_CHANNELS
    if value is not None and not (
        fits
        and all(isinstance(item, str | int) and len(str(item)) <= 1000 for item in value.values())
    ):
        raise ModelError(
            f"{here} in {path} that is no list of names",
            f"an object with at most {MAX_CHANNELS} classes",
            "save the config again",
        )
    return value


def _named_backbone(config: dict[str, Any], path: Path, here: str) -> None:
    """Write the backbone that a config names as a config of its own: transformers asks a hub."""
    named = config.get("backbone")
    if named is None or config.get("model_type") in ("timm_backbone", "timm_wrapper"):
        return
    if config.get("backbone_config") is None:
        import timm

        if not isinstance(named, str) or not timm.is_model(named):
            raise ModelError(
                f"{here}backbone {named!r} in {path}, of which transformers would ask a hub",
                "backbone_config, the settings of the backbone itself",
                "save the network again with a present transformers, which writes them",
            )
        options = config.pop("backbone_kwargs", None) or {}
        config["backbone_config"] = {**options, "model_type": "timm_backbone", "backbone": named}
    for key in ("backbone", "backbone_kwargs", "use_timm_backbone"):
        config.pop(key, None)


def preprocessing(folder: Path, model_type: str) -> dict[str, Any]:
    """Settings from what the folder's image processor does: mean, std, reduce_labels, reversed.

    The processor scales pixel values 0-255 by `rescale_factor` and then normalises; here pictures
    are 0-1, so that its numbers become mean / (255 factor) and std / (255 factor). `reversed`: the
    network sees blue, green, red.

    Raises:
        ModelError: numbers that are none.
    """
    written, path = _processor(folder)
    known = _defaults(str(written.get("image_processor_type", "")), model_type)
    got = {**known, **{key: value for key, value in written.items() if value is not None}}
    got = {**got, **{key: False for key in ("do_normalize", "do_rescale") if _off(written, key)}}
    factor = got.get("rescale_factor", 1 / 255) if got.get("do_rescale", True) else 1.0
    mean, std = got.get("image_mean"), got.get("image_std")
    if not got.get("do_normalize", True) or mean is None or std is None:
        mean, std = None, None
    offset = 1.0 if got.get("do_offset") or got.get("offset") else 0.0
    settings: dict[str, Any] = {"mean": mean, "std": std}
    numbers = [factor, *(mean or ()), *(std or ())] if _lists(mean, std) else [None]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise ModelError(
            f"image_mean {mean!r}, image_std {std!r}, rescale_factor {factor!r} in {path}",
            "numbers, one per band",
            "save the processor again",
        )
    if not factor > 0:
        raise ModelError(f"rescale_factor {factor!r} in {path}", "a positive number", "save again")
    scale = 255 * factor
    if abs(scale - 1) > 1e-6 or offset:
        bands = len(mean) if mean is not None else 3
        settings = {
            "mean": [(m + offset) / scale for m in mean or [0.0] * bands],
            "std": [s / scale for s in std or [1.0] * bands],
        }
    if path is not None and (written.get("do_reduce_labels") or written.get("reduce_labels")):
        settings["reduce_labels"] = True
    if path is not None and got.get("do_flip_channel_order"):
        settings["reversed"] = True
    return settings


def _lists(mean: Any, std: Any) -> bool:
    if mean is None and std is None:
        return True
    return (
        isinstance(mean, list | tuple) and isinstance(std, list | tuple) and len(mean) == len(std)
    )


def _off(written: Mapping[str, Any], key: str) -> bool:
    return key in written and not written[key]


def _processor(folder: Path) -> tuple[dict[str, Any], Path | None]:
    """What the image processor in a folder says, and the file that says it."""
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return read_json(path, "a JSON object"), path
    path = folder / "processor_config.json"
    inside = read_json(path, "a JSON object").get("image_processor") if path.is_file() else None
    return (dict(inside), path) if isinstance(inside, Mapping) else ({}, None)


def _defaults(name: str, model_type: str) -> dict[str, Any]:
    """What the image processor of a network does where its file is silent."""
    import transformers

    name = name.removesuffix("Fast")
    if not name.endswith("ImageProcessor"):
        try:
            from transformers.models.auto import image_processing_auto

            kinds: Any = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]
            kinds = kinds.get(model_type) or ()
        except (ImportError, KeyError):
            kinds = ()
        listed = list(kinds.values()) if isinstance(kinds, Mapping) else list(kinds)
        name = next((str(kind).removesuffix("Pil") for kind in listed if kind), "")
    kind = getattr(transformers, name, None) if name.endswith("ImageProcessor") else None
    keys = ("image_mean", "image_std", "do_normalize", "do_rescale", "do_flip_channel_order")
    if not isinstance(getattr(kind, "image_mean", None), list | tuple):
        return {"image_mean": IMAGENET["mean"], "image_std": IMAGENET["std"]}
    found = {key: getattr(kind, key, None) for key in keys}
    normalises = found["do_normalize"] is not None
    return {k: v for k, v in found.items() if v is not None} | (
        {} if normalises else {"do_normalize": False}
    )
