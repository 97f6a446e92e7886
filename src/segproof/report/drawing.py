"""Sets the styles that all figures share, and saves a figure as bytes.

Colours are those of Okabe and Ito (readable with every common colour blindness), and every method
has its own marker as well. No function touches global state of matplotlib.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from segproof.explain import METHODS
from segproof.perturb import CONTROLS, control_of

__all__ = [
    "CONTROL_DASH",
    "INK",
    "SOFT",
    "SPARE",
    "add_legend",
    "data_uri",
    "empty_figure",
    "label_axes",
    "new_figure",
    "png",
    "safe_text",
    "style_axes",
    "styles_of",
    "svg",
    "webp",
]

INK, SOFT, GRID = "#1f2933", "#5f6b76", "#e3e7eb"
SPARE = (("#117733", "<"), ("#332288", ">"), ("#AA4499", "p"), ("#882255", "h"), ("#999933", "*"))
# line styles of the controls that figures draw
CONTROL_DASH = {control.id: control.dash for control in CONTROLS.values() if control.dash}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches that belongs to no window."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


@lru_cache(maxsize=1)
def _font() -> Any:
    return get_font(findfont(FontProperties(family="DejaVu Sans")))


def safe_text(value: object) -> str:
    """`value` with characters that the bundled font lacks replaced, so that none warns."""
    font = _font()
    drawable = (c == "\n" or (c.isprintable() and font.get_char_index(ord(c))) for c in str(value))
    return "".join(c if ok else "?" for c, ok in zip(str(value), drawable, strict=True))


def style_axes(axes: Axes, *, grid: str = "y") -> None:
    """Quiet spines and ticks; a grid along `grid`, none for ""."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b6bec6")
    axes.tick_params(labelsize=8, colors=SOFT, length=3, color="#b6bec6")
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def label_axes(axes: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Set the labels and the title as plain text, in which no dollar starts mathematics."""
    plain: dict[str, Any] = {"parse_math": False}
    if x:
        axes.set_xlabel(safe_text(x), fontsize=8.5, color=INK, **plain)
    if y:
        axes.set_ylabel(safe_text(y), fontsize=8.5, color=INK, **plain)
    if title:
        axes.set_title(
            safe_text(title), fontsize=9.5, color=INK, loc="left", fontweight="bold", **plain
        )


def styles_of(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every method and control, those of its record.

    Others get spare pairs, in the order given.
    """
    spare = iter(SPARE * (1 + len(methods) // len(SPARE)))
    styles = {}
    for name in methods:
        method, control = METHODS.get(name), control_of(name)
        if control is not None and control.colour:
            styles[name] = (control.colour, "")
        elif method is not None and method.colour:
            styles[name] = (method.colour, method.marker)
        else:
            styles[name] = next(spare)
    return styles


def empty_figure(figure: Figure, text: str) -> Figure:
    """Write in the middle of `figure` why nothing is drawn."""
    figure.text(0.5, 0.5, text, ha="center", va="center", color=SOFT, fontsize=10)
    return figure


def add_legend(figure: Figure, handles: list[Any], columns: int = 7) -> None:
    """A legend below the axes, in at most `columns` columns."""
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(columns, max(1, len(handles))),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=2.4,
    )


# --- files ------------------------------------------------------------------------------------


def png(figure: Figure, *, dpi: int = 110) -> bytes:
    """Return the figure as PNG."""
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": "segproof"})
    return stream.getvalue()


def webp(figure: Figure, *, dpi: int = 110, quality: int = 88) -> bytes:
    """Return the figure as WebP: photographs take a fifth of the bytes of a PNG."""
    stream = BytesIO()
    figure.savefig(stream, format="webp", dpi=dpi, pil_kwargs={"quality": quality, "method": 4})
    return stream.getvalue()


def svg(figure: Figure) -> bytes:
    """Return the figure as SVG, the same bytes each time."""
    stream = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "segproof", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def data_uri(picture: bytes) -> str:
    """Return PNG, WebP or SVG bytes as a data URI."""
    starts = {b"\x89PNG": "png", b"RIFF": "webp"}
    kind = starts.get(picture[:4], "svg+xml")
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"
