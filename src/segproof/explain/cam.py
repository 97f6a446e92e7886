"""Computes class activation maps from a layer's activations and gradients.

D = dY/dA of the layer, A its activations [N, K, h, w]; ReLU, resizing and normalisation come later
(`explain`), so that raw maps can be kept. Formulas: docs/reference/measures.md, section "Heatmaps".
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, max_pool2d

from segproof.explain.forward_pass import Capture
from segproof.models import SegmentationModel, probabilities

__all__ = [
    "RawMap",
    "eigen_cam",
    "eigen_grad_cam",
    "grad_cam",
    "grad_cam_elementwise",
    "grad_cam_pp",
    "hires_cam",
    "layer_cam",
    "seg_eigen_cam",
    "seg_xres_cam",
    "xgrad_cam",
]

TINY: Final = 1e-6  # relative: below it a float32 sum or denominator is rounding noise
_PIXELS: Final = 1 << 14  # columns per block of the covariance: bounds its float64 copy


class RawMap(NamedTuple):
    """A signed map [N, h, w], Score-CAM's effective channels [N], and the forwards that were
    spent.
    """

    values: Tensor
    effective_channels: Tensor | None = None
    forwards: int = 0


def weighted_sum(weights: Tensor, activations: Tensor) -> Tensor:
    """Sum over channels of weights [N, K] times activations [N, K, h, w]: [N, h, w]."""
    return torch.einsum("nk,nkhw->nhw", weights, activations)


def grad_cam(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Grad-CAM: sum over k of mean(D_k) A_k (selvaraju2017gradcam, vinogradova2020seggradcam)."""
    weights = capture.gradients[layer].mean(dim=(2, 3))
    return RawMap(weighted_sum(weights, capture.activations[layer]))


def grad_cam_pp(
    capture: Capture, layer: str, model: SegmentationModel, *, eps: float | None = None
) -> RawMap:
    """Grad-CAM++: a = D^2 / (2 D^2 + S D^3) with S = sum of A_k; w_k = sum of a ReLU(D).

    a = 0 where D = 0 or the denominator is about 0 relative to its terms (signed activations).
    `eps` is the published absolute guard instead. The map depends on the scale of Y: that is the
    method, not an accident (chattopadhay2018gradcampp).
    """
    slope, activation = capture.gradients[layer], capture.activations[layer]
    total = activation.sum(dim=(2, 3), keepdim=True)
    if eps is None:
        # D^2 is divided out: squares of small gradients underflow in float32
        positive = slope.relu()
        denominator = (total * positive).add_(2)
        share = positive / denominator
        if bool((total < 0).any()):  # else the denominator is at least 2
            usable = denominator.abs() > TINY * (2 + (total * positive).abs())
            share = torch.where(usable, share, 0.0)
    else:
        square = slope**2
        alpha = square / (2 * square + total * square * slope + eps)
        share = torch.where(slope != 0, alpha, 0.0) * slope.relu()
    weights = share.sum(dim=(2, 3))
    return RawMap(weighted_sum(weights, activation))


def xgrad_cam(
    capture: Capture, layer: str, model: SegmentationModel, *, eps: float | None = None
) -> RawMap:
    """XGrad-CAM: w_k = sum(D_k A_k) / sum(A_k) (fu2020xgradcam).

    A channel whose sum is about 0 next to sum(|A_k|) is divided by the latter; an empty one weighs
    0. `eps` is the published absolute guard instead.
    """
    slope, activation = capture.gradients[layer], capture.activations[layer]
    total = activation.sum(dim=(2, 3))
    if eps is None:
        size = activation.abs().sum(dim=(2, 3))
        total = torch.where(total.abs() > TINY * size, total, size)
        usable = total != 0
        shares = (slope * activation).sum(dim=(2, 3))
        weights = torch.where(usable, shares / torch.where(usable, total, 1.0), 0.0)
    else:
        weights = (slope * activation / (total[..., None, None] + eps)).sum(dim=(2, 3))
    return RawMap(weighted_sum(weights, activation))


