"""The state that all connections of a server share, and the base class of a connection."""

from __future__ import annotations

import asyncio
import socket
import time
from abc import abstractmethod
from types import MethodType
from typing import Generic, TypeVar

from backline.wire.application import REMOTE, Application, Bound, Denial, Fields, Ingress
from backline.wire.compression import Inflation
from backline.wire.limits import KIB, BodyLimit, Limits
from backline.wire.peers import Peer, Peers, address_of
from backline.wire.tls import read_certificate
from backline.wire.turns import Turns
from backline.wire.unsent import Unsent
from backline.wire.uploads import FREE, Uploads
from backline.wire.vital import VitalRequests
from backline_client.system.busy_poll import BusyPoll

#: The Retry-After field of 503 responses, in seconds.
RETRY_AFTER: Fields = ((b"retry-after", b"1"),)

SomeConnection = TypeVar("SomeConnection", bound="Connection")

#: The HTTP status and the gRPC code (RESOURCE_EXHAUSTED) for a body above its limit.
_TOO_LARGE = (413, 8)
#: The size of `Wire.read_buffer` in bytes.
READ_BUFFER = 32 * KIB


class Wire:
    """The state that all connections of a server share, such as the counters that the limits apply to."""

    __slots__ = (
        "answer_sizes",
        "application",
        "body_limit",
        "buffered_bytes",
        "connections",
        "draining",
        "held_answer_bytes",
        "inflation",
        "limits",
        "loop",
        "next_check",
        "peers",
        "poll",
        "read_buffer",
        "requests",
        "small_body",
        "streams",
        "turns",
        "unsent",
        "uploads",
        "vital",
    )

    def __init__(
        self,
        application: Application,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        poll: BusyPoll | None = None,
    ) -> None:
        self.application = application
        #: The busy poll, to which connections report that bytes have arrived.
        self.poll = poll or BusyPoll()
        self.limits = limits
        #: The size limit for bodies for which the application sets no lower limit.
        self.body_limit = BodyLimit(limits.max_body_size)
        #: Bodies up to this size, in bytes, are within every limit.
        self.small_body = min(FREE, limits.max_body_size)
        self.loop = loop
        #: Open connections of all listeners and protocols.
        self.connections: set[Connection] = set()
        #: The time (time.monotonic()) before which no connection needs `sweep`.
        self.next_check = 0.0
        #: The number of requests and unary calls being received or not yet answered, without vital requests.
        self.requests = 0
        #: The number of open streaming calls, WebSockets and event streams of the console.
        self.streams = 0
        self.vital = VitalRequests(limits)
        self.peers = Peers(limits)
        #: The total size of the bodies of unanswered requests and of responses waiting to be sent (see
        #: `Unsent`).
        self.buffered_bytes = 0
        #: The total size of HTTP/2 responses waiting to be sent.
        self.held_answer_bytes = 0
        #: Sizes of recent HTTP/2 responses by kind of request, from which `Admission` predicts the sizes of a
        #: connection's first responses.
        self.answer_sizes: dict[int, int] = {}
        self.draining = False
        #: A buffer that connections share. A connection that receives large messages in place receives all
        #: other bytes here. It copies them within the same callback, so no connection sees another's bytes.
        self.read_buffer = bytearray(READ_BUFFER)
        #: The queue of connections whose received bytes wait while other connections are served.
        self.turns = Turns(loop, limits.seconds_per_turn)
        self.unsent = Unsent(self)
        #: Large bodies that are being received.
        self.uploads = Uploads(limits.max_receiving_bytes, loop)
        #: The queue of large compressed bodies.
        self.inflation = Inflation(self)

    def bounded(self, bound: Bound) -> BodyLimit | Denial:
        """Returns the limit of a large body: the application's `bound`, or the server's limit if that is
        lower or `bound` is None.
        """
        if bound is None or (isinstance(bound, BodyLimit) and bound.size > self.body_limit.size):
            return self.body_limit
        return bound

    def too_large(self, size: int, what: str, bound: Bound) -> Denial | None:
        """Returns why a large body of `size` bytes is refused, or None if it is not. `what` names the body in
        the error text.
        """
        limit = self.bounded(bound)
        if isinstance(limit, Denial):
            return limit
        return None if size <= limit.size else Denial(*_TOO_LARGE, limit.exceeded(what))

    def refusal_of_body(self, size: int, what: str, method: bytes, path: bytes) -> Denial | None:
        """Returns why a request to this route may not have a body of `size` bytes, or None if it may. This
        method may be called for every piece of a body.
        """
        if size <= self.small_body:
            return None
        return self.too_large(size, what, self.application.body_limit(method, path) if size > FREE else None)

    def may_connect(self, transport: asyncio.BaseTransport, spared: int = 0) -> bool:
        """Returns whether the limits allow this connection and `spared` further ones, in total and for its
        peer.
        """
        peers = self.peers
        address = address_of(transport.get_extra_info("peername"))
        return (
            len(self.connections) < self.limits.max_connections - spared
            and peers.connections(address) < peers.max_connections - spared
        )


