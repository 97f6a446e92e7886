"""Makes the tables that say how far the ranking may be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from segproof.analysis import HEADLINE_MEASURES, VALID_DROP, Analysis
from segproof.measures import BOUNDARY, evidence_of, headline, shipped_evidence
from segproof.perturb import control_of
from segproof.report.columns import (
    STATUS_TEXT,
    at,
    labelled,
    layer_column,
    m3_column,
    measure_column,
    measure_name,
    method_column,
    n_column,
    where_of,
)
from segproof.report.table import (
    DASH,
    MINUS,
    Cell,
    Column,
    Line,
    Table,
    lines_of,
    number_cell,
    number_text,
    p_text,
    text,
)

__all__ = [
    "FACTORS",
    "against_table",
    "agreement_table",
    "believed_table",
    "fill_agreement_table",
    "gain_table",
    "originals_table",
    "outlines_table",
    "precision_table",
    "rounded",
    "scores_table",
    "statuses_table",
    "tau_table",
    "tiles_text",
    "validity_table",
]

FACTORS = {
    "fills": "fills",
    "areas": "matched areas",
    "thresholds": "thresholds",
    "measures": "measures",
    "images": "tiles",
}


# --- fills -------------------------------------------------------------------------------------


def validity_table(analysis: Analysis) -> Table:
    """Every fill with the drop of confidence when exactly the target is removed."""
    columns = (
        Column(
            "fill",
            "Fill",
            lambda i: Cell(i["fill"], i["fill"], struck=not i["valid"]),
            role="identity",
        ),
        Column("reference", "Region", text("reference"), role="identity"),
        Column("mean_drop", "Mean drop", lambda i: number_cell(i["mean_drop"]), number=True),
        Column("min_drop", "Lowest", lambda i: number_cell(i["min_drop"]), number=True),
        n_column("Tiles"),
        Column(
            "valid",
            "",
            lambda i: Cell(
                "valid" if i["valid"] else "not valid", bool(i["valid"]), strong=bool(i["valid"])
            ),
        ),
    )
    caption = (
        "Relative drop of confidence when exactly the target is replaced by the fill. A fill that "
        "leaves the model confident draws the outline of the object instead of removing it. Below "
        "0.5 its M1, IoU drop and contrast are struck out and, in the strict preset, rank nothing."
    )
    return Table(columns, lines_of(analysis.validity), "Is the fill valid for this model?", caption)


def outlines_table(
    trials: Mapping[str, Mapping[str, Mapping[str, float]]], outline: str, fills: Sequence[str]
) -> Table:
    """Fill x outline, as tried on the first tiles before the study; what was taken is marked.

    `trials` maps outline -> fill -> mean_drop, min_drop, n; `outline` and `fills` were taken.
    """
    first = next(iter(trials.values()))
    tiles = int(next(iter(first.values()))["n"])

    def column(name: str) -> Column:
        def cell(line: Line) -> Cell:
            drop = trials[name][line["fill"]]
            taken = name == outline and line["fill"] in fills
            shown = f"{number_text(drop['mean_drop'])} ({number_text(drop['min_drop'])})"
            shown += " taken" if taken else ""
            struck = not drop["mean_drop"] >= VALID_DROP
            return Cell(shown, drop["mean_drop"], strong=taken, struck=struck)

        return Column(name, name if name == "exact" else f"{name} px", cell, number=True)

    columns = (Column("fill", "Fill", text("fill"), role="identity"), *map(column, trials))
    caption = (
        "What was tried before the study: relative drop of confidence when the target is removed, "
        f"mean (lowest) over {tiles} tile{'' if tiles == 1 else 's'}, by fill and by how its "
        "outline was widened. Natural fills with the exact outline come first, then wider and "
        "rougher outlines, then artificial fills."
    )
    return Table(columns, [{"fill": str(fill)} for fill in first], caption=caption)


# --- controls and inputs that need no heatmap --------------------------------------------------


def against_table(frame: pd.DataFrame, controls: Sequence[str]) -> Table:
    """Advantage of every method over each of `controls` (random, p_c)."""
    words = {"random": "random blobs", "p_c": "probability map"}

    def columns_of(name: str) -> list[Column]:
        def difference(line: Line) -> Cell:
            between = (line[f"{name}_low"], line[f"{name}_high"])
            struck = bool(line["struck"])
            value = line[f"{name}_difference"]
            return number_cell(value, sign=True, interval=between, struck=struck)

        def beats(line: Line) -> Cell:
            flag = line[f"beats_{name}"]
            won = bool(pd.notna(flag)) and bool(flag)
            shown = "yes" if won else "no"
            shown += "" if line[f"{name}_decided"] else " (by interval; too few tiles)"
            return Cell(shown, won, strong=won and not line["struck"])

        return [
            Column(f"{name}_difference", f"Against {words[name]}", difference, number=True),
            Column(
                f"{name}_p",
                "p",
                lambda i: Cell(p_text(i[f"{name}_p"]), i[f"{name}_p"]),
                number=True,
                role="secondary",
            ),
            Column(f"beats_{name}", "Beats it", beats),
        ]

    caption = (
        "Advantage over the control, paired by tile; positive is better for every measure. p: "
        "Wilcoxon, Holm over methods and layers."
    )
    wide = [column for name in controls for column in columns_of(name)]
    columns = (measure_column(), layer_column(), method_column(marked=True), *wide)
    return Table(columns, lines_of(frame), "Against the controls", caption)


def _phrase(method: str) -> str:
    """What a control shows, in words."""
    control = control_of(method)
    return control.phrase if control else method


def originals_table(analysis: Analysis) -> Table:
    """Means of the inputs that need no heatmap: the ends of every scale."""
    frame = analysis.originals
    measured = ["confidence", m3_column(analysis), "kept", "iou"]
    measured += [name for name in BOUNDARY if name in frame and frame[name].notna().any()]
    titles = {"iou": "IoU"} | dict(zip(BOUNDARY, ("Boundary F", "against P"), strict=True))

    def column(name: str) -> Column:
        title = titles.get(name, name.capitalize())
        return Column(name, title, lambda i: number_cell(i[name]), number=True)

    columns = (
        Column(
            "method",
            "Input",
            lambda i: Cell(_phrase(i["method"]), i["method"]),
            role="identity",
        ),
        Column("fill", "Fill", lambda i: Cell(i["fill"] or DASH, i["fill"]), role="identity"),
        *map(column, measured),
        n_column(),
    )
    lines = lines_of(at(frame, reference=analysis.headline.reference))
    caption = "Means over tiles: the ends of every scale above."
    return Table(columns, lines, "Inputs that need no heatmap", caption)


def gain_table(analysis: Analysis) -> Table:
    """What the highlighted region adds to the target alone."""
    frame = at(analysis.m3_gain, fill=analysis.headline.fill)
    several = frame["reference"].nunique() > 1
    words = {"area": "matched area", "threshold": "thresholds", "mass": "shares of the map's sum"}

    def gain(line: Line) -> Cell:
        return number_cell(line["mean"], sign=True, interval=(line["low"], line["high"]))

    columns = (
        layer_column(),
        method_column(),
        *([Column("reference", "Target", text("reference"))] if several else []),
        Column("binarisation", "Regions", labelled(lambda k: words.get(k, k), "binarisation")),
        Column("gain", "M3 gain", gain, number=True),
        n_column(),
    )
    caption = (
        "Certainty with the highlighted region and the target shown, minus certainty with the "
        "target alone. Above 0: the method found context that helps the model."
    )
    title = "What the highlighted region adds to the target alone"
    return Table(columns, lines_of(frame), title, caption)


def statuses_table(analysis: Analysis) -> Table:
    """Heatmaps that failed, counted by reason; no lines where none did."""
    names = [name for name in STATUS_TEXT if analysis.statuses[name].sum()]

    def ok(line: Line) -> Cell:
        return Cell(str(line["ok"]), line["ok"], strong=line["ok"] < line["images"])

    columns = (
        layer_column(),
        method_column(),
        Column("images", "Tiles", text("images"), number=True),
        Column("ok", "ok", ok, number=True),
        *(Column(name, STATUS_TEXT[name], text(name), number=True) for name in names),
    )
    lines = lines_of(analysis.statuses) if names else []
    return Table(columns, lines, "Heatmaps that failed")


# --- how firm the order is ---------------------------------------------------------------------


def agreement_table(analysis: Analysis) -> Table:
    """Kendall's W when one thing changes: fills, levels, measures, tiles."""

    def compared(line: Line) -> Cell:
        names = str(line["compared"]).split(", ")
        return Cell(", ".join(map(measure_name, names)), line["compared"])

    columns = (
        Column("factor", "Across", labelled(FACTORS.__getitem__, "factor"), role="identity"),
        Column("compared", "Which", compared, role="secondary"),
        Column(
            "measure",
            "By",
            lambda i: Cell(measure_name(i["measure"]) if i["measure"] else "each", i["measure"]),
        ),
        Column("w", "Kendall's W", lambda i: number_cell(i["w"], 2), number=True),
        Column("rankings", "Rankings", text("rankings"), number=True),
        Column("candidates", "Candidates", text("candidates"), number=True),
        Column("p", "p", lambda i: Cell(p_text(i["p"]), i["p"]), number=True),
    )
    caption = (
        "Kendall's W over all layers and methods, controls left out: 1, the same order in all "
        f"rankings; 0, nothing in common; {DASH}, fewer than two rankings. p (no agreement beyond "
        "chance) exists for tiles alone: the other rankings are made from the same tiles."
    )
    title = f"Rank agreement: Kendall's W (1 = the same order) {where_of(analysis)}"
    lines = lines_of(analysis.agreement) if len(analysis.mean_ranks) else []
    return Table(columns, lines, title, caption)


