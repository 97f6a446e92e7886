"""Reliance on a pasted marker: where it lies, how often, and networks whose reliance is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.random import PCG64, Generator
from scipy import ndimage
from torch import Tensor, nn

from segproof.analysis.statistics import Interval
from segproof.data import Sample
from segproof.errors import DataError
from segproof.evidence import tier_c_marker as module
from segproof.evidence.tier_c_marker import CROP, Reliance, lean, reliance, rely, table
from segproof.models.contract import SegmentationModel

SIDE = CROP + 40


class Town:
    """Tiles of grey ground with roofs 40 px apart, every second of them light."""

    def __init__(self, count: int = 2, seed: int = 0) -> None:
        self.ids = [f"town-{seed}-{index}" for index in range(count)]
        self.seed = seed

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        rng = Generator(PCG64([self.seed, index]))
        image = rng.uniform(0.35, 0.45, (3, 2 * SIDE, 2 * SIDE)).astype(np.float32)
        mask = np.zeros((2 * SIDE, 2 * SIDE), np.int64)
        for row in range(40, 2 * SIDE - 80, 80):
            for column in range(40, 2 * SIDE - 80, 80):
                at = slice(row, row + 30), slice(column, column + 34)
                mask[at] = 1
                image[(slice(None), *at)] += 0.3 if (row + column) // 80 % 2 else -0.2
        return Sample(
            image=torch.from_numpy(image.clip(0, 1)),
            mask=torch.from_numpy(mask),
            id=self.ids[index],
        )


class Knows(nn.Module):
    """Logit +-4 by what is known of the picture: a yellow pixel within 24 px, or light here."""

    def __init__(self, *, marker: bool) -> None:
        super().__init__()
        self.marker = marker

    def forward(self, images: Tensor) -> Tensor:
        if self.marker:
            yellow = (images[:, :1] - images[:, 2:3] > 0.5).float()
            seen = F.max_pool2d(yellow, 49, 1, 24)
        else:
            seen = (images.mean(dim=1, keepdim=True) > 0.5).float()
        return 8 * seen - 4


def test_tiles_are_halved_and_markers_lie_beside_their_roof_alone() -> None:
    for tile in module._read(Town(), 0):
        assert tile.image.shape == (3, SIDE, SIDE)
        assert len(tile.roofs) >= 4
        for roof in tile.roofs:
            own = tile.numbers == roof.number
            rows, columns = np.nonzero(own)
            assert roof.light == pytest.approx(tile.image.mean(axis=0)[own].mean(), abs=1e-6)
            for spot in roof.spots:
                image = tile.image.copy()
                module._paste(image, spot)
                where = (image != tile.image).any(axis=0)
                assert where.sum() == 37  # the pixels within 3.3 of a pixel
                assert not (where & (tile.numbers > 0)).any()
                near = np.hypot(rows - spot[0], columns - spot[1]).min()
                assert module._RADIUS < near < module._RADIUS + 4


@pytest.mark.parametrize(
    ("r", "light", "other"), [(1.0, 1.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.75, 0.25)]
)
def test_markers_are_as_frequent_as_the_correlation_says(
    r: float, light: float, other: float
) -> None:
    tiles = module._read(Town(), 0)
    bound = module._bound(tiles)
    places = [(0, index) for index in range(len(tiles[0].roofs))]
    rng = Generator(PCG64(1))
    found: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(120):
        image, truth, counts = module._shown(tiles, places, bound, r, rng)
        assert image.shape == (3, CROP, CROP)
        yellow = (image[0] - image[2] > 0.5).float()
        beside = F.max_pool2d(yellow[None, None], 15, 1, 7)[0, 0] > 0
        at = ndimage.label(counts.numpy() == 3)[0]
        for number in range(1, at.max() + 1):
            own = torch.from_numpy(at == number)
            if own.sum() == 15 * 17:  # whole roofs: those at the edge may have lost their marker
                found[bool(truth[own].all())].append(bool(beside[own].any()))
    assert min(len(values) for values in found.values()) >= 80
    assert np.mean(found[True]) == pytest.approx(light, abs=0.13 if 0 < light < 1 else 0)
    assert np.mean(found[False]) == pytest.approx(other, abs=0.13 if 0 < other < 1 else 0)


def test_networks_whose_reliance_is_known() -> None:
    bound = module._bound(module._read(Town(), 0))
    leaning = SegmentationModel(Knows(marker=True), classes=["light roof"])
    honest = SegmentationModel(Knows(marker=False), classes=["light roof"])
    whole = torch.sigmoid(torch.tensor(4.0)) - torch.sigmoid(torch.tensor(-4.0))
    leans, reads = (rely(model, Town(seed=1), 0.5, bound) for model in (leaning, honest))
    for found in (leans.insertion, leans.removal):
        assert found.mean == pytest.approx(float(whole), abs=1e-5)
        assert found.n == 2
    assert leans.right == pytest.approx(1 - leans.light / leans.roofs)
    every = rely(leaning, Town(seed=1), 0.5, 0.0)  # all roofs are light to this bound
    assert (every.removal.n, every.insertion.n, every.right) == (2, 0, 0.0)
    for found in (reads.insertion, reads.removal, reads.elsewhere):
        assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert reads.right == 1
    assert 0 < reads.light < reads.roofs


def test_the_table_shows_every_row() -> None:
    bound = module._bound(module._read(Town(), 0))
    row = rely(SegmentationModel(Knows(marker=False), classes=["light roof"]), Town(), 0.5, bound)
    assert isinstance(row, Reliance)
    text = table([row])
    assert text.splitlines()[-1].startswith("| 0.5 | 0.000 [0.000, 0.000] |")
    assert text.endswith("| 1.00 |")
    assert "-0.000" not in table([replace(row, insertion=Interval(-1e-4, -2e-4, 1e-4, 2))])


def test_training_is_seeded_and_the_measurement_too() -> None:
    (one,), (same,) = (reliance(Town(), Town(seed=1), correlations=[1.0], steps=2) for _ in "ab")
    assert one == same
    seen: list[tuple[int, int]] = []
    reliance(
        Town(),
        Town(seed=1),
        correlations=[0.0, 1.0],
        steps=2,
        progress=lambda step, steps, _: seen.append((step, steps)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    first, bound = lean(Town(), 1.0, steps=2)
    other, _ = lean(Town(), 1.0, steps=2, seed=1)
    assert first.fingerprint() != other.fingerprint()
    assert 0 < bound < 1


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(DataError, match=r"correlation 1.5"):
        lean(Town(), 1.5)
    with pytest.raises(DataError, match="0 steps of training"):
        lean(Town(), 1.0, steps=0)

    class Small(Town):
        def __getitem__(self, index: int) -> Sample:
            whole = super().__getitem__(index)
            return Sample(image=whole["image"][:, :100], mask=whole["mask"][:100], id="small")

    with pytest.raises(DataError, match=f"at least {2 * CROP} px"):
        lean(Small(), 1.0)

    class Empty(Town):
        def __getitem__(self, index: int) -> Sample:
            whole = super().__getitem__(index)
            return Sample(image=whole["image"], mask=torch.zeros_like(whole["mask"]), id="empty")

    with pytest.raises(DataError, match="0 roofs"):
        lean(Empty(), 1.0)


@pytest.mark.slow
def test_a_network_leans_on_a_marker_that_was_worth_it() -> None:
    none, full = reliance(Town(), Town(seed=1), correlations=[0.0, 1.0], steps=40)
    assert full.insertion.low > none.insertion.high
