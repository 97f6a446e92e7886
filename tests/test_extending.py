"""The page on extensions runs as it stands; a method added as it says is there at once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import segproof
from segproof.testing import PROPERTIES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guide" / "extending.md"
LOOK = """
from segproof.explain import METHODS
from segproof.testing import check_method, toy_images, toy_model
from segproof import UnknownNameError, explain

assert METHODS["positive_cam"].label == "Positive CAM"
check_method("positive_cam", cases=2).raise_for_failures()
model, image = toy_model().float(), toy_images()[0].float()
assert explain(model, image, method="positive_cam", layer="decoder:-1", target=1).status
try:
    explain(model, image, method="positve_cam", layer="decoder:-1", target=1)
except UnknownNameError as error:
    assert "positive_cam" in str(error)
else:
    raise SystemExit("a wrong name was taken")
"""


def test_the_page_runs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for place, code in enumerate(blocks):
        exec(compile(code, f"extending.md, block {place}", "exec"), names)  # noqa: S102 - our own page
    assert len(blocks) == 5
    assert names["report"].ok
    assert names["explanation"].heatmap().shape == (64, 64)
    for name in PROPERTIES:
        assert f"`{name}`" in text


def test_a_method_is_added_in_one_file(tmp_path: Path) -> None:
    [code] = re.findall(r"```py\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    left_out = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(Path(segproof.__file__).parent, tmp_path / "segproof", ignore=left_out)
    module = tmp_path / "segproof" / "explain" / "methods.py"
    module.write_text(module.read_text(encoding="utf-8") + "\n\n" + code, encoding="utf-8")

    def said(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    said("-c", LOOK)
    assert "positive_cam" in said("-m", "segproof", "explain", "--help")
