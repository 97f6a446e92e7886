"""Describes a measure: one record of function, direction, range, cost, meaning and failure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from segproof.measures.track_record import evidence_of

if TYPE_CHECKING:
    from torch import Tensor

    from segproof.explain import BoundTarget
    from segproof.measures.case import HeatmapCase

__all__ = ["CutFunction", "MapMeasure", "Measure", "PictureMeasure"]

# probabilities [N, K, H, W], the bound target, the truth bool [N or 1, H, W] or None -> float64 [N]
PictureMeasure: TypeAlias = Callable[["Tensor", "BoundTarget", "Tensor | None"], "Tensor"]
# one heatmap of one picture -> a number
MapMeasure: TypeAlias = Callable[["HeatmapCase"], float]
# what was read of the clean picture and of M1, M2, M3 (attributes clean, m1, m2, m3) -> float64 [n]
CutFunction: TypeAlias = Callable[[Any], "Tensor"]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Measure(Generic[Function]):
    """What is to be known of a measure before it is believed; calling the record measures.

    `better` is its direction, `low` and `high` its range, `unit` what it is counted in, `formula`
    how it is computed and `meaning` what it says. `source` is a key of docs/references.bib, ""
    where the measure was made here. `forwards` is what one number costs, `needs` what has to be
    there for it, `failure` the known way in which it misleads. `column` is the column of results
    that a headline measure reads, `tried_as` its name in the shipped evidence. `explains_again`
    measures run the method on other pictures or networks.
    """

    name: str
    function: Function
    better: Literal["higher", "lower", "neither"] = "higher"
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    label: str = ""
    kind: Literal["headline", "picture", "map"] = "map"
    formula: str = ""
    meaning: str = ""
    source: str = ""
    forwards: str = "0"
    needs: str = ""
    failure: str = ""
    column: str = ""
    tried_as: str = ""
    explains_again: bool = False

    def __call__(self, *arguments: Any) -> Any:
        """The measure's value, or values."""
        return self.function(*arguments)

    @property
    def direction(self) -> str:
        """Which values are better, in words."""
        return "no direction" if self.better == "neither" else f"{self.better} is better"

    def track_record(self) -> list[dict[str, Any]]:
        """The shipped evidence on this measure, one entry a tier; empty where it was not tried."""
        binarisation = "area" if self.kind == "headline" else "map"
        return [dict(card) for card in evidence_of(self.tried_as, binarisation)]
