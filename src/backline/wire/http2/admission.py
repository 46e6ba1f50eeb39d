"""How many requests of a connection the application is given at once: as many as their answers may take memory."""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING

from backline.wire.http2.output import Output
from backline.wire.http2.stream import Stream

if TYPE_CHECKING:
    from backline.wire.connection import Wire

#: Kinds of compressed requests are counted from here: their size says little about what they become.
_COMPRESSED = 64
#: An answer that nothing is known of counts as this part of the budget: a server's first requests may take long, or wait for each other in
#: a batch.
_UNKNOWN = 16


class Admission:
    """A client that asks for large answers and does not take them gets few: the rest of its requests waits in their streams, in order.

    What a request will be answered with is not known before, so it is expected to be like the recent answers to requests of its size, on
    its connection or else on any: only of a server's first requests no more than 16 are in flight until an answer is there. Requests are
    told apart by size because a client may mix small calls and large ones. Where answers are small, nothing is counted: `passes` is the
    size up to which a request may go to the application without being offered here, which is -1 while even small requests have to be.
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
        #: All streams together may hold answers of this size.
        self._small = self._budget // wire.limits.max_concurrent_streams
        #: The size of recent answers to each kind of requests: the largest one, and slowly forgotten.
        self._sizes: dict[int, int] = {}
        self.waiting: deque[Stream] = deque()
        #: Handlers of streams that may not take more.
        self._pausing: list[asyncio.Future[None]] = []
        self._scheduled = False
        self.passes = -1

    def offer(self, stream: Stream, size: int, compressed: bool) -> None:
        """Calls `dispatch` of a stream whose request of this size is complete, at once or later."""
        stream.kind = (
            _COMPRESSED + size.bit_length() if compressed else size.bit_length() if size > self._small else 0
        )
        if (size > self.passes or compressed) and (self.waiting or not self._fits(stream)):
            stream.waiting = True
            self.waiting.append(stream)
        else:
            stream.dispatch()

    def learn(self, stream: Stream, size: int) -> None:
        """The request of this stream is answered with so many bytes."""
        kind = stream.kind
        for sizes in (self._sizes, self._wire.answer_sizes):
            known = sizes.get(kind, 0)
            sizes[kind] = size if size >= known else known - (known - size >> 3)
        if not kind:
            self.passes = self._small if self._sizes[0] <= self._small else -1
        self.stir()

    def stir(self) -> None:
        """Something may have made room."""
        if (self.waiting or self._pausing) and not self._scheduled:
            self._scheduled = True
            self._wire.loop.call_soon(self._admit)

    def withdraw(self, stream: Stream) -> None:
        """A stream that waits is gone."""
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
        end_of_turn = perf_counter() + self._wire.limits.seconds_per_turn
        while waiting:
            stream = waiting[0]
            if not stream.answered:
                if not self._fits(stream):
                    return
                if perf_counter() > end_of_turn:
                    self.stir()
                    return
            waiting.popleft()
            stream.waiting = False
            if not stream.answered:
                stream.dispatch()

    def _room(self) -> int:
        budget = self._budget
        everywhere = self._wire.held_answer_bytes
        return budget * budget // (2 * everywhere) if 2 * everywhere > budget else budget

    @property
    def _overfull(self) -> bool:
        return self._output.held > self._room()

    async def room(self) -> None:
        """Returns when the client has taken so much that more may be begun."""
        while self._overfull:
            pause: asyncio.Future[None] = self._wire.loop.create_future()
            self._pausing.append(pause)
            await pause

    def _expected(self, kind: int) -> int:
        """The bytes that a request of a kind is expected to be answered with."""
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
        # One answer may be larger than the budget.
        return not expected and held <= budget // 2
