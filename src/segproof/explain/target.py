"""Describes what is explained: a class, a region and a scalar, frozen on the clean picture."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from segproof.choices import PRESETS, REDUCES, REGIONS, SPACES, Preset, Reduce, Space
from segproof.errors import DataError, ModelError, StudyError, UnknownNameError
from segproof.models import Activation, all_finite, probabilities
from segproof.perturb import dilate

__all__ = [
    "PRESETS",
    "BoundTarget",
    "FixedTarget",
    "Preset",
    "Reduce",
    "Region",
    "Space",
    "Target",
    "hard_mask",
    "objects",
]

MASKS: Final = ("prediction", "truth")  # what objects and rings can be those of
DECISION: Final = 0.5  # tau of measures.md: multi-label channels are on from here


class _Classes(Protocol):
    activation: Activation

    def class_index(self, name: int | str) -> int: ...


def hard_mask(probability: Tensor, class_index: int, activation: Activation) -> Tensor:
    """Pixels decided as the class, bool [N, H, W]: argmax, or p >= 0.5 for multi-label channels."""
    chance = probability[:, class_index]
    if activation == "sigmoid":
        return chance >= DECISION
    # the first maximum wins, as in argmax, which takes a tenth of a whole forward on a CPU
    before, after = probability[:, :class_index], probability[:, class_index + 1 :]
    return (before < chance[:, None]).all(dim=1) & (after <= chance[:, None]).all(dim=1)


def objects(mask: Tensor) -> Tensor:
    """Connected parts of a mask, bool [H, W] -> int64 [H, W]: 0 outside, 1 the largest part, ...

    Pixels that touch at a corner belong together; of equal parts the upper, then the left one comes
    first.
    """
    labels, count = ndimage.label(mask.cpu().numpy(), structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    places = np.zeros(count + 1, dtype=np.int64)
    places[1 + np.argsort(-sizes, kind="stable")] = np.arange(1, count + 1)
    return torch.from_numpy(places[labels]).to(mask.device)


@dataclass(frozen=True)
class Region:
    """Which pixels are explained, as it is written everywhere: `box:10,20,60,80`, `object:3`, ...

    `prediction` P, `truth` G, `fp` P without G, `fn` G without P; `box:X0,Y0,X1,Y1` (X1 and Y1 not
    in it); `points:X,Y;X,Y`; `object:N`, the Nth largest connected part, or `object:X,Y`, the part
    at that pixel; `ring:W`, W px on both sides of an outline. Objects and rings are those of the
    prediction, or with `@truth` behind them of the truth. X goes right, Y down, from 0, in px.
    """

    kind: str
    numbers: tuple[int, ...] = ()
    of_truth: bool = False

    @classmethod
    def of(cls, text: str) -> Region:
        """Read a region.

        Raises:
            UnknownNameError: no such kind of region.
            DataError: numbers that do not make one.
        """
        head, _, source = text.partition("@")
        kind, _, rest = head.partition(":")
        if kind not in REGIONS:
            raise UnknownNameError.of("region", text, REGIONS)
        parts = re.split("[,;]", rest) if rest else []
        numbers = tuple(int(part) for part in parts if re.fullmatch(r"\s*\d{1,9}\s*", part))
        count = len(numbers)
        fits = len(parts) == count and {
            "box": count == 4 and numbers[0] < numbers[2] and numbers[1] < numbers[3],
            "points": count >= 2 and all(len(p.split(",")) == 2 for p in rest.split(";")),
            "object": count == 2 or (count == 1 and numbers[0] >= 1),
            "ring": count == 1 and numbers[0] >= 1,
        }.get(kind, count == 0)
        tail = "@" in text
        if not fits or (tail and (kind not in ("object", "ring") or source not in MASKS)):
            wanted = REGIONS[kind] + ("[@truth]" if kind in ("object", "ring") else "")
            raise DataError(f"region {text}", wanted, "whole numbers of pixels, X before Y")
        return cls(kind, numbers, of_truth=source == "truth")

    @property
    def needs_truth(self) -> bool:
        """Whether it cannot be found without a truth mask."""
        return self.of_truth or self.kind in ("truth", "fp", "fn")

    @property
    def one_picture(self) -> bool:
        """Whether it names places of one picture, which mean nothing on another."""
        return self.kind in ("box", "points", "object")

    def find(self, prediction: Tensor, truth: Tensor | None, valid: Tensor) -> Tensor:
        """Its pixels, bool [N, H, W], all valid; masks are bool [N, H, W] and P already valid.

        Raises:
            DataError: no truth where it is needed, a place outside the picture, no such object.
        """
        if self.needs_truth and truth is None:
            raise DataError(
                f"no truth mask for region {self.kind}{'@truth' if self.of_truth else ''}",
                "a mask of the same size",
                "give the mask, or use region prediction",
            )
        labelled = prediction if truth is None else truth & valid
        if self.kind == "prediction":
            return prediction
        if self.kind == "truth":
            return labelled
        if self.kind == "fp":
            return prediction & ~labelled
        if self.kind == "fn":
            return labelled & ~prediction
        source = labelled if self.of_truth else prediction
        if self.kind == "object":
            return torch.stack([self._object(mask) for mask in source])
        if self.kind == "ring":
            [width] = self.numbers
            return dilate(source, width) & dilate(~source, width) & valid
        drawn = torch.zeros_like(valid)
        height, width = valid.shape[-2:]
        pairs = list(zip(self.numbers[::2], self.numbers[1::2], strict=True))
        beyond = 0 if self.kind == "box" else 1
        if any(x + beyond > width or y + beyond > height for x, y in pairs):
            raise DataError(
                f"region {self.kind}:{','.join(map(str, self.numbers))}",
                f"places in a picture of {width} x {height} px (width x height)",
                "X goes right and Y down, from 0",
            )
        if self.kind == "box":
            (left, top), (right, bottom) = pairs
            drawn[:, top:bottom, left:right] = True
        for x, y in pairs if self.kind == "points" else ():
            drawn[:, y, x] = True
        return drawn & valid

    def _object(self, mask: Tensor) -> Tensor:
        labels = objects(mask)
        count = int(labels.max())
        if len(self.numbers) == 1:
            [number] = self.numbers
            if number > count:
                raise DataError(
                    f"object:{number} of a mask with {count} objects",
                    f"a number from 1 (the largest) to {count}" if count else "an object",
                    "choose another object" if count else "explain another picture or class",
                )
            return labels == number
        x, y = self.numbers
        if y >= mask.shape[0] or x >= mask.shape[1] or not mask[y, x]:
            raise DataError(f"object:{x},{y}", "a pixel of an object", _nearest(mask, x, y))
        return labels == labels[y, x]


def _nearest(mask: Tensor, x: int, y: int) -> str:
    """Where the next pixel of a mask is, for a click that missed."""
    places = mask.nonzero()
    if not len(places):
        return "the mask is empty: explain another picture or class"
    row, column = places[
        (places - torch.tensor([y, x], device=mask.device)).square().sum(1).argmin()
    ]
    return f"the nearest one is at {int(column)},{int(row)}"


def check_region(preset: Preset, region: str) -> None:
    """Refuse a region that a preset does not know, or that is none.

    Raises:
        StudyError: preset paper with any region but the truth.
        UnknownNameError, DataError: as `Region.of`.
    """
    Region.of(region)
    if preset == "paper" and region != "truth":
        raise StudyError(
            f"preset paper with region {region}",
            "region truth, as published",
            "use preset strict for other regions",
        )


@dataclass(frozen=True)
class BoundTarget:
    """A target frozen on the clean pictures; every perturbed picture is read with the same one.

    `region` R, `prediction` P and `valid` V are bool [N, H, W]; `weights` [N, H, W] define the
    scalar Y = sum of weights * quantity, so that mean, sum and the published target are one
    formula. `rival` is the class that a margin is taken to; None: the strongest one.
    """

    class_index: int
    activation: Activation
    space: Space
    weights: Tensor
    region: Tensor
    prediction: Tensor
    valid: Tensor
    rival: int | None = None

    def score(self, logits: Tensor) -> Tensor:
        """Y of each picture [N] (differentiable) of `logits` [N, K, H, W]."""
        return (self.weights * self._quantity(logits)).sum(dim=(1, 2))

    def picture(self, n: int) -> BoundTarget:
        """The target of picture `n` alone, which broadcasts over any number of its variants."""
        row = slice(n, n + 1)
        return replace(
            self,
            weights=self.weights[row],
            region=self.region[row],
            prediction=self.prediction[row],
            valid=self.valid[row],
        )

    def _quantity(self, logits: Tensor) -> Tensor:
        index = self.class_index
        if self.space == "logit":
            return logits[:, index]
        if self.space == "margin" and self.rival is not None:
            return logits[:, index] - logits[:, self.rival]
        if self.space == "margin":
            rivals = torch.cat([logits[:, :index], logits[:, index + 1 :]], dim=1)
            return logits[:, index] - rivals.amax(dim=1)
        if self.space == "probability":
            return probabilities(logits, self.activation)[:, index]
        if self.activation == "softmax":
            return logits.log_softmax(dim=1)[:, index]
        return torch.nn.functional.logsigmoid(logits[:, index])

    def edited(self, edit: Callable[[Tensor], Tensor]) -> BoundTarget:
        """The same target of a picture that was turned or cut: `edit` of weights and masks."""
        with torch.inference_mode(mode=False):  # what a caller's would make could enter no graph
            return replace(
                self,
                weights=edit(self.weights),
                region=edit(self.region),
                prediction=edit(self.prediction),
                valid=edit(self.valid),
            )


@dataclass(frozen=True)
class FixedTarget:
    """A target that is bound already: whatever it is read from, it stays as it is."""

    bound: BoundTarget

    def bind(
        self,
        logits: Tensor,
        truth: Tensor | None = None,
        *,
        model: _Classes,
        valid: Tensor | None = None,
    ) -> BoundTarget:
        """The bound target."""
        return self.bound


@dataclass(frozen=True)
class Target:
    """Class x region x space. `strict`: Y = mean over R of z_c (vinogradova2020seggradcam).

    `region` is written as in `Region`: "prediction" (the model's own mask), "truth", "box:0,0,9,9",
    "object:1", ... `space` is logit, probability, log_probability or margin: z_c minus the logit of
    the class `rival`, or of the strongest other class. With `preset="paper"` the scalar is the
    published one, sum of p_c * detach(p_c * G), and space, reduce and region are fixed
    (gizzini2023extending).

    Raises:
        UnknownNameError: a region, space, reduce or preset that does not exist.
        DataError: a region whose numbers make none.
        StudyError: a rival in a space other than margin.
    """

    class_: int | str
    region: str = "prediction"
    space: Space = "logit"
    reduce: Reduce = "mean"
    preset: Preset = "strict"
    rival: int | str | None = None

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("space", self.space, SPACES),
            ("reduce", self.reduce, REDUCES),
            ("preset", self.preset, PRESETS),
        ):
            if value not in known:
                raise UnknownNameError.of(kind, value, known)
        Region.of(self.region)
        if self.rival is not None and self.space != "margin":
            raise StudyError(
                f"rival {self.rival} in space {self.space}", "space margin", "name that space too"
            )

    def bind(
        self,
        logits: Tensor,
        truth: Tensor | None = None,
        *,
        model: _Classes,
        valid: Tensor | None = None,
    ) -> BoundTarget:
        """Freeze region and weights on the clean `logits` [N, K, H, W].

        `truth` is bool [N, H, W], true where the class is; `valid` bool [N, H, W] (default: all).
        An empty region gives zero weights, so Y = 0; callers look at `region` before they explain.

        Raises:
            DataError: a truth region without truth, or of another shape; a region that the picture
                does not have.
            UnknownNameError: no such class or rival.
            ModelError: logits that are not finite (argmax of NaN would be class 0).
        """
        if not all_finite(logits):
            raise ModelError(
                "logits that are not finite", "numbers", "check weights and input range"
            )
        index = model.class_index(self.class_)
        rival = None if self.rival is None else model.class_index(self.rival)
        if rival == index:
            raise DataError(
                f"rival {self.rival}, the class that is explained", "another class", "name another"
            )
        shape = (logits.shape[0], *logits.shape[2:])
        for name, mask in (("truth", truth), ("valid", valid)):
            if mask is not None and (tuple(mask.shape) != shape or mask.dtype != torch.bool):
                raise DataError(
                    f"a {name} mask {mask.dtype} {tuple(mask.shape)}", f"bool {shape}", "convert it"
                )
        valid = (
            torch.ones(shape, dtype=torch.bool, device=logits.device) if valid is None else valid
        )
        probability = probabilities(logits.detach(), model.activation)
        prediction = hard_mask(probability, index, model.activation) & valid
        paper = self.preset == "paper"
        chosen = Region("truth") if paper else Region.of(self.region)
        region = chosen.find(prediction, truth, valid)
        inside = region.to(logits.dtype)
        if paper:
            weights = probability[:, index] * inside
        elif self.reduce == "mean":
            weights = inside / inside.sum(dim=(1, 2), keepdim=True).clamp(min=1)
        else:
            weights = inside
        return BoundTarget(
            class_index=index,
            activation=model.activation,
            space="probability" if paper else self.space,
            weights=weights,
            region=region,
            prediction=prediction,
            valid=valid,
            rival=None if paper else rival,
        )
