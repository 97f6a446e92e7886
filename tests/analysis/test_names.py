"""Names of measures, methods and strategies."""

from __future__ import annotations

import pytest

from segproof.analysis import (
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
