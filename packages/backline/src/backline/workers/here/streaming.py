"""Decoupled models in the server's process: a pool of threads generates responses, and the event loop
delivers them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from time import monotonic_ns
from typing import ClassVar

import numpy as np

from backline.backends.backend import StreamingModel
from backline.engine.responses import response_size
from backline.engine.statistics import ResponseStatistics
from backline.engine.ticket import Ticket
from backline.workers.batch import Batch
from backline.workers.here.execution import outcome_of
from backline.workers.instance import Finished, Instance
from backline_client.system.busy_poll import BusyPoll
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Cancelled, Internal
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Tensor

log = logging.getLogger("backline.workers")

#: The maximum number of responses of one stream that have been generated but not yet delivered on the event
#: loop.
MAX_HANDED = 16
#: A stream generates no further response while its undelivered responses have this many bytes or more.
MAX_HANDED_BYTES = 1024 * 1024
#: The maximum number of open streams per model version, or the number of its threads if that is higher. Most
#: streams usually wait for their clients. Further requests are queued.
MAX_STREAMS = 128


@dataclass(slots=True)
class _Handed:
    """A response that a thread has generated and the event loop has yet to deliver, with timestamps from
    time.monotonic_ns().
    """

    response: InferResponse
    started: int
    ran: int
    ended: int


class GeneratorStream:
    """The responses to a request. `advance` generates them on a thread, and `_deliver` delivers them on the
    event loop.
    """

    def __init__(self, pool: StreamPool, instance: Instance, batch: Batch, finished: Finished) -> None:
        self._pool = pool
        self._instance = instance
        self._batch = batch
        self._finished = finished
        self._ticket: Ticket = batch.tickets[0]
        self._flow = self._ticket.flow
        self._responses: Generator[Mapping[str, np.ndarray], None, None] | None = None
        #: Guards `_parked`, `_handed`, `_handed_bytes`, `_waking` and `_abandoned`. The thread checks them
        #: and parks the stream, and the event loop changes them and wakes the stream, so neither can miss a
        #: change by the other.
        self._lock = threading.Lock()
        self._parked = False
        self._handed: list[_Handed] = []
        self._handed_bytes = 0
        self._waking = False
        self._abandoned = False
        self._index = 0
        self._began = 0

    # called on the event loop

    def begin(self) -> None:
        if self._flow is not None:
            self._flow.on_resume = self._unpark
        self._batch.on_abandon = self._abandon
        if self._batch.abandoned:
            self._abandon()

    def _abandon(self) -> None:
        """Makes the thread close the generator before its next response."""
        with self._lock:
            self._abandoned = True
        self._unpark()

    def _unpark(self) -> None:
        with self._lock:
            if not self._parked or self._must_wait():
                return
            self._parked = False
        self._pool.put(self)

    def _deliver(self) -> None:
        with self._lock:
            handed, self._handed, self._handed_bytes, self._waking = self._handed, [], 0, False
        ticket, statistics = self._ticket, self._pool.statistics
        for one in handed:
            if ticket.cancelled:
                statistics.cancelled(self._index, one.started, one.ended)
            else:
                statistics.succeeded(
                    self._index,
                    ticket.request.arrived_ns,
                    one.started,
                    one.ran,
                    one.ended,
                    empty=not one.response.outputs,
                )
                ticket.respond(one.response)
            self._index += 1
            self._began = one.ended
        self._unpark()

    def _finish(self, error: BacklineError | None) -> None:
        self._deliver()
        if self._flow is not None:
            self._flow.on_resume = None
        batch = self._batch
        batch.on_abandon = None
        batch.ended_ns = batch.ran_ns = monotonic_ns()
        batch.outcomes = [error]
        if isinstance(error, Cancelled):
            self._pool.statistics.cancelled(self._index, self._began, batch.ended_ns)
        elif error is not None:
            self._pool.statistics.failed(self._index, self._began, batch.ended_ns)
        self._finished(self._instance, batch)
        self._pool.ended(self)

    # called on a thread of the pool

    def advance(self) -> bool:
        """Generates responses. Returns True if another stream needs the thread, so that this stream must be
        queued again. Returns False if this stream must wait or has ended.
        """
        if self._responses is None:
            self._begin_responses()
        while True:
            with self._lock:
                if self._must_wait():
                    self._parked = True
                    return False
            if self._abandoned:
                self._end(Cancelled("the request was cancelled"))
                return False
            try:
                self._make()
            except StopIteration:
                self._end(None)
                return False
            except Exception as error:
                self._end(self._error(error))
                return False
            if self._pool.waiting:
                return True

    def _begin_responses(self) -> None:
        ticket, pool = self._ticket, self._pool
        inputs = {name: tensor.data for name, tensor in ticket.request.inputs.items()}
        self._batch.gathered_ns = self._began = monotonic_ns()
        self._batch.executed = True
        self._responses = pool.model.stream(
            inputs, ticket.request.outputs or pool.outputs, ticket.request.parameters or {}
        )
        self._started = self._began

    def _make(self) -> None:
        assert self._responses is not None, "it has begun"
        started = self._started
        arrays = next(self._responses)
        ran = monotonic_ns()
        ticket, pool = self._ticket, self._pool
        wanted = ticket.request.outputs
        outputs = [
            self._tensor(name, array) for name, array in arrays.items() if wanted is None or name in wanted
        ]
        response = InferResponse(pool.name, pool.version, ticket.request.id, outputs)
        ended = self._started = monotonic_ns()
        size = response_size(response)
        with self._lock:
            self._handed.append(_Handed(response, started, ran, ended))
            self._handed_bytes += size
            wake, self._waking = not self._waking, True
        if wake:
            self._call(self._deliver)

    def _tensor(self, name: str, array: np.ndarray) -> Tensor:
        known = self._pool.datatypes.get(name)
        if known is None:
            raise Internal(f"model '{self._pool.name}' returned an output '{name}' that it does not declare")
        datatype, dtype = known
        if array.dtype != dtype:  # the file declares a datatype that the model does not return
            datatype = DataType.from_dtype(array.dtype)
        return Tensor(name, datatype, array.shape, array)

    def _must_wait(self) -> bool:
        """Returns whether the client or the event loop cannot keep up with the responses. Called with the
        lock held.
        """
        if self._abandoned:
            return False
        if len(self._handed) >= MAX_HANDED or self._handed_bytes >= MAX_HANDED_BYTES:
            return True
        return self._flow is not None and self._flow.paused

    def _end(self, error: BacklineError | None) -> None:
        responses, self._responses = self._responses, None
        try:
            if responses is not None:
                responses.close()
        except Exception as failure:
            error = error or self._error(failure)
        self._call(self._finish, error)

    def _error(self, error: Exception) -> BacklineError:
        return outcome_of(self._pool.name, self._pool.version, error)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._pool.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("the event loop was closed while model '%s' generated responses", self._pool.name)


class StreamPool:
    """A pool of at most `threads` threads, started on demand, that runs the streams of one model version.

    A stream whose client does not keep up releases its thread, so a slow client delays no other stream.
    Streams that can continue take turns, one response each. Use the pool, except for `put`, only on the event
    loop, on which the pool also delivers the responses.
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
        poll: BusyPoll | None = None,
    ) -> None:
        """The busy poll `poll` is paused while streams are open."""
        self.name = name
        self._poll = poll or BusyPoll()
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
        """Starts a stream for the batch's only request."""
        stream = GeneratorStream(self, instance, batch, finished)
        self._streams.add(stream)
        self._poll.hold()
        stream.begin()
        self.put(stream)

    def put(self, stream: GeneratorStream) -> None:
        """Queues a stream that can continue. May be called on any thread."""
        with self._lock:
            # Without the lock, two callers could count on the same idle thread.
            if self._ready.qsize() >= self._idle and self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._work, name=f"{self.name}-{self._threads}", daemon=True).start()
            self._ready.put(stream)

    def ended(self, stream: GeneratorStream) -> None:
        """Removes a stream that has ended."""
        self._streams.discard(stream)
        self._poll.release()
        self._retire()

    def close_one(self) -> None:
        """Closes one instance. The threads end once all instances are closed and all streams have ended."""
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
            del stream  # otherwise this thread would keep the tensors of the stream until the next one


class StreamInstance:
    """An instance that runs one stream at a time on the pool's threads."""

    off_loop: ClassVar[bool] = True

    def __init__(self, pool: StreamPool) -> None:
        self._pool = pool

    def run(self, batch: Batch, finished: Finished) -> None:
        self._pool.start(self, batch, finished)

    def close(self) -> None:
        self._pool.close_one()