def tau_table(frame: pd.DataFrame) -> Table:
    """Kendall tau between the orders by each two measures, as a square."""
    names = list(dict.fromkeys([*frame["measure_a"], *frame["measure_b"]]))
    tau = {(i["measure_a"], i["measure_b"]): i["tau"] for i in lines_of(frame)}

    def column(name: str) -> Column:
        def cell(line: Line) -> Cell:
            if line["measure"] == name:
                return Cell("1", 1.0)
            pair = (line["measure"], name)
            return number_cell(tau.get(pair, tau.get(pair[::-1])), 2)

        return Column(name, measure_name(name), cell, number=True)

    caption = (
        "Kendall tau between the orders of all layers and methods, every measure turned so that "
        f"better is higher. 1: the same order; {MINUS}1: the reverse. Over "
        f"{int(frame['candidates'].min())} candidates."
    )
    columns = (measure_column(""), *map(column, names))
    return Table(columns, [{"measure": name} for name in names], "Do the measures agree?", caption)


def fill_agreement_table(analysis: Analysis) -> Table:
    """Kendall tau between the orders under each two valid fills."""
    columns = (
        measure_column(),
        layer_column(),
        Column("fills", "Fills", lambda i: Cell(f"{i['fill_a']} and {i['fill_b']}")),
        Column("tau", "Kendall tau", lambda i: number_cell(i["tau"], 2), number=True),
        Column("methods", "Methods", text("methods"), number=True, role="secondary"),
    )
    caption = f"1: the same order of methods under both fills; {MINUS}1: the reverse."
    lines = lines_of(at(analysis.fill_agreement, reference=analysis.headline.reference))
    return Table(columns, lines, "Do the valid fills agree?", caption)


