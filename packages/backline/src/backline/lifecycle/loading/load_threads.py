"""Runs loads on threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from typing import TypeVar

Result = TypeVar("Result")


def loads_running() -> bool:
    """Returns whether a load is running in this process. If so, an orderly exit of the process might crash in
    a runtime.
    """
    return any(isinstance(thread, _LoadThread) and thread.loading for thread in threading.enumerate())


#: Seconds for which an idle thread waits for another load before it ends.
_IDLE = 1.0


class _LoadThread(threading.Thread):
    """A thread that runs loads one after another. `loads_running` finds the threads of this class."""

    def __init__(self, call: Callable[[], None], following: Callable[[], Callable[[], None] | None]) -> None:
        """The thread runs `call`, then each call that `following` returns. `following` may block until there
        is another call; it returns None if the thread should end.
        """
        super().__init__(daemon=True)
        self._call: Callable[[], None] | None = call
        self._following = following
        self.loading = True

    def run(self) -> None:
        while (call := self._call) is not None:
            self.loading = True
            call()
            self.loading = False
            call = self._call = None  # an idle thread must not keep the last load's objects alive
            self._call = self._following()


class LoadThreads:
    """Runs each call on an idle daemon thread, or on a new one. The caller limits how many calls run at the
    same time.

    A runtime cannot be interrupted. In a pool of limited size, a load that never ends would occupy a thread
    forever and block the interpreter's exit. Threads are reused because starting one can block the event
    loop for an interpreter's switch interval.
    """

    def __init__(self) -> None:
        self._numbers = count(1)
        self._lock = threading.Lock()
        #: Calls that idle threads will take. Each `put` follows a decrement of `_idle` under the lock.
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        #: The number of idle threads minus the number of calls in `_calls`, that is, the number of idle
        #: threads for which no call is waiting.
        self._idle = 0

    async def run(self, call: Callable[[], Result], discard: Callable[[Result], None]) -> Result:
        """Runs a call, which begins immediately, on an idle thread or a new one. If the caller is cancelled,
        the call goes on, and `discard` is called with its result.

        `run_in_executor` and `shield` would take two more turns of the event loop for each call, and objects
        that cost a twentieth of the load of a small model.
        """
        ended = self._begin(call, discard)
        try:
            return await ended
        except asyncio.CancelledError:
            if not ended.cancelled() and ended.exception() is None:  # the call ended just before
                discard(ended.result())
            raise

    def _begin(self, call: Callable[[], Result], discard: Callable[[Result], None]) -> asyncio.Future[Result]:
        """Begins a call, and calls `discard` with its result if the future is cancelled before the end."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def succeed(result: Result) -> None:
            if future.cancelled():
                discard(result)
            else:
                future.set_result(result)

        def fail(error: BaseException) -> None:
            if not future.cancelled():
                future.set_exception(error)

        def on_thread() -> None:
            try:
                result = call()
            except BaseException as error:
                end = partial(fail, error)
            else:
                end = partial(succeed, result)
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(end)

        with self._lock:
            if self._idle:
                self._idle -= 1
                self._calls.put(on_thread)
                return future
        thread = _LoadThread(on_thread, self._following)
        thread.name = f"load_{next(self._numbers)}"
        thread.start()
        return future

    def _following(self) -> Callable[[], None] | None:
        """Waits for the next call for the current thread. Returns None if none comes within _IDLE seconds."""
        with self._lock:
            self._idle += 1
        with suppress(Empty):
            return self._calls.get(timeout=_IDLE)
        with self._lock:
            with suppress(Empty):  # `_begin` may have counted on this thread just after the wait ended
                return self._calls.get_nowait()
            self._idle -= 1
        return None
