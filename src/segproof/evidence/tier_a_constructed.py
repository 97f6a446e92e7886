"""Builds networks by hand, so that what decides is known exactly: tier a of the evidence.

A picture has three bands: how much of a roof, of a cue and of a decoy each pixel is. Nothing is
trained; background below half strength, decoys and ground have exactly no influence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from segproof.errors import UnknownNameError
from segproof.evidence.known import KnownScene
from segproof.models import SegmentationModel
from segproof.perturb import random_blobs, seeded

__all__ = ["KINDS", "ConstructedNet", "constructed", "constructed_model"]

Kind = Literal["local", "shortcut", "both"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

SIDE: Final = 64  # px; cells of 4 px, the coarsest stride, so that objects fill whole cells
CELL: Final = 4
ROOF, CUE = 5, 4  # sides in cells
BESIDE: Final = (1, 7)  # the cue's upper left cell from the roof's: two free cells lie between
REACH: Final = (4, BESIDE[1] + CUE - 1)  # cells down and right from a roof's cell to its cue's
PARTS: Final = 4  # roof, cue and two decoys
_TRIES: Final = 50


class _Fusing(nn.Module):
    """A decoder block: the deeper map, enlarged to the skip's size, joined with it, convolved."""

    def __init__(self, inside: int, outside: int, kernel: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(inside, outside, kernel, padding=padding)
        self.act = nn.ReLU()

    def forward(self, deep: Tensor, skip: Tensor | None) -> Tensor:
        if skip is not None:
            size = (skip.shape[-2], skip.shape[-1])
            deep = torch.cat([interpolate(deep, size=size, mode="nearest"), skip], dim=1)
        result: Tensor = self.act(self.conv(deep))
        return result


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        context = _Fusing(4, 2, (2 * REACH[0] + 1, 2 * REACH[1] + 1))
        self.blocks = nn.ModuleList([context, _Fusing(6, 2), _Fusing(6, 2)])

    def forward(self, fine: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        context = self.blocks[0](deep, None)
        result: Tensor = self.blocks[2](self.blocks[1](context, middle), fine)
        return result


class ConstructedNet(nn.Module):
    """Roofs by the pixel (`local`), by the cue beside them (`shortcut`), or by roof AND cue.

    encoder.0 detects roof, cue, decoy and ground (stride 1); encoder.1 and .2 average (2, 4);
    encoder.3 finds whole cues for `shortcut` (4); decoder.blocks.0 brings the cue to the place of
    the roof (4); decoder.blocks.1 (2) and .2 (1) join it with the fine roof, the last by the rule
    of the kind. Logits [N, 1, H, W]: about +6 on the class, -6 elsewhere, 0 with half of the roof's
    strength, or of the cue for `both`. No unit saturates: gradients tell what decides.
    """

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()),
                nn.Sequential(nn.Conv2d(4, 4, 2, stride=2), nn.ReLU()),
                nn.Sequential(nn.Conv2d(4, 4, 2, stride=2), nn.ReLU()),
                nn.Sequential(
                    nn.ZeroPad2d((0, CUE - 1, 0, CUE - 1)), nn.Conv2d(4, 4, CUE), nn.ReLU()
                ),
            ]
        )
        self.decoder = _Decoder()
        self.segmentation_head = nn.Conv2d(2, 1, 1)
        with torch.no_grad():
            for value in self.parameters():
                value.zero_()
            self._detect()
            self._locate(kind)
            self._bring(kind)
            self._decide(kind)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, 1, H, W] of pictures [N, 3, H, W]; sides divisible by 4."""
        fine = self.encoder[0](images)
        middle = self.encoder[1](fine)
        deep = self.encoder[3](self.encoder[2](middle))
        result: Tensor = self.segmentation_head(self.decoder(fine, middle, deep))
        return result

    def _convolution(self, path: str) -> Any:
        return self.get_submodule(path)

    def _detect(self) -> None:
        first = self._convolution("encoder.0.0")
        for band in range(3):
            first.weight[band, band] = 1 / 0.35  # objects are painted with about 0.85
            first.bias[band] = -0.5 / 0.35
        # ground is found too, and never used: a channel without influence, as real ones have
        first.weight[3] = -1.0
        first.bias[3] = 1.2
        for stage in (1, 2):
            for channel in range(4):
                self._convolution(f"encoder.{stage}.0").weight[channel, channel] = 1 / 4

    def _locate(self, kind: Kind) -> None:
        found = self._convolution("encoder.3.1")
        for channel in range(4):
            found.weight[channel, channel, 0, 0] = 1.0
        if kind == "shortcut":
            # one cell, the upper left one of a whole cue: three quarters of a cue are none
            found.weight[1, 1] = 4.0 / CUE**2
            found.bias[1] = -3.0

    def _bring(self, kind: Kind) -> None:
        context = self._convolution("decoder.blocks.0.conv")
        down, right = (REACH[axis] + BESIDE[axis] for axis in (0, 1))
        # every cell of the roof looks where its cue was found, or at all cells of the cue
        more, share = (0, 1.0) if kind == "shortcut" else (CUE - 1, 1 / CUE**2)
        rows = slice(down - ROOF + 1, down + more + 1)
        context.weight[0, 1, rows, right - ROOF + 1 : right + more + 1] = share
        context.weight[1, 0, REACH[0], REACH[1]] = 1.0
        for channel in range(2):
            self._convolution("decoder.blocks.1.conv").weight[channel, channel] = 1.0

    def _decide(self, kind: Kind) -> None:
        rule = self._convolution("decoder.blocks.2.conv")  # of near, coarse roof, fine roof, ...
        near, roof = 0, 2
        if kind == "local":
            rule.weight[0, roof] = 1.0
        elif kind == "shortcut":
            rule.weight[0, near] = 1.0
        else:
            rule.weight[0, near] = rule.weight[0, roof] = 1.0
            rule.bias[0] = -1.0
        head = self._convolution("segmentation_head")
        head.weight[0, 0], head.bias[0] = 12.0, -6.0


@lru_cache(maxsize=len(KINDS))
def constructed_model(kind: Kind) -> SegmentationModel:
    """The hand-built network of a kind, behind the usual contract; class "roof".

    Raises:
        UnknownNameError: no such kind.
    """
    if kind not in KINDS:
        raise UnknownNameError.of("kind", kind, KINDS)
    return SegmentationModel(ConstructedNet(kind), classes=["roof"]).eval()


@dataclass(frozen=True)
class _Scene:
    image: Tensor
    absent: Tensor
    roof: Tensor
    cue: Tensor
    decoys: Tensor


def constructed(
    count: int = 8, seed: int = 0, kinds: Sequence[Kind] = KINDS
) -> Iterator[KnownScene]:
    """`count` scenes of 64 x 64 px, each with the networks of all kinds: those of one name share
    the picture, so `local` is the twin of the others.

    A roof of 20 x 20 px, its cue of 16 x 16 px two cells to the right of it, and two decoys that
    are as bright in a band of their own.
    """
    for number in range(count):
        made = _scene(seed, number)
        nothing = torch.zeros_like(made.roof)
        for kind in kinds:
            evidence = {
                "local": made.roof,
                "shortcut": made.cue,
                "both": made.roof | made.cue,
            }[kind]
            yield KnownScene(
                name=f"scene-{number:03d}",
                tier="a",
                kind=kind,
                model=constructed_model(kind),
                class_="roof",
                image=made.image,
                truth=made.roof,
                region=made.roof,
                evidence=evidence,
                cue=nothing if kind == "local" else made.cue,
                decoys=made.decoys | ((made.roof | made.cue) & ~evidence),
                absent=made.absent,
            )


def _scene(seed: int, number: int) -> _Scene:
    generator = seeded("constructed", seed, number)

    masks = [_mask(place) for place in _places(generator)]

    ground = torch.stack([random_blobs((SIDE, SIDE), generator, 1 / 12) for _ in range(3)])
    grain = torch.randn(3, SIDE, SIDE, generator=generator)
    absent = (0.1 + 0.2 * ground + 0.02 * grain).clamp(0.02, 0.4)
    image = absent.clone()
    shine = 0.85 + 0.015 * torch.randn(SIDE, SIDE, generator=generator).clamp(-2.5, 2.5)
    decoys = masks[2] | masks[3]
    for band, mask in enumerate((masks[0], masks[1], decoys)):
        image[band] = torch.where(mask, shine, image[band])
    return _Scene(image, absent, masks[0], masks[1], decoys)


def _places(generator: torch.Generator) -> list[tuple[int, int, int]]:
    """Roof, cue and two decoys as squares (row, column, side) of cells, all apart."""
    cells = SIDE // CELL

    def below(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=generator))

    while True:
        top, left = below(cells - ROOF + 1), below(cells - BESIDE[1] - CUE + 1)
        parts = [(top, left, ROOF), (top + BESIDE[0], left + BESIDE[1], CUE)]
        for _ in range(_TRIES):
            place = (below(cells - CUE + 1), below(cells - CUE + 1), CUE)
            if all(_apart(place, other) for other in parts):
                parts.append(place)
            if len(parts) == PARTS:
                return parts


def _apart(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    """Whether two squares (row, column, side) of cells leave a cell free between them."""
    return any(
        a + size < b or b + side < a
        for a, b, size, side in (
            (one[0], other[0], one[2], other[2]),
            (one[1], other[1], one[2], other[2]),
        )
    )


def _mask(place: tuple[int, int, int]) -> Tensor:
    row, column, side = (CELL * value for value in place)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[row : row + side, column : column + side] = True
    return mask
