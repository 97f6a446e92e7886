"""What benchmarks say of numbers: spreads, verdicts, regressions; that the peer does the same."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

import bench
import floor
import gradcam
import rankings
import regression
import scale
import study
import subjects
from bench import Contestant, Figure, Spread
from claims import CLAIMS
from segproof.data.scenes import SceneDataset
from toys import toy_images, toy_model

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def page() -> ModuleType:
    """docs/_make/benchmarks.py."""
    place = ROOT / "docs" / "_make" / "benchmarks.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place.parent))
        found = importlib.util.spec_from_file_location("benchmarks_page", place)
        assert found is not None
        assert found.loader is not None
        made = importlib.util.module_from_spec(found)
        found.loader.exec_module(made)
    return made


def given(out: Path | None, **more: Any) -> argparse.Namespace:
    usual = {"repeats": 4, "clock": "wall", "tiles": 1, "threads": None, "networks": None}
    return argparse.Namespace(**usual | {"out": out} | more)


def test_a_spread_is_five_numbers() -> None:
    found = Spread.of([4.0, 1.0, 2.0, 3.0, 10.0])
    assert found == Spread(n=5, low=1.0, lower=2.0, median=3.0, upper=4.0, high=10.0)
    assert found.text("x") == "3 x (2 to 4; 1 to 10; n = 5)"
    assert Spread.of([0.123456]).text() == "0.123 (once)"


def test_a_contest_runs_everyone_in_every_round_in_changing_orders() -> None:
    ran: list[tuple[str, int]] = []
    contestants = {
        name: Contestant(lambda turn, name=name: ran.append((name, turn)))  # type: ignore[misc]
        for name in "abc"
    }
    seconds = bench.contest(contestants, given(None, repeats=12), warm=False, title="t")
    assert {name: len(each) for name, each in seconds.items()} == dict.fromkeys("abc", 12)
    rounds = [ran[start : start + 3] for start in range(0, 36, 3)]
    assert all({name for name, _ in each} == set("abc") for each in rounds)
    assert all(turn == number for number, each in enumerate(rounds) for _, turn in each)
    assert len({tuple(name for name, _ in each) for each in rounds}) > 3
    ran.clear()
    bench.contest(contestants, given(None, repeats=1), warm=True, title="t")
    assert sorted(name for name, _ in ran) == list("aabbcc")


def test_a_bound_holds_at_its_value_and_nan_holds_nothing() -> None:
    least, most = CLAIMS["study-lite0-auto"], CLAIMS["eigen-lite0"]
    assert [least.holds(value) for value in (4.0, 3.99, math.nan)] == [True, False, False]
    assert [most.holds(value) for value in (0.15, 0.151, math.nan)] == [True, False, False]
    assert least.worse(3.0, 4.0) == pytest.approx(0.25)
    assert most.worse(0.18, 0.15) == pytest.approx(0.2)


def test_a_report_keeps_figures_of_other_claims(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    bench.report("study", [Figure("study-lite0-auto", [5.0, 3.0, 4.5], {"us": [1.0]})], given(out))
    bench.report("study", [Figure("study-lite0-float32", [1.0])], given(out, networks="lite0"))
    found = json.loads((out / "study.json").read_text())
    assert {name: entry["reached"] for name, entry in found.items()} == {
        "study-lite0-auto": True,
        "study-lite0-float32": False,
    }
    assert found["study-lite0-auto"]["figure"]["median"] == 4.5
    command = "python benchmarks/study.py --networks lite0 --tiles 1 --repeats 4"
    assert found["study-lite0-float32"]["command"] == command
    assert found["study-lite0-auto"]["machine"]["versions"]["torch"] in torch.__version__
    shown = capsys.readouterr().out
    assert "goal at least 4 x: reached" in shown
    assert "goal at least 1.8 x: NOT reached" in shown


def entry(median: float, width: float = 0.0) -> dict[str, Any]:
    return {"figure": {"median": median, "lower": median - width / 2, "upper": median + width / 2}}


def test_a_ratio_that_got_worse_is_named_and_a_better_one_is_not() -> None:
    committed = {
        "study-lite0-auto": entry(5.0),
        "heatmaps-lite0": entry(1.5),
        "eigen-lite0": entry(0.1, width=0.01),
        "memory-tiles": entry(1.0),
    }

    def bad(**fresh: float) -> list[str]:
        made = {name.replace("_", "-"): entry(value) for name, value in fresh.items()}
        return [line.split(":")[0] for line in regression.verdicts(committed, made)[1]]

    assert bad(study_lite0_auto=4.6, heatmaps_lite0=1.64) == []
    assert bad(study_lite0_auto=4.4, heatmaps_lite0=1.4) == ["study-lite0-auto"]
    assert bad(study_lite0_auto=9.0, heatmaps_lite0=1.7) == ["heatmaps-lite0"]
    # a committed spread of 10 % allows 30 %
    assert bad(eigen_lite0=0.129) == []
    assert bad(eigen_lite0=0.131) == ["eigen-lite0"]
    assert bad(study_lite0_auto=math.nan) == ["study-lite0-auto"]
    assert bad(memory_tiles=2.0) == []  # not of times
    fine, worse = regression.verdicts({}, {"eigen-lite0": entry(0.1)})
    assert "nothing committed" in fine[0]
    assert worse == []


def test_the_page_shows_every_claim_measured_or_not(page: ModuleType, tmp_path: Path) -> None:
    empty = page.tables({})
    assert empty["figures"].count(page.NOTHING) == len(CLAIMS)
    bench.report("heatmaps", [Figure("eigen-lite0", [0.2], notes={"why": 1.5})], given(tmp_path))
    found = page.tables(page.committed(tmp_path))
    assert found["figures"].count(page.NOTHING) == len(CLAIMS) - 1
    assert "forward, the shared U-Net | 0.2 x (once) | `heatmaps.py` |" in found["figures"]
    assert "  - why: 1.5" in found["details"]
    assert "python benchmarks/heatmaps.py" in found["machines"]


def test_the_page_is_that_of_the_committed_figures(page: ModuleType) -> None:
    """Renew docs/evidence/benchmarks.md with `python docs/_make/benchmarks.py`."""
    text = (ROOT / "docs" / "evidence" / "benchmarks.md").read_text(encoding="utf-8")
    for name, made in page.tables(page.committed()).items():
        assert f"<!-- {name} -->\n{made}\n<!-- end -->" in text


def test_every_claim_has_its_script() -> None:
    for claim in CLAIMS.values():
        assert (ROOT / "benchmarks" / f"{claim.script}.py").is_file(), claim


def test_each_forward_is_timed_once_and_the_model_is_as_before() -> None:
    model, images = toy_model(), toy_images()
    with floor.watched(model, time.perf_counter) as times, torch.no_grad():
        shown = model.shown(images)  # which asks forward
        plain = model(images)
    assert len(times) == 2
    assert torch.equal(shown, plain)
    assert {"shown", "forward"}.isdisjoint(vars(model))


def test_a_power_is_found() -> None:
    assert scale.power([1, 4, 16], [3, 12, 48]) == pytest.approx(1)
    assert scale.power([1, 4, 16], [1, 16, 256]) == pytest.approx(2)


def test_pairs_that_change_places_are_counted() -> None:
    def lines(*means: float) -> pd.DataFrame:
        return pd.DataFrame({"layer": "a", "method": list("xyz"), "fill": "f", "mean": means})

    assert rankings.swapped(lines(1, 2, 3), lines(1.1, 2.5, 2.6), ["fill"]) == (0, 3, 0.0)
    assert rankings.swapped(lines(1, 2, 3), lines(1, 3, 2), ["fill"]) == (1, 3, 1.0)
    assert rankings.swapped(lines(1, 1, 3), lines(1, 2, 3), ["fill"]) == (1, 3, 0.0)
    assert rankings.swapped(lines(1, 2, math.nan), lines(2, 1, 3), ["fill"]) == (1, 1, 1.0)


def test_the_thin_svd_is_the_full_one_up_to_the_sign() -> None:
    layer = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32)
    for full, thin in zip(get_2d_projection(layer), gradcam.thin_projection(layer), strict=True):
        assert np.abs(full).max() > 1
        assert min(np.abs(full - thin).max(), np.abs(full + thin).max()) < 1e-5


@pytest.mark.slow
def test_both_sides_of_the_study_see_the_same_pictures() -> None:
    sample = SceneDataset(1, 0, 128)[0]
    tiles = subjects.Tiles((sample,))
    model = subjects.random_unet(sample["image"], 0)
    subject = subjects.Subject("small", model, tiles, ("decoder.blocks.3", "decoder.blocks.4"))
    made = subjects.planned(subject, "float32")
    ours = study.confidences(subject, made)
    theirs = gradcam.peer_study(
        model, subject.image(0), subject.truth(0), subject.paths, subjects.THRESHOLDS, 4
    )
    assert len(theirs) == 1 + 2 * 5 * 5 * 3
    assert len(ours) >= 100
    same = {key: value for key, value in ours.items() if key[1] == "grad_cam"}
    assert len(same) >= 15
    assert gradcam.disagreement(theirs, same) < 0.05
    assert np.std(list(same.values())) > 0.01
    assert all(parameter.grad is None for parameter in model.parameters())
