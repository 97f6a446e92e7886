"""Rows of a few images and cells with values set by hand, for the tests of the tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def only(frame: Any, **wanted: Any) -> Any:
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    assert len(frame)
    return frame


def one(frame: Any, **wanted: Any) -> Any:
    found = only(frame, **wanted)
    assert len(found) == 1
    return found.iloc[0]


CELL = {"reference": "truth", "fill": "background_texture"}


def toy(
    values: Any,
    column: Any = "iou_delta",
    strategy: Any = "background_only",
    method: Any = "grad_cam",
    level: Any = 0.1,
) -> Any:
    """Rows of one cell with one value per image."""
    frame = pd.DataFrame({"sample": [f"t{i}" for i in range(len(values))]})
    fixed = {"layer": "a", "binarisation": "area", "level": level, "strategy": strategy}
    fixed |= {"method": method, "reference": "truth", "fill": "black", "status": "ok", "seed": 0}
    measured = ("confidence", "entropy", "kept", "certainty", "iou", "iou_delta")
    filled = dict.fromkeys(measured, 0.5) | {column: values}
    return frame.assign(**fixed, area=level, coverage=0.5, **filled)


def control(name: Any, fill: Any, values: Any) -> Any:
    """Rows of an input that needs no heatmap."""
    frame = toy(values, "confidence", strategy=name, method=f"control:{name}", level=np.nan)
    return frame.assign(layer="", binarisation="", fill=fill)


def contrary() -> Any:
    """Six images on which `part`, a part of the cause, ruins the mask more than `whole` does, while
    `whole` alone is enough for the prediction. Random blobs do nothing.
    """
    read = {  # method: IoU drop and confidence of M1, confidence of M2
        "part": (0.8, 0.1, 0.2),
        "whole": (0.5, 0.2, 0.9),
        "control:random": (0.0, 0.8, 0.1),
    }
    parts = []
    for method, (drop, removed, kept) in read.items():
        near = 0.01 * np.arange(6)
        lost = toy(near - drop, method=method).assign(confidence=removed + near)
        parts += [lost, toy(kept - near, "confidence", "highlighted_only", method=method)]
    return pd.concat(parts, ignore_index=True)


def ranked_rows(values: Any) -> Any:
    """IoU drop of methods a, b, c, ... on each image, all at one area, fill and layer."""
    parts = [toy(-np.asarray(v), method=name) for name, v in values.items()]
    return pd.concat(parts, ignore_index=True)


# Image by image a > b > c but for the last one, where b and c tie at the top.
SIX = {
    "a": [0.9, 0.8, 0.7, 0.9, 0.8, 0.1],
    "b": [0.5, 0.4, 0.3, 0.5, 0.4, 0.5],
    "c": [0.1, 0.1, 0.2, 0.1, 0.1, 0.5],
}
