"""The references themselves, against numbers worked out by hand and against torch's resize."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import reference


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("small", "large"), [((3, 5), (7, 11)), ((4, 4), (16, 16)), ((9, 6), (5, 4))]
)
def test_resize_is_torchs(
    small: tuple[int, int], large: tuple[int, int], align_corners: bool
) -> None:
    image = np.random.default_rng(1).normal(size=small)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None], large, mode="bilinear", align_corners=align_corners
    )[0, 0].numpy()
    np.testing.assert_allclose(
        reference.resize(image, large, align_corners=align_corners), theirs, atol=1e-12
    )


def test_measures_by_hand() -> None:
    p1 = np.array([[0.5, 1.0], [0.75, 0.0]])
    p = np.stack([1 - p1, p1])
    R = np.array([[True, True], [True, False]])
    quarter = -0.75 * math.log2(0.75) - 0.25 * math.log2(0.25)
    assert reference.confidence(p, 1, R) == pytest.approx(0.75)
    assert reference.entropy(p, 1, R, "softmax") == pytest.approx((1 + 0 + quarter) / 3)
    assert reference.entropy(p, 1, R, "sigmoid") == pytest.approx((1 + 0 + quarter) / 3)
    # argmax gives the tie at 0.5 to class 0, the sigmoid's p >= 0.5 keeps it
    assert reference.kept(p, 1, R, "softmax") == pytest.approx(2 / 3)
    assert reference.kept(p, 1, R, "sigmoid") == 1
    assert reference.certainty(p, 1, R, "softmax") == pytest.approx(2 / 3 * (1 - quarter / 2))
    paper = (0.5 + 0.75 * -math.log2(0.75)) / 4
    assert reference.entropy_paper(p, 1, R) == pytest.approx(paper)
    new = reference.decided(p, 1, "softmax")
    V = np.ones_like(R)
    assert reference.iou(new, R, V) == pytest.approx(2 / 3)
    assert reference.dice(new, R, V) == pytest.approx(4 / 5)


def test_paper_heatmap_by_hand() -> None:
    L = np.array([[-1.0, 1.0], [2.0, 4.0]])
    S = reference.heatmap_paper([L], (2, 2))
    np.testing.assert_allclose(S, [[0, 0.25], [0.5, 1]], atol=1e-6)
