"""One tile on trial: explained, perturbed, measured; and the plan that says what will be shown."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from segproof.data import Sample, SampleSource, digest_of
from segproof.errors import DataError, ModelError, printable
from segproof.explain import (
    CHANNELWISE,
    INPUT_LAYER,
    LAYERLESS,
    Capture,
    Explanation,
    MethodFunction,
    capture,
    clean_of,
    explain_capture,
    fuse,
    pad_below,
    resolve_method,
    score_cam,
    with_baseline,
)
from segproof.measures import (
    BOUNDARY,
    MAP_MEASURES,
    MEASURES,
    HeatmapCase,
    MapMeasure,
    Undefined,
    entropy_paper,
    measured,
)
from segproof.models import (
    EXACT,
    Kernels,
    Layer,
    OutOfMemoryError,
    SegmentationModel,
    all_finite,
    evaluating,
    halving,
    probabilities,
    running,
)
from segproof.perturb import (
    CONTROLS,
    FILLS,
    OUTLINE,
    STRATEGIES,
    FillFunction,
    binarise,
    blend,
    dilate,
    keep_mask,
    largest_square,
    make_fill,
    random_blobs,
    rank_pixels,
    rough_noise,
    roughen,
    seeded,
    soft_keep,
)
from segproof.study.results import COLUMNS, TileResult, pack_picture
from segproof.study.settings import Fusion, Settings

__all__ = [
    "MAP_MEASURES",
    "OUT_OF_MEMORY",
    "PICTURES",
    "Plan",
    "clean_capture",
    "control_rows",
    "counting",
    "digest_or_none",
    "donor_of",
    "method_maps",
    "method_rows",
    "nothing_to_explain",
    "outline_name",
    "outline_noise",
    "study_tile",
    "widened",
]

RANDOM_SEEDS: Final = CONTROLS["random"].seeds
# controls that are measured as whole heatmaps
SCORED: Final = tuple(control.id for control in CONTROLS.values() if control.scored)
OTSU: Final = 0.0  # in place of a level, which Otsu's threshold and soft masks do not have
DONORS: Final = 4  # tiles that are looked at for a patch without the class
OUT_OF_MEMORY: Final = "oom"  # how such a reason begins: another machine may have more
PICTURES: Final = 6  # tiles whose maps are kept for the figures


@dataclass(frozen=True)
class Plan:
    """A study that has seen its model and data: layers, fills, forwards to come."""

    study: Settings
    layers: Mapping[str, str]
    shapes: tuple[Layer, ...]
    fills: tuple[str, ...]
    probe: Mapping[str, Mapping[str, Mapping[str, float]]]
    tiles: int
    class_index: int
    shape: tuple[int, int, int]
    probe_forwards: int = 0
    grow: int = 0
    roughen: int = 0
    kernels: Kernels = EXACT
    pace: Mapping[str, Any] = field(default_factory=dict)
    pictured: tuple[int, ...] = tuple(range(PICTURES))  # tiles whose picture is kept

    def batched(self, batch: int) -> Plan:
        """The same plan with so many pictures per forward."""
        return replace(self, study=self.study.model_copy(update={"batch": batch}))

    @property
    def outline(self) -> str:
        """How regions are widened, in words."""
        return outline_name(self.grow, self.roughen)

    @property
    def shown_per_tile(self) -> int:
        """Perturbed pictures per tile, the original included."""
        study = self.study
        levels = len(study.thresholds) + len(study.areas) + len(study.masses) + study.otsu
        levels += study.soft
        one_level = (len(STRATEGIES) + len(study.further)) * len(self.fills)
        bare = sum(name in LAYERLESS for name in study.methods)
        maps = (len(study.methods) - bare) * (len(self.layers) + len(self.fused)) + bare
        areas = len(study.areas) + study.soft
        extra = {"random": RANDOM_SEEDS * areas, "p_c": len(study.thresholds) + areas}
        extra |= {"edges": areas, "truth": areas, "uniform": len(study.areas)}
        inverse = maps * len(study.areas) * len(self.fills) * ("inverse" in study.controls)
        heat = sum(count for name, count in extra.items() if name in study.controls)
        once = {"empty": 1, "target_only": 1 + len(study.further)}
        plain = sum(n * len(self.fills) for name, n in once.items() if name in study.controls)
        shown = (maps * levels + heat) * one_level + inverse
        return 1 + len(self.removal_fills) + plain + shown

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
        """Forwards per tile that are asked for, at most: capture, those that methods spend on each
        channel, perturbed pictures. Channels and maps that are flat need none, and pictures that
        are alike one: that shows when the maps are there.
        """
        spent = sum(
            1 + CHANNELWISE[method] * self._shown_channels(method, layer)
            for method in self.study.methods
            if method in CHANNELWISE
            for layer in self.shapes
        )
        bare = [name for name in self.study.methods if name in LAYERLESS]
        spent += sum(LAYERLESS[name]((self.shape[1], self.shape[2])) for name in bare)
        return 1 + spent + self.shown_per_tile

    def _shown_channels(self, method: str, layer: Layer) -> int:
        most = self.study.score_channels if method == "score_cam" else None
        return layer.channels if most is None else min(most, layer.channels)

    @property
    def forwards(self) -> int:
        """Forwards of the whole study at most, the search for valid fills not included."""
        return self.tiles * self.forwards_per_tile


class Count(Protocol):
    """Told of forwards that were spent, and of how many the plan had asked for in their place."""

    def __call__(self, forwards: int, asked: int | None = None) -> None: ...


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
    spent = wanted = 0

    def count(forwards: int, asked: int | None = None) -> None:
        nonlocal spent, wanted
        spent += forwards
        wanted += forwards if asked is None else asked
        tick(forwards)

    def finish(status: str, reason: str = "", **found: Any) -> TileResult:
        return TileResult(
            sample=name,
            position=position,
            status=status,
            reason=reason,
            forwards=spent,
            asked=wanted,
            seconds=time.perf_counter() - started,
            digest=digest_or_none(data, position),
            **found,
        )

    def attempt(batch: int) -> TileResult:
        smaller = plan.batched(batch)
        sample = data[position]
        seen, truth = clean_capture(smaller, model, sample, plan.layers)
        count(1)
        reason = nothing_to_explain(plan.study, seen)
        if reason:
            return finish("skipped", reason)
        donor = donor_of(smaller, model, data, position)
        with running(model, plan.kernels):
            rows, scores, maps = _try_tile(smaller, model, name, seen, truth, donor, count)
        shown = _picture(sample, seen, truth, maps) if position in plan.pictured else None
        return finish("ok", rows=rows, scores=scores, picture=shown)

    try:
        return halving(attempt, plan.study.batch)
    except OutOfMemoryError as error:
        return finish("failed", f"{OUT_OF_MEMORY}: {error}")
    except (DataError, ModelError) as error:
        return finish("failed", str(error))
    except Exception as error:  # whatever one tile does, the others are studied
        return finish("failed", printable(f"{type(error).__name__}: {error}"))


def digest_or_none(data: SampleSource, position: int) -> str:
    """What a tile was made from; "" where it cannot be read."""
    try:
        return digest_of(data, position)
    except (OSError, DataError):
        return ""


def clean_capture(
    plan: Plan, model: SegmentationModel, sample: Sample, layers: Mapping[str, str]
) -> tuple[Capture, Tensor]:
    """The clean picture of a tile, captured, and its truth mask bool [H, W]."""
    image, valid = sample["image"], sample.get("valid")
    model.check_units(image)
    truth = sample["mask"] == model.mask_value(plan.class_index)
    if valid is not None:
        truth &= valid
    padding = model.padding((image.shape[1], image.shape[2])) if plan.study.pad else (0, 0)
    if padding != (0, 0):
        valid = torch.ones_like(truth) if valid is None else valid
        image, valid, truth = (pad_below(part, padding) for part in (image, valid, truth))
    truth = truth.to(model.device)
    seen = capture(
        model,
        image[None],
        plan.study.target,
        list(layers.values()),
        truth[None],
        valid=None if valid is None else valid[None],
        gradients=bool(layers),
        batch=plan.study.batch,
    )
    return seen, truth


def donor_of(
    plan: Plan, model: SegmentationModel, data: SampleSource, position: int
) -> Tensor | None:
    """A patch [B, h, w] without the class from one of the next tiles, for the fill `borrowed`: the
    first whose side is a quarter of its tile's; None where none has one.
    """
    if not any(FILLS[name].donates for name in plan.removal_fills):
        return None
    value = model.mask_value(plan.class_index)
    for step in range(1, min(DONORS, len(data) - 1) + 1):
        try:
            sample = data[(position + step) % len(data)]
        except DataError:
            continue  # reported with its reason when the tile is studied
        ground = ~dilate(sample["mask"] == value, OUTLINE)
        valid = sample.get("valid")
        rows, columns = largest_square(ground if valid is None else ground & valid)
        patch = sample["image"][:, rows, columns]
        if patch.shape[-1] >= min(sample["image"].shape[-2:]) / 4:
            return patch.to(model.device)
    return None


def nothing_to_explain(study: Settings, seen: Capture) -> str:
    """Why a tile is skipped, in words; "" where it is not."""
    pixels = int(seen.bound.region.sum())
    if not pixels:
        return f"no {study.class_} in the {study.region}"
    if pixels < study.min_area:
        return f"{study.class_} smaller than {study.min_area} px"
    if not bool(seen.bound.prediction.any()):
        return f"{study.class_} never predicted"
    return ""


def control_rows(
    plan: Plan, model: SegmentationModel, data: SampleSource, position: int
) -> Iterator[dict[str, object]]:
    """Rows of one tile's control heatmaps (random and p_c), made one batch after the other; none
    where there is nothing to explain.

    Raises:
        DataError, ModelError: the tile cannot be studied.
    """
    trial = _opened(plan, model, data, position, {})
    if trial is None:
        return
    shared = plan.study.model_copy(update={"controls": ("p_c", "random")})
    heats = [*_control_heats(shared, trial.name, trial.seen, trial.truth)]
    yield from trial.read(row for heat in reversed(heats) for row in trial.cut(heat))


def method_maps(
    plan: Plan, model: SegmentationModel, data: SampleSource, position: int
) -> list[Explanation]:
    """All maps of one tile; none where there is nothing to explain.

    Raises:
        DataError, ModelError: the tile cannot be studied.
    """
    trial = _opened(plan, model, data, position, plan.layers)
    return [] if trial is None else _explain(plan, model, trial.seen, trial.count)


def method_rows(
    plan: Plan, model: SegmentationModel, data: SampleSource, position: int
) -> list[dict[str, object]]:
    """Rows of one tile's maps under the first fill, without controls; none where there is nothing
    to explain.

    Raises:
        DataError, ModelError: the tile cannot be studied.
    """
    bare = plan.study.model_copy(update={"controls": (), "references": ()})
    plan = replace(plan, study=bare, fills=plan.fills[:1])
    trial = _opened(plan, model, data, position, plan.layers)
    if trial is None:
        return []
    heats = _method_heats(bare, _explain(plan, model, trial.seen, trial.count))
    return list(trial.read(row for heat in heats for row in trial.cut(heat)))


def _opened(
    plan: Plan,
    model: SegmentationModel,
    data: SampleSource,
    position: int,
    layers: Mapping[str, str],
) -> _Trial | None:
    """A tile made ready under the plan's own fills; None where there is nothing to explain."""
    seen, truth = clean_capture(plan, model, data[position], layers)
    if nothing_to_explain(plan.study, seen):
        return None
    name = data.ids[position]
    donor = donor_of(plan, model, data, position)
    return _trial(plan, model, name, seen, truth, donor, plan.fills, lambda *_: None)


