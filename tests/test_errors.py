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
    canonical,
    nearest,
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
    assert sorted(errors.__all__) == sorted([*names, "canonical", "nearest", "printable"])


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
    """The nearest five, the number of the others, and where they are listed."""
    names = [f"block.{n}" for n in range(50)]
    error = UnknownNameError.of("layer", "blok.49", names)
    assert error.expected == (
        "one of block.49, block.4, block.9, block.14, block.19, or of 45 more that"
        " segproof layers --model SPEC lists"
    )
    assert error.fix.startswith("did you mean block.49 or block.4")
    for kind, tail in (("band", "45 more"), ("measure", "45 more that segproof measures lists")):
        assert UnknownNameError.of(kind, "zzz", names).expected == (
            f"one of block.0, block.1, block.2, block.3, block.4, or of {tail}"
        )
    named = UnknownNameError.of("band", "zzz", names, listed_by="gdalinfo FILE")
    assert named.expected.endswith("45 more that gdalinfo FILE lists")


METHODS = ("grad_cam", "grad_cam_pp", "xgrad_cam", "score_cam", "hires_cam")
KNOWN = (*METHODS, "Unet", "UnetPlusPlus", "DeepLabV3", "DeepLabV3Plus", "x_0_4", "light roof")


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("grad_cam", "grad_cam"),
        ("gradcam", "grad_cam"),
        ("Grad-CAM", "grad_cam"),
        ("GRAD CAM", "grad_cam"),
        ("GradCAM++", "grad_cam_pp"),
        ("Grad-CAM++", "grad_cam_pp"),
        ("grad-cam-plus-plus", "grad_cam_pp"),
        ("gradcampp", "grad_cam_pp"),
        ("XGradCAM", "xgrad_cam"),
        ("unet", "Unet"),
        ("Unet++", "UnetPlusPlus"),
        ("deeplabv3+", "DeepLabV3Plus"),
        ("DeepLab_v3", "DeepLabV3"),
        ("Light-Roof", "light roof"),
        ("X_0_4", "x_0_4"),
        ("x_04", None),
        ("x04", None),
        ("grad", None),
        ("", None),
        ("+", None),
    ],
)
def test_names_are_forgiven_their_spelling(spelled: str, name: str | None) -> None:
    assert canonical(spelled, KNOWN) == name


def test_a_spelling_of_two_names_is_neither() -> None:
    assert canonical("roof 1", ("roof-1", "roof_1")) is None
    assert canonical("ROOF", ("roof", "Roof")) is None
    assert canonical("Roof", ("roof", "Roof")) == "Roof"
    assert canonical("decoder:-1", ("decoder:1", "decoder:2")) is None  # another block
    assert canonical("Decoder:-1", ("decoder:1", "decoder:-1")) == "decoder:-1"
    assert canonical("a", ("a", "a")) == "a"


def test_the_nearest_names_are_the_likest_first() -> None:
    assert nearest("gradcam-pq", METHODS)[:2] == ["grad_cam_pp", "grad_cam"]
    assert nearest("zzz", METHODS) == []
    assert len(nearest("block", [f"block.{n}" for n in range(50)])) == 5


def test_names_that_are_no_strings() -> None:
    assert UnknownNameError.of("class", 7, ("roof", "road")).found == "class '7'"
