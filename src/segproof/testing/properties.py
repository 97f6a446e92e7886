"""Compares two maps of a method that have to be equal: properties of methods and their limits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from segproof.explain import METHODS, BoundTarget, Capture, MethodFunction, RawMap, Target, capture
from segproof.models import SegmentationModel
from segproof.perturb import seeded
from segproof.testing.report import BATCH, FLAT
from segproof.testing.toys import LAYERS, symmetric_model, toy_images, toy_model

__all__ = ["LIMITS", "PROPERTIES", "Property"]

ROOF: Final = Target("roof")
CLOSE: Final = 1e-6  # of full range, in float64: formulas rearranged, nothing else


@dataclass(frozen=True)
class Property:
    """A relation between two maps. `compare` takes a method and the number of a case, and gives how
    far apart the maps are (share of full range) and whether they show something (are not flat).
    """

    name: str
    says: str
    allowed: float
    compare: Callable[[MethodFunction, int], tuple[float, bool]]


@dataclass(frozen=True)
class _Bound(BoundTarget):
    """Y times `factor` plus `shift`."""

    factor: float = 1.0
    shift: float = 0.0

    def score(self, logits: Tensor) -> Tensor:
        return self.factor * super().score(logits) + self.shift


@dataclass(frozen=True)
class ChangedTarget(Target):
    factor: float = 1.0
    shift: float = 0.0

    def bind(self, *arguments: Any, **options: Any) -> BoundTarget:
        bound = super().bind(*arguments, **options)
        return _Bound(**vars(bound), factor=self.factor, shift=self.shift)


def layer_of(case: int) -> str:
    return LAYERS[case % 2]


def activation_of(case: int) -> str:
    return ("relu", "silu")[case // 2 % 2]


def toy_of(case: int) -> SegmentationModel:
    return toy_model(case // 4, act=activation_of(case))


def captured(
    model: SegmentationModel,
    images: Tensor,
    layers: Sequence[str] = LAYERS,
    target: Target = ROOF,
) -> Capture:
    """A capture whose baseline follows the picture pixel by pixel, and so any turn of it."""
    return capture(model, images, target, layers, baseline=0.35 + 0.1 * images)


def raw_map(method: MethodFunction, seen: Capture, layer: str, model: SegmentationModel) -> Tensor:
    made = method(seen, layer, model)
    return made.values if isinstance(made, RawMap) else made


def _unit(maps: Tensor) -> Tensor:
    """Each map [N, h, w] over its greatest absolute value: signs stay, the unit goes."""
    top = maps.abs().amax(dim=(1, 2), keepdim=True)
    return maps / torch.where(top > 0, top, 1.0)


def _compared(one: Tensor, other: Tensor) -> tuple[float, bool]:
    if one.shape != other.shape:
        return math.inf, True
    first, second = _unit(one.double()), _unit(other.double())
    apart = float((first - second).abs().max())
    lively = bool((first.amax(dim=(1, 2)) - first.amin(dim=(1, 2)) > FLAT).all())
    return (math.inf if math.isnan(apart) else apart), lively


def _bitwise(one: Tensor, other: Tensor) -> tuple[float, bool]:
    apart, lively = _compared(one, other)
    same = one.dtype == other.dtype and torch.equal(one, other)
    return (0.0 if same else max(apart, 1e-15)), lively


def _repeat(method: MethodFunction, case: int) -> tuple[float, bool]:
    maps = []
    for _ in range(2):
        model, images = toy_of(case).float(), toy_images(case).float()
        maps.append(raw_map(method, captured(model, images), layer_of(case), model))
    return _bitwise(*maps)


def _batch(method: MethodFunction, case: int) -> tuple[float, bool]:
    # not float32 where activations are signed: their sums may cancel down to rounding noise
    number = torch.float32 if activation_of(case) == "relu" else torch.float64
    model, images, layer = toy_of(case).to(number), toy_images(case, 3).to(number), layer_of(case)
    together = raw_map(method, captured(model, images), layer, model)
    alone = [raw_map(method, captured(model, image[None]), layer, model) for image in images]
    return _compared(together, torch.cat(alone))


def _with_target(method: MethodFunction, case: int, target: Target) -> tuple[float, bool]:
    model, images, layer = toy_of(case), toy_images(case), layer_of(case)
    plain = raw_map(method, captured(model, images), layer, model)
    return _compared(plain, raw_map(method, captured(model, images, target=target), layer, model))


def _scaled(method: MethodFunction, case: int) -> tuple[float, bool]:
    factor = (1e-3, 0.1, 7.0, 1e3)[case // 4 % 4]
    return _with_target(method, case, ChangedTarget("roof", factor=factor))


def _shifted(method: MethodFunction, case: int) -> tuple[float, bool]:
    shift = (-20.0, -1.0, 3.0, 50.0)[case // 4 % 4]
    return _with_target(method, case, ChangedTarget("roof", shift=shift))


class _Remade(nn.Module):
    """A block that gives channels `order` of what it gave, times `scale`."""

    def __init__(self, block: nn.Module, order: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.block, self.order, self.scale = block, order, scale

    def forward(self, *inputs: Tensor) -> Tensor:
        result: Tensor = self.block(*inputs)[:, self.order] * self.scale
        return result


def _remade(method: MethodFunction, case: int, order: Tensor, scale: Tensor) -> tuple[float, bool]:
    """Maps of a network, and of the same function with the layer's channels rearranged."""
    model, other, images, layer = toy_of(case), toy_of(case), toy_images(case), layer_of(case)
    blocks = cast("nn.ModuleList", other.net.get_submodule("decoder.blocks"))
    next_path = "segmentation_head" if layer == LAYERS[1] else "decoder.blocks.1.conv"
    behind = cast("nn.Conv2d", other.net.get_submodule(next_path))
    copies = torch.bincount(order, minlength=behind.in_channels)
    with torch.no_grad():
        weight = behind.weight[:, order] / copies[order].view(-1, 1, 1) / scale
    behind.weight = nn.Parameter(weight)
    place = LAYERS.index(layer)
    blocks[place] = _Remade(blocks[place], order, scale).eval()
    plain = raw_map(method, captured(model, images), layer, model)
    return _compared(plain, raw_map(method, captured(other, images), layer, other))


