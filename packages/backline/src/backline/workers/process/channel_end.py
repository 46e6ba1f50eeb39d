"""The server's end of a channel to a worker. It sends and receives frames."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from socket import socket
from typing import Any, TypeAlias

from backline.workers.channel.protocol import FrameSplitter, Kind, WorkerProtocolError
from backline_client.system.busy_poll import BusyPoll
from backline_client.values.errors import BacklineError

log = logging.getLogger("backline.workers")

_RECEIVE = 1 << 18
#: The maximum number of bytes that are buffered for a worker that does not read its channel.
_MOST_UNSENT = 1 << 28
#: The exceptions that decoding or handling an invalid message is expected to raise. Any other exception ends
#: the worker too, but is logged with its traceback, because it is a fault of the server.
_INVALID = (WorkerProtocolError, BacklineError, ValueError)
OnFrame: TypeAlias = Callable[[Kind, Any, memoryview], None]


class ChannelEnd:
    """One end of a channel. Sends and receives frames over a socket, on the event loop.

    `on_frame` is called with each frame. If `on_frame` raises, a frame is invalid, or the other end does not
    read what is sent to it, `on_broken` is called with the reason. In the first two cases, nothing more is
    received, because the bytes that follow may not begin with a frame. Otherwise, `on_end` is called once,
    when the other end is closed. The busy poll `poll` is notified when bytes arrive.
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
        self._broken = False
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
        except Exception as error:
            self._break(error)
        self._poll.note_input()

    def read_rest(self) -> None:
        """Handles the frames that the worker sent before it ended, up to the first invalid one."""
        while self._channel.fileno() >= 0 and not self._broken:
            try:
                received = self._channel.recv(_RECEIVE)
                if not received:
                    return
                for frame in self._frames.feed(received):
                    self._on_frame(*frame)
            except OSError:
                return
            except Exception as error:
                self._break(error)

    def _break(self, error: Exception) -> None:
        """Stops receiving, because a message could not be handled."""
        if isinstance(error, _INVALID):
            why = str(error)
        else:
            log.exception("a message from a worker process could not be handled")
            why = f"{type(error).__name__}: {error}"
        self._broken = True
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel.fileno())
        self._on_broken(f"broke the protocol: {why}")

    def send(self, message: bytes) -> None:
        """Sends a frame without blocking. Buffers the bytes that the socket does not accept yet. Discards the
        frame if the other end is closed.
        """
        if self._unsent:
            if len(self._unsent) + len(message) > _MOST_UNSENT:
                self._refuse_more()
            else:
                self._unsent += message
            return
        sent = self._write(message)
        if sent < len(message):
            self._unsent += memoryview(message)[sent:]
            self._loop.add_writer(self._channel.fileno(), self._writable)

    def _refuse_more(self) -> None:
        if not self._broken:
            self._broken = True
            # `on_broken` is called later, because the caller of `send` may be changing the worker's state.
            self._loop.call_soon(self._on_broken, f"left {_MOST_UNSENT >> 20} MiB of messages unread")

    def _write(self, message: bytes | bytearray) -> int:
        try:
            return self._channel.send(message)
        except BlockingIOError:
            return 0
        except OSError:  # this end or the other end is closed; for the other end, `on_end` is called
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
