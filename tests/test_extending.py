"""The page on extensions runs as it stands, block after block."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from segproof.testing import PROPERTIES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guide" / "extending.md"


def test_the_page_runs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for place, code in enumerate(blocks):
        exec(compile(code, f"extending.md, block {place}", "exec"), found)  # noqa: S102 - our own page
    assert len(blocks) == 5
    assert found["report"].ok
    assert found["made"].heatmap().shape == (64, 64)
    for name in PROPERTIES:
        assert f"`{name}`" in text
