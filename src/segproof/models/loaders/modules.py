"""Reads the classes of a network that is there already as a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from segproof.errors import ModelError
from segproof.models.loaders.files import MAX_CHANNELS, class_names

__all__ = ["classes_of", "unwrapped"]

NAMES: Final = ("class_names", "classes")
NUMBERS: Final = ("num_classes", "n_classes", "classes", "out_channels", "num_labels")
WRAPPERS: Final = ("_orig_mod", "module", "_fsdp_wrapped_module")


def unwrapped(net: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel and the like."""
    while True:
        inner = next((getattr(net, name) for name in WRAPPERS if hasattr(net, name)), None)
        if not isinstance(inner, nn.Module) or len(list(net.children())) != 1:
            return net
        net = inner


def classes_of(net: nn.Module) -> list[str] | None:
    """The class names that a network says itself, or one for each of the channels that it states;
    None where it says nothing.

    Raises:
        ModelError: it states two numbers of channels.
    """
    net = unwrapped(net)
    labels = getattr(getattr(net, "config", None), "id2label", None)
    if isinstance(labels, Mapping) and labels:
        return [str(label) for _, label in sorted((int(k), v) for k, v in labels.items())]
    stated = _stated(net)
    for key in NAMES:
        names = stated.get(key)
        if isinstance(names, list | tuple) and names and all(isinstance(n, str) for n in names):
            return list(names)
    counts = {key: stated[key] for key in NUMBERS if type(stated.get(key)) is int}
    head = _head(net)
    if head is not None:
        counts = {"the last convolution": head}
    if len(set(counts.values())) > 1:
        raise ModelError(
            f"a network with {', '.join(f'{key} {value}' for key, value in counts.items())}",
            "one number of channels",
            "give classes=, one name per channel",
        )
    number = next(iter(counts.values()), 0)
    return class_names(number) if 1 <= number <= MAX_CHANNELS else None


def _stated(net: nn.Module) -> dict[str, Any]:
    """Attributes of a network, or hyper-parameters of a LightningModule, that speak of classes."""
    kept = getattr(net, "hparams", None)
    hyper = dict(kept) if isinstance(kept, Mapping) else {}
    own = {key: getattr(net, key) for key in (*NAMES, *NUMBERS) if hasattr(net, key)}
    return {**{key: value for key, value in hyper.items() if value is not None}, **own}


def _head(net: nn.Module) -> int | None:
    """Channels of the last convolution of a head: smp's, or torchvision's classifier."""
    head = getattr(net, "segmentation_head", None)
    if head is None and type(net).__module__.startswith("torchvision.models.segmentation"):
        head = getattr(net, "classifier", None)
    if not isinstance(head, nn.Module):
        return None
    return next(
        (part.out_channels for part in reversed(list(head.modules()))
         if isinstance(part, nn.Conv2d)), None
    )  # fmt: skip
