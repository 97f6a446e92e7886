"""Offers everything that can be said of a study as one object that computes each table once."""

from __future__ import annotations

from functools import cached_property

import pandas as pd

from segproof.analysis import agreement as firmness, tables
from segproof.analysis.basis import Basis
from segproof.analysis.verdict import verdict_of

__all__ = ["Analysis"]


class Analysis(Basis):
    """The rows of a study with every table made from them, each computed once, when first read.

    `Analysis(rows, preset)` adds to `Basis` (headline, measure, validity, against_controls) the
    tables of tasks 1 to 3, the rank agreement and the verdict. Their columns stand in the functions
    of `segproof.analysis.tables` and `segproof.analysis.agreement`; `ranking` goes by the measure
    of the answer, `by_iou_drop` by IoU drop, both over all layers and methods.
    """

    # task 1
    sweep = cached_property(tables.sweep)
    best = cached_property(tables.best)
    auc = cached_property(tables.auc)
    # task 2
    faithfulness = cached_property(tables.faithfulness)
    ranking = cached_property(tables.ranking)
    by_iou_drop = cached_property(tables.ranking_by_iou_drop)
    # task 3
    layers = cached_property(tables.layers)
    # how firm the order is
    mean_ranks = cached_property(firmness.mean_ranks)
    agreement = cached_property(firmness.agreement)
    measure_agreement = cached_property(firmness.measure_agreement)
    fill_agreement = cached_property(firmness.fill_agreement)
    precision = cached_property(firmness.precision)
    # what the tables leave out, and the ends of their scales
    m3_gain = cached_property(tables.m3_gain)
    statuses = cached_property(tables.statuses)
    originals = cached_property(tables.originals)

    def ranked_by(self, measure: str) -> pd.DataFrame:
        """All layer x method pairs together, ranked by any headline measure; see `ranking`."""
        return tables.ranking(self, measure)

    @cached_property
    def verdict(self) -> str:
        """Which method and layer deserve trust, in plain sentences."""
        return verdict_of(self, self.ranking)
