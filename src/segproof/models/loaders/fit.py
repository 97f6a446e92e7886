"""Finds the weights of one network in a file: containers, prefixes, averaged copies, shapes."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from segproof.errors import ModelError
from segproof.models.loaders.checkpoints import NUMBERS
from segproof.models.loaders.files import UNFIT, unfit

__all__ = ["State", "blueprint", "check_shapes", "choose", "put", "tell_beside"]

# names that wrappers of torch and DeepSpeed put into paths, at any depth
WRAPPERS: Final = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# what a task or an averaged copy keeps beside the network: losses, measures, counters
BESIDE: Final = re.compile(
    r"(criterion|loss\w*|(\w+_)?metrics?)\.|(.*\.)?(n_averaged|steps?|decay|num_updates|initted)$"
)
EMA: Final = re.compile(r"(^|[^a-z])(ema|averaged?|swa)([^a-z]|$)", re.IGNORECASE)
NOT_WEIGHTS: Final = re.compile(r"optim|sched|scaler|loops")
COUNTER: Final = "num_batches_tracked"  # of training alone; earlier files have none
MAX_LEVELS: Final = 4
FEW: Final = 3


@dataclass(frozen=True)
class State:
    """Weights in a file that fit a network by their names: where they stand, and which they are."""

    place: str
    prefix: str
    averaged: bool
    weights: dict[str, Tensor]
    beside: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How `weights=` names them: the key of the file, or the prefix of the names."""
        return self.place if not self.prefix else (self.prefix.rstrip(".") or self.place)

    def __str__(self) -> str:
        where = self.place or "the file itself"
        names = f", names that begin with {self.prefix}" if self.prefix else ""
        return f"{where}{names} ({'averaged' if self.averaged else 'as trained'})"


def choose(
    found: Mapping[Any, Any], names: Collection[str], path: Path, weights: str | None = None
) -> State:
    """The weights in what a file holds that carry the network's `names`, without their prefix.

    `weights` chooses where there are several: "ema" (averaged), "plain" (as trained), or the key
    or prefix that the error names.

    Raises:
        ModelError: none, or several and no choice.
    """
    wanted = frozenset(names)
    states = [one for place, values in _states(found) for one in _prefixed(place, values, wanted)]
    best = max((len(wanted & one.weights.keys()) for one in states), default=0)
    if not states:
        keys = ", ".join(map(str, list(found)[:20])) or "nothing"
        raise ModelError(
            f"{path} with {keys} in it and no weights by name",
            "a state dict, or a mapping with one in it",
            "save net.state_dict()",
        )
    if not best:
        return max(states, key=lambda one: len(one.weights))  # its names are shown in full
    # averaged copies may leave out what is not trained
    near = [
        one
        for one in states
        if len(wanted & one.weights.keys()) >= best * (0.3 if one.averaged else 0.9)
    ]
    near = _in_their_own_place(found, near)
    chosen = near if weights is None else [one for one in near if _is(one, weights)]
    if not chosen:
        raise ModelError(
            f"weights {weights!r} where {path} holds {'; '.join(map(str, near))}",
            "weights that are in the file",
            "leave the option out (--weights, weights=), or name one of them",
        )
    if any(not _same(chosen[0].weights, other.weights) for other in chosen[1:]):
        kinds = {one.averaged for one in chosen}
        ways = ["ema", "plain"] if len(kinds) == 2 and len(chosen) == 2 else _names(chosen)
        listed = "".join(f"\n  {one}" for one in chosen)
        raise ModelError(
            f"{len(chosen)} sets of weights that differ in {path}",
            "one, or your word which of them",
            f"write {' or '.join(f'--weights {way}' for way in ways)} (weights=...):{listed}",
        )
    first = chosen[0]
    twins = {
        other.prefix + name
        for other in near
        if other is not first and other.place == first.place
        for name in other.weights
        if name in wanted or other.prefix
    }
    beside = tuple(name for name in first.beside if name not in twins)
    inside = {
        name: value
        for name, value in first.weights.items()
        if name in wanted or not (BESIDE.match(name) or first.prefix + name in twins)
    }
    return State(first.place, first.prefix, first.averaged, inside, beside)


def _names(states: Collection[State]) -> list[str]:
    """A name for each that is not another's."""
    short = [one.name for one in states]
    return [
        one.name if short.count(one.name) == 1 else f"{one.place}/{one.prefix.rstrip('.')}"
        for one in states
    ]


def _is(state: State, weights: str) -> bool:
    if weights in ("ema", "plain"):
        return state.averaged == (weights == "ema")
    full = f"{state.place}/{state.prefix.rstrip('.')}"
    return weights in (state.name, state.place, state.prefix.rstrip("."), state.prefix, full)


