"""A study: explanations of many tiles put on trial, planned before it runs, one tile at a time."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor

from segproof import tables
from segproof.cam import METHODS
from segproof.capture import Capture, capture
from segproof.data import FolderDataset, Sample, SampleSource
from segproof.errors import DataError, ModelError, SegproofError, StudyError, UnknownNameError
from segproof.explain import (
    DEFAULT_FILLS,
    Explanation,
    clean_of,
    explain_capture,
    fuse,
    resolve_method,
    with_baseline,
)
from segproof.measures import MEASURES, entropy_paper
from segproof.model import Layer, SegmentationModel, evaluating, load_model, probabilities
from segproof.perturb import (
    FILLS,
    STRATEGIES,
    binarise,
    keep_mask,
    make_fill,
    perturb,
    random_blobs,
    rank_pixels,
    seeded,
)
from segproof.results import COLUMNS, Results, RunStore, TileResult, pack_picture
from segproof.target import PRESETS, Preset, Region, Target

__all__ = ["CONTROLS", "Plan", "Study"]

CONTROLS: Final = (
    "original",
    "empty",
    "target_only",
    "target_removed",
    "random",
    "p_c",
    "edges",
    "truth",
)
_ALWAYS: Final = ("original", "target_removed")  # IoU change and the fills' validity need them
RANDOM_SEEDS: Final = 5
Fusion = Literal["mean", "max", "product"]
PROBED: Final = 16  # tiles on which `strict` tries the fills
VALID_DROP: Final = tables.VALID_DROP
PICTURES: Final = 6  # tiles whose maps are kept for the figures

Progress = Callable[[int, int, int], None]


class Study(BaseModel):
    """All settings of a study; immutable, the same keys in Python, on the command line and in TOML.

    `region` is what is explained and read ("truth", as published, or "prediction"); `fills` None
    means neutral in `paper` and the two least artificial valid ones in `strict`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    model: str
    data: str
    class_: str = Field(alias="class")
    methods: tuple[str, ...] = tuple(METHODS)
    layers: tuple[str, ...] = ("decoder:1", "decoder:2")
    thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    areas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    preset: Preset = "strict"
    region: Region = "truth"
    fills: tuple[str, ...] | None = None
    controls: tuple[str, ...] = CONTROLS
    fuse: tuple[Fusion, ...] = ()
    limit: int | None = Field(default=None, ge=1)
    min_area: int = Field(default=64, ge=1)
    ignore_index: int | None = None
    batch: int = Field(default=4, ge=1)
    seed: int = 0
    device: str = "cpu"

    @field_validator("methods", "fills", "controls")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None, info: Any) -> tuple[str, ...] | None:
        lists: dict[str, Sequence[str]] = {
            "methods": tuple(METHODS),
            "fills": tuple(FILLS),
            "controls": CONTROLS,
        }
        known = lists[info.field_name]
        for name in names or ():
            if name not in known:
                raise UnknownNameError.of(info.field_name.removesuffix("s"), name, known)
        return names

    @field_validator("preset", mode="before")
    @classmethod
    def _preset(cls, name: Any) -> Any:
        if name not in PRESETS:
            raise UnknownNameError.of("preset", name, PRESETS)
        return name

    @field_validator("thresholds", "areas")
    @classmethod
    def _inside(cls, levels: tuple[float, ...], info: Any) -> tuple[float, ...]:
        for level in levels:
            if not 0 < level < 1:
                raise StudyError(
                    f"{info.field_name} with {level:g}",
                    "numbers between 0 and 1, both excluded",
                    "check the list",
                )
        return levels

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name in ("methods", "layers", "thresholds", "areas", "fills", "controls", "fuse"):
            values = getattr(self, name) or ()
            if len(set(values)) != len(values):
                raise StudyError(
                    f"{name} with a repetition", "distinct values", "remove the double"
                )
        if not self.methods or not self.layers:
            raise StudyError("no method or no layer", "at least one of each", "name them")
        if not self.thresholds and not self.areas:
            raise StudyError("no thresholds and no areas", "at least one level", "name them")
        if self.preset == "paper" and self.region != "truth":
            raise StudyError(
                f"preset paper with region {self.region}",
                "region truth, as published",
                "use preset strict for other regions",
            )
        if self.fills is not None and not self.fills:
            raise StudyError("an empty list of fills", "at least one", "name them or leave it out")
        return self

    @classmethod
    def of(cls, **settings: Any) -> Study:
        """Build a study; what is wrong with the settings comes out as one three-fact error.

        Raises:
            StudyError, UnknownNameError: the first setting that is not usable.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            cause = first.get("ctx", {}).get("error")
            if isinstance(cause, SegproofError):
                raise cause from None
            name = ".".join(str(part) for part in first["loc"]) or "settings"
            if first["type"] == "missing":
                raise StudyError(
                    f"no {name}", "model, data and class", f"give {name} (--{name}, or in the file)"
                ) from None
            if first["type"] == "extra_forbidden":
                known = [field.alias or key for key, field in cls.model_fields.items()]
                raise UnknownNameError.of("setting", name, known) from None
            raise StudyError(
                f"{name} = {first.get('input')!r}", first["msg"].lower(), "check this setting"
            ) from None

    @classmethod
    def from_toml(cls, path: str | Path, **overrides: Any) -> Study:
        """Read settings from a TOML file; `overrides` win over it. Keys are those of the class.

        Raises:
            StudyError: no such file, or not TOML.
        """
        return cls.of(**{**read_toml(path), **overrides})

    @property
    def target(self) -> Target:
        """What is explained, as the core knows it."""
        return Target(self.class_, region=self.region, preset=self.preset)

    def command(self, out: str | Path) -> str:
        """The command line of this study: every setting that is not the default."""
        words = ["segproof", "study"]
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if value is None or value == info.default:
                continue
            text = ",".join(str(item) for item in value) if isinstance(value, tuple) else str(value)
            words += [f"--{(info.alias or name).replace('_', '-')}", text or "none"]
        return shlex.join([*words, "--out", str(out)])

    def plan(
        self, model: SegmentationModel | None = None, data: SampleSource | None = None
    ) -> Plan:
        """Resolve names, look at the model and the data, choose the fills, count the forwards.

        Raises:
            SegproofError: any setting that does not fit this model or this data.
        """
        model = self.open_model() if model is None else model
        data = self.open_data(model) if data is None else data
        plan = self._resolved(model, data)
        probe, forwards = _probe_fills(self, model, data, plan.tiles)
        fills = self.fills or _choose_fills(self, probe)
        return replace(plan, fills=fills, probe=probe, probe_forwards=forwards)

    def _resolved(self, model: SegmentationModel, data: SampleSource) -> Plan:
        """Class, layers and tiles looked up, before anything is written; no fills yet."""
        index = model.class_index(self.class_)
        count = len(data) if self.limit is None else min(self.limit, len(data))
        if not count:
            raise DataError("a data set without a tile", "at least one", "check --data")
        size, bands = _first_size(data)
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
        self._resolved(model, data)
        with RunStore(out, self._identity(model, data)) as store:
            plan = self._stored_plan(store, model, data)
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

    def open_model(self) -> SegmentationModel:
        """Load the network that the settings name."""
        return load_model(self.model, device=self.device)

    def open_data(self, model: SegmentationModel) -> FolderDataset:
        """Open the tiles that the settings name, with masks of the model's classes."""
        values = mask_classes(model)
        return FolderDataset(self.data, classes=values, ignore_index=self.ignore_index)

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

    def _stored_plan(self, store: RunStore, model: SegmentationModel, data: SampleSource) -> Plan:
        """The plan of a run that is gone on with keeps the fills that it began with."""
        chosen = store.get("fills")
        if chosen is None:
            plan = self.plan(model, data)
            store.put("probe", plan.probe)
            store.put("fills", plan.fills)
            return plan
        plan = self.model_copy(update={"fills": tuple(chosen)}).plan(model, data)
        return replace(plan, study=self, probe=store.get("probe"))

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
            "seconds": round(seconds, 1),
            "machine": {
                "system": platform.platform(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "device": str(model.device),
            },
        }


