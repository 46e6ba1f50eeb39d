"""Decoupled models on threads of this process."""

from __future__ import annotations

import asyncio
import threading
from queue import SimpleQueue
from typing import ClassVar

from backline.backends.backend import StreamingModel
from backline.engine.errors import BacklineError
from backline.engine.response_statistics import ResponseStatistics
from backline.workers.batch import Batch
from backline.workers.here.response_stream import GeneratorStream
from backline.workers.instance import Finished, Instance

#: Open streams per model version, most of which wait for their clients; further requests queue.
MAX_STREAMS = 128


class StreamPool:
    """Runs the streams of one model version on at most `threads` threads, started on demand.

    A stream whose client is paused gives up its thread, so that a slow client blocks only itself; streams
    that can continue take turns, one response each. Lives on the event loop, where responses are delivered.
    """

    def __init__(
        self,
        name: str,
        version: str,
        model: StreamingModel,
        loop: asyncio.AbstractEventLoop,
        *,
        threads: int,
        statistics: ResponseStatistics,
    ) -> None:
        self.name = name
        self.version = version
        self.model = model
        self.loop = loop
        self.statistics = statistics
        self.outputs = tuple(spec.name for spec in model.signature.outputs)
        self.datatypes = {spec.name: (spec.datatype, spec.datatype.dtype) for spec in model.signature.outputs}
        self._limit = threads
        self._lock = threading.Lock()
        self._ready: SimpleQueue[GeneratorStream | None] = SimpleQueue()
        self._threads = 0
        self._idle = 0
        self._streams: set[GeneratorStream] = set()
        self.instances = tuple(StreamInstance(self) for _ in range(max(MAX_STREAMS, threads)))
        self._open = len(self.instances)

    def start(self, instance: Instance, batch: Batch, finished: Finished) -> None:
        """Starts the stream of the batch's only request."""
        stream = GeneratorStream(self, instance, batch, finished)
        self._streams.add(stream)
        stream.begin()
        self.put(stream)

    def put(self, stream: GeneratorStream) -> None:
        """The stream can continue. Called on any thread."""
        with self._lock:
            if self._ready.qsize() >= self._idle and self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._work, name=f"{self.name}-{self._threads}", daemon=True).start()
            self._ready.put(stream)

    def ended(self, stream: GeneratorStream) -> None:
        """A stream is over."""
        self._streams.discard(stream)
        self._retire()

    def end_all(self, error: BacklineError) -> None:
        """Ends every stream with an error, after the responses that it has already given."""
        for stream in tuple(self._streams):
            stream.end_early(error)

    def close_one(self) -> None:
        """One instance is closed; the threads end with the last one and its stream."""
        self._open -= 1
        self._retire()

    @property
    def waiting(self) -> bool:
        """Whether a stream waits for a thread."""
        return not self._ready.empty()

    def _retire(self) -> None:
        if self._open == 0 and not self._streams:
            with self._lock:
                for _ in range(self._threads):
                    self._ready.put(None)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            stream = self._ready.get()
            with self._lock:
                self._idle -= 1
                if stream is None:
                    self._threads -= 1
                    return
            if stream.advance():
                self._ready.put(stream)
            del stream  # or the last request's tensors would live until the next one


class StreamInstance:
    """A slot for one stream of a pool."""

    beside_loop: ClassVar[bool] = True

    def __init__(self, pool: StreamPool) -> None:
        self._pool = pool

    def run(self, batch: Batch, finished: Finished) -> None:
        self._pool.start(self, batch, finished)

    def close(self) -> None:
        self._pool.close_one()
