"""Names of measures, methods and strategies."""

from __future__ import annotations

import pytest

from segproof.analysis import (
    HEADLINE_MEASURES,
    higher_is_better,
    measure_of,
    method_label,
    strategy_label,
)
from segproof.errors import UnknownNameError


def test_unknown_strategy_is_named() -> None:
    with pytest.raises(UnknownNameError, match="background_only"):
        measure_of("background")


def test_labels() -> None:
    assert method_label("grad_cam_pp") == "Grad-CAM++"
    assert method_label("mine") == "mine"
    assert strategy_label("highlighted_only") == "M2 highlighted_only"


def test_directions_are_those_of_the_published_measures() -> None:
    higher = {name: higher_is_better(name) for name in HEADLINE_MEASURES}
    assert higher == {"M1": False, "M2": True, "M3": True, "iou_drop": True, "contrast": True}
    assert not higher_is_better("M3", "paper")  # an entropy there, a certainty in strict
    assert measure_of("background_only") == ("confidence", False)
    assert measure_of("highlighted_and_target", "paper") == ("entropy", False)
