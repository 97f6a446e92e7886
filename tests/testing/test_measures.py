"""Every built-in measure passes its checks, and each planted fault is caught by its check."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from check_reports import failures, statuses
from segproof.errors import SegproofError, UnknownNameError
from segproof.explain.target import BoundTarget
from segproof.measures import pictures as measures
from segproof.measures.records import MEASURES
from segproof.testing import (
    check_measure,
)

FEW = 4  # cases where one is enough to see it


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_pass(measure: str) -> None:
    report = check_measure(measure)
    report.raise_for_failures()
    assert set(statuses(report).values()) == {"passed"}


def test_measures_that_are_not_in_the_table_pass() -> None:
    kept = check_measure(
        measures.entropy_kept, low=0, high=1, better="lower", undefined=("empty", "nothing_kept")
    )
    kept.raise_for_failures()
    check_measure(
        measures.entropy_paper, low=0, high=1, better="lower", undefined=()
    ).raise_for_failures()


def mean_over_region(p: Tensor, bound: BoundTarget) -> Tensor:
    inside = bound.region.double()
    return (p[:, bound.class_index].double() * inside).sum((1, 2)) / inside.sum((1, 2))


def measure_averages(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    found = mean_over_region(p, bound)
    return found.mean().expand_as(found)


def measure_reads_everything(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    return p[:, bound.class_index].double().mean((1, 2)) + 0 * mean_over_region(p, bound)


def measure_is_upside_down(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    return 1 - mean_over_region(p, bound)


def measure_leaves_its_range(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    return 1.5 * mean_over_region(p, bound)


def measure_is_single(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    return mean_over_region(p, bound).float()


def measure_hides_the_undefined(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    return mean_over_region(p, bound).nan_to_num(1.0)


def measure_is_nan_where_nothing_is_left(
    p: Tensor, bound: BoundTarget, truth: Tensor | None
) -> Tensor:
    found = mean_over_region(p, bound)
    return torch.where(found > 0.01, found, math.nan)


def measure_sorts_in_place(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    found = mean_over_region(p, bound)
    p[:, 0] = 0.5
    return found


def measure_draws(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    found = mean_over_region(p, bound)
    return found * (1 - 1e-6 * torch.rand(len(found)).double())


def measure_is_blind(p: Tensor, bound: BoundTarget, truth: Tensor | None) -> Tensor:
    return torch.full_like(mean_over_region(p, bound), 0.5)


@pytest.mark.parametrize(
    ("measure", "check"),
    [
        (measure_averages, "batch"),
        (measure_reads_everything, "outside"),
        (measure_is_upside_down, "direction"),
        (measure_leaves_its_range, "range"),
        (measure_is_single, "shape"),
        (measure_hides_the_undefined, "undefined"),
        (measure_is_nan_where_nothing_is_left, "undefined"),
        (measure_sorts_in_place, "untouched"),
        (measure_draws, "repeat"),
        (measure_is_blind, "range"),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_faulty_measures_are_caught(measure: Any, check: str) -> None:
    report = check_measure(measure, low=0.0, high=1.0, better="higher")
    assert check in failures(report)


def test_a_measure_without_a_fault_passes() -> None:
    report = check_measure(
        lambda p, bound, truth: mean_over_region(p, bound), low=0.0, high=1.0, better="higher"
    )
    report.raise_for_failures()


def test_an_own_measure_states_its_range() -> None:
    with pytest.raises(SegproofError, match="low, high and better"):
        check_measure(measures.confidence, low=0, high=1)
    with pytest.raises(UnknownNameError, match="confidence"):
        check_measure("confidance")
    with pytest.raises(UnknownNameError, match="nothing_kept"):
        check_measure("kept", undefined=["nothing kept"])
