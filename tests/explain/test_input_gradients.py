"""Gradients at the input: those of autograd, and an extra."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from captures import captured, distance, lively, raw, score_of
from segproof.errors import SegproofError
from segproof.explain.input_gradients import integrated_gradients


def test_gradients_at_the_input_are_those_of_autograd() -> None:
    """Captum's maps against plain autograd: x dY/dx, and the mean of dY/dx on a straight way."""
    model, seen = captured(23, n=2, act="silu")
    assert seen.baseline is not None

    def slope(images: Tensor, n: int) -> Tensor:
        images = images.clone().requires_grad_()
        score = seen.bound.picture(n).score(model(images)).sum()
        return torch.autograd.grad(score, images)[0]

    for n in range(2):
        x, b = seen.images[n : n + 1], seen.baseline[n : n + 1]
        plain = raw("input_x_gradient", seen, "", model).values[n]
        assert lively(plain)
        np.testing.assert_allclose(plain, (x * slope(x, n)).sum(dim=1)[0], atol=1e-10)
        # midpoints of 400 steps; the encoder's ReLUs make the way a broken line
        ways = slope(b + (x - b) * ((torch.arange(400) + 0.5) / 400).view(-1, 1, 1, 1), n)
        expected = ((x - b)[0] * ways.mean(dim=0)).sum(dim=0)
        integrated = integrated_gradients(seen, "", model, steps=256).values[n]
        assert distance(expected, integrated) < 5e-3
        gain = score_of(model, seen, n)(x[0].numpy()) - score_of(model, seen, n)(b[0].numpy())
        assert float(integrated.sum()) == pytest.approx(gain, rel=5e-3)


def test_captum_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    model, seen = captured(3)
    for method in ("input_x_gradient", "integrated_gradients"):
        with pytest.raises(SegproofError, match=r'pip install "segproof\[captum\]"'):
            raw(method, seen, "", model)
