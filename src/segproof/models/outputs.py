"""Finds the logits in what a network returns, and decides by evidence what its numbers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from segproof.choices import Activation
from segproof.errors import ModelError, UnknownNameError

__all__ = ["KINDS", "Activation", "Kind", "Output", "OutputReader", "describe", "entries"]

Kind = Literal["logits", "probabilities", "log_probabilities"]
Pick = Callable[[Any], Any]
Output = str | int | Pick | tuple[str | int | Pick, Kind]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
QUERIES: Final = ("class_queries_logits", "masks_queries_logits")
LOGIT_NAMES: Final = ("logits", "out", "masks", "mask", "pred", "prediction", "output")
ROUNDING: Final = 2e-3  # of sums of probabilities, also in bfloat16
SURE: Final = 0.01  # a logarithm of a probability that comes this near to 0 says "certain"
LISTED: Final = 8  # outputs that an error shows
# steps of a graph: those that make numbers of any size, and those that only move or mix them
_LINEAR: Final = (
    *("Convolution", "MkldnnConvolution", "CudnnConvolution", "Addmm", "Mm", "Bmm", "Baddbmm"),
)
_MOVING: Final = (
    *("Permute", "Transpose", "View", "UnsafeView", "Reshape", "ReshapeAlias", "Slice", "Select"),
    *("Clone", "ToCopy", "Squeeze", "Unsqueeze", "Expand", "AsStrided", "T", "Alias"),
)
# deviations of the pictures that are tried: what a sigmoid bounds stays so under the largest, what
# is small by chance does not
NOISE: Final = (1.0, 100.0, 10000.0)


@dataclass(frozen=True)
class Candidate:
    """A tensor [N, K, h, w] in what a network returned, and the `output=` that takes it."""

    path: str
    value: Tensor


class OutputReader:
    """Turns what a network returns into logits [N, K, h, w], the same way for every picture.

    `output` names the place ("out", 0, "decode.0", or a function of what the network returned),
    what the numbers are (KINDS), or both ("0:probabilities"). What it does not name is decided by
    evidence: the only tensor of `channels` channels; values that leave [0, 1] and change sign are
    logits. Where more than one reading fits, nothing is chosen: the error lists them.

    Raises:
        ModelError: an `output` that says nothing; while reading: no tensor or several that fit,
            numbers of another kind than `output` says, or of a kind that cannot be told.
    """

    def __init__(
        self,
        classes: Sequence[str],
        activation: Activation,
        output: Output | None = None,
    ) -> None:
        self.classes, self.channels, self.activation = tuple(classes), len(classes), activation
        self.pick, self.kind, self.place = _parsed(output)
        self.given = output is not None
        # what the numbers seen so far rule out: probabilities, logarithms of them
        self._above = self._below = self._beyond = False
        self.settled = self.kind is not None

    def logits(self, returned: Any, again: Callable[[float], Any] | None = None) -> Tensor:
        """Logits [N, K, h, w] in what the network returned.

        `again(N)` runs the network on noise of N standard deviations; it is called only
        where the numbers of this one could be logits as well as probabilities.
        """
        value = self._found(returned)
        if self.kind is not None:
            return _as_logits(value, self.kind, self.one_channel_or(self.activation))
        if not self.settled:
            self._settle(value, again)
        return value

    @property
    def text(self) -> str:
        """Which output is read, and as what, in words."""
        place = f"output {self.place}" if self.place else "the only output that fits"
        kind = self.kind or "logits"
        if self.kind is not None:
            how = "as output= says"
        elif self.settled:
            how = "since its values leave the range of probabilities, or a convolution makes them"
        else:
            how = "so far: no picture had a value above 0"
        return f"{place}, read as {kind.replace('_', ' ')} ({how})"

    def one_channel_or(self, activation: Activation) -> Activation:
        """One channel is always a sigmoid's."""
        return "sigmoid" if self.channels == 1 else activation

    def _found(self, returned: Any) -> Tensor:
        pick = self.pick
        if pick is not None:
            try:
                picked = pick(returned)
            except (LookupError, AttributeError, TypeError) as error:
                raise ModelError(
                    f"a network that returns {describe(returned)}, without output {self.place}",
                    "the output that output= names",
                    self._advice(returned),
                ) from error
        else:
            picked = self._only(returned)
        if not _fits(picked, self.channels):
            shown = returned if self.pick is None else picked
            raise ModelError(
                f"a network that returns {describe(shown)}",
                f"logits [N, {self.channels}, h, w] for classes {', '.join(self.classes)}",
                self._advice(returned),
            )
        value: Tensor = picked
        # sums over a region, and what is decided here, need more digits
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value

    def _only(self, returned: Any) -> Any:
        """The output that name or shape tell; what was returned where neither does."""
        if isinstance(returned, Tensor):
            return returned
        found = entries(returned)
        if set(QUERIES) <= set(found):
            self.settled = True  # made here, of classes and masks
            return _class_map(*(found[name] for name in QUERIES))
        named = {
            name: _candidates(found[name], self.channels, name)
            for name in LOGIT_NAMES
            if name in found
        }
        inside = [one for listed in named.values() for one in listed]
        inside = inside or _candidates(returned, self.channels)
        if len(inside) > 1:
            raise self._several(inside)
        # one deep inside is no usual place: the error names it
        near = [one for one in inside if "." not in one.path or one.path.split(".")[0] in named]
        return near[0].value if near else returned

    def _several(self, found: Sequence[Candidate]) -> ModelError:
        shown = "; ".join(self._seen(one) for one in found[:LISTED])
        more = f"; and {len(found) - LISTED} more" if len(found) > LISTED else ""
        return ModelError(
            f"{len(found)} outputs that could be the logits: {shown}{more}",
            "one, or to be told which",
            "pass one of "
            + ", ".join(f"output={_literal(one.path)}" for one in found[:LISTED])
            + " (--output on the command line); networks with deep supervision say in their code"
            " which one is final",
        )

    def _seen(self, one: Candidate) -> str:
        value = one.value.detach().float()
        return (
            f"output={_literal(one.path)} {tuple(value.shape)}, {_range(value)}, mean"
            f" {float(value.mean()):.3g}, as logits {self._shares(value, 'logits')}"
        )

    def _shares(self, value: Tensor, kind: Kind) -> str:
        """The share of pixels of each class under a reading, the four largest."""
        activation = self.one_channel_or(self.activation)
        if activation == "sigmoid":
            bar = {"logits": 0.0, "probabilities": 0.5, "log_probabilities": -0.6931}[kind]
            shares = (value >= bar).double().mean(dim=(0, 2, 3))
        else:
            best = value.argmax(dim=1).flatten()
            shares = best.bincount(minlength=self.channels).double() / best.numel()
        order = shares.argsort(descending=True)[:4].tolist()
        return ", ".join(f"{self.classes[k]} {float(shares[k]):.1%}" for k in order)

    def _advice(self, returned: Any) -> str:
        nested = _candidates(returned, self.channels)
        if nested and not isinstance(returned, Tensor):
            return f"pass output={_literal(nested[0].path)}" + (
                f" or one of {', '.join(_literal(one.path) for one in nested[1:LISTED])}"
                if nested[1:]
                else ""
            )
        source = _lambda(returned, self.channels)
        if source:
            return f"pass output={source}"
        return "pass output=, a function that picks the logits, or the right class names"

    # --- what the numbers are ---------------------------------------------------------------------
    def _settle(self, value: Tensor, again: Callable[[float], Any] | None) -> None:
        """Look at one picture's numbers, at others' if these do not tell, and refuse if none do.

        Raises:
            ModelError: numbers that two readings fit.
        """
        both = [value.detach()]
        if not bool(both[0].isfinite().all()):
            return  # broken numbers are reported where the layer that made them can be named
        self._look(both[0])
        self.settled |= _ends_linear(value)
        for size in NOISE:
            if again is None or self.settled or (self._below and not self._sums(both[0])):
                break
            found = self._found(again(size))
            other = found.detach()
            self.settled = _ends_linear(found)
            if bool(other.isfinite().all()):
                both.append(other)
                self._look(other)
        if self.settled:
            return
        if not self._below:
            raise self._untold(both, "probabilities")
        if not self._above and (all(self._sums(one) for one in both) or self._certain(both)):
            raise self._untold(both, "log_probabilities")
        # one picture rules logarithms out where classes are exclusive; separate channels may all be
        # below 0 on a picture without any of the classes, so that the next ones are looked at too
        self.settled = self.one_channel_or(self.activation) == "softmax"

    def _look(self, value: Tensor) -> None:
        low, high = (float(bound) for bound in value.aminmax())
        self._below |= low < 0
        self._above |= high > 0
        self._beyond |= high > 1 + ROUNDING
        # neither probabilities, which are never below 0 or above 1, nor logarithms of them, which
        # are never above 0
        self.settled |= self._beyond or (self._below and self._above)

    def _sums(self, value: Tensor) -> bool:
        """Whether the exponentials of all channels sum to 1 at every pixel."""
        if self.channels == 1 or float(value.max()) > ROUNDING:
            return False
        return float(value.logsumexp(dim=1).abs().max()) < ROUNDING

    def _certain(self, values: Sequence[Tensor]) -> bool:
        """Whether separate channels stop just below 0, as logarithms of probabilities do."""
        if self.one_channel_or(self.activation) != "sigmoid":
            return False
        return max(float(value.max()) for value in values) > -SURE

    def _untold(self, values: Sequence[Tensor], kind: Kind) -> ModelError:
        value = values[0]
        words = kind.replace("_", " ")
        why = {
            "probabilities": "that stay between 0 and 1",
            "log_probabilities": "that look like logarithms of probabilities",
            "logits": "",
        }[kind]
        if kind == "probabilities" and self.channels > 1:
            sums = max(float((one.sum(dim=1) - 1).abs().max()) for one in values)
            why += " and sum to 1 over the classes" if sums < ROUNDING else ""
        place = f":{kind}" if self.place else ""
        spelled = {
            name: _literal(f"{self.place}:{name}" if place else name) for name in (kind, "logits")
        }
        pictures = f"on {len(values)} pictures" if len(values) > 1 else "on this picture"
        return ModelError(
            f"outputs {why} {pictures}: {tuple(value.shape)}, {_range(value)}; read as {words}:"
            f" {self._shares(value, kind)}; read as logits: {self._shares(value, 'logits')}",
            "logits, or to be told what the numbers are",
            f"pass output={spelled[kind]} if the network ends in"
            f" {_ENDS[kind]}, output={spelled['logits']} if it does not (--output on the command"
            " line)",
        )