def _trial(
    plan: Plan,
    model: SegmentationModel,
    name: str,
    seen: Capture,
    truth: Tensor,
    donor: Tensor | None,
    names: Sequence[str],
    count: Count,
) -> _Trial:
    """A tile on trial under the fills of these `names`; the plan's first one is the baseline."""
    seed = plan.study.seed
    clean = clean_of(seen, model, truth, seed=(seed, name), donor=donor)
    fills = {fill: make_fill(fill, clean.seeded(seed, name, fill)) for fill in names}
    nothing = torch.zeros_like(seen.bound.region)
    seen = with_baseline(seen, fills[plan.fills[0]](seen.images, nothing))
    noise = outline_noise(plan.study, name, plan.roughen, seen)
    return _Trial(plan, model, name, seen, truth, fills, count, noise)


@dataclass(frozen=True)
class MaskSource:
    """A heatmap on trial: a method's at a layer, or a control's."""

    method: str
    layer: str
    heatmap: Tensor
    status: str
    effective: float | None = None
    seed: int = 0
    levels: tuple[tuple[str, float], ...] = ()
    strategies: tuple[str, ...] = tuple(STRATEGIES)


def _try_tile(
    plan: Plan,
    model: SegmentationModel,
    name: str,
    seen: Capture,
    truth: Tensor,
    donor: Tensor | None,
    count: Count,
) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]], list[Explanation]]:
    """The rows of a tile, the scores of its maps, and its explanations."""
    study = plan.study
    trial = _trial(plan, model, name, seen, truth, donor, plan.removal_fills, count)
    seen, fills = trial.seen, trial.fills
    explanations = _explain(plan, model, seen, count)
    heats = [*_method_heats(study, explanations), *_control_heats(study, name, seen, truth)]
    rows = trial.rows(heats)
    judges = {measure: MAP_MEASURES[measure].function for measure in study.measures}
    scores: list[tuple[object, ...]] = []
    if judges:
        with counting(model, count):
            for item in explanations:
                case = _case(plan, model, seen, truth, fills[plan.fills[0]], item)
                scores += _judge(judges, case, (name, item.method, item.layer), plan.fills[0])
            for heat in heats:
                if heat.method in SCORED and heat.seed == 0:
                    case = HeatmapCase(
                        model, seen, heat.heatmap.float(), fills[plan.fills[0]], truth,
                        seed=study.seed,
                    )  # fmt: skip
                    scores += _judge(judges, case, (name, heat.method, ""), plan.fills[0])
    return rows, scores, explanations


