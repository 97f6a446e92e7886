"""Renders the report: one self-contained HTML file that opens by file://, no script, no request.

Every table marks the same things in the same way: a dagger for a method not shown to beat random
blobs, a double dagger for one not shown to beat the model's own probability map, and struck-out
numbers where the fill is not valid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from segproof.analysis import Analysis
from segproof.report import tasks, trust
from segproof.report.html import Section, page_of
from segproof.report.table import DAGGER, DOUBLE_DAGGER, facts

if TYPE_CHECKING:
    from segproof.explain import Preset

__all__ = ["render"]

PUBLISHED_FAULTS = (
    "M3 is won by the lowest entropy, which is low as well when the model no longer sees anything.",
    "Entropy is averaged over the whole tile, so it depends on how much of it is built up.",
    "Removed pixels get the neutral fill, which this report tests below and may find invalid.",
    "Score-CAM's softmax over summed scores puts all weight on one channel.",
    "The target is summed over the true region, so heatmaps see the truth.",
    "Published orders stand at fixed thresholds, where regions differ in size.",
)


def render(
    rows: pd.DataFrame,
    tiles: pd.DataFrame,
    manifest: Mapping[str, Any],
    pictures: Sequence[Mapping[str, Any]] = (),
    *,
    analysis: Analysis | None = None,
    scores: pd.DataFrame | None = None,
) -> str:
    """Return the report as one HTML page.

    `rows`: one line per measured input (the columns of results.parquet). `tiles`: sample, status
    (ok, skipped, failed), reason. `manifest`: the study's manifest; missing entries are left out.
    `pictures`: dicts with sample, image [B, H, W], truth and prediction bool [H, W], and heatmaps,
    (method, layer) -> [H, W] in [0, 1]; the first six are shown. `analysis`
    saves making the tables again; `scores` are the measures of whole heatmaps (`heatmap_scores`),
    if any. Every string is escaped; the page asks nothing from outside.
    """
    preset: Preset = "paper" if manifest.get("preset") == "paper" else "strict"
    analysis = Analysis(rows, preset) if analysis is None else analysis
    sections = [
        trust.studied(analysis, tiles, manifest),
        tasks.gallery(pictures),
        tasks.overall(analysis),
        tasks.task1(analysis),
        tasks.task2(analysis),
        tasks.task3(analysis),
        trust.controls(analysis),
        trust.firmness(analysis),
        *([] if scores is None or scores.empty else [trust.heatmap_measures(scores)]),
        trust.believed(analysis, scores),
        trust.statuses(analysis),
        trust.notes(),
        _reproduce(manifest),
    ]
    counts = tiles["status"].value_counts() if len(tiles) else pd.Series(dtype=int)
    return page_of(
        {
            "title": _title(manifest),
            "verdict": _sentences(analysis.verdict),
            "decided": manifest.get("decided") or {},
            "preset": preset,
            "faults": PUBLISHED_FAULTS if preset == "paper" else (),
            "facts": _facts(analysis, counts),
            "marks": _marks(analysis),
            "sections": sections,
            "version": str(manifest.get("version", "")),
            "created": str(manifest.get("created", "")),
        }
    )


def _reproduce(manifest: Mapping[str, Any]) -> Section:
    """Versions, hashes, seed, cost, command and settings of the run."""
    section = Section("reproduce", "Reproduce")
    model = manifest.get("model", {})
    study = manifest.get("study", {})
    hashes = {
        name: value
        for name, value in manifest.items()
        if isinstance(value, str) and ("hash" in name or "sha256" in name)
    }
    seconds = manifest.get("seconds")
    forwards, planned = manifest.get("forwards"), manifest.get("forwards_asked")
    passes = f"{forwards:,}" if isinstance(forwards, int) else ""
    if passes and isinstance(planned, int) and planned != forwards:
        passes += f" of {planned:,} planned (identical pictures are run once)"
    entries = [
        ("segproof", str(manifest.get("version", ""))),
        ("Made", str(manifest.get("created", ""))),
        ("Seed", str(study.get("seed", ""))),
        ("Weights, SHA-256", str(model.get("weights_sha256", ""))),
        *((name.replace("_", " "), value) for name, value in hashes.items()),
        ("Forward passes", passes),
        ("Time", f"{seconds:,.0f} s" if isinstance(seconds, int | float) else ""),
        *((str(k), str(v)) for k, v in manifest.get("machine", {}).items()),
    ]
    section.add("table", facts(entries))
    if manifest.get("command"):
        section.add("text", "Command")
        section.add("code", str(manifest["command"]))
    if study:
        settings = json.dumps(study, indent=2, default=str, ensure_ascii=False)
        folded = Section("", "All settings of the study")
        folded.add("code", settings)
        section.add("fold", folded)
    return section


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


def _facts(analysis: Analysis, counts: pd.Series[int]) -> list[tuple[str, str]]:
    left = int(counts.get("skipped", 0)) + int(counts.get("failed", 0))
    methods = analysis.statuses["method"].nunique()
    layers = analysis.statuses["layer"].nunique()
    valid = int(analysis.validity["valid"].sum()) if len(analysis.validity) else 0
    tested = str(len(analysis.validity)) if len(analysis.validity) else "0"
    bad = int(analysis.statuses["images"].sum() - analysis.statuses["ok"].sum())
    return [
        (f"{int(counts.get('ok', 0))}", "tiles judged" + (f", {left} left out" if left else "")),
        (f"{methods} \N{MULTIPLICATION SIGN} {layers}", "methods by layers"),
        (f"{valid} of {tested}", "fills valid for this model"),
        (str(bad), "failed heatmaps"),
    ]


def _marks(analysis: Analysis) -> list[tuple[str, str]]:
    """Explain the marks that can occur."""
    flags = analysis.against_controls
    marks = []
    if len(flags) and flags["beats_random"].notna().any():
        marks.append((DAGGER, "not shown to beat random blobs of the same size"))
    if len(flags) and flags["beats_p_c"].notna().any():
        marks.append((DOUBLE_DAGGER, "not shown to beat the model's own probability map"))
    if bool(np.any(analysis.sweep["struck"].to_numpy(bool))):
        marks.append(("0.123", "struck out: the fill is not valid for this model"))
    return marks