_ENDS: Final[dict[Kind, str]] = {
    "probabilities": "a sigmoid or softmax",
    "log_probabilities": "the logarithm of one",
    "logits": "neither",
}


def _as_logits(value: Tensor, kind: Kind, activation: Activation) -> Tensor:
    """Logits whose softmax or sigmoid are the probabilities that `value` [N, K, h, w] tells.

    Softmax: the logarithms; sigmoid: log p - log(1 - p), with p kept off 0 and 1 by the smallest
    steps of the number format.

    Raises:
        ModelError: numbers that cannot be of this kind.
    """
    if kind == "logits":
        return value
    low, high = (float(bound) for bound in value.detach().aminmax())
    limits = (0.0, 1.0) if kind == "probabilities" else (-float("inf"), 0.0)
    if low < limits[0] - ROUNDING or high > limits[1] + ROUNDING:
        raise ModelError(
            f"outputs from {low:.3g} to {high:.3g}, read as {kind.replace('_', ' ')}",
            f"values from {limits[0]:g} to {limits[1]:g}",
            'pass output="logits", or the place of the right output',
        )
    info = torch.finfo(value.dtype)
    if kind == "probabilities":
        value = value.clamp(info.tiny, 1 - info.eps / 2)
        return value.log() if activation == "softmax" else value.log() - torch.log1p(-value)
    if activation == "softmax":
        return value
    value = value.clamp(max=-info.eps / 2)
    return value - torch.log(-torch.expm1(value))