def _case(
    plan: Plan,
    model: SegmentationModel,
    seen: Capture,
    truth: Tensor,
    fill: FillFunction,
    item: Explanation,
) -> HeatmapCase:
    """An explanation on trial, with the way to make it again for another capture."""
    study = plan.study
    name, method = item.method, methods_of(study)[item.method]
    layers = dict(plan.layers)
    if item.layer in layers:
        layers = {item.layer: layers[item.layer]}

    def again(other: Capture, network: SegmentationModel) -> Tensor:
        made = explain_capture(other, network, {name: method}, layers, study.target)
        ways = [way for way in plan.fused if item.layer == f"fused:{way}"]
        return (fuse(made, ways[0]) if ways else made[0]).heatmap()

    heat = item.heatmap()
    return HeatmapCase(model, seen, heat, fill, truth, again, study.seed)


def _judge(
    judges: Mapping[str, MapMeasure], case: HeatmapCase, key: tuple[str, str, str], fill: str
) -> Iterator[tuple[object, ...]]:
    """Rows of SCORES for one heatmap: each measure's number, or the reason why it has none."""
    for measure, function in judges.items():
        try:
            value, reason = float(function(case)), ""
        except Undefined as undefined:
            value, reason = float("nan"), str(undefined)
        yield (*key, measure, fill, _plain(value), reason)


