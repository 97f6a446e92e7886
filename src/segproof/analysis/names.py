"""Names the measures, methods and strategies of a study as people write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from segproof.errors import UnknownNameError
from segproof.explain import METHODS
from segproof.measures import headline
from segproof.perturb import STRATEGIES, control_name, control_of

if TYPE_CHECKING:
    from segproof.explain import Preset

__all__ = [
    "HEADLINE_MEASURES",
    "JOINED",
    "KEYS",
    "REMOVING",
    "SHORT",
    "definition_of",
    "higher_is_better",
    "measure_label",
    "measure_of",
    "method_label",
    "strategy_label",
]

SHORT: Final = {
    "background_only": "M1",
    "highlighted_only": "M2",
    "highlighted_and_target": "M3",
}
JOINED = "contrast"  # M2 - M1: M1 cannot see a part missing, M2 ties poor maps
# the headline measures in the order of every table
HEADLINE_MEASURES = ("M1", "M2", "M3", "iou_drop", JOINED)
REMOVING = ("M1", "iou_drop", JOINED)  # under a fill that is not valid they measure outlines
KEYS = ["layer", "method", "binarisation", "level", "strategy", "reference", "fill"]


def method_label(method: str) -> str:
    """Name of a method or control as people write it."""
    record = control_of(method) or METHODS.get(method)
    return control_name(method) if record is None else record.label


def strategy_label(strategy: str) -> str:
    """Name of a strategy with its published number, e.g. `M1 background_only`."""
    return f"{SHORT[strategy]} {strategy}" if strategy in SHORT else strategy


def measure_label(measure: str, preset: Preset = "strict") -> str:
    """Name of a headline measure with the direction that is better."""
    record = headline(preset).get(measure)
    return measure if record is None else f"{record.label} ({record.direction})"


def measure_of(strategy: str, preset: Preset = "strict") -> tuple[str, bool]:
    """Return the column that judges `strategy` and whether higher is better.

    Raises:
        UnknownNameError: no such strategy; near matches are named.
    """
    if strategy not in SHORT:
        raise UnknownNameError.of("strategy", strategy, STRATEGIES)
    record = headline(preset)[SHORT[strategy]]
    return record.column, record.better == "higher"


def definition_of(measure: str, preset: Preset) -> tuple[str, str, bool]:
    """Strategy, column and direction (higher is better) of a headline measure."""
    if measure == "iou_drop":
        return "background_only", "iou_drop", higher_is_better(measure, preset)
    if measure == JOINED:
        return "highlighted_only", JOINED, higher_is_better(measure, preset)
    strategy = next(name for name, short in SHORT.items() if short == measure)
    return strategy, *measure_of(strategy, preset)


def higher_is_better(measure: str, preset: Preset = "strict") -> bool:
    """Direction of a headline measure: M1, M2, M3, iou_drop or contrast."""
    return headline(preset)[measure].better == "higher"
