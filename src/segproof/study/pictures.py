"""Perturbs the pictures of one tile, runs them in batches and measures them into rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from segproof.errors import ModelError
from segproof.explain import Capture
from segproof.measures import BOUNDARY, MEASURES, entropy_paper, measured
from segproof.models import SegmentationModel, all_finite, evaluating, probabilities
from segproof.perturb import (
    FillFunction,
    binarise,
    blend,
    dilate,
    keep_mask,
    rank_pixels,
    rough_noise,
    roughen,
    seeded,
    soft_keep,
)
from segproof.study.plan import HeatmapKey, Picture, Plan
from segproof.study.settings import Settings
from segproof.study.store import COLUMNS, Row

__all__ = ["Count", "Heatmap", "TilePictures", "outline_noise", "plain", "widened"]

Prepared = tuple[Row, Tensor | None]  # a row to fill, and what its picture keeps; None: no picture


class Count(Protocol):
    """Told of forwards that were spent, and of how many the plan had asked for in their place."""

    def __call__(self, forwards: int, asked: int | None = None) -> None:
        """Take in what was spent since the last call."""


@dataclass(frozen=True)
class Heatmap:
    """A heatmap of one tile: a method's at a layer, or a control's; values [H, W] in [0, 1]."""

    values: Tensor
    status: str
    effective_channels: float | None = None

    @property
    def flat(self) -> bool:
        """Whether it highlights nothing: its rows have no picture."""
        return self.status != "ok"


class _Last:
    """Remembers what was made last, and what for; older things are not kept."""

    def __init__(self) -> None:
        self._key: object = object()
        self._value: Any = None

    def of(self, key: object, make: Callable[[], Any]) -> Any:
        """What `make` returns; it is called where another key came before."""
        if key != self._key:
            self._key, self._value = key, make()
        return self._value


@dataclass(frozen=True)
class TilePictures:
    """One tile's perturbed pictures: prepared lazily, run in batches, read into rows.

    A picture that is asked for again, by another method, layer or control, is not run again.
    """

    plan: Plan
    model: SegmentationModel
    name: str
    captured: Capture
    truth: Tensor
    fills: Mapping[str, FillFunction]
    count: Count
    noise: Tensor | None = None

    def rows(self, heatmaps: Mapping[HeatmapKey, Heatmap]) -> list[Row]:
        """The rows of all pictures of the plan, in its order."""
        rows = list(self.read(self.plan.pictures(), heatmaps))
        before = rows[0].iou  # the original is the first picture
        return [_stored(row, before) for row in rows]

    def read(
        self, pictures: Iterable[Picture], heatmaps: Mapping[HeatmapKey, Heatmap]
    ) -> Iterator[Row]:
        """Rows with their measures, in order; run in batches across methods, levels and fills."""
        measures: dict[bytes, dict[str, float]] = {}  # of all pictures that were run, by key
        rows: list[tuple[Row, bytes | None]] = []
        waiting: dict[bytes, tuple[Row, Tensor]] = {}

        def flushed() -> Iterator[Row]:
            if waiting:
                measures.update(zip(waiting, self._run([*waiting.values()]), strict=True))
            self.count(len(waiting), sum(key is not None for _, key in rows))
            for row, key in rows:
                yield row if key is None else replace(row, **measures[key])  # type: ignore[arg-type]
            rows.clear()
            waiting.clear()

        for row, keep in self._prepared(pictures, heatmaps):
            if keep is None:
                rows.append((row, None))
                continue
            key = self._key(row, keep)
            rows.append((row, key))
            if key not in measures:
                waiting.setdefault(key, (row, keep))
            if len(waiting) == self.plan.study.batch:
                yield from flushed()
        yield from flushed()

    def _key(self, row: Row, keep: Tensor) -> bytes:
        """What a picture and its measures depend on, alike for alike pictures of this tile."""
        # where everything is kept no fill shows
        whole = keep.dtype == torch.bool and bool(keep.all())
        fill, reference = "" if whole else row.fill, self._alike[row.reference]
        digest = hashlib.blake2b(f"{fill} {reference}".encode(), digest_size=16)
        kept = keep.contiguous().cpu().numpy()
        digest.update((np.packbits(kept) if kept.dtype == np.bool_ else kept).data)
        return digest.digest()

    def _prepared(
        self, pictures: Iterable[Picture], heatmaps: Mapping[HeatmapKey, Heatmap]
    ) -> Iterator[Prepared]:
        """Rows to fill and what they keep of the picture; None where the map is flat."""
        # pictures that share ranks, a region or a mask follow each other: each is made once
        ranks, regions, masks = _Last(), _Last(), _Last()
        for picture in pictures:
            if picture.kind not in ("method", "control"):
                yield self._uncut(picture)
                continue
            source, target = picture.heatmap, self._targets[picture.reference]
            heatmap = heatmaps[source]
            cut = (source, picture.binarisation, picture.level)
            places = ranks.of(source, partial(self._ranks, heatmap))
            highlighted = regions.of(cut, partial(self._highlighted, picture, heatmap, places))
            row = self._row(picture, highlighted)
            row = replace(row, effective_channels=heatmap.effective_channels)
            if heatmap.flat:
                yield replace(row, status=heatmap.status, area=None, coverage=None), None
                continue
            if not bool(highlighted.any()):
                row = replace(row, status="empty_region")
            keeps = soft_keep if picture.binarisation == "soft" else keep_mask
            what = (*cut, picture.strategy, picture.reference)
            keep = masks.of(what, partial(keeps, picture.strategy, highlighted, target))
            yield _measurable(row, keep, target)

    def _uncut(self, picture: Picture) -> Prepared:
        """A picture that no heatmap decides."""
        region, valid = self.captured.bound.region[0], self.captured.bound.valid[0]
        nothing = torch.zeros_like(region)
        if picture.kind == "original":
            return self._row(picture, nothing), torch.ones_like(region)
        if picture.kind == "target_removed":
            grown = self._grown
            return self._row(picture, grown), ~grown
        if picture.kind == "empty":
            return self._row(picture, valid), nothing
        target = self._targets[picture.reference]
        return _measurable(self._row(picture, target), target, target)

    def _ranks(self, heatmap: Heatmap) -> Tensor | None:
        """Places of the pixels of a heatmap, the same for all its cuts; a flat one has none."""
        if heatmap.flat:
            return None
        tie_breaker = seeded("ties", self.plan.study.seed, self.name)
        return rank_pixels(heatmap.values, self.captured.bound.valid[0], tie_breaker)

    def _highlighted(self, picture: Picture, heatmap: Heatmap, ranks: Tensor | None) -> Tensor:
        """What a heatmap highlights of the tile, [H, W]: bool, or its values for a soft mask."""
        valid, kind, level = self.captured.bound.valid[0], picture.binarisation, picture.level
        if heatmap.flat:
            return torch.zeros_like(valid)
        if kind == "soft":  # a soft mask has no outline
            return torch.where(valid, heatmap.values, 0.0)
        if kind == "threshold":
            region = binarise(heatmap.values, threshold=level, valid=valid)
        elif kind == "otsu":
            region = binarise(heatmap.values, otsu=True, valid=valid)
        elif kind == "mass":
            region = binarise(heatmap.values, mass=level, valid=valid, ranks=ranks)
        else:
            region = binarise(heatmap.values, area=level, valid=valid, ranks=ranks)
        return widened(region, self.plan.grow, self.noise) & valid

    @cached_property
    def _grown(self) -> Tensor:
        """The target as it is removed, bool [H, W]: widened as all regions are."""
        bound = self.captured.bound
        return widened(bound.region[0], self.plan.grow, self.noise) & bound.valid[0]

    @cached_property
    def _targets(self) -> dict[str, Tensor]:
        """R by reference, bool [H, W]: that of the study, and those that M3 is read against too."""
        bound, study = self.captured.bound, self.plan.study
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

    def _row(self, picture: Picture, region: Tensor) -> Row:
        """What is known before the picture is run; `region` may be a soft one."""
        return Row(
            sample=self.name,
            method=picture.method,
            layer=picture.layer,
            binarisation=picture.binarisation,
            level=picture.level,
            strategy=picture.strategy,
            reference=picture.reference,
            fill=picture.fill,
            area=_share(region, self.captured.bound.valid[0]),
            coverage=_share(region, self._targets[picture.reference]),
            seed=picture.seed,
            preset=self.plan.study.preset,
        )

    def _run(self, waiting: Sequence[tuple[Row, Tensor]]) -> list[dict[str, float]]:
        """One batch: perturb, one forward, the measures of each picture."""
        image, bound = self.captured.images, self.captured.bound
        groups: dict[tuple[str, bool], list[int]] = {}
        for place, (row, keep) in enumerate(waiting):
            if row.fill:
                groups.setdefault((row.fill, keep.is_floating_point()), []).append(place)
        parts = []
        for (name, soft), places in groups.items():
            stay = torch.stack([waiting[place][1] for place in places])
            fill = self.fills[name]
            parts.append((places, blend(fill, image, stay) if soft else fill(image, stay)))
        if len(parts) == 1 and len(parts[0][0]) == len(waiting):
            [(_, pictures)] = parts
        else:
            pictures = image.repeat(len(waiting), 1, 1, 1)  # the original has no fill: it is whole
            for places, part in parts:
                pictures[places] = part
        if any(row.reference != self.plan.study.region for row, _ in waiting):
            each = [self._targets[row.reference] for row, _ in waiting]
            bound = replace(bound, region=torch.stack(each))
        with torch.inference_mode(), evaluating(self.model):
            logits = self.model.shown(pictures)
            if not all_finite(logits):
                raise ModelError(
                    f"logits that are not finite under fill {waiting[0][0].fill}",
                    "numbers",
                    "leave this fill out (--fills)",
                )
            p = probabilities(logits, bound.activation)
            chosen = MEASURES | BOUNDARY if self.plan.study.boundary else MEASURES
            tensors = measured(p, bound, self.truth[None], chosen)
            numbers = {name: values.tolist() for name, values in tensors.items()}
            if self.plan.study.preset == "paper":
                numbers["entropy"] = entropy_paper(p, bound, self.truth[None]).tolist()
        return [
            {name: values[place] for name, values in numbers.items() if name in COLUMNS}
            for place in range(len(waiting))
        ]


def _stored(row: Row, before: float | None) -> Row:
    """The row as it is stored: with the change of the IoU, and None where a number is undefined."""
    if isinstance(row.iou, float) and isinstance(before, float):
        row = replace(row, iou_delta=row.iou - before)
    return Row(*(plain(value) for value in row.values()))


def _share(region: Tensor, of: Tensor) -> float:
    """Mean of a region, hard or soft, over the pixels of a mask [H, W]; NaN where it has none."""
    count = int(of.count_nonzero())
    if region.dtype == torch.bool:
        inside = float((region & of).count_nonzero())
    else:
        inside = float(region[of].sum(dtype=torch.float64))
    return inside / count if count else float("nan")


def plain(value: Any) -> Any:
    """NaN is NULL in the store: undefined, never a number."""
    return None if isinstance(value, float) and value != value else value


def _measurable(row: Row, keep: Tensor, target: Tensor) -> Prepared:
    """The row and what it keeps; without a target (truth or prediction, empty) nothing is read."""
    if bool(target.any()):
        return row, keep
    return replace(row, status="empty_region", coverage=None), None


def outline_noise(study: Settings, name: str, pixels: int, captured: Capture) -> Tensor | None:
    """What roughens every outline of a tile, so that regions inside each other stay so."""
    if not pixels:
        return None
    height, width = captured.images.shape[-2:]
    return rough_noise((height, width), pixels, seeded("roughen", study.seed, name))


def widened(mask: Tensor, grow: int, noise: Tensor | None) -> Tensor:
    """A region, bool [H, W], as its outline is to be: grown, then roughened."""
    grown = dilate(mask, grow)
    return grown if noise is None else roughen(grown, noise)
