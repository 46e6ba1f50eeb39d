"""One HTTP/1.1 connection: its transport, its turns, and its memo of the last request's head."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from backline.wire.connection import Connection, Wire
from backline.wire.http1.body import HeadReader, LargeBody
from backline.wire.http1.head import Refusal
from backline.wire.http1.pipeline import Pipeline
from backline.wire.http1.receiver import Head, Receiver, SpellingReceiver
from backline.wire.http1.request import Http1Request
from backline.wire.http1.time_limits import TimeLimits
from backline.wire.limits import KIB
from backline.wire.peers import Peer
from backline.wire.turns import LARGE_READ

if TYPE_CHECKING:
    from backline.wire.websocket.connection import WebSocketConnection

#: The number of bytes per call of the parser. The parser cannot be paused, so this bounds the number of
#: requests that one call yields.
SLICE = 4 * KIB
#: A connection that has used up its turn defers reads above this size to its next turn.
SMALL_READ = 8 * KIB
#: The maximum number of bytes to read and drop after the last response, so that a client that is still
#: sending receives this response.
LINGER_BYTES = 16 * KIB * KIB
#: Seconds for which an idle connection remains open while the server drains, in case a request is already in
#: transit.
DRAIN_GRACE = 0.1
#: The connection stops remembering heads after it has remembered this many in a row that were not received
#: again.
IN_VAIN = 8
NO_HEAD: Head = (b"", b"", b"", {}, 0)


class Http1Connection(Connection):
    """A server's HTTP/1.1 or HTTP/1.0 connection (RFC 9112).

    The receiver turns bytes into requests. The pipeline passes the requests to the application in order, one
    at a time. While bytes wait for their turn, the socket is not read; while requests wait, so do the bytes
    received after them.

    Clients that keep a connection open mostly send the same head again, so the connection remembers the last
    head.

    Invariants of the memo: it holds the bytes of a head that the parser accepted, that had nothing unusual (a
    repeated field, Connection, Upgrade, Expect, Transfer-Encoding, a browser's fields), that the gate
    admitted, and that arrived in one read with its complete body. Received data matches the memo only if it
    starts with those bytes, has exactly the same size as the earlier request, and begins a request. The head
    includes Content-Length, so the parser would produce the same request with another body.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.max_requests = wire.peers.max_requests
        self.peer: Peer = None  # type: ignore[assignment]  # set by attach
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set by attach
        self.pipeline = Pipeline(self, wire)
        receiver = SpellingReceiver if wire.application.keeps_spelling else Receiver
        self.receiver = receiver(self, wire, self.pipeline)
        self._time_limits = TimeLimits()
        self._slice = min(SLICE, wire.limits.max_header_size)
        #: The size of a request with the remembered head, or 0 if there is no such head or the next byte does
        #: not begin a request.
        self._same_size = 0
        self._head_bytes = b""
        self._head = NO_HEAD
        self._in_vain = 0
        #: The value of `pipeline.answers` when a head was last remembered.
        self._remembered_at = 0
        #: Receives bytes between large bodies; None before the first large body.
        self._head_reader: HeadReader | None = None
        #: Received bytes that wait for their turn.
        self.held: memoryview | None = None
        #: Whether the connection used up its previous turn, with bytes or requests left to handle.
        self._used_up = False
        #: Whether reading is paused until the next turn.
        self._resting = False
        self._lost = False
        self._reading = True
        #: Whether no more requests are accepted.
        self.input_closed = False
        #: Whether the connection only waits for the client to receive the last response, and drops arriving
        #: bytes.
        self.lingering = False
        self._linger_bytes = 0
        #: False if the last request is answered without its body, which may still arrive.
        self.body_awaited = True
        #: The object that takes over the transport after a WebSocket handshake, or None.
        self.websocket: WebSocketConnection | None = None

    # opening and closing

    def attach(self, transport: asyncio.Transport, received: bytes) -> None:
        self.transport = self.pipeline.transport = transport
        self.peer = self.pipeline.peer = self.wire.peers.join(transport)
        self.receiver.enter(self.ingress)
        self.wire.connections.add(self)
        self.wire.next_check = 0.0
        transport.set_write_buffer_limits(high=self.wire.limits.max_unsent_bytes)
        if self.wire.draining or self.reserved:
            self.drain()
        if received:
            self.data_received(received)

    def eof_received(self) -> bool | None:
        """Closes the connection and cancels its request in flight; earlier responses are still sent.

        A client that closes only its sending half cannot be distinguished from a client that has
        disconnected, because both send a FIN. Half-closing clients are rare, so the result is probably no
        longer wanted, and the request is cancelled; proxies such as nginx do the same.
        """
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.wire.connections.discard(self)
        self.wire.unsent.forget(self)
        self.close_input()
        self._lost = True
        self.receiver.close()
        self.pipeline.lost()
        self.wire.peers.leave(self.peer)
        # This breaks reference cycles, so that the memory is freed before the cycle collector runs.
        del self.receiver, self.pipeline, self.websocket, self._head_reader

    def abort(self) -> None:
        self.transport.abort()

    def close(self) -> None:
        """Closes the connection once everything written has been sent."""
        self.close_input()
        self.transport.close()

    def drain(self) -> None:
        self.pipeline.last_answer = True
        if self.websocket is not None:
            self.websocket.drain()
        if not self.busy:
            self.wire.loop.call_later(DRAIN_GRACE, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self.input_closed and not self.busy and not self.receiver.target:
            self.close()

    @property
    def busy(self) -> bool:
        """Whether the application is handling a request, or requests are waiting."""
        return self.pipeline.current is not None or bool(self.pipeline.waiting)

    # receiving

    def data_received(self, data: bytes) -> None:
        pipeline = self.pipeline
        wire = self.wire
        if (
            len(data) == self._same_size
            and data.startswith(self._head_bytes)
            and not pipeline.waiting
            and wire.requests < self.max_requests
        ):
            # The memo matches: the request is counted and dispatched without parsing. See the invariants
            # above.
            wire.requests += 1
            self.peer.requests += 1
            method, path, query, headers, _ = self._head
            pipeline.put(Http1Request(pipeline, method, path, query, headers, data[len(self._head_bytes) :]))
            wire.poll.note_input()
            return
        self._same_size = 0
        if self.input_closed:
            self._drop(len(data))
            if len(data) >= LARGE_READ:  # with TLS, bytes are decrypted even if they are dropped
                self.rest()
        elif len(data) > self._slice or self.held is not None or pipeline.waiting:
            self._receive_much(data)
        else:
            receiver = self.receiver
            begins = not receiver.target
            head = receiver.feed(data)
            if receiver.target:  # the request is incomplete, so its time limits are checked from now on
                self.rests_until = 0.0
                wire.next_check = 0.0
            if self.held is not None:  # the receiver gave bytes back; mypy assumes that it cannot
                self._feed_held()  # type: ignore[unreachable]
            elif begins and head is not None and not receiver.target and self._in_vain < IN_VAIN:
                self._remember(data, head)
        wire.poll.note_input()

    def _remember(self, data: bytes, head: Head) -> None:
        """Remembers `head` if `data` is exactly one request. Counts how many heads in a row were remembered
        but not received again.
        """
        answers = self.pipeline.answers
        self._in_vain = self._in_vain + 1 if answers == self._remembered_at + 1 else 0
        self._remembered_at = answers
        size = len(data) - head[-1]
        if data.find(b"\r\n\r\n") == size - 4:
            self._head_bytes = data[:size]
            self._head = head
            self._same_size = len(data)

    def _receive_much(self, data: bytes) -> None:
        """Handles a large read, or a read while bytes or requests wait. Defers a large read if the previous
        turn was used up.
        """
        first = self.held is None
        self.held = memoryview(data if self.held is None else b"".join((self.held, data)))
        rests = len(data) >= LARGE_READ
        if self._used_up and len(data) > SMALL_READ:
            self.update_reading()
            self.wire.turns.wait(self)
        elif first:
            self._used_up = False
            self._feed_held()
            # While a large body arrives, the receiver pauses reading after every READ bytes. Another pause
            # here would delay every upload by an iteration of the event loop.
            rests = rests and (self.receiver.large is None or self.held is not None)
        if rests or self._resting:
            self.rest()

    def take_turn(self) -> bool:
        if self._lost:
            return False
        reading, self._resting = self._reading, False
        if self.pipeline.waiting:
            self.pipeline.advance()
        self._feed_held()
        return self._reading and not reading

    def rest(self) -> None:
        """Stops reading until the next turn."""
        if not self._lost:
            self._resting = True
            self.update_reading()
            self.wire.turns.wait(self)

    def end_turn(self) -> None:
        """Leaves the remaining bytes or requests for the next turn."""
        self._used_up = True
        self.wire.turns.wait(self)

    def _feed_held(self) -> None:
        """Passes held bytes to the receiver in slices, until a request has to wait or the turn is used up."""
        pipeline = self.pipeline
        receiver = self.receiver
        end_of_turn = perf_counter() + self.wire.limits.seconds_per_turn
        while (held := self.held) is not None and not pipeline.waiting and not pipeline.write_paused:
            large = receiver.large
            size = max(self._slice, receiver.announced) if large is None else large.size - large.filled
            piece, rest = held[:size], held[size:]
            self.held = rest if len(rest) else None
            if large is None:
                receiver.feed(piece)
            else:
                large.append(piece)
                receiver.large_body_grew(len(piece))
                if receiver.large is large:
                    self.receive_into(large)
            if self.held is not None and perf_counter() > end_of_turn:
                self.end_turn()
                break
        self.update_reading()

    def received_again(self, data: bytes) -> None:
        """Takes back bytes that the receiver did not parse, to be parsed before the bytes that are already
        held.

        The bytes are parsed after the receiver has returned: parsing them here would nest one call in another
        for each pipelined request.
        """
        self.held = memoryview(data if self.held is None else b"".join((data, self.held)))

    def receive_into(self, large: LargeBody) -> None:
        """Lets the transport write the rest of a body directly into the body's buffer, unless bytes are still
        held.
        """
        if self.held is None:
            self.transport.set_protocol(large)

    def receive_pieces(self) -> None:
        """Ends the direct reception of a large body: a HeadReader receives the bytes that follow."""
        if self._head_reader is None:
            self._head_reader = HeadReader(self)
        self.transport.set_protocol(self._head_reader)

    def close_input(self) -> None:
        """Makes the connection accept no more requests."""
        self.input_closed = True
        self.held = None
        self._same_size = 0
        self.receiver.last_head = None

    # responses and refusals

    def advanced(self) -> None:
        """Called when the pipeline has dispatched all requests that need not wait."""
        if self.held is not None and not self.busy:
            self.wire.turns.wait(self)
        self.update_reading()

    def refuse(self, refusal: Refusal) -> None:
        """Refuses the request being received, and accepts no more. The refusal is sent after earlier
        responses.
        """
        if self.input_closed:
            return
        if self.receiver.large is not None:
            self.receive_pieces()
        self.close_input()
        self.pipeline.put(self.receiver.refuse(refusal))

    def last_answered(self) -> None:
        """Closes the connection after a response with `connection: close`."""
        if self.pipeline.last_answer or not self.body_awaited:
            self.linger()
        else:
            self.receiver.abandon()
            self.close()

    def linger(self) -> None:
        """Closes only the sending half, and drops what arrives: closing a socket with unread bytes would
        reset the connection, and the client might lose the last response.
        """
        if self.receiver.large is not None:
            # The rest of the body is dropped too. It must not go into the body's buffer, because more bytes
            # may follow than the buffer has room for.
            self.receive_pieces()
        self.receiver.abandon()
        self.close_input()
        self.lingering = True
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        self.update_reading()

    def _drop(self, size: int) -> None:
        if self.lingering:
            self._linger_bytes += size
            if self._linger_bytes > LINGER_BYTES:
                self.transport.abort()

    # flow control

    def unsent(self) -> tuple[int, int]:
        size = self.transport.get_write_buffer_size()
        return size, size

    def pause_writing(self) -> None:
        self.pipeline.pause()
        self.update_reading()
        self.wire.unsent.count(self)

    def resume_writing(self) -> None:
        self.wire.unsent.count(self)
        self.pipeline.resume()

    def update_reading(self) -> None:
        """Pauses reading while bytes are held, while responses are unread, while a large body waits for other
        large bodies, or while other connections have their turn.

        Bytes after the last response are read only to be dropped. They are read regardless of these
        conditions, except that other connections get their turn.
        """
        reading = not self._resting and (
            self.lingering or not (self.held is not None or self.receiver.waits or self.pipeline.write_paused)
        )
        if reading != self._reading and not self.transport.is_closing():
            self._reading = reading
            if reading:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    # time limits

    def sweep(self, now: float) -> None:
        self.wire.unsent.count(self)
        self._time_limits.check(self, now)
        if self.websocket is not None:
            self.websocket.sweep(now)
