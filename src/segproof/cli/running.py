"""Runs a study in a terminal: its plan, its progress, its tables and its exit code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segproof.analysis import VALID_DROP
from segproof.cli.console import INTERRUPTED, OK, SOME_FAILED, err, out, progress
from segproof.errors import StudyError, TooManyFailedError
from segproof.models import EXACT, SegmentationModel, keep_blocks
from segproof.report import escape, graceful_stop, print_tables, render
from segproof.study import (
    MAP_MEASURES,
    Plan,
    Results,
    StopRule,
    Study,
    best_workers,
    choose_kernels,
    probe,
    score_distance,
    write_atomic,
)


def plan_only(chosen: Study, *, allow_code: bool, until: StopRule | None) -> int:
    """Fills and kernels are tried on the first tiles; nothing is studied or written."""
    keep_blocks()
    if until is not None:
        until.check(len(chosen.methods) * len(chosen.layers), chosen.controls)
    network = chosen.open_model(allow_code=allow_code)
    source = chosen.open_data(network)
    plan = choose_kernels(chosen.plan(network, source), network, source)
    say_plan(score_distance(plan, network, source))
    if until is not None:
        out.print(
            f"in random order, and less where it is decided before ({until.asked}; after"
            f" {until.least} judged tiles at least)",
            style="dim",
        )
    return OK


def run_study(
    chosen: Study,
    folder: Path,
    *,
    allow_code: bool = False,
    brief: bool = False,
    how: Mapping[str, Any] | None = None,
    network: SegmentationModel | None = None,
) -> int:
    """Run a study into `folder`, print what it found; the exit code. `brief`: the ranking alone."""
    keep_blocks()
    probe(folder)
    network = network or chosen.open_model(allow_code=allow_code)
    source = chosen.open_data(network)
    how = dict(how or {})
    if "workers" in how and how["workers"] is None:
        how["workers"] = _workers(chosen, len(source), how)
    with graceful_stop(err) as stop, progress("pictures shown") as advance:
        plan: Plan | None = None
        began, before = 0, -1
        undecided = ""

        def say_undecided(text: str) -> None:
            nonlocal undecided
            undecided = f", {text}"

        def announce(made: Plan) -> None:
            nonlocal plan
            plan = made
            say_plan(made, how.get("workers", 1))

        def show(done: int, tiles: int, forwards: int) -> None:
            nonlocal began, before
            if plan is None:
                return
            if done != before:
                began, before = forwards, done
            share = min(forwards - began, plan.forwards_per_tile)
            total = tiles * plan.forwards_per_tile
            note = f"tile {min(done + 1, tiles)}/{tiles}{undecided}"
            advance(done * plan.forwards_per_tile + share, total, note)

        failed: TooManyFailedError | None = None
        try:
            results = chosen.run(
                folder,
                model=network,
                data=source,
                allow_code=allow_code,
                progress=show,
                stop=stop,
                planned=announce,
                standing=say_undecided,
                **how,
            )
        except TooManyFailedError as error:
            failed, results = error, Results.load(folder)
    counts = results.manifest["tiles"]
    open_ = results.manifest["data"]["n"] - sum(
        counts[name] for name in ("ok", "skipped", "failed")
    )
    if results.manifest.get("decided", {}).get("decided"):
        open_ = 0  # what is left is not needed
    if counts["ok"] or not (open_ or counts["failed"]):
        finish(results, brief=brief)
    if failed is not None:
        err.print(f"error: {escape(str(failed))}", style="red", highlight=False)
        return SOME_FAILED
    if not counts["ok"] and counts["failed"]:
        say_tiles(counts)
    if open_:
        err.print("stopped: the same command goes on where this one ended", style="yellow")
        return INTERRUPTED
    return SOME_FAILED if counts["failed"] else OK


def _workers(chosen: Study, tiles: int, how: Mapping[str, Any]) -> int:
    """How many processes where the command does not say."""
    if how["threads"] is not None or how["dask"] is not None or chosen.device != "cpu":
        return 1
    workers = best_workers(min(tiles, chosen.limit or tiles))
    if workers > 1:
        out.print(f"{workers} processes share tiles and threads (see --workers)")
    return workers


def say_plan(plan: Plan, workers: int = 1) -> None:
    """What will be shown, how long that takes so many processes, and with which kernels."""
    each = plan.pace["seconds"][plan.pace["taken"]]
    minutes = plan.forwards * each / 60 / workers
    chosen = plan.study
    out.print(
        f"[bold]{escape(chosen.class_)}[/], preset {chosen.preset}: {plan.tiles} tiles,"
        f" {len(chosen.methods)} methods x {len(plan.layers)} layers,"
        f" fills {', '.join(plan.fills)}"
    )
    if plan.outline != "exact":
        asked = chosen.grow or chosen.roughen
        why = "" if asked else ", since no natural fill is valid without"
        out.print(f"regions: {plan.outline} px{why}")
    for fill, found in plan.probe.get(plan.outline, {}).items():
        if fill in plan.fills and found["mean_drop"] < VALID_DROP:
            err.print(
                f"fill {fill} misleads this network (removing the target changes its confidence by"
                f" {-found['mean_drop']:+.0%}); M1 and IoU drop under it are struck out",
                style="yellow",
            )
    out.print(
        f"at most {plan.forwards_per_tile:,} forwards a tile, {plan.forwards:,} in all;"
        f" about {minutes:.0f} min at {each * 1000:.0f} ms each (what is asked for twice is shown"
        " once; how much that is, the maps will tell)",
        style="dim",
    )
    if "asked" in plan.pace:
        say_kernels(plan.pace)
    for layer, found in plan.pace.get("score_cam", {}).get("layers", {}).items():
        say_shortcut(layer, found)
    if chosen.measures:
        spent = ", ".join(f"{name} {MAP_MEASURES[name].forwards}" for name in chosen.measures)
        out.print(f"and for each map by further measures, in forwards: {spent}", style="dim")


def say_shortcut(layer: str, found: Mapping[str, float]) -> None:
    """How far Score-CAM of some channels is from that of all."""
    out.print(
        f"score_cam at {escape(layer)} shows {found['shown']:.0f} pictures instead of"
        f" {found['exact']:.0f}: Spearman correlation with the exact map {found['spearman']:.2f}"
        f" (lowest {found['spearman_min']:.2f}), IoU of the highest 20 %"
        f" {found['iou']:.2f} ({found['iou_min']:.2f}), {found['tiles']:.0f} tiles",
        style="dim",
    )


def say_kernels(pace: Mapping[str, Any]) -> None:
    """Which kernels were taken, how fast each is, and by how much each changes the measures."""
    for name, seconds in pace["seconds"].items():
        found = pace["differences"].get(name)
        worst = f", measures differ by up to {max(found.values()):.4f}" if found else ""
        order = pace.get("orders", {}).get(name)
        if order:
            pairs = sum(found["pairs"] - found["tied"] for found in order.values())
            turned = sum(found["reversed"] for found in order.values())
            worst += f", {turned} of {pairs} pairs of methods and layers change places"
        taken = ": taken" if name == pace["taken"] else ""
        out.print(f"{name}: {seconds * 1000:.0f} ms a forward{worst}{taken}", style="dim")
    exact, taken = (pace["seconds"][name] for name in (EXACT.name, pace["taken"]))
    if taken > exact:
        err.print(
            f"{pace['taken']} is {taken / exact:.1f} times as slow as {EXACT.name} on this machine:"
            " --precision auto, or leave it out",
            style="yellow",
        )
    for name, reason in pace["failed"].items():
        err.print(f"{name} cannot be used here ({escape(reason)})", style="yellow")


def finish(results: Results, *, brief: bool = False) -> None:
    """Write report.html and print the three tables and the verdict; `brief`: the ranking alone."""
    rows = results.rows
    if not (rows["strategy"] == "original").any():
        reasons = "; ".join(sorted(set(results.tiles["reason"]) - {""})) or "the run was stopped"
        raise StudyError(
            f"no tile that could be studied in {results.folder} ({reasons})",
            "tiles with the class, predicted at least once",
            "check --class, --data and the model",
        )
    made = results.analysis
    page = render(
        rows,
        results.tiles,
        results.manifest,
        results.pictures(6),
        made=made,
        judged=results.judged(),
    )
    path = results.folder / "report.html"
    write_atomic(path, lambda stream: stream.write(page.encode()))
    print_tables(out, made, brief=brief)
    say_tiles(results.manifest["tiles"])
    say_forwards(results.manifest)
    out.print(f"\n[bold]{escape(made.verdict)}[/]\n")
    decided = results.manifest.get("decided")
    if decided:
        out.print(f"[bold]{escape(decided['sentence'])}[/]")
        out.print(escape(f"{decided['note']}\n"), style="yellow")
    if brief:
        out.print(f"again: {escape(results.manifest['command'])}", soft_wrap=True)
    out.print(f"report: {escape(str(path))}")


def say_tiles(counts: Mapping[str, Any]) -> None:
    """Print how many tiles ended how, and why."""
    out.print(
        f"tiles: {counts['ok']} ok, {counts['skipped']} skipped, {counts['failed']} failed"
        + "".join(f"\n  {n} x {escape(reason)}" for reason, n in counts["reasons"].items())
    )


def say_forwards(manifest: Mapping[str, Any]) -> None:
    """Forwards that were asked for and those that were needed."""
    spent = manifest["forwards"]
    asked = manifest.get("forwards_asked", spent)  # runs of an earlier version showed all
    out.print(f"forwards: {asked:,} asked for, {spent:,} shown", style="dim")
