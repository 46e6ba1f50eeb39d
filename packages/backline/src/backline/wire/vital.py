"""Counts vital requests, such as health probes, apart from all other requests."""

from __future__ import annotations

from typing import Protocol

from backline.wire.limits import Limits
from backline.wire.peers import Peer

#: One peer may have at most one in this many vital requests.
PEER_PART = 4


class VitalRequest(Protocol):
    """A vital request that is not yet answered. Objects are compared by identity."""

    def give_way(self) -> None:
        """Abandons the request, because newer vital requests need its place."""


class VitalRequests:
    """The vital requests that are not yet answered, in the order in which they arrived.

    Vital requests are never refused because of load. If they counted as requests in flight, a client that
    leaves some of them open, such as by never sending the message of a gRPC health check, would lock all
    others out. And if they were refused above a limit of their own, such a client would make the probes of an
    orchestrator fail. So the oldest one gives way to the newest: a probe takes at most a round trip, while a
    request that is left open soon becomes the oldest.

    Invariant: at most `max_vital_requests` are open, and a quarter of them for each peer.
    """

    def __init__(self, limits: Limits) -> None:
        self._most = limits.max_vital_requests
        self._most_of_peer = max(1, self._most // PEER_PART)
        self._peers: dict[VitalRequest, Peer] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def begin(self, request: VitalRequest, peer: Peer) -> None:
        """Counts a request until `end` is called. May make another request give way."""
        self._peers[request] = peer
        peer.vital[request] = None
        if len(peer.vital) > self._most_of_peer:
            oldest = next(iter(peer.vital))
        elif len(self._peers) > self._most:
            oldest = next(iter(self._peers))
        else:
            return
        self.end(oldest)
        oldest.give_way()

    def end(self, request: VitalRequest) -> None:
        """Stops counting a request. Does nothing if the request has given way."""
        peer = self._peers.pop(request, None)
        if peer is not None:
            del peer.vital[request]
