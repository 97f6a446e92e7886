"""Records of measures: what they say, what they leave open, and what is derived of them."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from segproof.deferred import Deferred
from segproof.errors import UnknownNameError
from segproof.measures import curves
from segproof.measures.records import (
    BOUNDARY,
    HEADLINE,
    MAP_MEASURES,
    MEASURES,
    all_measures,
    describe_measure,
    headline,
)

DOCS = Path(__file__).parents[2] / "docs"


def test_headline_measures_come_first() -> None:
    assert list(all_measures())[:5] == ["contrast", "M1", "M2", "M3", "iou_drop"]
    assert list(all_measures()) == [*HEADLINE, *MEASURES, *BOUNDARY, *MAP_MEASURES]
    assert len(all_measures()) == 5 + 7 + 2 + 24


@pytest.mark.parametrize("name", [*MEASURES, *BOUNDARY, *MAP_MEASURES])
def test_every_record_leads_to_its_function(name: str) -> None:
    record = all_measures()[name]
    assert isinstance(record.function, Deferred)
    function = record.function.resolve()
    assert function.__name__ == name


def test_what_records_say() -> None:
    keys = set(
        re.findall(r"^@\w+\{(\w+),", (DOCS / "references.bib").read_text(), flags=re.MULTILINE)
    )
    for name, record in {**all_measures(), "M3 of paper": headline("paper")["M3"]}.items():
        assert record.source in keys or not record.source, name
        assert record.low < record.high
        for text in (record.meaning, record.failure):
            assert text.endswith("."), name
            assert text[0].isupper(), name
        assert record.label, name
        assert record.formula, name
        assert record.unit, name
        assert record.forwards, name
        assert not record.needs or record.needs.endswith("."), name
    page = (DOCS / "reference" / "measures.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in MAP_MEASURES)
    lower = {name for name, record in MAP_MEASURES.items() if record.better == "lower"}
    assert lower == {
        *("deletion", "deletion_outside", "road_morf", "excess", "max_sensitivity", "infidelity"),
        *("randomisation_top_down", "randomisation_bottom_up", "random_class"),
    }
    neither = {name for name, record in all_measures().items() if record.better == "neither"}
    assert neither == {"context_need", "ring_share", "effective_area"}
    assert MAP_MEASURES["context_need"].high == curves.RADII[-1]
    assert MAP_MEASURES["context_need"].direction == "no direction"
    assert HEADLINE["M1"].direction == "lower is better"


def test_headline_functions_by_hand() -> None:
    def read(confidence: float, certainty: float, iou: float, entropy: float) -> object:
        values = {"confidence": confidence, "certainty": certainty, "iou": iou}
        return {key: torch.tensor([v]) for key, v in {**values, "entropy": entropy}.items()}

    shown = SimpleNamespace(
        clean={"iou": 0.75},
        m1=read(0.25, 0.125, 0.5, 0.0),
        m2=read(0.875, 0.0, 0.0, 0.0),
        m3=read(0.0, 0.375, 0.0, 0.0625),
    )
    values = {name: float(record.function(shown)) for name, record in HEADLINE.items()}
    expected = {"contrast": 0.625, "M1": 0.25, "M2": 0.875, "M3": 0.375, "iou_drop": 0.25}
    assert values == expected
    paper = headline("paper")
    assert float(paper["M3"].function(shown)) == 0.0625
    assert paper["M3"].better == "lower"
    assert [name for name in paper if paper[name] is not HEADLINE[name]] == ["M3"]


def test_a_measure_described() -> None:
    told = describe_measure("Contrast")
    assert json.loads(json.dumps(told)) == told
    assert told["name"] == "contrast"
    assert (told["low"], told["high"], told["better"]) == (-1, 1, "higher")
    tiers = {card["tier"]: card["tau"] for card in told["track_record"]}
    assert set(tiers) == {"a", "b"}
    assert all(0.8 < tau <= 1 for tau in tiers.values())
    assert describe_measure("excess")["high"] is None
    assert math.isinf(MAP_MEASURES["excess"].high)
    assert describe_measure("M3")["label"] == "M3 certainty"
    assert describe_measure("M3", "paper")["label"] == "M3 entropy"
    assert describe_measure("kept")["track_record"] == []
    with pytest.raises(UnknownNameError, match="contrast"):
        describe_measure("contrasts")


def test_records_load_no_torch() -> None:
    code = (
        "import sys; from segproof.measures import all_measures, describe_measure;"
        "assert [describe_measure(name)['meaning'] for name in all_measures()];"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