def rounded(value: float) -> float:
    """Two digits of a large number: it is an order of magnitude."""
    return value if value < 100 else float(f"{value:.1e}")


def tiles_text(value: Any) -> str:
    """A number of tiles; a dash where none can be named."""
    return DASH if pd.isna(value) else "> 100,000" if value > 1e5 else f"{int(value):,}"


def precision_table(frame: pd.DataFrame) -> Table:
    """How exact each mean is, and how many tiles would be enough."""
    sign = "\N{PLUS-MINUS SIGN}"
    name = measure_name(str(frame["measure"].iloc[0])) if len(frame) else ""

    def number(key: str, title: str) -> Column:
        return Column(
            key, title, lambda i: number_cell(i[key], struck=bool(i["struck"])), number=True
        )

    def tiles(key: str, title: str) -> Column:
        return Column(
            key, title, lambda i: Cell(tiles_text(i[key]), i[key]), number=True, role="secondary"
        )

    def behind(line: Line) -> Cell:
        shown = "best" if line["is_best"] else number_text(line["difference"])
        return Cell(shown, line["difference"])

    columns = (
        layer_column(control="control"),
        method_column(marked=True),
        number("mean", name),
        number("half_width", sign),
        n_column(),
        tiles("tiles_05", f"n for {sign}0.05"),
        tiles("tiles_02", f"n for {sign}0.02"),
        Column("difference", "Behind the best", behind, number=True),
        tiles("tiles_apart", "n to show it"),
        tiles("tiles_apart_all", "n, all pairs"),
    )
    caption = (
        f"{sign}: half-width of the 95 % t interval of the mean, and the tiles that would make it "
        "as small as named, given the spread seen. n to show it: tiles with which a paired "
        "Wilcoxon test of this pair finds the difference seen, with 80 % power at two-sided 5 % "
        "(normal approximation; efficiency of the Wilcoxon test 0.955); all pairs: at "
        "5 % over the number of pairs. A difference seen on few tiles is uncertain itself, and so "
        "are these numbers."
    )
    return Table(columns, lines_of(frame), "How many tiles are enough?", caption)


