"""Tiles spread over processes: the same bytes, whoever studies them and whoever dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from run_folders import exports, run, study_of
from segproof import FolderDataset, Results, SegmentationModel, Study, StudyError
from segproof.study import dask_executor, run as study_module, workers as spread_module
from segproof.study.dask_executor import DaskExecutor
from segproof.study.tile import study_tile
from segproof.study.workers import (
    MANY,
    ROOM,
    Job,
    WorkerSlot,
    best_workers,
    digest_of_names,
    on_processes,
)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiles(tmp_path_factory.mktemp("spread") / "data", 24)


@pytest.fixture(scope="module")
def whole(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(tiles, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> list[WorkerSlot]:
    """The lanes of the next run, to look into while it runs."""
    made: list[WorkerSlot] = []

    def watched(*given: Any) -> list[WorkerSlot]:
        made[:] = on_processes(*given)
        return made

    monkeypatch.setattr(study_module, "on_processes", watched)
    return made


@pytest.mark.parametrize(
    ("tiles", "threads", "memory", "workers"),
    [
        (MANY, 2, 2 * ROOM, 2),
        (MANY, 8, 9 * ROOM, 2),
        (MANY - 1, 8, 9 * ROOM, 1),  # few tiles: workers would hardly have started
        (MANY, 8, 2 * ROOM - 4096, 1),
        (MANY, 1, 9 * ROOM, 1),
        (MANY, 2, None, 1),
    ],
)
def test_who_names_no_workers(
    tiles: int, threads: int, memory: int | None, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sysconf(name: str) -> int:
        if memory is None:
            raise ValueError(name)
        return {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": memory // 4096}[name]

    monkeypatch.setattr(os, "sysconf", sysconf)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert best_workers(tiles) == workers


@contextmanager
def killing(lanes: list[WorkerSlot], every: float) -> Iterator[list[int]]:
    """Kill one worker after the other while a run goes on; yields the killed."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        turn = 0
        while not over.wait(every):
            pids = [lane.pid for lane in lanes if lane.pid is not None and lane.pid not in killed]
            if pids:
                turn += 1
                killed.append(pids[turn % len(pids)])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_workers_export_the_same_bytes_also_when_killed(
    tiles: Path, whole: Results, tmp_path: Path, lanes: list[WorkerSlot]
) -> None:
    run(tiles, tmp_path / "calm", workers=2)
    assert exports(tmp_path / "calm") == exports(whole.folder)

    def kill() -> None:
        os.kill(next(lane.pid for lane in lanes if lane.pid), signal.SIGKILL)

    happened = after((4, kill), (12, kill))
    run(tiles, tmp_path / "killed", workers=2, progress=happened)
    assert happened.left == []
    assert sum(lane.age for lane in lanes) >= 1  # one that had nothing to do may go unnoticed
    assert exports(tmp_path / "killed") == exports(whole.folder)
    assert all(lane.executor is None for lane in lanes)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_one_worker_killed_every_two_seconds(
    tmp_path: Path, lanes: list[WorkerSlot], workers: int
) -> None:
    data = tiny.write_tiles(tmp_path / "data", 60 * workers)
    study = study_of(data, model="python:tiny:slow")
    wanted = study.run(tmp_path / "whole", allow_code=True)
    with killing(lanes, 2) as killed:
        study.run(tmp_path / "run", allow_code=True, workers=workers)
    print(f"{workers} workers, {len(killed)} killed")
    assert len(killed) >= 2
    assert exports(tmp_path / "run") == exports(wanted.folder)


def test_a_straggler_holds_up_its_own_tile_alone(
    tiles: Path, whole: Results, tmp_path: Path, lanes: list[WorkerSlot]
) -> None:
    """A worker that stands still, and goes on when all other tiles are done."""
    stopped: list[int] = []
    continued: list[int] = []

    def progress(done: int, *_: int) -> None:
        # the second worker may still be starting when the first one has four tiles
        at_work = [lane.pid for lane in lanes if lane.busy and lane.pid is not None]
        if done >= 4 and not stopped and at_work:
            os.kill(at_work[0], signal.SIGSTOP)
            stopped.append(at_work[0])
        if done == 23:
            os.kill(stopped[0], signal.SIGCONT)
            continued.append(stopped[0])

    run(tiles, tmp_path / "run", workers=2, progress=progress)
    assert len(stopped) == 1
    assert continued == stopped
    assert sum(lane.age for lane in lanes) == 0
    assert exports(tmp_path / "run") == exports(whole.folder)


