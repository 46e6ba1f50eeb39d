"""Counts the connections, requests and streams of each connected client address."""

from __future__ import annotations

import asyncio
import socket
from math import ceil
from typing import TYPE_CHECKING

from backline.wire.limits import Limits

if TYPE_CHECKING:
    from backline.wire.vital import VitalRequest

#: The number of leading bytes of an IPv6 address that identify a peer. They form a /64: a site has at least
#: one /64 (RFC 6177), and a host can use any of its addresses.
_IPV6_PREFIX = 8


class Peer:
    """One client address, with the numbers of its connections, requests and streams."""

    __slots__ = ("address", "connections", "requests", "streams", "vital")

    def __init__(self, address: str | bytes) -> None:
        self.address = address
        self.connections = 0
        #: The part of `wire.requests` that belongs to this peer.
        self.requests = 0
        #: The part of `wire.streams` that belongs to this peer.
        self.streams = 0
        #: The part of `wire.vital` that belongs to this peer, oldest first.
        self.vital: dict[VitalRequest, None] = {}


class Peers:
    """All connected peers, and the share of each limit that a single peer may use.

    Invariant: even if a peer uses its whole share, `1 - max_peer_share` of the limit (rounded down) is left
    for other peers, so an address whose share is below 1 cannot lock the others out. Clients that share an
    address, such as that of a proxy, count as one peer.
    """

    def __init__(self, limits: Limits) -> None:
        self._known: dict[str | bytes, Peer] = {}
        self.max_connections = _share(limits.max_connections, limits)
        self.max_requests = _share(limits.max_concurrent_requests, limits)
        self.max_streams = _share(limits.max_streams, limits)

    def join(self, transport: asyncio.BaseTransport) -> Peer:
        """Counts a new connection toward its peer until `leave` is called. Returns the peer."""
        address = address_of(transport.get_extra_info("peername"))
        peer = self._known.get(address)
        if peer is None:
            peer = self._known[address] = Peer(address)
        peer.connections += 1
        return peer

    def leave(self, peer: Peer) -> None:
        peer.connections -= 1
        if not peer.connections:
            del self._known[peer.address]

    def connections(self, address: str | bytes) -> int:
        """Returns the number of a peer's connections, given the address that `address_of` returns."""
        peer = self._known.get(address)
        return 0 if peer is None else peer.connections


def _share(limit: int, limits: Limits) -> int:
    return ceil(limit * limits.max_peer_share)


def address_of(name: object) -> str | bytes:
    """Returns the key that identifies a peer, given the name of the peer's socket (from `getpeername`): an
    IPv4 address, the first bytes of an IPv6 address, or "local" for a Unix socket.
    """
    if not isinstance(name, tuple):
        return "local"
    address = str(name[0])
    if ":" in address:
        try:
            return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:_IPV6_PREFIX]
        except OSError:
            pass
    return address
