"""What is explained: a class, a region and a scalar, frozen on the clean picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol, get_args

import torch
from torch import Tensor

from segproof.errors import DataError, ModelError, StudyError, UnknownNameError
from segproof.model import Activation, probabilities

__all__ = ["BoundTarget", "Preset", "Target", "hard_mask"]

Region = Literal["prediction", "truth"]
Space = Literal["logit", "probability", "log_probability", "margin"]
Reduce = Literal["mean", "sum"]
Preset = Literal["strict", "paper"]

REGIONS: Final = get_args(Region)
SPACES: Final = get_args(Space)
REDUCES: Final = get_args(Reduce)
PRESETS: Final = get_args(Preset)
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


def check_region(preset: Preset, region: Region) -> None:
    """Refuse a region that a preset does not know.

    Raises:
        StudyError: preset paper with any region but the truth.
    """
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
    formula.
    """

    class_index: int
    activation: Activation
    space: Space
    weights: Tensor
    region: Tensor
    prediction: Tensor
    valid: Tensor

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
        if self.space == "margin":
            rivals = torch.cat([logits[:, :index], logits[:, index + 1 :]], dim=1)
            return logits[:, index] - rivals.amax(dim=1)
        if self.space == "probability":
            return probabilities(logits, self.activation)[:, index]
        if self.activation == "softmax":
            return logits.log_softmax(dim=1)[:, index]
        return torch.nn.functional.logsigmoid(logits[:, index])


@dataclass(frozen=True)
class Target:
    """Class x region x space. `strict`: Y = mean over R of z_c (vinogradova2020seggradcam).

    `region`: "prediction" (the model's own mask) or "truth". With `preset="paper"` the scalar is
    the published one, sum of p_c * detach(p_c * G), and space, reduce and region are fixed
    (gizzini2023extending).

    Raises:
        UnknownNameError: a region, space, reduce or preset that does not exist.
    """

    class_: int | str
    region: Region = "prediction"
    space: Space = "logit"
    reduce: Reduce = "mean"
    preset: Preset = "strict"

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("region", self.region, REGIONS),
            ("space", self.space, SPACES),
            ("reduce", self.reduce, REDUCES),
            ("preset", self.preset, PRESETS),
        ):
            if value not in known:
                raise UnknownNameError.of(kind, value, known)

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
            DataError: a truth region without truth, or of another shape.
            ModelError: logits that are not finite (argmax of NaN would be class 0).
        """
        if not torch.isfinite(logits).all():
            raise ModelError(
                "logits that are not finite", "numbers", "check weights and input range"
            )
        index = model.class_index(self.class_)
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
        if (paper or self.region == "truth") and truth is None:
            raise DataError(
                f"no truth mask for preset {self.preset}",
                "a mask of the same size",
                "give the mask, or use preset strict and region prediction",
            )
        region = prediction
        if truth is not None and (paper or self.region == "truth"):
            region = truth & valid
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
        )
