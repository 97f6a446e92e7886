"""Runs a study in a terminal: tells how it goes, prints what it found, gives the exit code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from segproof.cli.announce import say_plan
from segproof.cli.console import INTERRUPTED, OK, SOME_FAILED, err, log, out, progress, say_error
from segproof.errors import StudyError, TooManyFailedError
from segproof.models import SegmentationModel, keep_blocks
from segproof.report import escape, graceful_stop, print_analysis, render
from segproof.study import (
    Kept,
    Plan,
    Results,
    StopRule,
    Study,
    best_workers,
    check_writable,
    choose_kernels,
    score_distance,
    write_atomic,
)

__all__ = ["finish", "plan_only", "run_study"]


def plan_only(study: Study, *, allow_code: bool, until: StopRule | None) -> int:
    """Try fills and kernels on the first tiles and print the plan; write nothing."""
    keep_blocks()
    if until is not None:
        until.check(len(study.methods) * len(study.layers), study.controls)
    network = study.open_model(allow_code=allow_code)
    source = study.open_data(network)
    plan = choose_kernels(study.plan(network, source), network, source)
    say_plan(score_distance(plan, network, source))
    if until is not None:
        out.print(
            f"The tiles come in random order, and the study stops when it is decided"
            f" ({until.asked}), after {until.least} studied tiles at the earliest.",
            style="dim",
        )
    return OK


class _Narrator:
    """Tells in the terminal how a run goes: what is kept, the plan, then a progress line.

    The progress line begins after the plan is printed and ends before the results are: no text
    stands in the middle of it.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.kept: Kept | None = None
        self._plan: Plan | None = None
        self._undecided = ""
        self._before, self._began = -1, 0  # tiles at the last call, forward passes when they were
        self._line: AbstractContextManager[Callable[..., None]] | None = None
        self._advance: Callable[..., None] = lambda *_: None

    def resumed(self, kept: Kept) -> None:
        self.kept = kept

    def planned(self, plan: Plan) -> None:
        self._plan = plan
        say_plan(plan, self.workers, self.kept)
        self._line = progress("pictures run")
        self._advance = self._line.__enter__()

    def standing(self, text: str) -> None:
        self._undecided = f", {text}"

    def progress(self, done: int, tiles: int, forwards: int) -> None:
        """A tile is the share of its planned forward passes that have been run."""
        if self._plan is None:
            return
        if done != self._before:
            self._began, self._before = forwards, done
        each = self._plan.forwards_per_tile
        share = min(forwards - self._began, each)
        note = f"tile {min(done + 1, tiles)}/{tiles}{self._undecided}"
        self._advance(done * each + share, tiles * each, note)

    def close(self) -> None:
        if self._line is not None:
            self._line.__exit__(None, None, None)
            self._line = None


def run_study(
    study: Study,
    folder: Path,
    *,
    allow_code: bool = False,
    everything: bool = False,
    again: bool = False,
    how: Mapping[str, Any] | None = None,
    network: SegmentationModel | None = None,
) -> int:
    """Run a study into `folder`, print what it found, and return the exit code.

    `everything` prints all tables instead of the ranking, `again` the command of the same study.
    `how` holds arguments of `Study.run`.
    """
    keep_blocks()
    check_writable(folder)
    network = network or study.open_model(allow_code=allow_code)
    source = study.open_data(network)
    how = dict(how or {})
    if "workers" in how and how["workers"] is None:
        how["workers"] = _workers(study, len(source), how)
    narrator = _Narrator(how.get("workers", 1))
    failed: TooManyFailedError | None = None
    with graceful_stop(err) as stop:
        try:
            results = study.run(
                folder,
                model=network,
                data=source,
                allow_code=allow_code,
                progress=narrator.progress,
                stop=stop,
                planned=narrator.planned,
                standing=narrator.standing,
                resumed=narrator.resumed,
                **how,
            )
        except TooManyFailedError as error:
            failed, results = error, Results.load(folder)
        finally:
            narrator.close()
    return _ended(results, failed, everything=everything, again=again)


def _ended(
    results: Results, failed: TooManyFailedError | None, *, everything: bool, again: bool
) -> int:
    """Print how a run ended, and return the exit code of that."""
    counts, tiles = results.manifest["tiles"], results.manifest["data"]["n"]
    done = sum(counts[name] for name in ("ok", "skipped", "failed"))
    decided = results.manifest.get("decided", {}).get("decided", False)
    whole = done == tiles or decided  # what is left of a decided run is not needed
    if counts["ok"] or (whole and not counts["failed"]):
        finish(results, everything=everything, again=again)
    if failed is not None:
        say_error(failed)
        return SOME_FAILED
    if not counts["ok"] and counts["failed"]:
        _say_tiles(counts)
    if not whole:
        log.warning(
            "kept: %d of %d tiles; continue with: %s", done, tiles, results.manifest["command"]
        )
        return INTERRUPTED
    return SOME_FAILED if counts["failed"] else OK


def _workers(study: Study, tiles: int, how: Mapping[str, Any]) -> int:
    """How many processes where the command does not say."""
    if how["threads"] is not None or how["dask"] is not None or study.device != "cpu":
        return 1
    workers = best_workers(min(tiles, study.limit or tiles))
    if workers > 1:
        out.print(f"{workers} processes share tiles and threads (see --workers)")
    return workers


def finish(results: Results, *, everything: bool = False, again: bool = False) -> None:
    """Write report.html and print the verdict and the ranking; `everything`: all tables."""
    if not (results.rows["strategy"] == "original").any():
        reasons = "; ".join(sorted(set(results.tiles["reason"]) - {""})) or "the run was stopped"
        raise StudyError(
            f"no tile that could be studied in {results.folder} ({reasons})",
            "tiles with the class, predicted at least once",
            "check --class, --data and the model",
        )
    page = render(
        results.rows,
        results.tiles,
        results.manifest,
        results.pictures(6),
        analysis=results.analysis,
        scores=results.judged(),
    )
    path = results.folder / "report.html"
    write_atomic(path, lambda stream: stream.write(page.encode()))
    print_analysis(out, results.analysis, everything=everything)
    _say_tiles(results.manifest["tiles"])
    _say_forwards(results.manifest)
    decided = results.manifest.get("decided")
    if decided:
        out.print(f"[bold]{escape(decided['sentence'])}[/]")
        out.print(escape(f"{decided['note']}\n"), style="yellow")
    if again:
        out.print(f"command: {escape(results.manifest['command'])}", soft_wrap=True)
    out.print(f"report: {escape(str(path))}")


def _say_tiles(counts: Mapping[str, Any]) -> None:
    out.print(
        f"tiles: {counts['ok']} ok, {counts['skipped']} skipped, {counts['failed']} failed"
        + "".join(f"\n  {n} x {escape(reason)}" for reason, n in counts["reasons"].items())
    )


def _say_forwards(manifest: Mapping[str, Any]) -> None:
    """Print how many forward passes were planned, and how many of them were needed."""
    run = manifest["forwards"]
    planned = manifest.get("forwards_asked", run)  # earlier versions ran every one
    text = f"forward passes: {planned:,} planned, {run:,} run (identical pictures are run once)"
    out.print(text, style="dim")
