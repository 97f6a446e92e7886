"""Every error carries three facts, survives a process boundary, and names near matches."""

from __future__ import annotations

import io
from multiprocessing.reduction import ForkingPickler

import pytest

from segproof import errors
from segproof.errors import (
    DataError,
    DiskError,
    ModelError,
    SegproofError,
    StudyError,
    TooManyFailedError,
    UnknownNameError,
    printable,
)

TREE = [DataError, ModelError, StudyError, TooManyFailedError, UnknownNameError, DiskError]


@pytest.mark.parametrize("kind", [SegproofError, *TREE])
def test_the_three_facts_are_kept_and_read_in_order(kind: type[SegproofError]) -> None:
    error = kind("a cat", "a dog", "look again")
    assert (error.found, error.expected, error.fix) == ("a cat", "a dog", "look again")
    assert str(error) == "found a cat; expected a dog; look again"


@pytest.mark.parametrize("kind", [SegproofError, *TREE])
def test_an_error_crosses_processes_whole(kind: type[SegproofError]) -> None:
    """A worker's error reaches the coordinator pickled: its arguments must rebuild it."""
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(kind("1", "2", "3"))
    back = ForkingPickler.loads(buffer.getvalue())
    assert type(back) is kind
    assert (back.found, back.expected, back.fix) == ("1", "2", "3")


def test_the_tree_is_also_pythons_own() -> None:
    assert [issubclass(kind, SegproofError) for kind in TREE] == [True] * 6
    assert [issubclass(kind, ValueError) for kind in TREE] == [True, True, True, True, False, False]
    assert issubclass(UnknownNameError, LookupError)
    assert not issubclass(UnknownNameError, KeyError)  # whose str() is a repr
    names = [kind.__name__ for kind in [SegproofError, *TREE]]
    assert sorted(errors.__all__) == sorted([*names, "printable"])


def test_names_of_files_cannot_command_a_terminal() -> None:
    hostile = "a\x1b]0;title\x07b\x9bc\r\n\u202egnp.exe\udcff"
    assert printable(hostile) == r"a\x1b]0;title\x07b\x9bc\r\n\u202egnp.exe\udcff"
    assert printable("Dächer-屋根 ن\u200cه") == "Dächer-屋根 ن\u200cه"
    assert printable("a\nb\t", keep="\n") == "a\nb\\t"
    shown = str(DataError(hostile, "a", "b"))
    assert "\x1b" not in shown
    shown.encode()


def test_unknown_names_list_the_near_ones_best_first() -> None:
    known = ["grad_cam", "grad_cam_pp", "score_cam", "eigen_cam"]
    error = UnknownNameError.of("method", "gradcam_pp", known)
    assert error.found == "method 'gradcam_pp'"
    assert error.expected == "one of grad_cam, grad_cam_pp, score_cam, eigen_cam"
    assert error.fix.startswith("did you mean grad_cam_pp or grad_cam")


def test_unknown_names_without_a_near_one() -> None:
    assert UnknownNameError.of("layer", "zzz", ["abc"]).fix == "choose a known layer"
    assert UnknownNameError.of("layer", "zzz", []).expected == "one of (none)"


def test_long_lists_are_cut_but_searched_whole() -> None:
    error = UnknownNameError.of("layer", "blok.49", (f"block.{n}" for n in range(50)))
    assert error.expected.endswith("block.39, ...")
    assert "block.49" in error.fix


def test_names_that_are_no_strings() -> None:
    assert UnknownNameError.of("class", 7, ("roof", "road")).found == "class '7'"
