"""Lists the measures, or describes one of them in full; loads no torch."""

from __future__ import annotations

from textwrap import fill
from typing import Annotated, Any, Final

from cyclopts import Parameter

from segproof.cli.as_json import JsonFlag, print_json
from segproof.cli.console import OK, out
from segproof.measures import Measure, all_measures, describe_measure

__all__ = ["measures"]

_KINDS: Final = {
    "headline": "Headline measures: a study ranks methods by them",
    "picture": "Measures of one perturbed picture: every study has them",
    "map": "Measures of whole heatmaps: added by `segproof study --measures NAME`",
}
_WIDTH: Final = 96


def measures(
    name: Annotated[
        str | None, Parameter(help="Measure to describe in full; without it, all are listed.")
    ] = None,
    *,
    json: JsonFlag = False,
) -> int:
    """List the measures, or describe one in full."""
    if json:
        described = (describe_measure(each) for each in all_measures())
        print_json(list(described) if name is None else describe_measure(name))
    elif name is None:
        _print_all()
    else:
        _print_one(describe_measure(name))
    return OK


def _print_all() -> None:
    known = all_measures()
    for kind, title in _KINDS.items():
        _line(title, "bold")
        for name, measure in known.items():
            if measure.kind == kind:
                _line(f"\n  {name}  ({_range(measure)}; {measure.direction})")
                _line(_wrapped(measure.meaning, "    "), "dim")
        _line("")
    _line("`segproof measures NAME` says when a measure misleads and what it costs.", "dim")


def _print_one(facts: dict[str, Any]) -> None:
    measure = all_measures()[facts["name"]]
    _line(f"{measure.name}: {measure.label or measure.name}", "bold")
    _line(_wrapped(measure.meaning, "  "))
    passes = "1 forward pass" if measure.forwards == "1" else f"{measure.forwards} forward passes"
    for title, text in (
        ("Formula", measure.formula),
        ("Range", f"{_range(measure)}; {measure.direction}"),
        ("Costs", passes),
        ("Needs", measure.needs),
        ("Misleads", measure.failure),
        ("Source", measure.source or "this project"),
        ("Evidence", "\n".join(_tried(card) for card in facts["track_record"])),
    ):
        for place, line in enumerate(text.splitlines()):
            _line(_wrapped(line, f"  {'' if place else title:<10}", " " * 12))


def _tried(card: dict[str, Any]) -> str:
    """How well a measure ordered maps of known quality."""
    interval = "" if card["low"] is None else f" ({card['low']:.2f} to {card['high']:.2f})"
    return (
        f"Kendall tau with the known truth {card['tau']:.2f}{interval}, tier {card['tier']},"
        f" fill {card['fill']}"
    )


def _range(measure: Measure[Any]) -> str:
    return f"{measure.low:g} to {measure.high:g} {measure.unit}".rstrip()


def _wrapped(text: str, first: str, others: str | None = None) -> str:
    rest = first if others is None else others
    return fill(text, _WIDTH, initial_indent=first, subsequent_indent=rest)


def _line(text: str, style: str = "") -> None:
    out.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
