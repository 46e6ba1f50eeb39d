"""Sends copies of requests to another target, after the originals have been answered, and compares the
responses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heappush, heappushpop
from random import random
from time import monotonic, monotonic_ns
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from backline.engine.engine import Engine
from backline.engine.ticket import Listener, Ticket
from backline.plugins.traffic.counts import ShadowCounts
from backline.plugins.traffic.distance import distance
from backline.plugins.traffic.route import Shadow, split_target
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Tensor

#: The maximum total size in bytes of the inputs of one route's copies.
MAX_BYTES: Final = 64 * 1024 * 1024
#: Seconds after which a copy is given up.
_LONGEST: Final = 60.0
#: Outputs with more bytes than this are compared on a thread.
_LARGE: Final = 64 * 1024
#: How many of the worst copies are kept, to show.
_MOST_WORST: Final = 8
_LONGEST_ID: Final = 128


class Compared(Struct, frozen=True):
    """How a copy ended: the ids and times of both, and their distance or the error of the copy."""

    id: str
    seconds: float
    shadow_seconds: float
    distance: float
    error: BacklineError | None


class Mirror:
    """The shadow of one route. A copy never delays or changes the response to its original, apart from the
    time to copy the inputs: it is submitted once the original has been answered, and only if the shadow has
    no other request waiting and fewer than `max_in_flight` copies.
    """

    def __init__(self, engine: Engine, shadow: Shadow, counts: ShadowCounts) -> None:
        self.shadow = shadow
        self.counts = counts
        self._engine = engine
        self._model, self._version = split_target(shadow.to)
        self._in_flight = 0
        self._bytes = 0
        #: Distances and ids of the copies that were farthest apart.
        self._worst: list[tuple[float, int, str]] = []
        #: The last errors of copies.
        self.errors: list[tuple[str, str]] = []
        #: Called with each copy that has ended.
        self.observe: Callable[[Compared], None] | None = None

    @property
    def worst(self) -> list[tuple[float, str]]:
        """The distances and request ids of the copies that were farthest apart, the farthest first."""
        return [(apart, id) for apart, _, id in sorted(self._worst, reverse=True)]

    def follow(self, ticket: Ticket, request: InferRequest) -> None:
        """Makes a copy of a request, unless the budget is used up or the request is not in the sample."""
        if request.sequence is not None or random() >= self.shadow.share:
            return
        size = sum(tensor.data.nbytes for tensor in request.inputs.values())
        if self._in_flight >= self.shadow.max_in_flight or self._bytes + size > MAX_BYTES:
            self.counts.skipped.value += 1
            return
        # The tensors are copied, because their buffers are reused once the original has been answered.
        inputs = {
            name: Tensor(name, one.datatype, one.shape, one.data.copy())
            for name, one in request.inputs.items()
        }
        self._in_flight += 1
        self._bytes += size
        copy = replace(
            request, model_name=self._model, model_version=self._version, inputs=inputs, deadline=None
        )
        ticket.listen(_Original(self, copy, size))

    def send(self, original: _Original) -> None:
        """Submits the copy of a request that has been answered."""
        engine = self._engine
        try:
            ready = engine.serves(self._model, self._version)
            if not ready or engine.find(self._model, self._version).serving.queue.pending:
                self.counts.skipped.value += 1
                self.release(original)
                return
            copy = Ticket(original.copy, self._completed, context=(original, monotonic_ns()))
            copy.identity = original.identity
            engine.submit_until(copy, monotonic() + _LONGEST)
        except BacklineError as error:
            self._ended(original, 0.0, 0.0, error)

    def _completed(self, copy: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        original, began = copy.context
        copy.context = None
        seconds = (monotonic_ns() - began) / 1e9
        expected = original.response
        if error is not None or response is None or expected is None:
            self._ended(original, seconds, 0.0, error)
        elif sum(one.data.nbytes for one in expected.outputs) <= _LARGE:
            self._ended(original, seconds, distance(expected.outputs, response.outputs), None)
        else:
            loop = asyncio.get_running_loop()
            comparing = loop.run_in_executor(None, distance, expected.outputs, response.outputs)
            comparing.add_done_callback(lambda done: self._apart(original, seconds, done))

    def _apart(self, original: _Original, seconds: float, done: asyncio.Future[float]) -> None:
        if done.cancelled() or done.exception() is not None:
            self.release(original)
        else:
            self._ended(original, seconds, done.result(), None)

    def _ended(self, original: _Original, seconds: float, apart: float, error: BacklineError | None) -> None:
        self.release(original)
        id = original.copy.id[:_LONGEST_ID]
        if error is not None:
            self.counts.failed.value += 1
            self.errors = [*self.errors[1 - _MOST_WORST :], (id, error.public_message)]
        else:
            self.counts.compare(apart)
            entry = (apart, int(self.counts.compared.value), id)
            if len(self._worst) < _MOST_WORST:
                heappush(self._worst, entry)
            else:
                heappushpop(self._worst, entry)
        if self.observe is not None:
            self.observe(Compared(id, original.seconds, seconds, apart, error))

    def release(self, original: _Original) -> None:
        """Returns what a copy took from the budget."""
        self._in_flight -= 1
        self._bytes -= original.size
        original.response = None


class _Original(Listener):
    """Waits until a request has been answered."""

    __slots__ = ("_began", "_mirror", "copy", "identity", "response", "seconds", "size")

    def __init__(self, mirror: Mirror, copy: InferRequest, size: int) -> None:
        self._mirror = mirror
        self._began = monotonic_ns()
        self.copy = copy
        self.size = size
        self.identity = ""
        self.seconds = 0.0
        self.response: InferResponse | None = None

    def ended(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        self.seconds = (monotonic_ns() - self._began) / 1e9
        self.response, self.identity = response, ticket.identity

    def delivered(self, ticket: Ticket, error: BacklineError | None) -> None:
        if self.response is None:  # it failed, or the model is decoupled
            self._mirror.release(self)
        else:
            asyncio.get_running_loop().call_soon(self._mirror.send, self)

    def abandoned(self, ticket: Ticket) -> None:
        self._mirror.release(self)

    def refused(self, ticket: Ticket, error: BacklineError) -> None:
        self._mirror.release(self)
