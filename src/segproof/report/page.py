"""One self-contained HTML file from the rows of a study: no script, no request, opens by file://.

The page is built from plain cells, so that every table marks the same things in the same way:
a dagger for a method not shown to beat random blobs, a double dagger for one not shown to beat
the model's own probability map, and struck-out numbers where the fill is not valid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jinja2
import numpy as np
import pandas as pd

from segproof.analysis import (
    BOUNDARY,
    JOINED,
    MEASURES,
    SHORT,
    VALID_DROP,
    Analysis,
    measure_of,
    method_label,
    strategy_label,
)
from segproof.explain import Preset
from segproof.measures import evidence_of, shipped_evidence
from segproof.perturb import STRATEGIES
from segproof.report import figures as plot
from segproof.study import MAP_MEASURES

__all__ = ["render"]

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
DAGGER, DOUBLE_DAGGER = "\N{DAGGER}", "\N{DOUBLE DAGGER}"
SHOWN_TILES = 6
STATUS_TEXT = {
    "all_zero": "all zero",
    "constant": "constant",
    "non_finite": "not finite",
    "empty_region": "empty region",
}


@dataclass(frozen=True)
class Cell:
    """One cell: `text`, a smaller second line, a mark behind the text, and how it is set."""

    text: str
    small: str = ""
    mark: str = ""
    number: bool = False
    struck: bool = False
    strong: bool = False


@dataclass(frozen=True)
class Grid:
    """A table ready to be set: `head` has (text, is a number column)."""

    head: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure as data URI, with what it shows in words."""

    uri: str
    alt: str
    caption: str


@dataclass
class Section:
    """A part of the page, filled in order."""

    anchor: str
    title: str
    lead: str = ""
    blocks: list[tuple[str, Any]] = field(default_factory=list)

    def add(self, kind: Literal["grid", "picture", "text", "heading", "fold"], item: Any) -> None:
        self.blocks.append((kind, item))


# --- numbers ----------------------------------------------------------------------------------


def _number(value: Any, digits: int = 3, *, sign: bool = False) -> str:
    if value is None or pd.isna(value):
        return DASH
    text = f"{float(value):{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def _range(low: Any, high: Any, digits: int = 3) -> str:
    if pd.isna(low) or pd.isna(high):
        return ""
    return f"[{_number(low, digits)}, {_number(high, digits)}]"


def _p(value: Any) -> str:
    if value is None or pd.isna(value):
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _mark(line: Any) -> str:
    """Daggers of a line that has beats_random and beats_p_c; nothing where a control is missing."""
    lost = [
        sign
        for flag, sign in (("beats_random", DAGGER), ("beats_p_c", DOUBLE_DAGGER))
        if pd.notna(line[flag]) and not line[flag]
    ]
    return "".join(lost)


def _num(text: str, **options: Any) -> Cell:
    return Cell(text, number=True, **options)


def _value(line: Any, **options: Any) -> Cell:
    """Mean with its interval below."""
    small = _range(line["low"], line["high"])
    return _num(_number(line["mean"]), small=small, struck=bool(line["struck"]), **options)


def _at(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return frame


def _lines(frame: pd.DataFrame) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    return records


# --- sections ---------------------------------------------------------------------------------


def _cells_used(made: Analysis) -> list[tuple[str, str]]:
    """(reference, fill) pairs with the headline's first."""
    pairs = made.sweep[["reference", "fill"]].drop_duplicates()
    found = [(str(a), str(b)) for a, b in pairs.itertuples(index=False)]
    lead = (made.headline.reference, made.headline.fill)
    return [lead, *(pair for pair in found if pair != lead)] if found else []


def _studied(
    made: Analysis, tiles: pd.DataFrame, manifest: Mapping[str, Any], rows: pd.DataFrame
) -> Section:
    section = Section("studied", "What was studied")
    model, data = manifest.get("model", {}), manifest.get("data", {})
    study = manifest.get("study", {})
    counts = tiles["status"].value_counts() if len(tiles) else pd.Series(dtype=int)
    methods = [m for m in rows["method"].unique() if not m.startswith("control:")]
    class_ = study.get("class") or study.get("class_") or manifest.get("class", "")
    parameters = model.get("parameters")
    facts = [
        ("Model", str(model.get("spec", ""))),
        ("Classes", ", ".join(map(str, model.get("classes", [])))),
        ("Class explained", str(class_)),
        ("Parameters", f"{parameters:,}" if isinstance(parameters, int) else ""),
        ("Data", str(data.get("root", ""))),
        (
            "Tiles",
            (
                f"{int(counts.get('ok', 0))} ok, {int(counts.get('skipped', 0))} skipped, "
                f"{int(counts.get('failed', 0))} failed"
            ),
        ),
        ("Region read", " and ".join(sorted({r for r in rows["reference"].unique() if r}))),
        ("Methods", ", ".join(method_label(m) for m in methods)),
        ("Preset", made.preset),
    ]
    shown = [[Cell(name), Cell(value)] for name, value in facts if value]
    section.add("grid", Grid([("", False), ("", False)], shown))
    _layers_studied(section, manifest)
    _tiles_left_out(section, tiles)
    section.add("heading", "Is the fill valid for this model?")
    if made.validity.empty:
        section.add(
            "text",
            "Not tested: the control that removes exactly the target was not run. M1, IoU drop and "
            "the contrast may measure outlines instead of evidence.",
        )
    else:
        _validity(section, made)
    _outlines(section, manifest)
    for text in manifest.get("warnings", []):
        section.add("text", f"Warning: {text}")
    return section


def _layers_studied(section: Section, manifest: Mapping[str, Any]) -> None:
    entries = manifest.get("layers", [])
    if not entries:
        return
    lines = [
        [
            Cell(str(item.get("name") or item.get("alias", ""))),
            Cell(str(item.get("path", ""))),
            _num(str(item.get("stride", ""))),
            _num(str(item.get("channels", ""))),
        ]
        for item in entries
    ]
    head = [("Layer", False), ("Module", False), ("Stride (px)", True), ("Channels", True)]
    section.add("grid", Grid(head, lines))


def _tiles_left_out(section: Section, tiles: pd.DataFrame) -> None:
    out = tiles[tiles["status"] != "ok"] if len(tiles) else tiles
    if out.empty:
        return
    lines = []
    for (status, reason), part in out.groupby(["status", "reason"], sort=False):
        names = [str(name) for name in part["sample"]]
        listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if names[12:] else "")
        lines.append([Cell(str(status)), Cell(str(reason)), _num(str(len(names))), Cell(listed)])
    head = [("Left out", False), ("Reason", False), ("Tiles", True), ("Which", False)]
    section.add("grid", Grid(head, lines, "Tiles left out are counted and never averaged."))


