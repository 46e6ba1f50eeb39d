"""What all connections of a server share, and what each connection implements."""

from __future__ import annotations

import asyncio
import socket
import time
from abc import abstractmethod
from types import MethodType

from backline.wire.application import Application
from backline.wire.compression import Inflation
from backline.wire.limits import Limits
from backline.wire.peers import Peer, Peers
from backline.wire.turns import Turns
from backline.wire.unsent import Unsent


class Wire:
    """The state that all connections of a server share: what is in flight, against the limits. Lives on one event loop."""

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
        "requests",
        "streams",
        "turns",
        "unsent",
    )

    def __init__(self, application: Application, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.application = application
        self.limits = limits
        self.loop = loop
        #: Open connections of all listeners, whatever they speak.
        self.connections: set[Connection] = set()
        #: Requests and unary calls whose body is being received or whose answer is due.
        self.requests = 0
        #: Streaming calls that are open.
        self.streams = 0
        self.peers = Peers(limits)
        #: Bytes of those requests' bodies, and of answers that wait to be sent (see unsent).
        self.buffered_bytes = 0
        #: Bytes of answers that wait to be sent, over HTTP/2.
        self.held_answer_bytes = 0
        #: The size of recent answers to each kind of requests over HTTP/2, for connections that have had none yet (see http2.admission).
        self.answer_sizes: dict[int, int] = {}
        self.draining = False
        #: Connections whose received bytes wait, so that others are served first.
        self.turns = Turns(loop)
        self.unsent = Unsent(self)
        #: Where large compressed bodies wait for their turn.
        self.inflation = Inflation(self)

    def refuses_request(self, peer: Peer, path: bytes) -> bool:
        """Whether a request that is counted already is one too many, of all or of its peer's share.

        Only to be asked while `requests` is above `peers.max_requests`: below that no peer can be above its share.
        """
        full = self.requests > self.limits.max_concurrent_requests or peer.requests > self.peers.max_requests
        return full and not self.application.is_vital(path)


class Connection(asyncio.Protocol):
    """A connection that speaks one protocol. The listener finds out which and calls `attach`; afterwards the transport calls it directly.

    A connection adds itself to `wire.connections` in `attach` and leaves in `connection_lost`.
    """

    @abstractmethod
    def attach(self, transport: asyncio.Transport, received: bytes) -> None:
        """Takes over a transport of which `received` was read already."""

    @abstractmethod
    def sweep(self, now: float) -> None:
        """Called about once a second with time.monotonic(): closes the connection if one of its time limits has passed."""

    @abstractmethod
    def drain(self) -> None:
        """The server stops: take no new request, finish those in flight, then close. A connection without any closes at once."""

    @abstractmethod
    def abort(self) -> None:
        """Closes at once, whatever is in flight."""

    def unsent(self) -> tuple[int, int]:
        """Bytes of answers that the client has not taken, and those of them in the transport's write buffer."""
        return 0, 0


def join_writelines(transport: asyncio.Transport) -> None:
    """Has a transport of asyncio's own join what `writelines` gets, as all of them did in Python 3.11.

    In 3.12 and 3.13 that of TCP keeps an empty part in its buffer for ever, so that the loop never rests and the connection never closes,
    and up to 3.12.8 and 3.13.1 it never pauses who writes (CVE-2024-12254). uvloop's are left as they are.
    """
    if type(transport).__module__.startswith("asyncio."):
        transport.writelines = MethodType(asyncio.WriteTransport.writelines, transport)  # type: ignore[method-assign]


def is_local(transport: asyncio.BaseTransport) -> bool:
    """Whether it is over a Unix socket. Asks the socket, not for the peer: that of a client which is gone has no address either."""
    connected = transport.get_extra_info("socket")
    return connected is not None and connected.family == socket.AF_UNIX


def peer_address(transport: asyncio.BaseTransport) -> str:
    """The address at the other end, without its port: "10.0.0.7"; "local" over a Unix socket."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else "local"


#: In English wherever the server runs, which time.strftime is not.
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_formatted = (0, b"")


def http_date() -> bytes:
    """RFC 9110, section 5.6.7."""
    global _formatted  # noqa: PLW0603
    now = int(time.time())
    if _formatted[0] != now:
        year, month, day, hour, minute, second, weekday = time.gmtime(now)[:7]
        text = (
            f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} {hour:02}:{minute:02}:{second:02} GMT"
        )
        _formatted = (now, text.encode())
    return _formatted[1]
