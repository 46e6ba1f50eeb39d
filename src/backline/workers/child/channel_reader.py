"""The reading half of a channel on which several threads wait for answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from socket import socket
from typing import Any, TypeAlias

from backline.workers.channel.protocol import FrameSplitter, Kind
from backline.workers.child.mailbox import Mailbox

_RECEIVE = 1 << 18
Take: TypeAlias = Callable[[Kind, Any, memoryview], None]


class ChannelReader:
    """Read by the waiting thread while it is the only one, which saves a thread switch; otherwise by a
    dedicated thread.

    `take` gets each frame, `on_end` is called when no more can arrive, and `awaited` returns whether any
    thread waits. All are called on the thread that reads.
    """

    def __init__(
        self, channel: socket, take: Take, on_end: Callable[[], None], awaited: Callable[[], bool]
    ) -> None:
        self._channel = channel
        self._take = take
        self._on_end = on_end
        self._awaited = awaited
        self._frames = FrameSplitter()
        #: Held by the thread that reads.
        self._reading = threading.Lock()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self.ended = False

    def wait(self, heard: Mailbox) -> None:
        """Returns once the mailbox has something, or another thread reads and will fill it."""
        if not self._reading.acquire(blocking=False):
            return
        try:
            while heard.empty and not self.ended:
                self._read()
        finally:
            self._reading.release()
            if self._awaited():  # threads that relied on this one: their answers would not be read
                self.listen()

    def listen(self) -> None:
        """From now on a dedicated thread reads."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="backline-calls", daemon=True)
                self._thread.start()

    def _listen(self) -> None:
        with self._reading:
            while not self.ended:
                self._read()

    def _read(self) -> None:
        try:
            received = self._channel.recv(_RECEIVE)
            # A bytearray, so that a model may write to what it got.
            for kind, message, payload in self._frames.feed(bytearray(received)):
                self._take(kind, message, payload)
        except OSError:
            received = b""
        except BaseException:
            self._end()
            raise
        if not received:
            self._end()

    def _end(self) -> None:
        self.ended = True
        self._on_end()
