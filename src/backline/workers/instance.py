"""The seam to where a batch runs, and the two instances that live in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol, TypeAlias

from backline.workers.batch import Batch

Execute: TypeAlias = Callable[[Batch], None]
#: Called on the event loop when the batch has run and the instance is free again.
Finished: TypeAlias = Callable[["Instance", Batch], None]


class Instance(Protocol):
    """Something that runs one batch at a time, wherever it lives."""

    def run(self, batch: Batch, finished: Finished) -> None:
        """Starts a batch; the instance must be free. `finished` may be called before this returns."""

    def close(self) -> None:
        """Gives back what the instance holds, once its batch has ended."""


class InlineInstance:
    """Runs on the event loop itself: for models that take well below a millisecond, where a hop to a thread would cost more."""

    def __init__(self, execute: Execute) -> None:
        self._execute = execute

    def run(self, batch: Batch, finished: Finished) -> None:
        self._execute(batch)
        finished(self, batch)

    def close(self) -> None:
        pass


class ThreadInstance:
    """Runs on a thread of its own: for runtimes that release the GIL while they compute."""

    def __init__(self, execute: Execute, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._execute = execute
        self._loop = loop
        self._work: SimpleQueue[tuple[Batch, Finished] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def run(self, batch: Batch, finished: Finished) -> None:
        self._work.put((batch, finished))

    def close(self) -> None:
        self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            batch, finished = work
            self._execute(batch)
            try:
                self._loop.call_soon_threadsafe(finished, self, batch)
            except RuntimeError:  # the loop was closed while the batch ran: nobody waits for it
                return
            del work, batch, finished  # else the last batch's tensors live until the next one comes