@contextmanager
def counting(model: SegmentationModel, count: Count) -> Iterator[None]:
    """Count the pictures that the network is shown inside, under whatever kernels."""
    handle = model.net.register_forward_pre_hook(lambda _module, given: count(len(given[0])))
    try:
        yield
    finally:
        handle.remove()


def _picture(
    sample: Sample, seen: Capture, truth: Tensor, explanations: Sequence[Explanation]
) -> bytes:
    """A tile and its maps for the figures, without what it was padded by."""
    height, width = sample["image"].shape[-2:]
    maps = {(e.method, e.layer): e.heatmap().cpu().numpy()[:height, :width] for e in explanations}
    return pack_picture(
        sample["image"].cpu().numpy(),
        truth.cpu().numpy()[:height, :width],
        seen.bound.prediction[0].cpu().numpy()[:height, :width],
        maps,
    )


def _explain(
    plan: Plan, model: SegmentationModel, seen: Capture, count: Count
) -> list[Explanation]:
    study = plan.study
    methods = methods_of(study)
    found: list[Explanation] = []
    places = [(layer, path, name) for layer, path in plan.layers.items() for name in methods]
    layered = [place for place in places if place[2] not in LAYERLESS]
    bare = [(INPUT_LAYER, "", name) for name in methods if name in LAYERLESS]
    for layer, path, name in [*layered, *bare]:
        [made] = explain_capture(seen, model, {name: methods[name]}, {layer: path}, study.target)
        count(made.forwards)
        found.append(made)
    for way in plan.fused:
        for name in (name for name in methods if name not in LAYERLESS):
            parts = [item for item in found if item.method == name and item.layer in plan.layers]
            found.append(replace(fuse(parts, way), layer=f"fused:{way}"))
    return found


