"""What a person sees of an object in a notebook: what it is, in six lines at most."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import segproof
from segproof.models import demo_model_spec


def lines_of(thing: object) -> list[str]:
    lines = repr(thing).splitlines()
    assert len(lines) <= 6
    return lines


def test_a_model_and_an_explanation() -> None:
    model = segproof.load_model(demo_model_spec())
    lines = lines_of(model)
    weights = sum(weight.numel() for weight in model.net.parameters())
    assert lines[0] == f"SegmentationModel(Unet, {weights:,} weights on cpu)"
    assert "classes background, building" in lines[1]
    explanation = segproof.explain(
        model,
        torch.rand(3, 64, 96),
        method="grad_cam",
        layer="decoder:1",
        target=segproof.Target("building", "box:8,8,40,40"),
    )
    lines = lines_of(explanation)
    assert lines[0].startswith("Explanation(grad_cam at decoder:1, class building, region box:8,")
    assert f"status {explanation.status}" in lines[1]
    assert lines[2].endswith("picture 64 x 96 px")


def test_a_study_names_what_is_not_the_default() -> None:
    study = segproof.Study.of(model="m", data="d", **{"class": "b"}, limit=3, otsu=True)
    assert lines_of(study) == [
        "Study(class b, 5 methods x 2 layers, preset strict)",
        "  model m",
        "  data d",
        "  otsu=True, limit=3",
    ]
    assert str(study) == repr(study)


def test_results_before_and_after_the_end(tmp_path: Path) -> None:
    results = segproof.Results(tmp_path)
    assert lines_of(results) == [f"Results({str(tmp_path)!r}: the run has not ended)"]
    manifest = {
        "preset": "strict",
        "data": {"n": 5},
        "fills": ["black", "blur"],
        "tiles": {"ok": 3, "skipped": 2, "failed": 0},
    }
    ended = segproof.Results(tmp_path, json.loads(json.dumps(manifest)))
    assert lines_of(ended) == [
        f"Results({str(tmp_path)!r}: 5 tiles, 3 ok, 2 skipped, 0 failed)",
        "  preset strict, fills black, blur",
    ]