def _states(found: Mapping[Any, Any]) -> list[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors inside, with its path; optimizers are left out."""
    states = []
    pending: list[tuple[str, Mapping[Any, Any], int]] = [("", found, 0)]
    while pending:
        place, here, depth = pending.pop(0)
        tensors = {
            WRAPPERS.sub("", key): value
            for key, value in here.items()
            if isinstance(key, str) and isinstance(value, Tensor)
        }
        if tensors:
            states.append((place, tensors))
        if depth < MAX_LEVELS:
            pending += [
                (f"{place}/{key}".strip("/"), value, depth + 1)
                for key, value in here.items()
                if isinstance(value, Mapping)
                and isinstance(key, str)
                and not NOT_WEIGHTS.search(key)
            ]
    return states


def _prefixed(place: str, values: dict[str, Tensor], wanted: Collection[str]) -> list[State]:
    """The state under every prefix that turns some of its names into the network's."""
    hits: Counter[str] = Counter()
    for name in values:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                hits["".join(f"{part}." for part in parts[:start])] += 1
    if not hits:
        hits[""] = 0
    most = max(hits.values())
    made = []
    for prefix, number in hits.items():
        averaged = bool(EMA.search(f"{place}/{prefix}"))
        if number < most * 0.3 or (number < most * 0.9 and not averaged):
            continue
        inside = {k[len(prefix) :]: v for k, v in values.items() if k.startswith(prefix)}
        beside = [k for k in values if not k.startswith(prefix) and not BESIDE.match(k)]
        made.append(State(place, prefix, averaged, inside, tuple(beside)))
    return made


def _in_their_own_place(found: Mapping[Any, Any], states: list[State]) -> list[State]:
    """States of trainers that keep the averaged weights where the trained ones are elsewhere.

    Lightning's WeightAveraging saves the average as `state_dict` and the trained weights as
    `current_model_state`; MMEngine's EMAHook swaps `state_dict` and `ema_state_dict`.
    """
    swapped: dict[str, bool] = {}
    copy = found.get("ema_state_dict")
    if isinstance(found.get("current_model_state"), Mapping):
        swapped = {"state_dict": True, "current_model_state": False}
    elif isinstance(copy, Mapping) and "steps" in copy:
        swapped = {"state_dict": True, "ema_state_dict": False}
    return [
        State(one.place, one.prefix, swapped.get(one.place, one.averaged), one.weights, one.beside)
        for one in states
    ]


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name])
        for name, value in one.items()
    )


def blueprint(make: Callable[[], nn.Module]) -> nn.Module:
    """The network without memory for its numbers, for names and shapes alone."""
    try:
        with torch.device("meta"):
            return make()
    except (RuntimeError, NotImplementedError):
        return make()  # a constructor that looks at numbers


def check_shapes(
    net: nn.Module,
    weights: Mapping[str, Tensor],
    path: Path,
    expected: str,
    fix: str = "save both again",
) -> None:
    """Compare names and shapes of weights with those of a network, before it takes memory.

    Raises:
        ModelError: all names that are missing, unexpected, or of another shape.
    """
    own = {name: value for name, value in net.state_dict().items() if isinstance(value, Tensor)}
    missing = [name for name in own if name not in weights and not name.endswith(COUNTER)]
    unexpected = [name for name in weights if name not in own]
    shapes = [
        f"{name} {list(weights[name].shape)} in the file, {list(value.shape)} in the network"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    odd = [f"{k} {v.dtype}" for k, v in weights.items() if v.dtype not in NUMBERS]
    listed = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "of another kind of number": odd,
    }
    if not any(listed.values()):
        return
    counts = ", ".join(f"{len(names)} {what}" for what, names in listed.items() if names)
    names = "".join(
        f"\n{what}: {', '.join(values)}"
        if len(values) <= FEW
        else f"\n{what}:" + "".join(f"\n  {value}" for value in values)
        for what, values in listed.items()
        if values
    )
    raise ModelError(f"weights in {path} that do not fit ({counts})", expected, f"{fix}{names}")


def put(net: nn.Module, weights: Mapping[str, Tensor], path: Path, expected: str) -> nn.Module:
    """`net` with these weights in the numbers (float16, float32, ...) in which they are stored.

    Raises:
        ModelError: weights that do not fit.
    """
    check_shapes(net, weights, path, expected)
    kinds = {weights[name].dtype for name, _ in net.named_parameters() if name in weights}
    try:
        if len(kinds) == 1:
            net.to(kinds.pop())  # also the tables that a network makes itself and does not store
        # a copy: what was read may be a view into a larger store, or be used again
        copied = {name: value.clone() for name, value in weights.items()}
        for name, value in net.state_dict().items():
            if name.endswith(COUNTER):
                copied.setdefault(name, value)
        nn.Module.load_state_dict(net, copied, assign=True)
    except UNFIT as error:
        raise unfit(path, error, expected) from error
    return net


def tell_beside(path: Path, state: State) -> None:
    """Warn about weights that stand beside those of the network."""
    names = state.beside
    if names:
        warnings.warn(
            f"{path} also holds {', '.join(names[:5])}{', ...' * (len(names) > 5)}, which are not"
            " used; if they normalise the images, give mean and std",
            stacklevel=5,
        )
