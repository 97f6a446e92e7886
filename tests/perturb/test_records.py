"""Records of fills and controls: what they say is true of the functions; lists are made of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from segproof.deferred import Deferred
from segproof.errors import SegproofError, UnknownNameError
from segproof.perturb.fill_context import FillContext
from segproof.perturb.fills import make_fill
from segproof.perturb.records import (
    CONTROLS,
    DEFAULT_FILLS,
    FILLS,
    Fill,
    control_id,
    control_name,
    control_of,
    is_control,
    register_fill,
)


def context(seed: int = 0, side: int = 24) -> FillContext:
    generator = torch.Generator().manual_seed(seed)
    background = torch.zeros(side, side, dtype=torch.bool)
    background[:, : side // 2] = True
    return FillContext(
        image=torch.rand(3, side, side, generator=generator),
        neutral=torch.full((3, 1, 1), 0.25),
        background=background,
        valid=torch.ones(side, side, dtype=torch.bool),
        generator=generator,
    )


@pytest.fixture
def added() -> Iterator[Fill]:
    yield register_fill(
        Fill("white", lambda clean: torch.ones_like(clean.image), "flat", "One in every band.")
    )
    FILLS.pop("white")


@pytest.mark.parametrize("name", FILLS)
def test_every_record_is_true_of_its_fill(name: str) -> None:
    record = FILLS[name]
    assert record.name == name
    assert isinstance(record.make, Deferred)
    assert record.make.resolve().__name__ == name
    assert record.meaning.endswith(".")
    made = record(context())
    # a baseline where kept pixels do not matter, else a function of them
    assert isinstance(made, Tensor) is not record.reads_kept
    image = context().image[None]
    keep = torch.zeros(2, 24, 24, dtype=torch.bool)
    keep[0, :, 12:], keep[1, :12] = True, True
    first, second = make_fill(name, context())(image, keep)
    both = ~keep[0] & ~keep[1]
    assert torch.equal(first[:, both], second[:, both]) is not record.reads_kept


def test_what_is_chosen_of_the_records() -> None:
    assert DEFAULT_FILLS == {"strict": "background_texture", "paper": "neutral"}
    assert [name for name, fill in FILLS.items() if not fill.quick] == ["linear"]
    assert [name for name, fill in FILLS.items() if fill.donates] == ["borrowed"]
    natural = [name for name, fill in FILLS.items() if fill.natural]
    assert natural == ["background_texture", "inpaint", "borrowed"] == list(FILLS)[:3]


def test_an_added_fill_is_in_every_list(added: Fill) -> None:
    assert list(FILLS)[-1] == "white"
    image = context().image
    keep = torch.zeros(1, 24, 24, dtype=torch.bool)
    assert torch.equal(make_fill("white", context())(image[None], keep)[0], torch.ones_like(image))
    with pytest.raises(UnknownNameError, match="white"):
        make_fill("wite", context())
    with pytest.raises(SegproofError, match="a second fill named white"):
        register_fill(added)
    assert FILLS["white"] is added


def test_controls_are_told_from_methods() -> None:
    assert [control.name for control in CONTROLS.values()] == list(CONTROLS)
    for name, control in CONTROLS.items():
        assert control.id == control_id(name) == f"control:{name}"
        assert is_control(control.id)
        assert control_name(control.id) == name
        assert control_of(control.id) is control
    assert not is_control("random")
    assert control_name("grad_cam") == "grad_cam"
    assert control_of("random") is control_of("grad_cam") is control_of("control:object") is None
    rivals = [name for name, control in CONTROLS.items() if control.rival]
    assert rivals == ["random", "p_c"]
    # pictures have no order of pixels to measure, and only random ones differ by seed
    pictures = [control for control in CONTROLS.values() if control.kind == "picture"]
    assert [control.name for control in pictures] == [
        *("original", "empty", "target_only", "target_removed")
    ]
    assert not any(control.scored or control.rival or control.colour for control in pictures)
    assert [name for name, control in CONTROLS.items() if control.seeds > 1] == ["random"]


def test_records_load_no_torch() -> None:
    code = (
        "import sys; from segproof.perturb import CONTROLS, FILLS;"
        "assert len(FILLS) == 9 and len(CONTROLS) == 10; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