def _validity(section: Section, made: Analysis) -> None:
    lines = [
        [
            Cell(line["fill"], struck=not line["valid"]),
            Cell(line["reference"]),
            _num(_number(line["mean_drop"])),
            _num(_number(line["min_drop"])),
            _num(str(line["n"])),
            Cell("valid" if line["valid"] else "not valid", strong=bool(line["valid"])),
        ]
        for line in _lines(made.validity)
    ]
    head = [("Fill", False), ("Region", False), ("Mean drop", True), ("Lowest", True)]
    caption = (
        "Relative drop of confidence when exactly the target is replaced by the fill. A fill that "
        "leaves the model confident draws the outline of the object instead of removing it. Below "
        "0.5 its M1, IoU drop and contrast are struck out and, in the strict preset, rank nothing."
    )
    section.add("grid", Grid([*head, ("Tiles", True), ("", False)], lines, caption))
    picture = plot.data_uri(plot.svg(plot.validity(made.validity)))
    section.add("picture", Picture(picture, "validity of the fills", ""))


def _outlines(section: Section, manifest: Mapping[str, Any]) -> None:
    """Fill x outline, as tried on the first tiles before the study; what it took is marked."""
    probe: Mapping[str, Any] = manifest.get("probe") or {}
    if not probe:
        return
    chosen, used = manifest.get("outline", {}).get("name"), manifest.get("fills", [])
    first = next(iter(probe.values()))
    lines = []
    for fill in first:
        cells = [Cell(str(fill))]
        for name, found in probe.items():
            mean, low = found[fill]["mean_drop"], found[fill]["min_drop"]
            marked = name == chosen and fill in used
            text = f"{_number(mean)} ({_number(low)})" + (" taken" if marked else "")
            struck = not mean >= VALID_DROP
            cells.append(Cell(text, number=True, strong=marked, struck=struck))
        lines.append(cells)
    tiles = int(next(iter(first.values()))["n"])
    head = [("Fill", False)]
    head += [(name if name == "exact" else f"{name} px", True) for name in probe]
    caption = (
        "What was tried before the study: relative drop of confidence when the target is removed, "
        f"mean (lowest) over {tiles} tile{'' if tiles == 1 else 's'}, by fill and by how its "
        "outline was widened. Natural fills with the exact outline come first, then wider and "
        "rougher outlines, then artificial fills."
    )
    section.add("heading", "Which fill and outline were taken")
    section.add("grid", Grid(head, lines, caption))


def _gallery(pictures: Sequence[Mapping[str, Any]]) -> Section:
    section = Section(
        "gallery",
        "Gallery",
        "Left, the image with the truth (white line) and the model's own mask (blue dashes); then "
        "one heatmap per method over the grey image. Bright means: important to this method.",
    )
    shown = list(pictures[:SHOWN_TILES])
    layers = list(dict.fromkeys(layer for item in shown for _, layer in item["heatmaps"]))
    if not layers:
        section.add("text", "No pictures were kept for this run.")
    for layer in layers:
        uri = plot.data_uri(plot.webp(plot.gallery(shown, layer), dpi=125))
        section.add("heading", str(layer))
        section.add("picture", Picture(uri, f"heatmaps of all methods at {layer}", ""))
    if len(pictures) > len(shown):
        section.add("text", f"The first {len(shown)} of {len(pictures)} tiles are shown.")
    return section


def _task1(made: Analysis) -> Section:
    section = Section(
        "task1",
        "Task 1: sweep over region sizes",
        "M1 removes the highlighted region, M2 shows nothing else, M3 shows it together with the "
        "target. Regions come from matched areas (every method highlights the same share of the "
        "tile) and from fixed thresholds (sizes differ, and size alone moves the result).",
    )
    words = {"area": "At matched area", "threshold": "At fixed thresholds"}
    for place, (reference, fill) in enumerate(_cells_used(made)):
        target: Section = section if place == 0 else Section("", f"Fill {fill}, region {reference}")
        for kind in ("area", "threshold"):
            part = _at(made.sweep, binarisation=kind, reference=reference, fill=fill)
            if part[part["layer"] != ""].empty:
                continue
            target.add("heading", f"{words[kind]} (fill {fill}, region {reference})")
            figure = plot.sweep(
                made.sweep, binarisation=kind, reference=reference, fill=fill, preset=made.preset
            )
            caption = (
                "Lines are means over tiles, bands 95 % bootstrap intervals, grey lines the "
                "controls. A method that does not leave the grey lines explains nothing."
            )
            uri = plot.data_uri(plot.svg(figure))
            target.add("picture", Picture(uri, f"sweep {words[kind].lower()}", caption))
            best = _at(made.best, binarisation=kind, reference=reference, fill=fill)
            target.add("grid", _best_grid(best, kind))
        if place == 0:
            _sizes(target, made, reference, fill)
        target.add("grid", _auc_grid(made, reference, fill))
        target.add("fold", _fold("All numbers of the sweep", [_sweep_grid(made, reference, fill)]))
        if place:
            section.add("fold", target)
    return section


def _sizes(section: Section, made: Analysis, reference: str, fill: str) -> None:
    if _at(made.sweep, binarisation="threshold", reference=reference, fill=fill).empty:
        return
    section.add("heading", "Why matched area")
    uri = plot.data_uri(plot.svg(plot.region_size(made.sweep, reference=reference, fill=fill)))
    caption = (
        "The same threshold highlights regions of very different size. A larger region removes, or "
        "keeps, more of everything, so an order at fixed thresholds partly ranks sizes."
    )
    section.add("picture", Picture(uri, "size of the highlighted region by threshold", caption))


def _fold(title: str, grids: Sequence[Grid]) -> Section:
    folded = Section("", title)
    for grid in grids:
        folded.add("grid", grid)
    return folded


def _best_grid(best: pd.DataFrame, kind: str) -> Grid:
    lines = []
    for (layer, level), part in best.groupby(["layer", "level"], sort=False):
        line = [Cell(str(layer)), _num(f"{level:g}")]
        by = {item["measure"]: item for item in _lines(part)}
        for measure in SHORT.values():
            item = by.get(measure)
            line.append(Cell(DASH) if item is None else _best_cell(item))
        lines.append(line)
    head = [("Layer", False), ("Area" if kind == "area" else "Threshold", True)]
    head += [(f"Best {measure}", False) for measure in SHORT.values()]
    caption = (
        "Best method with its mean and 95 % interval; below it the methods not distinguishable "
        "from it (paired Wilcoxon, Holm over all pairs, p at least 0.05), or the runner-up's p."
    )
    return Grid(head, lines, caption)


