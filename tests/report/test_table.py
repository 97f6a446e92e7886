"""Cells as people read them: numbers, intervals, p values and marks."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from segproof.report.table import (
    Cell,
    daggers,
    facts,
    interval_text,
    mean_cell,
    number_text,
    p_text,
)

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


@pytest.mark.parametrize(
    ("value", "sign", "expected"),
    [
        (0.12345, False, "0.123"),
        (-0.5, False, f"{MINUS}0.500"),
        (0.5, True, "+0.500"),
        (-0.0001, True, "0.000"),
        (float("nan"), False, DASH),
        (None, False, DASH),
    ],
)
def test_numbers(value: Any, sign: bool, expected: str) -> None:
    assert number_text(value, sign=sign) == expected


def test_intervals_and_p_values() -> None:
    assert interval_text(-0.1, 0.25) == f"[{MINUS}0.100, 0.250]"
    assert interval_text(float("nan"), 1.0) == ""
    assert [p_text(p) for p in (0.0004, 0.04567, 0.5, None)] == ["< 0.001", "0.046", "0.50", DASH]


def test_daggers_mark_what_lost_not_what_was_not_tested() -> None:
    assert daggers({"beats_random": False, "beats_p_c": False}) == "\u2020\u2021"
    assert daggers({"beats_random": True, "beats_p_c": False}) == "\u2021"
    assert daggers({"beats_random": pd.NA, "beats_p_c": True}) == ""


def test_a_mean_has_its_interval_below_and_the_notes_after_it() -> None:
    cell = mean_cell({"mean": 0.5, "low": 0.4, "high": 0.6, "struck": True}, notes=("a b", ""))
    assert (cell.text, cell.value, cell.struck) == ("0.500", 0.5, True)
    assert cell.small == ("[0.400, 0.600]", "a b")
    assert Cell("x").small == ()


def test_facts_leave_out_what_is_not_known() -> None:
    table = facts([("Seed", "0"), ("Time", "")])
    assert [[cell.text for cell in line] for line in table.cells()] == [["Seed", "0"]]
    assert not table.titled
