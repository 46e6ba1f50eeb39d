"""Work on a request that takes too long for the event loop, such as megabytes of JSON: done on a thread, one piece of work at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

#: Bytes of JSON, of BYTES tensors or of a protobuf message that are read on the event loop: below this a hostile request holds it for less
#: than 5 ms. Whatever is larger is read on a thread, in steps that let the loop have the interpreter in between.
LARGE = 64 * 1024
#: Elements of a tensor that are written as JSON, or as BYTES, on the event loop; larger ones are written on a thread in such pieces.
PIECE = 8 * 1024
Result = TypeVar("Result")


class LargeRequest(Exception):
    """A request takes too long to read on the event loop."""


class OffLoop:
    """One thread, so that the memory of such work is taken once."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[], Result], done: Callable[[asyncio.Future[Result]], None]) -> None:
        """Runs `work` on the thread, then `done` on the event loop with the ended future."""
        self.submit(work).add_done_callback(done)

    def submit(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        """Runs `work` on the thread."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="json")
        return asyncio.get_running_loop().run_in_executor(self._thread, work)
