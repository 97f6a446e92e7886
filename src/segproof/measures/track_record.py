"""Reads how every measure did where the truth is known, as shipped with the package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from segproof.perturb import DEFAULT_FILLS

__all__ = ["evidence_of", "shipped_evidence"]


USUAL: Final = DEFAULT_FILLS["strict"]  # stands for fills that were not tried


@lru_cache(maxsize=1)
def shipped_evidence() -> Mapping[str, Any]:
    """How every measure did where the truth is known: version, command, seed, and by measure a list
    of cards with tier, fill, binarisation, tau, low, high, ties, ...; `segproof evidence` made it.
    """
    path = Path(__file__).parents[1] / "assets" / "evidence" / "cards.json"
    tables: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tables


def evidence_of(measure: str, binarisation: str = "area", fill: str = USUAL) -> Sequence[Any]:
    """The shipped cards of a measure, one a tier; of another fill where there are none of `fill`.

    Measures of cut maps are called m1_confidence, m2_confidence, m3_certainty, m3_entropy_paper,
    iou_drop and contrast; those of whole maps (binarisation "map") as they are.
    """
    cards = shipped_evidence()["measures"].get(measure, [])
    cards = [card for card in cards if card["binarisation"] == binarisation]
    return [card for card in cards if card["fill"] == fill] or [
        card for card in cards if card["fill"] == USUAL
    ]
