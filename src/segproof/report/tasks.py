"""Builds the sections of the page that answer: which method, which layer, at which region size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segproof.analysis import HEADLINE_MEASURES, JOINED, SHORT, Analysis
from segproof.report import figures, overlays
from segproof.report.columns import KINDS, at, measure_name
from segproof.report.html import Section, drawn, fold, photographed
from segproof.report.task_tables import (
    auc_table,
    best_table,
    faithfulness_table,
    layers_table,
    mean_ranks_table,
    ranking_table,
    sweep_table,
)

__all__ = ["gallery", "overall", "task1", "task2", "task3"]

SHOWN_TILES = 6
JUDGING = {
    JOINED: (
        "Confidence with the region alone minus confidence without it: 1 where the region is all "
        "that counts. M1 and IoU drop cannot see that a part of the cause is missing; this can."
    ),
    "iou_drop": "It cannot see that a part of the cause is missing.",
    "M3": "No fill is valid for this model, so that nothing can be judged by what is removed.",
}


def _places(analysis: Analysis) -> list[tuple[str, str]]:
    """(reference, fill) pairs with the headline's first."""
    pairs = analysis.sweep[["reference", "fill"]].drop_duplicates()
    places = [(str(a), str(b)) for a, b in pairs.itertuples(index=False)]
    lead = (analysis.headline.reference, analysis.headline.fill)
    return [lead, *(place for place in places if place != lead)] if places else []


def gallery(pictures: Sequence[Mapping[str, Any]]) -> Section:
    """Images with the heatmaps of all methods, layer by layer."""
    section = Section(
        "gallery",
        "Gallery",
        "On the left is the image with the truth (white line) and the model's own mask (blue "
        "dashes). Each further picture shows the heatmap of one method over the grey image: bright "
        "pixels are important to that method.",
    )
    first = list(pictures[:SHOWN_TILES])
    layers = list(dict.fromkeys(layer for item in first for _, layer in item["heatmaps"]))
    if not layers:
        section.add("text", "No pictures were kept for this run.")
    for layer in layers:
        figure = overlays.gallery(first, layer)
        section.add("heading", str(layer))
        section.add("picture", photographed(figure, f"heatmaps of all methods at {layer}"))
    if len(pictures) > len(first):
        section.add("text", f"The first {len(first)} of {len(pictures)} tiles are shown.")
    return section


def overall(analysis: Analysis) -> Section:
    """What the verdict goes by: all candidates at the headline cell, by value and by rank."""
    at_headline = analysis.headline
    section = Section(
        "ranking",
        "All layers and methods together",
        f"Ranked by {measure_name(analysis.measure)}, the measure of the verdict, with fill "
        f"{at_headline.fill} and region {at_headline.reference}. {JUDGING[analysis.measure]}",
    )
    if analysis.ranking.empty:
        section.add("text", "Nothing was measured that could be ranked.")
        return section
    section.add("table", ranking_table(analysis, analysis.ranking))
    if analysis.measure != "iou_drop" and len(analysis.by_iou_drop):
        table = ranking_table(analysis, analysis.by_iou_drop)
        section.add("fold", fold("The same by IoU drop", [table]))
    _mean_ranks(section, analysis)
    return section


def _mean_ranks(section: Section, analysis: Analysis) -> None:
    """Critical-difference diagrams: the measure that decides in sight, the others folded."""
    frame, lead = analysis.mean_ranks, analysis.measure
    if frame.empty:
        return

    def add_picture(target: Section, measure: str, caption: str) -> None:
        figure = figures.critical_difference(frame, measure=measure, preset=analysis.preset)
        target.add("picture", drawn(figure, f"mean ranks by {measure}", caption))

    section.add("heading", "By rank on every tile")
    caption = (
        "Every tile ranks the candidates; the axis shows the mean ranks. Candidates under one bar "
        "are not distinguishable: their ranks differ by less than Nemenyi's critical difference."
    )
    add_picture(section, lead, caption)
    others = Section("", "The same by the other measures, and all mean ranks")
    for measure in (m for m in HEADLINE_MEASURES if m != lead):
        add_picture(others, measure, "")
    others.add("table", mean_ranks_table(frame, lead))
    section.add("fold", others)