def test_a_tile_that_kills_its_worker_is_tried_once_more_and_given_up(
    tiles: Path, whole: Results, tmp_path: Path, lanes: list[WorkerSlot]
) -> None:
    out = tmp_path / "run"
    deadly = study_of(tiles, model="python:tiny:deadly")
    made = deadly.run(out, workers=2, allow_code=True)
    found = made.tiles[made.tiles["status"] == "failed"]
    assert found["sample"].tolist() == [f"t{tiny.POISON:03}"]
    assert found["reason"].tolist() == ["worker: died 2 times on this tile"]
    assert sum(lane.age for lane in lanes) == 2
    assert len(made.tiles) == 24
    deadly.run(out, allow_code=True)  # without workers nothing dies: it is tried again
    assert exports(out) == exports(whole.folder)


def test_workers_with_other_files_are_refused(tiles: Path, tmp_path: Path) -> None:
    class Other(tiny.Tiny):
        def forward(self, images: Tensor) -> Tensor:
            result: Tensor = super().forward(images)
            return result

    net = Other()
    with torch.no_grad():
        next(net.parameters()).mul_(1.5)
    model = SegmentationModel(net, classes=["building"]).eval()
    with pytest.raises(StudyError, match="weights at python:tiny:network of a worker"):
        study_of(tiles).run(tmp_path / "a", model=model, workers=2, allow_code=True)
    with pytest.raises(StudyError, match=r"tiles in .* of a worker"):
        study_of(tiles).run(
            tmp_path / "b",
            data=FolderDataset(tiny.write_tiles(tmp_path / "data", 3)),
            workers=2,
            allow_code=True,
        )
    with pytest.raises(StudyError, match="one way"):
        study_of(tiles).run(tmp_path / "c", workers=2, dask="tcp://127.0.0.1:1")


