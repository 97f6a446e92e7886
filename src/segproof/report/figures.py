"""Draws the tables of a study: one function per figure, each returns a matplotlib Figure.

Tables are those of `segproof.analysis.Analysis`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from segproof.analysis import (
    ALPHA,
    LEAST_IMAGES,
    LEAST_METHODS,
    higher_is_better,
    measure_label,
    method_label,
)
from segproof.perturb import is_control
from segproof.report.drawing import (
    CONTROL_DASH,
    INK,
    SOFT,
    SPARE,
    add_legend,
    empty_figure,
    label_axes,
    new_figure,
    safe_text,
    style_axes,
    styles_of,
)
from segproof.report.table import DAGGER, DOUBLE_DAGGER

if TYPE_CHECKING:
    from segproof.explain import Preset

__all__ = [
    "critical_difference",
    "evidence_maps",
    "evidence_measures",
    "evidence_methods",
    "faithfulness",
    "layers",
    "ranking",
    "region_size",
    "sweep",
    "validity",
]


def _unique(values: pd.Series[Any]) -> list[str]:
    return [str(value) for value in values.unique()]


def _cell(
    frame: pd.DataFrame, binarisation: str, reference: str | None, fill: str | None
) -> pd.DataFrame:
    """Lines of one binarisation, reference and fill; the first of each where none is named."""
    frame = frame[frame["binarisation"] == binarisation] if binarisation else frame
    for column, wanted in (("reference", reference), ("fill", fill)):
        if len(frame):
            chosen = wanted if wanted is not None else frame[column].iloc[0]
            frame = frame[frame[column] == chosen]
    return frame


def _method_handles(styles: Mapping[str, tuple[str, str]]) -> list[Any]:
    return [
        Line2D(
            [],
            [],
            color=color,
            marker=marker,
            markersize=4.5,
            linewidth=1.6,
            linestyle=CONTROL_DASH.get(name, "-"),
            label=safe_text(method_label(name)),
        )
        for name, (color, marker) in styles.items()
    ]


# --- figures of tables ------------------------------------------------------------------------


def sweep(
    table: pd.DataFrame,
    *,
    binarisation: str = "threshold",
    reference: str | None = None,
    fill: str | None = None,
    preset: Preset = "strict",
) -> Figure:
    """Task 1: M1, M2 and M3 against threshold or matched area, one row of panels per layer.

    `table` is `Analysis.sweep`. Bands are 95 % intervals over images; controls are dashed grey.
    At a single level methods stand side by side, with bars for the intervals.
    """
    frame = _cell(table, binarisation, reference, fill)
    layers = [name for name in _unique(frame["layer"]) if name]
    if not layers:
        return empty_figure(new_figure(6, 1.5), f"nothing was measured at {binarisation}")
    methods = [name for name in _unique(frame["method"]) if not is_control(name)]
    controls = [name for name in CONTROL_DASH if (frame["method"] == name).any()]
    styles = styles_of([*methods, *controls])
    figure = new_figure(10.4, 0.7 + 2.5 * len(layers))
    grid = figure.subplots(len(layers), 3, sharex=True, sharey="col", squeeze=False)
    unit = "share of the tile that is highlighted" if binarisation == "area" else "threshold"
    alone = frame["level"].nunique() == 1
    unit += f": {frame['level'].iloc[0]:g}" if alone else ""
    for row, layer in enumerate(layers):
        for column, measure in enumerate(("M1", "M2", "M3")):
            axes: Axes = grid[row, column]
            part = frame[frame["measure"] == measure]
            struck = bool(part["struck"].any())
            for method in [*controls, *methods]:
                lines = part[
                    (part["method"] == method) & part["layer"].isin([layer, ""])
                ].sort_values("level")
                if lines.empty:
                    continue
                color, marker = styles[method]
                x = lines["level"].to_numpy(float)
                low, high = lines["low"].to_numpy(float), lines["high"].to_numpy(float)
                mean, dash = lines["mean"].to_numpy(float), CONTROL_DASH.get(method, "-")
                if alone and method in controls:
                    axes.axhline(float(mean[0]), color=color, linewidth=1.5, linestyle=dash)
                    continue
                if alone:
                    # side by side: at one level there is nothing to be drawn along
                    x = x + methods.index(method)
                    axes.vlines(x, low, high, color=color, linewidth=1.5)
                elif method in methods:
                    axes.fill_between(x, low, high, color=color, alpha=0.14, linewidth=0)
                axes.plot(
                    x, mean, color=color, marker=marker, markersize=4, linewidth=1.5, linestyle=dash
                )
            if alone:
                axes.set_xticks([])
            style_axes(axes)
            title = measure_label(measure, preset).replace(" (", "\n(") if row == 0 else ""
            label_axes(axes, title=title, x=unit if row == len(layers) - 1 else "")
            axes.yaxis.set_major_locator(MaxNLocator(5))
            if struck:
                axes.text(
                    0.5,
                    0.03,
                    "fill not valid: struck out",
                    transform=axes.transAxes,
                    ha="center",
                    fontsize=8,
                    color="#a1260d",
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
                )
        label_axes(grid[row, 0], y=layer)
    add_legend(figure, _method_handles(styles))
    return figure


def faithfulness(
    table: pd.DataFrame, *, reference: str | None = None, fill: str | None = None
) -> Figure:
    """Task 2: IoU drop of every method and layer with 95 % intervals, thresholds beside area.

    `table` is `Analysis.faithfulness`. Order: best at matched area first. Filled dots belong to
    the group not distinguishable from the best of their layer; dashed lines are the controls.
    """
    kinds = [k for k in ("area", "threshold") if (table["binarisation"] == k).any()]
    if not kinds:
        return empty_figure(new_figure(6, 1.5), "no IoU drop was measured")
    lead = _cell(table, kinds[0], reference, fill)
    lead = lead[lead["layer"] != ""].sort_values("mean", ascending=False, na_position="last")
    order = list(zip(lead["layer"], lead["method"], strict=True))
    styles = styles_of(_unique(table["method"]))
    figure = new_figure(10.4, 1.1 + 0.27 * len(order))
    grid = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    names = {"area": "at matched area (headline)", "threshold": "at fixed thresholds"}
    for axes, kind in zip(grid, kinds, strict=True):
        part = _cell(table, kind, reference, fill)
        indexed = part.set_index(["layer", "method"])
        for place, key in enumerate(order):
            if key not in indexed.index:
                continue
            line = indexed.loc[key]
            color, marker = styles[key[1]]
            axes.plot([line["low"], line["high"]], [place, place], color=color, linewidth=1.8)
            face = color if line["in_best_group"] else "white"
            axes.plot(line["mean"], place, marker, markersize=6.5, mec=color, mfc=face, mew=1.5)
        for method in CONTROL_DASH:
            lines = part[part["method"] == method]
            if len(lines):
                axes.axvline(
                    float(lines["mean"].iloc[0]),
                    color=styles[method][0],
                    linestyle=CONTROL_DASH[method],
                    linewidth=1.3,
                    zorder=0.5,
                )
        axes.axvline(0, color="#b6bec6", linewidth=0.8, zorder=0.4)
        style_axes(axes, grid="x")
        title = names[kind] + (" - fill not valid, struck out" if part["struck"].any() else "")
        label_axes(axes, x="IoU drop (higher is more faithful)", title=title)
    labels = [safe_text(f"{method_label(method)}  ·  {layer}") for layer, method in order]
    grid[0].set_yticks(range(len(order)), labels, parse_math=False)
    grid[0].tick_params(axis="y", labelsize=8.5, labelcolor=INK)
    grid[0].invert_yaxis()
    dots = [
        Line2D([], [], ls="", marker="o", color=INK, label="best of its layer, or a tie with it"),
        Line2D([], [], ls="", marker="o", mfc="white", color=INK, label="behind the best"),
    ]
    controls = [name for name in CONTROL_DASH if (table["method"] == name).any()]
    add_legend(figure, dots + _method_handles({name: (styles[name][0], "") for name in controls}))
    return figure


def ranking(
    table: pd.DataFrame, *, reference: str | None = None, fill: str | None = None
) -> Figure:
    """Task 2: how the order by IoU drop changes from fixed thresholds to matched area."""
    sides = [_cell(table, kind, reference, fill) for kind in ("threshold", "area")]
    layers = [name for name in _unique(table["layer"]) if name]
    if any(side.empty for side in sides) or not layers:
        return empty_figure(new_figure(6, 1.5), "needs both thresholds and matched areas")
    styles = styles_of([m for m in _unique(table["method"]) if not is_control(m)])
    figure = new_figure(min(10.4, 1.2 + 4.4 * len(layers)), 0.8 + 0.34 * len(styles))
    grid = figure.subplots(1, len(layers), squeeze=False)[0]
    for axes, layer in zip(grid, layers, strict=True):
        places = []
        for side in sides:
            part = side[(side["layer"] == layer) & side["method"].isin(list(styles))]
            places.append(
                part.set_index("method")["mean"].rank(ascending=False, method="first").dropna()
            )
        for method in styles:
            if method not in places[0] or method not in places[1]:
                continue
            color, marker = styles[method]
            left, right = float(places[0][method]), float(places[1][method])
            axes.plot([0, 1], [left, right], color=color, marker=marker, linewidth=2, markersize=6)
            for x, y, align in ((-0.06, left, "right"), (1.06, right, "left")):
                axes.text(
                    x,
                    y,
                    safe_text(method_label(method)),
                    ha=align,
                    va="center",
                    fontsize=8.5,
                    color=INK,
                    parse_math=False,
                )
        axes.set_xlim(-0.75, 1.75)
        axes.set_ylim(len(styles) + 0.5, 0.5)
        axes.set_yticks([])
        axes.set_xticks([0, 1], ["fixed thresholds", "matched area"])
        style_axes(axes, grid="")
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
        label_axes(axes, title=f"{layer}: order by IoU drop, best on top")
    return figure


def critical_difference(
    table: pd.DataFrame, *, measure: str = "iou_drop", preset: Preset = "strict", limit: int = 20
) -> Figure:
    """Critical-difference diagram: mean ranks of all candidates, bars over those that tie.

    `table` is `Analysis.mean_ranks`. A bar joins candidates whose ranks differ by less than
    Nemenyi's critical difference, the ruler above. At most `limit` candidates, the best by rank,
    are drawn; the test is that of all. Where it cannot be made the figure says why. Daggers as in
    the report. Source: demsar2006.
    """
    part = table[(table["measure"] == measure) & table["mean_rank"].notna()]
    name = measure_label(measure, preset)
    reason = _not_ranked(part)
    if reason:
        return empty_figure(new_figure(7.6, 0.6), f"{name}: not drawn, {reason}")
    part = part.sort_values("mean_rank", kind="stable")
    first, drawn = part.iloc[0], part.iloc[:limit]
    total, distance = len(part), float(first["critical_difference"])
    rank = drawn["mean_rank"].to_numpy(float)
    end = float(total) if total <= limit else float(np.ceil(max(rank[-1], 1 + distance)))
    styles = styles_of(_unique(table["method"]))
    bars = _packed(part, drawn, end)
    depth = 0.2 + 0.13 * (1 + max((row for *_, row in bars), default=-1))
    left = (len(drawn) + 1) // 2
    bottom = depth + 0.23 * left
    width, side = 10.4, 0.29  # side: share of the width for the names on either side
    figure = new_figure(width, bottom + 1.45)
    axes = figure.subplots()
    scale = (end - 1) / (1 - 2 * side)
    axes.set_xlim(1 - side * scale, end + side * scale)
    axes.set_ylim(-bottom, 0.72)
    axes.set_axis_off()
    plain: dict[str, Any] = {"fontsize": 8.5, "color": INK, "parse_math": False}
    axes.plot([1, end], [0, 0], color=INK, linewidth=1.1)
    for tick in np.arange(1, end + 1e-9, np.ceil(end / 12)):
        axes.plot([tick, tick], [0, 0.07], color=INK, linewidth=0.9)
        axes.text(tick, 0.1, f"{tick:g}", ha="center", va="bottom", **plain)
    axes.text(end + 0.02 * scale, 0.1, "mean rank (1 = best)", va="bottom", **plain)
    axes.plot([1, 1 + distance], [0.46, 0.46], color=INK, linewidth=1.1)
    for x in (1, 1 + distance):
        axes.plot([x, x], [0.4, 0.52], color=INK, linewidth=1.1)
    note = f"critical difference {distance:.2f}"
    axes.text(1 + distance / 2, 0.53, note, ha="center", va="bottom", **plain)
    for low, high, row in bars:
        y = -0.17 - 0.13 * row
        axes.plot([low, high], [y, y], color=INK, linewidth=3.6, solid_capstyle="butt", zorder=3)
    for place, (_, line) in enumerate(drawn.iterrows()):
        color, marker = styles[line["method"]]
        ours = place < left
        y = -depth - 0.23 * (place if ours else len(drawn) - 1 - place) - 0.08
        edge = 1 - 0.02 * scale if ours else end + 0.02 * scale
        x = float(line["mean_rank"])
        axes.plot([x, x, edge], [0, y, y], color=color, linewidth=1.2, zorder=2)
        axes.plot(x, 0, marker, color=color, markersize=5.5, zorder=4)
        align = "right" if ours else "left"
        shift = (-0.01 if ours else 0.01) * scale
        axes.text(edge + shift, y, _candidate(line), ha=align, va="center", **plain)
    p = float(first["p"])
    significance = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    which = f"all {total} candidates" if total <= limit else f"{limit} best of {total} candidates"
    title = f"{name}: {which}, {int(first['n'])} tiles with all of them, Friedman {significance}"
    if p >= ALPHA:
        title += " (no difference shown)"
    if first["struck"]:
        title += " - fill not valid, struck out"
    label_axes(axes, title=title)
    handles = [Line2D([], [], color=INK, linewidth=3.6, label="not distinguishable (5 %)")]
    for flag, sign, control in (
        ("beats_random", DAGGER, "random blobs"),
        ("beats_p_c", DOUBLE_DAGGER, "the probability map"),
    ):
        if (drawn[flag].notna() & ~drawn[flag].fillna(value=True).astype(bool)).any():
            text = f"{sign} not shown to beat {control}"
            handles.append(Line2D([], [], linestyle="", label=text))
    add_legend(figure, handles)
    return figure


def _not_ranked(part: pd.DataFrame) -> str:
    """Why a critical-difference diagram cannot be drawn; empty if it can."""
    if part.empty:
        return "nothing was measured"
    first = part.iloc[0]
    if not first["ranked"]:
        return "the fill is not valid, so it ranks nothing"
    if len(part) < LEAST_METHODS:
        return f"{len(part)} of at least {LEAST_METHODS} candidates"
    if first["n"] < LEAST_IMAGES:
        return f"{first['n']} of at least {LEAST_IMAGES} tiles have every candidate"
    return ""


def _packed(part: pd.DataFrame, drawn: pd.DataFrame, end: float) -> list[tuple[float, float, int]]:
    """Bars (low, high, row) of the groups with two candidates in sight, as few rows as possible."""
    members: dict[str, list[float]] = {}
    for rank, letters in zip(part["mean_rank"], part["groups"], strict=True):
        for letter in letters.split():
            members.setdefault(letter, []).append(float(rank))
    last = float(drawn["mean_rank"].max())
    bars: list[tuple[float, float, int]] = []
    ends: list[float] = []
    pad = 0.008 * (end - 1)  # so that a bar over equal ranks can be seen, and neighbours are apart
    reached = 0
    for ranks in sorted(members.values()):
        in_sight = sum(rank <= last for rank in ranks)
        covered = sum(rank <= min(max(ranks), last) for rank in part["mean_rank"])
        # Of groups cut at the last name in sight only the first says something.
        if in_sight < 2 or covered <= reached:
            continue
        reached = covered
        low, high = min(ranks) - pad, min(max(ranks), end) + pad
        row = next((k for k, taken in enumerate(ends) if low > taken + pad), len(ends))
        ends[row : row + 1] = [high]
        bars.append((low, high, row))
    return bars


def _candidate(line: Any, limit: int = 40) -> str:
    """Method, layer and daggers; a long name loses its middle."""
    text = safe_text(f"{method_label(line['method'])}  ·  {line['layer']}")
    if len(text) > limit:
        text = text[: limit // 2 - 2] + "..." + text[-(limit // 2 - 1) :]
    for flag, sign in (("beats_random", DAGGER), ("beats_p_c", DOUBLE_DAGGER)):
        if pd.notna(line[flag]) and not line[flag]:
            text += f" {sign}"
    return text


def layers(
    differences: pd.DataFrame,
    table: pd.DataFrame,
    *,
    measure: str = "iou_drop",
    binarisation: str = "area",
    reference: str | None = None,
    fill: str | None = None,
    preset: Preset = "strict",
) -> Figure:
    """Task 3: mean of a measure for layer x method, and the paired differences between layers.

    `differences` is `Analysis.layers`; `table` is `Analysis.faithfulness` for
    `measure="iou_drop"`, `Analysis.ranking` for the contrast, `Analysis.auc` for the others.
    """
    part = _cell(table[table["measure"] == measure], binarisation, reference, fill)
    part = part[part["layer"] != ""]
    if part.empty:
        return empty_figure(new_figure(6, 1.5), "nothing was measured here")
    wide = part.pivot(index="layer", columns="method", values="mean")
    wide = wide.loc[_unique(part["layer"]), _unique(part["method"])]
    pairs = differences[differences["measure"] == measure]
    for column in ("reference", "fill"):
        pairs = pairs[pairs[column] == part[column].iloc[0]]
    height = 1.3 + max(0.42 * len(wide), 0.27 * len(pairs), 1.0)
    figure = new_figure(10.4, height)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    values = wide.to_numpy(float)
    spread = Normalize(float(np.nanmin(values)), float(np.nanmax(values)) + 1e-12)
    lower = not higher_is_better(measure, preset)
    # Bright is better, whichever way the measure points.
    cells = left.imshow(
        values, cmap="cividis_r" if lower else "cividis", norm=spread, aspect="auto"
    )
    for (i, j), value in np.ndenumerate(values):
        shade = float(spread(value)) if np.isfinite(value) else 1.0
        ink = "white" if (1 - shade if lower else shade) < 0.55 else INK
        text = f"{value:.3f}" if np.isfinite(value) else "-"
        left.text(j, i, text, ha="center", va="center", fontsize=8.5, color=ink)
    heads = [safe_text(method_label(name)) for name in wide.columns]
    turned: dict[str, Any] = {"rotation": 25, "ha": "right"} if len(heads) > 5 else {}
    left.set_xticks(range(len(heads)), heads, parse_math=False, **turned)
    left.set_yticks(range(len(wide)), [safe_text(name) for name in wide.index], parse_math=False)
    left.tick_params(labelsize=8, length=0, labelcolor=INK)
    for side in left.spines.values():
        side.set_visible(False)
    label_axes(left, title=measure_label(measure, preset))
    bar = figure.colorbar(cells, ax=left, pad=0.02, fraction=0.05)
    bar.ax.tick_params(labelsize=7.5, colors=SOFT)
    bar.outline.set_visible(False)
    styles = styles_of(list(wide.columns))
    several = pairs[["layer_a", "layer_b"]].drop_duplicates().shape[0] > 1
    labels = []
    for place, (_, line) in enumerate(pairs.iterrows()):
        color, marker = styles.get(line["method"], SPARE[0])
        right.plot([line["low"], line["high"]], [place, place], color=color, linewidth=1.8)
        face = color if line["better"] else "white"
        right.plot(line["difference"], place, marker, markersize=6.5, mec=color, mfc=face, mew=1.5)
        name = method_label(line["method"])
        labels.append(f"{name}: {line['layer_a']} - {line['layer_b']}" if several else name)
    right.set_yticks(range(len(labels)), [safe_text(name) for name in labels], parse_math=False)
    right.invert_yaxis()
    right.axvline(0, color=SOFT, linewidth=0.9, zorder=0.5)
    style_axes(right, grid="x")
    right.tick_params(axis="y", labelcolor=INK)
    right.xaxis.set_major_locator(MaxNLocator(6))
    title = "paired difference by image"
    if len(pairs) and not several:
        first = pairs.iloc[0]
        title = f"paired difference, {first['layer_a']} minus {first['layer_b']}"
    label_axes(right, x="difference with 95 % interval (filled: p < 0.05)", title=title)
    return figure


def region_size(
    table: pd.DataFrame, *, reference: str | None = None, fill: str | None = None
) -> Figure:
    """Size of the highlighted region at each threshold: why methods are compared at matched area.

    `table` is `Analysis.sweep`.
    """
    frame = _cell(table, "threshold", reference, fill)
    frame = frame[frame["measure"] == frame["measure"].iloc[0]] if len(frame) else frame
    layers = [name for name in _unique(frame["layer"]) if name]
    if not layers:
        return empty_figure(new_figure(6, 1.5), "no thresholds were measured")
    styles = styles_of([m for m in _unique(frame["method"]) if not is_control(m)])
    figure = new_figure(min(10.4, 1.0 + 4.7 * len(layers)), 3.2)
    grid = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for axes, layer in zip(grid, layers, strict=True):
        part = frame[frame["layer"] == layer]
        for method, (color, marker) in styles.items():
            lines = part[part["method"] == method].sort_values("level")
            axes.plot(
                lines["level"].to_numpy(float),
                100 * lines["area"].to_numpy(float),
                color=color,
                marker=marker,
                markersize=4.5,
                linewidth=1.6,
            )
        style_axes(axes)
        axes.set_ylim(bottom=0)
        ends = part[part["method"].isin(list(styles))].groupby("level")["area"].agg(["min", "max"])
        ratio = (ends["max"] / ends["min"]).replace(np.inf, np.nan).max()
        note = f" (up to {ratio:.1f} x apart)" if np.isfinite(ratio) else ""
        label_axes(axes, x="threshold", title=f"{layer}{note}")
    label_axes(grid[0], y="highlighted area (% of the tile)")
    add_legend(figure, _method_handles(styles))
    return figure


def validity(table: pd.DataFrame) -> Figure:
    """Relative drop of confidence when exactly the target is removed, fill by fill.

    `table` is `Analysis.validity`: bars are means over images, ticks the lowest image; below
    0.5 a fill is not valid for this model and data.
    """
    if table.empty:
        return empty_figure(new_figure(6, 1.5), "the control target_removed was not run")
    frame = table.sort_values("mean_drop", ascending=False, kind="stable")
    figure = new_figure(7.6, 1.15 + 0.36 * len(frame))
    axes = figure.subplots()
    several = frame["reference"].nunique() > 1
    for place, (_, line) in enumerate(frame.iterrows()):
        good = bool(line["valid"])
        axes.barh(
            place,
            line["mean_drop"],
            height=0.6,
            color="#0072B2" if good else "#d3d8dd",
            hatch="" if good else "////",
            edgecolor="#0072B2" if good else "#8a949e",
            linewidth=0.8,
        )
        axes.plot([line["min_drop"]] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=1.8)
    axes.axvline(0.5, color="#D55E00", linestyle="--", linewidth=1.4)
    axes.axvline(0, color=SOFT, linewidth=0.9)
    # A fill that triples the confidence must not squeeze the scale that decides.
    left = max(-1.0, min(-0.05, float(frame["min_drop"].min()) - 0.05))
    axes.set_xlim(left, 1.03)
    for place, mean in enumerate(frame["mean_drop"]):
        if mean < left:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            text = f"{mean:.2f}".replace("-", "\N{MINUS SIGN}")
            axes.text(left + 0.02, place, text, va="center", fontsize=8, color=INK, bbox=box)
    names = [
        f"{f} ({r})" if several else str(f)
        for f, r in zip(frame["fill"], frame["reference"], strict=True)
    ]
    axes.set_yticks(range(len(frame)), [safe_text(name) for name in names], parse_math=False)
    axes.invert_yaxis()
    style_axes(axes, grid="x")
    axes.tick_params(axis="y", labelcolor=INK, labelsize=8.5)
    label_axes(
        axes, x="relative drop of confidence when exactly the target is removed (1 = all gone)"
    )
    handles = [
        Patch(facecolor="#0072B2", edgecolor="#0072B2", label="valid"),
        Patch(facecolor="#d3d8dd", edgecolor="#8a949e", hatch="////", label="not valid"),
        Line2D([], [], color="#D55E00", linestyle="--", label="limit 0.5"),
        Line2D([], [], color=INK, marker="|", ls="", ms=9, mew=1.8, label="lowest image"),
    ]
    add_legend(figure, handles)
    return figure


# --- known truth ------------------------------------------------------------------------------


def evidence_measures(cards: pd.DataFrame) -> Figure:
    """Kendall tau of every measure with the truth, by tier, fill and how maps are cut.

    `cards` is `evidence.measure_cards(...)`; all kinds of a tier together. A circle marks measures
    under which more than half of the maps tie.
    """
    part = cards[cards["kind"] == "all"]
    part = part.assign(
        column="tier " + part["tier"] + ", " + part["fill"] + "\n" + part["binarisation"]
    )
    order = part.groupby("measure")["tau"].max().sort_values(ascending=False).index
    values = part.pivot_table(index="measure", columns="column", values="tau", sort=False)
    ties = part.pivot_table(index="measure", columns="column", values="ties", sort=False)
    figure = _number_table(
        values.loc[order], "Kendall tau with the truth (1 = the true order)", (-1, 1)
    )
    axes = figure.axes[0]
    for row, measure in enumerate(order):
        for column, name in enumerate(values.columns):
            if ties.loc[measure, name] > 0.5:
                axes.plot(column + 0.36, row, "o", color=INK, markersize=3.4)
    dot = Line2D([], [], color=INK, marker="o", ls="", ms=4, label="more than half of the maps tie")
    add_legend(figure, [dot])
    return figure


def evidence_maps(judged: pd.DataFrame, measures: Sequence[str], fill: str) -> Figure:
    """Mean rank of every map of known quality under each measure at matched area, best map first.

    `judged` is `evidence.judge_measures(...)`. Bright is better: a right measure goes from bright
    to dark as the truth does.
    """
    part = judged[(judged["fill"] == fill) & (judged["binarisation"] == "area")]
    keys = ["tier", "kind", "scene", "measure", "better", "map"]
    means = part.groupby(keys)[["truth", "value"]].mean().reset_index()
    means["signed"] = means["value"].where(means["better"] != "lower", -means["value"]).round(4)
    scene = ["tier", "kind", "scene", "measure"]
    means["rank"] = means.groupby(scene)["signed"].rank(ascending=False)
    means["true"] = means.groupby(scene)["truth"].rank(ascending=False)
    order = means.groupby("map")["true"].mean().sort_values().index
    ranks = means.pivot_table(index="map", columns="measure", values="rank")
    table = ranks.reindex(index=order, columns=[m for m in measures if m in ranks])
    table.insert(0, "truth", means.groupby("map")["true"].mean())
    legend = f"mean rank (1 = best), matched area, fill {fill}"
    return _number_table(table, legend, None, digits=1, lower=True)


def evidence_methods(table: pd.DataFrame, tier: str) -> Figure:
    """Share of the cue among the |E| hottest pixels, method by layer, all networks with a cue.

    `table` is `evidence.method_number_table(...)`.
    """
    part = table[(table["tier"] == tier) & (table["kind"] == "all")]
    if part.empty:
        return empty_figure(new_figure(6, 1.5), f"tier {tier}: no network that needs a cue")
    part = part.assign(where=part["layer"].replace("", "control"))
    values = part.pivot_table(index="method", columns="where", values="cue_recall", sort=False)
    order = values.max(axis=1).sort_values(ascending=False).index
    named = values.loc[order].rename(index=method_label)
    return _number_table(
        named, f"tier {tier}: cue recall at |E| (0.5 or more sees the cue)", (0, 1)
    )


def _number_table(
    values: pd.DataFrame,
    legend: str,
    limits: tuple[float, float] | None,
    *,
    digits: int = 2,
    lower: bool = False,
) -> Figure:
    """A table of numbers over their colours, bright for the better ones (`lower`: the small), with
    the scale beside it.
    """
    rows, columns = values.shape
    figure = new_figure(2.6 + 0.92 * columns, 1.7 + 0.27 * rows)
    axes = figure.subplots()
    numbers = values.to_numpy(float)
    low, high = limits or (float(np.nanmin(numbers)), float(np.nanmax(numbers)))
    shade = Normalize(low, high)
    colours = "cividis_r" if lower else "cividis"
    cells = axes.imshow(numbers, cmap=colours, norm=shade, aspect="auto")
    for row, column in np.argwhere(np.isfinite(numbers)).tolist():
        value = float(numbers[row, column])
        bright = 1 - shade(value) if lower else shade(value)
        color = INK if bright > 0.55 else "white"
        text = f"{value:.{digits}f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=color)
    names = [safe_text(str(name).replace("_", " ")) for name in values.index]
    axes.set_yticks(range(rows), names, fontsize=8, color=INK)
    heads = [safe_text(str(name).replace("_", " ")) for name in values.columns]
    axes.set_xticks(range(columns), heads, fontsize=7.5, color=INK, rotation=40, ha="left")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(cells, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(safe_text(legend), fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7.5, colors=SOFT)
    return figure
