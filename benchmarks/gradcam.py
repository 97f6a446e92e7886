"""The same study as a user of grad-cam would write it: the peer of study.py, kept fair.

Heatmaps by the package, a call for each method and layer, with a thin SVD in place of its full one,
which asks for 256 GiB at a layer of 512 x 512. Then one picture at a time without gradients.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final
from unittest.mock import patch

import numpy as np
import pytorch_grad_cam as pgc
import torch
from numpy.typing import NDArray
from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget
from torch import Tensor

from segproof import SegmentationModel

__all__ = [
    "KINDS",
    "best_batch",
    "disagreement",
    "heatmap",
    "peer_study",
    "thin",
    "thin_projection",
]

Array = NDArray[np.float32]
Key = tuple[str, ...]
KINDS: Final = {
    "grad_cam": pgc.GradCAM,
    "grad_cam_pp": pgc.GradCAMPlusPlus,
    "xgrad_cam": pgc.XGradCAM,
    "score_cam": pgc.ScoreCAM,
    "eigen_cam": pgc.EigenCAM,
}
STRATEGIES: Final = ("background_only", "highlighted_only", "highlighted_and_target")
BATCHES: Final = (1, 4, 16)  # the last one is grad-cam's own


def peer_study(
    model: SegmentationModel,
    image: Tensor,
    truth: Tensor,
    paths: Sequence[str],
    thresholds: Sequence[float],
    batch: int,
    methods: Sequence[str] = tuple(KINDS),
) -> dict[Key, tuple[float, float]]:
    """Confidence and IoU of every perturbed picture of one tile [B, H, W] with truth bool [H, W].

    Keys: (), the picture itself, and (layer, method, threshold, strategy). `batch` is Score-CAM's.
    """
    shown = ((image - model.mean) / model.std)[None]
    found: dict[Key, tuple[float, float]] = {(): measured(model, shown, truth)}
    for path in paths:
        for name in methods:
            heat = torch.from_numpy(heatmap(model, shown, truth, path, name, batch))
            for threshold in thresholds:
                region = heat > threshold
                keeps = {
                    "background_only": ~region,
                    "highlighted_only": region,
                    "highlighted_and_target": region | truth,
                }
                for strategy in STRATEGIES:
                    # 0 is the neutral fill: what the mean normalises to
                    made = torch.where(keeps[strategy], shown, 0.0)
                    key = (path, name, f"{threshold:g}", strategy)
                    found[key] = measured(model, made, truth)
    model.net.zero_grad()  # theirs stay on the weights
    return found


def heatmap(
    model: SegmentationModel, shown: Tensor, truth: Tensor, path: str, name: str, batch: int = 16
) -> Array:
    """Their heatmap [H, W] of a normalised picture [1, B, H, W]."""
    category = 1 if model.channels > 1 else 0
    target = SemanticSegmentationTarget(category, truth.numpy().astype(np.float32))
    layer = model.net.get_submodule(path)
    with thin(), KINDS[name](model=model.net, target_layers=[layer]) as cam:
        cam.batch_size = batch
        made: Array = cam(input_tensor=shown, targets=[target])[0]
    return made


def measured(model: SegmentationModel, shown: Tensor, truth: Tensor) -> tuple[float, float]:
    """Confidence inside the truth and IoU of one normalised picture [1, B, H, W]."""
    with torch.no_grad():
        logits = model.net(shown)[0]
    p = logits[0].sigmoid() if len(logits) == 1 else logits.softmax(dim=0)[1]
    decided = p >= 0.5
    shared, either = (decided & truth).sum(), (decided | truth).sum()
    return float(p[truth].mean()), float(shared / either)


@contextmanager
def thin() -> Iterator[None]:
    """Eigen-CAM by a thin SVD, and no progress bars."""
    with (
        patch("pytorch_grad_cam.eigen_cam.get_2d_projection", thin_projection),
        patch("tqdm.tqdm", iter),
    ):
        yield


def thin_projection(activations: Array) -> Array:
    """Projection [N, h, w] of activations [N, K, h, w] on their first principal direction."""
    found = []
    for each in activations:
        rows = each.reshape(len(each), -1).T
        rows = rows - rows.mean(axis=0)
        _, _, directions = np.linalg.svd(rows, full_matrices=False)
        found.append((rows @ directions[0]).reshape(each.shape[1:]))
    return np.float32(found)  # type: ignore[arg-type, return-value]


def best_batch(model: SegmentationModel, image: Tensor) -> int:
    """The size of Score-CAM's batches that is the fastest for them here, of BATCHES."""
    times: dict[int, float] = {}
    shown = ((image - model.mean) / model.std)[None]
    for batch in BATCHES:
        pictures = shown.repeat(batch, 1, 1, 1)
        with torch.no_grad():
            model.net(pictures)
            started = time.perf_counter()
            model.net(pictures)
        times[batch] = (time.perf_counter() - started) / batch
    return min(times, key=lambda batch: times[batch])


def disagreement(theirs: Mapping[Key, tuple[float, float]], ours: Mapping[Key, float]) -> float:
    """Greatest difference of confidence of pictures that both have."""
    shared = theirs.keys() & ours.keys()
    return max(abs(theirs[key][0] - ours[key]) for key in shared)
