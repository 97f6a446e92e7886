"""Shares tiles among processes or a cluster by `concurrent.futures`, and outlives dying workers."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import chain, repeat
from typing import Any, Final, cast

import torch

from segproof.data import FolderDataset
from segproof.errors import SegproofError, StudyError
from segproof.models import SegmentationModel, keep_blocks
from segproof.study.dask_executor import DaskExecutor
from segproof.study.plan import Plan
from segproof.study.settings import Settings
from segproof.study.store import TileResult
from segproof.study.tile import study_tile

__all__ = [
    "Job",
    "WorkerSlot",
    "best_workers",
    "digest_of_names",
    "on_dask",
    "on_executor",
    "on_processes",
    "run_on_workers",
    "threads_of_each",
    "with_threads",
]

TRIES: Final = 2  # a tile whose worker died is tried once more
STARTS: Final = 5  # workers in a row that may die, or connections that may break, before any result
CONNECT: Final = 10  # s that a scheduler may take to answer
RECONNECT: Final = 60  # s that it may take to come back
TICK: Final = 5  # s without news after which each lane looks for tiles that were forgotten
MANY: Final = 100  # tiles whose study is long beside the seconds in which workers start
ROOM: Final = 4 << 30  # bytes of the machine for each worker
_ALONE: Final = threading.Lock()  # hooks sit in the model: one tile at a time in each process


@dataclass(frozen=True)
class Job:
    """What a worker is told, a few KiB: it opens model and tiles itself, by their paths, and
    refuses weights or tiles that are not the coordinator's.
    """

    plan: Plan
    weights: str
    tiles: str
    release: str
    allow_code: bool = False


def digest_of_names(names: Sequence[str]) -> str:
    """SHA-256 of the names of all tiles, in order."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


@lru_cache(maxsize=2)
def _opened(
    settings: str, weights: str, tiles: str, release: str, allow_code: bool
) -> tuple[SegmentationModel, FolderDataset]:
    study = Settings.model_validate_json(settings)
    model = study.open_model(allow_code=allow_code)
    data = study.open_data(model)
    for name, here, wanted in (
        ("segproof", version("segproof"), release),
        (f"weights at {study.model}", model.fingerprint(), weights),
        (f"tiles in {study.data}", digest_of_names(data.ids), tiles),
    ):
        if here != wanted:
            raise StudyError(
                f"{name} of a worker: {here[:12]}",
                f"{wanted[:12]}, as the coordinator's",
                "give every worker the same files at the same paths (a model in memory: save it)",
            )
    return model, data


def _ready(job: Job) -> int:
    """Open model and tiles before the first tile is sent; returns the worker's process id."""
    settings = job.plan.study.model_dump_json(by_alias=True)
    with _ALONE:
        _opened(settings, job.weights, job.tiles, job.release, job.allow_code)
    return os.getpid()


def _work(job: Job, position: int) -> TileResult:
    """One tile in a worker, which keeps model and tiles between tiles."""
    settings = job.plan.study.model_dump_json(by_alias=True)
    with _ALONE:
        opened = _opened(settings, job.weights, job.tiles, job.release, job.allow_code)
        return study_tile(job.plan, *opened, position)


