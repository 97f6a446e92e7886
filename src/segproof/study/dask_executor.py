"""Runs functions on a Dask cluster through futures that always end, whatever becomes of it.

Dask's own executor leaves a future pending for good where the scheduler dies while a result is
fetched, and where a message of a dying connection is lost.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait as wait_for
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["DaskExecutor"]

ANSWER: Final = 60  # s that the scheduler may take to answer: its first task has it import torch
SURE: Final = 60  # s for which it must know nothing of a task, for the same reason
FETCH: Final = 60  # s after which a finished result is looked at; the second look gives it up
CLOSE: Final = 5  # s that the client may take to say goodbye


class DaskExecutor(Executor):
    """The workers of a Dask scheduler. The executor owns its client and closes it.

    Each future ends with its result, with the error of its own task, or with CancelledError where
    the cluster lost it: then the task may run again elsewhere.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loop: Any = client.loop  # not None: the client has started
        self._open: dict[Future[Any], Any] = {}  # our future -> Dask's; who pops a future ends it
        self._suspects: dict[str, float] = {}  # key -> when it was first missed

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send `fn(*args, **kwargs)` to the cluster.

        Raises:
            BrokenExecutor: the client is closed.
        """
        try:
            task = self._client.submit(fn, *args, pure=False, **kwargs)
        except Exception as error:
            if self._client.status in ("running", "connecting"):
                raise
            raise BrokenExecutor(f"the Dask client is {self._client.status}") from error
        future: Future[Any] = Future()
        self._open[future] = task
        future.add_done_callback(self._release_cancelled)
        self._loop.add_callback(self._follow, future, task)
        return future

    def threads(self) -> int:
        """Count the threads of all workers.

        Raises:
            BrokenExecutor: the scheduler does not answer.
        """
        return sum(self._answer("ncores").values())

    def forgotten(self) -> list[Future[Any]]:
        """List the futures that will never end by themselves: all where the scheduler does not
        answer, else those whose task was unknown to the scheduler in all calls of the last SURE
        seconds, or done there without word of it here.
        """
        tasks = dict(self._open)
        try:
            states = self._answer("get_task_status", keys=[task.key for task in tasks.values()])
        except BrokenExecutor:
            return list(tasks)
        now = time.monotonic()
        self._suspects = {
            task.key: self._suspects.get(task.key, now)
            for task in tasks.values()
            if (state := states[task.key]) is None
            or (state in ("memory", "erred") and task.status == "pending")
        }
        sure = {key for key, since in self._suspects.items() if since < now - SURE}
        return [future for future, task in tasks.items() if task.key in sure]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Close the client, after the open futures where `wait` and not `cancel_futures`; futures
        that are still open end as lost.
        """
        if wait and not cancel_futures:
            wait_for(list(self._open))
        # In a thread of its own: the time limit of `Client.close` does not cover all of its waits.
        thread = threading.Thread(target=_close, args=(self._client,), daemon=True)
        thread.start()
        thread.join(CLOSE)
        for future in list(self._open):
            self._end(future, error=CancelledError("the connection to the scheduler was closed"))

    def _answer(self, question: str, **details: Any) -> Any:
        """Return what the scheduler's handler `question` answers.

        Raises:
            BrokenExecutor: it does not answer.
        """
        client = self._client
        try:
            handler: Callable[..., Awaitable[Any]] = getattr(client.scheduler, question)
            return client.sync(handler, callback_timeout=ANSWER, **details)
        except Exception as error:  # a closed loop, a broken connection, a scheduler that hangs
            raise BrokenExecutor(f"the scheduler does not answer ({error!r})") from error

    async def _follow(self, future: Future[Any], task: Any) -> None:
        """End `future` as `task` ends; runs in the loop of the client."""
        try:
            result = await self._fetched(task)
        except BaseException as error:
            lost = CancelledError(f"its result was lost ({error!r})")
            self._end(future, error=error if task.status == "error" else lost)
            if not isinstance(error, Exception | asyncio.CancelledError):
                raise
        else:
            self._end(future, result)

    async def _fetched(self, task: Any) -> Any:
        """Wait for the task as long as it takes, and for its finished result not much longer."""
        fetching = asyncio.ensure_future(self._client.gather(task, asynchronous=True))
        try:
            finished = False
            while not (await asyncio.wait({fetching}, timeout=FETCH))[0]:
                if finished and task.status == "finished":
                    raise TimeoutError(f"not fetched within {FETCH} s")
                finished = task.status == "finished"
            return fetching.result()
        finally:
            fetching.cancel()

    def _end(
        self, future: Future[Any], result: Any = None, error: BaseException | None = None
    ) -> None:
        """End `future`, unless it has ended or was cancelled."""
        if self._open.pop(future, None) is None or not future.set_running_or_notify_cancel():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _release_cancelled(self, future: Future[Any]) -> None:
        """Let the scheduler forget a task whose future was cancelled by its owner."""
        task = self._open.pop(future, None)
        if task is not None:
            future.set_running_or_notify_cancel()  # wakes who waits for it
            task.release()


def _close(client: Client) -> None:
    """Close the client, or let it be where it cannot close."""
    try:
        client.close(timeout=CLOSE)
    except Exception:  # nothing is lost with a client that cannot say goodbye
        client.status = "closed"  # or it would try again, for longer, when it is collected
