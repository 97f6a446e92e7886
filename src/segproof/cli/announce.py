"""Prints what a study is about to do: its plan, its cost, its fills and its kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segproof.analysis import VALID_DROP
from segproof.cli.console import log, out
from segproof.models import EXACT
from segproof.report import escape
from segproof.study import MAP_MEASURES, Kept, Plan

__all__ = ["say_kernels", "say_plan", "say_shortcut"]


def say_plan(plan: Plan, workers: int = 1, kept: Kept | None = None) -> None:
    """Print what a study will run, how long that takes `workers` processes, and with which kernels.

    `kept`: what an earlier run of the same study left; the time is that of the other tiles.
    """
    study = plan.study
    out.print(
        f"[bold]{escape(study.class_)}[/], preset {study.preset}: {plan.tiles} tiles,"
        f" {len(study.methods)} methods x {len(plan.layers)} layers,"
        f" fills {', '.join(plan.fills)}"
    )
    if plan.outline != "exact":
        why = "" if study.grow or study.roughen else ", since no natural fill is valid without"
        out.print(f"regions: {plan.outline} px{why}")
    for fill, drop in plan.probe.get(plan.outline, {}).items():
        if fill in plan.fills and drop["mean_drop"] < VALID_DROP:
            log.warning(
                "fill %s misleads this network: removing the target changes its confidence by %s;"
                " M1 and IoU drop under it are struck out",
                fill,
                f"{-drop['mean_drop']:+.0%}",
            )
    _say_cost(plan, workers, kept)
    if "asked" in plan.pace:
        say_kernels(plan.pace)
    for layer, distance in plan.pace.get("score_cam", {}).get("layers", {}).items():
        say_shortcut(layer, distance)
    if study.measures:
        spent = ", ".join(f"{name} {MAP_MEASURES[name].forwards}" for name in study.measures)
        out.print(f"forward passes of further measures, for each map: {spent}", style="dim")


def _say_cost(plan: Plan, workers: int, kept: Kept | None) -> None:
    each = plan.pace["seconds"][plan.pace["taken"]]
    seconds = plan.forwards * each / workers
    if kept is not None:
        # tiles that were studied tell more than the plan, which counts identical pictures twice
        remaining = (kept.of - kept.done) * plan.forwards_per_tile * each / workers
        seconds = remaining if kept.seconds is None else kept.seconds_left(workers) or 0.0
        out.print(
            f"continuing: {kept.done} of {kept.of} tiles done, about {seconds / 60:.0f} min left"
        )
        return
    out.print(
        f"up to {plan.forwards_per_tile:,} forward passes a tile, {plan.forwards:,} in all; about"
        f" {seconds / 60:.0f} min at {each * 1000:.0f} ms each (identical pictures are run once,"
        " so usually fewer)",
        style="dim",
    )


def say_shortcut(layer: str, distance: Mapping[str, float]) -> None:
    """Print how far Score-CAM of some channels is from that of all."""
    out.print(
        f"score_cam at {escape(layer)} runs {distance['shown']:.0f} pictures instead of"
        f" {distance['exact']:.0f}: Spearman correlation with the exact map"
        f" {distance['spearman']:.2f} (lowest {distance['spearman_min']:.2f}), IoU of the highest"
        f" 20 % {distance['iou']:.2f} ({distance['iou_min']:.2f}), {distance['tiles']:.0f} tiles",
        style="dim",
    )


def say_kernels(pace: Mapping[str, Any]) -> None:
    """Print which kernels were taken, how fast each is, and by how much it changes the measures."""
    for name, seconds in pace["seconds"].items():
        differences = pace["differences"].get(name)
        worst = f", measures differ by up to {max(differences.values()):.4f}" if differences else ""
        orders = pace.get("orders", {}).get(name)
        if orders:
            pairs = sum(order["pairs"] - order["tied"] for order in orders.values())
            turned = sum(order["reversed"] for order in orders.values())
            worst += f", {turned} of {pairs} pairs of methods and layers change places"
        taken = ": taken" if name == pace["taken"] else ""
        out.print(f"{name}: {seconds * 1000:.0f} ms a forward pass{worst}{taken}", style="dim")
    exact, taken = (pace["seconds"][name] for name in (EXACT.name, pace["taken"]))
    if taken > exact:
        log.warning(
            "%s is %.1f times as slow as %s on this machine; use --precision auto, or leave it out",
            pace["taken"],
            taken / exact,
            EXACT.name,
        )
    for name, reason in pace["failed"].items():
        log.warning("%s cannot be used here (%s)", name, reason)
