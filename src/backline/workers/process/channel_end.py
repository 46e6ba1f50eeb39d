"""The server's end of a channel to a worker, which sends and receives frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from socket import socket
from typing import Any, TypeAlias

from backline.engine.errors import BacklineError
from backline.system.busy_poll import BusyPoll
from backline.workers.channel.protocol import FrameSplitter, Kind, WorkerProtocolError

_RECEIVE = 1 << 18
#: The exceptions that decoding or handling an invalid message may raise.
_INVALID = (WorkerProtocolError, BacklineError, ValueError)
OnFrame: TypeAlias = Callable[[Kind, Any, memoryview], None]


class ChannelEnd:
    """One end of a channel, which sends and receives frames over a socket on the event loop.

    `on_frame` is called with each frame. If it raises, or a frame is invalid, `on_broken` is called with the
    reason. `on_end` is called once, when the other end is closed. `poll` is notified when bytes arrive.
    """

    def __init__(
        self,
        channel: socket,
        loop: asyncio.AbstractEventLoop,
        on_frame: OnFrame,
        on_broken: Callable[[str], None],
        on_end: Callable[[], None] = lambda: None,
        poll: BusyPoll | None = None,
    ) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._loop = loop
        self._on_frame = on_frame
        self._on_broken = on_broken
        self._on_end = on_end
        self._poll = poll or BusyPoll()
        self._frames = FrameSplitter()
        self._unsent = bytearray()
        loop.add_reader(channel.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            received = self._channel.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._loop.remove_reader(self._channel.fileno())
            self._on_end()
            return
        try:
            for frame in self._frames.feed(received):
                self._on_frame(*frame)
        except _INVALID as error:
            self._on_broken(f"broke the protocol: {error}")
        poll = self._poll
        poll.arrived = True
        if poll.asleep:
            poll.wake()

    def read_rest(self) -> None:
        """Handles the frames that the worker sent before it ended, up to the first invalid one."""
        while self._channel.fileno() >= 0:
            try:
                received = self._channel.recv(_RECEIVE)
                if not received:
                    return
                for frame in self._frames.feed(received):
                    self._on_frame(*frame)
            except (OSError, *_INVALID):
                return

    def send(self, message: bytes) -> None:
        """Sends a frame without blocking. Buffers the bytes that the socket does not accept yet. Discards the
        frame if the other end is closed.
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
        except OSError:  # this end or the other end is closed; `on_end` reports the latter
            return len(message)

    def _writable(self) -> None:
        del self._unsent[: self._write(self._unsent)]
        if not self._unsent:
            self._loop.remove_writer(self._channel.fileno())

    def close(self) -> None:
        """Closes the socket and discards unsent bytes."""
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        self._unsent.clear()
