"""A study: settings that look at a model and data, plan what they will show, and run."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Collection, Generator, Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from segproof.data import FolderDataset, SampleSource
from segproof.errors import DataError, StudyError, TooManyFailedError, printable
from segproof.models import Kernels, SegmentationModel, halving
from segproof.study.early_stop import Asked, EarlyStop, StopRule, shuffled
from segproof.study.fill_check import OUTLINES, choose_fills, choose_outline, probe_fills
from segproof.study.results import Results, RunStore, TileResult, probe
from segproof.study.settings import Settings
from segproof.study.speed import choose_kernels, score_distance
from segproof.study.tile import OUT_OF_MEMORY, PICTURES, Plan, digest_or_none, study_tile
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

__all__ = ["Study"]

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
        return self._with_fills(self._resolved(model, data), model, data)

    def _with_fills(self, plan: Plan, model: SegmentationModel, data: SampleSource) -> Plan:
        """The resolved plan with fills and outline named, or chosen by trying them on the first
        tiles.
        """
        probe, forwards = probe_fills(self, model, data, plan.tiles)
        outline = choose_outline(probe)
        fills = self.fills or choose_fills(self, probe.get(outline, {}))
        grow, roughen = OUTLINES.get(outline, (self.grow, self.roughen))
        return replace(
            plan, fills=fills, probe=probe, probe_forwards=forwards, grow=grow, roughen=roughen
        )

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
    ) -> Results:
        """Study every tile and write `out`: run.db, then results.parquet, results.csv,
        manifest.json.

        A folder of the same study is gone on with; failed tiles are tried again where their files
        changed, or where memory or a worker was what failed. `model` and `data` replace those of
        the settings. Tiles are spread over `workers` processes of `threads` each (another number
        of threads changes the last bits of the numbers), the workers of the scheduler at
        `dask`, or any `executor`; they open model and tiles themselves, with `allow_code` also
        python: ones. `until_decided` studies them in a random order, drawn by the seed, and stops
        when the question is settled (see `StopRule`); without it such a run is gone on with to the
        last tile. `progress(tiles done, tiles, forwards)` is called after each batch; `stop()` is
        asked after each tile, `planned(plan)` told once before the first one, `standing(text)` how
        much is undecided.

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
        until = StopRule(until_decided) if isinstance(until_decided, str) else until_decided
        if until is not None:
            until.check(len(self.methods) * len(self.layers), self.controls)
        started = time.perf_counter()
        probe(out)
        if workers > 1:
            threads = threads_of_each(workers, threads)  # those of the plan too
        lanes = self._lanes(executor, workers, threads, dask)
        model = self.open_model(allow_code=allow_code) if model is None else model
        data = self.open_data(model) if data is None else data
        resolved = halving(lambda _: self._resolved(model, data), 1)
        with RunStore(out, self._identity(model, data)) as store, with_threads(threads):
            store.put(
                settings=self.model_dump(mode="json", by_alias=True),
                count=resolved.tiles,
                began=time.time(),
            )
            plan = halving(lambda _: self._stored_plan(store, resolved, model, data), 1)
            drawn = until is not None and bool(store.get("drawn") or not store.done())
            store.put(began=time.time(), shown=plan.shown_per_tile, drawn=drawn)
            if planned is not None:
                planned(plan)
            positions = self._open_positions(store, data, plan.tiles)
            names = list(data.ids)
            still = set(positions)
            watch = None if until is None else self._watched(until, store, names, still)
            if watch is not None:
                positions = [position for position in watch.order if position in still]
                plan = replace(plan, pictured=tuple(watch.order[:PICTURES]))
            reopened = {names[position] for position in positions}
            reasons = [why for name, why in store.failed().items() if name not in reopened]
            finished = plan.tiles - len(positions)
            forwards = 0

            def tick(count: int) -> None:
                nonlocal forwards
                forwards += count
                if progress is not None:
                    progress(finished, plan.tiles, forwards)

            def too_many() -> bool:
                over = len(reasons) > MOST_FAILED * plan.tiles and finished < plan.tiles
                return over and not keep_going

            def gave_up(position: int, why: str) -> TileResult:
                digest = digest_or_none(data, position)
                reason = printable(f"{WORKER}: {why}")
                return TileResult(names[position], position, "failed", reason, digest=digest)

            def tell() -> None:
                if watch is not None and standing is not None:
                    standing(watch.standing())

            def enough() -> bool:
                asked = stop is not None and stop()
                return asked or (watch is not None and watch.decided)

            tell()
            if too_many() or (watch is not None and watch.decided):
                positions = []
            tick(0)
            found: Generator[TileResult, None, None]
            if lanes:
                job = Job(
                    plan, model.fingerprint(), digest_of_names(data.ids), version("segproof"),
                    allow_code,
                )  # fmt: skip
                found = run_on_workers(job, positions, lanes, gave_up, enough)
            else:
                found = (study_tile(plan, model, data, position, tick) for position in positions)
            with closing(found):
                for tile in found:
                    store.write(tile)
                    finished += 1
                    if watch is not None:
                        watch.add(tile.position, tile.table())
                    tell()
                    tick(tile.forwards if lanes else 0)
                    if tile.status == "failed":
                        reasons.append(f"{tile.sample}: {tile.reason}")
                    if too_many() or (not lanes and enough()):
                        break
            seconds = (store.get("seconds") or 0.0) + time.perf_counter() - started
            decided = None if watch is None else watch.record()
            if watch is not None and watch.decided and drawn:
                # what workers had finished beyond would depend on which of them was faster
                store.keep_only(names[position] for position in watch.beginning)
            store.put(seconds=seconds, decided=decided)
            results = Results.load(out)
            manifest = self._manifest(plan, model, data, results, seconds)
            if decided is not None:
                manifest["decided"] = decided
            command = self.command(out, () if until is None else until.flags())
            results.export({**manifest, "command": command})
        if too_many():
            raise TooManyFailedError(
                f"{len(reasons)} of {plan.tiles} tiles failed, {finished} studied; the last:"
                f" {reasons[-1]}",
                f"at most {MOST_FAILED:.0%}",
                "mend them (`segproof check` lists them all) or pass --keep-going; the same command"
                " goes on from here",
            )
        return Results.load(out)

    def _watched(
        self, until: StopRule, store: RunStore, names: list[str], still: Collection[int]
    ) -> EarlyStop:
        """The watch of a run, told of the tiles that are finished (all but `still`)."""
        count = store.get("count")
        watch = EarlyStop(until, shuffled(count, self.seed), self.preset)
        if len(still) < count:
            rows = Results.load(store.folder).rows
            found = dict(iter(rows.groupby("sample", sort=False)))
            for position in sorted(set(range(count)) - set(still)):
                watch.add(position, found.get(names[position], rows.iloc[:0]))
        return watch

    def _lanes(
        self, executor: Executor | None, workers: int, threads: int | None, dask: str | None
    ) -> list[WorkerSlot]:
        if executor is not None:
            return on_executor(executor)
        if dask is not None:
            return on_dask(dask)
        return on_processes(workers, self.device, threads) if workers > 1 else []

    def _identity(self, model: SegmentationModel, data: SampleSource) -> dict[str, Any]:
        """What ties a run folder to this study: settings, weights, code and the list of tiles."""
        return {
            **self.identity(),
            "weights": model.fingerprint(),
            "version": version("segproof"),
            "tiles": digest_of_names(data.ids),
        }

    def _stored_plan(
        self, store: RunStore, resolved: Plan, model: SegmentationModel, data: SampleSource
    ) -> Plan:
        """A run that is gone on with keeps what it began with: fills, outline, kernels."""
        chosen = store.get("fills")
        if chosen is not None:
            return _kept(resolved, {name: store.get(name) for name in CHOSEN})
        plan = choose_kernels(self._with_fills(resolved, model, data), model, data)
        plan = score_distance(plan, model, data)
        store.put(
            probe=plan.probe,
            outline=[plan.grow, plan.roughen],
            kernels=[plan.kernels.precision, plan.kernels.channels_last],
            pace=plan.pace,
            fills=plan.fills,
        )
        return plan

    def _open_positions(self, store: RunStore, data: SampleSource, count: int) -> list[int]:
        done, failed = store.done(), store.failed()
        still: list[int] = []
        for position, name in enumerate(list(data.ids)[:count]):
            if name not in done:
                still.append(position)
                continue
            same = done[name] == digest_or_none(data, position)
            if name in failed:
                # a mended file, or a machine that had too little of something
                machine = failed[name].startswith((f"{OUT_OF_MEMORY}:", f"{WORKER}:"))
                still += [position] if machine or not same else []
            elif not same:
                raise StudyError(
                    f"tile {name} changed since it was studied",
                    "the same pixels",
                    "use another --out",
                )
        return still

    def _manifest(
        self,
        plan: Plan,
        model: SegmentationModel,
        data: SampleSource,
        results: Results,
        seconds: float,
    ) -> dict[str, Any]:
        tiles = results.tiles
        counts = tiles["status"].value_counts()
        reasons = tiles.loc[tiles["status"] != "ok", "reason"].value_counts()
        lines: list[Any] = list(results.validity().itertuples())
        valid = {
            row.fill: {
                "mean_drop": float(row.mean_drop),
                "min_drop": float(row.min_drop),
                "n": int(row.n),
                "valid": bool(row.valid),
            }
            for row in lines
        }
        return {
            "version": version("segproof"),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "preset": self.preset,
            "model": {
                "spec": self.model,
                "classes": list(model.classes),
                "weights_sha256": model.fingerprint(),
                "parameters": sum(weight.numel() for weight in model.net.parameters()),
                "output": model.reader.text,
            },
            "data": {"root": self.data, "n": plan.tiles, **_record(data)},
            "study": json.loads(self.model_dump_json(by_alias=True)),
            "fills": list(plan.fills),
            "fills_valid": valid,
            "outline": {"name": plan.outline, "grow": plan.grow, "roughen": plan.roughen},
            "probe": plan.probe,
            "layers": [
                {
                    "name": name,
                    "path": path,
                    **next(
                        (
                            {"alias": s.alias, "stride": s.stride, "channels": s.channels}
                            for s in plan.shapes
                            if s.path == path
                        ),
                        {},
                    ),
                }
                for name, path in plan.layers.items()
            ],
            "tiles": {
                **{name: int(counts.get(name, 0)) for name in ("ok", "skipped", "failed")},
                "reasons": {str(reason): int(n) for reason, n in reasons.items()},
            },
            "forwards": int(tiles["forwards"].sum()) + plan.probe_forwards,
            "forwards_asked": int(tiles["asked"].sum()) + plan.probe_forwards,
            "kernels": {name: value for name, value in plan.pace.items() if name != "score_cam"},
            "score_cam": plan.pace.get("score_cam"),
            "seconds": round(seconds, 1),
            "machine": {
                "system": platform.platform(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "device": str(model.device),
            },
        }


def _record(data: SampleSource) -> dict[str, Any]:
    """How pairs, pictures and masks of a folder were read."""
    return {"reading": data.record()} if isinstance(data, FolderDataset) else {}


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
