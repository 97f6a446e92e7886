"""Builds small seeded networks and pictures to try code on, and failures to put into them.

The checks of `segproof.testing` use them; docs/guide/extending.md shows how.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from segproof.explain import BoundTarget, Target
from segproof.models import SegmentationModel

__all__ = [
    "LAYERS",
    "SIDE",
    "Fails",
    "ToyNet",
    "symmetric_model",
    "toy_images",
    "toy_model",
    "toy_truth",
]


LAYERS: Final = ("decoder.blocks.0", "decoder.blocks.1")  # of ToyNet, coarse and fine
SIDE: Final = 16


@dataclass
class Fails:
    """Raises `error` in a toy network after some forwards, or in a target; counts how often."""

    error: type[BaseException]
    raised: int = 0

    def now(self, *_: object) -> Any:
        """Raise it, whatever the arguments."""
        self.raised += 1
        raise self.error("on purpose")

    @contextmanager
    def network(self, model: SegmentationModel, after: int | None) -> Iterator[None]:
        """The last layer fails from forward number `after` on (0 = the first); None: never."""
        head = model.net.get_submodule("segmentation_head")
        calls = 0

        def hook(_module: nn.Module, _inputs: object) -> None:
            nonlocal calls
            calls += 1
            if after is not None and calls > after:
                self.now()

        handle = head.register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def target(self, place: str, real: Target) -> Any:
        """A target that fails when it is bound ("target") or when it is read ("score")."""
        fails = self

        class Bound(BoundTarget):
            def score(self, logits: Tensor) -> Tensor:
                fails.now()
                return logits

        class Failing:
            def bind(self, *arguments: Any, **options: Any) -> BoundTarget:
                if place == "target":
                    fails.now()
                return Bound(**vars(real.bind(*arguments, **options)))

        return Failing()


# --- small networks and pictures ------------------------------------------------------------------
class _Block(nn.Module):
    """Twice the size, joined with the skip connection, convolved."""

    def __init__(self, inside: int, skip: int, outside: int, act: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside + skip, outside, 3, padding=1)
        self.norm = nn.BatchNorm2d(outside)
        self.act = act

    def forward(self, deep: Tensor, skip: Tensor | None) -> Tensor:
        up = interpolate(deep, scale_factor=2.0, mode="nearest")
        joined = up if skip is None else torch.cat([up, skip], dim=1)
        result: Tensor = self.act(self.norm(self.conv(joined)))
        return result


class _Decoder(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Block(8, 6, 7, act), _Block(7, 0, 5, act)])

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        middle = self.blocks[0](deep, skip)
        result: Tensor = self.blocks[1](middle, None)
        return result


class ToyNet(nn.Module):
    """A convolutional encoder-decoder with dropout and normalisation, sides divisible by 4."""

    def __init__(self, channels: int = 1, act: nn.Module | None = None, bands: int = 3) -> None:
        super().__init__()
        act = nn.ReLU(inplace=True) if act is None else act
        self.encoder = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(bands, 6, 3, stride=2, padding=1), nn.ReLU()),
                nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Dropout(0.5), nn.ReLU()),
            ]
        )
        self.decoder = _Decoder(act)
        self.segmentation_head = nn.Conv2d(5, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, channels, H, W]."""
        skip = self.encoder[0](images)
        result: Tensor = self.segmentation_head(self.decoder(skip, self.encoder[1](skip)))
        return result


class _Symmetric(nn.Module):
    """Circular padding and kernels symmetric under flips and quarter turns, so that f(g x) = g f(x)
    for these, and for shifts by an even number of pixels.
    """

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular")
        self.middle = nn.Sequential(nn.Conv2d(6, 7, 3, padding=1, padding_mode="circular"), act)
        self.last = nn.Sequential(nn.Conv2d(13, 5, 3, padding=1, padding_mode="circular"), act)
        self.segmentation_head = nn.Conv2d(5, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images).relu()
        deep = interpolate(self.middle(avg_pool2d(first, 2)), scale_factor=2.0, mode="nearest")
        result: Tensor = self.segmentation_head(self.last(torch.cat([deep, first], dim=1)))
        return result


