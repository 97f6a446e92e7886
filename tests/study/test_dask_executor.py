"""The executor over a Dask client: each future ends, whatever the client answers or leaves out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from types import SimpleNamespace
from typing import Any

import pytest

from segproof.study import dask_executor
from segproof.study.dask_executor import DaskExecutor

PATIENCE = 20  # s after which a future that has not ended never will


class Task:
    """A stand-in for Dask's future: `status` as the client was told."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.status = "pending"
        self.ended = asyncio.Event()
        self.outcome: Callable[[], Any] = lambda: None
        self.released = False

    def release(self) -> None:
        self.released = True


class Client:
    """A stand-in for Dask's client, told by the test what happens on the cluster."""

    def __init__(self) -> None:
        self.status = "running"
        self.tasks: list[Task] = []
        self.states: dict[str, str | None] = {}
        self.closed = 0
        self.answer: Callable[[], Any] = lambda: None
        self.loop = SimpleNamespace(add_callback=self.later)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.scheduler: Any = SimpleNamespace(ncores=self.ncores, get_task_status=self.get_status)

    def later(self, function: Callable[..., Any], *given: Any) -> None:
        asyncio.run_coroutine_threadsafe(function(*given), self._loop)

    def submit(self, function: Callable[..., Any], *given: Any, pure: bool) -> Task:
        assert not pure
        if self.status == "closed":
            raise ValueError("closed")  # Dask: a class of its own
        task = Task(f"task-{len(self.tasks)}")
        task.outcome = lambda: function(*given)
        self.tasks.append(task)
        self.states[task.key] = "processing"
        return task

    async def gather(self, task: Task, *, asynchronous: bool) -> Any:
        assert asynchronous
        await task.ended.wait()
        return task.outcome()

    def end(self, task: Task, status: str = "finished", error: BaseException | None = None) -> None:
        def fail() -> None:
            assert error is not None
            raise error

        if error is not None:
            task.outcome = fail
        task.status = status
        self._loop.call_soon_threadsafe(task.ended.set)

    async def ncores(self) -> dict[str, int]:
        self.answer()
        return {"a": 2, "b": 3}

    async def get_status(self, keys: list[str]) -> dict[str, str | None]:
        self.answer()
        return {key: self.states[key] for key in keys}

    def sync(self, function: Callable[..., Any], *, callback_timeout: float, **details: Any) -> Any:
        future = asyncio.run_coroutine_threadsafe(function(**details), self._loop)
        return future.result(callback_timeout)

    def close(self, timeout: float) -> None:
        assert timeout == dask_executor.CLOSE
        self.closed += 1

    def stop(self) -> None:
        async def cancel() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.stop()


@pytest.fixture
def executor(client: Client) -> DaskExecutor:
    return DaskExecutor(client)  # type: ignore[arg-type]


def fail() -> None:
    raise OSError("the disk of a worker")


def test_a_future_ends_with_the_result_or_the_error_of_its_task(
    client: Client, executor: DaskExecutor
) -> None:
    futures = [executor.submit(pow, 2, 5), executor.submit(fail)]
    assert not wait(futures, timeout=0.05).done
    client.end(client.tasks[0])
    assert futures[0].result(PATIENCE) == 32
    client.end(client.tasks[1], "error")
    with pytest.raises(OSError, match="the disk of a worker"):
        futures[1].result(PATIENCE)
    assert executor.threads() == 5


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("finished", OSError("in gather: the scheduler was killed")),
        ("finished", asyncio.CancelledError()),
        ("cancelled", CancelledError("connection lost")),
        ("lost", AttributeError("None has no with_traceback")),
    ],
)
def test_a_result_that_cannot_be_fetched_is_lost(
    client: Client, executor: DaskExecutor, status: str, error: BaseException
) -> None:
    future = executor.submit(pow, 2, 5)
    client.end(client.tasks[0], status, error)
    assert wait([future], PATIENCE, FIRST_COMPLETED).done == {future}
    with pytest.raises(CancelledError, match="its result was lost"):
        future.result()


