"""A made-up but realistic table of rows, for the tests of tables, plots and report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

METHODS = ("grad_cam", "grad_cam_pp", "xgrad_cam", "score_cam", "eigen_cam")
LAYERS = ("decoder:1", "decoder:2")
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
AREAS = (0.05, 0.1, 0.2, 0.3)
STRATEGIES = ("background_only", "highlighted_only", "highlighted_and_target")
# Quality in [0, 1]; 0 is as good as random blobs. score_cam = xgrad_cam in truth: a tie.
QUALITY = {
    "grad_cam": 0.45,
    "grad_cam_pp": 0.30,
    "xgrad_cam": 0.62,
    "score_cam": 0.62,
    "eigen_cam": 0.0,
    "control:random": 0.0,
    "control:p_c": 0.50,
}
SPREAD = {"grad_cam": 0.5, "grad_cam_pp": 1.6, "xgrad_cam": 0.5, "score_cam": 1.1, "eigen_cam": 1.3}
# Relative drop of confidence when exactly the target goes; neutral leaks.
DROPS = {"background_texture": 0.95, "black": 0.8, "neutral": -0.09}


def make_rows(
    tiles: Any = 20,
    *,
    methods: Any = METHODS,
    layers: Any = LAYERS,
    thresholds: Any = THRESHOLDS,
    areas: Any = AREAS,
    fills: Any = ("background_texture", "neutral"),
    reference: Any = "truth",
    controls: Any = True,
    failures: Any = True,
    seed: Any = 0,
    preset: Any = "strict",
    quality: Any = None,
) -> Any:
    """Return a DataFrame with the columns of results.parquet."""
    rng = np.random.default_rng(seed)
    quality = QUALITY | (quality or {})
    samples = [f"{1000 + i}" for i in range(tiles)]
    tile = pd.DataFrame({"sample": samples, "ease": rng.normal(0, 0.05, tiles)})
    tile["base"] = 0.85 + 0.5 * tile["ease"]
    levels = [("threshold", t) for t in thresholds] + [("area", q) for q in areas]
    cells = [
        (method, layer, kind, level, strategy, fill, 0)
        for layer in layers
        for method in methods
        for kind, level in levels
        for strategy in STRATEGIES
        for fill in fills
    ]
    if controls:
        cells += [
            (f"control:{name}", "", kind, level, strategy, fill, number)
            for name, count in (("random", 5), ("p_c", 1))
            for kind, level in levels
            if kind == "area" or name == "p_c"
            for strategy in STRATEGIES
            for fill in fills
            for number in range(count)
        ]
    names = ["method", "layer", "binarisation", "level", "strategy", "fill", "seed"]
    rows = tile.merge(pd.DataFrame(cells, columns=names), how="cross")
    n = len(rows)
    good = rows["method"].map(quality).to_numpy()
    good = good * np.where(rows["layer"] == LAYERS[0], 0.75, 1.0)
    # A method has its own luck on each tile, the same at every level.
    key = rows["sample"] + rows["method"] + rows["layer"]
    code, unique = pd.factorize(key)
    good = good + rng.normal(0, 0.06, len(unique))[code] + rows["ease"].to_numpy()
    by_area = (rows["binarisation"] == "area").to_numpy()
    level = rows["level"].to_numpy()
    spread = rows["method"].map(SPREAD).fillna(1.0).to_numpy()
    area = np.where(by_area, level, np.clip(0.30 * spread * (1 - level), 0.01, 0.95))
    reach = np.clip(area / 0.2, 0, 1.2)
    leak = np.where(rows["fill"].map(DROPS).to_numpy() < 0.5, 0.05, 1.0)
    harm = np.clip((0.08 + 0.75 * good) * reach * leak, -0.1, 0.95)
    shown = np.clip(0.1 + 0.8 * good * reach + 0.2 * area, 0.01, 0.99)
    strategy = rows["strategy"].to_numpy()
    base = rows["base"].to_numpy()
    noise = rng.normal(0, 0.01, n)
    confidence = np.select(
        [strategy == "background_only", strategy == "highlighted_only"],
        [base * (1 - harm), base * shown],
        base * np.clip(0.75 + 0.2 * shown, 0, 1),
    )
    rows["confidence"] = np.clip(confidence + noise, 0.001, 0.999)
    p = rows["confidence"]
    rows["entropy"] = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    rows["kept"] = np.clip(p * 1.05, 0, 1)
    rows["certainty"] = rows["kept"] * (1 - 0.5 * rows["entropy"])
    rows["iou"] = np.clip(p - 0.05, 0, 1)
    rows["iou_delta"] = rows["iou"] - (base - 0.05)
    rows["area"] = area
    rows["coverage"] = np.clip(reach * (0.2 + good), 0, 1)
    rows["status"] = "ok"
    if failures:
        flat = (rows["method"] == "grad_cam_pp") & rows["sample"].isin(samples[1:3])
        rows.loc[flat & (rows["layer"] == layers[0]), "status"] = "all_zero"
    extra = [_still(tile, "original", "", rng)]
    if controls:
        for fill in DROPS:
            extra += [_still(tile, name, fill, rng) for name in ("empty", "target_only")]
            extra.append(_still(tile, "target_removed", fill, rng))
    rows = pd.concat([rows, *extra], ignore_index=True).drop(columns=["ease", "base"])
    measured = ["confidence", "entropy", "kept", "certainty", "iou", "iou_delta"]
    rows.loc[rows["status"] != "ok", measured] = np.nan
    return rows.assign(reference=reference, preset=preset, dice=rows["iou"], iou_prediction=np.nan)


def _still(tile: Any, name: Any, fill: Any, rng: Any) -> Any:
    """Rows of an input that needs no heatmap."""
    base = tile["base"].to_numpy()
    factor = {"original": 1.0, "empty": 0.02, "target_only": 0.6}.get(name, 1 - DROPS.get(fill, 0))
    noise = rng.normal(0, 0.02, len(tile)) * (name != "original")
    confidence = np.clip(base * factor + noise, 0.001, 0.999)
    return pd.DataFrame(
        {
            "sample": tile["sample"],
            "method": f"control:{name}",
            "layer": "",
            "binarisation": "",
            "level": np.nan,
            "strategy": name,
            "fill": fill,
            "seed": 0,
            "confidence": confidence,
            "entropy": 0.3,
            "kept": confidence,
            "certainty": confidence * 0.8,
            "iou": np.clip(confidence - 0.05, 0, 1),
            "iou_delta": confidence - base,
            "area": np.nan,
            "coverage": np.nan,
            "status": "ok",
        }
    )


def make_tiles(tiles: Any = 20) -> Any:
    """Return the table of tiles: all ok, one skipped and one failed besides."""
    names = [f"{1000 + i}" for i in range(tiles)] + ["9001", "9002"]
    status = ["ok"] * tiles + ["skipped", "failed"]
    reason = [""] * tiles + ["no target pixel (fewer than 16)", "image is truncated"]
    return pd.DataFrame({"sample": names, "status": status, "reason": reason})


def make_manifest(preset: Any = "strict", tiles: Any = 20) -> Any:
    """Return a manifest as the study writes it."""
    return {
        "version": "0.1.0",
        "created": "2026-01-05T10:00:00+00:00",
        "preset": preset,
        "command": "segproof study --model smp:models/roofs --data tiles --out run",
        "model": {
            "spec": "smp:models/roofs",
            "classes": ["background", "building"],
            "weights_sha256": "3f1d" * 16,
            "parameters": 1_234_567,
        },
        "data": {"root": "tiles", "n": tiles + 2},
        "study": {
            "class": "building",
            "methods": list(METHODS),
            "layers": list(LAYERS),
            "thresholds": list(THRESHOLDS),
            "areas": list(AREAS),
            "seed": 0,
        },
        "layers": [
            {"path": "decoder.blocks.0", "alias": "decoder:1", "stride": 16, "channels": 256},
            {"path": "decoder.blocks.1", "alias": "decoder:2", "stride": 8, "channels": 128},
        ],
        "tiles": {
            "ok": tiles,
            "skipped": 1,
            "failed": 1,
            "reasons": {"no target pixel (fewer than 16)": 1, "image is truncated": 1},
        },
        "forwards": 12_345,
        "seconds": 321.5,
        "machine": {"python": "3.12", "torch": "2.10", "device": "cpu"},
    }


def make_pictures(
    tiles: Any = 4, size: Any = 128, *, methods: Any = METHODS, layers: Any = LAYERS, seed: Any = 0
) -> Any:
    """Return pictures with block-shaped roofs and smooth heatmaps around them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    pictures = []
    for number in range(tiles):
        truth = np.zeros((size, size), dtype=bool)
        image = np.stack([0.30 + 0.1 * np.sin(9 * x), 0.38 + 0.1 * np.cos(7 * y), 0.28 + 0 * x])
        for _ in range(4):
            top, left = rng.integers(1, size * 2 // 3, 2)
            high, wide = rng.integers(size // 9, size // 4, 2)
            truth[top : top + high, left : left + wide] = True
            image[:, top : top + high, left : left + wide] = rng.uniform(0.4, 0.9, (3, 1, 1))
        image = np.clip(image + rng.normal(0, 0.03, image.shape), 0, 1)
        prediction = np.roll(truth, 3, axis=1)
        heatmaps = {}
        for method in methods:
            for layer in layers:
                cy, cx = rng.uniform(0.2, 0.8, 2)
                blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.05)
                blob = blob + QUALITY[method] * truth
                heatmaps[method, layer] = (blob / blob.max()).astype(np.float32)
        pictures.append(
            {
                "sample": f"{1000 + number}",
                "image": image.astype(np.float32),
                "truth": truth,
                "prediction": prediction,
                "heatmaps": heatmaps,
            }
        )
    return pictures
