"""Studies one tile: explains it, shows the network its perturbed pictures, scores its maps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from segproof.data import Sample, SampleSource, digest_of
from segproof.errors import DataError, ModelError, printable
from segproof.explain import (
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
    MAP_MEASURES,
    HeatmapCase,
    MapMeasure,
    Undefined,
)
from segproof.models import (
    OutOfMemoryError,
    SegmentationModel,
    halving,
    probabilities,
    running,
)
from segproof.perturb import (
    CONTROLS,
    FILLS,
    OUTLINE,
    FillFunction,
    control_id,
    control_name,
    dilate,
    largest_square,
    make_fill,
    random_blobs,
    seeded,
)
from segproof.study.pictures import Count, Heatmap, TilePictures, outline_noise, plain
from segproof.study.plan import HeatmapKey, Plan
from segproof.study.settings import Settings
from segproof.study.store import Row, TileResult
from segproof.study.thumbnails import pack_picture

__all__ = [
    "MAP_MEASURES",
    "OUT_OF_MEMORY",
    "clean_capture",
    "control_rows",
    "counting",
    "digest_or_none",
    "donor_of",
    "method_maps",
    "method_rows",
    "nothing_to_explain",
    "study_tile",
]

# controls that are measured as whole heatmaps
SCORED: Final = tuple(control.id for control in CONTROLS.values() if control.scored)
DONORS: Final = 4  # tiles that are looked at for a patch without the class
OUT_OF_MEMORY: Final = "oom"  # how such a reason begins: another machine may have more


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

    def finish(status: str, reason: str = "", **outcome: Any) -> TileResult:
        return TileResult(
            sample=name,
            position=position,
            status=status,
            reason=reason,
            forwards=spent,
            asked=wanted,
            seconds=time.perf_counter() - started,
            digest=digest_or_none(data, position),
            **outcome,
        )

    def attempt(batch: int) -> TileResult:
        smaller = plan.batched(batch)
        sample = data[position]
        captured, truth = clean_capture(smaller, model, sample, plan.layers)
        count(1)
        reason = nothing_to_explain(plan.study, captured)
        if reason:
            return finish("skipped", reason)
        donor = donor_of(smaller, model, data, position)
        with running(model, plan.kernels):
            rows, scores, maps = _try_tile(smaller, model, name, captured, truth, donor, count)
        picture = _picture(sample, captured, truth, maps) if position in plan.pictured else None
        return finish("ok", rows=rows, scores=scores, picture=picture)

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
    captured = capture(
        model,
        image[None],
        plan.study.target,
        list(layers.values()),
        truth[None],
        valid=None if valid is None else valid[None],
        gradients=bool(layers),
        batch=plan.study.batch,
    )
    return captured, truth


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


def nothing_to_explain(study: Settings, captured: Capture) -> str:
    """Why a tile is skipped, in words; "" where it is not."""
    pixels = int(captured.bound.region.sum())
    if not pixels:
        return f"no {study.class_} in the {study.region}"
    if pixels < study.min_area:
        return f"{study.class_} smaller than {study.min_area} px"
    if not bool(captured.bound.prediction.any()):
        return f"{study.class_} never predicted"
    return ""


def control_rows(
    plan: Plan, model: SegmentationModel, data: SampleSource, position: int
) -> Iterator[Row]:
    """Rows of one tile's control heatmaps (random and p_c), made one batch after the other; none
    where there is nothing to explain.

    Raises:
        DataError, ModelError: the tile cannot be studied.
    """
    tile = _opened(plan, model, data, position, {})
    if tile is None:
        return
    controls = ("p_c", "random")
    heatmaps = _control_heatmaps(plan, tile.name, tile.captured, tile.truth, controls)
    # backwards: p_c comes before the random ones, of which some suffice
    sources = reversed([*plan.control_heatmaps(controls)])
    yield from tile.read((one for source in sources for one in plan.cut(source)), heatmaps)


def method_maps(
    plan: Plan, model: SegmentationModel, data: SampleSource, position: int
) -> list[Explanation]:
    """All maps of one tile; none where there is nothing to explain.

    Raises:
        DataError, ModelError: the tile cannot be studied.
    """
    tile = _opened(plan, model, data, position, plan.layers)
    return [] if tile is None else _explain(plan, model, tile.captured, tile.count)


def method_rows(
    plan: Plan, model: SegmentationModel, data: SampleSource, position: int
) -> list[Row]:
    """Rows of one tile's maps under the first fill, without controls; none where there is nothing
    to explain.

    Raises:
        DataError, ModelError: the tile cannot be studied.
    """
    bare = plan.study.model_copy(update={"controls": (), "references": ()})
    plan = replace(plan, study=bare, fills=plan.fills[:1])
    tile = _opened(plan, model, data, position, plan.layers)
    if tile is None:
        return []
    explanations = _explain(plan, model, tile.captured, tile.count)
    heatmaps = _heatmaps(plan, tile.name, tile.captured, tile.truth, explanations)
    return list(tile.read((one for at in plan.heatmaps() for one in plan.cut(at)), heatmaps))


def _opened(
    plan: Plan,
    model: SegmentationModel,
    data: SampleSource,
    position: int,
    layers: Mapping[str, str],
) -> TilePictures | None:
    """A tile made ready under the plan's own fills; None where there is nothing to explain."""
    captured, truth = clean_capture(plan, model, data[position], layers)
    if nothing_to_explain(plan.study, captured):
        return None
    name = data.ids[position]
    donor = donor_of(plan, model, data, position)
    return _ready(plan, model, name, captured, truth, donor, plan.fills, lambda *_: None)


