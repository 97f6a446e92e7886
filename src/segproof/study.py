"""A study: settings that look at a model and data, plan what they will show, and run."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from segproof.data import FolderDataset, SampleSource, digest_of
from segproof.errors import DataError, StudyError
from segproof.kernels import Kernels
from segproof.model import SegmentationModel
from segproof.pace import choose_kernels
from segproof.results import Results, RunStore, TileResult
from segproof.settings import Settings
from segproof.trial import (
    OUTLINES,
    Plan,
    choose_fills,
    choose_outline,
    probe_fills,
    study_tile,
)

__all__ = ["Study"]

Progress = Callable[[int, int, int], None]


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
        size, bands = _first_size(data)
        if self.pad:
            below, right = model.padding(size)
            size = (size[0] + below, size[1] + right)
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

    def run(
        self,
        out: str | Path,
        *,
        executor: Executor | None = None,
        model: SegmentationModel | None = None,
        data: SampleSource | None = None,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
        planned: Callable[[Plan], None] | None = None,
    ) -> Results:
        """Study every tile and write `out`: run.db, then results.parquet, results.csv,
        manifest.json.

        A folder of the same study is gone on with. `model` and `data` replace those of the
        settings; with an `executor` (any of `concurrent.futures`) tiles are spread and both come
        from the settings. `progress(tiles done, tiles, forwards)` is called after each batch;
        `stop()` is asked after each tile, `planned(plan)` told once before the first one.

        Raises:
            StudyError: another study in `out`, or an executor with a model or data in memory.
        """
        if executor is not None and (model is not None or data is not None):
            raise StudyError(
                "an executor with a model or data in memory",
                "both named in the settings, so that workers can load them",
                "save the model and name its folder",
            )
        started = time.perf_counter()
        model = self.open_model() if model is None else model
        data = self.open_data(model) if data is None else data
        resolved = self._resolved(model, data)
        with RunStore(out, self._identity(model, data)) as store:
            plan = self._stored_plan(store, resolved, model, data)
            if planned is not None:
                planned(plan)
            positions = self._open_positions(store, data, plan.tiles)
            finished = plan.tiles - len(positions)
            forwards = 0

            def tick(count: int) -> None:
                nonlocal forwards
                forwards += count
                if progress is not None:
                    progress(finished, plan.tiles, forwards)

            tick(0)
            if executor is None:
                found: Iterator[TileResult] = (
                    study_tile(plan, model, data, position, tick) for position in positions
                )
            else:
                found = _spread(executor, plan, positions, tick)
            for tile in found:
                store.write(tile)
                finished += 1
                tick(0)
                if stop is not None and stop():
                    break
            seconds = (store.get("seconds") or 0.0) + time.perf_counter() - started
            store.put("seconds", seconds)
        results = Results.load(out)
        manifest = self._manifest(plan, model, results, seconds)
        results.export({**manifest, "command": self.command(out)})
        return Results.load(out)

    def _identity(self, model: SegmentationModel, data: SampleSource) -> dict[str, Any]:
        """What ties a run folder to this study: settings, weights, code and the list of tiles."""
        settings = json.loads(self.model_dump_json(by_alias=True, exclude={"model", "data"}))
        names = json.dumps(list(data.ids)).encode()
        return {
            **settings,
            "weights": model.fingerprint(),
            "version": version("segproof"),
            "tiles": hashlib.sha256(names).hexdigest(),
        }

    def _stored_plan(
        self, store: RunStore, resolved: Plan, model: SegmentationModel, data: SampleSource
    ) -> Plan:
        """A run that is gone on with keeps what it began with: fills, outline, kernels."""
        chosen = store.get("fills")
        if chosen is not None:
            grow, roughen = store.get("outline")
            kept = replace(resolved, grow=grow, roughen=roughen, probe=store.get("probe"))
            kernels = Kernels(*store.get("kernels"))
            return replace(kept, fills=tuple(chosen), kernels=kernels, pace=store.get("pace"))
        plan = choose_kernels(self._with_fills(resolved, model, data), model, data)
        store.put("kernels", [plan.kernels.precision, plan.kernels.channels_last])
        store.put("pace", plan.pace)
        store.put("probe", plan.probe)
        store.put("outline", [plan.grow, plan.roughen])
        store.put("fills", plan.fills)
        return plan

    def _open_positions(self, store: RunStore, data: SampleSource, count: int) -> list[int]:
        done = store.done()
        names = list(data.ids)[:count]
        for position, name in enumerate(names):
            if name in done and done[name] != digest_of(data, position):
                raise StudyError(
                    f"tile {name} changed since it was studied",
                    "the same pixels",
                    "use another --out",
                )
        return [position for position, name in enumerate(names) if name not in done]

    def _manifest(
        self, plan: Plan, model: SegmentationModel, results: Results, seconds: float
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
            },
            "data": {"root": self.data, "n": plan.tiles},
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
            "kernels": plan.pace,
            "seconds": round(seconds, 1),
            "machine": {
                "system": platform.platform(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "device": str(model.device),
            },
        }


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


@lru_cache(maxsize=2)
def _worker_state(model: str, data: str, settings: str) -> tuple[SegmentationModel, FolderDataset]:
    study = Study.model_validate_json(settings)
    network = study.open_model()
    return network, study.open_data(network)


def _work(plan: Plan, position: int) -> TileResult:
    """One tile in a worker process, which keeps model and data between tiles."""
    study = plan.study
    settings = study.model_dump_json(by_alias=True)
    model, data = _worker_state(study.model, study.data, settings)
    return study_tile(plan, model, data, position)


def _spread(
    executor: Executor, plan: Plan, positions: Sequence[int], tick: Callable[[int], None]
) -> Iterator[TileResult]:
    """Tiles as workers finish them, a few more in flight than there are workers."""
    width = 2 * (getattr(executor, "_max_workers", None) or 4)
    todo = iter(positions)
    running: set[Future[TileResult]] = set()
    try:
        while True:
            for position in todo:
                running.add(executor.submit(_work, plan, position))
                if len(running) >= width:
                    break
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                tile = future.result()
                tick(tile.forwards)
                yield tile
    finally:
        for future in running:
            future.cancel()
