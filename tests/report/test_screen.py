"""Tables in a narrow terminal: what goes first, what wraps, and what stays whole."""

from __future__ import annotations

from segproof.report.screen import fitted
from segproof.report.table import Cell, Column, Table, text

TABLE = Table(
    (
        Column("layer", "Layer", text("layer"), role="identity"),
        Column(
            "drop",
            "Drop",
            lambda line: Cell(line["drop"], interval=(0.25, 0.5), struck=line["layer"] == "b"),
            number=True,
        ),
        Column("p", "p", text("p"), number=True, role="secondary"),
        Column(
            "note",
            "Note",
            lambda line: Cell("ten tiles are too few", notes=("first", "second") if line else ()),
        ),
    ),
    [{"layer": "a long layer", "drop": "0.4", "p": "0.01"}, {"layer": "b", "drop": "0.3", "p": ""}],
)


def test_with_room_everything_stands_in_one_line() -> None:
    assert fitted(TABLE, 80).plain.splitlines() == [
        "Layer         Drop   95 % interval     p  Note",
        "a long layer   0.4  [0.250, 0.500]  0.01  ten tiles are too few",
        "                                          first",
        "                                          second",
        "b              0.3  [0.250, 0.500]        ten tiles are too few",
        "                                          first",
        "                                          second",
    ]


def test_secondary_columns_go_first_the_last_one_before_the_others() -> None:
    assert fitted(TABLE, 60).plain.splitlines()[0] == "Layer         Drop   95 % interval  Note"
    assert fitted(TABLE, 42).plain.splitlines()[0] == "Layer         Drop  Note"


def test_then_notes_go_and_values_wrap_but_no_name() -> None:
    assert fitted(TABLE, 30).plain.splitlines() == [
        "Layer         Drop  Note",
        "a long layer   0.4  ten tiles",
        "                    are too",
        "                    few",
        "                    first",
        "b              0.3  ten tiles",
        "                    are too",
        "                    few",
        "                    first",
    ]
    narrow = fitted(TABLE, 10).plain.splitlines()
    assert narrow[1] == "a long layer   0.4  ten"


def test_struck_values_are_struck_out() -> None:
    screen = fitted(TABLE, 80)
    struck = [
        screen.plain[span.start : span.end] for span in screen.spans if span.style == "strike"
    ]
    assert struck == ["0.3"]


def test_a_table_without_lines_is_its_head() -> None:
    assert fitted(Table(TABLE.columns[:2], []), 80).plain == "Layer  Drop"


def test_wide_characters_keep_their_columns() -> None:
    table = Table(
        TABLE.columns[:2], [{"layer": "\u5efa\u7269", "drop": "1"}, {"layer": "ab", "drop": "2"}]
    )
    _, first, second = fitted(table, 80).plain.splitlines()
    assert first.startswith("\u5efa\u7269" + " " * 6 + "1")
    assert second.startswith("ab" + " " * 8 + "2")
