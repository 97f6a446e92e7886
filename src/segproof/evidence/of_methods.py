"""Puts methods on trial: does the heatmap of each find what decides, also where it is a cue?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from segproof.analysis import interval
from segproof.evidence.credit import average_precision, credit
from segproof.evidence.graded_maps import soft_mask
from segproof.evidence.known import KnownScene, capture_scene, generator_of, known_fill
from segproof.explain import (
    MethodFunction,
    Target,
    explain_capture,
    fuse,
    resolve_method,
    with_baseline,
)
from segproof.models import probabilities
from segproof.perturb import control_id, random_blobs, rank_pixels

__all__ = ["judge_methods", "method_table", "twin_of"]


def judge_methods(
    scenes: Sequence[KnownScene],
    methods: Sequence[str | MethodFunction],
    layers: Sequence[str] | None = None,
    *,
    fused: bool = True,
    fill: str = "background_texture",
    seed: int = 0,
    tick: Callable[[int], None] = lambda done: None,
) -> pd.DataFrame:
    """Every method's map at every layer (None: all that are worth explaining) against E.

    A line a map: tier, kind, scene, method, layer, status, forwards, and `precision`, the share of
    the |E| hottest pixels that lie in E; `cue_recall`, the share of the cue among them; `cue_mass`,
    the share of all heat that lies on the cue; `quality`, as `average_precision`; `twin_cue`, the
    share of the cue in what the map has more than that of the twin: the network of the same scene
    without a cue. Maps that are flat found nothing: 0. Controls: random blobs, p_c, the object.
    `fused` adds each method's mean over encoder stages and over decoder blocks, `fill` is what
    masked-input methods hide with.
    """
    rows: list[list[Any]] = []
    maps: dict[tuple[str, ...], Tensor] = {}
    for number, scene in enumerate(scenes):
        worth = credit(scene)
        for method, layer, heat, status, forwards in _method_maps(
            scene, methods, layers, fused=fused, fill=fill, seed=seed
        ):
            place = (scene.tier, scene.kind, scene.name, method, layer)
            maps[place] = heat
            found = _scores(heat, scene, worth, seed, lit=status == "ok")
            rows.append([*place, status, forwards, *found])
        tick(number + 1)
    scores = ["precision", "cue_recall", "cue_mass", "quality"]
    columns = ["tier", "kind", "scene", "method", "layer", "status", "forwards", *scores]
    made = pd.DataFrame(rows, columns=columns)
    made["twin_cue"] = [_beyond_twin(row, scenes, maps) for row in made.itertuples(index=False)]
    return made


def _method_maps(
    scene: KnownScene,
    methods: Sequence[str | MethodFunction],
    layers: Sequence[str] | None,
    *,
    fused: bool,
    fill: str,
    seed: int,
) -> Iterator[tuple[str, str, Tensor, str, int]]:
    """Method, layer, S, status and forwards of every map, the controls' last."""
    size = (scene.image.shape[-2], scene.image.shape[-1])
    model, target = scene.model, Target(scene.class_, "truth")
    chosen = dict(resolve_method(method, "strict") for method in methods)
    asked = layers or [layer.alias for layer in model.layers(size, scene.image.shape[0])]
    paths = {name: model.resolve_layer(name, size) for name in asked}
    seen = capture_scene(scene, list(paths.values()))
    make = known_fill(fill, scene, seen, seed)
    seen = with_baseline(seen, make(seen.images, torch.zeros_like(seen.bound.region)))
    found = explain_capture(seen, model, chosen, paths, target)
    for item in found:
        yield item.method, item.layer, item.heatmap(), item.status, item.forwards + 1
    for name in chosen if fused else ():
        for end in ("encoder", "decoder"):
            parts = [item for item in found if item.method == name and item.layer.startswith(end)]
            if len(parts) > 1:
                joined = fuse(parts, "mean")
                spent = 1 + sum(item.forwards for item in parts)
                yield name, f"fused:{end}", joined.heatmap(), joined.status, spent
    p = probabilities(seen.logits, seen.bound.activation)[0, seen.bound.class_index]
    yield (
        control_id("random"),
        "",
        random_blobs(size, generator_of(scene, seed, "random", 0)),
        "ok",
        0,
    )
    yield control_id("p_c"), "", p, "ok", 1
    yield control_id("object"), "", soft_mask(scene.region), "ok", 0


