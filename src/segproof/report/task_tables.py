"""Makes the tables of the ranking and of tasks 1 to 3 as readers see them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from segproof.analysis import (
    SHORT,
    Analysis,
    RunComparison,
    measure_label,
    method_label,
    strategy_label,
)
from segproof.perturb import STRATEGIES
from segproof.report.columns import (
    STATUS_TEXT,
    at,
    indexed,
    kinds_of,
    labelled,
    layer_column,
    m3_column,
    measure_column,
    measure_name,
    method_column,
    n_column,
    where_of,
    yes_no,
)
from segproof.report.table import (
    DASH,
    MINUS,
    Cell,
    Column,
    Line,
    Table,
    daggers,
    interval_text,
    lines_of,
    mean_cell,
    number_cell,
    number_text,
    p_text,
    text,
)

__all__ = [
    "auc_table",
    "best_table",
    "comparison_table",
    "faithfulness_table",
    "layers_table",
    "mean_ranks_table",
    "ranking_table",
    "sweep_table",
]


def ranking_table(analysis: Analysis, frame: pd.DataFrame) -> Table:
    """All layers and methods together, best first; `frame` is a ranking of the analysis."""
    measure = str(frame["measure"].iloc[0]) if len(frame) else analysis.measure

    def rank(line: Line) -> Cell:
        if line["struck"]:
            return Cell("struck", line["rank"])
        missing = bool(pd.isna(line["rank"]))
        return Cell(DASH if missing else f"{line['rank']:.0f}", line["rank"])

    def p(line: Line) -> Cell:
        return Cell("best" if line["is_best"] else p_text(line["p_vs_best"]), line["p_vs_best"])

    def beats(line: Line) -> Cell:
        return Cell(f"{yes_no(line['beats_random'])} / {yes_no(line['beats_p_c'])}")

    columns = (
        Column("rank", "Rank", rank, number=True),
        layer_column(),
        method_column(marked=True),
        Column(
            measure,
            measure_name(measure),
            lambda i: mean_cell(i, strong=bool(i["is_best"])),
            number=True,
        ),
        Column("p_vs_best", "p to best", p, number=True, role="secondary"),
        n_column(),
        Column("beats", "Beats random / p_c", beats, role="secondary"),
    )
    label = measure_label(measure, analysis.preset)
    title = f"{label}, mean over {analysis.headline.binarisation}s {where_of(analysis)}"
    caption = "Mean over the levels of each tile, 95 % interval below; ties share a rank."
    return Table(columns, lines_of(frame), title, caption)


def mean_ranks_table(frame: pd.DataFrame, lead: str) -> Table:
    """Mean ranks of all candidates by every measure, in the order of the measure `lead`."""
    measures = list(dict.fromkeys(frame["measure"]))
    lines = indexed(frame, "layer", "method", "measure")
    order = at(frame, measure=lead if lead in measures else measures[0])

    def column(measure: str) -> Column:
        def cell(line: Line) -> Cell:
            item = lines.get((line["layer"], line["method"], measure))
            if item is None:
                return Cell(DASH)
            notes = (item["groups"],) if item["ranked"] else ()
            struck = bool(item["struck"])
            return number_cell(item["mean_rank"], 2, notes=notes, struck=struck, mark=daggers(item))

        return Column(measure, measure_name(measure), cell, number=True)

    tests = []
    for measure in measures:
        first = lines_of(at(frame, measure=measure))[0]
        if pd.notna(first["p"]):
            tests.append(f"{measure_name(measure)} p {p_text(first['p'])} (n = {first['n']})")
    words = (
        f"Friedman test: {'; '.join(tests)}. "
        if tests
        else "Too few tiles or candidates for a Friedman test. "
    )
    caption = (
        "Mean rank, 1 = best, over the tiles that have every candidate; ties on a tile share the "
        "mean of their ranks. Candidates with a letter in common are not distinguishable. "
    )
    columns = (layer_column(), method_column(), *map(column, measures))
    return Table(columns, lines_of(order), "Mean ranks", caption + words)


# --- task 1 ------------------------------------------------------------------------------------


def best_table(analysis: Analysis, best: pd.DataFrame, kind: str) -> Table:
    """The best method of every layer and level by M1, M2 and M3; `kind` is area or threshold."""
    best = at(best, binarisation=kind)
    lines = [
        {"layer": layer, "level": level} | {item["measure"]: item for item in lines_of(part)}
        for (layer, level), part in best.groupby(["layer", "level"], sort=False)
    ]

    def column(measure: str) -> Column:
        def cell(line: Line) -> Cell:
            return _best_cell(line[measure]) if measure in line else Cell(DASH)

        return Column(measure, f"Best {measure}", cell)

    level = Column(
        "level",
        "Area" if kind == "area" else "Threshold",
        lambda i: Cell(f"{i['level']:g}", i["level"]),
        number=True,
        role="identity",
    )
    caption = (
        "Best method with its mean and 95 % interval; below it the methods not distinguishable "
        "from it (paired Wilcoxon, Holm over all pairs, p at least 0.05), or the runner-up's p."
    )
    words = "at fixed thresholds" if kind == "threshold" else "at matched area"
    title = f"Task 1: best method {words} {where_of(analysis)}"
    return Table((layer_column(), level, *map(column, SHORT.values())), lines, title, caption)


def _best_cell(item: Line) -> Cell:
    if not item["decidable"]:
        tiles = "1 tile" if item["n"] == 1 else f"{item['n']} tiles"
        note = f"undecided: {tiles}, {item['needed']} needed"
    elif item["tied"]:
        names = item["tied"].split(", ")
        note = "tied: " + ", ".join(method_label(name) for name in names)
        if len(names) > 3:
            note = f"tied with {len(names)} others"
    elif item["runner_up"]:
        note = f"then {method_label(item['runner_up'])}, p {p_text(item['runner_up_p'])}"
    else:
        note = ""
    value = f"{number_text(item['mean'])} {interval_text(item['low'], item['high'])}"
    return Cell(
        method_label(item["best"]),
        item["best"],
        notes=(value, note),
        mark=daggers(item),
        struck=bool(item["struck"]),
        strong=bool(item["decidable"]) and not item["tied"] and not item["struck"],
    )


def auc_table(frame: pd.DataFrame) -> Table:
    """Area under the sweep of every layer and method, cut by cut and measure by measure."""
    words = {"area": "areas", "threshold": "thresholds"}
    lines = indexed(frame, "layer", "method", "binarisation", "strategy")

    def column(kind: str, strategy: str) -> Column:
        def cell(line: Line) -> Cell:
            item = lines.get((line["layer"], line["method"], kind, strategy))
            if item is None:
                return Cell(DASH)
            leads = bool(item["in_best_group"] and item["ranked"] and item["decidable"])
            return mean_cell(item, strong=leads, mark=daggers(item))

        key = f"{SHORT[strategy]}_{kind}"
        return Column(key, f"{SHORT[strategy]} over {words[kind]}", cell, number=True)

    caption = (
        "Area under the sweep, divided by the range of levels so that it keeps the measure's unit; "
        "95 % interval below. Bold: best of its layer, or not distinguishable from the best."
    )
    columns = [column(kind, strategy) for kind in kinds_of(frame) for strategy in STRATEGIES]
    pairs = lines_of(frame[["layer", "method"]].drop_duplicates())
    return Table(
        (layer_column(), method_column(), *columns), pairs, "Task 1: area under the sweep", caption
    )


def sweep_table(analysis: Analysis, frame: pd.DataFrame) -> Table:
    """Every number of the sweep."""

    def number(key: str, title: str, *, struck: bool = False) -> Column:
        return Column(
            key,
            title,
            lambda i: number_cell(i[key], struck=struck and bool(i["struck"])),
            number=True,
        )

    def failures(line: Line) -> Cell:
        return Cell(", ".join(f"{line[k]} {STATUS_TEXT[k]}" for k in STATUS_TEXT if line[k]))

    columns = (
        layer_column(control="control"),
        method_column(marked=True),
        Column("binarisation", "Binarised by", text("binarisation")),
        Column("level", "Level", lambda i: Cell(f"{i['level']:g}", i["level"]), number=True),
        Column("strategy", "Strategy", labelled(strategy_label, "strategy")),
        number("mean", "Mean", struck=True),
        number("low", "Low", struck=True),
        number("high", "High", struck=True),
        n_column(),
        number("area", "Area"),
        number("coverage", "Coverage"),
        Column("left_out", "Left out", failures),
    )
    caption = (
        f"M1 and M2: confidence. M3: {m3_column(analysis)}. Area: share of the tile that is "
        "highlighted. Coverage: share of the target that is highlighted. The file results.csv "
        "holds one line per tile."
    )
    return Table(columns, lines_of(frame), "Task 1: all numbers of the sweep", caption)


# --- task 2 ------------------------------------------------------------------------------------


def faithfulness_table(analysis: Analysis, part: pd.DataFrame) -> Table:
    """Methods ranked by IoU drop within their layers, controls below, cuts side by side."""
    kinds = kinds_of(part)
    lines = indexed(part, "layer", "method", "binarisation")
    words = {"area": "matched area", "threshold": "thresholds"}
    # Layers in the order of the study, the best method of a layer first, controls at the end.
    lead = at(part, binarisation=kinds[0]) if kinds else part
    place = {name: k for k, name in enumerate(dict.fromkeys(part["layer"]))}
    lead = lead.assign(_control=lead["layer"] == "", _layer=lead["layer"].map(place))
    lead = lead.sort_values(["_control", "_layer", "mean"], ascending=[True, True, False])

    def columns_of(kind: str) -> list[Column]:
        def item(line: Line) -> dict[str, Any] | None:
            return lines.get((line["layer"], line["method"], kind))

        def rank(line: Line) -> Cell:
            if (entry := item(line)) is None or pd.isna(entry["rank"]):
                return Cell(DASH)
            undecided = not entry["decidable"] and line["layer"]
            return Cell("open" if undecided else f"{entry['rank']:.0f}", entry["rank"])

        def mean(line: Line) -> Cell:
            if (entry := item(line)) is None:
                return Cell(DASH)
            leads = bool(entry["in_best_group"] and entry["ranked"] and entry["decidable"])
            return mean_cell(entry, strong=leads)

        def p(line: Line) -> Cell:
            if (entry := item(line)) is None or not entry["ranked"]:
                return Cell(DASH)
            label = "best" if entry["is_best"] else p_text(entry["p_vs_best"])
            return Cell(label, entry["p_vs_best"])

        def n(line: Line) -> Cell:
            if (entry := item(line)) is None:
                return Cell(DASH)
            missing = f"{entry['undefined']} undefined" if entry["undefined"] else ""
            return Cell(str(entry["n"]), entry["n"], notes=(missing,))

        first = kind == kinds[0]
        return [
            Column(
                f"rank_{kind}", "Rank", rank, number=True, role="value" if first else "secondary"
            ),
            Column(
                f"iou_drop_{kind}",
                f"IoU drop, {words[kind]}",
                mean,
                number=True,
                role="value" if first else "secondary",
            ),
            Column(f"p_vs_best_{kind}", "p to best", p, number=True, role="secondary"),
            Column(f"n_{kind}", "n", n, number=True, role="secondary"),
        ]

    caption = (
        "Rank: 1 + number of methods of the layer that are clearly better, so ties share a rank; "
        "open: too few tiles to tell. Bold: best, or not distinguishable from it."
    )
    title = f"Task 2: IoU drop (higher is more faithful) {where_of(analysis)}"
    wide = [column for kind in kinds for column in columns_of(kind)]
    columns = (layer_column(control="control"), method_column(marked=True), *wide)
    return Table(columns, lines_of(lead), title, caption)


# --- task 3 ------------------------------------------------------------------------------------


def layers_table(analysis: Analysis, frame: pd.DataFrame, before: str = "") -> Table:
    """Paired differences between layers; `before` stands at the start of the caption."""

    def difference(line: Line) -> Cell:
        between = (line["low"], line["high"])
        struck = bool(line["struck"])
        return number_cell(line["difference"], sign=True, interval=between, struck=struck)

    def better(line: Line) -> Cell:
        struck = bool(line["struck"])
        label = line["better"] or ("no difference shown" if line["decidable"] else "undecided")
        return Cell(
            label, line["better"], strong=bool(line["better"]) and not struck, struck=struck
        )

    columns = (
        measure_column(),
        method_column(),
        Column(
            "layers",
            "Layers",
            lambda i: Cell(f"{i['layer_a']} {MINUS} {i['layer_b']}"),
            role="identity",
        ),
        Column("difference", "Difference", difference, number=True),
        Column(
            "p",
            "p",
            lambda i: Cell(p_text(i["p"]), i["p"], struck=bool(i["struck"])),
            number=True,
            role="secondary",
        ),
        n_column(),
        Column("better", "Better layer", better, role="secondary"),
    )
    caption = (
        "Paired differences with 95 % intervals, in the measure's unit; p: Wilcoxon, Holm over "
        "methods and layers. M1 is better when lower."
    )
    kind = analysis.headline.binarisation
    title = f"Task 3: layers, paired differences, mean over {kind}s {where_of(analysis)}"
    return Table(columns, lines_of(frame), title, before + caption)


# --- two runs ----------------------------------------------------------------------------------


def comparison_table(comparison: RunComparison) -> Table:
    """Run B against run A; positive differences are better."""

    def method(name: str) -> str:
        return "prediction" if name == "prediction" else method_label(name)

    def difference(line: Line) -> Cell:
        between = (line["low"], line["high"])
        return number_cell(line["difference"], sign=True, interval=between)

    columns = (
        measure_column(),
        layer_column(),
        Column("method", "Method", labelled(method, "method"), role="identity"),
        Column("a", "A", lambda i: number_cell(i["a"]), number=True, role="secondary"),
        Column("b", "B", lambda i: number_cell(i["b"]), number=True, role="secondary"),
        Column("difference", "Difference", difference, number=True),
        Column(
            "p", "p (Holm)", lambda i: Cell(p_text(i["p"]), i["p"]), number=True, role="secondary"
        ),
        n_column("Tiles"),
        Column("verdict", "Verdict", text("verdict")),
    )
    return Table(columns, lines_of(comparison.table), "B against A (positive: B is better)")