@dataclass(frozen=True)
class Plan:
    """A study that has seen its model and data: layers, fills, forwards to come."""

    study: Study
    layers: Mapping[str, str]
    shapes: tuple[Layer, ...]
    fills: tuple[str, ...]
    probe: Mapping[str, Mapping[str, float]]
    tiles: int
    class_index: int
    shape: tuple[int, int, int]
    probe_forwards: int = 0

    @property
    def shown_per_tile(self) -> int:
        """Perturbed pictures per tile, the original included."""
        study = self.study
        levels = len(study.thresholds) + len(study.areas)
        one_level = len(STRATEGIES) * len(self.fills)
        maps = len(study.methods) * (len(self.layers) + len(self.fused))
        extra = {"random": RANDOM_SEEDS * len(study.areas), "p_c": levels}
        extra |= dict.fromkeys(("edges", "truth"), len(study.areas))
        heat = sum(count for name, count in extra.items() if name in study.controls)
        plain = sum(len(self.fills) for name in ("empty", "target_only") if name in study.controls)
        return 1 + len(self.removal_fills) + plain + (maps * levels + heat) * one_level

    @property
    def fused(self) -> tuple[Fusion, ...]:
        """Ways to join the layers' maps: they need two layers."""
        return self.study.fuse if len(self.layers) > 1 else ()

    @property
    def removal_fills(self) -> tuple[str, ...]:
        """Fills under which the target itself is removed: in `strict` all of them, to show
        validity.
        """
        others = FILLS if self.study.preset == "strict" else self.fills
        return tuple(dict.fromkeys([*self.fills, *others]))

    @property
    def forwards_per_tile(self) -> int:
        """Forwards per tile at most: capture, Score-CAM's channels, perturbed pictures."""
        masked = "score_cam" in self.study.methods
        channels = sum(layer.channels + 1 for layer in self.shapes) if masked else 0
        return 1 + channels + self.shown_per_tile

    @property
    def forwards(self) -> int:
        """Forwards of the whole study at most, the search for valid fills not included."""
        return self.tiles * self.forwards_per_tile