def _best_cell(item: Mapping[str, Any]) -> Cell:
    if not item["decidable"]:
        tiles = "1 tile" if item["n"] == 1 else f"{item['n']} tiles"
        small = f"undecided: {tiles}, {item['needed']} needed"
    elif item["tied"]:
        names = item["tied"].split(", ")
        small = "tied: " + ", ".join(method_label(name) for name in names)
        if len(names) > 3:
            small = f"tied with {len(names)} others"
    elif item["runner_up"]:
        small = f"then {method_label(item['runner_up'])}, p {_p(item['runner_up_p'])}"
    else:
        small = ""
    interval = _range(item["low"], item["high"])
    return Cell(
        method_label(item["best"]),
        mark=_mark(item),
        small=f"{_number(item['mean'])} {interval}\n{small}",
        struck=bool(item["struck"]),
        strong=bool(item["decidable"]) and not item["tied"] and not item["struck"],
    )


def _auc_grid(made: Analysis, reference: str, fill: str) -> Grid:
    frame = _at(made.auc, reference=reference, fill=fill)
    kinds = [k for k in ("area", "threshold") if (frame["binarisation"] == k).any()]
    indexed = {
        (i["layer"], i["method"], i["binarisation"], i["strategy"]): i for i in _lines(frame)
    }
    lines = []
    for layer, method in dict.fromkeys(zip(frame["layer"], frame["method"], strict=True)):
        line = [Cell(str(layer)), Cell(method_label(method))]
        for kind in kinds:
            for strategy in STRATEGIES:
                item = indexed.get((layer, method, kind, strategy))
                if item is None:
                    line.append(_num(DASH))
                else:
                    leads = bool(item["in_best_group"] and item["ranked"] and item["decidable"])
                    line.append(_value(item, strong=leads, mark=_mark(item)))
        lines.append(line)
    words = {"area": "areas", "threshold": "thresholds"}
    head = [("Layer", False), ("Method", False)]
    head += [(f"{SHORT[s]} over {words[k]}", True) for k in kinds for s in STRATEGIES]
    caption = (
        "Area under the sweep, divided by the range of levels so that it keeps the measure's unit; "
        "95 % interval below. Bold: best of its layer, or not distinguishable from the best."
    )
    return Grid(head, lines, caption)


def _sweep_grid(made: Analysis, reference: str, fill: str) -> Grid:
    frame = _at(made.sweep, reference=reference, fill=fill)
    lines = []
    for item in _lines(frame):
        bad = ", ".join(f"{item[k]} {STATUS_TEXT[k]}" for k in STATUS_TEXT if item[k])
        lines.append(
            [
                Cell(item["layer"] or "control"),
                Cell(method_label(item["method"]), mark=_mark(item)),
                Cell(item["binarisation"]),
                _num(f"{item['level']:g}"),
                Cell(strategy_label(item["strategy"])),
                _num(_number(item["mean"]), struck=bool(item["struck"])),
                _num(_number(item["low"]), struck=bool(item["struck"])),
                _num(_number(item["high"]), struck=bool(item["struck"])),
                _num(str(item["n"])),
                _num(_number(item["area"])),
                _num(_number(item["coverage"])),
                Cell(bad),
            ]
        )
    names = ("Layer", "Method", "Binarised by", "Level", "Strategy", "Mean", "Low", "High", "n")
    numbers = {"Level", "Mean", "Low", "High", "n", "Area", "Coverage"}
    head = [(name, name in numbers) for name in (*names, "Area", "Coverage", "Left out")]
    words = (
        f"M1 and M2: confidence. M3: {_judging_column(made.preset)}. Area: share of the tile that "
    )
    return Grid(
        head,
        lines,
        words + "is highlighted. Coverage: share of the target that is highlighted. The file "
        "results.csv holds one line per tile.",
    )


def _judging_column(preset: Preset) -> str:
    """Column that judges M3."""
    return measure_of("highlighted_and_target", preset)[0]


def _task2(made: Analysis) -> Section:
    section = Section(
        "task2",
        "Task 2: which method is faithful",
        "IoU drop: how much the mask gets worse when the highlighted region is removed. Higher "
        "means that the method found pixels that the model needs. Matched area is the headline; "
        "fixed thresholds stand beside it.",
    )
    for place, (reference, fill) in enumerate(_cells_used(made)):
        part = _at(made.faithfulness, reference=reference, fill=fill)
        if part[part["layer"] != ""].empty:
            continue
        target = section if place == 0 else Section("", f"Fill {fill}, region {reference}")
        if place == 0:
            target.add("heading", f"Fill {fill}, region {reference}")
        figure = plot.faithfulness(made.faithfulness, reference=reference, fill=fill)
        caption = (
            "Means with 95 % intervals. Left of the dotted line a method is worse than random "
            "blobs of the same size; left of the dashed one, than the model's probability map."
        )
        uri = plot.data_uri(plot.svg(figure))
        target.add("picture", Picture(uri, "IoU drop of every method and layer", caption))
        target.add("grid", _faithfulness_grid(part))
        if part["binarisation"].nunique() > 1 and not part["struck"].any():
            figure = plot.ranking(made.faithfulness, reference=reference, fill=fill)
            caption = "Crossing lines: the order at fixed thresholds comes partly from region size."
            uri = plot.data_uri(plot.svg(figure))
            target.add("picture", Picture(uri, "order at thresholds and at matched area", caption))
        if place:
            section.add("fold", target)
    return section


def _overall(made: Analysis) -> Section:
    """What the verdict goes by: all candidates at the headline cell, by value and by rank."""
    name = _measure_name(made.measure)
    where = f"fill {made.headline.fill}, region {made.headline.reference}"
    section = Section(
        "ranking",
        "All layers and methods together",
        f"By {name}, the measure that this report goes by; {where}. {JUDGING[made.measure]}",
    )
    if made.ranking.empty:
        section.add("text", "Nothing was measured that could be ranked.")
        return section
    section.add("grid", _ranking_grid(made.ranking))
    if made.measure != "iou_drop" and len(made.by_iou_drop):
        section.add("fold", _fold("The same by IoU drop", [_ranking_grid(made.by_iou_drop)]))
    _mean_ranks(section, made)
    return section