def task1(analysis: Analysis) -> Section:
    """M1, M2 and M3 over region sizes, with the best of each."""
    section = Section(
        "task1",
        "Task 1: sweep over region sizes",
        "M1 removes the highlighted region, M2 shows nothing else, M3 shows it together with the "
        "target. Regions come from matched areas (every method highlights the same share of the "
        "tile) and from fixed thresholds (sizes differ, and size alone moves the result).",
    )
    words = {"area": "At matched area", "threshold": "At fixed thresholds"}
    for place, (reference, fill) in enumerate(_places(analysis)):
        where = {"reference": reference, "fill": fill}
        # The headline's fill and region stand open, the others fold away.
        target: Section = section if place == 0 else Section("", f"Fill {fill}, region {reference}")
        for kind in KINDS:
            part = at(analysis.sweep, binarisation=kind, **where)
            if part[part["layer"] != ""].empty:
                continue
            target.add("heading", f"{words[kind]} (fill {fill}, region {reference})")
            figure = figures.sweep(
                analysis.sweep, binarisation=kind, preset=analysis.preset, **where
            )
            caption = (
                "Lines are means over tiles, bands 95 % bootstrap intervals, grey lines the "
                "controls. A method that does not leave the grey lines explains nothing."
            )
            target.add("picture", drawn(figure, f"sweep {words[kind].lower()}", caption))
            target.add("table", best_table(analysis, at(analysis.best, **where), kind))
        if place == 0:
            _sizes(target, analysis)
        target.add("table", auc_table(at(analysis.auc, **where)))
        table = sweep_table(analysis, at(analysis.sweep, **where))
        target.add("fold", fold("All numbers of the sweep", [table]))
        if place:
            section.add("fold", target)
    return section


def _sizes(section: Section, analysis: Analysis) -> None:
    """Why matched area: how large the regions are at a fixed threshold."""
    where = {"reference": analysis.headline.reference, "fill": analysis.headline.fill}
    if at(analysis.sweep, binarisation="threshold", **where).empty:
        return
    section.add("heading", "Why matched area")
    figure = figures.region_size(analysis.sweep, **where)
    caption = (
        "The same threshold highlights regions of very different size. A larger region removes, or "
        "keeps, more of everything, so an order at fixed thresholds partly ranks sizes."
    )
    section.add("picture", drawn(figure, "size of the highlighted region by threshold", caption))


def task2(analysis: Analysis) -> Section:
    """IoU drop of every method and layer."""
    section = Section(
        "task2",
        "Task 2: which method is faithful",
        "The IoU drop says how much worse the mask gets when the highlighted region is removed. A "
        "high drop means that the method found pixels that the model needs. The headline is at "
        "matched area; fixed thresholds are shown next to it.",
    )
    for place, (reference, fill) in enumerate(_places(analysis)):
        where = {"reference": reference, "fill": fill}
        part = at(analysis.faithfulness, **where)
        if part[part["layer"] != ""].empty:
            continue
        target = section if place == 0 else Section("", f"Fill {fill}, region {reference}")
        if place == 0:
            target.add("heading", f"Fill {fill}, region {reference}")
        figure = figures.faithfulness(analysis.faithfulness, **where)
        caption = (
            "Means with 95 % intervals. Left of the dotted line a method is worse than random "
            "blobs of the same size; left of the dashed one, than the model's probability map."
        )
        target.add("picture", drawn(figure, "IoU drop of every method and layer", caption))
        target.add("table", faithfulness_table(analysis, part))
        if part["binarisation"].nunique() > 1 and not part["struck"].any():
            figure = figures.ranking(analysis.faithfulness, **where)
            caption = "Crossing lines: the order at fixed thresholds comes partly from region size."
            target.add("picture", drawn(figure, "order at thresholds and at matched area", caption))
        if place:
            section.add("fold", target)
    return section


def task3(analysis: Analysis) -> Section:
    """Layers against each other, measure by measure."""
    section = Section(
        "task3",
        "Task 3: which layer",
        "Here the same measures are compared layer by layer, on the same tiles and method by "
        "method, so that easy tiles cannot decide.",
    )
    headline = analysis.headline
    where = {"reference": headline.reference, "fill": headline.fill}
    if analysis.layers.empty:
        section.add("text", "Only one layer was studied, so there is nothing to compare.")
        return section
    # layers and methods in the same order in every picture, not by rank in one of them
    order = analysis.auc[["layer", "method"]].drop_duplicates()
    ranking = order.merge(analysis.ranking, on=["layer", "method"])
    means_of = {analysis.measure: ranking, "iou_drop": analysis.faithfulness}
    for measure in dict.fromkeys((analysis.measure, "iou_drop", *SHORT.values())):
        lines = at(analysis.layers, measure=measure, **where)
        if lines.empty:
            continue
        struck = bool(lines["struck"].any())
        caption = "Struck out: the fill is not valid for this model." if struck else ""
        figure = figures.layers(
            analysis.layers,
            means_of.get(measure, analysis.auc),
            measure=measure,
            binarisation=headline.binarisation,
            preset=analysis.preset,
            **where,
        )
        section.add("picture", drawn(figure, f"{measure} by layer and method", caption))
    tables = [layers_table(analysis, at(analysis.layers, **where))]
    section.add("fold", fold("All paired differences", tables))
    here = (analysis.layers["reference"] == headline.reference) & (
        analysis.layers["fill"] == headline.fill
    )
    rest = analysis.layers[~here]
    tables = [
        layers_table(analysis, part, f"Fill {fill}, region {reference}. ")
        for (reference, fill), part in rest.groupby(["reference", "fill"], sort=False)
    ]
    if tables:
        section.add("fold", fold("Differences under the other fills and regions", tables))
    return section