def study_tile(
    plan: Plan,
    model: SegmentationModel,
    data: SampleSource,
    position: int,
    tick: Callable[[int], None] = lambda count: None,
) -> TileResult:
    """Study one tile: idempotent, no side effects; what goes wrong becomes its status."""
    started = time.perf_counter()
    name = data.ids[position]
    spent = 0

    def count(forwards: int) -> None:
        nonlocal spent
        spent += forwards
        tick(forwards)

    def finish(status: str, reason: str = "", **found: Any) -> TileResult:
        return TileResult(
            sample=name,
            position=position,
            status=status,
            reason=reason,
            forwards=spent,
            seconds=time.perf_counter() - started,
            digest=digest_of(data, position),
            **found,
        )

    try:
        seen, truth = _clean(plan, model, data[position], plan.layers)
        count(1)
        reason = _nothing_to_explain(plan.study, seen)
        if reason:
            return finish("skipped", reason)
        rows, picture = _try_tile(plan, model, name, seen, truth, position, count)
    except (DataError, ModelError) as error:
        return finish("failed", str(error))
    return finish("ok", rows=rows, picture=picture)


def _clean(
    plan: Plan, model: SegmentationModel, sample: Sample, layers: Mapping[str, str]
) -> tuple[Capture, Tensor]:
    """The clean picture of a tile, captured, and its truth mask bool [H, W]."""
    valid = sample.get("valid")
    truth = (sample["mask"] == mask_value(model, plan.class_index)).to(model.device)
    if valid is not None:
        truth &= valid.to(model.device)
    seen = capture(
        model,
        sample["image"][None],
        plan.study.target,
        list(layers.values()),
        truth[None],
        valid=None if valid is None else valid[None],
        gradients=bool(layers),
        batch=plan.study.batch,
    )
    return seen, truth


def _nothing_to_explain(study: Study, seen: Capture) -> str:
    pixels = int(seen.bound.region.sum())
    if not pixels:
        return f"no {study.class_} in the {study.region}"
    if pixels < study.min_area:
        return f"{study.class_} smaller than {study.min_area} px"
    if not bool(seen.bound.prediction.any()):
        return f"{study.class_} never predicted"
    return ""


@dataclass(frozen=True)
class _Heat:
    """A heatmap on trial: a method's at a layer, or a control's."""

    method: str
    layer: str
    heatmap: Tensor
    status: str
    effective: float | None = None
    seed: int = 0
    levels: tuple[tuple[str, float], ...] = ()