def _ranking_grid(frame: pd.DataFrame) -> Grid:
    lines = [
        [
            _num("struck" if i["struck"] else DASH if pd.isna(i["rank"]) else f"{i['rank']:.0f}"),
            Cell(i["layer"]),
            Cell(method_label(i["method"]), mark=_mark(i)),
            _value(i, strong=bool(i["is_best"])),
            _num("best" if i["is_best"] else _p(i["p_vs_best"])),
            _num(str(i["n"])),
            Cell(f"{_yes(i['beats_random'])} / {_yes(i['beats_p_c'])}"),
        ]
        for i in _lines(frame)
    ]
    head = [("Rank", True), ("Layer", False), ("Method", False)]
    head += [(_measure_name(frame["measure"].iloc[0]), True), ("p to best", True), ("n", True)]
    caption = "Mean over the levels of each tile, 95 % interval below; ties share a rank."
    return Grid([*head, ("Beats random / p_c", False)], lines, caption)


def _yes(value: Any) -> str:
    return "undecided" if pd.isna(value) else "yes" if value else "no"


def _mean_ranks(section: Section, made: Analysis) -> None:
    """Critical-difference diagrams: the measure that decides in sight, the others folded."""
    frame = made.mean_ranks
    if frame.empty:
        return
    lead = made.measure
    section.add("heading", "By rank on every tile")
    caption = (
        "Every tile ranks the candidates; the axis shows the mean ranks. Candidates under one bar "
        "are not distinguishable: their ranks differ by less than Nemenyi's critical difference."
    )
    section.add("picture", _ranks_picture(made, lead, caption))
    others = Section("", "The same by the other measures, and all mean ranks")
    for measure in (m for m in MEASURES if m != lead):
        others.add("picture", _ranks_picture(made, measure, ""))
    others.add("grid", _ranks_grid(frame, lead))
    section.add("fold", others)


def _ranks_picture(made: Analysis, measure: str, caption: str) -> Picture:
    figure = plot.critical_difference(made.mean_ranks, measure=measure, preset=made.preset)
    return Picture(plot.data_uri(plot.svg(figure)), f"mean ranks by {measure}", caption)


def _measure_name(measure: str) -> str:
    return "IoU drop" if measure == "iou_drop" else measure


def _ranks_grid(frame: pd.DataFrame, lead: str) -> Grid:
    measures = list(dict.fromkeys(frame["measure"]))
    indexed = {(i["layer"], i["method"], i["measure"]): i for i in _lines(frame)}
    order = _at(frame, measure=lead if lead in measures else measures[0])
    lines = []
    for layer, method in zip(order["layer"], order["method"], strict=True):
        line = [Cell(str(layer)), Cell(method_label(method))]
        for measure in measures:
            item = indexed.get((layer, method, measure))
            if item is None:
                line.append(_num(DASH))
                continue
            struck = bool(item["struck"])
            text, small = _number(item["mean_rank"], 2), item["groups"] if item["ranked"] else ""
            line.append(_num(text, small=small, struck=struck, mark=_mark(item)))
        lines.append(line)
    head = [("Layer", False), ("Method", False), *((_measure_name(m), True) for m in measures)]
    tests = []
    for measure in measures:
        item = _lines(_at(frame, measure=measure))[0]
        if pd.notna(item["p"]):
            tests.append(f"{_measure_name(measure)} p {_p(item['p'])} (n = {item['n']})")
    words = (
        f"Friedman test: {'; '.join(tests)}. "
        if tests
        else "Too few tiles or candidates for a Friedman test. "
    )
    caption = (
        "Mean rank, 1 = best, over the tiles that have every candidate; ties on a tile share the "
        "mean of their ranks. Candidates with a letter in common are not distinguishable. "
    )
    return Grid(head, lines, caption + words)


def _faithfulness_grid(part: pd.DataFrame) -> Grid:
    kinds = [k for k in ("area", "threshold") if (part["binarisation"] == k).any()]
    indexed = {(i["layer"], i["method"], i["binarisation"]): i for i in _lines(part)}
    lead = part[part["binarisation"] == kinds[0]]
    lead = lead.assign(_control=lead["layer"] == "")
    order = dict.fromkeys(part["layer"])
    lead = lead.assign(_layer=lead["layer"].map({name: k for k, name in enumerate(order)}))
    lead = lead.sort_values(["_control", "_layer", "mean"], ascending=[True, True, False])
    lines = []
    for layer, method in zip(lead["layer"], lead["method"], strict=True):
        first = indexed[layer, method, kinds[0]]
        line = [Cell(layer or "control"), Cell(method_label(method), mark=_mark(first))]
        for kind in kinds:
            item = indexed.get((layer, method, kind))
            if item is None:
                line += [_num(DASH), _num(DASH), _num(DASH), _num(DASH)]
                continue
            leads = bool(item["in_best_group"] and item["ranked"] and item["decidable"])
            rank = DASH if pd.isna(item["rank"]) else f"{item['rank']:.0f}"
            if not item["decidable"] and layer and rank != DASH:
                rank = "open"
            p = "best" if item["is_best"] and item["ranked"] else _p(item["p_vs_best"])
            p = p if item["ranked"] else DASH
            gone = f"{item['undefined']} undefined" if item["undefined"] else ""
            line += [_num(rank), _value(item, strong=leads), _num(p)]
            line.append(_num(str(item["n"]), small=gone))
        lines.append(line)
    words = {"area": "matched area", "threshold": "thresholds"}
    head = [("Layer", False), ("Method", False)]
    for kind in kinds:
        head += [("Rank", True), (f"IoU drop, {words[kind]}", True), ("p to best", True)]
        head += [("n", True)]
    caption = (
        "Rank: 1 + number of methods of the layer that are clearly better, so ties share a rank; "
        "open: too few tiles to tell. Bold: best, or not distinguishable from it."
    )
    return Grid(head, lines, caption)


