"""The benchmark of known truth: its truth is exact, and wrong methods and measures score low."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor

from segproof.analysis.statistics import kendall_tau
from segproof.cli import app as cli
from segproof.errors import DataError, StudyError, UnknownNameError
from segproof.evidence import of_measures as evidence, run as benchmark
from segproof.evidence.credit import average_precision, credit, factors, shapley
from segproof.evidence.graded_maps import graded_maps
from segproof.evidence.known import KnownScene, capture_scene, known_fill
from segproof.evidence.of_measures import CUT_MEASURES
from segproof.evidence.of_methods import judge_methods
from segproof.evidence.tier_a_constructed import constructed
from segproof.evidence.tier_b_planted import planted
from segproof.explain.cam import RawMap, hires_cam
from segproof.explain.forward_pass import Capture
from segproof.measures.case import HeatmapCase
from segproof.models.contract import SegmentationModel, probabilities


def by(frame: pd.DataFrame, *keys: str) -> Any:
    """The table by the values of these columns; pandas' types know no such index."""
    return frame.set_index(list(keys))


@pytest.fixture(scope="module")
def scenes() -> list[KnownScene]:
    return list(constructed(2, seed=1))


@pytest.fixture(scope="module")
def judged(scenes: list[KnownScene]) -> pd.DataFrame:
    return evidence.judge_measures(scenes, fills=("absent",))


def of_kind(scenes: list[KnownScene], kind: str) -> KnownScene:
    return next(known for known in scenes if known.kind == kind)


# --- what decides -------------------------------------------------------------------------------
def literal_shapley(known: KnownScene, parts: dict[str, Tensor]) -> dict[str, float]:
    """Mean gain of a factor over all orders in which the factors can come."""
    bare = torch.rot90(known.absent, 2, (-2, -1))

    def value(present: tuple[str, ...]) -> float:
        picture = known.absent.clone()
        if "other" not in present:
            picture[:, parts["other"]] = bare[:, parts["other"]]
        for name in present:
            picture[:, parts[name]] = known.image[:, parts[name]]
        with torch.no_grad():
            p = probabilities(known.model(picture[None]), known.model.activation)[0, 1]
        return float(p[known.region].double().mean())

    orders = list(itertools.permutations(parts))
    gains = dict.fromkeys(parts, 0.0)
    for order in orders:
        for place, name in enumerate(order):
            gains[name] += value(order[: place + 1]) - value(order[:place])
    return {name: gain / len(orders) for name, gain in gains.items()}


@pytest.mark.parametrize("kind", ["local", "shortcut", "both"])
def test_shapley_values_are_exact(scenes: list[KnownScene], kind: str) -> None:
    known = of_kind(scenes, kind)
    parts = factors(known)
    assert bool((torch.stack(list(parts.values())).sum(dim=0) == 1).all())
    found, wanted = shapley(known), literal_shapley(known, parts)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    share = {name: value / sum(found.values()) for name, value in found.items()}
    expected = {
        "local": {"object": 1.0},
        "shortcut": {"cue": 1.0},
        "both": {"object": 0.5, "cue": 0.5},
    }[kind]
    for name in parts:
        assert share[name] == pytest.approx(expected.get(name, 0.0), abs=1e-3), name
        if name not in expected:
            assert abs(found[name]) < 1e-6, name


def test_trained_networks_have_the_truth_that_they_claim() -> None:
    for known in planted(["shadow-unet", "shadow-unet-twin"], scenes=1):
        found = shapley(known)
        assert found.get("cue", 0.0) == pytest.approx(
            0.0 if "twin" in known.kind else 0.5, abs=0.02
        )
        assert abs(found["decoys"]) < 0.02
        assert float(credit(known).sum()) == pytest.approx(1.0)


def test_credit_is_spread_evenly_over_each_factor(scenes: list[KnownScene]) -> None:
    known = of_kind(scenes, "both")
    worth = credit(known)
    assert float(worth[known.cue].sum()) == pytest.approx(0.5, abs=1e-3)
    assert float(worth[known.region].sum()) == pytest.approx(0.5, abs=1e-3)
    assert float(worth[known.cue].min()) == float(worth[known.cue].max())
    assert float(worth[~known.evidence].sum()) == 0.0


def test_evidence_that_is_only_claimed_is_refused(scenes: list[KnownScene]) -> None:
    known = of_kind(scenes, "local")
    other = of_kind(scenes, "both")
    wrong = replace(known, evidence=other.evidence, cue=other.cue)
    with pytest.raises(DataError, match="evidence on exactly the factors"):
        credit(wrong)


