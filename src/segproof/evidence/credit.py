"""Finds what decides: exact Shapley values of a scene's parts, and the credit of each pixel."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import pandas as pd
import torch
from torch import Tensor

from segproof.errors import DataError
from segproof.evidence.known import KnownScene, capture_scene, confidences
from segproof.perturb import rank_pixels, seeded

__all__ = ["average_precision", "credit", "shapley", "shapley_table"]

FACTORS: Final = ("object", "cue", "decoys", "other")
DECIDES: Final = 0.1  # share of all credit from which on a factor is evidence


def shapley(scene: KnownScene) -> dict[str, float]:
    """Exact Shapley value of each factor (object, cue, decoys, other) for the confidence over R.

    v(S) = mean of p_c over R of the picture in which the factors in S are as they are and the
    others as in `absent`; for "other", the ground, `absent` turned by half. The object is R less
    the cue; a factor without pixels is left out. Values sum to v(all) - v(none); 2^k forwards.
    """
    parts = factors(scene)
    names, count = list(parts), len(parts)
    bare = torch.rot90(scene.absent, 2, (-2, -1))
    pictures = []
    for subset in range(2**count):
        picture = scene.absent if "other" not in parts else bare
        for place, name in enumerate(names):
            if subset >> place & 1:
                picture = torch.where(parts[name], scene.image, picture)
            elif name != "other":
                picture = torch.where(parts[name], scene.absent, picture)
        pictures.append(picture)
    seen = capture_scene(scene)
    values = confidences(scene, seen, pictures)
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


def factors(scene: KnownScene) -> dict[str, Tensor]:
    """Disjoint masks, bool [H, W], of the factors that have pixels; together the whole picture."""
    cue = scene.cue
    thing = (scene.region | scene.evidence) & ~cue
    decoys = scene.decoys & ~cue & ~thing
    rest = ~(cue | thing | decoys)
    parts = dict(zip(FACTORS, (thing, cue, decoys, rest), strict=True))
    return {name: mask for name, mask in parts.items() if bool(mask.any())}


def credit(scene: KnownScene) -> Tensor:
    """What each pixel is worth, float64 [H, W], sum 1: a factor's Shapley value, spread evenly over
    its pixels, for the factors that decide.

    Raises:
        DataError: the factors that decide are not the evidence that the picture claims.
    """
    values, parts = shapley(scene), factors(scene)
    total = sum(value for value in values.values() if value > 0)
    worth = torch.zeros(scene.region.shape, dtype=torch.float64)
    for name, value in values.items():
        if total > 0 and value >= DECIDES * total:
            worth[parts[name]] = value / int(parts[name].sum())
    if not bool(((worth > 0) == scene.evidence).all()):
        shown = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        raise DataError(
            f"{scene.kind} {scene.name} with Shapley values {shown}",
            "evidence on exactly the factors with a tenth of all credit or more",
            "correct the evidence, or leave this network out",
        )
    return worth / worth.sum()


def shapley_table(scenes: Iterable[KnownScene]) -> pd.DataFrame:
    """Shapley values as a table: tier, kind, scene, factor, value, px."""
    rows = []
    for scene in scenes:
        parts = factors(scene)
        for name, value in shapley(scene).items():
            where = (scene.tier, scene.kind, scene.name)
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