def _task3(made: Analysis) -> Section:
    section = Section(
        "task3",
        "Task 3: which layer",
        "The same measures layer by layer. Layers are compared on the same tiles, method by "
        "method, so that easy tiles cannot decide.",
    )
    at = made.headline
    if made.layers.empty:
        section.add("text", "Only one layer was studied, so there is nothing to compare.")
        return section
    # layers and methods in the same order in every picture, not by rank in one of them
    order = made.auc[["layer", "method"]].drop_duplicates()
    ranking = order.merge(made.ranking, on=["layer", "method"])
    tables_of = {made.measure: ranking, "iou_drop": made.faithfulness}
    for measure in dict.fromkeys((made.measure, "iou_drop", *SHORT.values())):
        source = tables_of.get(measure, made.auc)
        lines = _at(made.layers, measure=measure, reference=at.reference, fill=at.fill)
        if lines.empty:
            continue
        struck = bool(lines["struck"].any())
        note = "Struck out: the fill is not valid for this model." if struck else ""
        figure = plot.layers(
            made.layers,
            source,
            measure=measure,
            binarisation=at.binarisation,
            reference=at.reference,
            fill=at.fill,
            preset=made.preset,
        )
        uri = plot.data_uri(plot.svg(figure))
        section.add("picture", Picture(uri, f"{measure} by layer and method", note))
    grids = [_layers_grid(_at(made.layers, reference=at.reference, fill=at.fill))]
    section.add("fold", _fold("All paired differences", grids))
    rest = made.layers[
        (made.layers["reference"] != at.reference) | (made.layers["fill"] != at.fill)
    ]
    grids = [
        _layers_grid(part, f"Fill {fill}, region {reference}. ")
        for (reference, fill), part in rest.groupby(["reference", "fill"], sort=False)
    ]
    if grids:
        section.add("fold", _fold("Differences under the other fills and regions", grids))
    return section


def _layers_grid(frame: pd.DataFrame, before: str = "") -> Grid:
    lines = []
    for item in _lines(frame):
        struck = bool(item["struck"])
        verdict = item["better"] or ("no difference shown" if item["decidable"] else "undecided")
        lines.append(
            [
                Cell(_measure_name(item["measure"])),
                Cell(method_label(item["method"])),
                Cell(f"{item['layer_a']} {MINUS} {item['layer_b']}"),
                _num(
                    _number(item["difference"], sign=True),
                    small=_range(item["low"], item["high"]),
                    struck=struck,
                ),
                _num(_p(item["p"]), struck=struck),
                _num(str(item["n"])),
                Cell(verdict, strong=bool(item["better"]) and not struck, struck=struck),
            ]
        )
    names = ("Measure", "Method", "Layers", "Difference", "p", "n", "Better layer")
    head = [(name, name in ("Difference", "p", "n")) for name in names]
    caption = (
        "Paired differences with 95 % intervals, in the measure's unit; p: Wilcoxon, Holm over "
        "methods and layers. M1 is better when lower."
    )
    return Grid(head, lines, before + caption)


def _controls(made: Analysis) -> Section:
    section = Section(
        "controls",
        "Controls",
        "A method deserves trust only if it beats region-sized random blobs, and it adds something "
        "only if it beats the model's own probability map, at matched area and on the same tiles.",
    )
    frame = _at(made.against_controls, reference=made.headline.reference, fill=made.headline.fill)
    known = [n for n in ("random", "p_c") if len(frame) and frame[f"beats_{n}"].notna().any()]
    if known:
        section.add("grid", _against_grid(_at(frame, measure=made.measure), known))
        others = _against_grid(frame[frame["measure"] != made.measure], known)
        section.add("fold", _fold("The same by the other measures", [others]))
    else:
        section.add("text", "The controls random and p_c were not run, so no method is marked.")
    if len(made.originals):
        section.add("heading", "Inputs that need no heatmap")
        section.add("grid", _originals_grid(made))
    if len(made.m3_gain):
        section.add("heading", "What the highlighted region adds to the target alone")
        section.add("grid", _gain_grid(made))
    return section


def _against_grid(frame: pd.DataFrame, known: Sequence[str]) -> Grid:
    lines = []
    for item in _lines(frame):
        line = [
            Cell(_measure_name(item["measure"])),
            Cell(item["layer"]),
            Cell(method_label(item["method"]), mark=_mark(item)),
        ]
        for name in known:
            beats = item[f"beats_{name}"]
            word = "yes" if pd.notna(beats) and beats else "no"
            word += "" if item[f"{name}_decided"] else " (by interval; too few tiles)"
            line += [
                _num(
                    _number(item[f"{name}_difference"], sign=True),
                    small=_range(item[f"{name}_low"], item[f"{name}_high"]),
                    struck=bool(item["struck"]),
                ),
                _num(_p(item[f"{name}_p"])),
                Cell(word, strong=word.startswith("yes") and not item["struck"]),
            ]
        lines.append(line)
    words = {"random": "random blobs", "p_c": "probability map"}
    head = [("Measure", False), ("Layer", False), ("Method", False)]
    for name in known:
        head += [(f"Against {words[name]}", True), ("p", True), ("Beats it", False)]
    caption = (
        "Advantage over the control, paired by tile; positive is better for every measure. p: "
        "Wilcoxon, Holm over methods and layers."
    )
    return Grid(head, lines, caption)


def _originals_grid(made: Analysis) -> Grid:
    names = {
        "control:original": "the image itself",
        "control:empty": "nothing but the fill",
        "control:target_only": "only the target",
        "control:target_removed": "exactly the target removed",
    }
    measured = ["confidence", _judging_column(made.preset), "kept", "iou"]
    known = made.originals
    measured += [name for name in BOUNDARY if name in known and known[name].notna().any()]
    lines = [
        [
            Cell(names.get(i["method"], i["method"])),
            Cell(i["fill"] or DASH),
            *(_num(_number(i[name])) for name in measured),
            _num(str(i["n"])),
        ]
        for i in _lines(_at(made.originals, reference=made.headline.reference))
    ]
    head = [("Input", False), ("Fill", False)]
    shown = {"iou": "IoU"} | dict(zip(BOUNDARY, ("Boundary F", "against P"), strict=True))
    head += [(shown.get(name, name.capitalize()), True) for name in measured]
    return Grid([*head, ("n", True)], lines, "Means over tiles: the ends of every scale above.")


def _gain_grid(made: Analysis) -> Grid:
    frame = _at(made.m3_gain, fill=made.headline.fill)
    several = frame["reference"].nunique() > 1
    words = {"area": "matched area", "threshold": "thresholds", "mass": "shares of the map's sum"}
    lines = [
        [
            Cell(i["layer"]),
            Cell(method_label(i["method"])),
            *([Cell(i["reference"])] if several else []),
            Cell(words.get(i["binarisation"], i["binarisation"])),
            _num(_number(i["mean"], sign=True), small=_range(i["low"], i["high"])),
            _num(str(i["n"])),
        ]
        for i in _lines(frame)
    ]
    head = [("Layer", False), ("Method", False), *([("Target", False)] if several else [])]
    head += [("Regions", False), ("M3 gain", True)]
    caption = (
        "Certainty with the highlighted region and the target shown, minus certainty with the "
        "target alone. Above 0: the method found context that helps the model."
    )
    return Grid([*head, ("n", True)], lines, caption)


