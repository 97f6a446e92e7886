"""Two runs side by side: what is called better, worse, or neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import segproof.study
from rows import make_rows
from segproof.analysis import HEADLINE_MEASURES, Analysis, method_label
from segproof.analysis.comparison import compare
from segproof.analysis.tables import ranking
from segproof.cli import app as cli
from segproof.data.scenes import write_scenes
from segproof.errors import StudyError
from segproof.models.loaders.load import demo_model_spec


def shifted(rows: Any, column: str, by: float, **where: str) -> Any:
    """The same rows with `by` added to a column where the others have these values."""
    changed = rows.copy()
    chosen = np.ones(len(rows), dtype=bool)
    for name, value in where.items():
        chosen &= (rows[name] == value).to_numpy()
    changed.loc[chosen, column] = changed.loc[chosen, column] + by
    return changed


def line(made: Any, measure: str, method: str, layer: str = "decoder:1") -> Any:
    table = made.table
    [found] = table[
        (table["measure"] == measure) & (table["method"] == method) & (table["layer"] == layer)
    ].itertuples()
    return found


def test_a_run_is_the_same_as_itself() -> None:
    rows = make_rows(12)
    made = compare(rows, rows)
    assert not made.worse
    assert (made.table["difference"].fillna(0) == 0).all()
    assert set(made.table["verdict"]) == {"same"}
    assert (made.table["p"] == 1).all()
    assert "nothing that counts got worse" in made.sentence
    assert set(made.table["measure"]) == {"IoU", *HEADLINE_MEASURES}


def test_differences_are_paired_means_and_signed_for_the_better() -> None:
    rows = make_rows(12)
    other = shifted(rows, "confidence", 0.1, method="grad_cam", strategy="background_only")
    made = compare(rows, other)
    # M1: a higher confidence without the region is worse
    found = line(made, "M1", "grad_cam")
    assert found.difference == pytest.approx(-0.1)
    assert (found.low, found.high) == pytest.approx((-0.1, -0.1))
    assert found.verdict == "worse"
    assert found.p < 0.05
    other = shifted(rows, "confidence", 0.1, method="grad_cam", strategy="highlighted_only")
    assert line(compare(rows, other), "M2", "grad_cam").verdict == "better"


def best_of(rows: Any) -> tuple[str, str]:
    ranked = Analysis(rows).ranking
    return str(ranked.iloc[0]["method"]), str(ranked.iloc[0]["layer"])


def test_the_judging_measure_of_the_best_counts() -> None:
    rows = make_rows(14)
    method, layer = best_of(rows)
    where = {"method": method, "layer": layer, "strategy": "background_only"}
    worse = shifted(rows, "confidence", 0.08, **where)  # less harm: a smaller contrast
    made = compare(rows, worse)
    assert made.measure == "contrast"
    assert made.worse
    name = f"contrast M2 \N{MINUS SIGN} M1 of {method_label(method)} at {layer}"
    assert f"{name} by 0.080" in made.sentence
    # within the margin, or of a method that was far from the best: no alarm
    assert not compare(rows, worse, margin=0.1).worse
    poor = {"method": "eigen_cam", "strategy": "background_only"}
    made = compare(rows, shifted(rows, "confidence", 0.08, **poor))
    assert not made.worse
    assert line(made, "contrast", "eigen_cam").verdict == "worse"
    better = shifted(rows, "confidence", -0.08, **where)
    assert "got better" in compare(rows, better).sentence


def test_where_one_run_has_no_m2_both_are_judged_by_iou_drop() -> None:
    rows = make_rows(14)
    [(_, best)] = ranking(Analysis(rows), "iou_drop").head(1).iterrows()
    where = {"method": best["method"], "layer": best["layer"], "strategy": "background_only"}
    worse = shifted(rows, "iou_delta", 0.08, **where)  # less harm: a smaller IoU drop
    made = compare(rows, worse[worse["strategy"] != "highlighted_only"])
    assert made.measure == "iou_drop"
    assert f"IoU drop of {method_label(best['method'])}" in made.sentence
    assert not {"M2", "contrast"} & set(made.table["measure"])


def test_a_worse_prediction_counts() -> None:
    rows = make_rows(12)
    made = compare(rows, shifted(rows, "iou", -0.1, method="control:original"))
    assert made.worse
    assert "IoU of the prediction by 0.100" in made.sentence


def test_only_common_tiles_are_compared() -> None:
    rows = make_rows(12)
    part = rows[rows["sample"].isin(sorted(rows["sample"].unique())[3:])]
    strange = shifted(rows, "iou", -0.5, sample=sorted(rows["sample"].unique())[0])
    made = compare(strange, part)
    assert not made.worse
    assert made.table["n"].max() == 9
    assert "On the 9 tiles" in made.sentence


def test_runs_that_cannot_be_compared() -> None:
    rows = make_rows(6)
    other = rows.assign(sample="x" + rows["sample"])
    with pytest.raises(StudyError, match="without a common tile"):
        compare(rows, other)
    with pytest.raises(StudyError, match="different regions, fills or levels"):
        compare(rows, make_rows(6, fills=("black",)))
    with pytest.raises(StudyError, match="without a common method"):
        compare(make_rows(6, methods=("grad_cam",)), make_rows(6, methods=("eigen_cam",)))
    with pytest.raises(StudyError, match="margin -1"):
        compare(rows, rows, margin=-1)


def test_a_missing_number_is_no_difference() -> None:
    rows = make_rows(10)
    gap = rows.copy()
    gap.loc[gap["sample"] == gap["sample"].iloc[0], "confidence"] = np.nan
    found = line(compare(rows, gap), "M2", "grad_cam")
    assert found.difference == 0
    assert found.n <= 9


# --- from the command line ------------------------------------------------------------------------
def test_recommend_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo network on generated tiles: the sentence, the ranking, the command; then B against
    A with broken explanations.
    """
    write_scenes(tmp_path / "data", 3, seed=2, size=96)
    base = ["recommend", "--model", demo_model_spec(), "--data", str(tmp_path / "data")]
    base += ["--class", "building", "--methods", "grad_cam,hires_cam"]
    assert cli.main([*base, "--out", str(tmp_path / "a")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "For this model on these 2 tiles" in text
    assert "HiRes-CAM" in text
    assert "command: segproof study" in text
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    names = [layer["alias"] for layer in manifest["layers"]]
    assert names == ["encoder:5", "decoder:1", "decoder:2", "decoder:3", "decoder:4", "decoder:5"]
    assert manifest["study"]["thresholds"] == []
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "nothing that counts got worse" in text
    assert "B against A" in text
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "nowhere")]) == cli.WRONG_INPUT


def test_compare_has_an_exit_code_for_worse_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(12)
    runs = {"a": rows, "b": shifted(rows, "iou", -0.2, method="control:original")}

    class Fake:
        preset = "strict"

        def __init__(self, rows: pd.DataFrame) -> None:
            self.rows = rows

        @classmethod
        def load(cls, folder: Path) -> Fake:
            return cls(runs[folder.name])

    monkeypatch.setattr(segproof.study, "Results", Fake)
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == cli.WORSE
    assert cli.main(["compare", str(tmp_path / "b"), str(tmp_path / "a")]) == cli.OK
    assert cli.main(["compare", "a", "b", "--margin", "0.5"]) == cli.OK