def _ready(
    plan: Plan,
    model: SegmentationModel,
    name: str,
    captured: Capture,
    truth: Tensor,
    donor: Tensor | None,
    names: Sequence[str],
    count: Count,
) -> TilePictures:
    """A tile under the fills of these `names`; the plan's first one is the baseline."""
    seed = plan.study.seed
    context = clean_of(captured, model, truth, seed=(seed, name), donor=donor)
    fills = {fill: make_fill(fill, context.seeded(seed, name, fill)) for fill in names}
    nothing = torch.zeros_like(captured.bound.region)
    captured = with_baseline(captured, fills[plan.fills[0]](captured.images, nothing))
    noise = outline_noise(plan.study, name, plan.roughen, captured)
    return TilePictures(plan, model, name, captured, truth, fills, count, noise)


def _try_tile(
    plan: Plan,
    model: SegmentationModel,
    name: str,
    captured: Capture,
    truth: Tensor,
    donor: Tensor | None,
    count: Count,
) -> tuple[list[Row], list[tuple[object, ...]], list[Explanation]]:
    """The rows of a tile, the scores of its maps, and its explanations."""
    study = plan.study
    tile = _ready(plan, model, name, captured, truth, donor, plan.removal_fills, count)
    captured, fills = tile.captured, tile.fills
    explanations = _explain(plan, model, captured, count)
    heatmaps = _heatmaps(plan, name, captured, truth, explanations)
    rows = tile.rows(heatmaps)
    functions = {measure: MAP_MEASURES[measure].function for measure in study.measures}
    scores: list[tuple[object, ...]] = []
    if functions:
        with counting(model, count):
            for item in explanations:
                case = _case(plan, model, captured, truth, fills[plan.fills[0]], item)
                scores += _scores(functions, case, (name, item.method, item.layer), plan.fills[0])
            for (method, _, seed), heatmap in heatmaps.items():
                if method in SCORED and seed == 0:
                    case = HeatmapCase(
                        model, captured, heatmap.values.float(), fills[plan.fills[0]], truth,
                        seed=study.seed,
                    )  # fmt: skip
                    scores += _scores(functions, case, (name, method, ""), plan.fills[0])
    return rows, scores, explanations