def methods_of(study: Settings) -> dict[str, MethodFunction]:
    """The study's methods by name, as its preset and its shortcuts have them."""
    methods = dict(resolve_method(name, study.preset) for name in study.methods)
    if study.score_channels is not None:
        methods["score_cam"] = partial(score_cam, channels=study.score_channels)
    return methods


def _method_heats(study: Settings, explanations: Sequence[Explanation]) -> Iterator[MaskSource]:
    levels = tuple(("threshold", level) for level in study.thresholds)
    levels += tuple(("area", level) for level in study.areas)
    levels += tuple(("mass", level) for level in study.masses)
    levels += (("otsu", OTSU),) if study.otsu else ()
    levels += _soft(study)
    areas = tuple(("area", level) for level in study.areas)
    for number, item in enumerate(explanations):
        if "inverse" in study.controls:
            # one control over all maps: the number of the map stands for a seed
            yield MaskSource(
                "control:inverse",
                "",
                1 - item.heatmap(),
                item.status,
                seed=number,
                levels=areas,
                strategies=("background_only",),
            )
        yield MaskSource(
            item.method,
            item.layer,
            item.heatmap(),
            item.status,
            item.effective_channels,
            levels=levels,
        )


def _soft(study: Settings) -> tuple[tuple[str, float], ...]:
    return (("soft", OTSU),) if study.soft else ()


