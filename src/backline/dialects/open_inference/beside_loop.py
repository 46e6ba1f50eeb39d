"""Work of a request that takes too long for the event loop, such as megabytes of JSON: done beside it, one piece of work at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class BesideLoop:
    """One thread, so that the memory of such work is taken once."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[], Result], done: Callable[[asyncio.Future[Result]], None]) -> None:
        """Runs `work` on the thread, then `done` on the event loop with the ended future."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="json")
        asyncio.get_running_loop().run_in_executor(self._thread, work).add_done_callback(done)
