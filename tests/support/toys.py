"""Small real networks and pictures for the tests: seeded, and quick even in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segproof.perturb import FillContext, seeded
from segproof.testing.toys import LAYERS, ToyNet, toy_images, toy_model, toy_truth

__all__ = ["LAYERS", "Shallow", "ToyNet", "clean", "some", "toy_images", "toy_model", "toy_truth"]


class Shallow(nn.Module):
    """One convolution to two channels, and a head: layer `layer`, all by hand."""

    def __init__(self, layer: list[float], offsets: list[float], head: list[float], bias: float):
        super().__init__()
        self.layer = nn.Conv2d(1, len(layer), 1)
        self.head = nn.Conv2d(len(layer), 1, 1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor(layer).view(-1, 1, 1, 1))
            self.layer.bias.copy_(torch.tensor(offsets))  # type: ignore[union-attr]
            self.head.weight.copy_(torch.tensor(head).view(1, -1, 1, 1))
            self.head.bias.fill_(bias)  # type: ignore[union-attr]

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(self.layer(images))
        return result


def some(seed: int, side: int = 12) -> Tensor:
    """A random bool mask, neither full nor empty."""
    mask = torch.rand(side, side, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask[0, 0], mask[0, 1] = True, False
    return mask


def clean(seed: int, side: int = 16) -> FillContext:
    """What a fill looks at on a toy picture: everything valid, background beside the truth."""
    truth = toy_truth(seed, side=side)[0]
    return FillContext(
        image=toy_images(seed, side=side)[0].float(),
        neutral=torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1),
        background=~truth,
        valid=torch.ones(side, side, dtype=torch.bool),
        generator=seeded("test", seed),
    )