def toy_model(
    seed: int = 0,
    *,
    classes: Sequence[str] = ("roof",),
    act: str = "relu",
    activation: str = "softmax",
) -> SegmentationModel:
    """A `ToyNet` in float64 and eval mode, its predictions neither full nor empty.

    `act` "silu" gives signed activations. No global generator is touched.
    """
    return copy.deepcopy(_toy_once(seed, tuple(classes), act, activation))


@lru_cache(maxsize=256)
def _toy_once(seed: int, classes: tuple[str, ...], act: str, activation: str) -> SegmentationModel:
    """Never handed out itself: who gets a model may change it."""
    return _drawn(lambda inner: ToyNet(len(classes), inner), seed, classes, act, activation)


def _drawn(
    make: Callable[[nn.Module | None], nn.Module],
    seed: int,
    classes: tuple[str, ...],
    act: str,
    activation: str = "softmax",
) -> SegmentationModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # torch's own initial weights, drawn anew below
        net = make(nn.SiLU() if act == "silu" else None)
    with torch.no_grad():
        for name, value in (*net.named_parameters(), *net.named_buffers()):
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator)
                if "running_var" in name or "norm.weight" in name:
                    value.copy_(0.5 + drawn.abs())
                elif "running_mean" in name or "bias" in name:
                    value.copy_(0.3 * drawn)
                else:
                    value.copy_(drawn / value[0].numel() ** 0.5 * 2)
    model = SegmentationModel(
        net,
        classes=classes,
        mean=[0.4, 0.5, 0.6],
        std=[0.2, 0.25, 0.3],
        activation="sigmoid" if activation == "sigmoid" else "softmax",
    )
    model.double().eval()
    _centre(model, seed)
    return model


def _centre(model: SegmentationModel, seed: int) -> None:
    """Shift the last bias so that each class gets its share of the pictures."""
    bias = dict(model.net.named_parameters())["segmentation_head.bias"]
    with torch.no_grad():
        logits = model.net((toy_images(seed, n=4) - model.mean) / model.std)
        bias.sub_(logits.movedim(1, 0).flatten(1).median(dim=1).values)


@lru_cache(maxsize=256)
def symmetric_model(seed: int, act: str) -> SegmentationModel:
    """As `_toy_once`."""
    model = _drawn(lambda inner: _Symmetric(inner or nn.ReLU()), seed, ("roof",), act)
    with torch.no_grad():
        for module in model.net.modules():
            if isinstance(module, nn.Conv2d):
                weight = module.weight.clone()
                turned = [weight.rot90(k, (2, 3)) for k in range(4)]
                # scaled up again: the mean of eight kernels is small
                module.weight.copy_(
                    sum((t + t.flip(3) for t in turned), torch.zeros_like(weight)) / 8**0.5
                )
    _centre(model, seed)
    return model


def toy_images(seed: int = 0, n: int = 1, side: int = SIDE) -> Tensor:
    """Smooth random pictures in [0, 1], float64 [n, 3, side, side]."""
    generator = torch.Generator().manual_seed(1000 + seed)
    coarse = torch.rand(n, 3, side // 4, side // 4, generator=generator, dtype=torch.float64)
    fine = torch.rand(n, 3, side, side, generator=generator, dtype=torch.float64)
    return 0.8 * interpolate(coarse, scale_factor=4.0, mode="nearest") + 0.2 * fine


def toy_truth(seed: int = 0, n: int = 1, side: int = SIDE) -> Tensor:
    """One random box per picture, bool [n, side, side]."""
    generator = torch.Generator().manual_seed(2000 + seed)
    masks = torch.zeros(n, side, side, dtype=torch.bool)
    for k in range(n):
        top, left = torch.randint(0, side // 2, (2,), generator=generator).tolist()
        masks[k, top : top + side // 3, left : left + side // 2] = True
    return masks
