"""Writes down what a run was: the content of manifest.json."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from segproof.data import FolderDataset, SampleSource
from segproof.models import SegmentationModel
from segproof.study.plan import Plan
from segproof.study.results import Results

__all__ = ["manifest_of"]


def manifest_of(
    plan: Plan,
    model: SegmentationModel,
    data: SampleSource,
    results: Results,
    seconds: float,
) -> dict[str, Any]:
    """What manifest.json says of a run: the settings, what was chosen, counts and the machine."""
    study, tiles = plan.study, results.tiles
    counts = tiles["status"].value_counts()
    reasons = tiles.loc[tiles["status"] != "ok", "reason"].value_counts()
    lines: list[Any] = list(results.validity().itertuples())
    valid = {
        row.fill: {
            "mean_drop": float(row.mean_drop),
            "min_drop": float(row.min_drop),
            "n": int(row.n),
            "valid": bool(row.valid),
        }
        for row in lines
    }
    return {
        "version": version("segproof"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "preset": study.preset,
        "model": {
            "spec": study.model,
            "classes": list(model.classes),
            "weights_sha256": model.fingerprint(),
            "parameters": sum(weight.numel() for weight in model.net.parameters()),
            "output": model.reader.text,
        },
        "data": {"root": study.data, "n": plan.tiles, **_record(data)},
        "study": json.loads(study.model_dump_json(by_alias=True)),
        "fills": list(plan.fills),
        "fills_valid": valid,
        "outline": {"name": plan.outline, "grow": plan.grow, "roughen": plan.roughen},
        "probe": plan.probe,
        "layers": _layers(plan),
        "tiles": {
            **{name: int(counts.get(name, 0)) for name in ("ok", "skipped", "failed")},
            "reasons": {str(reason): int(n) for reason, n in reasons.items()},
        },
        "forwards": int(tiles["forwards"].sum()) + plan.probe_forwards,
        "forwards_asked": int(tiles["asked"].sum()) + plan.probe_forwards,
        "kernels": {name: value for name, value in plan.pace.items() if name != "score_cam"},
        "score_cam": plan.pace.get("score_cam"),
        "seconds": round(seconds, 1),
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": str(model.device),
        },
    }


def _layers(plan: Plan) -> list[dict[str, Any]]:
    """The layers of a study by name and path, and what is known of their size."""
    shapes = {shape.path: shape for shape in plan.shapes}
    lines: list[dict[str, Any]] = []
    for name, path in plan.layers.items():
        line: dict[str, Any] = {"name": name, "path": path}
        if path in shapes:
            shape = shapes[path]
            line |= {"alias": shape.alias, "stride": shape.stride, "channels": shape.channels}
        lines.append(line)
    return lines


def _record(data: SampleSource) -> dict[str, Any]:
    """How pairs, pictures and masks of a folder were read."""
    return {"reading": data.record()} if isinstance(data, FolderDataset) else {}