def _scores(
    heat: Tensor, scene: KnownScene, worth: Tensor, seed: int, *, lit: bool
) -> tuple[float, float, float, float]:
    """Precision at |E|, cue recall and cue mass (NaN without a cue), true quality."""
    evidence, cue = scene.evidence, scene.cue
    has_cue = bool(cue.any())
    if not lit:
        return 0.0, 0.0 if has_cue else math.nan, 0.0 if has_cue else math.nan, 0.0
    top = rank_pixels(heat, None, generator_of(scene, seed, "ties")) < int(evidence.sum())
    precision = float((top & evidence).sum() / top.sum())
    recall = mass = math.nan
    if has_cue:
        recall = float((top & cue).sum() / cue.sum())
        mass = float(heat[cue].double().sum() / heat.double().sum())
    return precision, recall, mass, average_precision(heat, worth, seed)


def _beyond_twin(
    row: Any, scenes: Sequence[KnownScene], maps: Mapping[tuple[str, ...], Tensor]
) -> float:
    """Share of the cue in the part of a map that its twin's map lacks; NaN without a twin."""
    [scene] = [
        scene
        for scene in scenes
        if (scene.tier, scene.kind, scene.name) == (row.tier, row.kind, row.scene)
    ]
    twin = twin_of(scene, scenes)
    if twin is None:
        return math.nan
    other = maps.get((twin.tier, twin.kind, twin.name, row.method, row.layer))
    if other is None:
        return math.nan
    heat = maps[row.tier, row.kind, row.scene, row.method, row.layer]
    more = (heat - other).clamp(min=0).double()
    return float(more[scene.cue].sum() / more.sum()) if bool(more.any()) else 0.0


def twin_of(scene: KnownScene, scenes: Sequence[KnownScene]) -> KnownScene | None:
    """The same scene with a network that needs no cue, of the name most like this one's."""
    if not bool(scene.cue.any()):
        return None
    same = [
        other
        for other in scenes
        if (other.tier, other.name) == (scene.tier, scene.name) and not bool(other.cue.any())
    ]
    alike = [other for other in same if other.kind.startswith(scene.kind)] or same
    return alike[0] if alike else None


def method_table(judged: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Means over scenes with 95 % intervals of cue recall and precision, per tier, kind (and "all"
    that have a cue), method and layer; with the median of forwards and the share of flat maps.
    """
    lines = []
    cued = judged[judged["cue_recall"].notna()].assign(kind="all")
    keys = ["tier", "kind", "method", "layer"]
    scores = ["precision", "cue_recall", "cue_mass", "quality", "twin_cue"]
    for frame in (judged, cued):
        for key, part in frame.groupby(keys, sort=False):
            scenes = part.groupby("scene")[scores].mean()
            found: list[float] = []
            for name in ("precision", "cue_recall"):
                made = interval(scenes[name].to_numpy(), resamples=resamples, seed=seed)
                found += [made.mean, made.low, made.high]
            rest = scenes[["cue_mass", "quality", "twin_cue"]].mean().tolist()
            flat = float((part["status"] != "ok").mean())
            spent = int(part["forwards"].median())
            lines.append((*key, *found, *rest, spent, len(scenes), flat))
    columns = [*keys, "precision", "precision_low", "precision_high"]
    columns += ["cue_recall", "cue_recall_low", "cue_recall_high"]
    columns += ["cue_mass", "quality", "twin_cue", "forwards", "scenes", "flat"]
    return pd.DataFrame(lines, columns=columns)
