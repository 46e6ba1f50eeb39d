"""The event loop of all synchronous clients in a process, on a daemon thread that the first client starts."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

from backline_client.values.errors import Unavailable

T = TypeVar("T")

#: Seconds that an exiting program waits for work on the loop, such as a request to an embedded model.
_ENDS_WITHIN = 1.0


class BackgroundLoop:
    """An event loop on a dedicated thread, which runs coroutines for other threads."""

    def __init__(self, name: str = "backline-client") -> None:
        self._pid = os.getpid()
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def _end(self) -> None:
        """Stops the loop when the program exits, before the interpreter is torn down."""
        if self._pid == os.getpid():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_ENDS_WITHIN)

    def close(self) -> None:
        """Stops the loop and its thread. Call this only after all work on the loop has ended."""
        atexit.unregister(self._end)
        self._end()
        if not self._thread.is_alive():
            self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop and returns its result.

        Interrupting the waiting thread cancels the coroutine. Raises Unavailable after a fork, on the loop's
        own thread, or while the program is exiting.
        """
        if self._pid != os.getpid():
            coroutine.close()
            raise Unavailable(
                "this client was created before a fork, and its connections belong to the parent process:"
                " connect again in the child"
            )
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise Unavailable(
                "a synchronous client was called on the client's own event loop, where it would wait forever:"
                " use connect_async"
            )
        if not self._thread.is_alive():
            coroutine.close()
            raise Unavailable("the program is exiting: a synchronous client can no longer be called")
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


@cache
def _loop_of(pid: int) -> BackgroundLoop:
    return BackgroundLoop()


_starting = threading.Lock()


def background_loop() -> BackgroundLoop:
    """Returns the background loop of this process."""
    with _starting:
        return _loop_of(os.getpid())
