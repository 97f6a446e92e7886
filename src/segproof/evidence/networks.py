"""Builds small networks of three families, fast enough to be trained on one core."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NETS", "DeepLab", "SegFormer", "UNet"]


class _Block(nn.Sequential):
    """Two convolutions of 3 x 3 with batch norm."""

    def __init__(self, inside: int, outside: int, dilation: int = 1) -> None:
        layers: list[nn.Module] = []
        for channels in (inside, outside):
            layers += [
                nn.Conv2d(channels, outside, 3, 1, dilation, dilation, bias=False),
                nn.BatchNorm2d(outside),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """A plain U-Net of strides 1 to 8 with 12 to 48 channels (ronneberger2015unet)."""

    def __init__(self, channels: Sequence[int] = (12, 20, 32, 48)) -> None:
        super().__init__()
        wide = list(channels)
        self.encoder = nn.ModuleList(
            _Block(inside, outside) for inside, outside in zip([3, *wide], wide, strict=False)
        )
        self.decoder = nn.ModuleList(
            _Block(deep + skip, skip) for deep, skip in zip(wide[:0:-1], wide[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(wide[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, 1, H, W]; the sides are multiples of 8."""
        skips: list[Tensor] = []
        x = images
        for stage in self.encoder:
            x = stage(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for block, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skip], dim=1))
        logits: Tensor = self.head(x)
        return logits


class _Pyramid(nn.Module):
    """Parallel convolutions of several dilations, joined by one of 1 x 1."""

    def __init__(self, inside: int, outside: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inside, outside, 3, padding=rate, dilation=rate, bias=False),
                nn.BatchNorm2d(outside),
                nn.ReLU(inplace=True),
            )
            for rate in rates
        )
        self.join = nn.Sequential(
            nn.Conv2d(outside * len(rates), outside, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = self.join(torch.cat([branch(x) for branch in self.branches], dim=1))
        return joined


class DeepLab(nn.Module):
    """After DeepLabV3+ (chen2018encoder): stride 4, dilations 1, 2 and 4 side by side, one skip.

    Without the pooling of the whole picture, which would let far objects in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([_Block(3, 12), _Block(12, 24), _Block(24, 40)])
        self.decoder = nn.ModuleList([_Pyramid(40, 32, (1, 2, 4)), _Block(32 + 12, 16)])
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, 1, H, W]; the sides are multiples of 4."""
        fine = self.encoder[0](images)
        deep = self.encoder[2](F.max_pool2d(self.encoder[1](F.max_pool2d(fine, 2)), 2))
        wide = F.interpolate(
            self.decoder[0](deep), scale_factor=4.0, mode="bilinear", align_corners=False
        )
        logits: Tensor = self.head(self.decoder[1](torch.cat([wide, fine], dim=1)))
        return logits


class _Attention(nn.Module):
    """Self-attention of tokens [N, L, C] whose keys are a grid reduced by `ratio`."""

    def __init__(self, channels: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads, self.ratio = heads, ratio
        self.query = nn.Linear(channels, channels)
        self.keys = nn.Linear(channels, 2 * channels)
        self.reduce = nn.Conv2d(channels, channels, ratio, ratio) if ratio > 1 else nn.Identity()
        self.norm = nn.LayerNorm(channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        n, length, channels = tokens.shape
        few = self.reduce(tokens.transpose(1, 2).reshape(n, channels, *size))
        few = self.norm(few.flatten(2).transpose(1, 2))

        def heads(x: Tensor) -> Tensor:
            return x.reshape(n, x.shape[1], self.heads, -1).transpose(1, 2)

        key, value = self.keys(few).chunk(2, dim=-1)
        query, key, value = heads(self.query(tokens)), heads(key), heads(value)
        weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        out: Tensor = self.out((weights @ value).transpose(1, 2).reshape(n, length, channels))
        return out


class _Transformer(nn.Module):
    """Attention, then a perceptron with a depthwise convolution that tells the place."""

    def __init__(self, channels: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = _Attention(channels, heads, ratio)
        self.wide = nn.Linear(channels, 3 * channels)
        self.near = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels)
        self.narrow = nn.Linear(3 * channels, channels)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens), size)
        wide = self.wide(self.norm2(tokens)).transpose(1, 2)
        near = self.near(wide.reshape(*wide.shape[:2], *size)).flatten(2)
        out: Tensor = tokens + self.narrow(F.gelu(near).transpose(1, 2))
        return out


class _Stage(nn.Module):
    """Overlapping patches to tokens, transformer blocks, and back to a grid [N, C, h, w]."""

    def __init__(
        self, inside: int, outside: int, kernel: int, heads: int, ratio: int, blocks: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(inside, outside, kernel, 2, kernel // 2)
        self.norm1, self.norm2 = nn.LayerNorm(outside), nn.LayerNorm(outside)
        self.blocks = nn.ModuleList(_Transformer(outside, heads, ratio) for _ in range(blocks))

    def forward(self, images: Tensor) -> Tensor:
        grid = self.patches(images)
        size = (int(grid.shape[-2]), int(grid.shape[-1]))
        tokens = self.norm1(grid.flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens, size)
        out: Tensor = self.norm2(tokens).transpose(1, 2).reshape(len(grid), -1, *size)
        return out


class SegFormer(nn.Module):
    """After SegFormer (xie2021segformer): attention over the whole picture at strides 2, 4 and 8,
    then a perceptron over all three. Each token of stride 2 gives the logits of its 2 x 2 pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            [_Stage(3, 24, 7, 1, 4, 1), _Stage(24, 40, 3, 2, 2, 2), _Stage(40, 56, 3, 4, 1, 2)]
        )
        self.decoder = nn.ModuleList(nn.Conv2d(channels, 32, 1) for channels in (24, 40, 56))
        self.fuse = nn.Sequential(
            nn.Conv2d(3 * 32, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
        )
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, 1, H, W]; the sides are multiples of 8."""
        levels: list[Tensor] = []
        x = images
        for stage, join in zip(self.encoder, self.decoder, strict=True):
            x = stage(x)
            level = join(x)
            levels.append(
                F.interpolate(level, levels[0].shape[-2:], mode="bilinear", align_corners=False)
                if levels
                else level
            )
        return F.pixel_shuffle(self.head(self.fuse(torch.cat(levels, dim=1))), 2)


NETS: Final[dict[str, Callable[[], nn.Module]]] = {
    "unet": UNet,
    "deeplab": DeepLab,
    "segformer": SegFormer,
}
