"""The two instances that run one batch at a time in this process: on the event loop, and on a thread."""

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
    """Runs on the event loop itself: for models that take well below a millisecond, where a hop to a thread would cost more.

    A model that was quick when it was measured may be asked for far more at once, and nobody else is served meanwhile. `on_slow` is called
    once, with no batch under way, when runs keep taking longer than LONG_RUN_NS. What the clock on the wall says may be the fault of other
    programs, so it is only a reason to look closer: the processor time of the next runs decides.
    """

    beside_loop: ClassVar[bool] = False
    #: Nanoseconds on the event loop after which the others have waited too long.
    LONG_RUN_NS = 5_000_000
    #: Runs whose processor time is looked at after one that took long.
    _WATCHED = 1000
    #: Runs of a long processor time that are enough.
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
    """Runs on a thread of its own: for runtimes that release the GIL while they compute."""

    beside_loop: ClassVar[bool] = True

    def __init__(
        self, execute: RunBatch, loop: asyncio.AbstractEventLoop, name: str, cores: Collection[int] = ()
    ) -> None:
        """`cores` are those that the thread is kept to; without any it runs where it likes."""
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
            except RuntimeError:  # the loop was closed while the batch ran: nobody waits for it
                return
            del work, batch, finished  # else the last batch's tensors live until the next one comes
