"""Draws figures and reads what they show."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg


def draw(figure: Any) -> Any:
    """Pixels of a figure, uint8 [H, W, 4]."""
    assert type(figure.canvas) is FigureCanvasAgg
    canvas: Any = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def words(figure: Any) -> Any:
    return {text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()}