class Connection(asyncio.Protocol):
    """A connection that speaks one protocol. The sniffer detects the protocol, and calls `attach`.

    A connection adds itself to `wire.connections` in `attach`, and removes itself in `connection_lost`.
    """

    wire: Wire
    peer: Peer
    ingress: Ingress = REMOTE
    #: If the server has more requests in flight than this number, `overload` must check each new request.
    max_requests: int
    #: True for the last connections that the limits allow: they accept only vital requests.
    reserved = False
    #: The time (time.monotonic()) before which `sweep` need not be called. Setting an earlier time requires
    #: setting `Wire.next_check`, too.
    rests_until = 0.0

    def reserve(self) -> None:
        """Restricts the connection to vital requests. Call this method before `attach`."""
        self.reserved = True
        self.max_requests = -1

    def overload(self) -> str | None:
        """Returns what the server has too many of, such as "requests in flight", or None if a request that is
        not vital is acceptable.

        Call this if `wire.requests` exceeds `max_requests`; below that number, no peer can exceed its share.
        """
        wire = self.wire
        if self.reserved:
            return "connections"
        full = (
            wire.requests > wire.limits.max_concurrent_requests
            or self.peer.requests > wire.peers.max_requests
        )
        return "requests in flight" if full else None

    def admit_stream(self) -> None:
        """Counts a stream until `stream_ends`. Raises ConnectionRefusedError if too many are open."""
        self.stream_begins()
        if self.has_too_many_streams:
            self.stream_ends()
            raise ConnectionRefusedError("too many streams are open")

    def stream_begins(self) -> None:
        """Counts a stream until `stream_ends` is called."""
        self.wire.streams += 1
        self.peer.streams += 1

    def stream_ends(self) -> None:
        self.wire.streams -= 1
        self.peer.streams -= 1

    @property
    def has_too_many_streams(self) -> bool:
        """Whether the streams of the server or of the peer exceed their limit."""
        wire = self.wire
        return wire.streams > wire.limits.max_streams or self.peer.streams > wire.peers.max_streams

    @abstractmethod
    def attach(self, transport: asyncio.Transport, received: bytes) -> None:
        """Takes over a transport from which `received` has already been read."""

    @abstractmethod
    def sweep(self, now: float) -> None:
        """Enforces the time limits. Called once a second or more often; `now` is time.monotonic()."""

    @abstractmethod
    def drain(self) -> None:
        """Stops accepting requests because the server shuts down. The connection closes once its requests in
        flight are answered.
        """

    @abstractmethod
    def abort(self) -> None:
        """Closes the connection immediately, and drops everything that is in flight."""

    def unsent(self) -> tuple[int, int]:
        """Returns how many bytes of responses have not been sent yet, and how many of them are in the
        transport's write buffer.
        """
        return 0, 0


class BufferReader(asyncio.BufferedProtocol, Generic[SomeConnection]):
    """The base class of asyncio protocols that receive bytes for a connection into a buffer. The connection
    handles all other events of its transport.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: SomeConnection) -> None:
        self._connection = connection

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


def join_writelines(transport: asyncio.Transport) -> None:
    """Makes `writelines` of an asyncio transport join its buffers, as in Python 3.11. uvloop is not affected.

    In 3.12 and 3.13, a TCP transport queues the buffers one by one and never removes an empty last one: the
    event loop spins, and the connection never closes. Up to 3.12.8 and 3.13.1, `writelines` also never causes
    a call of `pause_writing` (CVE-2024-12254).
    """
    if type(transport).__module__.startswith("asyncio."):
        joining = MethodType(asyncio.WriteTransport.writelines, transport)
        transport.writelines = joining  # type: ignore[method-assign]


class LostTransport(asyncio.Transport):
    """Replaces the transport of a lost connection in objects that refer to each other.

    The cycle collector may free such objects much later, and a TLS transport keeps up to a megabyte of unread
    input until then.
    """

    def __init__(self, lost: asyncio.Transport) -> None:
        super().__init__({"peername": lost.get_extra_info("peername")})

    def is_closing(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def write(self, data: object) -> None:
        pass

    def writelines(self, list_of_data: object) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False


def ingress_of(transport: asyncio.BaseTransport, *, metrics_only: bool) -> Ingress:
    """Returns how a connection reached the server.

    A Unix socket is recognised by its family: a missing peer address may also mean that a TCP client has
    disconnected.
    """
    connected = transport.get_extra_info("socket")
    local = connected is not None and connected.family == socket.AF_UNIX
    presented = transport.get_extra_info("peercert")
    if not local and not metrics_only and not presented:
        return REMOTE
    return Ingress(local, metrics_only, read_certificate(presented) if presented else None)


def peer_address(transport: asyncio.BaseTransport) -> str:
    """Returns the client's address without its port, such as "10.0.0.7", or "local" for a Unix socket."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else "local"


# HTTP dates are always in English, but time.strftime depends on the locale.
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_formatted = (0, b"")


def http_date() -> bytes:
    """Returns the current date in the format of RFC 9110, section 5.6.7. The text is cached for a second."""
    global _formatted  # noqa: PLW0603
    now = int(time.time())
    if _formatted[0] != now:
        year, month, day, hour, minute, second, weekday = time.gmtime(now)[:7]
        text = (
            f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} {hour:02}:{minute:02}:{second:02} GMT"
        )
        _formatted = (now, text.encode())
    return _formatted[1]
