"""Draws images with heatmaps over them: one explanation, and the gallery of a report."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from segproof.analysis import method_label
from segproof.report.drawing import INK, SOFT, add_legend, empty_figure, new_figure, safe_text

__all__ = ["displayed", "gallery", "overlay"]

Array = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

TRUTH, PREDICTION, REGION = "#ffffff", "#56b4e9", "#56b4e9"
HEAT = "inferno"


def displayed(image: npt.ArrayLike, limits: tuple[float, float] | None = None) -> Array:
    """Return `image` [B, H, W] as RGB [H, W, 3] in [0, 1]: first three bands, one band as grey.

    `limits` are the values shown as black and white, so that a picture in other units than the
    network's looks as wrong as it is. Without them, values outside [0, 1] are stretched between the
    2nd and 98th percentile of the shown bands. Pixels that are not finite are black. Raises
    ValueError if there are not three dimensions.
    """
    data = np.asarray(image, dtype=np.float32)
    if data.ndim != 3 or data.shape[0] < 1:
        raise ValueError(f"found shape {data.shape}; expected [B, H, W]; add the band dimension")
    bands = data[:3] if data.shape[0] >= 3 else np.repeat(data[:1], 3, axis=0)
    finite = np.isfinite(bands)
    if finite.any():
        values = bands[finite]
        if limits is None and (values.min() < -1e-6 or values.max() > 1 + 1e-6):
            limits = tuple(np.percentile(values, [2, 98]))
        if limits is not None:
            low, high = limits
            bands = (bands - low) / max(float(high - low), 1e-12)
    bands = np.where(finite, bands, 0.0)
    return np.asarray(np.clip(bands, 0, 1).transpose(1, 2, 0))


def _outline(axes: Axes, mask: Mask | None, color: str, style: str = "solid") -> None:
    """Draw the border of `mask`, dark below bright so that it shows on any ground."""
    if mask is None or not mask.any():
        return
    # A frame of zeros closes outlines that run into the image's border.
    padded = np.pad(mask.astype(np.float32), 1)
    y, x = np.arange(padded.shape[0]) - 1, np.arange(padded.shape[1]) - 1
    lines = axes.contour(x, y, padded, levels=[0.5], colors=color, linewidths=0.9, linestyles=style)
    under = patheffects.Stroke(linewidth=1.9, foreground="#222222")
    lines.set_path_effects([under, patheffects.Normal()])


def _panel(axes: Axes, picture: Array, heatmap: Array | None = None) -> Any:
    """Show an image, or its grey version below a heatmap; return what the colour bar explains."""
    height, width = picture.shape[:2]
    axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    for side in axes.spines.values():
        side.set_visible(False)
    if heatmap is None:
        axes.imshow(picture, interpolation="antialiased")
        return None
    grey = picture @ np.array([0.299, 0.587, 0.114], dtype=picture.dtype)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    return axes.imshow(heatmap, cmap=HEAT, vmin=0, vmax=1, alpha=0.62, interpolation="antialiased")


def _bar(figure: Figure, colours: Any, axes: Any, **options: Any) -> None:
    bar = figure.colorbar(colours, ax=axes, **options)
    bar.set_label("heatmap (0-1)", fontsize=8.5, color=INK)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1])
    bar.ax.tick_params(labelsize=8, colors=SOFT)
    bar.outline.set_visible(False)


def _reduced(array: Array, step: int) -> Array:
    """Block means of the last two axes: a small panel needs no more pixels than it shows."""
    if step == 1:
        return array
    *rest, height, width = array.shape
    cut = array[..., : height // step * step, : width // step * step]
    blocks = cut.reshape(*rest, height // step, step, width // step, step)
    return np.asarray(blocks.mean(axis=(-3, -1)))


def overlay(
    image: npt.ArrayLike,
    heatmap: npt.ArrayLike,
    title: str,
    *,
    region: npt.ArrayLike | None = None,
    truth: npt.ArrayLike | None = None,
    note: str = "",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Show `image` [B, H, W] beside `heatmap` [H, W] in [0, 1] laid over it.

    `region` (what was explained) and `truth`, both bool [H, W], are outlined. `note` stands below
    the title, for a status such as `all_zero`. `limits` are the values shown as black and white
    (see `displayed`), named beside the picture. Raises ValueError if the sizes differ.
    """
    picture = displayed(image, limits)
    values = np.asarray(heatmap, dtype=np.float32)
    if values.shape != picture.shape[:2]:
        raise ValueError(
            f"found heatmap {values.shape}; expected {picture.shape[:2]}; resize it to the image"
        )
    height, width = values.shape
    side = 4.3
    figure = new_figure(2 * side + 1.1, min(max(side * height / width, 1.5), 9.0) + 0.95)
    left, right = figure.subplots(1, 2)
    masks = [None if m is None else np.asarray(m, dtype=bool) for m in (region, truth)]
    _panel(left, picture)
    colours = _panel(right, picture, values)
    for axes in (left, right):
        _outline(axes, masks[1], TRUTH)
        _outline(axes, masks[0], REGION, "dashed" if masks[1] is not None else "solid")
    shades = (
        "" if limits is None else f" as the network sees it ({limits[0]:.4g} to {limits[1]:.4g})"
    )
    left.set_title(f"image{shades}", fontsize=9, color=SOFT, loc="left")
    right.set_title("heatmap over image", fontsize=9, color=SOFT, loc="left")
    _bar(figure, colours, [left, right], shrink=0.9, pad=0.015, fraction=0.04)
    heading = safe_text(title) + (f"\n{safe_text(note)}" if note else "")
    figure.suptitle(
        heading, fontsize=11, fontweight="bold", color=INK, ha="left", x=0.006, parse_math=False
    )
    handles = []
    if masks[1] is not None:
        handles.append(_mask_handle(TRUTH, "-", "truth"))
    if masks[0] is not None:
        handles.append(_mask_handle(REGION, "--" if masks[1] is not None else "-", "region"))
    if handles:
        add_legend(figure, handles)
    return figure