def _parsed(output: Output | None) -> tuple[Pick | None, Kind | None, str]:
    """How to pick, what the numbers are, and the place in words."""
    if output is None:
        return None, None, ""
    if isinstance(output, tuple):
        place, kind = output
        if kind not in KINDS:
            raise UnknownNameError.of("kind of output", kind, KINDS)
        pick, _, words = _parsed(place)
        return pick, kind, words
    if isinstance(output, bool) or not (isinstance(output, str | int) or callable(output)):
        raise ModelError(
            f"output={output!r}",
            f"one of {', '.join(KINDS)}, the place of an output, or a function",
            'write for example output="probabilities", output=0 or output="out"',
        )
    if isinstance(output, int):
        return _by_path(str(output)), None, str(output)
    if isinstance(output, str):
        path, _, said = output.rpartition(":")
        if output in KINDS:
            return None, output, ""
        if path and said in KINDS:
            return _by_path(path), said, path
        if not output or ":" in output:
            raise ModelError(
                f"output {output!r}",
                f"one of {', '.join(KINDS)}, or the place of an output",
                "write for example probabilities, 0, out or 0:probabilities",
            )
        return _by_path(output), None, output
    return output, None, getattr(output, "__name__", type(output).__name__)


def _by_path(path: str) -> Pick:
    """A function that follows keys, places and fields, joined by dots: "out.0"."""

    def pick(returned: Any) -> Any:
        value = returned
        for part in path.split("."):
            found = {str(key): item for key, item in entries(value).items()}
            if part in found:
                value = found[part]
            elif part.lstrip("-").isdecimal() and isinstance(value, Sequence):
                value = value[int(part)]  # counted from the end, too
            else:
                value = getattr(value, part)
        return value

    return pick


