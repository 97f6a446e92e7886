"""Lists the measures of whole heatmaps, which a study computes where it names them."""

from __future__ import annotations

from typing import Final

from segproof.measures import curves, robustness
from segproof.measures.case import Card

__all__ = ["MAP_MEASURES"]

MAP_MEASURES: Final[dict[str, Card]] = {**curves.CARDS, **robustness.CARDS}
