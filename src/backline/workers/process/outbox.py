"""Writing to a socket that may be full."""

from __future__ import annotations

import asyncio
from socket import socket


class Outbox:
    """The writing half of a non-blocking socket. Lives on the event loop."""

    def __init__(self, channel: socket, loop: asyncio.AbstractEventLoop) -> None:
        self._channel = channel
        self._loop = loop
        self._unsent = bytearray()

    def send(self, message: bytes) -> None:
        """Writes what the socket takes now, and the rest later. Discards everything if the other end is
        gone.
        """
        if self._unsent:
            self._unsent += message
            return
        sent = self._write(message)
        if sent < len(message):
            self._unsent += memoryview(message)[sent:]
            self._loop.add_writer(self._channel.fileno(), self._writable)

    def _write(self, message: bytes | bytearray) -> int:
        try:
            return self._channel.send(message)
        except BlockingIOError:
            return 0
        except OSError:  # the other end is gone, which the reading half reports
            return len(message)

    def _writable(self) -> None:
        del self._unsent[: self._write(self._unsent)]
        if not self._unsent:
            self._loop.remove_writer(self._channel.fileno())