# --- true quality -------------------------------------------------------------------------------
def test_quality_with_equal_worth_is_average_precision() -> None:
    heat = torch.rand(24, 24, generator=torch.Generator().manual_seed(5))
    truth = heat + 0.4 * torch.rand(24, 24, generator=torch.Generator().manual_seed(6)) > 0.9
    wanted = average_precision_score(truth.flatten().numpy(), heat.flatten().numpy())
    assert average_precision(heat, truth.double()) == pytest.approx(wanted, abs=1e-12)


def test_quality_by_hand() -> None:
    heat = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    # ranks 1, 3 and 4 hold E: precision 1, 2/3, 3/4, worth a half, a quarter, a quarter
    worth = torch.tensor([[0.5, 0.0, 0.25, 0.25]], dtype=torch.float64)
    assert average_precision(heat, worth) == pytest.approx(0.5 + 0.25 * 2 / 3 + 0.25 * 3 / 4)


def test_maps_have_the_quality_that_they_are_made_for(scenes: list[KnownScene]) -> None:
    for known in scenes:
        worth = credit(known)
        quality = {
            name: average_precision(heat, worth) for name, heat in graded_maps(known, worth).items()
        }
        assert quality["oracle"] == pytest.approx(1.0, abs=1e-12)
        assert max(quality, key=lambda name: quality[name]) == "oracle"
        for order in (
            ["oracle", "noisy", "shuffled", "inverted"],
            ["oracle", "dilated", "shifted"],
        ):
            for better, worse in itertools.pairwise(order):
                assert quality[better] > quality[worse], (known.kind, better, worse)
        assert ("object_only" in quality) == (known.kind == "both")
        for heat in graded_maps(known, worth).values():
            assert heat.dtype == torch.float32
            assert 0 <= float(heat.min()) <= float(heat.max()) <= 1


# --- measures -----------------------------------------------------------------------------------
def test_cut_measures_are_those_of_the_definitions(scenes: list[KnownScene]) -> None:
    known = of_kind(scenes, "both")
    seen = capture_scene(known)
    region = known.cue | (known.region & (torch.rand(64, 64) < 0.5))
    shown = evidence._shown(
        known, seen, known_fill("absent", known, seen), [region, region, known.region]
    )

    def confidence(keep: Tensor) -> float:
        picture = torch.where(keep, known.image, known.absent)
        with torch.no_grad():
            p = probabilities(known.model(picture[None]), known.model.activation)[0, 1]
        return float(p[known.region].double().mean())

    clean, m1, m2 = confidence(region | ~region), confidence(~region), confidence(region)
    outside = confidence(~(region & ~known.region))
    wanted = {"m1_confidence": m1, "m2_confidence": m2, "contrast": m2 - m1}
    wanted["outside_drop"] = clean - outside
    for name, value in wanted.items():
        found = CUT_MEASURES[name].function(shown)
        assert found.shape == (3,)
        assert float(found[0]) == float(found[1])
        assert float(found[0]) == pytest.approx(value, abs=1e-6), name


def test_a_card_is_kendalls_tau_of_the_means_over_levels(
    scenes: list[KnownScene], judged: pd.DataFrame
) -> None:
    one = judged[(judged["measure"] == "m1_confidence") & (judged["binarisation"] == "area")]
    one = one[(one["scene"] == "scene-001") & (one["kind"] == "both")]
    means = one.groupby("map")[["value", "truth"]].mean()
    wanted = kendall_tau(-(means["value"] / evidence.TIE).round(), means["truth"])
    scores = by(evidence.scene_scores(judged), "kind", "scene", "measure", "binarisation")
    found = scores.loc[("both", "scene-001", "m1_confidence", "area"), "tau"]
    assert found == pytest.approx(wanted)


def tau(judged: pd.DataFrame, measure: str, cut: str = "area") -> float:
    """Mean over scenes and kinds."""
    scores = evidence.scene_scores(judged[judged["measure"] == measure])
    return float(scores.loc[scores["binarisation"] == cut, "tau"].mean())