JUDGING = {
    JOINED: (
        "Confidence with the region alone minus confidence without it: 1 where the region is all "
        "that counts. M1 and IoU drop cannot see that a part of the cause is missing; this can."
    ),
    "iou_drop": "It cannot see that a part of the cause is missing.",
    "M3": "No fill is valid for this model, so that nothing can be judged by what is removed.",
}
FACTORS = {
    "fills": "fills",
    "areas": "matched areas",
    "thresholds": "thresholds",
    "measures": "measures",
    "images": "tiles",
}


def _firmness(made: Analysis) -> Section:
    section = Section(
        "firmness",
        "How firm is the order?",
        "Does the order of all layers and methods stay when the fill, the region size, the "
        "measure or the tile changes, and how many tiles would settle what is still open?",
    )
    section.add("heading", "Rank agreement")
    section.add("grid", _agreement_grid(made.agreement))
    if len(made.measure_agreement):
        section.add("heading", "Do the measures agree?")
        section.add("grid", _tau_grid(made.measure_agreement))
    if len(made.fill_agreement):
        section.add("heading", "Do the valid fills agree?")
        lines = [
            [
                Cell(_measure_name(i["measure"])),
                Cell(i["layer"]),
                Cell(f"{i['fill_a']} and {i['fill_b']}"),
                _num(_number(i["tau"], 2)),
                _num(str(i["methods"])),
            ]
            for i in _lines(_at(made.fill_agreement, reference=made.headline.reference))
        ]
        head = [("Measure", False), ("Layer", False), ("Fills", False), ("Kendall tau", True)]
        caption = f"1: the same order of methods under both fills; {MINUS}1: the reverse."
        section.add("grid", Grid([*head, ("Methods", True)], lines, caption))
    if len(made.precision):
        section.add("heading", "How many tiles are enough?")
        section.add("text", _enough(made.precision))
        section.add("grid", _precision_grid(made.precision))
    return section


def _agreement_grid(frame: pd.DataFrame) -> Grid:
    lines = [
        [
            Cell(FACTORS[i["factor"]]),
            Cell(", ".join(_measure_name(m) for m in str(i["compared"]).split(", "))),
            Cell(_measure_name(i["measure"]) if i["measure"] else "each"),
            _num(_number(i["w"], 2)),
            _num(str(i["rankings"])),
            _num(str(i["candidates"])),
            _num(_p(i["p"])),
        ]
        for i in _lines(frame)
    ]
    head = [("Across", False), ("Which", False), ("By", False), ("Kendall's W", True)]
    caption = (
        "Kendall's W over all layers and methods, controls left out: 1, the same order in all "
        f"rankings; 0, nothing in common; {DASH}, fewer than two rankings. p (no agreement beyond "
        "chance) exists for tiles alone: the other rankings are made from the same tiles."
    )
    names = (("Rankings", True), ("Candidates", True), ("p", True))
    return Grid([*head, *names], lines, caption)


def _tau_grid(frame: pd.DataFrame) -> Grid:
    names = list(dict.fromkeys([*frame["measure_a"], *frame["measure_b"]]))
    tau = {(i["measure_a"], i["measure_b"]): i["tau"] for i in _lines(frame)}
    lines = [
        [
            Cell(_measure_name(a)),
            *(_num("1" if a == b else _number(tau.get((a, b), tau.get((b, a))), 2)) for b in names),
        ]
        for a in names
    ]
    head = [("", False), *((_measure_name(name), True) for name in names)]
    caption = (
        "Kendall tau between the orders of all layers and methods, every measure turned so that "
        f"better is higher. 1: the same order; {MINUS}1: the reverse. Over "
        f"{int(frame['candidates'].min())} candidates."
    )
    return Grid(head, lines, caption)


def _enough(frame: pd.DataFrame) -> str:
    """How many tiles would tell the two best apart, in a sentence."""
    several = frame["layer"].nunique() > 2
    best, second = frame[frame["is_best"]], frame[frame["runner_up"]]
    if best.empty or second.empty:
        return "There is no second candidate to be told from the best."
    first, other = best.iloc[0], second.iloc[0]

    def name(line: Any) -> str:
        return method_label(line["method"]) + (f" at {line['layer']}" if several else "")

    pair = f"the two best, {name(first)} and {name(other)}"
    if pd.isna(other["tiles_apart"]):
        why = "one tile has no spread" if other["n"] < 2 else "they do not differ on these tiles"
        return f"No number of tiles can be named that would tell apart {pair}: {why}."
    return (
        f"To tell apart {pair}, which differ by {_number(other['difference'])} here, about "
        f"{_tiles(_rounded(other['tiles_apart']))} tiles would be needed at 80 % power, and about "
        f"{_tiles(_rounded(other['tiles_apart_all']))} if all pairs are compared "
        f"(there are {other['n']})."
    )


def _rounded(value: float) -> float:
    """Two digits of a large number: it is an order of magnitude."""
    return value if value < 100 else float(f"{value:.1e}")


def _tiles(value: Any) -> str:
    return DASH if pd.isna(value) else "> 100,000" if value > 1e5 else f"{int(value):,}"


def _precision_grid(frame: pd.DataFrame) -> Grid:
    lines = [
        [
            Cell(i["layer"] or "control"),
            Cell(method_label(i["method"]), mark=_mark(i)),
            _num(_number(i["mean"]), struck=bool(i["struck"])),
            _num(_number(i["half_width"]), struck=bool(i["struck"])),
            _num(str(i["n"])),
            _num(_tiles(i["tiles_05"])),
            _num(_tiles(i["tiles_02"])),
            _num("best" if i["is_best"] else _number(i["difference"])),
            _num(_tiles(i["tiles_apart"])),
            _num(_tiles(i["tiles_apart_all"])),
        ]
        for i in _lines(frame)
    ]
    sign = "\N{PLUS-MINUS SIGN}"
    head = [("Layer", False), ("Method", False)]
    names = (_measure_name(frame["measure"].iloc[0]), sign, "n", f"n for {sign}0.05")
    head += [(name, True) for name in (*names, f"n for {sign}0.02", "Behind the best")]
    head += [("n to show it", True), ("n, all pairs", True)]
    caption = (
        f"{sign}: half-width of the 95 % t interval of the mean, and the tiles that would make it "
        "as small as named, given the spread seen. n to show it: tiles with which a paired "
        "Wilcoxon test of this pair finds the difference seen, with 80 % power at two-sided 5 % "
        "(normal approximation; efficiency of the Wilcoxon test 0.955); all pairs: at "
        "5 % over the number of pairs. A difference seen on few tiles is uncertain itself, and so "
        "are these numbers."
    )
    return Grid(head, lines, caption)


