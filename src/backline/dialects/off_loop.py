"""A thread for work that would block the event loop, such as decoding megabytes of JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from backline.engine.values.datatypes import DataType
from backline.engine.values.tensor import Tensor

#: The maximum size in bytes of JSON, BYTES tensors or protobuf fields that are decoded on the event loop:
#: even a hostile request of this size blocks the loop for less than 5 ms. Anything larger is decoded on a
#: thread, in steps between which the loop can run.
LARGE = 64 * 1024
#: The maximum number of inputs, outputs and parameters in a request that is read on the event loop. Reading
#: each takes a few microseconds, so even a small request with thousands of them is read on a thread.
MANY = 512
#: The maximum number of elements in a tensor that is encoded as JSON or BYTES on the event loop. A thread
#: encodes larger tensors in pieces of this size.
PIECE = 8 * 1024
Result = TypeVar("Result")


def is_long(tensor: Tensor) -> bool:
    """Returns whether it takes too long to encode a tensor as JSON on the event loop."""
    if tensor.data.size > PIECE:
        return True
    return tensor.datatype is DataType.BYTES and sum(map(len, tensor.data.reshape(-1).tolist())) > LARGE


class LargeRequest(Exception):
    """Raised when reading a request would block the event loop for too long."""


class OffLoop:
    """Runs work on one thread, one request after the other, to limit the memory that decoding takes."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[], Result], done: Callable[[asyncio.Future[Result]], None]) -> None:
        """Runs `work` on the thread, then `done` on the event loop with the finished future."""
        self.submit(work).add_done_callback(done)

    def submit(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="json")
        return asyncio.get_running_loop().run_in_executor(self._thread, work)
