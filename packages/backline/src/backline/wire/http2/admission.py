"""Limits a connection's requests in flight by the memory that their responses are expected to take."""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING

from backline.wire.http2.output import Output
from backline.wire.http2.stream import Stream

if TYPE_CHECKING:
    from backline.wire.connection import Wire

#: Compressed requests have kinds from this number on, because the size of a compressed request says little
#: about its content.
_COMPRESSED = 64
#: Until a request of the same kind has been answered, the expected size of a response is the budget divided
#: by this number. Several requests are then admitted at the same time: the first requests to a server may be
#: slow or wait for a batch.
_UNKNOWN = 16


class Admission:
    """Limits the total size of one connection's responses to the budget, max_held_answer_bytes. Requests
    whose responses would exceed the budget wait until the client has read other responses.

    The size of a response is unknown in advance. It is predicted from recent responses to requests of the
    same kind, on this connection or, if there are none, on any connection. If there are none at all, up to
    16 requests of that kind may be in flight. The kind of a request is derived from its size, because clients
    mix small and large calls.

    Invariant: the expected sizes of the responses to requests in flight, plus the sizes of the responses that
    wait to be sent, do not exceed the budget, unless only one response is expected. Requests up to the size
    `passes` are not checked. That is safe as long as their responses are so small that one for each
    concurrent stream would fit the budget; otherwise `passes` is -1.
    """

    __slots__ = (
        "_budget",
        "_output",
        "_pausing",
        "_scheduled",
        "_sizes",
        "_small",
        "_streams",
        "_wire",
        "passes",
        "waiting",
    )

    def __init__(self, wire: Wire, streams: dict[int, Stream], output: Output) -> None:
        self._wire = wire
        self._streams = streams
        self._output = output
        self._budget = wire.limits.max_held_answer_bytes
        #: The size in bytes at which one response for each concurrent stream would just fit the budget.
        self._small = self._budget // wire.limits.max_concurrent_streams
        #: By kind of request, the size of the largest recent response. The value decreases slowly when
        #: responses are smaller.
        self._sizes: dict[int, int] = {}
        self.waiting: deque[Stream] = deque()
        #: Stream handlers that wait for the client to read.
        self._pausing: list[asyncio.Future[None]] = []
        self._scheduled = False
        self.passes = -1

    def offer(self, stream: Stream, size: int, compressed: bool) -> None:
        """Dispatches a stream whose complete request has `size` bytes, immediately or once there is room for
        its response.
        """
        stream.kind = (
            _COMPRESSED + size.bit_length() if compressed else size.bit_length() if size > self._small else 0
        )
        if (size > self.passes or compressed) and (self.waiting or not self._fits(stream)):
            stream.waiting = True
            self.waiting.append(stream)
        else:
            stream.dispatch()

    def learn(self, stream: Stream, size: int) -> None:
        """Records the size of the response on a stream."""
        kind = stream.kind
        for sizes in (self._sizes, self._wire.answer_sizes):
            known = sizes.get(kind, 0)
            sizes[kind] = size if size >= known else known - (known - size >> 3)
        if not kind:
            self.passes = self._small if self._sizes[0] <= self._small else -1
        self.stir()

    def stir(self) -> None:
        """Schedules a check that dispatches waiting requests if there is room for their responses."""
        if (self.waiting or self._pausing) and not self._scheduled:
            self._scheduled = True
            self._wire.loop.call_soon(self._admit)

    def withdraw(self, stream: Stream) -> None:
        """Removes a waiting stream that was closed."""
        stream.waiting = False
        self.waiting.remove(stream)

    def _admit(self) -> None:
        self._scheduled = False
        if self._pausing and not self._overfull:
            for pause in self._pausing:
                if not pause.done():
                    pause.set_result(None)
            self._pausing.clear()
        waiting = self.waiting
        end_of_turn = 0.0
        while waiting:
            stream = waiting[0]
            if not stream.answered:
                if not self._fits(stream):
                    return
                if not end_of_turn:
                    end_of_turn = self._wire.turns.turn_ends(perf_counter())
                elif perf_counter() > end_of_turn:
                    self.stir()
                    return
            waiting.popleft()
            stream.waiting = False
            if not stream.answered:
                stream.dispatch()

    def _room(self) -> int:
        # While the responses of all connections take more than half of the budget, each connection's budget
        # shrinks in inverse proportion to their total size.
        budget = self._budget
        everywhere = self._wire.held_answer_bytes
        return budget * budget // (2 * everywhere) if 2 * everywhere > budget else budget

    @property
    def _overfull(self) -> bool:
        return self._output.held > self._room()

    async def room(self) -> None:
        """Waits until the client has read enough for another response to begin."""
        while self._overfull:
            pause: asyncio.Future[None] = self._wire.loop.create_future()
            self._pausing.append(pause)
            await pause

    def _expected(self, kind: int) -> int:
        size = self._sizes.get(kind)
        return size if size is not None else self._wire.answer_sizes.get(kind, self._budget // _UNKNOWN)

    def _fits(self, stream: Stream) -> bool:
        budget = self._room()
        held = self._output.held
        expected = 0
        for other in self._streams.values():
            if other is not stream and not (other.remote_open or other.answered or other.waiting):
                expected += self._expected(other.kind)
        if expected + held + self._expected(stream.kind) <= budget:
            return True
        # A single response may exceed the budget, because its request could otherwise never be dispatched.
        return not expected and held <= budget // 2
