"""Small real networks and pictures for the tests: seeded, and quick even in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segproof.model import SegmentationModel

LAYERS = ("decoder.blocks.0", "decoder.blocks.1")


class Block(nn.Module):
    """Twice the size, joined with the skip connection, convolved."""

    def __init__(self, inside: int, skip: int, outside: int, act: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside + skip, outside, 3, padding=1)
        self.norm = nn.BatchNorm2d(outside)
        self.act = act

    def forward(self, deep: Tensor, skip: Tensor | None) -> Tensor:
        up = nn.functional.interpolate(deep, scale_factor=2.0, mode="nearest")
        joined = up if skip is None else torch.cat([up, skip], dim=1)
        result: Tensor = self.act(self.norm(self.conv(joined)))
        return result


class Decoder(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(8, 6, 7, act), Block(7, 0, 5, act)])

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
        self.decoder = Decoder(act)
        self.segmentation_head = nn.Conv2d(5, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        skip = self.encoder[0](images)
        result: Tensor = self.segmentation_head(self.decoder(skip, self.encoder[1](skip)))
        return result


def toy_model(
    seed: int = 0, *, classes: tuple[str, ...] = ("roof",), act: str = "relu", activation: str = ""
) -> SegmentationModel:
    """A float64 network in eval mode, its predictions neither full nor empty."""
    generator = torch.Generator().manual_seed(seed)
    net = ToyNet(len(classes), nn.SiLU() if act == "silu" else None)
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
    head = net.segmentation_head
    with torch.no_grad():
        # each class gets its share of the pictures
        logits = net((toy_images(seed, n=4) - model.mean) / model.std)
        head.bias -= logits.movedim(1, 0).flatten(1).median(dim=1).values
    return model


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


def toy_images(seed: int = 0, n: int = 1, side: int = 16) -> Tensor:
    """Smooth random pictures in [0, 1], float64 [n, 3, side, side]."""
    generator = torch.Generator().manual_seed(1000 + seed)
    coarse = torch.rand(n, 3, side // 4, side // 4, generator=generator, dtype=torch.float64)
    fine = torch.rand(n, 3, side, side, generator=generator, dtype=torch.float64)
    up = nn.functional.interpolate(coarse, scale_factor=4.0, mode="nearest")
    return 0.8 * up + 0.2 * fine


def toy_truth(seed: int = 0, n: int = 1, side: int = 16) -> Tensor:
    """One random box per picture, bool [n, side, side]."""
    generator = torch.Generator().manual_seed(2000 + seed)
    masks = torch.zeros(n, side, side, dtype=torch.bool)
    for k in range(n):
        top, left = torch.randint(0, side // 2, (2,), generator=generator).tolist()
        masks[k, top : top + side // 3, left : left + side // 2] = True
    return masks
