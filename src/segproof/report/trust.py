"""Builds the sections of the page that say how far its answer may be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from segproof.analysis import Analysis, method_label
from segproof.measures import MAP_MEASURES
from segproof.perturb import is_control
from segproof.report import figures
from segproof.report.columns import at
from segproof.report.html import Section, drawn, fold
from segproof.report.table import MINUS, Cell, Column, Table, facts, number_text, text
from segproof.report.trust_tables import (
    against_table,
    agreement_table,
    believed_table,
    fill_agreement_table,
    gain_table,
    originals_table,
    outlines_table,
    precision_table,
    rounded,
    scores_table,
    statuses_table,
    tau_table,
    tiles_text,
    validity_table,
)

__all__ = ["believed", "controls", "firmness", "heatmap_measures", "notes", "statuses", "studied"]

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
            "Confidence of M2 minus confidence of M1: 1 where the region is all that counts. The "
            "strict preset ranks by it, because it orders maps of known quality rightly."
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


def studied(analysis: Analysis, tiles: pd.DataFrame, manifest: Mapping[str, Any]) -> Section:
    """What was explained, on which tiles, and whether the fills are valid for the model."""
    section = Section("studied", "What was studied")
    model, data = manifest.get("model", {}), manifest.get("data", {})
    study = manifest.get("study", {})
    counts = tiles["status"].value_counts() if len(tiles) else pd.Series(dtype=int)
    methods = [m for m in analysis.rows["method"].unique() if not is_control(m)]
    class_ = study.get("class") or study.get("class_") or manifest.get("class", "")
    parameters = model.get("parameters")
    regions = {region for region in analysis.rows["reference"].unique() if region}
    entries = [
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
        ("Region read", " and ".join(sorted(regions))),
        ("Methods", ", ".join(method_label(m) for m in methods)),
        ("Preset", analysis.preset),
    ]
    section.add("table", facts(entries))
    _layers_studied(section, manifest)
    _tiles_left_out(section, tiles)
    section.add("heading", "Is the fill valid for this model?")
    if analysis.validity.empty:
        section.add(
            "text",
            "Not tested: the control that removes exactly the target was not run. M1, IoU drop and "
            "the contrast may measure outlines instead of evidence.",
        )
    else:
        section.add("table", validity_table(analysis))
        section.add("picture", drawn(figures.validity(analysis.validity), "validity of the fills"))
    _outlines(section, manifest)
    for warning in manifest.get("warnings", []):
        section.add("text", f"Warning: {warning}")
    return section


def _layers_studied(section: Section, manifest: Mapping[str, Any]) -> None:
    entries = manifest.get("layers", [])
    if not entries:
        return

    def entry(key: str) -> Any:
        return lambda line: Cell(str(line.get(key, "")))

    columns = (
        Column("name", "Layer", lambda i: Cell(str(i.get("name") or i.get("alias", "")))),
        Column("path", "Module", entry("path")),
        Column("stride", "Stride (px)", entry("stride"), number=True),
        Column("channels", "Channels", entry("channels"), number=True),
    )
    section.add("table", Table(columns, entries))


def _tiles_left_out(section: Section, tiles: pd.DataFrame) -> None:
    left_out = tiles[tiles["status"] != "ok"] if len(tiles) else tiles
    if left_out.empty:
        return
    lines = []
    for (status, reason), part in left_out.groupby(["status", "reason"], sort=False):
        names = [str(name) for name in part["sample"]]
        listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if names[12:] else "")
        lines.append({"status": status, "reason": reason, "tiles": len(names), "which": listed})
    columns = (
        Column("status", "Left out", text("status")),
        Column("reason", "Reason", text("reason")),
        Column("tiles", "Tiles", text("tiles"), number=True),
        Column("which", "Which", text("which")),
    )
    caption = "Tiles left out are counted and never averaged."
    section.add("table", Table(columns, lines, caption=caption))


def _outlines(section: Section, manifest: Mapping[str, Any]) -> None:
    """Fill x outline, as tried on the first tiles before the study; what it took is marked."""
    trials: Mapping[str, Any] = manifest.get("probe") or {}
    if trials:
        chosen = manifest.get("outline", {}).get("name", "")
        section.add("heading", "Which fill and outline were taken")
        section.add("table", outlines_table(trials, chosen, manifest.get("fills", [])))


def controls(analysis: Analysis) -> Section:
    """Every method against the controls, and the inputs that need no heatmap."""
    section = Section(
        "controls",
        "Controls",
        "A method deserves trust only if it beats region-sized random blobs, and it adds something "
        "only if it beats the model's own probability map, at matched area and on the same tiles.",
    )
    frame = at(
        analysis.against_controls,
        reference=analysis.headline.reference,
        fill=analysis.headline.fill,
    )
    tested = [n for n in ("random", "p_c") if len(frame) and frame[f"beats_{n}"].notna().any()]
    if tested:
        section.add("table", against_table(at(frame, measure=analysis.measure), tested))
        others = against_table(frame[frame["measure"] != analysis.measure], tested)
        section.add("fold", fold("The same by the other measures", [others]))
    else:
        section.add("text", "The controls random and p_c were not run, so no method is marked.")
    if len(analysis.originals):
        section.add("heading", "Inputs that need no heatmap")
        section.add("table", originals_table(analysis))
    if len(analysis.m3_gain):
        section.add("heading", "What the highlighted region adds to the target alone")
        section.add("table", gain_table(analysis))
    return section


def firmness(analysis: Analysis) -> Section:
    """How firm the order is, and how many tiles would settle it."""
    section = Section(
        "firmness",
        "How firm is the order?",
        "Does the order of all layers and methods stay when the fill, the region size, the "
        "measure or the tile changes, and how many tiles would settle what is still open?",
    )
    section.add("heading", "Rank agreement")
    section.add("table", agreement_table(analysis))
    if len(analysis.measure_agreement):
        section.add("heading", "Do the measures agree?")
        section.add("table", tau_table(analysis.measure_agreement))
    if len(analysis.fill_agreement):
        section.add("heading", "Do the valid fills agree?")
        section.add("table", fill_agreement_table(analysis))
    if len(analysis.precision):
        section.add("heading", "How many tiles are enough?")
        section.add("text", _enough(analysis.precision))
        section.add("table", precision_table(analysis.precision))
    return section


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
        f"To tell apart {pair}, which differ by {number_text(other['difference'])} here, about "
        f"{tiles_text(rounded(other['tiles_apart']))} tiles would be needed at 80 % power, and "
        f"about {tiles_text(rounded(other['tiles_apart_all']))} if all pairs are compared "
        f"(there are {other['n']})."
    )


def heatmap_measures(scores: pd.DataFrame) -> Section:
    """Measures of whole heatmaps: methods and layers down, each with its interval."""
    section = Section(
        "maps",
        "Further measures of whole heatmaps",
        "Mean over tiles with its 95 % interval. Tiles without a number are counted with the "
        "reason. The cards of `segproof measures` say in which way each misleads.",
    )
    for (measure, _), part in scores.groupby(["measure", "fill"], sort=False):
        card = MAP_MEASURES[str(measure)]
        section.add("heading", f"{measure} ({card.direction})")
        part = part.sort_values("mean", ascending=card.better == "lower")
        section.add("table", scores_table(part, card.unit, card.failure))
    return section


def believed(analysis: Analysis, scores: pd.DataFrame | None) -> Section:
    """How each measure of this report did where the right answer is known."""
    section = Section(
        "believed",
        "How far the measures themselves may be believed",
        "Every measure was put to maps of known quality, for networks whose reason is known: built "
        "by hand (tier a) and trained with a planted cue (tier b). Kendall tau is the agreement of "
        "its order with the true one, 1 = the same; where more than half of the maps tie it says "
        "nothing.",
    )
    section.add("table", believed_table(analysis, scores))
    return section


def statuses(analysis: Analysis) -> Section:
    """Heatmaps that could not be judged, counted by reason."""
    section = Section(
        "statuses",
        "Heatmaps that failed",
        "A flat or failed heatmap has no region to judge. It is counted here and left out of every "
        "average.",
    )
    table = statuses_table(analysis)
    if table.lines:
        section.add("table", table)
    else:
        section.add("text", "None: every heatmap of every method could be judged.")
    return section


def notes() -> Section:
    """How the numbers are made, in a sentence or two each."""
    section = Section("notes", "How the numbers are made")
    section.add("table", facts(NOTES))
    return section
