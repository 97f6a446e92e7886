"""Contests in one process, in random order; what came of them beside its goal, as JSON."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from rich.progress import Progress

from claims import CLAIMS
from segproof.models.precision import keep_blocks

__all__ = [
    "CLOCKS", "RESULTS", "Contestant", "Figure", "Spread", "as_it_comes", "contest", "options",
    "parsed", "ratios", "report",
]  # fmt: skip

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "benchmarks" / "results"
PEERS: Final = ("grad-cam", "captum", "torchcam", "segmentation-models-pytorch", "numpy")
CLOCKS: Final = {"wall": time.perf_counter, "cpu": time.process_time}
SAID: Final = ("networks", "tiles", "repeats", "threads")  # what a figure's command names
MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -4, -3, -1  # of mallopt, malloc.h
MIB: Final = 1 << 20


@dataclass(frozen=True)
class Spread:
    """Five numbers of `n` values; quartiles by linear interpolation."""

    n: int
    low: float
    lower: float
    median: float
    upper: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The spread of at least one value."""
        low, lower, median, upper, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
        return cls(len(values), low, lower, median, upper, high)

    def text(self, unit: str = "") -> str:
        """Median, quartiles and extremes in three digits."""
        found = [f"{value:.3g}" for value in (self.lower, self.upper, self.low, self.high)]
        middle = f"{self.median:.3g} {unit}".strip()
        if self.n == 1:
            return f"{middle} (once)"
        return f"{middle} ({found[0]} to {found[1]}; {found[2]} to {found[3]}; n = {self.n})"


@dataclass(frozen=True)
class Figure:
    """What a contest found for one claim: its values, the seconds behind them, and remarks."""

    claim: str
    values: Sequence[float]
    seconds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


def as_it_comes() -> None:
    """The allocator of glibc as a process has it that freed large blocks before: its mmap threshold
    at the greatest that it takes by itself, 32 MiB, twice that for the trim threshold; and what is
    free now goes back. Elsewhere nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(MMAP_MAX, 65536)
    library.mallopt(MMAP_THRESHOLD, 32 * MIB)
    library.mallopt(TRIM_THRESHOLD, 64 * MIB)
    library.malloc_trim(0)


@dataclass(frozen=True)
class Contestant:
    """Work of one round, given its number; `kept`: freed blocks are kept, as our commands do."""

    work: Callable[[int], object]
    kept: bool = True


def contest(
    contestants: Mapping[str, Contestant],
    given: argparse.Namespace,
    *,
    warm: bool,
    title: str,
    most: int | None = None,
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, `most` of them; the order is drawn anew for each.

    `warm`: once without the clock before each time with it. For short work: the first pages of an
    allocator that was changed cost more than it does.
    """
    clock, draw = CLOCKS[given.clock], np.random.default_rng(0)
    rounds = given.repeats if most is None else min(most, given.repeats)
    found: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    with Progress() as progress:
        bar = progress.add_task(title, total=rounds * len(names))
        for turn in range(rounds):
            for place in draw.permutation(len(names)):
                one = contestants[names[place]]
                progress.update(bar, description=f"{title}, {names[place]}")
                (keep_blocks if one.kept else as_it_comes)()
                if warm:
                    one.work(turn)
                started = clock()
                one.work(turn)
                found[names[place]].append(clock() - started)
                progress.advance(bar)
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Quotients of the two in each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def options(
    doc: str | None, *, repeats: int = 5, quick: int = 1, networks: bool = False
) -> argparse.ArgumentParser:
    """What every script takes; `--quick` means so many rounds, of fewer contestants. `networks`:
    also those of `subjects`, by their names.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiles", type=int, default=1, help="taken in turns, one a round")
    parser.add_argument("--repeats", type=int, help=f"rounds; {repeats} unless given")
    parser.add_argument("--quick", action="store_true", help=f"{quick} rounds; nothing is written")
    parser.add_argument("--threads", type=int, help="of torch; its own choice unless given")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--shared", type=Path, default=_shared(), help="models/ and whu/")
    parser.add_argument("--out", type=Path, help=f"{RESULTS.relative_to(ROOT)} unless quick")
    if networks:
        parser.add_argument("--networks", help="of lite0, resnet34; both unless given or quick")
    parser.set_defaults(rounds=(repeats, quick))
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with what follows from it; sets torch's threads."""
    given = parser.parse_args()
    usual, quick = given.rounds
    if given.repeats is None:
        given.repeats = quick if given.quick else usual
    if given.out is None and not given.quick:
        given.out = RESULTS
    for name in ("tiles", "repeats"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} {getattr(given, name)}: 1 or more")
    if given.threads:
        torch.set_num_threads(given.threads)
    return given


def _shared() -> Path:
    named = os.environ.get("SEGPROOF_SHARED")
    return Path(named) if named else ROOT.parent / "shared" / "data"


def report(script: str, figures: Sequence[Figure], given: argparse.Namespace) -> None:
    """Print each figure beside its goal, and put it into OUT/`script`.json, where figures of
    other claims stay.
    """
    entries = {figure.claim: _entry(script, figure, given) for figure in figures}
    for name, entry in entries.items():
        claim = CLAIMS[name]
        verdict = "reached" if entry["reached"] else "NOT reached"
        print(f"{claim.text}: {Spread(**entry['figure']).text(claim.unit)}")
        print(f"  goal {claim.goal}: {verdict}")
        for what, seconds in entry["seconds"].items():
            print(f"  {what}: {Spread(**seconds).text('s')}")
        for what, value in entry["notes"].items():
            print(f"  {what}: {value:.4g}" if isinstance(value, float) else f"  {what}: {value}")
    if given.out is None:
        return
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"{script}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = json.dumps({**kept, **entries}, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"written: {path}")


def _entry(script: str, figure: Figure, given: argparse.Namespace) -> dict[str, Any]:
    spread = Spread.of(figure.values)
    words = [f"--{name} {getattr(given, name)}" for name in SAID if getattr(given, name, None)]
    return {
        "figure": asdict(spread),
        "reached": CLAIMS[figure.claim].holds(spread.median),
        "values": list(figure.values),
        "seconds": {what: asdict(Spread.of(each)) for what, each in figure.seconds.items()},
        "notes": dict(figure.notes),
        "command": " ".join(["python", f"benchmarks/{script}.py", *words]),
        "clock": given.clock,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Where a figure was taken: processor, threads, versions, allocator, what else ran."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", *PEERS)},
        "allocator": " ".join(platform.libc_ver()),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("MALLOC_", "OMP_", "MKL_", "LD_PRELOAD"))
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
