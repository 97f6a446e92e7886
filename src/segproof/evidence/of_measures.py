"""Measures and methods on trial themselves, on pictures whose answer is known.

What decides is found by exact Shapley values over the parts of a picture. Maps of known quality are
then put to every measure: how well does its order agree with the truth? And every method's map is
held against what decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from scipy.stats import rankdata
from torch import Tensor

from segproof.analysis import interval, kendall_tau
from segproof.errors import DataError
from segproof.evidence.known import KnownScene
from segproof.explain import (
    Capture,
    MethodFunction,
    Target,
    capture,
    clean_of,
    explain_capture,
    fuse,
    resolve_method,
    with_baseline,
)
from segproof.measures import (
    CutFunction,
    HeatmapCase,
    MapMeasure,
    Measure,
    Undefined,
    certainty,
    confidence,
    entropy_paper,
    headline,
    iou,
)
from segproof.models import evaluating, probabilities
from segproof.perturb import (
    FillFunction,
    binarise,
    dilate,
    keep_mask,
    make_fill,
    perturb,
    random_blobs,
    rank_pixels,
    seeded,
)

__all__ = [
    "AREAS",
    "CUT_MEASURES",
    "FILLS",
    "HEADLINE",
    "THRESHOLDS",
    "Shown",
    "average_precision",
    "credit",
    "graded_maps",
    "judge_measures",
    "judge_methods",
    "measure_cards",
    "method_table",
    "shapley",
    "shapley_table",
]

FACTORS: Final = ("object", "cue", "decoys", "other")
DECIDES: Final = 0.1  # share of all credit from which on a factor is evidence
FILLS: Final = ("absent", "background_texture")
THRESHOLDS: Final = (0.1, 0.3, 0.5)
AREAS: Final = (0.05, 0.1, 0.2, 0.3)
HEADLINE: Final = ("m1_confidence", "m2_confidence", "m3_certainty", "iou_drop")
RANDOM: Final = 3
TIE: Final = 1e-4  # values nearer to each other are the same
UNLIKE: Final = 0.02  # of true quality: maps nearer to the oracle may stand beside it
WHOLE: Final = "map"  # stands for binarisation where a measure takes the map as it is
BATCH: Final = 16  # pictures of 64 px that stay in a core's cache


# --- what decides ---------------------------------------------------------------------------------
def shapley(known: KnownScene) -> dict[str, float]:
    """Exact Shapley value of each factor (object, cue, decoys, other) for the confidence over R.

    v(S) = mean of p_c over R of the picture in which the factors in S are as they are and the
    others as in `absent`; for "other", the ground, `absent` turned by half. The object is R less
    the cue; a factor without pixels is left out. Values sum to v(all) - v(none); 2^k forwards.
    """
    parts = _factors(known)
    names, count = list(parts), len(parts)
    bare = torch.rot90(known.absent, 2, (-2, -1))
    pictures = []
    for subset in range(2**count):
        picture = known.absent if "other" not in parts else bare
        for place, name in enumerate(names):
            if subset >> place & 1:
                picture = torch.where(parts[name], known.image, picture)
            elif name != "other":
                picture = torch.where(parts[name], known.absent, picture)
        pictures.append(picture)
    seen = _seen(known)
    values = _confidences(known, seen, pictures)
    found = dict.fromkeys(names, 0.0)
    for place, name in enumerate(names):
        for subset in range(2**count):
            if subset >> place & 1:
                continue
            size = subset.bit_count()
            weight = math.factorial(size) * math.factorial(count - size - 1)
            gain = values[subset | 1 << place] - values[subset]
            found[name] += weight * gain / math.factorial(count)
    return found


def _factors(known: KnownScene) -> dict[str, Tensor]:
    """Disjoint masks, bool [H, W], of the factors that have pixels; together the whole picture."""
    cue = known.cue
    thing = (known.region | known.evidence) & ~cue
    decoys = known.decoys & ~cue & ~thing
    rest = ~(cue | thing | decoys)
    parts = dict(zip(FACTORS, (thing, cue, decoys, rest), strict=True))
    return {name: mask for name, mask in parts.items() if bool(mask.any())}


def credit(known: KnownScene) -> Tensor:
    """What each pixel is worth, float64 [H, W], sum 1: a factor's Shapley value, spread evenly over
    its pixels, for the factors that decide.

    Raises:
        DataError: the factors that decide are not the evidence that the picture claims.
    """
    values, parts = shapley(known), _factors(known)
    total = sum(value for value in values.values() if value > 0)
    worth = torch.zeros(known.region.shape, dtype=torch.float64)
    for name, value in values.items():
        if total > 0 and value >= DECIDES * total:
            worth[parts[name]] = value / int(parts[name].sum())
    if not bool(((worth > 0) == known.evidence).all()):
        shown = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        raise DataError(
            f"{known.kind} {known.name} with Shapley values {shown}",
            "evidence on exactly the factors with a tenth of all credit or more",
            "correct the evidence, or leave this network out",
        )
    return worth / worth.sum()


def shapley_table(knowns: Iterable[KnownScene]) -> pd.DataFrame:
    """Shapley values as a table: tier, kind, scene, factor, value, px."""
    rows = []
    for known in knowns:
        parts = _factors(known)
        for name, value in shapley(known).items():
            where = (known.tier, known.kind, known.name)
            rows.append((*where, name, value, int(parts[name].sum())))
    columns = ["tier", "kind", "scene", "factor", "value", "px"]
    return pd.DataFrame(rows, columns=columns)


def average_precision(heatmap: Tensor, worth: Tensor, seed: int = 0) -> float:
    """True quality of a heatmap [H, W]: average precision against the evidence, weighted by credit.

    Sum over pixels i of E of worth_i * (share of E among the pixels ranked down to i), in (0, 1]; 1
    where every pixel of E is before every other. With equal worth it is the usual average
    precision; weighted, a small cue that decides half counts half. Ties go in a seeded order.
    """
    order = rank_pixels(heatmap, None, seeded("ties", seed)).flatten().argsort()
    sorted_worth = worth.flatten()[order]
    hits = sorted_worth > 0
    precision = hits.double().cumsum(0) / torch.arange(1, len(hits) + 1, dtype=torch.float64)
    return float((precision * sorted_worth).sum() / worth.sum())


# --- maps of known quality ------------------------------------------------------------------------
def graded_maps(known: KnownScene, worth: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Heatmaps [H, W] in [0, 1] from the oracle to the opposite of it; equal ones are left out.

    The oracle is E, what is worth most first, soft at its outline, each pixel of E above all
    others. The others lack the cue or the object, half of each, or take in surroundings or decoys,
    are blurred, mixed with noise, shifted, scattered, inverted, random.
    """
    evidence, cue = known.evidence, known.cue
    size = (evidence.shape[0], evidence.shape[1])
    oracle = _oracle(evidence, worth)
    blobs = [random_blobs(size, _drawn(known, seed, "random", n)) for n in range(RANDOM)]
    scattered = oracle.flatten()[
        torch.randperm(oracle.numel(), generator=_drawn(known, seed, "shuffled"))
    ].view(size)
    thing, nothing = known.region & ~cue, torch.zeros_like(cue)
    both = bool((thing & evidence).any()) and bool((cue & evidence).any())
    made = {
        "oracle": oracle,
        "dilated": _within(dilate(evidence, 3), blobs[0]),
        "blurred": _unit(_blur(evidence.float(), max(size) / 12)),
        "noisy": _unit(oracle + 2 * blobs[1]),
        "half": _soft(_half(evidence)),
        "with_decoys": _soft(evidence | known.decoys),
        "object_only": _soft(thing if both else nothing),
        "cue_only": _soft(cue if both else nothing),
        "wrong_object": _soft(nothing if bool((thing & evidence).any()) else thing),
        "nudged": oracle.roll((max(size) // 16, max(size) // 16), (0, 1)),
        "shifted": oracle.roll((size[0] // 2, size[1] // 3), (0, 1)),
        "decoys": _soft(known.decoys & ~thing & ~cue),
        "shuffled": scattered,
        "inverted": 1 - oracle,
        **{f"random_{n + 1}": blob for n, blob in enumerate(blobs)},
    }
    found: dict[str, Tensor] = {}
    for name, heat in made.items():
        if bool(heat.any()) and not any(bool((heat == other).all()) for other in found.values()):
            found[name] = heat
    return found


def _drawn(known: KnownScene, seed: int, *what: object) -> torch.Generator:
    return seeded("evidence", seed, known.tier, known.name, *what)


def _blur(mask: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(mask.double().numpy(), sigma)).float()


def _unit(heat: Tensor) -> Tensor:
    low, high = heat.min(), heat.max()
    return (heat - low) / (high - low) if bool(high > low) else torch.zeros_like(heat)


def _soft(mask: Tensor) -> Tensor:
    """A mask with a soft outline, in [0, 1]: its pixels above 0.5, those beside it below."""
    if not bool(mask.any()):
        return torch.zeros(mask.shape)
    near = _blur(mask.float(), 1.5)
    return torch.where(mask, 0.5 + 0.5 * near, 0.5 * near) / (0.5 + 0.5 * near[mask].max())


def _oracle(evidence: Tensor, worth: Tensor) -> Tensor:
    """E with what is worth most first: at least 0.5 inside, less outside."""
    inside = 0.5 + 0.25 * (worth / worth.max()).float() + 0.25 * _blur(evidence.float(), 1.5)
    return _unit(torch.where(evidence, inside, 0.5 * _blur(evidence.float(), 1.5)))


def _within(mask: Tensor, blob: Tensor) -> Tensor:
    """A mask without any order of its own inside: that of a random blob."""
    return torch.where(mask, 0.6 + 0.4 * blob, 0.5 * _blur(mask.float(), 1.5))


def _half(mask: Tensor) -> Tensor:
    """The left half of the pixels of every connected part."""
    labels, count = ndimage.label(mask.numpy(), structure=np.ones((3, 3)))
    kept = np.zeros(labels.shape, dtype=bool)
    for number in range(1, count + 1):
        columns = np.nonzero(labels == number)[1]
        kept |= (labels == number) & (np.arange(labels.shape[1]) <= np.median(columns) - 0.5)
    return torch.from_numpy(kept)


# --- measures -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Shown:
    """What was read, float64 [n], of n regions B: of the clean picture, of R alone, of M1, M2, M3,
    and without the pixels of B outside R; keys confidence, certainty, iou, entropy.
    """

    clean: Mapping[str, float]
    target_only: Mapping[str, float]
    m1: Mapping[str, Tensor]
    m2: Mapping[str, Tensor]
    m3: Mapping[str, Tensor]
    outside: Mapping[str, Tensor]


# Measures of a heatmap that was cut to a region, in the order of the evidence tables.
CUT_MEASURES: Final[dict[str, Measure[CutFunction]]] = {
    "m1_confidence": headline()["M1"],
    "m2_confidence": headline()["M2"],
    "m3_certainty": headline()["M3"],
    "m3_gain": Measure(
        "m3_gain",
        lambda s: s.m3["certainty"] - s.target_only["certainty"],
        "higher",
        formula="certainty of M3 - certainty of R alone",
    ),
    "m3_entropy_paper": headline("paper")["M3"],
    "iou_drop": headline()["iou_drop"],
    "outside_drop": Measure(
        "outside_drop",
        lambda s: s.clean["confidence"] - s.outside["confidence"],
        "higher",
        formula="confidence - confidence without B outside R",
    ),
    "contrast": headline()["contrast"],
}


def judge_measures(
    knowns: Iterable[KnownScene],
    *,
    cut: Mapping[str, Measure[CutFunction]] = CUT_MEASURES,
    whole: Mapping[str, Measure[MapMeasure] | MapMeasure] | None = None,
    fills: Sequence[str] = FILLS,
    thresholds: Sequence[float] = THRESHOLDS,
    areas: Sequence[float] = AREAS,
    seed: int = 0,
    tick: Callable[[int], None] = lambda done: None,
) -> pd.DataFrame:
    """Every measure on every map of known quality: tier, kind, scene, map, truth, measure, better,
    fill, binarisation, level, value; NaN where a measure has no number.

    `cut` are measured at each threshold and each matched area, `whole` (callables: higher is
    better) once a fill. `fills` are names, or "absent" for the picture's ideal one.
    """
    columns = ["tier", "kind", "scene", "map", "truth", "measure", "better", "fill"]
    columns += ["binarisation", "level", "value"]
    levels = [("threshold", level) for level in thresholds] + [("area", level) for level in areas]
    rows: list[tuple[Any, ...]] = []
    for number, known in enumerate(knowns):
        worth = credit(known)
        maps = graded_maps(known, worth, seed)
        truths = {name: average_precision(heat, worth, seed) for name, heat in maps.items()}
        seen = _seen(known)
        key = (known.tier, known.kind, known.name)
        regions = _regions(known, maps, levels, seed)
        for fill in fills:
            make = known_fill(fill, known, seen, seed)
            if cut:
                shown = _shown(known, seen, make, [region for *_, region in regions])
                for name, measure in cut.items():
                    values = measure.function(shown).tolist()
                    for (which, kind, level, _), value in zip(regions, values, strict=True):
                        row = (which, truths[which], name, measure.better, fill, kind, level)
                        rows.append((*key, *row, value))
            for name, judged in (whole or {}).items():
                function, better = _directed(judged)
                for which, heat in maps.items():
                    value = _judged(
                        function, HeatmapCase(known.model, seen, heat, make, known.truth)
                    )
                    entry = (which, truths[which], name, better, fill, WHOLE, math.nan)
                    rows.append((*key, *entry, value))
        tick(number + 1)
    return pd.DataFrame(rows, columns=columns)


def _directed(judged: Measure[MapMeasure] | MapMeasure) -> tuple[MapMeasure, str]:
    if isinstance(judged, Measure):
        # one without a direction is tried as if higher were better, and said to have none
        return judged.function, judged.better
    return judged, "higher"


def _judged(function: MapMeasure, case: HeatmapCase) -> float:
    try:
        return float(function(case))
    except Undefined:
        return math.nan


def _regions(
    known: KnownScene, maps: Mapping[str, Tensor], levels: Sequence[tuple[str, float]], seed: int
) -> list[tuple[str, str, float, Tensor]]:
    found = []
    for name, heat in maps.items():
        ranks = rank_pixels(heat, None, _drawn(known, seed, "ties"))
        for kind, level in levels:
            if kind == "area":
                region = binarise(heat, area=level, ranks=ranks)
            else:
                region = binarise(heat, threshold=level)
            found.append((name, kind, level, region))
    return found


def known_fill(name: str, known: KnownScene, seen: Capture, seed: int = 0) -> FillFunction:
    """A fill by name; "absent" puts what an ideal one would: the picture without all objects."""
    if name == "absent":
        return lambda images, keep: perturb(images, keep, known.absent)
    return make_fill(name, clean_of(seen, known.model, known.truth, seed=(seed, known.name, name)))


def _seen(known: KnownScene, layers: Sequence[str] = ()) -> Capture:
    """The clean picture with R bound; gradients where layers are asked for."""
    return capture(
        known.model,
        known.image[None],
        Target(known.class_, "truth"),
        list(layers),
        known.region[None],
        gradients=bool(layers),
        batch=BATCH,
    )


def _confidences(known: KnownScene, seen: Capture, pictures: Sequence[Tensor]) -> list[float]:
    parts = torch.split(torch.stack(list(pictures)), BATCH)
    return [float(value) for part in parts for value in _read(known, seen, part)["confidence"]]


def _read(known: KnownScene, seen: Capture, pictures: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode(), evaluating(known.model):
        p = probabilities(known.model(pictures), seen.bound.activation)
    truth = known.truth[None]
    return {
        "confidence": confidence(p, seen.bound),
        "certainty": certainty(p, seen.bound),
        "iou": iou(p, seen.bound, truth),
        "entropy": entropy_paper(p, seen.bound, truth),
    }


def _shown(
    known: KnownScene, seen: Capture, fill: FillFunction, regions: Sequence[Tensor]
) -> Shown:
    target, region = seen.bound.region[0], torch.stack(list(regions))
    keep = torch.cat(
        [
            torch.stack([torch.ones_like(target), target]),
            keep_mask("background_only", region, target),
            keep_mask("highlighted_only", region, target),
            keep_mask("highlighted_and_target", region, target),
            ~(region & ~target),
        ]
    )
    # maps without heat outside R, and several levels of one plateau, show the same pictures
    distinct, place = torch.unique(keep, dim=0, return_inverse=True)
    parts = [_read(known, seen, fill(seen.images, part)) for part in torch.split(distinct, BATCH)]
    read = {name: torch.cat([part[name] for part in parts])[place] for name in parts[0]}
    count = len(region)

    def strategy(number: int) -> dict[str, Tensor]:
        start = 2 + number * count
        return {name: value[start : start + count] for name, value in read.items()}

    return Shown(
        clean={name: float(value[0]) for name, value in read.items()},
        target_only={name: float(value[1]) for name, value in read.items()},
        m1=strategy(0),
        m2=strategy(1),
        m3=strategy(2),
        outside=strategy(3),
    )


def measure_cards(judged: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """How far each measure may be believed: per tier, kind (and "all"), measure, fill, binarisation
    the mean Kendall tau with the truth over scenes, its 95 % interval (scenes resampled), the share
    of maps that tie, of scenes with the oracle first and with a random map in the upper half.

    `sees_cue`: the share of scenes with the oracle before the object without its cue. At thresholds
    and areas the value of a map is its mean over the levels. A measure without any order has tau 0.
    `label`: uninformative where more than half of the maps tie.
    """
    keys = ["tier", "kind", "measure", "fill", "binarisation"]
    per_scene = scene_scores(judged)
    whole = per_scene.assign(kind="all")
    lines = []
    for frame in (per_scene, whole):
        for key, part in frame.groupby(keys, sort=False):
            scores = ["tau", "ties", "first", "random", "sees_cue"]
            scenes = part.groupby("scene", sort=True)[scores].mean()
            tau = interval(scenes["tau"].to_numpy(), resamples=resamples, seed=seed)
            means = scenes.mean()
            better = str(part["better"].iloc[0])
            label = "uninformative" if means["ties"] > 0.5 else ""
            label = "no direction" if better == "neither" else label
            row = (tau.mean, tau.low, tau.high, tau.n, *means.drop("tau"))
            lines.append((*key, better, *row, label))
    columns = [*keys, "better", "tau", "low", "high", "scenes", "ties", "oracle_first"]
    return pd.DataFrame(lines, columns=[*columns, "random_upper", "sees_cue", "label"])


def scene_scores(judged: pd.DataFrame) -> pd.DataFrame:
    """One line a scene and measure: tau, share of tied maps, oracle first, random in upper half,
    and whether the oracle is before the object without its cue.
    """
    keys = ["tier", "kind", "scene", "measure", "better", "fill", "binarisation"]
    means = judged.groupby([*keys, "map"], sort=False)[["truth", "value"]].mean().reset_index()
    lines = []
    for key, part in means.groupby(keys, sort=False):
        lines.append((*key, *_agreement(part, lower=key[4] == "lower")))
    return pd.DataFrame(lines, columns=[*keys, "tau", "ties", "first", "random", "sees_cue"])


def _agreement(part: pd.DataFrame, *, lower: bool) -> tuple[float, float, float, float, float]:
    """Tau, largest share of maps with one value, oracle first (0 or 1), random in upper half, the
    oracle before the object without its cue (0 or 1; NaN where there is none).
    """
    values = part["value"].to_numpy(np.float64)
    values = np.where(np.isfinite(values), -values if lower else values, np.nan)
    scaled = np.round(values / TIE) if np.isfinite(values).any() else values
    lowest = np.nanmin(scaled) - 1 if np.isfinite(scaled).any() else 0.0
    scaled = np.where(np.isfinite(scaled), scaled, lowest)  # no number: behind all that have one
    truth = part["truth"].to_numpy(np.float64)
    tau = kendall_tau(scaled, truth)
    ties = float(np.unique(scaled, return_counts=True)[1].max() / len(scaled))
    names = part["map"].to_numpy()
    oracle = names == "oracle"
    rivals = truth < truth[oracle].max() - UNLIKE
    first = float(bool((scaled[oracle].max() > scaled[rivals]).all()))
    ranks = rankdata(-scaled)
    random = np.array([str(name).startswith("random") for name in names])
    middle = (len(ranks) + 1) / 2
    # one that hits the evidence by chance stands there rightly
    upper = float(((ranks < middle) & (rankdata(-truth) > middle))[random].mean())
    blind = scaled[names == "object_only"]
    sees = float(bool((scaled[oracle].max() > blind).all())) if len(blind) else math.nan
    return (0.0 if math.isnan(tau) else tau), ties, first, upper, sees


# --- methods --------------------------------------------------------------------------------------
def judge_methods(
    knowns: Sequence[KnownScene],
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
    for number, known in enumerate(knowns):
        worth = credit(known)
        for method, layer, heat, status, forwards in _method_maps(
            known, methods, layers, fused=fused, fill=fill, seed=seed
        ):
            place = (known.tier, known.kind, known.name, method, layer)
            maps[place] = heat
            found = _scores(heat, known, worth, seed, lit=status == "ok")
            rows.append([*place, status, forwards, *found])
        tick(number + 1)
    scores = ["precision", "cue_recall", "cue_mass", "quality"]
    columns = ["tier", "kind", "scene", "method", "layer", "status", "forwards", *scores]
    made = pd.DataFrame(rows, columns=columns)
    made["twin_cue"] = [_beyond_twin(row, knowns, maps) for row in made.itertuples(index=False)]
    return made


def _method_maps(
    known: KnownScene,
    methods: Sequence[str | MethodFunction],
    layers: Sequence[str] | None,
    *,
    fused: bool,
    fill: str,
    seed: int,
) -> Iterator[tuple[str, str, Tensor, str, int]]:
    """Method, layer, S, status and forwards of every map, the controls' last."""
    size = (known.image.shape[-2], known.image.shape[-1])
    model, target = known.model, Target(known.class_, "truth")
    chosen = dict(resolve_method(method, "strict") for method in methods)
    asked = layers or [layer.alias for layer in model.layers(size, known.image.shape[0])]
    paths = {name: model.resolve_layer(name, size) for name in asked}
    seen = _seen(known, list(paths.values()))
    make = known_fill(fill, known, seen, seed)
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
    yield "control:random", "", random_blobs(size, _drawn(known, seed, "random", 0)), "ok", 0
    yield "control:p_c", "", p, "ok", 1
    yield "control:object", "", _soft(known.region), "ok", 0


def _scores(
    heat: Tensor, known: KnownScene, worth: Tensor, seed: int, *, lit: bool
) -> tuple[float, float, float, float]:
    """Precision at |E|, cue recall and cue mass (NaN without a cue), true quality."""
    evidence, cue = known.evidence, known.cue
    has_cue = bool(cue.any())
    if not lit:
        return 0.0, 0.0 if has_cue else math.nan, 0.0 if has_cue else math.nan, 0.0
    top = rank_pixels(heat, None, _drawn(known, seed, "ties")) < int(evidence.sum())
    precision = float((top & evidence).sum() / top.sum())
    recall = mass = math.nan
    if has_cue:
        recall = float((top & cue).sum() / cue.sum())
        mass = float(heat[cue].double().sum() / heat.double().sum())
    return precision, recall, mass, average_precision(heat, worth, seed)


def _beyond_twin(
    row: Any, knowns: Sequence[KnownScene], maps: Mapping[tuple[str, ...], Tensor]
) -> float:
    """Share of the cue in the part of a map that its twin's map lacks; NaN without a twin."""
    [known] = [
        known
        for known in knowns
        if (known.tier, known.kind, known.name) == (row.tier, row.kind, row.scene)
    ]
    twin = twin_of(known, knowns)
    if twin is None:
        return math.nan
    other = maps.get((twin.tier, twin.kind, twin.name, row.method, row.layer))
    if other is None:
        return math.nan
    heat = maps[row.tier, row.kind, row.scene, row.method, row.layer]
    more = (heat - other).clamp(min=0).double()
    return float(more[known.cue].sum() / more.sum()) if bool(more.any()) else 0.0


def twin_of(known: KnownScene, knowns: Sequence[KnownScene]) -> KnownScene | None:
    """The same scene with a network that needs no cue, of the name most like this one's."""
    if not bool(known.cue.any()):
        return None
    same = [
        other
        for other in knowns
        if (other.tier, other.name) == (known.tier, known.name) and not bool(other.cue.any())
    ]
    alike = [other for other in same if other.kind.startswith(known.kind)] or same
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
