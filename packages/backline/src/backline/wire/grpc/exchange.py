"""The base class of unary and streaming gRPC calls: checks the head, enforces the deadline, and sends the
status.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from backline.wire.application import Bound, Buffer, Call, Denial, Fields, RpcError
from backline.wire.compression import inflated_beginning
from backline.wire.grpc.messages import (
    BEGINNING,
    DEADLINE_EXCEEDED,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNIMPLEMENTED,
    status_block,
)
from backline.wire.http2 import frames
from backline.wire.http2.stream import Stream

if TYPE_CHECKING:
    from backline.wire.http2.connection import Http2Connection
    from backline.wire.http2.request_head import RequestHead

log = logging.getLogger("backline.wire")

_ENCODINGS = (b"identity", b"gzip", b"deflate")
ACCEPTED_ENCODINGS = b"identity, deflate, gzip"


class GrpcExchange(Stream):
    """One gRPC call, from its head to its status.

    `deadline`, `identity`, `metadata` and `on_abandon` are as in `application.Call`.
    """

    metadata: Mapping[bytes, bytes]
    deadline: float | None
    on_abandon: Callable[[], None] | None
    identity: Any = None
    #: Whether response headers were sent; if so, the trailers carry only the status.
    started = False

    def __init__(self, connection: Http2Connection, number: int, head: RequestHead) -> None:
        self.connection = connection
        self.number = number
        self.head = head
        self.metadata = head.headers
        self.deadline = None
        self.on_abandon = None

    def begin(self) -> None:
        head = self.head
        if head.too_large is not None:
            self.end(RESOURCE_EXHAUSTED, head.too_large)
        elif head.refusal is not None:
            self.connection.wire.application.gate.refused(head.refusal, head.method, head.path, self.peer)
            self.end(head.refusal.grpc_code, head.refusal.message)
        elif head.rpc is None:
            path = head.path.decode("utf-8", "replace")
            self.end(UNIMPLEMENTED, f"unknown method {path[:200]}; check the service and method names")
        elif (what := self._overload()) is not None:
            self.end(RESOURCE_EXHAUSTED, f"the server has too many {what}; try again later")
        elif head.timeout_error is not None:
            self.end(INVALID_ARGUMENT, head.timeout_error)
        elif head.encoding not in _ENCODINGS:
            text = head.encoding.decode("utf-8", "replace")[:64]
            message = f"grpc-encoding {text} is not supported; send gzip, deflate or identity"
            self.end(UNIMPLEMENTED, message, ((b"grpc-accept-encoding", ACCEPTED_ENCODINGS),))
        elif head.timeout is not None:
            if head.timeout <= 0:
                self.end(DEADLINE_EXCEEDED, "the deadline had passed when the call arrived")
            else:
                self.deadline = time.monotonic() + head.timeout
                self.connection.deadlines.add(self.deadline, self)

    def _overload(self) -> str | None:
        """Returns what the server has too many of, such as "requests in flight", or None if the call is
        acceptable.
        """
        connection = self.connection
        wire = connection.wire
        if not self.streaming:
            full = wire.requests > connection.max_requests and not self.head.vital
            return connection.overload() if full else None
        if connection.reserved:
            return "connections"
        return "streams open" if connection.has_too_many_streams else None

    def bound_of(self, beginning: Buffer, *, compressed: bool) -> Bound:
        """Returns the size limit of a large message, given at least its first BEGINNING bytes."""
        limit_of = None if self.head.rpc is None else self.head.rpc.limit_of
        if limit_of is None:
            return None
        assert isinstance(self, Call), "every exchange is a call"
        if compressed:
            limit = self.connection.wire.body_limit
            beginning = inflated_beginning(self.head.encoding, beginning, BEGINNING, limit)
        return limit_of(self, beginning[:BEGINNING])

    def begun(self, size: int, compressed: bool, beginning: Buffer) -> None:
        """Called once the beginning of a large message has arrived. Raises RpcError if the message is
        refused.
        """
        bound = self.bound_of(beginning, compressed=compressed)
        denial = self.connection.wire.too_large(size, f"a message of {size} bytes", bound)
        if denial is not None:
            raise RpcError(denial.grpc_code, denial.message)

    def inflation_bound(self, message: Buffer) -> Bound:
        """Returns the limit on the inflated size of a compressed message. Raises RpcError if the message must
        be refused regardless of its size.
        """
        bound = self.bound_of(message, compressed=True)
        if isinstance(bound, Denial):
            raise RpcError(bound.grpc_code, bound.message)
        return bound

    def end(self, code: int, message: str, trailers: Fields = ()) -> None:
        """Ends the call with a status, which is sent after the messages that are already queued."""
        if self.answered or self.closed:
            return
        self.answered = True
        if self.upload_size:
            # The client may take a long time to read the queued messages. Meanwhile, its own message, which
            # is dropped, must not make other large bodies wait.
            self.leave_line()
        connection = self.connection
        if connection.admission.passes < 0:
            connection.admission.learn(self, 0)
        block = status_block(code, message, trailers, self.started)
        self.tail = connection.header_frames(self.number, block, frames.END_STREAM)
        connection.output.finish(self)

    def expire(self) -> None:
        # The call ends before the application is notified, so that a reply from the application's callback
        # is dropped.
        self.end(DEADLINE_EXCEEDED, "the deadline passed before the response was ready")
        self.cancelled()

    def cancelled(self) -> None:
        """Notifies the application that the response is no longer needed."""
        callback, self.on_abandon = self.on_abandon, None
        if callback is not None:
            try:
                callback()
            except Exception:
                log.exception("the on_abandon callback of a gRPC call failed")

    def lost(self) -> None:
        answered, self.answered = self.answered, True
        if not answered:
            self.cancelled()

    def timed_out(self) -> None:
        self.end(DEADLINE_EXCEEDED, "the rest of a message did not arrive in time")
        self.cancelled()