def test_the_joined_measure_passes_and_its_parts_are_blind(judged: pd.DataFrame) -> None:
    cards = evidence.measure_cards(judged)
    cards = by(cards[cards["binarisation"] == "area"], "kind", "measure")
    assert cards.loc[("all", "contrast"), "tau"] >= 0.8
    assert cards.loc[("all", "contrast"), "oracle_first"] == 1.0
    assert cards.loc[("all", "contrast"), "random_upper"] == 0.0
    assert cards.loc[("both", "contrast"), "sees_cue"] == 1.0
    for blind in ("m1_confidence", "iou_drop"):
        assert cards.loc[("both", blind), "oracle_first"] == 0.0
    # with the truth as reference, M3 shows every map of a local network the same picture
    assert cards.loc[("local", "m3_certainty"), "ties"] == 1.0
    assert cards.loc[("local", "m3_certainty"), "label"] == "uninformative"
    assert cards.loc[("local", "m3_certainty"), "tau"] == 0.0


def test_matched_area_agrees_with_the_truth_where_thresholds_do_not(judged: pd.DataFrame) -> None:
    for measure in ("m1_confidence", "m2_confidence", "contrast"):
        assert tau(judged, measure) > tau(judged, measure, cut="threshold") + 0.1


def as_measure(name: str, value: Callable[[HeatmapCase], float]) -> Callable[[HeatmapCase], float]:
    value.__name__ = name
    return value


def test_a_wrong_measure_gets_a_low_tau(scenes: list[KnownScene]) -> None:
    def deletes_backwards(case: HeatmapCase) -> float:
        return float(case.heatmap[~case.seen.bound.region[0]].mean())

    worth = {id(known.model): credit(known) for known in scenes[:3]}

    def knows(case: HeatmapCase) -> float:
        return average_precision(case.heatmap, worth[id(case.model)])

    def constant(case: HeatmapCase) -> float:
        return 1.0

    made = {"knows": knows, "wrong": deletes_backwards, "constant": constant}
    judged = evidence.judge_measures(scenes[:3], cut={}, whole=made, fills=("absent",))
    assert tau(judged, "knows", cut="map") > 0.97
    assert tau(judged, "wrong", cut="map") < 0.2
    assert tau(judged, "constant", cut="map") == 0.0
    cards = by(evidence.measure_cards(judged), "measure", "kind")
    assert cards.loc[("constant", "all"), "label"] == "uninformative"


def test_a_measure_without_a_number_stands_last(scenes: list[KnownScene]) -> None:
    part = pd.DataFrame(
        {"map": ["oracle", "half", "random_1"], "truth": [1.0, 0.5, 0.1], "value": [3, 2, math.nan]}
    )
    assert evidence._agreement(part, lower=False)[0] == pytest.approx(1.0)
    tau, _, first, *_ = evidence._agreement(part, lower=True)
    assert tau == pytest.approx(1 / 3)
    assert first == 0.0