def _mask_handle(color: str, style: Any, label: str) -> Any:
    return Line2D(
        [],
        [],
        color=color,
        linestyle=style,
        linewidth=1.4,
        label=label,
        path_effects=[patheffects.Stroke(linewidth=3, foreground="#333333"), patheffects.Normal()],
    )


def gallery(
    pictures: Sequence[Mapping[str, Any]], layer: str, *, methods: Sequence[str] | None = None
) -> Figure:
    """Tiles x methods at one layer: the image with its outlines, then one heatmap per method.

    Each picture has `sample`, `image` [B, H, W], `truth` and `prediction` bool [H, W] (or None) and
    `heatmaps`, a dict (method, layer) -> [H, W] in [0, 1].
    """
    at_layer: dict[Hashable, None] = {
        method: None for item in pictures for method, at in item["heatmaps"] if at == layer
    }
    names = [str(name) for name in (methods or at_layer)]
    if not pictures or not names:
        return empty_figure(new_figure(6, 1.5), "no pictures were kept")
    side = 10.4 / (len(names) + 1)
    figure = new_figure(10.4, side * len(pictures) + 1.25)
    figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)  # type: ignore[call-arg,union-attr]
    grid = figure.subplots(len(pictures), len(names) + 1, squeeze=False)
    colours = None
    for row, item in enumerate(pictures):
        picture = displayed(item["image"])
        step = max(1, min(picture.shape[:2]) // 256)
        picture = _reduced(picture.transpose(2, 0, 1), step).transpose(1, 2, 0)
        truth, prediction = (
            None if item.get(name) is None else _reduced(np.asarray(item[name], float), step) >= 0.5
            for name in ("truth", "prediction")
        )
        _panel(grid[row, 0], picture)
        _outline(grid[row, 0], truth, TRUTH)
        _outline(grid[row, 0], prediction, PREDICTION, "dashed")
        sample = safe_text(item["sample"])
        grid[row, 0].set_ylabel(
            sample if len(sample) <= 18 else sample[:8] + "..." + sample[-7:],
            fontsize=8,
            color=INK,
            parse_math=False,
        )
        for column, name in enumerate(names, start=1):
            axes = grid[row, column]
            heatmap = item["heatmaps"].get((name, layer))
            if heatmap is None:
                axes.set_axis_off()
            else:
                colours = _panel(axes, picture, _reduced(np.asarray(heatmap, np.float32), step))
                _outline(axes, truth, TRUTH)
            if row == 0:
                axes.set_title(
                    safe_text(method_label(name)), fontsize=9, color=INK, parse_math=False
                )
    grid[0, 0].set_title("image", fontsize=9, color=INK)
    if colours is not None:
        _bar(
            figure,
            colours,
            grid.ravel().tolist(),
            orientation="horizontal",
            aspect=60,
            pad=0.015,
            shrink=0.5,
        )
    handles = [_mask_handle(TRUTH, "-", "truth"), _mask_handle(PREDICTION, "--", "prediction")]
    add_legend(figure, handles)
    return figure