def _case(
    plan: Plan,
    model: SegmentationModel,
    captured: Capture,
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
    return HeatmapCase(model, captured, heat, fill, truth, again, study.seed)


def _scores(
    functions: Mapping[str, MapMeasure], case: HeatmapCase, key: tuple[str, str, str], fill: str
) -> Iterator[tuple[object, ...]]:
    """Rows of SCORES for one heatmap: each measure's number, or the reason why it has none."""
    for measure, function in functions.items():
        try:
            value, reason = float(function(case)), ""
        except Undefined as undefined:
            value, reason = float("nan"), str(undefined)
        yield (*key, measure, fill, plain(value), reason)


@contextmanager
def counting(model: SegmentationModel, count: Count) -> Iterator[None]:
    """Count the pictures that the network is shown inside, under whatever kernels."""
    handle = model.net.register_forward_pre_hook(lambda _module, given: count(len(given[0])))
    try:
        yield
    finally:
        handle.remove()


def _picture(
    sample: Sample, captured: Capture, truth: Tensor, explanations: Sequence[Explanation]
) -> bytes:
    """A tile and its maps for the figures, without what it was padded by."""
    height, width = sample["image"].shape[-2:]
    maps = {(e.method, e.layer): e.heatmap().cpu().numpy()[:height, :width] for e in explanations}
    return pack_picture(
        sample["image"].cpu().numpy(),
        truth.cpu().numpy()[:height, :width],
        captured.bound.prediction[0].cpu().numpy()[:height, :width],
        maps,
    )


def _explain(
    plan: Plan, model: SegmentationModel, captured: Capture, count: Count
) -> list[Explanation]:
    """All explanations of a tile, in the order of `plan.maps()`."""
    methods = methods_of(plan.study)
    target = plan.study.target
    explanations: dict[tuple[str, str], Explanation] = {}
    for name, layer in plan.maps():
        if name not in LAYERLESS and layer not in plan.layers:
            # joined maps come after those of the layers, of which they are made
            way = next(way for way in plan.fused if layer == f"fused:{way}")
            parts = [explanations[name, place] for place in plan.layers]
            explanations[name, layer] = replace(fuse(parts, way), layer=layer)
            continue
        path = "" if name in LAYERLESS else plan.layers[layer]
        method = {name: methods[name]}
        [explanation] = explain_capture(captured, model, method, {layer: path}, target)
        count(explanation.forwards)
        explanations[name, layer] = explanation
    return list(explanations.values())


def methods_of(study: Settings) -> dict[str, MethodFunction]:
    """The study's methods by name, as its preset and its shortcuts have them."""
    methods = dict(resolve_method(name, study.preset) for name in study.methods)
    if study.score_channels is not None:
        methods["score_cam"] = partial(score_cam, channels=study.score_channels)
    return methods


def _heatmaps(
    plan: Plan, name: str, captured: Capture, truth: Tensor, explanations: Sequence[Explanation]
) -> dict[HeatmapKey, Heatmap]:
    """Every heatmap of a tile, those of the explanations and the controls of the study."""
    heatmaps: dict[HeatmapKey, Heatmap] = {}
    for number, item in enumerate(explanations):
        values = item.heatmap()
        if "inverse" in plan.study.controls:
            # as the plan has it: the number of the map stands for a seed
            heatmaps[control_id("inverse"), "", number] = Heatmap(1 - values, item.status)
        own = Heatmap(values, item.status, item.effective_channels)
        heatmaps[item.method, item.layer, 0] = own
    return heatmaps | _control_heatmaps(plan, name, captured, truth, plan.study.controls)


def _control_heatmaps(
    plan: Plan, name: str, captured: Capture, truth: Tensor, controls: Sequence[str]
) -> dict[HeatmapKey, Heatmap]:
    """Heatmaps that any method has to beat (measures.md section 7)."""
    bound = captured.bound
    probability = probabilities(captured.logits, bound.activation)[0, bound.class_index]
    size = (truth.shape[0], truth.shape[1])
    values: dict[HeatmapKey, Tensor] = {}
    for source in plan.control_heatmaps(controls):
        match control_name(source.method):
            case "random":
                draw = seeded("random", plan.study.seed, name, source.seed)
                heatmap = random_blobs(size, draw).to(truth.device)
            case "p_c":
                heatmap = probability / probability[bound.valid[0]].max()
            case "uniform":
                heatmap = torch.ones_like(probability)
            case "edges":
                heatmap = edges(captured.images[0])
            case _:
                heatmap = truth.float()
        values[source.method, source.layer, source.seed] = heatmap
    return {key: Heatmap(heatmap, "ok") for key, heatmap in values.items()}


def edges(image: Tensor) -> Tensor:
    """Sobel gradient magnitude of the mean band, scaled to [0, 1], [H, W]."""
    grey = image.mean(dim=0, keepdim=True)[None]
    kernel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]]).to(grey)
    padded = torch.nn.functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    both = torch.stack([kernel, kernel.T])[:, None]
    strength = torch.nn.functional.conv2d(padded, both).square().sum(dim=1).sqrt()[0]
    return strength / strength.max().clamp(min=torch.finfo(strength.dtype).tiny)