@pytest.mark.parametrize("how", [{"workers": 0}, {"threads": 0}, {"threads": -1}])
def test_less_than_one_of_something_is_refused_before_anything_is_written(
    tiles: Path, tmp_path: Path, how: dict[str, int]
) -> None:
    [(name, count)] = how.items()
    with pytest.raises(StudyError, match=f"found {name} {count}; expected 1 or more"):
        study_of(tiles).run(tmp_path / "run", **how)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_threads_are_those_that_were_asked_for(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def looking(*given: Any) -> Any:
        seen.append(torch.get_num_threads())
        return study_tile(*given)

    monkeypatch.setattr(study_module, "study_tile", looking)
    before = torch.get_num_threads()
    study_of(tiles, limit=2).run(tmp_path / "one", allow_code=True, threads=before + 1)
    assert seen == [before + 1] * 2
    assert torch.get_num_threads() == before
    for given, wanted in (((2,), max(1, before // 2)), ((2, "cpu", 3), 3)):
        [lane, _] = on_processes(*given)
        executor, close = lane.make()
        assert executor.submit(torch.get_num_threads).result() == wanted
        close()


def test_what_travels_is_small_and_holds_no_tensor(tiles: Path) -> None:
    study = study_of(tiles)
    model, data = study.open_model(allow_code=True), FolderDataset(tiles)
    plan = study.plan(model, data)
    job = Job(plan, model.fingerprint(), digest_of_names(data.ids), "0.1.0", allow_code=True)
    sent = bytes(ForkingPickler.dumps(job))
    assert len(sent) < 4096
    assert b"torch" not in sent.replace(b"python:", b"")


def test_any_executor_will_do(tiles: Path, whole: Results, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as threads:
        run(tiles, tmp_path / "threads", executor=threads)
    assert exports(tmp_path / "threads") == exports(whole.folder)
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool:
        deadly = study_of(tiles, model="python:tiny:deadly")
        with pytest.raises(StudyError, match="workers that stop before a tile is done"):
            deadly.run(tmp_path / "pool", executor=pool, allow_code=True)
    deadly.run(tmp_path / "pool", allow_code=True)
    assert exports(tmp_path / "pool") == exports(whole.folder)


def test_a_stop_lets_begun_tiles_end(tiles: Path, whole: Results, tmp_path: Path) -> None:
    made = run(tiles, tmp_path / "run", workers=2, stop=lambda: True)
    assert len(made.tiles) == 0
    asked = iter([False] * 6)
    made = run(tiles, tmp_path / "run", workers=2, stop=lambda: next(asked, True))
    assert 0 < len(made.tiles) < 24
    run(tiles, tmp_path / "run", workers=2)
    assert exports(tmp_path / "run") == exports(whole.folder)


ORPHAN = """
import sys; sys.path[:0] = {path!r}
import tiny
from segproof import Study
if __name__ == "__main__":
    study = Study.of(data={data!r}, **tiny.SETTINGS)
    study.run({out!r}, workers=2, allow_code=True, progress=lambda *_: print("tick", flush=True))
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_coordinator(tmp_path: Path) -> None:
    data = tiny.write_tiles(tmp_path / "data", 200)
    script = tmp_path / "script.py"
    names = {"path": sys.path, "data": str(data), "out": str(tmp_path / "run")}
    script.write_text(ORPHAN.format(**names))
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for _ in range(3):  # the plan, then two tiles
        assert process.stdout.readline() == "tick\n"
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while True:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < end, "a worker was left behind"
        time.sleep(0.05)
    process.stdout.close()


# --- tiles that are forgotten ---------------------------------------------------------------------
class Forgetful(ThreadPoolExecutor):
    """Threads that never study the tile with this number in the order of submission."""

    def __init__(self, number: int) -> None:
        super().__init__(2)
        self.left = number
        self.forgotten: list[Future[Any]] = []

    def submit(self, *given: Any, **more: Any) -> Future[Any]:
        self.left -= 1
        if self.left:
            return super().submit(*given, **more)
        self.forgotten.append(Future())
        return self.forgotten[-1]


def test_a_forgotten_tile_is_sent_again_through_a_new_connection(
    tiles: Path, whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executors: list[Forgetful] = []

    def make() -> tuple[Forgetful, Callable[[], None]]:
        executors.append(Forgetful([5, 1, 0][len(executors)]))
        return executors[-1], executors[-1].shutdown

    def forgotten(executor: Any) -> list[Future[Any]]:
        assert executor is executors[-1]
        return [future for future in executor.forgotten if not future.done()]

    lane = WorkerSlot(make, lambda _: 4, forgotten)
    monkeypatch.setattr(study_module, "on_dask", lambda _: [lane])
    monkeypatch.setattr(spread_module, "TICK", 0.1)
    made = run(tiles, tmp_path / "run", dask="stand-in")
    assert [len(executor.forgotten) for executor in executors] == [1, 1, 0]
    assert lane.age == 2
    assert len(made.tiles) == 24
    assert exports(tmp_path / "run") == exports(whole.folder)


def test_a_stop_is_noticed_while_a_tile_is_forgotten(
    tiles: Path, whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Forgetful(5)
    lane = WorkerSlot(
        lambda: (executor, executor.shutdown), lambda _: 4, lambda _: executor.forgotten
    )
    monkeypatch.setattr(study_module, "on_dask", lambda _: [lane])
    monkeypatch.setattr(spread_module, "TICK", 0.1)
    made = run(tiles, tmp_path / "run", dask="stand-in", stop=lambda: bool(executor.forgotten))
    assert 3 <= len(made.tiles) < 24
    assert lane.executor is None
    run(tiles, tmp_path / "run")
    assert exports(tmp_path / "run") == exports(whole.folder)


def test_a_lane_that_cannot_tell_its_width_is_made_anew(
    tiles: Path, whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> tuple[Forgetful, Callable[[], None]]:
        executor = Forgetful(0)
        return executor, executor.shutdown

    answers: Iterator[Any] = iter(
        [4, 4, BrokenExecutor("no answer"), 4, 4, BrokenExecutor("no answer")]
    )

    def width(_: Any) -> int:
        answer = next(answers, 4)
        if isinstance(answer, BrokenExecutor):
            raise answer
        return int(answer)

    lane = WorkerSlot(make, width)
    monkeypatch.setattr(study_module, "on_dask", lambda _: [lane])
    run(tiles, tmp_path / "run", dask="stand-in")
    assert lane.age == 2
    assert exports(tmp_path / "run") == exports(whole.folder)


# --- Dask -----------------------------------------------------------------------------------------
class Cluster:
    """A scheduler and workers as processes of their own, as one starts them by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []
        self.port = 0
        self.scheduler = self.start_scheduler()

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([*sys.path, str(Path(tiny.__file__).parent)])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *arguments], env=environment, stdout=log, stderr=log,
                cwd=self.folder,
            )  # fmt: skip

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        if not self.port:
            import socket

            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        return self.start(
            "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port),
            "--no-dashboard", "--no-jupyter",
        )  # fmt: skip

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def add(self) -> None:
        self.workers.append(
            self.start(
                "distributed.cli.dask_worker", self.address, "--nthreads", "1", "--no-dashboard",
                "--no-nanny", "--local-directory", str(self.folder), "--death-timeout", "90",
            )
        )  # fmt: skip

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.end()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what a library warns of while its peers are killed
def test_a_dask_cluster_that_loses_and_gains_a_worker(cluster: Cluster, tmp_path: Path) -> None:
    data = tiny.write_tiles(tmp_path / "data", 150)
    wanted = run(data, tmp_path / "whole")
    for _ in range(3):
        cluster.add()
    happened = after(
        (40, cluster.workers[0].kill),
        (60, cluster.add),
    )
    made = run(data, tmp_path / "run", dask=cluster.address, progress=happened)
    assert len(made.tiles) == 150
    assert happened.left == []
    assert exports(tmp_path / "run") == exports(wanted.folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_dask_scheduler_that_is_restarted(cluster: Cluster, tmp_path: Path) -> None:
    data = tiny.write_tiles(tmp_path / "data", 100)
    wanted = run(data, tmp_path / "whole")
    for _ in range(2):
        cluster.add()

    def restart() -> None:
        cluster.end()
        cluster.scheduler = cluster.start_scheduler()
        cluster.workers = []
        for _ in range(2):
            cluster.add()

    happened = after((30, restart))
    made = run(data, tmp_path / "run", dask=cluster.address, progress=happened)
    assert happened.left == []
    assert len(made.tiles) == 100
    assert exports(tmp_path / "run") == exports(wanted.folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_dask_scheduler_that_is_killed_while_it_hands_out_a_result(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 10th result is finished and asked for, and the scheduler dies before it answers."""
    distributed = pytest.importorskip("distributed")
    data = tiny.write_tiles(tmp_path / "data", 40)
    wanted = run(data, tmp_path / "whole")
    cluster.add()
    gather_remote = distributed.Client._gather_remote
    asked: list[int] = []

    async def killing(self: Any, *given: Any) -> Any:
        asked.append(len(asked))
        if len(asked) == 10:
            cluster.end()
            cluster.scheduler = cluster.start_scheduler()
            cluster.workers = []
            cluster.add()
        return await gather_remote(self, *given)

    monkeypatch.setattr(distributed.Client, "_gather_remote", killing)
    run(data, tmp_path / "run", dask=cluster.address)
    assert len(asked) > 10
    assert exports(tmp_path / "run") == exports(wanted.folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_dask_scheduler_that_forgets_or_stands_still_is_left_within_seconds(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First it loses one task of two; then its process is stopped, and its connections are open."""
    [lane] = spread_module.on_dask(cluster.address)
    executor, close = lane.make()
    assert isinstance(executor, DaskExecutor)
    futures = [executor.submit(pow, 2, 5), executor.submit(pow, 2, 6)]  # no worker: they wait
    while lane.forgotten(executor) or executor._suspects:
        time.sleep(0.01)  # their messages are on the way
    assert lane.width(executor) == 4
    key = executor._open[futures[1]].key
    executor._client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.tasks.pop(key) and None)
    assert lane.forgotten(executor) == []
    monkeypatch.setattr(dask_executor, "SURE", 0)
    assert lane.forgotten(executor) == [futures[1]]
    monkeypatch.setattr(dask_executor, "ANSWER", 1)
    os.kill(cluster.scheduler.pid, signal.SIGSTOP)
    assert lane.forgotten(executor) == futures
    begun = time.monotonic()
    close()
    print(f"closed after {time.monotonic() - begun:.1f} s")
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(0)


class after:  # noqa: N801 - reads as a word
    """Does things once so many tiles are done."""

    def __init__(self, *plans: tuple[int, Callable[[], Any]]) -> None:
        self.left = list(plans)

    def __call__(self, done: int, *_: int) -> None:
        while self.left and done >= self.left[0][0]:
            self.left.pop(0)[1]()


def test_no_dask_or_no_scheduler_is_a_message(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(StudyError, match=r"pip install \"segproof\[dask\]\""):
        run(tiles, tmp_path / "run", dask="tcp://127.0.0.1:1")


def test_a_wrong_address_is_told_before_anything_is_planned(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    monkeypatch.setattr(spread_module, "CONNECT", 0.2)
    monkeypatch.setattr(Study, "_resolved", None)
    with pytest.raises(StudyError, match=r"no Dask scheduler at tcp://127\.0\.0\.1:1 "):
        run(tiles, tmp_path / "run", dask="tcp://127.0.0.1:1")