def test_a_result_that_never_arrives_is_lost_and_a_long_task_is_not(
    client: Client, executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_executor, "FETCH", 0.05)
    long, stuck = executor.submit(pow, 2, 5), executor.submit(pow, 2, 6)
    client.tasks[1].status = "finished"  # and gather stands still
    with pytest.raises(CancelledError, match=r"not fetched within 0\.05 s"):
        stuck.result(PATIENCE)
    assert not long.done()
    client.end(client.tasks[0])
    assert long.result(PATIENCE) == 32


def test_what_the_scheduler_does_not_know_for_a_minute_is_forgotten(
    client: Client, executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(dask_executor, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def forgotten(seconds: float) -> list[Future[Any]]:
        clock[0] += seconds
        return executor.forgotten()

    futures = [executor.submit(pow, 2, number) for number in range(6)]
    keys = [task.key for task in client.tasks]
    client.states = dict(
        zip(keys, ["processing", None, "memory", "erred", "no-worker", None], strict=True)
    )
    assert forgotten(0) == []
    assert forgotten(59) == []
    client.states[keys[5]] = "waiting"  # its message was on the way
    client.tasks[2].status = "finished"  # it is being fetched
    assert forgotten(2) == [futures[1], futures[3]]
    client.states[keys[5]] = None
    client.states[keys[1]] = client.states[keys[3]] = "processing"
    assert forgotten(61) == []
    assert forgotten(59) == []
    assert forgotten(2) == [futures[5]]


def test_a_scheduler_that_does_not_answer_has_forgotten_all(
    client: Client, executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    future = executor.submit(pow, 2, 5)

    def refuse() -> None:
        raise OSError("refused")

    client.answer = refuse
    assert executor.forgotten() == [future]
    with pytest.raises(BrokenExecutor, match=r"does not answer .*refused"):
        executor.threads()
    client.scheduler = None  # as after Client.close
    assert executor.forgotten() == [future]

    async def hang(**_: Any) -> None:
        await asyncio.sleep(PATIENCE)

    monkeypatch.setattr(dask_executor, "ANSWER", 0.05)
    client.scheduler = SimpleNamespace(get_task_status=hang, ncores=hang)
    assert executor.forgotten() == [future]
    with pytest.raises(BrokenExecutor, match="does not answer"):
        executor.threads()


def test_a_cancelled_future_releases_its_task_and_a_late_result_is_dropped(
    client: Client, executor: DaskExecutor
) -> None:
    future, other = executor.submit(pow, 2, 5), executor.submit(pow, 2, 6)
    assert future.cancel()
    assert client.tasks[0].released
    assert wait([future, other], PATIENCE, FIRST_COMPLETED).done == {future}
    client.end(client.tasks[0])
    client.end(client.tasks[1])
    assert other.result(PATIENCE) == 64
    assert future.cancelled()
    assert not client.tasks[1].released  # Dask does, once nobody holds it
    assert executor.forgotten() == []


def test_closing_ends_every_future_and_waits_only_so_long(
    client: Client, executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    futures = [executor.submit(pow, 2, 5), executor.submit(pow, 2, 6)]
    over = threading.Event()
    monkeypatch.setattr(dask_executor, "CLOSE", 0.05)

    def hang(timeout: float) -> None:
        over.wait(PATIENCE)
        raise TimeoutError(f"{timeout}")

    monkeypatch.setattr(client, "close", hang)
    executor.shutdown(wait=False)
    assert not over.is_set()
    for future in futures:
        with pytest.raises(CancelledError, match="connection to the scheduler was closed"):
            future.result(0)
    over.set()
    end = time.monotonic() + PATIENCE
    while client.status != "closed":
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(BrokenExecutor, match="the Dask client is closed"):
        executor.submit(pow, 2, 5)


def test_as_a_context_it_waits_for_its_futures(client: Client, executor: DaskExecutor) -> None:
    results: list[Future[Any]] = []
    with executor:
        results.append(executor.submit(pow, 2, 5))
        threading.Timer(0.05, client.end, (client.tasks[0],)).start()
    assert results[0].result(0) == 32
    assert client.closed == 1


def test_what_cannot_be_sent_is_the_callers_error(client: Client, executor: DaskExecutor) -> None:
    def submit(*_: Any, **__: Any) -> None:
        raise TypeError("cannot be pickled")

    client.submit = submit  # type: ignore[method-assign,assignment]
    with pytest.raises(TypeError, match="cannot be pickled"):
        executor.submit(pow, 2, 5)
