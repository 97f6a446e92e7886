"""Draws heatmaps that know nothing of the network: what a method has to beat."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

__all__ = ["random_blobs"]


def random_blobs(
    size: tuple[int, int], generator: torch.Generator, scale: float = 1 / 24
) -> Tensor:
    """A smooth random heatmap [H, W] in [0, 1]: Gaussian noise blurred by `scale` of the side.

    The control that knows nothing of picture or network, as coherent as a CAM is.
    """
    noise = torch.randn(size, generator=generator, dtype=torch.float64).numpy()
    smooth = ndimage.gaussian_filter(noise, sigma=scale * max(size), mode="reflect")
    smooth -= smooth.min()
    return torch.from_numpy((smooth / smooth.max()).astype(np.float32))