def _ends_linear(value: Tensor) -> bool:
    """Whether the graph of `value` [N, K, h, w] says that a convolution or a product made it, with
    nothing but resizing and reordering behind it: such numbers are bounded by nothing.

    False where there is no graph, which says nothing.
    """
    step = value.grad_fn
    while step is not None:
        name = step.name().rstrip("0123456789").removesuffix("Backward")
        if name in _LINEAR:
            return True
        if not (name in _MOVING or name.startswith("Upsample")) or not step.next_functions:
            return False
        step = step.next_functions[0][0]
    return False


def _literal(path: str) -> str:
    """A path as it is written in Python: a number, or a quoted text."""
    return path if path.isdecimal() else f'"{path}"'


def _joined(before: str, key: object) -> str:
    return f"{before}.{key}" if before else str(key)


def _candidates(value: Any, channels: int, at: str = "") -> list[Candidate]:
    """All tensors [N, K, h, w] of the right number of channels in what was returned."""
    if isinstance(value, Tensor):
        return [Candidate(at, value)] if _fits(value, channels) else []
    return [
        found
        for key, item in entries(value).items()
        for found in _candidates(item, channels, _joined(at, key))
    ]


def _fits(value: object, channels: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] == channels


def _range(value: Tensor) -> str:
    low, high = value.aminmax()
    return f"{float(low):.3g} to {float(high):.3g}"


def _class_map(classes: Tensor, masks: Tensor) -> Tensor:
    """Logits [N, K, h, w] of a network of Q queries: the logarithm of s_k = sum_q p(k | q) m_q.

    `classes` [N, Q, K + 1] are logits, the last one for "no object", m = sigmoid(`masks` [N, Q, h,
    w]); softmax over the result is s_k / sum_j s_j.
    """
    chance = classes.softmax(dim=-1)[..., :-1]
    scores = torch.einsum("nqk,nqhw->nkhw", chance, masks.sigmoid())
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()


def entries(value: Any) -> dict[Any, Any]:
    """What a mapping, a sequence or a dataclass holds, by key, place or field."""
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if isinstance(value, Tensor):
        return {}
    # objects of one's own: what carries one of the usual names
    named = {name: getattr(value, name, None) for name in LOGIT_NAMES}
    return {name: item for name, item in named.items() if isinstance(item, Tensor | list | tuple)}


def _lambda(value: Any, channels: int, at: str = "result") -> str | None:
    """The source of an `output=` that turns the first entry into the right shape, if any does."""
    if isinstance(value, Tensor):
        shape = value.shape
        if _fits(value, channels):
            return f"lambda result: {at}"
        if value.ndim == 4 and shape[3] == channels:
            return f"lambda result: {at}.permute(0, 3, 1, 2)"
        return f"lambda result: {at}[:, None]" if value.ndim == 3 and channels == 1 else None
    named = is_dataclass(value) or hasattr(value, "_fields")
    for key, item in entries(value).items():
        found = _lambda(item, channels, f"{at}.{key}" if named else f"{at}[{key!r}]")
        if found is not None:
            return found
    return None


def describe(value: object) -> str:
    """What a network returned, in words: kinds, names and shapes."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return "(" + ", ".join(describe(item) for item in value) + ")"
    inside = ", ".join(f"{key}={describe(item)}" for key, item in entries(value).items())
    return f"{type(value).__name__}({inside})" if inside else f"a {type(value).__name__}"
