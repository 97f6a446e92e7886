"""Every built-in fill passes its checks, and each planted fault is caught by its check."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from check_reports import failures, statuses
from segproof.errors import UnknownNameError
from segproof.perturb.records import FILLS
from segproof.testing import (
    check_fill,
)

FEW = 4  # cases where one is enough to see it


@pytest.mark.parametrize("fill", FILLS)
def test_fills_pass(fill: str) -> None:
    report = check_fill(fill)
    report.raise_for_failures()
    assert set(statuses(report).values()) == {"passed"}


def fill_black(images: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep[:, None], images, 0.0)


def fill_multiplies(images: Tensor, keep: Tensor) -> Tensor:
    """0 times NaN is NaN."""
    return images * keep[:, None]


def fill_with_the_mean_of_all(images: Tensor, keep: Tensor) -> Tensor:
    """The mean tells what was removed."""
    return torch.where(keep[:, None], images, images.mean(dim=(2, 3), keepdim=True))


def fill_with_the_mean_of_the_batch(images: Tensor, keep: Tensor) -> Tensor:
    kept = torch.where(keep[:, None], images, 0.0)
    return torch.where(keep[:, None], images, kept.mean())


def fill_rounds(images: Tensor, keep: Tensor) -> Tensor:
    return (fill_black(images, keep) * 255).round() / 255


def fill_blurs_the_edge(images: Tensor, keep: Tensor) -> Tensor:
    soft = nn.functional.avg_pool2d(keep[:, None].float(), 3, 1, 1)
    return torch.where(keep[:, None], images * soft, 0.0)


def fill_draws(images: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep[:, None], images, torch.rand_like(images))


def fill_leaves_the_range(images: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep[:, None], images, -1.0)


def fill_divides(images: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep[:, None], images, math.nan)


def fill_writes(images: Tensor, keep: Tensor) -> Tensor:
    images[~keep[:, None].expand_as(images)] = 0.0
    return images


@pytest.mark.parametrize(
    ("fill", "check"),
    [
        (fill_multiplies, "leak"),
        (fill_with_the_mean_of_all, "leak"),
        (fill_with_the_mean_of_the_batch, "batch"),
        (fill_rounds, "kept"),
        (fill_rounds, "everything"),
        (fill_blurs_the_edge, "kept"),
        (fill_draws, "repeat"),
        (fill_draws, "untouched"),
        (fill_leaves_the_range, "units"),
        (fill_divides, "units"),
        (fill_writes, "untouched"),
        (lambda images, keep: images, "kept"),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_faulty_fills_are_caught(fill: Any, check: str) -> None:
    assert check in failures(check_fill(fill, cases=FEW))


def test_a_fill_without_a_fault_passes_also_for_a_tile_of_its_own() -> None:
    check_fill(fill_black).raise_for_failures()
    tile = 1000 * torch.rand(5, 20, 12)
    check_fill(fill_black, image=tile, high=1000).raise_for_failures()
    assert failures(check_fill(fill_black, image=tile + 1)) == {"units"}
    with pytest.raises(UnknownNameError, match="black"):
        check_fill("blak")