def _try_tile(
    plan: Plan,
    model: SegmentationModel,
    name: str,
    seen: Capture,
    truth: Tensor,
    position: int,
    count: Callable[[int], None],
) -> tuple[list[tuple[object, ...]], bytes | None]:
    study = plan.study
    nothing = torch.zeros_like(seen.bound.region)
    baselines = {
        fill: make_fill(fill, clean_of(seen, model, truth, seed=(study.seed, name, fill)))(
            seen.images, nothing
        )[0]
        for fill in plan.removal_fills
    }
    explanations = _explain(plan, model, with_baseline(seen, baselines[plan.fills[0]][None]), count)
    heats = [*_method_heats(study, explanations), *_control_heats(study, name, seen, truth)]
    trial = _Trial(plan, model, name, seen, truth, baselines, count)
    rows = trial.rows(heats)
    picture = None
    if position < PICTURES:
        maps = {(e.method, e.layer): e.heatmap().cpu().numpy() for e in explanations}
        bound = seen.bound
        picture = pack_picture(
            seen.images[0].cpu().numpy(),
            truth.cpu().numpy(),
            bound.prediction[0].cpu().numpy(),
            maps,
        )
    return rows, picture


def _explain(
    plan: Plan, model: SegmentationModel, seen: Capture, count: Callable[[int], None]
) -> list[Explanation]:
    study = plan.study
    methods = dict(resolve_method(name, study.preset) for name in study.methods)
    found: list[Explanation] = []
    for layer, path in plan.layers.items():
        for name, method in methods.items():
            [made] = explain_capture(seen, model, {name: method}, {layer: path}, study.target)
            count(made.forwards)
            found.append(made)
    for way in plan.fused:
        for name in methods:
            parts = [item for item in found if item.method == name and item.layer in plan.layers]
            found.append(replace(fuse(parts, way), layer=f"fused:{way}"))
    return found


def _method_heats(study: Study, explanations: Sequence[Explanation]) -> Iterator[_Heat]:
    levels = tuple(("threshold", level) for level in study.thresholds)
    levels += tuple(("area", level) for level in study.areas)
    for item in explanations:
        yield _Heat(
            item.method,
            item.layer,
            item.heatmap(),
            item.status,
            item.effective_channels,
            levels=levels,
        )


def _control_heats(study: Study, name: str, seen: Capture, truth: Tensor) -> Iterator[_Heat]:
    """Heatmaps that any method has to beat (measures.md section 7)."""
    areas = tuple(("area", level) for level in study.areas)
    thresholds = tuple(("threshold", level) for level in study.thresholds)
    bound = seen.bound
    probability = probabilities(seen.logits, bound.activation)[0, bound.class_index]
    size = (truth.shape[0], truth.shape[1])
    if "random" in study.controls:
        for seed in range(RANDOM_SEEDS):
            blobs = random_blobs(size, seeded("random", study.seed, name, seed)).to(truth.device)
            yield _Heat("control:random", "", blobs, "ok", seed=seed, levels=areas)
    if "p_c" in study.controls:
        top = probability.max()
        yield _Heat("control:p_c", "", probability / top, "ok", levels=(*thresholds, *areas))
    if "edges" in study.controls:
        yield _Heat("control:edges", "", edges(seen.images[0]), "ok", levels=areas)
    if "truth" in study.controls:
        yield _Heat("control:truth", "", truth.float(), "ok", levels=areas)


def edges(image: Tensor) -> Tensor:
    """Sobel gradient magnitude of the mean band, scaled to [0, 1], [H, W]."""
    grey = image.mean(dim=0, keepdim=True)[None]
    kernel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]]).to(grey)
    padded = torch.nn.functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    both = torch.stack([kernel, kernel.T])[:, None]
    strength = torch.nn.functional.conv2d(padded, both).square().sum(dim=1).sqrt()[0]
    return strength / strength.max().clamp(min=torch.finfo(strength.dtype).tiny)


