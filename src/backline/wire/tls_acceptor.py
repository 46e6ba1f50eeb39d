"""Accepts TLS connections, so that those in their handshake are counted and limited too."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from typing import cast

from backline.wire.connection import Wire
from backline.wire.sniffer import Sniffer

logger = logging.getLogger(__name__)

#: Connections accepted before the loop goes on with other things.
ACCEPTS_PER_TURN = 64
#: Seconds without accepting when the process has no file descriptor left.
EXHAUSTED_PAUSE = 0.5


class TlsAcceptor:
    """Accepts on one listening socket. asyncio's own server tells a protocol only after the handshake, which costs most and comes first."""

    def __init__(self, wire: Wire, listening: socket.socket, context: ssl.SSLContext) -> None:
        self._wire = wire
        self._listening = listening
        self._context = context
        self._handshakes: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        wire.loop.add_reader(listening, self._accept)

    def close(self) -> None:
        """Accepts no more, and gives up the handshakes under way."""
        if self._pause is not None:
            self._pause.cancel()
        self._wire.loop.remove_reader(self._listening)
        self._listening.close()
        for handshake in self._handshakes:
            handshake.cancel()

    def _accept(self) -> None:
        loop = self._wire.loop
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.error("No connection can be accepted for %s s: %s", EXHAUSTED_PAUSE, error.strerror)
                loop.remove_reader(self._listening)
                self._pause = loop.call_later(EXHAUSTED_PAUSE, loop.add_reader, self._listening, self._accept)
                return
            if len(self._wire.connections) + len(self._handshakes) >= self._wire.limits.max_connections:
                # There is no cheap answer before the handshake.
                accepted.close()
                continue
            accepted.setblocking(False)
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            handshake = loop.create_task(self._shake_hands(accepted))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, accepted: socket.socket) -> None:
        wire = self._wire
        try:
            await wire.loop.connect_accepted_socket(
                lambda: cast(asyncio.Protocol, Sniffer(wire)),
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=wire.limits.header_timeout,
                ssl_shutdown_timeout=1.0,
            )
        except (TimeoutError, OSError) as error:
            # A client that speaks no TLS, has no certificate or went away: its own affair.
            logger.debug("TLS handshake failed: %s", error)
            accepted.close()