def _control_heats(
    study: Settings, name: str, seen: Capture, truth: Tensor
) -> Iterator[MaskSource]:
    """Heatmaps that any method has to beat (measures.md section 7)."""
    areas = tuple(("area", level) for level in study.areas)
    softly = (*areas, *_soft(study))
    thresholds = tuple(("threshold", level) for level in study.thresholds)
    bound = seen.bound
    probability = probabilities(seen.logits, bound.activation)[0, bound.class_index]
    size = (truth.shape[0], truth.shape[1])
    if "random" in study.controls:
        for seed in range(RANDOM_SEEDS):
            blobs = random_blobs(size, seeded("random", study.seed, name, seed)).to(truth.device)
            yield MaskSource("control:random", "", blobs, "ok", seed=seed, levels=softly)
    if "p_c" in study.controls:
        top = probability[bound.valid[0]].max()
        yield MaskSource("control:p_c", "", probability / top, "ok", levels=(*thresholds, *softly))
    if "uniform" in study.controls:
        yield MaskSource("control:uniform", "", torch.ones_like(probability), "ok", levels=areas)
    if "edges" in study.controls:
        yield MaskSource("control:edges", "", edges(seen.images[0]), "ok", levels=softly)
    if "truth" in study.controls:
        yield MaskSource("control:truth", "", truth.float(), "ok", levels=softly)


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
    """One tile's perturbed pictures: listed lazily, shown in batches, read into rows.

    A picture that is asked for again, by another method, layer or control, is not shown again.
    """

    plan: Plan
    model: SegmentationModel
    name: str
    seen: Capture
    truth: Tensor
    fills: Mapping[str, FillFunction]
    count: Count
    noise: Tensor | None = None

    def rows(self, heats: Sequence[MaskSource]) -> list[tuple[object, ...]]:
        rows = list(self.read(self._pictures(heats)))
        before = rows[0]["iou"]
        for row in rows:
            after = row.get("iou")
            known = isinstance(after, float) and isinstance(before, float)
            row["iou_delta"] = after - before if known else None  # type: ignore[operator]
        return [tuple(_plain(row.get(column)) for column in COLUMNS) for row in rows]

    def read(
        self, pictures: Iterable[tuple[dict[str, object], Tensor | None]]
    ) -> Iterator[dict[str, object]]:
        """Rows with their measures, in order; shown in batches across methods, levels and fills."""
        known: dict[bytes, dict[str, object]] = {}
        rows: list[dict[str, object]] = []
        asked: list[tuple[dict[str, object], bytes]] = []
        waiting: dict[bytes, tuple[dict[str, object], Tensor]] = {}

        def flushed() -> Iterator[dict[str, object]]:
            if waiting:
                known.update(zip(waiting, self._show([*waiting.values()]), strict=True))
            self.count(len(waiting), len(asked))
            for row, key in asked:
                row |= known[key]
            yield from rows
            rows.clear()
            asked.clear()
            waiting.clear()

        for row, keep in pictures:
            rows.append(row)
            if keep is None:
                continue
            key = self._key(row, keep)
            asked.append((row, key))
            if key not in known:
                waiting.setdefault(key, (row, keep))
            if len(waiting) == self.plan.study.batch:
                yield from flushed()
        yield from flushed()

    def _key(self, row: dict[str, object], keep: Tensor) -> bytes:
        """What a picture and its measures depend on, alike for alike pictures of this tile."""
        # where everything is kept no fill shows
        whole = keep.dtype == torch.bool and bool(keep.all())
        fill, reference = "" if whole else row["fill"], self._alike[str(row["reference"])]
        digest = hashlib.blake2b(f"{fill} {reference}".encode(), digest_size=16)
        kept = keep.contiguous().cpu().numpy()
        digest.update((np.packbits(kept) if kept.dtype == np.bool_ else kept).data)
        return digest.digest()

    def _pictures(
        self, heats: Sequence[MaskSource]
    ) -> Iterator[tuple[dict[str, object], Tensor | None]]:
        """Rows to fill and what they keep of the picture; None where the map is flat."""
        study, region = self.plan.study, self.seen.bound.region[0]
        valid = self.seen.bound.valid[0]
        everything, nothing = torch.ones_like(region), torch.zeros_like(region)
        yield self._row("control:original", "original", "", nothing), everything
        grown = widened(region, self.plan.grow, self.noise) & valid
        for fill in self.plan.removal_fills:
            yield self._row("control:target_removed", "target_removed", fill, grown), ~grown
        for fill in self.plan.fills:
            if "empty" in study.controls:
                yield self._row("control:empty", "empty", fill, valid), nothing
            if "target_only" in study.controls:
                for reference in (study.region, *study.further):
                    target = self._target(reference)
                    name = ("control:target_only", "target_only")
                    row = self._row(*name, fill, target, reference)
                    yield _measurable(row, target, target)
        for heat in heats:
            yield from self.cut(heat)

    def cut(self, heat: MaskSource) -> Iterator[tuple[dict[str, object], Tensor | None]]:
        """Rows to fill for one heatmap at all its levels, and what each picture keeps."""
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
            elif kind == "soft":
                highlighted = torch.where(valid, heat.heatmap, 0.0)
            elif kind == "threshold":
                highlighted = binarise(heat.heatmap, threshold=level, valid=valid)
            elif kind == "otsu":
                highlighted = binarise(heat.heatmap, otsu=True, valid=valid)
            elif kind == "mass":
                highlighted = binarise(heat.heatmap, mass=level, valid=valid, ranks=ranks)
            else:
                highlighted = binarise(heat.heatmap, area=level, valid=valid, ranks=ranks)
            if kind != "soft":  # a soft mask has no outline
                highlighted = widened(highlighted, self.plan.grow, self.noise) & valid
            keeps = soft_keep if kind == "soft" and not flat else keep_mask
            status = heat.status if flat or bool(highlighted.any()) else "empty_region"
            wanted = [(strategy, study.region) for strategy in heat.strategies]
            third = "highlighted_and_target"
            wanted += [(third, name) for name in study.further if third in heat.strategies]
            for strategy, reference in wanted:
                target = self._target(reference)
                keep = keeps(strategy, highlighted, target)
                for fill in self.plan.fills:
                    row = self._row(heat.method, strategy, fill, highlighted, reference)
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
                        yield row, None
                    else:
                        yield _measurable(row, keep, target)

    def _target(self, reference: str) -> Tensor:
        """R, bool [H, W]: that of the study, or what M3 is read against besides."""
        return self._targets[reference]

    @cached_property
    def _targets(self) -> dict[str, Tensor]:
        bound, study = self.seen.bound, self.plan.study
        masks = {"truth": self.truth, "prediction": bound.prediction[0]}
        targets = {study.region: bound.region[0]}
        targets.update((name, masks[name] & bound.valid[0]) for name in study.further)
        return targets

    @cached_property
    def _alike(self) -> dict[str, str]:
        """The first reference whose R each one's equals."""
        return {
            name: next(one for one, other in self._targets.items() if torch.equal(other, target))
            for name, target in self._targets.items()
        }

    def _row(
        self, method: str, strategy: str, fill: str, region: Tensor, reference: str = ""
    ) -> dict[str, object]:
        """What is known before the picture is shown; `region` may be a soft one."""
        bound, reference = self.seen.bound, reference or self.plan.study.region
        target = self._target(reference)
        return {
            "sample": self.name,
            "method": method,
            "layer": "",
            "binarisation": "",
            "strategy": strategy,
            "reference": reference,
            "fill": fill,
            "area": _share(region, bound.valid[0]),
            "coverage": _share(region, target),
            "status": "ok",
            "seed": 0,
            "preset": self.plan.study.preset,
        }

    def _show(self, waiting: Sequence[tuple[dict[str, object], Tensor]]) -> list[dict[str, object]]:
        """One batch: perturb, one forward, the measures of each picture."""
        image, bound = self.seen.images, self.seen.bound
        groups: dict[tuple[str, bool], list[int]] = {}
        for place, (row, keep) in enumerate(waiting):
            if row["fill"]:
                groups.setdefault((str(row["fill"]), keep.is_floating_point()), []).append(place)
        parts = []
        for (fill, soft), places in groups.items():
            stay = torch.stack([waiting[place][1] for place in places])
            made = self.fills[fill]
            parts.append((places, blend(made, image, stay) if soft else made(image, stay)))
        if len(parts) == 1 and len(parts[0][0]) == len(waiting):
            [(_, shown)] = parts
        else:
            shown = image.repeat(len(waiting), 1, 1, 1)  # the original, under no fill, stays whole
            for places, part in parts:
                shown[places] = part
        if any(row["reference"] != self.plan.study.region for row, _ in waiting):
            each = [self._target(str(row["reference"])) for row, _ in waiting]
            bound = replace(bound, region=torch.stack(each))
        with torch.inference_mode(), evaluating(self.model):
            logits = self.model.shown(shown)
            if not all_finite(logits):
                raise ModelError(
                    f"logits that are not finite under fill {waiting[0][0]['fill']}",
                    "numbers",
                    "leave this fill out (--fills)",
                )
            p = probabilities(logits, bound.activation)
            asked = MEASURES | BOUNDARY if self.plan.study.boundary else MEASURES
            values = measured(p, bound, self.truth[None], asked)
            found = {name: numbers.tolist() for name, numbers in values.items()}
            if self.plan.study.preset == "paper":
                found["entropy"] = entropy_paper(p, bound, self.truth[None]).tolist()
        return [
            {name: values[place] for name, values in found.items()} for place in range(len(waiting))
        ]


