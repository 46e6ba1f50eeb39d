"""Who is connected, and how much of the server each client address takes."""

from __future__ import annotations

import asyncio
import socket
from math import ceil

from backline.wire.limits import Limits

#: A host is commonly given a whole /64 of IPv6: addresses within one are one peer (RFC 6177).
_IPV6_PREFIX = 8


class Peer:
    """One client address, over all of its connections."""

    __slots__ = ("address", "connections", "requests", "streams")

    def __init__(self, address: str | bytes) -> None:
        self.address = address
        self.connections = 0
        #: Its part of `wire.requests`.
        self.requests = 0
        #: Its part of `wire.streams`.
        self.streams = 0


class Peers:
    """All peers with a connection, and the share of places that each may take.

    Invariant: a peer that holds its whole share leaves `1 - max_peer_share` of the places to others, rounded down, so that no address can
    lock out the rest. Where a proxy or the same machine stands for all clients, its share is the limit for all of them.
    """

    def __init__(self, limits: Limits) -> None:
        self._known: dict[str | bytes, Peer] = {}
        self.max_connections = _share(limits.max_connections, limits)
        self.max_requests = _share(limits.max_concurrent_requests, limits)
        self.max_streams = _share(limits.max_streams, limits)

    def join(self, transport: asyncio.BaseTransport) -> Peer:
        """Counts a connection for its peer. To be followed by `leave`."""
        address = _address(transport)
        peer = self._known.get(address)
        if peer is None:
            peer = self._known[address] = Peer(address)
        peer.connections += 1
        return peer

    def leave(self, peer: Peer) -> None:
        peer.connections -= 1
        if not peer.connections:
            del self._known[peer.address]

    def may_connect(self, transport: asyncio.BaseTransport) -> bool:
        """Whether another connection of this peer is within its share."""
        peer = self._known.get(_address(transport))
        return peer is None or peer.connections < self.max_connections


def _share(places: int, limits: Limits) -> int:
    return ceil(places * limits.max_peer_share)


def _address(transport: asyncio.BaseTransport) -> str | bytes:
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return "local"
    address = str(peer[0])
    if ":" in address:
        try:
            return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:_IPV6_PREFIX]
        except OSError:
            pass
    return address
