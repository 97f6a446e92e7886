"""Runs a study: settings that look at a model and data, plan their pictures, and study tiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from segproof.choices import Asked
from segproof.data import SampleSource
from segproof.errors import DataError, StudyError, TooManyFailedError, printable
from segproof.models import Kernels, SegmentationModel, halving
from segproof.study.early_stop import EarlyStop, StopRule, shuffled
from segproof.study.files import check_writable
from segproof.study.fill_check import OUTLINES, choose_fills, choose_outline, probe_fills
from segproof.study.manifest import manifest_of
from segproof.study.plan import FIGURES, Plan
from segproof.study.results import Results, table_of
from segproof.study.settings import Settings
from segproof.study.speed import choose_kernels, score_distance
from segproof.study.store import Kept, RunStore, TileResult
from segproof.study.tile import OUT_OF_MEMORY, digest_or_none, study_tile
from segproof.study.workers import (
    Job,
    WorkerSlot,
    digest_of_names,
    on_dask,
    on_executor,
    on_processes,
    run_on_workers,
    threads_of_each,
    with_threads,
)

__all__ = ["Listeners", "Run", "Study"]

Progress = Callable[[int, int, int], None]
MOST_FAILED: Final = 0.05  # of the tiles: with more something else is wrong
CHOSEN: Final = ("fills", "outline", "probe", "kernels", "pace")  # what a run keeps to its end
WORKER: Final = "worker"  # how the reason of a tile begins whose worker died


class Study(Settings):
    """A study of the explanations of one model on one set of tiles; fields: see `Settings`."""

    def plan(
        self, model: SegmentationModel | None = None, data: SampleSource | None = None
    ) -> Plan:
        """Resolve names, look at the model and the data, choose the fills, count the forwards.

        Raises:
            SegproofError: any setting that does not fit this model or this data.
        """
        model = self.open_model() if model is None else model
        data = self.open_data(model) if data is None else data
        return _with_fills(self, self._resolved(model, data), model, data)

    def _resolved(self, model: SegmentationModel, data: SampleSource) -> Plan:
        """Class, layers and tiles looked up, before anything is written; no fills yet."""
        index = model.class_index(self.class_)
        count = len(data) if self.limit is None else min(self.limit, len(data))
        if not count:
            raise DataError("a data set without a tile", "at least one", "check --data")
        size, bands = self.shown_size(model, data)
        paths = {name: model.resolve_layer(name, size) for name in self.layers}
        if len(set(paths.values())) != len(paths):
            raise StudyError(f"one layer twice in {list(paths)}", "distinct layers", "remove one")
        shapes = {layer.path: layer for layer in model.layers(size, bands)}
        return Plan(
            study=self,
            layers=paths,
            shapes=tuple(shapes[path] for path in paths.values() if path in shapes),
            fills=(),
            probe={},
            tiles=count,
            class_index=index,
            shape=(bands, *size),
        )

    def shown_size(
        self, model: SegmentationModel, data: SampleSource
    ) -> tuple[tuple[int, int], int]:
        """Height and width of the first tile as the network is shown it, and its bands."""
        size, bands = _first_size(data)
        if self.pad:
            below, right = model.padding(size)
            size = (size[0] + below, size[1] + right)
        return size, bands

    def replanned(
        self, model: SegmentationModel, data: SampleSource, chosen: Mapping[str, Any]
    ) -> Plan:
        """The plan of a run that began before, with what it chose (CHOSEN)."""
        return _kept(self._resolved(model, data), chosen)

    def run(
        self,
        out: str | Path,
        *,
        executor: Executor | None = None,
        model: SegmentationModel | None = None,
        data: SampleSource | None = None,
        workers: int = 1,
        threads: int | None = None,
        dask: str | None = None,
        keep_going: bool = False,
        allow_code: bool = False,
        until_decided: StopRule | Asked | None = None,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
        planned: Callable[[Plan], None] | None = None,
        standing: Callable[[str], None] | None = None,
        resumed: Callable[[Kept], None] | None = None,
    ) -> Results:
        """Study every tile and write `out`: run.db, then results.parquet, results.csv,
        manifest.json.

        A folder of the same study is resumed; failed tiles are tried again where their files
        changed, or where memory or a worker was what failed. `model` and `data` replace those of
        the settings. Tiles are shared by `workers` processes of `threads` each (another number
        of threads changes the last bits of the numbers), the workers of the scheduler at
        `dask`, or any `executor`; they open model and tiles themselves, with `allow_code` also
        python: ones. `until_decided` studies them in a random order, drawn by the seed, and stops
        when the question is settled (see `StopRule`); without it such a run is resumed to the last
        tile. `progress`, `stop`, `planned`, `standing` and `resumed` are those of `Listeners`.

        Raises:
            StudyError: another study in `out`, a folder in use, workers without these files.
            TooManyFailedError: more than 5 % of the tiles failed, unless `keep_going`.
            DiskError: `out` cannot be written.
        """
        for name, count in (("workers", workers), ("threads", threads)):
            if count is not None and count < 1:
                raise StudyError(f"{name} {count}", "1 or more", f"give --{name} or leave it out")
        if (executor is not None) + (dask is not None) + (workers > 1) > 1:
            raise StudyError(
                f"workers {workers}, dask {dask} and executor {executor}", "one way", "choose one"
            )
        rule = StopRule(until_decided) if isinstance(until_decided, str) else until_decided
        if rule is not None:
            rule.check(len(self.methods) * len(self.layers), self.controls)
        started = time.perf_counter()
        check_writable(out)
        if workers > 1:
            threads = threads_of_each(workers, threads)  # those of the plan too
        slots = _slots(self, executor, workers, threads, dask)
        model = self.open_model(allow_code=allow_code) if model is None else model
        data = self.open_data(model) if data is None else data
        resolved = halving(lambda _: self._resolved(model, data), 1)
        listeners = Listeners(progress, stop, planned, standing, resumed)
        with RunStore(out, self._identity(model, data)) as store, with_threads(threads):
            run = Run(self, store, model, data, rule, listeners, keep_going, started)
            positions = run.start(resolved)
            tiles = run.on_slots(slots, positions, allow_code) if slots else run.here(positions)
            with closing(tiles):
                for tile in tiles:
                    # workers do not tell of single batches
                    run.tile_done(tile, tile.forwards if slots else 0)
                    if run.too_many_failed or (not slots and run.enough()):
                        break
            return run.finish()

    def _identity(self, model: SegmentationModel, data: SampleSource) -> dict[str, Any]:
        """What ties a run folder to this study: settings, weights, code and the list of tiles."""
        return {
            **self.identity(),
            "weights": model.fingerprint(),
            "version": version("segproof"),
            "tiles": digest_of_names(data.ids),
        }


@dataclass(frozen=True)
class Listeners:
    """Whom a run tells how it goes.

    `progress(tiles done, tiles, forwards)` is called after each batch; `stop()` is asked after each
    tile; `planned(plan)` is told once, before the first tile; `standing(text)` how much is
    undecided; `resumed(kept)` what an earlier run left, before `planned`.
    """

    progress: Progress | None = None
    stop: Callable[[], bool] | None = None
    planned: Callable[[Plan], None] | None = None
    standing: Callable[[str], None] | None = None
    resumed: Callable[[Kept], None] | None = None


class Run:
    """A study at work in a run folder: what is open, what is finished, and when it is enough.

    `start` plans and says which tiles are open, `tile_done` stores one of them, `finish` exports
    what there is. The store is the truth: all that this object counts is read from it at the
    start, so that a run can end at any moment and be resumed.
    """

    def __init__(
        self,
        study: Study,
        store: RunStore,
        model: SegmentationModel,
        data: SampleSource,
        rule: StopRule | None,
        listeners: Listeners,
        keep_going: bool,
        started: float,
    ) -> None:
        self.study, self.store, self.model, self.data = study, store, model, data
        self.rule, self.tell, self.keep_going, self.started = rule, listeners, keep_going, started
        self.names = list(data.ids)
        self.plan: Plan
        self.early_stop: EarlyStop | None = None
        self.finished = 0  # tiles, those of earlier runs included
        self.forwards = 0  # of this process and its workers since the start
        self.failures: list[str] = []

    def start(self, resolved: Plan) -> list[int]:
        """Choose what the plan leaves open, and return the positions of the tiles to study."""
        study, store = self.study, self.store
        # settings and count come first: `status` is asked while fills are still tried
        store.put(
            settings=study.model_dump(mode="json", by_alias=True),
            count=resolved.tiles,
            began=time.time(),
        )
        plan = halving(lambda _: self._chosen(resolved), 1)
        finished = store.done()
        self.drawn = self.rule is not None and bool(store.get("drawn") or not finished)
        # the rate of `status` counts from here: choosing fills took no tile
        store.put(began=time.time(), shown=plan.pictures_per_tile, drawn=self.drawn)
        if self.rule is not None or store.get("until"):
            store.put(until=[] if self.rule is None else self.rule.flags())
        positions = self._open_positions(plan.tiles)
        if finished and self.tell.resumed is not None:
            self.tell.resumed(Kept(plan.tiles - len(positions), plan.tiles, store.mean_seconds()))
        if self.tell.planned is not None:
            self.tell.planned(plan)
        still_open = set(positions)
        if self.rule is not None:
            self.early_stop = self._followed(self.rule, plan.tiles, still_open)
            order = self.early_stop.order
            positions = [position for position in order if position in still_open]
            plan = replace(plan, pictured=tuple(order[:FIGURES]))
        self.plan = plan
        reopened = {self.names[position] for position in positions}
        self.failures = [why for name, why in store.failed().items() if name not in reopened]
        self.finished = plan.tiles - len(positions)
        self._tell_standing()
        if self.too_many_failed or self._decided:
            positions = []
        self._tick(0)
        return positions

    def here(self, positions: Sequence[int]) -> Generator[TileResult, None, None]:
        """Study tiles in this process, one after the other."""
        for position in positions:
            yield study_tile(self.plan, self.model, self.data, position, self._tick)

    def on_slots(
        self, slots: Sequence[WorkerSlot], positions: Sequence[int], allow_code: bool
    ) -> Generator[TileResult, None, None]:
        """Study tiles on workers; they come as workers finish them."""
        job = Job(
            self.plan,
            self.model.fingerprint(),
            digest_of_names(self.data.ids),
            version("segproof"),
            allow_code,
        )
        yield from run_on_workers(job, positions, slots, self._given_up, self.enough)

    def tile_done(self, tile: TileResult, forwards: int = 0) -> None:
        """Store a finished tile, before anybody is told of it; `forwards` are those that were not
        told of yet.
        """
        self.store.write(tile)
        self.finished += 1
        if self.early_stop is not None:
            self.early_stop.add(tile.position, table_of(tile.rows))
        self._tell_standing()
        self._tick(forwards)
        if tile.status == "failed":
            self.failures.append(f"{tile.sample}: {tile.reason}")

    def finish(self) -> Results:
        """Write the exports and return them.

        Raises:
            TooManyFailedError: more than 5 % of the tiles failed, and the run was not to go on.
        """
        store, plan = self.store, self.plan
        seconds = (store.get("seconds") or 0.0) + time.perf_counter() - self.started
        decided = None if self.early_stop is None else self.early_stop.record()
        if self.early_stop is not None and self._decided and self.drawn:
            # what workers had finished beyond would depend on which of them was faster
            store.keep_only(self.names[position] for position in self.early_stop.beginning)
        store.put(seconds=seconds, decided=decided)
        results = Results.load(store.folder)
        manifest = manifest_of(plan, self.model, self.data, results, seconds)
        if decided is not None:
            manifest["decided"] = decided
        flags = () if self.rule is None else self.rule.flags()
        results.export({**manifest, "command": self.study.command(store.folder, flags)})
        if self.too_many_failed:
            raise TooManyFailedError(
                f"{len(self.failures)} of {plan.tiles} tiles failed, {self.finished} studied; the"
                f" last: {self.failures[-1]}",
                f"at most {MOST_FAILED:.0%}",
                "mend them (`segproof check` lists them all) or pass --keep-going; the same command"
                " continues from here",
            )
        return Results.load(store.folder)

    @property
    def too_many_failed(self) -> bool:
        """Whether more than 5 % of the tiles failed, so that something else is wrong."""
        over = len(self.failures) > MOST_FAILED * self.plan.tiles
        return over and self.finished < self.plan.tiles and not self.keep_going

    def enough(self) -> bool:
        """Whether no further tile is to be begun: somebody said stop, or all is decided."""
        return (self.tell.stop is not None and self.tell.stop()) or self._decided

    @property
    def _decided(self) -> bool:
        return self.early_stop is not None and self.early_stop.decided

    def _tick(self, forwards: int) -> None:
        self.forwards += forwards
        if self.tell.progress is not None:
            self.tell.progress(self.finished, self.plan.tiles, self.forwards)

    def _tell_standing(self) -> None:
        if self.early_stop is not None and self.tell.standing is not None:
            self.tell.standing(self.early_stop.standing())

    def _given_up(self, position: int, why: str) -> TileResult:
        """The failed tile that stands for one whose worker died."""
        digest = digest_or_none(self.data, position)
        reason = printable(f"{WORKER}: {why}")
        return TileResult(self.names[position], position, "failed", reason, digest=digest)

    def _chosen(self, resolved: Plan) -> Plan:
        """The plan with fills, outline and kernels; a resumed run keeps those it began with."""
        if self.store.get("fills") is not None:
            return _kept(resolved, {name: self.store.get(name) for name in CHOSEN})
        model, data = self.model, self.data
        plan = choose_kernels(_with_fills(self.study, resolved, model, data), model, data)
        plan = score_distance(plan, model, data)
        self.store.put(
            probe=plan.probe,
            outline=[plan.grow, plan.roughen],
            kernels=[plan.kernels.precision, plan.kernels.channels_last],
            pace=plan.pace,
            fills=plan.fills,
        )
        return plan

    def _followed(self, rule: StopRule, count: int, still_open: Collection[int]) -> EarlyStop:
        """The early stop of this run, told of the tiles that are finished."""
        early_stop = EarlyStop(rule, shuffled(count, self.study.seed), self.study.preset)
        if len(still_open) < count:
            rows = Results.load(self.store.folder).rows
            by_name = dict(iter(rows.groupby("sample", sort=False)))
            for position in sorted(set(range(count)) - set(still_open)):
                early_stop.add(position, by_name.get(self.names[position], rows.iloc[:0]))
        return early_stop

    def _open_positions(self, count: int) -> list[int]:
        """Tiles that are not finished, and failed ones that may succeed now."""
        done, failed = self.store.done(), self.store.failed()
        still_open: list[int] = []
        for position, name in enumerate(self.names[:count]):
            if name not in done:
                still_open.append(position)
                continue
            same = done[name] == digest_or_none(self.data, position)
            if name in failed:
                # a mended file, or a machine that had too little of something
                machine = failed[name].startswith((f"{OUT_OF_MEMORY}:", f"{WORKER}:"))
                still_open += [position] if machine or not same else []
            elif not same:
                raise StudyError(
                    f"tile {name} changed since it was studied",
                    "the same pixels",
                    "use another --out",
                )
        return still_open


def _with_fills(study: Settings, plan: Plan, model: SegmentationModel, data: SampleSource) -> Plan:
    """The resolved plan with fills and outline named, or chosen by trying them on the first
    tiles.
    """
    probe, forwards = probe_fills(study, model, data, plan.tiles)
    outline = choose_outline(probe)
    fills = study.fills or choose_fills(study, probe.get(outline, {}))
    grow, roughen = OUTLINES.get(outline, (study.grow, study.roughen))
    return replace(
        plan, fills=fills, probe=probe, probe_forwards=forwards, grow=grow, roughen=roughen
    )


def _slots(
    study: Settings,
    executor: Executor | None,
    workers: int,
    threads: int | None,
    dask: str | None,
) -> list[WorkerSlot]:
    """Where tiles are studied; none: in this process."""
    if executor is not None:
        return on_executor(executor)
    if dask is not None:
        return on_dask(dask)
    return on_processes(workers, study.device, threads) if workers > 1 else []


def _kept(resolved: Plan, chosen: Mapping[str, Any]) -> Plan:
    grow, roughen = chosen["outline"]
    return replace(
        resolved,
        fills=tuple(chosen["fills"]),
        probe=chosen["probe"],
        grow=grow,
        roughen=roughen,
        kernels=Kernels(*chosen["kernels"]),
        pace=chosen["pace"],
    )


def _first_size(data: SampleSource) -> tuple[tuple[int, int], int]:
    """Height, width and bands of the first tile that can be read."""
    first: DataError | None = None
    for position in range(len(data)):
        try:
            bands, height, width = data[position]["image"].shape
        except DataError as error:
            first = first or error  # one bad tile is reported with its reason when it is studied
            continue
        return (height, width), bands
    if first is None:
        raise DataError("a data set without a tile", "at least one", "check --data")
    raise DataError(
        f"{len(data)} tiles, none readable; the first: {first.found}", first.expected, first.fix
    ) from first