def hires_cam(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """HiRes-CAM: sum over k of D_k * A_k, pixel by pixel (draelos2020hirescam).

    Before a last 1x1 convolution the map sums to Y minus the bias: nothing else is highlighted.
    """
    return RawMap((capture.gradients[layer] * capture.activations[layer]).sum(dim=1))


def layer_cam(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Layer-CAM: sum over k of ReLU(D_k) * A_k, pixel by pixel (jiang2021layercam)."""
    return RawMap((capture.gradients[layer].relu() * capture.activations[layer]).sum(dim=1))


def grad_cam_elementwise(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Grad-CAM element-wise: sum over k of ReLU(D_k * A_k), pixel by pixel (gildenblat2021cam).

    Layer-CAM where activations are not negative; where they are, two negatives count.
    """
    return RawMap((capture.gradients[layer] * capture.activations[layer]).relu().sum(dim=1))


def seg_xres_cam(
    capture: Capture,
    layer: str,
    model: SegmentationModel,
    *,
    window: int = 4,
    pool: Literal["mean", "max"] = "mean",
) -> RawMap:
    """Seg-XRes-CAM: HiRes-CAM with D pooled over windows of `window` x `window` pixels of the layer
    and spread over them again (hasany2023segxrescam).

    A window of 1 is HiRes-CAM, one of the whole layer Grad-CAM. Windows cut by the right and lower
    edge pool what they hold, so every size will do; the published code fills them with zeros there.
    """
    slope, activation = capture.gradients[layer], capture.activations[layer]
    height, width = slope.shape[-2:]
    if pool == "mean":
        pooled = avg_pool2d(slope, window, ceil_mode=True, count_include_pad=False)
    else:
        pooled = max_pool2d(slope, window, ceil_mode=True)
    spread = pooled.repeat_interleave(window, dim=2).repeat_interleave(window, dim=3)
    return RawMap((spread[:, :, :height, :width] * activation).sum(dim=1))


def eigen_cam(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Eigen-CAM: sum over k of v_k A_k, channels centred, v the first principal direction.

    v is the leading eigenvector of the K x K covariance in float64; its sign is the one whose map
    correlates with the predicted mask P. Class-agnostic: the target only chooses the sign, and
    channels without influence on the output count (muhammad2020eigencam).
    """
    projection = _principal(capture.activations[layer])
    return RawMap(projection * _sign(capture, projection)[:, None, None])


def eigen_grad_cam(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Eigen-Grad-CAM: Eigen-CAM of D * A instead of A, the sign again from P (gildenblat2021cam).

    The sign of the gradients is lost with that of v: what speaks against the class can stand out.
    """
    projection = _principal(capture.gradients[layer] * capture.activations[layer])
    return RawMap(projection * _sign(capture, projection)[:, None, None])


def seg_eigen_cam(capture: Capture, layer: str, model: SegmentationModel) -> RawMap:
    """Seg-Eigen-CAM: first principal component of |D| * A, flipped where |min| > max.

    Another method than Eigen-CAM, which has no gradients, and than Eigen-Grad-CAM, which has signed
    ones; the sign comes from the map alone, not from P (chung2025segeigencam).
    """
    projection = _principal(capture.gradients[layer].abs() * capture.activations[layer])
    flip = -projection.amin(dim=(1, 2)) > projection.amax(dim=(1, 2))
    return RawMap(torch.where(flip[:, None, None], -projection, projection))


def _principal(maps: Tensor) -> Tensor:
    """Projection [N, h, w] of the centred channels of maps [N, K, h, w] on their first principal
    direction, of either sign.
    """
    centred = maps.flatten(2) - maps.flatten(2).mean(dim=2, keepdim=True)
    projections = []
    for rows in centred:
        direction = torch.linalg.eigh(channel_covariance(rows)).eigenvectors[:, -1].to(rows)
        projections.append((direction @ rows).view(maps.shape[-2:]))
    return torch.stack(projections)


def channel_covariance(rows: Tensor) -> Tensor:
    """Products of centred rows [K, n] with each other, [K, K], float64 on the CPU."""
    covariance = torch.zeros(rows.shape[0], rows.shape[0], dtype=torch.float64)
    for block in torch.split(rows, _PIXELS, dim=1):
        wide = block.double()
        covariance += (wide @ wide.T).cpu()
    return covariance


def _sign(capture: Capture, projection: Tensor) -> Tensor:
    """+1 or -1 per picture: correlation with P, else with p_c, else the larger excursion."""
    bound, size = capture.bound, projection.shape[-2:]
    wide = projection.double()

    def agreement(guide: Tensor) -> Tensor:
        if guide.shape[-2:] != size:
            guide = adaptive_avg_pool2d(guide[:, None], (size[0], size[1]))[:, 0]
        return (wide * (guide - guide.mean(dim=(1, 2), keepdim=True))).sum(dim=(1, 2)).sign()

    sign = agreement(bound.prediction.double())
    if bool((sign == 0).any()):
        probability = probabilities(capture.logits, bound.activation)[:, bound.class_index]
        sign = torch.where(sign == 0, agreement((probability * bound.valid).double()), sign)
        high, low = wide.amax(dim=(1, 2)), -wide.amin(dim=(1, 2))
        sign = torch.where(sign == 0, torch.where(high >= low, 1.0, -1.0).double(), sign)
    return sign.to(projection)
