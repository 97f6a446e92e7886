"""`segproof measures`: all of them, the headline ones first, or one in full."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from segproof.cli import app as cli
from segproof.measures import MAP_MEASURES, all_measures

ROOT = Path(__file__).resolve().parents[2]


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["measures", *words]) == cli.OK
    return capsys.readouterr().out


def test_all_are_listed_with_their_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys)
    places = [out.index(f"\n  {name}  (") for name in all_measures()]
    assert places == sorted(places)
    text = " ".join(out.split())
    for measure in all_measures().values():
        assert measure.meaning in text
    assert out.startswith("Headline measures")


@pytest.mark.parametrize("name", sorted(all_measures()))
def test_one_is_described_in_full(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(printed(capsys, name).split())
    measure = all_measures()[name]
    for fact in (measure.meaning, measure.formula, measure.failure, measure.needs):
        assert " ".join(fact.split()) in text
    assert measure.direction in text
    assert measure.source in text


def test_spelling_is_forgiven_and_the_evidence_shown(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "Contrast")
    assert out.startswith("contrast: contrast M2 − M1")
    assert "Kendall tau with the known truth 0.92 (0.90 to 0.94), tier a" in out


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert [card["name"] for card in json.loads(printed(capsys, "--json"))] == list(all_measures())
    one = json.loads(printed(capsys, "contrast", "--json"))
    assert (one["better"], one["low"], one["high"]) == ("higher", -1.0, 1.0)


def test_every_source_is_in_the_references() -> None:
    keys = re.findall(r"^@\w+\{(\w+),", (ROOT / "docs" / "references.bib").read_text(), re.M)
    assert len(keys) == len(set(keys))
    for name, measure in MAP_MEASURES.items():
        assert measure.source in ("", *keys), name
        assert measure.low < measure.high, name