@dataclass
class WorkerSlot:
    """An executor and how to make it again: one process, a cluster, or what a user brought.

    `width` says how many tiles it holds at once, `forgotten` which of its futures will never end.
    A lane of one process (`alone`) knows which tile its worker died of, and opens model and tiles
    before it is blamed on any.
    """

    make: Callable[[], tuple[Executor, Callable[[], None]]]
    width: Callable[[Executor], int]
    forgotten: Callable[[Executor], Collection[Future[Any]]] = lambda _: ()
    alone: bool = False
    mended: bool = True
    executor: Executor | None = None
    close: Callable[[], None] = lambda: None
    ready: bool = False
    busy: int = 0
    deaths: int = 0
    age: int = 0
    pid: int | None = None

    def submit(self, job: Job, todo: deque[int]) -> tuple[Future[Any], int | None]:
        """Send the next tile, or first the question whether the worker is ready."""
        if self.executor is None:
            self.executor, self.close = self.make()
            self.ready = not self.alone
        if not self.ready:
            future: Future[Any] = self.executor.submit(_ready, job)
            position = None
        else:
            position = todo[0]
            future = self.executor.submit(_work, job, position)
            todo.popleft()
        self.busy += 1
        return future, position

    @property
    def free(self) -> bool:
        """Whether another tile can be sent."""
        if self.executor is None or not self.ready:
            return not self.busy
        return self.busy < self.width(self.executor)

    def lost(self, age: int, error: BaseException) -> None:
        """Its worker died: make it anew for the next tile.

        Raises:
            StudyError: it cannot be made anew, or dies again and again.
        """
        if age != self.age:
            return  # one of several that went down together
        self.age += 1
        self.deaths += 1
        if not self.mended or self.deaths >= STARTS:
            raise StudyError(
                f"workers that stop before a tile is done ({str(error) or type(error).__name__})",
                "workers that live",
                "look at their memory and log; a script that studies with workers needs"
                " `if __name__ == '__main__':`; the same command continues from here",
            ) from error
        self.end(now=True)

    def end(self, *, now: bool) -> None:
        """Let the executor go; `now`: without waiting for the tile in its worker."""
        if self.executor is None:
            return
        if now and self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.close()
        self.executor, self.pid, self.ready = None, None, False


def run_on_workers(
    job: Job,
    positions: Sequence[int],
    lanes: Sequence[WorkerSlot],
    gave_up: Callable[[int, str], TileResult],
    stop: Callable[[], bool] = lambda: False,
) -> Generator[TileResult, None, None]:
    """Tiles as workers finish them. A tile whose worker died is tried once more, then given up.

    Once `stop()` says so no tile is begun; those that were are finished.

    Raises:
        StudyError: workers without the coordinator's files, or that die again and again.
    """
    todo, tries = deque(positions), Counter[int]()
    running: dict[Future[Any], tuple[WorkerSlot, int, int | None]] = {}
    finished = False
    try:
        while True:
            if stop():
                todo.clear()
            for lane in lanes:
                while todo:
                    try:
                        if not lane.free:
                            break
                        future, sent = lane.submit(job, todo)
                    except BrokenExecutor as error:  # it died between two tiles
                        lane.lost(lane.age, error)
                        continue
                    running[future] = lane, lane.age, sent
            if not todo and all(position is None for _, _, position in running.values()):
                break
            ended: Collection[Future[Any]] = wait(running, TICK, FIRST_COMPLETED).done
            # While other tiles end, one that never will delays nothing: it is looked for later.
            for future in ended or _forgotten(lanes):
                lane, age, position = running.pop(future)
                lane.busy -= 1
                try:
                    answer = _result(future)
                except (BrokenExecutor, CancelledError) as error:
                    lane.lost(age, error)
                    if position is None:
                        continue
                    tries[position] += isinstance(error, BrokenExecutor)
                    if tries[position] < TRIES:
                        todo.appendleft(position)
                    else:
                        yield gave_up(position, f"died {TRIES} times on this tile")
                except SegproofError:
                    raise
                except Exception as error:
                    if position is not None and type(error).__name__ == "KilledWorker":
                        yield gave_up(position, str(error))  # Dask has tried it again itself
                        continue
                    raise StudyError(
                        f"a worker that answers {type(error).__name__}: {error}",
                        "the same segproof, network and tiles as here",
                        "install the same environment on every worker",
                    ) from error
                else:
                    if position is None:
                        lane.ready, lane.pid = True, answer
                        continue
                    lane.deaths = 0
                    yield answer
        finished = True
    finally:
        for future in running:
            future.cancel()
        for lane in lanes:
            lane.end(now=not finished)