def _share(region: Tensor, of: Tensor) -> float:
    """Mean of a region, hard or soft, over the pixels of a mask [H, W]; NaN where it has none."""
    count = int(of.count_nonzero())
    if region.dtype == torch.bool:
        inside = float((region & of).count_nonzero())
    else:
        inside = float(region[of].sum(dtype=torch.float64))
    return inside / count if count else float("nan")


def _plain(value: object) -> object:
    """NaN is NULL in the store: undefined, never a number."""
    return None if isinstance(value, float) and value != value else value


def _measurable(
    row: dict[str, object], keep: Tensor, target: Tensor
) -> tuple[dict[str, object], Tensor | None]:
    """The row and what it keeps; without a target (truth or prediction, empty) nothing is read."""
    if bool(target.any()):
        return row, keep
    return row | {"status": "empty_region", "coverage": None}, None


def outline_noise(study: Settings, name: str, pixels: int, seen: Capture) -> Tensor | None:
    """What roughens every outline of a tile, so that regions inside each other stay so."""
    if not pixels:
        return None
    height, width = seen.images.shape[-2:]
    return rough_noise((height, width), pixels, seeded("roughen", study.seed, name))


def widened(mask: Tensor, grow: int, noise: Tensor | None) -> Tensor:
    """A region, bool [H, W], as its outline is to be: grown, then roughened."""
    grown = dilate(mask, grow)
    return grown if noise is None else roughen(grown, noise)


def outline_name(grow: int, rough: int) -> str:
    """Name of a scheme of outlines, as in `probe.OUTLINES`."""
    parts = [f"{word} {pixels}" for word, pixels in (("grow", grow), ("roughen", rough)) if pixels]
    return ", ".join(parts) or "exact"