def _judged(judged: pd.DataFrame) -> Section:
    """Measures of whole heatmaps: methods and layers down, each with its interval."""
    section = Section(
        "maps",
        "Further measures of whole heatmaps",
        "Mean over tiles with its 95 % interval. Tiles without a number are counted with the "
        "reason. The cards of `segproof measures` say in which way each misleads.",
    )
    for (measure, fill), part in judged.groupby(["measure", "fill"], sort=False):
        card = MAP_MEASURES[str(measure)]
        better = "no direction" if card.better == "neither" else f"{card.better} is better"
        section.add("heading", f"{measure} ({better})")
        lines = [
            [
                Cell(i["layer"] or "control"),
                Cell(method_label(i["method"])),
                _num(_number(i["mean"])),
                _num(f"{_number(i['low'])} to {_number(i['high'])}"),
                _num(str(i["n"])),
                Cell(i["reasons"]),
            ]
            for i in _lines(part.sort_values("mean", ascending=card.better == "lower"))
        ]
        head = [("Layer", False), ("Method", False), ("Mean", True), ("95 % interval", True)]
        caption = f"In {card.unit}; fill {fill}. Misleads: {card.failure}"
        names = (("Tiles", True), ("Without a number", False))
        section.add("grid", Grid([*head, *names], lines, caption))
    return section


def _believed(made: Analysis, judged: pd.DataFrame | None) -> Section:
    """How each measure of this report did where the right answer is known."""
    about = shipped_evidence()
    section = Section(
        "believed",
        "How far the measures themselves may be believed",
        "Every measure was put to maps of known quality, for networks whose reason is known: built "
        "by hand (tier a) and trained with a planted cue (tier b). Kendall tau is the agreement of "
        "its order with the true one, 1 = the same; where more than half of the maps tie it says "
        "nothing.",
    )
    third = "m3_entropy_paper" if made.preset == "paper" else "m3_certainty"
    cut = ["m1_confidence", "m2_confidence", third, "iou_drop", JOINED]
    whole = [] if judged is None else list(dict.fromkeys(judged["measure"].astype(str)))
    lines = []
    for measure in [*cut, *whole]:
        kind = "map" if measure in whole else made.headline.binarisation
        cards = {card["tier"]: card for card in evidence_of(measure, kind, made.headline.fill)}
        texts = [_tau(cards.get(tier)) for tier in ("a", "b")]
        notes = dict.fromkeys(card["label"] for card in cards.values() if card["label"])
        first = min((card["oracle_first"] for card in cards.values()), default=None)
        share = "not tested" if first is None else f"{100 * first:.0f} %"
        name = measure.replace("_", " ").replace("m1", "M1").replace("m2", "M2")
        name = name.replace("m3", "M3").replace("iou", "IoU")
        lines.append([Cell(name), *map(_num, texts), _num(share), Cell("; ".join(notes))])
    head = [("Measure", False), ("Tau, tier a", True), ("Tau, tier b", True)]
    head += [("Best map first, worst tier", True), ("Note", False)]
    caption = (
        f"95 % intervals over scenes; cut by {made.headline.binarisation}. Made by "
        f"{about['command']}, version {about['version']}."
    )
    section.add("grid", Grid(head, lines, caption))
    return section


def _tau(card: Mapping[str, Any] | None) -> str:
    if card is None:
        return "not tested"
    if card["low"] is None:
        return f"{card['tau']:.2f}"
    return f"{card['tau']:.2f} ({card['low']:.2f} to {card['high']:.2f})"


def _statuses(made: Analysis) -> Section:
    section = Section(
        "statuses",
        "Heatmaps that failed",
        "A flat or failed heatmap has no region to judge. It is counted here and left out of every "
        "average.",
    )
    names = [name for name in STATUS_TEXT if made.statuses[name].sum()]
    if not names:
        section.add("text", "None: every heatmap of every method could be judged.")
        return section
    lines = [
        [
            Cell(i["layer"]),
            Cell(method_label(i["method"])),
            _num(str(i["images"])),
            _num(str(i["ok"]), strong=i["ok"] < i["images"]),
            *(_num(str(i[name])) for name in names),
        ]
        for i in _lines(made.statuses)
    ]
    head = [("Layer", False), ("Method", False), ("Tiles", True), ("ok", True)]
    section.add("grid", Grid([*head, *((STATUS_TEXT[name], True) for name in names)], lines))
    return section


NOTES: tuple[tuple[str, str], ...] = (
    (
        "Confidence",
        (
            "Mean probability of the class over the region that is read, which is fixed on the "
            "original image. Lower is better when evidence is removed (M1), higher when nothing "
            "else is shown (M2)."
        ),
    ),
    (
        "Certainty",
        (
            "Share of the region still decided as the class, times one minus the mean entropy of "
            "those pixels. 1: all kept and sure; 0: nothing kept, however sure the model is."
        ),
    ),
    (
        "Entropy",
        (
            "strict: entropy of the class probabilities over the region, from 0 to 1. paper: "
            f"{MINUS}p log p of the class alone, averaged over the whole tile; it is low as well "
            "when the model is sure that nothing is there."
        ),
    ),
    (
        "Contrast",
        (
            "Confidence of M2 minus confidence of M1: 1 where the region is all that counts. What "
            "the strict preset goes by, since it orders maps of known quality rightly."
        ),
    ),
    (
        "IoU drop",
        (
            "IoU of the mask on the original image minus IoU after the highlighted region is "
            "removed, both against the truth. Where both masks are empty it is undefined and "
            "counted."
        ),
    ),
    (
        "Matched area",
        (
            "The brightest pixels of each heatmap, exactly as many for every method. At a fixed "
            "threshold, regions differ in size several times over."
        ),
    ),
    (
        "Intervals and tests",
        (
            "95 % bootstrap over tiles (expanded percentile, Hesterberg 2015). Differences: "
            "Wilcoxon signed-rank test on the same tiles, with Holm's correction; a method is "
            "tied with the best if p is at least 0.05."
        ),
    ),
    (
        "Mean ranks",
        (
            "Friedman test over the tiles that have every candidate, then Nemenyi's critical "
            "difference (Dem\N{LATIN SMALL LETTER S WITH CARON}ar 2006). It looks at ranks alone "
            "and at all candidates at once, so it tells fewer apart than the paired tests do."
        ),
    ),
)