def _result(future: Future[Any]) -> Any:
    """Return the result of a future that has ended, or that will never end.

    Raises:
        CancelledError: it will never end, or was cancelled.
    """
    if not future.done():
        raise CancelledError("the cluster forgot a tile")
    return future.result()


def _forgotten(lanes: Sequence[WorkerSlot]) -> list[Future[Any]]:
    """List the futures of all lanes that will never end."""
    return [
        future
        for lane in lanes
        if lane.executor is not None
        for future in lane.forgotten(lane.executor)
    ]


def best_workers(tiles: int) -> int:
    """How many processes share so many tiles on the CPU best: two with half of the threads each, or
    this one alone where tiles are few, threads or memory short, or memory is not known.

    It depends on nothing that changes from one start to the next, so that a resumed run has the
    same bytes.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1
    return 2 if tiles >= MANY and torch.get_num_threads() >= 2 and memory >= 2 * ROOM else 1


def threads_of_each(workers: int, threads: int | None) -> int:
    """Threads of each worker: those asked for, else its share of those of this process."""
    return threads or max(1, torch.get_num_threads() // workers)


def on_processes(workers: int, device: str = "cpu", threads: int | None = None) -> list[WorkerSlot]:
    """So many processes on this machine, with so many threads each (else they share those of this
    process), and its GPUs one by one.

    Each is a pool of its own, so that a dead one takes no other with it and its tile is known.
    """
    each = threads_of_each(workers, threads)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # a new worker starts in milliseconds
    cards = _cards() if device == "cuda" else []

    def lane(number: int) -> WorkerSlot:
        card = cards[number % len(cards)] if cards else None

        def make() -> tuple[Executor, Callable[[], None]]:
            pool = ProcessPoolExecutor(
                1, mp_context=context, initializer=_begin, initargs=(each, card)
            )
            return pool, lambda: pool.shutdown(cancel_futures=True)

        return WorkerSlot(make, lambda _: 1, alone=True)

    return [lane(number) for number in range(workers)]


@contextmanager
def with_threads(count: int | None) -> Iterator[None]:
    """So many threads for torch, and what there was before afterwards; None: as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_executor(executor: Executor) -> list[WorkerSlot]:
    """An executor that somebody else made and ends."""
    width = 2 * (getattr(executor, "_max_workers", None) or 4)
    return [WorkerSlot(lambda: (executor, lambda: None), lambda _: width, mended=False)]


def on_dask(address: str) -> list[WorkerSlot]:
    """The workers of a Dask scheduler, also those that join or leave later.

    Raises:
        StudyError: no `distributed` here, or no scheduler there.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise StudyError(
            "no distributed in this environment", "the extra dask", 'pip install "segproof[dask]"'
        ) from error

    patience = chain([CONNECT], repeat(RECONNECT))

    def make() -> tuple[Executor, Callable[[], None]]:
        try:
            client = Client(address, timeout=next(patience), set_as_default=False)
        except (OSError, ValueError) as error:
            raise StudyError(
                f"no Dask scheduler at {address} ({error})",
                "the address that `dask scheduler` prints",
                "start it, or check --dask; the same command continues from here",
            ) from error
        executor = DaskExecutor(client)
        return executor, lambda: executor.shutdown(wait=False)

    def width(executor: Executor) -> int:
        return max(4, 2 * cast("DaskExecutor", executor).threads())

    def forgotten(executor: Executor) -> Collection[Future[Any]]:
        return cast("DaskExecutor", executor).forgotten()

    make()[1]()  # a wrong address is told before anything is planned
    return [WorkerSlot(make, width, forgotten)]


def _cards() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    return [str(number) for number in range(torch.cuda.device_count())]


def _begin(threads: int, card: str | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's
    torch.set_num_threads(threads)
    keep_blocks()
    if card is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = card
    threading.Thread(target=_end_with_the_coordinator, daemon=True).start()


def _end_with_the_coordinator() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # it was killed: nobody waits for this tile
