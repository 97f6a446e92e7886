"""Averages the rows of a study into image x cell matrices, without a loop over rows.

A cell is one combination of key values, e.g. one method at one layer and level. Rows whose status
is not `ok` are counted and never averaged; images are averaged only when a table is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from segproof.analysis import statistics as stats
from segproof.perturb import CONTROL_PREFIX

__all__ = [
    "Array",
    "Cells",
    "average",
    "control_rows",
    "over_levels",
    "samples_of",
    "with_intervals",
]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """`matrix[i, j]` = value of image i in cell j; `keys` has one line per cell."""

    keys: pd.DataFrame
    matrix: Array
    samples: pd.Index[Any]

    def where(self, chosen: npt.NDArray[np.bool_]) -> Cells:
        """Keep the cells that `chosen`, bool [cells], marks."""
        return Cells(
            self.keys.loc[chosen].reset_index(drop=True), self.matrix[:, chosen], self.samples
        )

    def at(self, places: npt.NDArray[np.intp]) -> Cells:
        """Take the cells with the numbers `places`."""
        return Cells(
            self.keys.iloc[places].reset_index(drop=True), self.matrix[:, places], self.samples
        )

    def groups(self, by: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], npt.NDArray[np.intp]]]:
        """Yield (key values, cell numbers), in order of first appearance."""
        if self.keys.empty:
            return
        number = self.keys.groupby(list(by), sort=False, dropna=False).ngroup().to_numpy()
        # A stable sort keeps the cells of a group in their order; it is cut where the number rises.
        order = np.argsort(number, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
            first = self.keys.iloc[int(places[0])]
            yield tuple(first[name] for name in by), places


def control_rows(rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Say of each row whether its method is a control."""
    return rows["method"].str.startswith(CONTROL_PREFIX).to_numpy(dtype=bool)


def samples_of(rows: pd.DataFrame) -> pd.Index[Any]:
    """The images of `rows`, sorted by name: the lines of every matrix."""
    names: pd.Index[Any] = pd.Index(sorted(rows["sample"].unique()), dtype=object)
    return names


def _values(rows: pd.DataFrame, column: str) -> Array:
    """`column` as float, NaN where the row's status is not ok."""
    if column == "iou_drop":
        values = -rows["iou_delta"].to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        values = rows[column].to_numpy(dtype=np.float64, na_value=np.nan).copy()
    values[(rows["status"] != "ok").to_numpy(dtype=bool)] = np.nan
    return values


def average(
    rows: pd.DataFrame, column: str, by: Sequence[str], samples: pd.Index[Any] | None = None
) -> Cells:
    """Average `column` per image and cell (over the seeds of random blobs, say).

    Cells are sorted by their keys: numbers by size, names in the order in which they appear.
    """
    if samples is None:
        samples = samples_of(rows)
    if rows.empty:
        return Cells(rows[list(by)].reset_index(drop=True), np.empty((len(samples), 0)), samples)
    codes, sizes = [], []
    for name in by:
        code, names = pd.factorize(rows[name], sort=name == "level", use_na_sentinel=False)
        codes.append(code)
        sizes.append(len(names))
    # One number per combination of keys, as if the keys were the digits of that number; the
    # combinations that occur are then numbered 0, 1, 2, ... in the same order.
    combination = np.ravel_multi_index(tuple(codes), tuple(sizes))
    distinct, first, cell = np.unique(combination, return_index=True, return_inverse=True)
    keys = rows.iloc[first][list(by)].reset_index(drop=True)
    image = samples.get_indexer(pd.Index(rows["sample"].astype(object)))
    values = _values(rows, column)
    finite = np.isfinite(values)
    # place of each row in the flattened matrix [images, cells], so that bincount adds them up
    place = image[finite] * len(distinct) + cell[finite]
    shape = (len(samples), len(distinct))
    size = shape[0] * shape[1]
    total = np.bincount(place, weights=values[finite], minlength=size)
    count = np.bincount(place, minlength=size)
    with np.errstate(invalid="ignore"):  # 0 / 0 where an image has no value: NaN is meant
        matrix = (total / count).reshape(shape)
    return Cells(keys, matrix, samples)


def over_levels(
    cells: Cells, reduce: Literal["mean", "auc"] = "mean", levels: Iterable[float] | None = None
) -> Cells:
    """Fold the levels of each image into one value; an image lacking one level is missing.

    `mean` is the plain mean; `auc` the trapezoid area divided by the range of the levels, so that
    it stays in the measure's unit.
    """
    if levels is not None:
        cells = cells.where(cells.keys["level"].isin(list(levels)).to_numpy(dtype=bool))
    by = [name for name in cells.keys.columns if name != "level"]
    firsts, columns = [], []
    for _, members in cells.groups(by):
        block = cells.matrix[:, members]
        level = cells.keys["level"].to_numpy(dtype=np.float64)[members]
        if reduce == "auc" and len(members) > 1:
            columns.append(np.trapezoid(block, level, axis=1) / (level[-1] - level[0]))
        else:
            columns.append(block.mean(axis=1))
        firsts.append(int(members[0]))
    keys = cells.keys.iloc[firsts][by].reset_index(drop=True)
    matrix = np.stack(columns, axis=1) if columns else np.empty((len(cells.samples), 0))
    return Cells(keys, matrix, cells.samples)


def with_intervals(cells: Cells) -> pd.DataFrame:
    """The keys with the mean over images, its 95 % interval (low, high) and n."""
    mean, low, high, n = stats.intervals(cells.matrix)
    return cells.keys.assign(mean=mean, low=low, high=high, n=n.astype(int))
