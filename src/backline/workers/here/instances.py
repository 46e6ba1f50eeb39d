"""The two instances that run one batch at a time in this process: inline on the event loop, and on a
thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from queue import SimpleQueue
from time import thread_time_ns
from typing import ClassVar, TypeAlias

from backline.system.cores import pin
from backline.workers.batch import Batch
from backline.workers.instance import Finished

RunBatch: TypeAlias = Callable[[Batch], None]


class InlineInstance:
    """Runs on the event loop: for models that take well below a millisecond, where a thread switch would
    cost more.

    A model that was fast when measured may get far larger requests, and blocks the event loop meanwhile.
    `on_slow` is called once, between batches, if runs keep exceeding LONG_RUN_NS. A single slow run by the
    wall clock may be due to other programs, so it only starts a closer look: the processor time of the
    following runs decides.
    """

    beside_loop: ClassVar[bool] = False
    #: Nanoseconds that a run may block the event loop.
    LONG_RUN_NS = 5_000_000
    #: Runs whose processor time is measured after a slow one.
    _WATCHED = 1000
    #: Slow runs, by processor time, that suffice.
    _ENOUGH = 2

    def __init__(self, execute: RunBatch, on_slow: Callable[[], None] | None = None) -> None:
        self._execute = execute
        self._on_slow = on_slow
        self._watched = 0
        self._slow = 0

    def run(self, batch: Batch, finished: Finished) -> None:
        if self._watched:
            self._run_watched(batch, finished)
            return
        self._execute(batch)
        if batch.ended_ns - batch.started_ns > self.LONG_RUN_NS and self._on_slow is not None:
            self._watched = self._WATCHED
        finished(self, batch)

    def close(self) -> None:
        pass

    def _run_watched(self, batch: Batch, finished: Finished) -> None:
        self._watched -= 1
        began = thread_time_ns()
        self._execute(batch)
        if thread_time_ns() - began > self.LONG_RUN_NS:
            self._slow += 1
            self._watched = self._WATCHED
        elif not self._watched:
            self._slow = 0
        finished(self, batch)
        if self._slow >= self._ENOUGH and self._on_slow is not None:
            on_slow, self._on_slow, self._watched = self._on_slow, None, 0
            on_slow()


class ThreadInstance:
    """Runs on a dedicated thread: for runtimes that release the GIL while they compute."""

    beside_loop: ClassVar[bool] = True

    def __init__(
        self, execute: RunBatch, loop: asyncio.AbstractEventLoop, name: str, cores: Collection[int] = ()
    ) -> None:
        """The thread is pinned to `cores`; if empty, it runs on any."""
        self._execute = execute
        self._loop = loop
        self._cores = cores
        self._work: SimpleQueue[tuple[Batch, Finished] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def run(self, batch: Batch, finished: Finished) -> None:
        self._work.put((batch, finished))

    def close(self) -> None:
        self._work.put(None)

    def _serve(self) -> None:
        pin(self._cores)
        while (work := self._work.get()) is not None:
            batch, finished = work
            self._execute(batch)
            try:
                self._loop.call_soon_threadsafe(finished, self, batch)
            except RuntimeError:  # the loop was closed during the run
                return
            del work, batch, finished  # or the last batch's tensors would live until the next one
