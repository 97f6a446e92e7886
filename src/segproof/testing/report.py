"""Records what was checked, runs a check in a process that stays as it was, and reports it."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import nn

from segproof.errors import SegproofError, UnknownNameError
from segproof.testing.sideeffects import FACTS, facts

__all__ = ["Check", "Report"]

Status = Literal["passed", "failed", "skipped"]

FLAT: Final = 1e-3  # values that vary by less, of their range, show nothing
BATCH: Final = 2e-5  # of full range, in float32: convolutions add up in another order


@dataclass(frozen=True)
class Check:
    """One property: `passed`, `failed` or `skipped`, and in `detail` the figure or the reason."""

    name: str
    status: Status
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """All checks of one subject, in running order."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def ok(self) -> bool:
        """Whether none failed; skipped ones do not count against it."""
        return not self.failed

    def __str__(self) -> str:
        return "\n".join(f"{c.status:8}{c.name}: {c.detail}" for c in self.checks)

    def raise_for_failures(self) -> None:
        """Do nothing if all is well.

        Raises:
            AssertionError: names every failure with its figure.
        """
        if self.failed:
            lines = "\n".join(f"{check.name}: {check.detail}" for check in self.failed)
            raise AssertionError(f"{len(self.failed)} of {len(self.checks)} failed\n{lines}")


def run_check(name: str, run: Callable[[], str], limits: Collection[str] = ()) -> Check:
    """Passed with what `run` says; failed where it raises, unless that is a limit."""
    try:
        with unchanged_process():
            said = run()
    except Skipped as reason:
        return Check(name, "skipped", str(reason))
    except Violated as found:
        if name in limits and not isinstance(found, Shapeless):
            return Check(name, "passed", f"a stated limit, and real: {found}")
        return Check(name, "failed", str(found))
    except Exception as error:  # whatever a user's code raises is its failure
        return Check(name, "failed", f"raised {type(error).__name__}: {error}")
    if name in limits:
        return Check(name, "skipped", f"a stated limit, not seen here: {said}")
    return Check(name, "passed", said)


class Violated(Exception):  # noqa: N818  # a finding, not an error
    """A property does not hold; says by how much."""


class Shapeless(Violated):
    """Maps that cannot be compared, which no limit excuses."""


class Skipped(Exception):  # noqa: N818  # as above
    """A property cannot be looked at here; says why."""


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Random states, gradient mode and flags as before: neither the caller nor the next check may
    depend on what was looked at.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    before = facts(nn.Identity())
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        _restore_flags(before)


def _restore_flags(before: dict[str, Any]) -> None:
    now = facts(nn.Identity())
    if before["grad_mode"] != now["grad_mode"]:
        torch.set_grad_enabled(before["grad_mode"][0])
    if before["flags"] != now["flags"]:
        anomaly, deterministic, benchmark, fixed, dtype, threads = before["flags"]
        torch.autograd.set_detect_anomaly(anomaly)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, fixed
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def case_numbers(seed: int, cases: int) -> range:
    if cases < 1:
        raise SegproofError(f"{cases} cases", "at least one", "ask for more")
    return range(1000 * seed, 1000 * seed + cases)


def check_names(kind: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise UnknownNameError.of(kind, name, known)


def require(holds: bool, found: str) -> None:
    if not holds:
        raise Violated(found)


def counted(changed: Sequence[str]) -> str:
    return f"{len(FACTS) - len(changed)} of {len(FACTS)} kinds of state as before"
