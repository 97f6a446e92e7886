"""Records of methods: what they say is true of the functions, and all lists are made of them."""

from __future__ import annotations

import functools
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from segproof.analysis import method_label
from segproof.deferred import Deferred
from segproof.errors import SegproofError, UnknownNameError
from segproof.explain.api import resolve_method
from segproof.explain.cam import RawMap, grad_cam
from segproof.explain.forward_pass import Capture
from segproof.explain.masked import occlusion_windows, rise
from segproof.explain.methods import (
    CHANNELWISE,
    LAYERLESS,
    METHODS,
    PAPER_METHODS,
    RISE_MASKS,
    Method,
    method_name,
    reads_baseline,
    record_of,
    register,
)
from segproof.models import SegmentationModel
from segproof.report.drawing import SPARE, styles_of
from segproof.study import Settings

BIBLIOGRAPHY = Path(__file__).parents[2] / "docs" / "references.bib"


def plain_cam(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Sum of the activations, whatever the class."""
    return RawMap(capture.activations[layer].sum(dim=1))


@pytest.fixture
def added() -> Iterator[Method]:
    lists: tuple[dict[str, object], ...] = (METHODS, PAPER_METHODS, CHANNELWISE, LAYERLESS)  # type: ignore[assignment]
    yield register(
        Method(
            "plain_cam",
            plain_cam,
            "Plain CAM",
            "Adds the channels up.",
            colour="#101010",
            marker="h",
        )
    )
    for known in lists:
        known.pop("plain_cam", None)


@pytest.mark.parametrize("name", METHODS)
def test_every_record_leads_to_its_function(name: str) -> None:
    record = METHODS[name]
    assert record.name == name
    assert isinstance(record.function, Deferred)
    function = record.function.resolve()
    assert function.__name__ == name
    # the record of the function, of the record and of a call with other arguments is the record
    for method in (name, record, function, functools.partial(function, seed=1)):
        assert record_of(method) is record
    assert method_name(function) == method_name(record) == name
    assert reads_baseline(function) is record.reads_baseline


def test_what_records_say() -> None:
    keys = set(re.findall(r"^@\w+\{(\w+),", BIBLIOGRAPHY.read_text(), re.MULTILINE))
    for record in METHODS.values():
        assert record.paper in keys
        assert record.meaning[0].isupper()
        assert record.meaning.endswith(".")
        # a method works at a layer, channel by channel or not, or on the picture
        assert record.needs_layer or record.per_channel == 0
        assert record.needs_layer == (record.forwards((64, 64)) == 0)
        assert bool(record.colour) == bool(record.marker)
    assert len({record.label for record in METHODS.values()}) == len(METHODS)
    drawn = [(record.colour, record.marker) for record in METHODS.values() if record.colour]
    assert len(set(drawn)) == len(drawn) == 7
    assert [name for name, record in METHODS.items() if record.hides_pixels] == [
        *("score_cam", "rise", "occlusion")
    ]
    assert METHODS["rise"].forwards((64, 64)) == RISE_MASKS == 512
    assert inspect.signature(rise).parameters["masks"].default == RISE_MASKS
    assert METHODS["occlusion"].forwards((512, 512)) == len(occlusion_windows((512, 512))) == 225
    assert METHODS["grad_cam"].cost == "no further forward"
    assert METHODS["score_cam"].cost == "1 forward per channel of the layer"
    assert METHODS["kernel_weighted"].cost == "2 forwards per channel of the layer"
    assert METHODS["rise"].cost == "512 forwards"
    assert METHODS["occlusion"].cost == "225 forwards on a picture of 512 x 512"
    assert METHODS["input_x_gradient"].cost == "1 forward"


def test_callables_without_a_record() -> None:
    class Doubled:
        def __call__(self, capture: Capture, layer: str, model: SegmentationModel) -> Tensor:
            return 2 * capture.activations[layer].sum(dim=1)

    assert record_of(plain_cam) is record_of(Doubled()) is record_of("grad-cam") is None
    assert method_name(plain_cam) == "plain_cam"
    assert method_name(functools.partial(plain_cam)) == "plain_cam"
    assert method_name(Doubled()) == "Doubled"
    assert reads_baseline(plain_cam)
    assert resolve_method(METHODS["grad_cam"], "strict") == ("grad_cam", METHODS["grad_cam"])
    assert resolve_method(grad_cam, "paper") == ("grad_cam", grad_cam)


def test_an_added_method_is_in_every_list(added: Method) -> None:
    assert list(METHODS)[-1] == list(PAPER_METHODS)[-1] == "plain_cam"
    assert resolve_method("Plain-CAM", "paper") == ("plain_cam", added)
    with pytest.raises(UnknownNameError, match="plain_cam"):
        resolve_method("plane_cam", "strict")
    assert not reads_baseline(plain_cam)
    assert added.help == "Plain CAM: Adds the channels up. Cost: no further forward."
    assert method_label("plain_cam") == "Plain CAM"
    assert styles_of(["plain_cam", "own"]) == {"plain_cam": ("#101010", "h"), "own": SPARE[0]}
    needed: dict[str, Any] = {"model": "m", "data": "d", "class_": "roof"}
    assert Settings(**needed, methods=("plain-cam",)).methods == ("plain_cam",)
    with pytest.raises(SegproofError, match="a second method named plain_cam"):
        register(added)
    assert METHODS["plain_cam"] is added


def test_an_added_method_is_in_the_help_texts() -> None:
    code = (
        "import sys\n"
        "from segproof.explain import Method, register\n"
        "register(Method('plain_cam', print, 'Plain CAM', 'Adds the channels up.'))\n"
        "from segproof.cli import main\n"
        "sys.exit(main(['explain', '--help']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "integrated_gradients, plain_cam;" in re.sub(r"[\s│]+", " ", done.stdout)


def test_records_load_no_torch() -> None:
    code = (
        "import sys; from segproof import METHODS; from segproof.explain import LAYERLESS;"
        "assert METHODS['rise'].cost == '512 forwards' and len(LAYERLESS) == 4;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