def _channels(case: int) -> int:
    return (7, 5)[case % 2]


def _ones(channels: int) -> Tensor:
    return torch.ones(channels, 1, 1, dtype=torch.float64)


def _permuted(method: MethodFunction, case: int) -> tuple[float, bool]:
    count = _channels(case)
    order = torch.randperm(count, generator=seeded("order", case))
    return _remade(method, case, order, _ones(count))


def _doubled(method: MethodFunction, case: int) -> tuple[float, bool]:
    count = _channels(case)
    order = torch.tensor([*range(count), case // 4 % count])
    return _remade(method, case, order, _ones(count + 1))


def _rescaled(method: MethodFunction, case: int) -> tuple[float, bool]:
    count = _channels(case)
    scale = _ones(count)
    scale[case // 4 % count] = (1e-3, 0.5, 20.0, 1e3)[case // 8 % 4]
    return _remade(method, case, torch.arange(count), scale)


def _moved(
    method: MethodFunction, case: int, layer: str, move: Callable[[Tensor], Tensor]
) -> tuple[float, bool]:
    model, images = copy.deepcopy(symmetric_model(case // 4, activation_of(case))), toy_images(case)
    plain = raw_map(method, captured(model, images, [layer]), layer, model)
    moved = raw_map(method, captured(model, move(images), [layer]), layer, model)
    if plain.shape[-2] != plain.shape[-1]:
        return math.inf, True
    return _compared(move(plain), moved)


def _turned(method: MethodFunction, case: int) -> tuple[float, bool]:
    which = 1 + case // 4 % 7  # 0 would leave the picture as it is

    def turn(maps: Tensor) -> Tensor:
        turned = maps.rot90(which % 4, (-2, -1))
        return turned.flip(-1) if which >= 4 else turned

    return _moved(method, case, ("middle", "last")[case % 2], turn)


def _translated(method: MethodFunction, case: int) -> tuple[float, bool]:
    down, right = 2 + 2 * (case // 4 % 7), 2 * (case // 28 % 8)
    return _moved(method, case, "last", lambda maps: maps.roll((down, right), (-2, -1)))


def _two_logits(method: MethodFunction, case: int) -> tuple[float, bool]:
    model, images, layer = toy_of(case), toy_images(case), layer_of(case)
    twin = toy_model(case // 4, act=activation_of(case), classes=("background", "roof"))
    state = dict(model.net.state_dict())
    for name in ("segmentation_head.weight", "segmentation_head.bias"):
        state[name] = torch.cat([torch.zeros_like(state[name]), state[name]])
    twin.net.load_state_dict(state)
    targets = (ROOF, Target("roof", space="probability"), Target("roof", space="margin"))
    target = targets[case // 4 % 3]
    maps = [
        raw_map(method, captured(net, images, target=target), layer, net) for net in (model, twin)
    ]
    return _compared(*maps)


def _captured_once(method: MethodFunction, case: int) -> tuple[float, bool]:
    model, images, layer = toy_of(case).float(), toy_images(case).float(), layer_of(case)
    alone = raw_map(method, captured(model, images, [layer]), layer, model)
    shared = captured(model, images)
    for other in (METHODS["eigen_cam"], METHODS["grad_cam_pp"], method):
        for path in reversed(LAYERS):
            other(shared, path, model)
    return _bitwise(alone, raw_map(method, shared, layer, model))


def _property(
    name: str,
    says: str,
    allowed: float,
    compare: Callable[[MethodFunction, int], tuple[float, bool]],
) -> tuple[str, Property]:
    return name, Property(name, says, allowed, compare)


PROPERTIES: Final[dict[str, Property]] = dict(
    [
        _property("repeat", "the same picture has the same map, bit for bit", 0.0, _repeat),
        _property("batch", "a batch has the maps of its pictures one by one", BATCH, _batch),
        _property("target_scaled", "a target times a number changes no heatmap", CLOSE, _scaled),
        _property("target_shifted", "a target plus a number changes no heatmap", CLOSE, _shifted),
        _property("channels_permuted", "the channels' order does not matter", CLOSE, _permuted),
        _property(
            "channel_doubled", "a channel split into two halves changes nothing", CLOSE, _doubled
        ),
        _property("channel_rescaled", "the unit of a channel does not matter", CLOSE, _rescaled),
        _property("turned", "flips and quarter turns of the picture turn the map", CLOSE, _turned),
        _property("translated", "a shifted picture has the shifted map", CLOSE, _translated),
        _property("two_logits", "a one-channel network is its two-logit form", CLOSE, _two_logits),
        _property(
            "captured_once",
            "one capture for many methods and layers is one pass each, bit for bit",
            0.0,
            _captured_once,
        ),
    ]
)

# what each built-in method is known to lack, from its record
LIMITS: Final[dict[str, frozenset[str]]] = {
    name: method.lacks for name, method in METHODS.items() if method.lacks
}