PUBLISHED_FAULTS = (
    "M3 is won by the lowest entropy, which is low as well when the model no longer sees anything.",
    "Entropy is averaged over the whole tile, so it depends on how much of it is built up.",
    "Removed pixels get the neutral fill, which this report tests below and may find invalid.",
    "Score-CAM's softmax over summed scores puts all weight on one channel.",
    "The target is summed over the true region, so heatmaps see the truth.",
    "Published orders stand at fixed thresholds, where regions differ in size.",
)


def _notes() -> Section:
    section = Section("notes", "How the numbers are made")
    section.add("grid", Grid([("", False)] * 2, [[Cell(a), Cell(b)] for a, b in NOTES]))
    return section


def _reproduce(manifest: Mapping[str, Any]) -> Section:
    section = Section("reproduce", "Reproduce")
    model = manifest.get("model", {})
    study = manifest.get("study", {})
    hashes = {
        name: value
        for name, value in manifest.items()
        if isinstance(value, str) and ("hash" in name or "sha256" in name)
    }
    seconds = manifest.get("seconds")
    forwards, asked = manifest.get("forwards"), manifest.get("forwards_asked")
    passes = f"{forwards:,}" if isinstance(forwards, int) else ""
    if passes and isinstance(asked, int) and asked != forwards:
        passes += f" of {asked:,} asked for (equal pictures are shown once)"
    facts = [
        ("segproof", str(manifest.get("version", ""))),
        ("Made", str(manifest.get("created", ""))),
        ("Seed", str(study.get("seed", ""))),
        ("Weights, SHA-256", str(model.get("weights_sha256", ""))),
        *((name.replace("_", " "), value) for name, value in hashes.items()),
        ("Forward passes", passes),
        ("Time", f"{seconds:,.0f} s" if isinstance(seconds, int | float) else ""),
        *((str(k), str(v)) for k, v in manifest.get("machine", {}).items()),
    ]
    lines = [[Cell(name), Cell(value)] for name, value in facts if value]
    section.add("grid", Grid([("", False)] * 2, lines))
    if manifest.get("command"):
        section.add("text", "Command")
        section.blocks.append(("code", str(manifest["command"])))
    if study:
        settings = json.dumps(study, indent=2, default=str, ensure_ascii=False)
        folded = Section("", "All settings of the study")
        folded.blocks.append(("code", settings))
        section.add("fold", folded)
    return section


# --- the page ---------------------------------------------------------------------------------


def render(
    rows: pd.DataFrame,
    tiles: pd.DataFrame,
    manifest: Mapping[str, Any],
    pictures: Sequence[Mapping[str, Any]] = (),
    *,
    made: Analysis | None = None,
    judged: pd.DataFrame | None = None,
) -> str:
    """Return the report as one HTML page.

    `rows`: one line per measured input (the columns of results.parquet). `tiles`: sample, status
    (ok, skipped, failed), reason. `manifest`: the study's manifest; missing entries are left out.
    `pictures`: dicts with sample, image [B, H, W], truth and prediction bool [H, W], and heatmaps,
    (method, layer) -> [H, W] in [0, 1]; the first six are shown. `made` saves making the tables
    again; `judged` are the measures of whole heatmaps (`heatmap_scores`), if any. Every string is
    escaped; the page asks nothing from outside.
    """
    preset: Preset = "paper" if manifest.get("preset") == "paper" else "strict"
    made = Analysis(rows, preset) if made is None else made
    sections = [
        _studied(made, tiles, manifest, rows),
        _gallery(pictures),
        _overall(made),
        _task1(made),
        _task2(made),
        _task3(made),
        _controls(made),
        _firmness(made),
        *([] if judged is None or judged.empty else [_judged(judged)]),
        _believed(made, judged),
        _statuses(made),
        _notes(),
        _reproduce(manifest),
    ]
    loader = jinja2.PackageLoader("segproof", "report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    counts = tiles["status"].value_counts() if len(tiles) else pd.Series(dtype=int)
    page = environment.get_template("template.html").render(
        title=_title(manifest),
        verdict=_sentences(made.verdict),
        decided=manifest.get("decided") or {},
        preset=preset,
        faults=PUBLISHED_FAULTS if preset == "paper" else (),
        facts=_facts(made, manifest, counts),
        marks=_marks(made),
        sections=sections,
        version=str(manifest.get("version", "")),
        created=str(manifest.get("created", "")),
    )
    # Names that are not UTF-8 arrive as lone surrogates, which no file can hold.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _title(manifest: Mapping[str, Any]) -> str:
    study, model = manifest.get("study", {}), manifest.get("model", {})
    class_ = study.get("class") or study.get("class_") or ""
    name = str(model.get("spec", "")).rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]
    if class_ and name:
        return f"{class_}: is the explanation of {name} true?"
    return "Is the explanation true?"


def _sentences(text: str) -> tuple[str, str]:
    """First sentence and the rest; numbers such as 0.41 hold no sentence end."""
    first, _, rest = text.replace(" %", "\N{NO-BREAK SPACE}%").partition(". ")
    return (first + "." if rest else first, rest)


def _facts(
    made: Analysis, manifest: Mapping[str, Any], counts: pd.Series[int]
) -> list[tuple[str, str]]:
    left = int(counts.get("skipped", 0)) + int(counts.get("failed", 0))
    methods = made.statuses["method"].nunique()
    layers = made.statuses["layer"].nunique()
    valid = int(made.validity["valid"].sum()) if len(made.validity) else 0
    tested = str(len(made.validity)) if len(made.validity) else "0"
    bad = int(made.statuses["images"].sum() - made.statuses["ok"].sum())
    return [
        (f"{int(counts.get('ok', 0))}", "tiles judged" + (f", {left} left out" if left else "")),
        (f"{methods} \N{MULTIPLICATION SIGN} {layers}", "methods by layers"),
        (f"{valid} of {tested}", "fills valid for this model"),
        (str(bad), "failed heatmaps"),
    ]


def _marks(made: Analysis) -> list[tuple[str, str]]:
    """Explain the marks that can occur."""
    flags = made.against_controls
    out = []
    if len(flags) and flags["beats_random"].notna().any():
        out.append((DAGGER, "not shown to beat random blobs of the same size"))
    if len(flags) and flags["beats_p_c"].notna().any():
        out.append((DOUBLE_DAGGER, "not shown to beat the model's own probability map"))
    if bool(np.any(made.sweep["struck"].to_numpy(bool))):
        out.append(("0.123", "struck out: the fill is not valid for this model"))
    return out
