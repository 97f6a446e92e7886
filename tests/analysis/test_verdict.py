"""The sentence names the winner, the ties and the losers, and the measure it goes by."""

from __future__ import annotations

from typing import Any

import pytest

from rows import METHODS, make_rows
from segproof.analysis import Analysis
from toy_rows import contrary


@pytest.fixture(scope="module")
def rows() -> Any:
    return make_rows()


@pytest.fixture(scope="module")
def made(rows: Any) -> Any:
    return Analysis(rows)


def test_strict_goes_by_the_contrast_and_paper_by_iou_drop() -> None:
    made = Analysis(contrary())
    assert made.measure == "contrast"
    assert made.ranking["method"].tolist() == ["whole", "part"]
    # 0.9 - 0.2 and 0.2 - 0.1, less 0.02 * (0 + ... + 5) / 6
    assert made.ranking["mean"].tolist() == pytest.approx([0.65, 0.05])
    assert made.by_iou_drop["method"].tolist() == ["part", "whole"]
    assert made.faithfulness.set_index("method")["mean"].idxmax() == "part"
    assert (
        "whole is the most faithful (contrast M2 \N{MINUS SIGN} M1 0.650, 95 % interval"
        in made.verdict
    )
    assert made.precision["method"].tolist() == ["whole", "part", "control:random"]
    assert set(made.agreement.set_index("factor").loc[["fills", "areas", "images"], "measure"]) == {
        "contrast"
    }
    paper = Analysis(contrary(), "paper")
    assert paper.measure == "iou_drop"
    assert paper.ranking["method"].tolist() == ["part", "whole"]
    assert "part is the most faithful (IoU drop 0.775" in paper.verdict


def test_without_m2_iou_drop_judges_and_says_so() -> None:
    rows = contrary()
    made = Analysis(rows[rows["strategy"] == "background_only"])
    assert made.measure == "iou_drop"
    assert made.verdict.startswith("No M2 was measured, so methods are ranked by IoU drop")
    assert "part is the most faithful (IoU drop 0.775" in made.verdict
    # the M2 of a control alone judges no method
    control_only = rows[(rows["strategy"] == "background_only") | (rows["method"] != "whole")]
    control_only = control_only[control_only["method"] != "part"]
    assert Analysis(control_only).measure == "iou_drop"


def test_verdict_names_winner_ties_and_losers(made: Any) -> None:
    text = made.verdict
    assert text.startswith("For this model on these 20 tiles, ")
    assert "Score-CAM at decoder:2" in text
    assert "XGrad-CAM at decoder:2" in text
    assert "Eigen-CAM at decoder:1 does not beat random blobs" in text


def test_verdict_when_nothing_beats_the_controls() -> None:
    quality = dict.fromkeys(METHODS, 0.0)
    text = Analysis(make_rows(quality=quality)).verdict
    assert "no method beats the controls" in text
    assert "most faithful" not in text


def test_verdict_with_few_tiles_leaves_the_order_open() -> None:
    text = Analysis(make_rows(5)).verdict
    assert "cannot tell the 10 candidates apart" in text
    assert "most faithful" not in text


@pytest.mark.parametrize(
    ("preset", "said"), [("strict", "ranked by M3 instead"), ("paper", "rank methods all the same")]
)
def test_verdict_without_a_valid_fill(preset: Any, said: Any) -> None:
    text = Analysis(make_rows(fills=("neutral",)), preset).verdict
    assert text.startswith("No fill that was used is valid for this model")
    assert said in text


def test_verdict_without_controls_or_areas() -> None:
    text = Analysis(make_rows(controls=False, areas=())).verdict
    assert "not tested" in text
    assert "size of the regions was not controlled" in text
