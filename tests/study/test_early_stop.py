"""Stopping when decided: the bets, the claims, what they cost, and runs that stop by them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

import reference
import rows as made_rows
import tiny
from run_folders import exports
from segproof import Results, Study, StudyError, UnknownNameError
from segproof.analysis import Analysis, candidates, headline
from segproof.choices import LEAST
from segproof.cli import app as cli
from segproof.study import early_stop, integrity as audit
from segproof.study.early_stop import NOTE, EarlyStop, Race, StopRule, _Best, _Pairs, shuffled

ALPHA = 0.05


def wealth(differences: Any, shift: float = 0.0) -> list[float]:
    """E of the claim "0 is better than 1" after each difference."""
    race, out = Race([0], [1], shift, 20), []
    for y in differences:
        race.see([y, 0.0])
        out.append(math.exp(race.log_e[0]))
    return out


# --- the bets -----------------------------------------------------------------------------------
def test_two_tiles_by_hand() -> None:
    # nothing is known before the first: no bet; then half of 1 / 1; then (2 / 2) (2 / 3)
    second = 1 + math.tanh(0.5)
    assert wealth([1.0, 1.0, -0.3]) == pytest.approx(
        [1, second, second * (1 + math.tanh(-0.2))], abs=1e-14
    )
    # who was worse so far gets no bet
    assert wealth([-1.0, 0.5, 0.25]) == [1, 1, 1]


@given(st.lists(st.floats(-2, 2).map(lambda y: round(y, 6)), min_size=1, max_size=30))
def test_bets_are_the_literal_formula(differences: list[float]) -> None:
    np.testing.assert_allclose(wealth(differences), reference.evidence_so_far(differences))


def test_a_shift_is_added_and_missing_tiles_are_left_out() -> None:
    y = [0.1, float("nan"), -0.02, 0.3, float("nan"), 0.05]
    known = [value for value in y if value == value]
    found = wealth(y, 0.02)
    assert found[-1] == pytest.approx(reference.evidence_so_far([v + 0.02 for v in known])[-1])
    assert found[1] == found[0]


def test_noise_of_rounding_is_no_difference() -> None:
    draw = np.random.default_rng(0)
    assert wealth(np.abs(draw.normal(0, 1e-15, 50))) == [1.0] * 50


def test_every_pattern_of_signs_together_is_a_fair_game() -> None:
    """Given their sizes, signs of symmetric differences are coins: all 2^11 patterns, exactly."""
    sizes = np.abs(np.random.default_rng(3).standard_cauchy(11))
    signs = np.array(list(product((-1.0, 1.0), repeat=len(sizes))))
    count = len(signs)
    race = Race(range(count), [count] * count, 0.0, 8)
    for tile in (signs * sizes).T:
        race.see([*tile, 0.0])
        assert np.exp(race.log_e).mean() == pytest.approx(1, abs=1e-9)
    assert race.log_e.std() > 0.5
    assert 0 < race.shown.mean() <= 1 / 8


def test_what_was_shown_stays_shown() -> None:
    race = Race([0], [1], 0.0, 20)
    for y in [1.0] * 10:
        race.see([y, 0])
    assert race.shown[0]
    for y in [-1.0] * 10:
        race.see([y, 0])
    assert race.log_e[0] < 0
    assert race.shown[0]


# --- the error rate -----------------------------------------------------------------------------
Draw = Callable[[np.random.Generator, tuple[int, ...]], Any]
SYMMETRIC: dict[str, Draw] = {
    "normal": lambda draw, size: 0.1 * draw.normal(size=size),
    "heavy tails": lambda draw, size: 0.02 * draw.standard_cauchy(size),
    "mostly equal": lambda draw, size: draw.normal(size=size) * (draw.random(size) < 0.1),
    "skewed, alike": lambda draw, size: draw.exponential(size=size),  # its differences are not
}
K, TILES = 6, 100


def raced(values: Any, question: _Best | _Pairs) -> tuple[Any, Any]:
    """Claims shown after each tile, [tiles, runs, claims], of many runs [runs, tiles, k]."""
    runs, tiles, k = values.shape
    one = question.race
    offset = (k * np.arange(runs))[:, None]
    race = Race(
        (one.first + offset).ravel(), (one.second + offset).ravel(),
        np.tile(one.shift, runs), math.exp(one.needed),
    )  # fmt: skip
    history = np.zeros((tiles, runs, len(one.first)), dtype=bool)
    for t in range(tiles):
        race.see(values[:, t].ravel())
        history[t] = race.shown.reshape(runs, -1)
    return history, one


def wrong_best(values: Any, means: Any, margin: float) -> float:
    """Share of runs whose best one another beats by the margin (margin 0: another is as good)."""
    k = values.shape[2]
    history, one = raced(values, _Best(k, margin))
    complete = np.stack([history[:, :, one.first == i].all(axis=2) for i in range(k)], axis=2)
    false = [
        any(means[j] >= means[i] + margin - 1e-12 for j in range(k) if j != i) for i in range(k)
    ]
    when = np.where(complete.any(axis=(0, 2)), complete.any(axis=2).argmax(axis=0), -1)
    named = complete[when, np.arange(len(when))] & (when >= 0)[:, None]
    return float((named & np.array(false)).any(axis=1).mean())


def wrong_claims(values: Any, means: Any, question: _Pairs) -> float:
    """Share of runs that show any false claim at any time."""
    history, one = raced(values, question)
    false = np.array(
        [means[i] - means[j] + shift <= 1e-12
         for i, j, shift in zip(one.first, one.second, one.shift, strict=True)]
    )  # fmt: skip
    assert false.any()
    return float(history[-1][:, false].any(axis=1).mean())


def error_rates(runs: int) -> dict[str, float]:
    """False decisions of every kind of question where it is easiest to be wrong."""
    draw, found = np.random.default_rng(20231003), {}
    pairs = [(i, j) for i in range(K) for j in range(i)]
    for name, noise in SYMMETRIC.items():
        ease = 0.2 * draw.normal(size=(runs, TILES, 1))  # tiles are easy or hard for all
        equal = ease + noise(draw, (runs, TILES, K))
        found[f"best of equal ones, {name}"] = wrong_best(equal, np.zeros(K), 0.0)
        two = equal[:, :, :2]
        found[f"best of two equal ones, {name}"] = wrong_best(two, np.zeros(2), 0.0)
        ahead = np.array([0.02] + [0.0] * (K - 1))
        found[f"best by the margin, {name}"] = wrong_best(equal + ahead, ahead, 0.02)
        found[f"ranking of equal ones, {name}"] = wrong_claims(
            equal, np.zeros(K), _Pairs(pairs, (0.0, 0.0))
        )
        against = _Pairs([(i, 0) for i in range(1, K)], (0.0, 0.02))
        found[f"controls as good, {name}"] = wrong_claims(equal, np.zeros(K), against)
    return found


def test_few_simulated_runs_err() -> None:
    rates = error_rates(300)
    assert max(rates.values()) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 300), rates
    assert max(rates.values()) > 0, "nothing was ever decided: this shows nothing"


@pytest.mark.slow
def test_the_family_wise_error_is_at_most_five_per_cent_in_2000_runs() -> None:
    rates = error_rates(2000)
    print(json.dumps(rates, indent=1))
    assert max(rates.values()) <= ALPHA, rates


def test_without_correction_the_error_would_be_seen() -> None:
    """The simulation notices a threshold that knows nothing of the number of claims."""
    draw = np.random.default_rng(1)
    values = 0.1 * draw.normal(size=(400, TILES, K))
    question = _Pairs([(i, j) for i in range(K) for j in range(i)], (0.0, 0.0))
    question.race.needed = math.log(1 / ALPHA)
    assert wrong_claims(values, np.zeros(K), question) > 2 * ALPHA


def test_rare_losses_that_outweigh_many_small_gains_are_not_protected() -> None:
    """The hypothesis is symmetry, as that of the Wilcoxon test: means of skewed ones are not."""
    draw = np.random.default_rng(2)
    lost = draw.random((300, TILES)) < 0.05
    values = np.stack([np.where(lost, -0.95, 0.05), np.zeros((300, TILES))], axis=2)
    assert wrong_best(values, np.zeros(2), 0.0) > ALPHA


def test_a_clear_best_is_found_and_how_soon() -> None:
    draw = np.random.default_rng(5)
    means = np.array([0.1] + [0.0] * (K - 1))
    values = 0.1 * draw.normal(size=(200, TILES, K)) + means
    history, one = raced(values, _Best(K, 0.02))
    named = history[:, :, one.first == 0].all(axis=2)
    first = named.argmax(axis=0) + 1
    assert named[-1].mean() > 0.97
    assert np.median(first) < 40
    assert wrong_best(values, means, 0.02) <= ALPHA


# --- what is open -------------------------------------------------------------------------------
def test_thresholds_follow_the_number_of_claims_that_can_be_wrong() -> None:
    assert math.exp(_Best(4, 0.02).race.needed) == pytest.approx(4 / ALPHA)
    assert math.exp(_Pairs([(0, 1), (0, 2)], (0.0, 0.1)).race.needed) == pytest.approx(4 / ALPHA)


def test_open_counts_the_others_and_the_pairs() -> None:
    everyone, score = np.ones(3, dtype=bool), np.array([0.3, 0.5, 0.1])
    best = _Best(3, 0.0)
    assert best.open(everyone, score) == (2, 1)
    claims = dict(zip(zip(best.race.first.tolist(), best.race.second.tolist(), strict=True),
                      range(6), strict=True))  # fmt: skip
    best.race.shown[claims[0, 1]] = True
    assert best.open(everyone, score) == (1, 0)
    assert best.open(np.array([True, True, False]), score) == (0, 0)
    best.race.shown[claims[1, 2]] = best.race.shown[claims[1, 0]] = True
    assert best.open(everyone, score) == (0, 1)
    pairs = _Pairs([(0, 1), (0, 2), (1, 2)], (0.0, 0.0))
    assert pairs.open(everyone, score) == (3, 1)
    pairs.race.shown[4] = True  # the second claim of the second pair
    assert pairs.open(everyone, score) == (2, 1)
    assert pairs.open(np.array([True, True, False]), score) == (1, 1)


# --- following a run ----------------------------------------------------------------------------
def by_tile(rows: Any) -> dict[int, pd.DataFrame]:
    return {int(name) - 1000: part for name, part in rows.groupby("sample", sort=False)}


@pytest.fixture(scope="module")
def tiles_of_rows() -> dict[int, pd.DataFrame]:
    return by_tile(made_rows.make_rows(40, areas=(0.2,), thresholds=(), fills=("black",)))


def followed(tiles: Any, arrival: Any, until: StopRule, count: int = 40) -> EarlyStop:
    watch = EarlyStop(until, shuffled(count, 0), "strict")
    empty = tiles[0].iloc[:0]
    for position in arrival:
        watch.add(position, tiles.get(position, empty))
    return watch


@pytest.mark.parametrize("asked", ["best", "ranking", "controls"])
def test_who_finishes_first_does_not_matter(tiles_of_rows: Any, asked: Any) -> None:
    until = StopRule(asked, 0.2, least=6)
    in_order = followed(tiles_of_rows, shuffled(40, 0), until).record()
    assert in_order["decided"]
    assert 6 < in_order["tiles"] < 40
    for seed in range(3):
        arrival = np.random.default_rng(seed).permutation(40).tolist()
        assert followed(tiles_of_rows, arrival, until).record() == in_order


def test_a_gap_at_the_beginning_holds_the_decision(tiles_of_rows: Any) -> None:
    order = shuffled(40, 0)
    watch = followed(tiles_of_rows, order[1:], StopRule("best", 0.1))
    assert (watch.seen, watch.decided, watch.beginning) == (0, False, [])
    watch.add(order[0], tiles_of_rows[order[0]])
    assert watch.decided
    assert watch.beginning == order[: watch.seen]


def test_the_values_are_those_of_the_tables(tiles_of_rows: Any) -> None:
    """Wealth of every claim, from the rows of a study by hand."""
    order = shuffled(40, 0)
    until = StopRule("best", 0.05, least=4)
    watch = followed(tiles_of_rows, order[:15], until)
    contest = watch._contest
    assert contest is not None
    assert contest.measure == "contrast"
    signs = {"highlighted_only": 1.0, "background_only": -1.0}
    wide: dict[tuple[int, str, str], float] = {}
    for place, position in enumerate(order[:15]):
        part = tiles_of_rows[position]
        part = part[part["strategy"].isin(signs) & (part["fill"] == "black")]
        for row in part[~part["method"].str.startswith("control")].itertuples():
            key = place, row.layer, row.method
            value = row.confidence if row.status == "ok" else float("nan")
            wide[key] = wide.get(key, 0.0) + signs[row.strategy] * value
    for c, (i, j) in enumerate(
        zip(contest.question.race.first, contest.question.race.second, strict=True)
    ):
        y = [
            wide[(place, *contest.names[i])] - wide[(place, *contest.names[j])] + 0.05
            for place in range(15)
        ]
        want = reference.evidence_so_far([value for value in y if value == value])[-1]
        assert math.exp(contest.question.race.log_e[c]) == pytest.approx(want, rel=1e-9)


def test_lower_is_better_where_the_measure_says_so(
    tiles_of_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_stop, "headline_measure", lambda *_, **__: "M1")
    found = followed(tiles_of_rows, shuffled(40, 0), StopRule("best", 0.1, least=6)).record()
    assert found["decided"]
    rows = pd.concat(tiles_of_rows.values())
    samples = pd.Index(rows["sample"].unique())
    made = candidates(rows, "M1", "strict", headline(rows), samples)
    means = {name: float(np.nanmean(values)) for name, values in made.items()}
    leader = means[found["leader"]["layer"], found["leader"]["method"]]
    assert leader < min(means.values()) + 0.1 < max(means.values()) - 0.1


def test_tiles_without_rows_count_as_seen_and_judge_nothing(tiles_of_rows: Any) -> None:
    order = shuffled(40, 0)
    some = {position: tiles_of_rows[position] for position in order[::2]} | {0: tiles_of_rows[0]}
    whole = followed(some, order, StopRule("best", 0.2))
    assert whole.record()["decided"]
    assert whole.seen > 2 * LEAST - 2


def test_sentences(tiles_of_rows: Any) -> None:
    order = shuffled(40, 0)
    said = {
        asked: followed(tiles_of_rows, order, StopRule(asked, 0.2)).record() for asked in
        ("best", "ranking", "controls")
    }  # fmt: skip
    best = said["best"]["sentence"]
    assert f"Decided after {said['best']['tiles']} of 40 tiles in random order" in best
    assert "no candidate is better than" in best
    assert (
        "contrast M2 \N{MINUS SIGN} M1, at matched area, fill black; family-wise error 5 %" in best
    )
    assert said["best"]["note"] == NOTE
    assert "of each two of the 10 candidates" in said["ranking"]["sentence"]
    beaten = said["controls"]["beaten"]
    assert set(beaten) == {"control:random", "control:p_c"}
    assert f"{len(beaten['control:random'])} of 10 candidates beat" in said["controls"]["sentence"]
    assert not any("Eigen-CAM" in name for name in beaten["control:random"])
    early = followed(tiles_of_rows, order[:5], StopRule("best")).record()
    assert "Not decided after 5 of 40 tiles: fewer than the 10" in early["sentence"]
    hard = followed(tiles_of_rows, order, StopRule("ranking", 0.0)).record()
    assert "Not decided after all 40 tiles" in hard["sentence"]
    assert f"{hard['open']} of 45 pairs" in hard["sentence"]
    assert hard["note"] == ""


def test_a_candidate_that_hardly_ever_has_a_map_does_not_hold_the_rest(tiles_of_rows: Any) -> None:
    def flat(part: pd.DataFrame) -> pd.DataFrame:
        gone = part["method"] == "eigen_cam"
        return part.assign(status=part["status"].where(~gone, "all_zero"))

    tiles = {position: flat(part) for position, part in tiles_of_rows.items()}
    assert followed(tiles, shuffled(40, 0), StopRule("best", 0.1)).decided


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"asked": "bets"}, "best"),
        ({"asked": "best", "margin": -0.1}, "0 or more"),
        ({"asked": "best", "margin": float("nan")}, "0 or more"),
        ({"asked": "best", "least": 1}, "2 tiles"),
    ],
)
def test_wrong_questions_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises((StudyError, UnknownNameError), match=words):
        StopRule(**given)


def test_the_order_is_a_permutation_drawn_by_the_seed() -> None:
    assert sorted(shuffled(50, 3)) == list(range(50))
    assert shuffled(50, 3) == shuffled(50, 3) != shuffled(50, 4)
    assert shuffled(50, 3) != list(range(50))


# --- runs ---------------------------------------------------------------------------------------
SETTINGS: dict[str, Any] = tiny.SETTINGS | {
    "methods": ("grad_cam", "hires_cam"), "thresholds": (), "fills": ("black",),
}  # fmt: skip
UNTIL = StopRule("best", 0.1, least=5)


def study_of(folder: Path, **more: Any) -> Study:
    return Study.of(data=str(folder), **(SETTINGS | more))


def run(folder: Path, out: Path, until: StopRule | None = UNTIL, **how: Any) -> Results:
    return study_of(folder).run(out, allow_code=True, until_decided=until, **how)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiles(tmp_path_factory.mktemp("until") / "data", 40)


@pytest.fixture(scope="module")
def decided(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(tiles, tmp_path_factory.mktemp("decided") / "run")


@pytest.fixture(scope="module")
def whole(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(tiles, tmp_path_factory.mktemp("whole") / "run", None)


def test_a_run_stops_when_it_is_decided(decided: Results, whole: Results) -> None:
    found = decided.manifest["decided"]
    assert found["decided"]
    assert 5 <= found["tiles"] == len(decided.tiles) < 40 == found["of"]
    assert decided.manifest["forwards"] < whole.manifest["forwards"]
    assert "--until-decided best --margin 0.1 --least 5" in decided.manifest["command"]
    assert "decided" not in whole.manifest
    names = [f"t{position:03}" for position in shuffled(40, 0)[: found["tiles"]]]
    assert set(decided.tiles["sample"]) == set(names)
    # what the whole run finds agrees
    ranked = Analysis(whole.rows).ranking.set_index(["layer", "method"])["mean"]
    leader = found["leader"]["layer"], found["leader"]["method"]
    assert ranked.max() < ranked[leader] + 0.1
    rows = whole.rows[whole.rows["sample"].isin(names)].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, decided.rows)
    assert len(decided.pictures(6)) > 0


def test_a_stopped_run_goes_on_to_the_same_end(
    tiles: Path, decided: Results, tmp_path: Path
) -> None:
    calls = iter([False, False, True])
    first = run(tiles, tmp_path / "run", stop=lambda: next(calls))
    assert len(first.tiles) == 3
    assert not first.manifest["decided"]["decided"]
    said: list[str] = []
    again = run(tiles, tmp_path / "run", standing=said.append)
    assert exports(again.folder) == exports(decided.folder)
    assert again.manifest["decided"] == decided.manifest["decided"]
    assert said[0] == "undecided before 5 tiles"
    assert said[-1] == "0 undecided"
    # and once more: nothing is left to do
    once_more = run(tiles, tmp_path / "run", progress=lambda *_: None)
    assert once_more.manifest["decided"] == decided.manifest["decided"]
    assert exports(again.folder) == exports(decided.folder)


def test_workers_stop_at_the_same_tile(tiles: Path, decided: Results, tmp_path: Path) -> None:
    spread = run(tiles, tmp_path / "run", workers=2)
    assert exports(spread.folder) == exports(decided.folder)
    assert spread.manifest["decided"] == decided.manifest["decided"]


def test_without_the_question_a_decided_run_goes_on_to_the_last_tile(
    tiles: Path, decided: Results, whole: Results, tmp_path: Path
) -> None:
    run(tiles, tmp_path / "run")
    every = run(tiles, tmp_path / "run", None)
    assert exports(every.folder) == exports(whole.folder)
    assert "decided" not in every.manifest
    # asked again it is decided on the same tiles, and none of the others is lost
    asked = run(tiles, tmp_path / "run")
    assert asked.manifest["decided"] == decided.manifest["decided"]
    assert exports(asked.folder) == exports(whole.folder)


def test_tiles_studied_before_are_not_lost_by_the_question(tiles: Path, tmp_path: Path) -> None:
    calls = iter([False] * 7 + [True])
    first = run(tiles, tmp_path / "run", None, stop=lambda: next(calls))
    then = run(tiles, tmp_path / "run")
    assert then.manifest["decided"]["decided"]
    assert set(first.tiles["sample"]) <= set(then.tiles["sample"])


def test_not_decided_after_all_tiles_is_said(tiles: Path, tmp_path: Path) -> None:
    found = run(tiles, tmp_path / "run", StopRule("ranking", 0.0)).manifest["decided"]
    assert not found["decided"]
    assert found["sentence"].startswith("Not decided after all 40 tiles")


@pytest.mark.parametrize(
    ("more", "asked", "words"),
    [
        ({"methods": ("grad_cam",), "layers": ("decoder.blocks.0",)}, "best", "one candidate"),
        ({"controls": ()}, "controls", "random or p_c"),
    ],
)
def test_studies_without_anything_to_decide_are_refused(
    tiles: Path, tmp_path: Path, more: dict[str, Any], asked: Any, words: str
) -> None:
    with pytest.raises(StudyError, match=words):
        study_of(tiles, **more).run(tmp_path / "run", allow_code=True, until_decided=asked)
    assert not (tmp_path / "run").exists()


def test_command_line_status_verify_and_report(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = study_of(tiles).command(out, UNTIL.flags()).split()[1:]
    assert cli.main([*command, "--allow-code", "--dry-run"]) == 0
    assert "the study stops when it is decided (best)" in capsys.readouterr().out
    assert not out.exists()
    assert cli.main([*command, "--allow-code"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Decided after" in said
    assert NOTE in said
    found = Results.load(out).manifest["decided"]
    assert audit.status(out).decided == found["sentence"]
    assert audit.status(out).left is None
    assert cli.main(["status", str(out)]) == 0
    assert "Decided after" in capsys.readouterr().out
    assert audit.verify(out, again=1, allow_code=True).problems == []
    page = (out / "report.html").read_text(encoding="utf-8")
    assert found["sentence"].split(";")[0] in page
    assert NOTE in page
    with (out / "results.csv").open("a", encoding="utf-8") as stream:
        stream.write("x\n")
    assert audit.verify(out, again=0).problems == ["results.csv is not what run.db exports"]
    assert cli.main([*command[:-2], "--until-decided", "bets", "--out", str(out)]) == 2
    study = study_of(tiles).command(out).split()[1:]
    assert cli.main([*study, "--margin", "0.1"]) == 2
    assert "--until-decided" in capsys.readouterr().err
