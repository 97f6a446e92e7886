"""Wrong formulas cannot slip in: every mutant of the list applies, and the fast tests kill it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mutants import MUTANTS, ROOT, SOURCE, TESTS, Mutant, outcome_of


@pytest.mark.parametrize("mutant", MUTANTS, ids=[f"{n}-{m.file}" for n, m in enumerate(MUTANTS)])
def test_every_mutant_still_applies(mutant: Mutant) -> None:
    text = (SOURCE / "segproof" / f"{mutant.file}.py").read_text(encoding="utf-8")
    made = mutant.apply(text)
    assert made != text
    compile(made, mutant.file, "exec")


def test_there_are_enough_and_no_two_are_one() -> None:
    assert len(MUTANTS) >= 60
    assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)
    assert {m.file for m in MUTANTS} == set(TESTS)
    for names in TESTS.values():
        assert all((ROOT / "tests" / f"{name}.py").is_file() for name in names)


def test_a_stale_mutant_is_an_error() -> None:
    stale = Mutant("cam", "no such line", "other", "it is gone")
    with pytest.raises(ValueError, match="stands there 0 times, not once"):
        stale.apply("a = 1\n")
    with pytest.raises(ValueError, match="stands there 2 times"):
        Mutant("cam", "a", "b", "twice").apply("a = a\n")


def test_only_a_failed_test_is_a_kill() -> None:
    assert [outcome_of(code) for code in (0, 1, -9)] == ["survived", "killed", "timed out"]
    assert {outcome_of(code) for code in (2, 3, 4, 5, 99, -11)} == {"broken"}


@pytest.mark.slow
def test_all_mutants_are_killed() -> None:
    """In a process of its own, which forks one more for each."""
    command = [sys.executable, str(ROOT / "tests" / "support" / "mutants.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    print(done.stdout[-3000:])
    assert f"{len(MUTANTS)} of {len(MUTANTS)} killed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