# --- measures of whole heatmaps, and how far measures may be believed --------------------------


def scores_table(part: pd.DataFrame, unit: str, failure: str) -> Table:
    """One measure of whole heatmaps; `part` holds its lines, best first."""

    def interval(line: Line) -> Cell:
        return Cell(f"{number_text(line['low'])} to {number_text(line['high'])}")

    columns = (
        layer_column(control="control"),
        method_column(),
        Column("mean", "Mean", lambda i: number_cell(i["mean"]), number=True, unit=unit),
        Column("interval", "95 % interval", interval, number=True, role="secondary"),
        n_column("Tiles"),
        Column("reasons", "Without a number", text("reasons"), role="secondary"),
    )
    fill = str(part["fill"].iloc[0]) if len(part) else ""
    caption = f"In {unit}; fill {fill}. Misleads: {failure}"
    return Table(columns, lines_of(part), caption=caption)


def believed_table(analysis: Analysis, scores: pd.DataFrame | None) -> Table:
    """How each measure of a report did where the right answer is known."""
    about = shipped_evidence()
    kind_of_cut = analysis.headline.binarisation
    records = headline(analysis.preset)
    cut = [records[name].tried_as for name in HEADLINE_MEASURES]
    whole = [] if scores is None else list(dict.fromkeys(scores["measure"].astype(str)))
    lines = []
    for measure in [*cut, *whole]:
        kind = "map" if measure in whole else kind_of_cut
        cards = {c["tier"]: c for c in evidence_of(measure, kind, analysis.headline.fill)}
        first = min((card["oracle_first"] for card in cards.values()), default=None)
        name = measure.replace("_", " ").replace("m1", "M1").replace("m2", "M2")
        lines.append(
            {
                "measure": name.replace("m3", "M3").replace("iou", "IoU"),
                "tau_a": _tau(cards.get("a")),
                "tau_b": _tau(cards.get("b")),
                "first": "not tested" if first is None else f"{100 * first:.0f} %",
                "note": "; ".join(dict.fromkeys(c["label"] for c in cards.values() if c["label"])),
            }
        )
    columns = (
        Column("measure", "Measure", text("measure"), role="identity"),
        Column("tau_a", "Tau, tier a", text("tau_a"), number=True),
        Column("tau_b", "Tau, tier b", text("tau_b"), number=True),
        Column("first", "Best map first, worst tier", text("first"), number=True),
        Column("note", "Note", text("note"), role="secondary"),
    )
    caption = (
        f"95 % intervals over scenes; cut by {kind_of_cut}. Made by {about['command']}, version "
        f"{about['version']}."
    )
    return Table(columns, lines, "How far the measures may be believed", caption)


def _tau(card: Mapping[str, Any] | None) -> str:
    if card is None:
        return "not tested"
    if card["low"] is None:
        return f"{card['tau']:.2f}"
    return f"{card['tau']:.2f} ({card['low']:.2f} to {card['high']:.2f})"