@dataclass(frozen=True)
class _Trial:
    """One tile's perturbed pictures: listed lazily, shown in batches, read into rows."""

    plan: Plan
    model: SegmentationModel
    name: str
    seen: Capture
    truth: Tensor
    baselines: Mapping[str, Tensor]
    count: Callable[[int], None]

    def rows(self, heats: Sequence[_Heat]) -> list[tuple[object, ...]]:
        rows: list[dict[str, object]] = []
        waiting: list[tuple[dict[str, object], Tensor]] = []
        for row, keep in self._pictures(heats):
            rows.append(row)
            if keep is not None:
                waiting.append((row, keep))
            if len(waiting) == self.plan.study.batch:
                self._show(waiting)
                waiting = []
        if waiting:
            self._show(waiting)
        before = rows[0]["iou"]
        for row in rows:
            after = row.get("iou")
            known = isinstance(after, float) and isinstance(before, float)
            row["iou_delta"] = after - before if known else None  # type: ignore[operator]
        return [tuple(_plain(row.get(column)) for column in COLUMNS) for row in rows]

    def _pictures(
        self, heats: Sequence[_Heat]
    ) -> Iterator[tuple[dict[str, object], Tensor | None]]:
        """Rows to fill and what they keep of the picture; None where the map is flat."""
        study, region = self.plan.study, self.seen.bound.region[0]
        everything, nothing = torch.ones_like(region), torch.zeros_like(region)
        yield self._row("control:original", "original", "", nothing), everything
        for fill in self.plan.removal_fills:
            yield self._row("control:target_removed", "target_removed", fill, region), ~region
        for fill in self.plan.fills:
            if "empty" in study.controls:
                yield self._row("control:empty", "empty", fill, everything), nothing
            if "target_only" in study.controls:
                yield self._row("control:target_only", "target_only", fill, region), region
        for heat in heats:
            yield from self._cut(heat)

    def _cut(self, heat: _Heat) -> Iterator[tuple[dict[str, object], Tensor | None]]:
        bound, study = self.seen.bound, self.plan.study
        valid, region = bound.valid[0], bound.region[0]
        flat = heat.status != "ok"
        ranks = (
            None
            if flat
            else rank_pixels(heat.heatmap, valid, seeded("ties", study.seed, self.name))
        )
        for kind, level in heat.levels:
            if flat:
                highlighted = torch.zeros_like(region)
            elif kind == "threshold":
                highlighted = binarise(heat.heatmap, threshold=level, valid=valid)
            else:
                highlighted = binarise(heat.heatmap, area=level, valid=valid, ranks=ranks)
            status = heat.status if flat or bool(highlighted.any()) else "empty_region"
            for strategy in STRATEGIES:
                keep = keep_mask(strategy, highlighted, region)
                for fill in self.plan.fills:
                    row = self._row(heat.method, strategy, fill, highlighted)
                    row |= {
                        "layer": heat.layer,
                        "binarisation": kind,
                        "level": level,
                        "status": status,
                        "effective_channels": heat.effective,
                        "seed": heat.seed,
                    }
                    if flat:
                        row |= {"area": None, "coverage": None}
                    yield row, None if flat else keep

    def _row(self, method: str, strategy: str, fill: str, region: Tensor) -> dict[str, object]:
        bound = self.seen.bound
        inside = int((region & bound.region[0]).sum())
        return {
            "sample": self.name,
            "method": method,
            "layer": "",
            "binarisation": "",
            "strategy": strategy,
            "reference": self.plan.study.region,
            "fill": fill,
            "area": int(region.sum()) / int(bound.valid.sum()),
            "coverage": inside / int(bound.region.sum()),
            "status": "ok",
            "seed": 0,
            "preset": self.plan.study.preset,
        }

    def _show(self, waiting: Sequence[tuple[dict[str, object], Tensor]]) -> None:
        """One batch: perturb, one forward, measure, fill the rows."""
        image, bound = self.seen.images, self.seen.bound
        keep = torch.stack([mask for _, mask in waiting])
        anything = next(iter(self.baselines.values()))
        base = torch.stack([self.baselines.get(str(row["fill"]), anything) for row, _ in waiting])
        with torch.inference_mode(), evaluating(self.model):
            logits = self.model(perturb(image, keep, base))
            if not bool(torch.isfinite(logits).all()):
                raise ModelError(
                    f"logits that are not finite under fill {waiting[0][0]['fill']}",
                    "numbers",
                    "leave this fill out (--fills)",
                )
            p = probabilities(logits, bound.activation)
            found = {
                name: info.function(p, bound, self.truth[None]).tolist()
                for name, info in MEASURES.items()
            }
            if self.plan.study.preset == "paper":
                found["entropy"] = entropy_paper(p, bound, self.truth[None]).tolist()
        for place, (row, _) in enumerate(waiting):
            row |= {name: values[place] for name, values in found.items()}
        self.count(len(waiting))


