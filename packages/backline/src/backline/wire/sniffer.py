"""Detects the protocol of a new connection, and passes the connection to the code for HTTP/1.1 or HTTP/2."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from backline.wire.connection import Connection, Wire, ingress_of, join_writelines
from backline.wire.http1.connection import Http1Connection
from backline.wire.http1.head import response_head
from backline.wire.http2 import PREFACE
from backline.wire.peers import Peer

#: The first byte of a TLS handshake record (RFC 8446, section 5.1). A client that sends it to a plaintext
#: port has been configured for the wrong port.
TLS_HANDSHAKE = 0x16
#: The last RESERVE connections below max_connections, and below each peer's share, accept only vital
#: requests, so that health probes are answered even if clients use all other connections.
RESERVE = 16
#: At most one in this many connections is reserved.
RESERVE_PART = 64
#: Seconds after which a reserved connection is closed.
RESERVED_TIME = 5.0


class Sniffer(Connection):
    """A connection that has not received enough bytes yet to determine its protocol."""

    __slots__ = ("_metrics_only", "_opened", "_peer", "_received", "_transport", "_wire")

    def __init__(self, wire: Wire, *, metrics_only: bool = False) -> None:
        self._wire = wire
        self._metrics_only = metrics_only
        self._transport: asyncio.Transport | None = None
        self._peer: Peer | None = None
        self._received = b""
        #: The time of the first check of time limits since the connection was opened.
        self._opened: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        transport = cast(asyncio.Transport, transport)
        wire = self._wire
        if wire.draining or not wire.may_connect(transport):
            refuse_connection(wire, transport)
            return
        reserve = min(RESERVE, wire.limits.max_connections // RESERVE_PART)
        self.reserved = not wire.may_connect(transport, reserve)
        if self.reserved:
            # Security: no client may occupy the reserve for long. A health probe takes far less time than
            # this.
            wire.loop.call_later(RESERVED_TIME, transport.abort)
        join_writelines(transport)
        self.attach(transport, b"")
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() == "h2":
            self._become_http2()

    def attach(self, transport: asyncio.Transport, received: bytes) -> None:
        self._transport = transport
        self._peer = self._wire.peers.join(transport)
        self._wire.connections.add(self)
        self._wire.next_check = 0.0

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        received = self._received = self._received + data if self._received else data
        if received[0] == TLS_HANDSHAKE:
            self._transport.abort()
        elif received.startswith(PREFACE):
            self._become_http2()
        elif not PREFACE.startswith(received):
            self._become(Http1Connection)

    def _become_http2(self) -> None:
        # This is imported late: a server with only HTTP/1.1 clients starts sooner and needs less memory
        # without it.
        from backline.wire.http2.connection import Http2Connection

        self._become(Http2Connection)

    def _become(self, protocol: Callable[[Wire], Connection]) -> None:
        transport = self._transport
        assert transport is not None
        self._leave()
        connection = protocol(self._wire)
        connection.ingress = ingress_of(transport, metrics_only=self._metrics_only)
        if self.reserved:
            connection.reserve()
        transport.set_protocol(connection)
        connection.attach(transport, self._received)

    def _leave(self) -> None:
        self._transport = None
        self._wire.connections.discard(self)
        peer, self._peer = self._peer, None
        if peer is not None:
            self._wire.peers.leave(peer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def sweep(self, now: float) -> None:
        if self._opened is None:
            self._opened = now
        elif now - self._opened >= self._wire.limits.header_timeout:
            self.abort()

    def drain(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def refuse_connection(wire: Wire, transport: asyncio.Transport) -> None:
    """Responds with 503 and closes the connection. No request is read, which makes this the cheapest
    refusal.
    """
    kind, body = wire.application.render_error(503, "The server has too many connections; try again later")
    transport.write(
        b"%bcontent-type: %b\r\ncontent-length: %d\r\nretry-after: 1\r\nconnection: close\r\n\r\n%b"
        % (response_head(503), kind, len(body), body)
    )
    transport.close()
