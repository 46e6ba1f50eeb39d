"""The state that all connections of a server share, and the base class of a connection."""

from __future__ import annotations

import asyncio
import socket
import time
from abc import abstractmethod
from types import MethodType

from backline.system.busy_poll import BusyPoll
from backline.wire.application import REMOTE, Application, Fields, Ingress
from backline.wire.compression import Inflation
from backline.wire.limits import KIB, Limits
from backline.wire.peers import Peer, Peers, address_of
from backline.wire.tls import read_certificate
from backline.wire.turns import Turns
from backline.wire.unsent import Unsent
from backline.wire.uploads import Uploads

#: The Retry-After field of 503 responses, in seconds.
RETRY_AFTER: Fields = ((b"retry-after", b"1"),)

#: The size of `Wire.read_buffer` in bytes.
READ_BUFFER = 32 * KIB


class Wire:
    """The state that all connections of a server share, such as the counters that the limits apply to."""

    __slots__ = (
        "answer_sizes",
        "application",
        "buffered_bytes",
        "connections",
        "draining",
        "held_answer_bytes",
        "inflation",
        "limits",
        "loop",
        "peers",
        "poll",
        "read_buffer",
        "requests",
        "streams",
        "turns",
        "unsent",
        "uploads",
    )

    def __init__(
        self,
        application: Application,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        poll: BusyPoll | None = None,
    ) -> None:
        self.application = application
        #: The busy poll, which is notified when bytes arrive.
        self.poll = poll or BusyPoll()
        self.limits = limits
        self.loop = loop
        #: Open connections of all listeners and protocols.
        self.connections: set[Connection] = set()
        #: The number of requests and unary calls being received or not yet answered.
        self.requests = 0
        #: The number of open streaming calls.
        self.streams = 0
        self.peers = Peers(limits)
        #: The total size of the bodies of unanswered requests and of responses waiting to be sent (see
        #: `Unsent`).
        self.buffered_bytes = 0
        #: The total size of HTTP/2 responses waiting to be sent.
        self.held_answer_bytes = 0
        #: Sizes of recent HTTP/2 responses by kind of request, from which `Admission` predicts the first
        #: responses of a connection.
        self.answer_sizes: dict[int, int] = {}
        self.draining = False
        #: A buffer shared by the connections that receive large messages in place; their other bytes arrive
        #: here.
        self.read_buffer = bytearray(READ_BUFFER)
        #: Connections whose received bytes wait while others are served.
        self.turns = Turns(loop)
        self.unsent = Unsent(self)
        #: Large bodies that are being received.
        self.uploads = Uploads(limits.max_receiving_bytes, loop)
        #: The queue of large compressed bodies.
        self.inflation = Inflation(self)

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
    """A connection that speaks one protocol. The sniffer detects which, and calls `attach`.

    A connection adds itself to `wire.connections` in `attach`, and removes itself in `connection_lost`.
    """

    wire: Wire
    peer: Peer
    ingress: Ingress = REMOTE
    #: While more requests than this number are in flight on the server, `overload` must check each new
    #: request.
    max_requests: int
    #: Whether this is one of the last free connections, which accept only vital requests.
    reserved = False
    #: The time (time.monotonic()) before which `sweep` need not be called.
    rests_until = 0.0

    def reserve(self) -> None:
        """Restricts the connection to vital requests. Call it before `attach`."""
        self.reserved = True
        self.max_requests = -1

    def overload(self, path: bytes) -> str | None:
        """Returns what the server has too many of, such as "requests in flight", or None if the request is
        acceptable.

        Call this if `wire.requests` exceeds `max_requests`; below that number, no peer can exceed its share.
        """
        wire = self.wire
        if self.reserved:
            what = "connections"
        elif (
            wire.requests > wire.limits.max_concurrent_requests
            or self.peer.requests > wire.peers.max_requests
        ):
            what = "requests in flight"
        else:
            return None
        return None if wire.application.is_vital(path) else what

    @abstractmethod
    def attach(self, transport: asyncio.Transport, received: bytes) -> None:
        """Takes over a transport from which `received` has already been read."""

    @abstractmethod
    def sweep(self, now: float) -> None:
        """Enforces the time limits. Called about once a second; `now` is time.monotonic()."""

    @abstractmethod
    def drain(self) -> None:
        """Stops accepting requests, as the server shuts down. Closes once those in flight are answered."""

    @abstractmethod
    def abort(self) -> None:
        """Closes the connection immediately, and drops everything that is in flight."""

    def unsent(self) -> tuple[int, int]:
        """Returns how many bytes of responses the client has not read, and how many the transport buffers."""
        return 0, 0


def join_writelines(transport: asyncio.Transport) -> None:
    """Makes `writelines` of asyncio's transports join its buffers, as in Python 3.11. uvloop is not affected.

    In 3.12 and 3.13, TCP transports never flush an empty buffer: the event loop spins and the connection
    never closes. Up to 3.12.8 and 3.13.1 they also never call `pause_writing` (CVE-2024-12254).
    """
    if type(transport).__module__.startswith("asyncio."):
        joining = MethodType(asyncio.WriteTransport.writelines, transport)
        transport.writelines = joining  # type: ignore[method-assign]


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
    """Returns the current date in the format of RFC 9110, section 5.6.7. It is formatted once a second."""
    global _formatted  # noqa: PLW0603
    now = int(time.time())
    if _formatted[0] != now:
        year, month, day, hour, minute, second, weekday = time.gmtime(now)[:7]
        text = (
            f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} {hour:02}:{minute:02}:{second:02} GMT"
        )
        _formatted = (now, text.encode())
    return _formatted[1]