def _plain(value: object) -> object:
    """NaN is NULL in the store: undefined, never a number."""
    return None if isinstance(value, float) and value != value else value


def _first_size(data: SampleSource) -> tuple[tuple[int, int], int]:
    """Height, width and bands of the first tile that can be read."""
    for position in range(len(data)):
        try:
            bands, height, width = data[position]["image"].shape
        except DataError:
            continue  # reported with its reason when the tile is studied
        return (height, width), bands
    raise DataError(f"{len(data)} tiles, none readable", "at least one", "check --data")


def mask_value(model: SegmentationModel, class_index: int) -> int:
    """The value of a class in mask files: its index; one more where the classes have no background.

    Multi-label networks (sigmoid per channel) name no background channel, yet masks keep 0 for it.
    """
    offset = model.activation == "sigmoid" and model.classes[0] != "background"
    return class_index + int(offset)


def mask_classes(model: SegmentationModel) -> int:
    """How many values, counted from 0, the masks of a model's classes can have."""
    return mask_value(model, len(model.classes) - 1) + 1


def digest_of(data: SampleSource, position: int) -> str:
    """SHA-256 of a tile's files, or of its pixels where the data set is not a folder."""
    digest = hashlib.sha256()
    if isinstance(data, FolderDataset):
        for path in data.pairs[position]:
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    else:
        sample = data[position]
        for tensor in (sample["image"], sample["mask"]):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _probe_fills(
    study: Study, model: SegmentationModel, data: SampleSource, count: int
) -> tuple[dict[str, dict[str, float]], int]:
    """Relative drop of confidence when the target is removed, per fill, on the first tiles."""
    if study.preset == "paper" or study.fills is not None:
        return {}, 0
    plan = Plan(
        study=study,
        layers={},
        shapes=(),
        fills=tuple(FILLS),
        probe={},
        tiles=count,
        class_index=model.class_index(study.class_),
        shape=(0, 0, 0),
    )
    drops: dict[str, list[float]] = {fill: [] for fill in FILLS}
    forwards = 0
    for position in range(count):
        if len(drops["neutral"]) == PROBED:
            break
        try:
            seen, truth = _clean(plan, model, data[position], {})
        except (DataError, ModelError):
            continue  # reported with its reason when the tile is studied
        forwards += 1
        if _nothing_to_explain(study, seen):
            continue
        before = _confidences(model, seen, [seen.images[0]])[0]
        for fill in FILLS:
            name = data.ids[position]
            make = make_fill(fill, clean_of(seen, model, truth, seed=(study.seed, name, fill)))
            after = _confidences(model, seen, [make(seen.images, ~seen.bound.region)[0]])[0]
            drops[fill].append(1 - after / before if before > 0 else float("nan"))
        forwards += 1 + len(FILLS)
    summary = {
        fill: {"mean_drop": sum(values) / len(values), "min_drop": min(values), "n": len(values)}
        for fill, values in drops.items()
        if values
    }
    return summary, forwards


def _confidences(model: SegmentationModel, seen: Capture, images: Sequence[Tensor]) -> list[float]:
    with torch.inference_mode(), evaluating(model):
        p = probabilities(model(torch.stack(list(images))), seen.bound.activation)
        values: list[float] = MEASURES["confidence"].function(p, seen.bound, None).tolist()
    return values


def _choose_fills(study: Study, probe: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """The two least artificial fills that pass; where fewer do, those that mislead the least."""
    if study.preset == "paper":
        return (DEFAULT_FILLS["paper"],)
    if not probe:
        return (DEFAULT_FILLS["strict"], "black")
    passing = [fill for fill in FILLS if probe[fill]["mean_drop"] >= VALID_DROP]
    by_drop = sorted(FILLS, key=lambda fill: -probe[fill]["mean_drop"])
    return tuple(dict.fromkeys([*passing, *by_drop]))[:2]


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


def read_toml(path: str | Path) -> dict[str, Any]:
    """Settings of a study file.

    Raises:
        StudyError: no such file, or not TOML.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise StudyError(
            f"no readable {path}", "a TOML file of settings", "check --config"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise StudyError(
            f"{path} that is not TOML ({error})", "key = value lines", "mend it"
        ) from error
