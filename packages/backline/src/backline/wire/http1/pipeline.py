"""The pipelined requests of one connection (RFC 9112, section 9.3.2), answered in order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

from backline.wire.application import Certificate, Fields
from backline.wire.connection import Wire
from backline.wire.http1.head import CONTINUE, Refusal
from backline.wire.http1.request import Http1Request, Http1Stream, inflate
from backline.wire.peers import Peer

if TYPE_CHECKING:
    from backline.wire.http1.connection import Http1Connection
    from backline.wire.websocket.connection import WebSocketConnection

logger = logging.getLogger(__name__)


class Continue:
    """The interim response 100 (Continue): the client may send the body (RFC 9110, section 10.1.1)."""

    __slots__ = ()


Entry: TypeAlias = Http1Request | Refusal | Continue


class Pipeline:
    """The queue of a connection's requests, which are dispatched one at a time.

    Invariant: while the client leaves responses unread (`write_paused`), no request is dispatched, so the
    client cannot make the server queue further responses.
    """

    def __init__(self, connection: Http1Connection, wire: Wire) -> None:
        self._connection = connection
        self._http = wire.application.http
        self.wire = wire
        #: `transport` and `peer` are set when the connection is attached to its transport.
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.peer: Peer = None  # type: ignore[assignment]
        #: The request that the application is working on.
        self.current: Http1Request | None = None
        #: The response to the current request if the response is streamed, otherwise None.
        self.open_stream: Http1Stream | None = None
        self.waiting: deque[Entry] = deque()
        #: Whether the response to the current request may last for hours; see HttpRequest.count_as_stream.
        self.lasting = False
        #: Whether `advance` is running. If the application responds while its request is being dispatched,
        #: the response must not start another `advance`: such calls would nest one level deeper with each
        #: pipelined request.
        self._running = False
        #: Whether the connection closes after the next response.
        self.last_answer = False
        #: The number of responses sent so far, as a measure of progress.
        self.answers = 0
        #: The number of chunks and WebSocket messages sent so far, as a measure of progress.
        self.sent_chunks = 0
        self.write_paused = False
        self._writers: list[asyncio.Future[None]] = []
        self._sent_in_turn = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def certificate(self) -> Certificate | None:
        return self._connection.ingress.certificate

    # requests

    def put(self, entry: Entry) -> None:
        """Dispatches an entry, or queues it if it has to wait for earlier entries, or until the client has
        read responses.
        """
        if (
            self.current is None
            and not self.waiting
            and not self.write_paused
            and type(entry) is Http1Request
            and b"content-encoding" not in entry.headers
        ):
            self.current = entry
            try:
                self._http(entry)
            except Exception:
                self._application_failed(entry)
        else:
            self.waiting.append(entry)
            self.advance()

    def queue(self, entry: Entry) -> None:
        """Queues an entry for the next `advance`."""
        self.waiting.append(entry)

    def advance(self) -> None:
        """Dispatches waiting entries in order, until one of them has to wait or the connection's turn is used
        up. Closes the connection if that fails because of a fault in the server; otherwise the client would
        wait forever for the response.
        """
        if self._running:
            return
        self._running = True
        try:
            self._dispatch_waiting()
        except Exception:
            logger.exception("closing an HTTP/1.1 connection after an internal error")
            self._connection.abort()
        self._running = False
        self._connection.advanced()

    def _dispatch_waiting(self) -> None:
        end_of_turn = 0.0
        while self.waiting and self.current is None and not self.write_paused:
            # The clock is not read for the first entry, which is usually the only one.
            if not end_of_turn:
                end_of_turn = self.wire.turns.turn_ends(perf_counter())
            elif perf_counter() > end_of_turn:
                self._connection.end_turn()
                break
            entry = self.waiting.popleft()
            if isinstance(entry, Refusal):
                self._send_refusal(entry)
            elif isinstance(entry, Continue):
                self.transport.write(CONTINUE)
            else:
                self.current = entry
                if b"content-encoding" in entry.headers and len(entry.body):
                    inflate(self, entry)
                else:
                    self.dispatch(entry)

    def dispatch(self, request: Http1Request) -> None:
        """Passes the current request to the application."""
        try:
            self._http(request)
        except Exception:
            self._application_failed(request)

    def _application_failed(self, request: Http1Request) -> None:
        logger.exception(
            "the application failed on %s %s", request.method.decode(), request.path.decode("latin-1")
        )
        if request.unanswered:
            self.fail(request, 500, "The server failed on this request; see its log")
        elif self.open_stream is not None:
            self.transport.abort()

    def fail(self, request: Http1Request, status: int, message: str, fields: Fields = ()) -> None:
        """Responds to the current request with an error that the wire has detected."""
        application = self.wire.application
        kind, body = application.render_error(status, message)
        sharing = application.gate.sharing(request.headers)
        request.respond(status, ((b"content-type", kind), *fields, *sharing), (body,))

    def release(self, request: Http1Request) -> None:
        """Stops counting a request toward the limits of the server and its peer."""
        if request.counted_apart is not None:
            request.counted_apart()
            self.lasting = False
        else:
            self.wire.requests -= 1
            self.peer.requests -= 1
        self.wire.buffered_bytes -= request.counted_bytes
        request.counted_bytes = 0

    def lost(self) -> None:
        """Called when the client has disconnected. Cancels the current request, and drops the requests that
        wait.
        """
        current, self.current = self.current, None
        stream, self.open_stream = self.open_stream, None
        if current is not None:
            self.release(current)
        self._forget_waiting()
        for writer in self._writers:
            if not writer.done():
                writer.set_result(None)
        if stream is not None:
            stream.gone()
        elif current is not None:
            current.gone()
        for task in self._tasks:
            task.cancel()

    def _forget_waiting(self) -> None:
        for entry in self.waiting:
            if isinstance(entry, Http1Request):
                self.release(entry)
        self.waiting.clear()

    # responses

    def answered(self, request: Http1Request) -> None:
        """Called when the response to the current request has been written."""
        self.answers += 1
        self.current = None
        if request.counted_bytes or request.counted_apart is not None:
            self.release(request)
        else:
            self.wire.requests -= 1
            self.peer.requests -= 1
        if not request.keep_alive:
            self._forget_waiting()
            self._connection.last_answered()
        elif (self.waiting or self._connection.held is not None) and not self._running:
            self.advance()
        elif self.last_answer:
            # The head of the streamed response was sent before the drain began, so the client does not expect
            # the connection to close.
            self._connection.drain()

    def count_as_stream(self, request: Http1Request) -> None:
        """Counts the current request as a stream. Raises ConnectionRefusedError if too many are open."""
        self._connection.admit_stream()
        self.release(request)
        request.counted_apart = self._connection.stream_ends

    def upgrade(self, request: Http1Request, head: bytes) -> WebSocketConnection:
        """Answers the current request with `head`, and passes the transport to a WebSocketConnection.

        The request remains the current one, so the connection counts as busy. From now on, the request counts
        toward the limit on streams instead of requests. Raises ConnectionRefusedError if too many streams are
        open.
        """
        from backline.wire.websocket.connection import WebSocketConnection  # few clients use WebSockets

        self.count_as_stream(request)
        self.transport.write(head)
        accepted = self._connection.websocket = WebSocketConnection(self._connection, request)
        self.transport.set_protocol(accepted)
        if self.last_answer:
            # The drain began before the handshake was accepted.
            accepted.drain()
        return accepted

    def _send_refusal(self, refusal: Refusal) -> None:
        close = refusal.close or self.last_answer
        self.transport.write(refusal.render(self.wire, close=close))
        self.answers += 1
        if close:
            self._forget_waiting()
            self._connection.linger()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine that answers the current request. The coroutine is cancelled if the client
        disconnects.
        """
        task = self.wire.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if (
            not task.cancelled()
            and (error := task.exception()) is not None
            and not isinstance(error, ConnectionResetError)
        ):
            logger.error("a response could not be completed", exc_info=error)
            self.transport.abort()

    # backpressure

    def pause(self) -> None:
        self.write_paused = True

    def wrote_much(self) -> None:
        """Called after a large response was written. Part of it may still be in the transport's buffer."""
        self.wire.unsent.watch(self._connection)

    def resume(self) -> None:
        self.write_paused = False
        writers, self._writers = self._writers, []
        for writer in writers:
            if not writer.done():
                writer.set_result(None)
        self.advance()

    def may_write(self, size: int) -> bool:
        """Returns whether a chunk can be written without waiting. If so, counts the chunk's bytes toward the
        connection's turn.
        """
        if self.write_paused or self._sent_in_turn + size >= self.wire.limits.bytes_per_turn:
            return False
        self._sent_in_turn += size
        return True

    async def writable(self, sent: int) -> None:
        """Counts `sent` bytes toward the connection's turn, and yields to other connections when the turn is
        used up. Then waits while the client leaves responses unread.
        """
        self._sent_in_turn += sent
        if self._sent_in_turn >= self.wire.limits.bytes_per_turn:
            self._sent_in_turn = 0
            await asyncio.sleep(0)
        if self.write_paused and not self.transport.is_closing():
            writer = self.wire.loop.create_future()
            self._writers.append(writer)
            await writer