# --- methods ------------------------------------------------------------------------------------
def inverted(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    made = hires_cam(capture, layer, model).values
    return RawMap(made.amax() - made)


def shuffled(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    made = hires_cam(capture, layer, model).values
    order = torch.randperm(made.numel(), generator=torch.Generator().manual_seed(1))
    return RawMap(made.flatten()[order].view(made.shape))


def swapped(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """The map of the other class: for one channel, what speaks against the class."""
    return RawMap(-hires_cam(capture, layer, model).values)


def test_a_wrong_method_scores_low(scenes: list[KnownScene]) -> None:
    known = [known for known in scenes if known.kind != "shortcut"]
    made = judge_methods(
        known, ["hires_cam", inverted, shuffled, swapped], ["encoder:1"], fused=False
    )
    means: Any = (
        made[made["kind"] == "both"]
        .groupby("method")[["precision", "cue_recall", "quality", "twin_cue"]]
        .mean()
    )
    assert means.loc["hires_cam"].tolist() == pytest.approx([1.0, 1.0, 1.0, 1.0], abs=0.01)
    for wrong in ("inverted", "shuffled", "swapped", "control:random"):
        assert means.loc[wrong, "precision"] < 0.4, wrong
        assert means.loc[wrong, "quality"] < 0.4, wrong
        assert means.loc[wrong, "cue_recall"] < 0.4, wrong
    assert set(made.loc[made["method"] == "swapped", "status"]) == {"all_zero"}
    assert (made.loc[made["method"] == "swapped", "precision"] == 0).all()


def test_a_decoder_block_is_blind_to_the_cue_and_the_encoder_is_not(
    scenes: list[KnownScene],
) -> None:
    both = [of_kind(scenes, "both")]
    made = by(judge_methods(both, ["grad_cam"]), "layer")
    assert made.loc["encoder:1", "cue_recall"] == 1.0
    assert made.loc[["decoder:1", "decoder:2"], "cue_recall"].max() < 0.1
    assert math.isnan(made.loc["encoder:1", "twin_cue"])  # no twin among these


def test_the_positive_control_finds_the_cue_of_a_trained_network() -> None:
    known = list(planted(["marker-unet"], scenes=1))
    made = by(judge_methods(known, ["occlusion"], ["encoder:2"]), "method")
    assert made.loc["occlusion", "cue_recall"] >= 0.5
    assert made.loc["occlusion", "forwards"] == 226
    assert made.loc["control:object", "cue_recall"] == 0.0


# --- the command --------------------------------------------------------------------------------
def run(folder: Path, *more: str) -> int:
    base = ["evidence", "--out", str(folder), "--tier", "a", "--scenes", "1", "--fills", "absent"]
    return cli.main([*base, *more])


QUICK = ("--methods", "grad_cam,hires_cam", "--measures", "m1_confidence,contrast,relevance_rank")


def test_the_command_writes_tables_cards_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "one", *QUICK) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Tier a: believe contrast" in said
    assert "Tier a: at decoder blocks the best recall of the cue is" in said
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {
        "cards.json", "maps.parquet", "maps.png", "measures.csv", "measures.png",
        "method_maps.csv", "methods-a.png", "methods.csv", "scenes.csv", "shapley.csv",
    }  # fmt: skip
    cards = json.loads((tmp_path / "one" / "cards.json").read_text())
    assert cards["command"] == " ".join(
        ["segproof evidence --tier a --seed 0 --scenes 1", *QUICK, "--fills absent"]
    )
    line = next(card for card in cards["measures"]["contrast"] if card["binarisation"] == "area")
    assert line["tau"] > 0.8
    assert line["tier"] == "a"
    assert list(tmp_path.iterdir()) == [tmp_path / "one"]
    with Image.open(tmp_path / "one" / "measures.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10

    assert run(tmp_path / "two", *QUICK) == 0
    for name in ("measures.csv", "methods.csv", "scenes.csv", "cards.json", "measures.png"):
        first, second = ((tmp_path / run / name).read_bytes() for run in ("one", "two"))
        assert first == second, name


def test_methods_and_measures_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_own_parts.py").write_text(
        "def brightest(capture, layer, model):\n"
        "    return capture.images.amax(dim=1)\n"
        "def heat(case):\n"
        "    return float(case.heatmap.mean())\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    own = ("--methods", "python:my_own_parts:brightest", "--measures", "python:my_own_parts:heat")
    assert run(tmp_path / "no", *own) == 2
    assert "pass --allow-code" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert run(tmp_path / "run", *own, "--layers", "decoder:1", "--allow-code") == 0
    assert "heat" in set(pd.read_csv(tmp_path / "run" / "measures.csv")["measure"])
    methods = by(pd.read_csv(tmp_path / "run" / "methods.csv"), "method", "kind")
    assert methods.loc[("brightest", "both"), "cue_recall"] > 0.3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tier", "z"), "tier 'z'"),
        (("--measures", "contrats"), "did you mean contrast"),
        (("--measures", "equivariance"), "measure 'equivariance'"),
        (("--methods", "grad_kam"), "did you mean grad_cam"),
        (("--fills", "wool"), "fill 'wool'"),
        (("--methods", "none", "--measures", "none"), "nothing to judge"),
        (("--tier", "c"), "give them with --train and --test"),
        (("--steps", "0"), "0 steps of training"),
        (("--methods", "python:nowhere_at_all:f", "--allow-code"), "ModuleNotFoundError"),
    ],
)
def test_what_does_not_exist_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    assert cli.main(["evidence", "--out", str(tmp_path / "run"), *flags]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_errors_name_what_to_do() -> None:
    with pytest.raises(StudyError, match="expected a function or a Measure"):
        benchmark.own_code("python:segproof:__doc__", allow_code=True)
    with pytest.raises(UnknownNameError, match="measure 'sum'"):
        benchmark.choose_measures(["sum"])


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["a", "b"])
def test_the_joined_measure_passes_on_both_tiers(tmp_path: Path, tier: str) -> None:
    found = benchmark.run_evidence(tmp_path, [tier], methods=[], measures=list(CUT_MEASURES))
    cards = found.measures[found.measures["kind"] == "all"]
    cards = by(cards, "measure", "fill", "binarisation")
    for fill in evidence.TRIED_FILLS:
        passed = cards.loc[("contrast", fill, "area")]
        assert passed["tau"] >= 0.8
        assert passed["random_upper"] == 0.0
