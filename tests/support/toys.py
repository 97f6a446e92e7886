"""Small real networks and pictures for the tests: seeded, and quick even in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segproof.testing.toys import LAYERS, ToyNet, toy_images, toy_model, toy_truth

__all__ = ["LAYERS", "Shallow", "ToyNet", "toy_images", "toy_model", "toy_truth"]


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
