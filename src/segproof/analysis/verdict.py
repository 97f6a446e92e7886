"""Says in plain sentences which method and layer deserve trust."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from segproof.analysis.basis import Basis, Headline
from segproof.analysis.names import measure_label, method_label

if TYPE_CHECKING:
    from segproof.explain import Preset

__all__ = ["verdict_of"]


def verdict_of(basis: Basis, ranking: pd.DataFrame) -> str:
    """Say in plain sentences which method and layer deserve trust for this model and data.

    `ranking` is `tables.ranking(basis)`.
    """
    at, measure = basis.headline, basis.measure
    if basis.methods.empty:
        return "No verdict: no method was measured, only controls."
    reason = _reason(basis)
    ranked = ranking[ranking["n"] > 0]
    if ranked.empty:
        return reason + "No verdict: no heatmap could be judged (see the counts of statuses)."
    return reason + _sentence(ranked, at, measure) + _caveats(at, basis.preset)


def _reason(basis: Basis) -> str:
    """Why the answer goes by another measure than the contrast; empty where it does not."""
    at, strict = basis.headline, basis.preset == "strict"
    if at.valid is False:
        tested = basis.validity
        line = tested[(tested["reference"] == at.reference) & (tested["fill"] == at.fill)]
        drop = float(line["mean_drop"].iloc[0])
        change = (
            f"lowers its confidence by only {100 * drop:.0f} %"
            if drop >= 0
            else f"raises its confidence by {-100 * drop:.0f} %"
        )
        what = "M1, IoU drop and the contrast" if strict else "M1 and IoU drop"
        return (
            f"No fill that was used is valid for this model: removing exactly the target with "
            f"{at.fill} {change}, so {what} measure outlines"
            + (
                " and rank nothing; methods are ranked by M3 instead. "
                if strict
                else "; they rank methods all the same, as published. "
            )
        )
    if basis.measure == "iou_drop" and strict:
        return (
            "No M2 was measured, so methods are ranked by IoU drop, which cannot see that a part "
            "of the cause is missing. "
        )
    return ""


def _p(value: float) -> str:
    if value < 0.001:
        return "p < 0.001"
    return f"p = {value:.3f}" if value < 0.01 else f"p = {value:.2f}"


def _listed(items: Sequence[str], limit: int = 4) -> str:
    """Names in a row, at most `limit` of them."""
    named = list(items[:limit])
    if len(items) > limit:
        named.append(f"{len(items) - limit} more")
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]


def _sentence(ranked: pd.DataFrame, at: Headline, measure: str) -> str:
    """The winner, those not distinguishable from it, and those that fail the controls."""
    top = ranked.iloc[0]
    several = ranked["layer"].nunique() > 1

    def name(line: Any) -> str:
        return method_label(line["method"]) + (f" at {line['layer']}" if several else "")

    value = f"{measure_label(measure).split(' (')[0]} {top['mean']:.3f}"
    if np.isfinite(top["low"]):
        value += f", 95 % interval {top['low']:.3f} to {top['high']:.3f}"
    tiles = f"{int(top['n'])} tile" + ("" if top["n"] == 1 else "s")
    where = f"For this model on {'this' if top['n'] == 1 else 'these'} {tiles}, "
    kind = "at matched area" if at.binarisation == "area" else "at fixed thresholds"
    failed = _is_false(top["beats_random"])
    if failed:
        beats = "beats" if bool(top["decidable"]) else "is shown to beat"
        text = (
            f"{where}no method {beats} the controls: the best, {name(top)} ({value}, {kind}, fill "
            f"{at.fill}), is not shown to be better than random blobs of the same size."
        )
    else:
        claim = "ranks first" if measure == "M3" else "is the most faithful"
        if not bool(top["decidable"]):
            claim = "leads"
        text = f"{where}{name(top)} {claim} ({value}, {kind}, fill {at.fill})."
    others = [
        f"{name(line)} ({_p(line['p_vs_best'])})"
        for _, line in ranked.iloc[1:].iterrows()
        if line["in_best_group"]
    ]
    if not bool(top["decidable"]):
        text += (
            f" {tiles[:1].upper() + tiles[1:]} cannot tell the {len(ranked)} candidates apart "
            f"({int(top['needed'])} would be needed), so the order is not settled."
        )
    elif others:
        verb = "is" if len(others) == 1 else "are"
        text += f" Not distinguishable from it {verb} {_listed(others)}."
    if not failed:
        for flag, what in (
            ("beats_random", "random blobs of the same size"),
            ("beats_p_c", "the model's own probability map"),
        ):
            lost = [name(line) for _, line in ranked.iterrows() if _is_false(line[flag])]
            text += _lost(lost, len(ranked), what)
    return text


def _is_false(flag: Any) -> bool:
    """True for False, but not for NA: an untested control is not a lost one."""
    return bool(pd.notna(flag)) and not flag


def _lost(lost: list[str], total: int, what: str) -> str:
    if not lost:
        return ""
    if len(lost) == total:
        return f" No candidate beats {what}."
    if len(lost) > 4:
        return f" {len(lost)} of the {total} candidates do not beat {what}."
    return f" {_listed(lost)} {'does' if len(lost) == 1 else 'do'} not beat {what}."


def _caveats(at: Headline, preset: Preset) -> str:
    text = ""
    if at.binarisation != "area":
        text += " The size of the regions was not controlled."
    if at.valid is None:
        text += " Whether the fill is valid for this model was not tested."
    if preset == "paper":
        text += " This is the published protocol, faults included."
    return text
