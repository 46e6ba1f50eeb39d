"""Bounds the memory of large bodies that are being received: bodies that arrive fast have to take turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from backline.wire.limits import KIB, MIB

#: Bodies up to this many bytes never wait, and only the server's own limit applies to them.
FREE = 1 * MIB
#: The average rate that every body is guaranteed, in bytes per second, however many others are waiting.
LEAST_RATE = 4 * MIB
#: The number of bytes of room that `Pace` requests beyond what has arrived: about one read from a connection.
READ = 256 * KIB
#: Seconds between two checks of whether `LEAST_RATE` allows waiting bodies more room.
RECHECK = 0.25


class Upload(Protocol):
    """A request whose large body is being received. Objects are compared by identity."""

    def proceed(self) -> None:
        """Calls `Uploads.room` again, and receives as many bytes as there is now room for."""


@dataclass(slots=True)
class _Place:
    """The room of one body in bytes, and the time at which the body joined the line."""

    since: float
    size: int = 0


class Uploads:
    """The line of large bodies that are being received, in the order in which they became large. The room of
    a body is the total number of its bytes that may be received.

    Clients on a fast network lose nothing by waiting: if all bodies were received at the same time, the last
    one would be complete no sooner, and all would be in memory. Slow clients would lose time by waiting,
    because each could have used its own network in the meantime, and slow bodies fill the memory only slowly.
    So only fast bodies wait.

    Invariants:

    * The total room of the bodies in the line is at most `limit` bytes, plus one whole body, plus the bytes
      that `LEAST_RATE` allows waiting bodies.
    * The first body in the line never waits. A body waits at most about its size divided by `LEAST_RATE`,
      however slow the bodies before it are.
    """

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self._limit = limit
        self._loop = loop
        #: The place of each body, in the order of the line (dictionaries keep the order of insertion).
        self._line: dict[Upload, _Place] = {}
        #: The total room of all bodies in the line.
        self._taken = 0
        #: The bodies that have less room than they asked for.
        self.waiting: set[Upload] = set()
        self._timer: asyncio.TimerHandle | None = None

    def room(self, upload: Upload, size: int) -> int:
        """Extends a body's room to `size` bytes in total, as far as possible. Returns how many bytes of room
        the body has now.

        If the room is less than `size`, `upload.proceed` is called when there may be more.
        """
        place = self._line.get(upload)
        if place is None:
            place = self._line[upload] = _Place(monotonic())
        wanted = size
        if self._taken + size - place.size > self._limit and upload is not next(iter(self._line)):
            earned = int(LEAST_RATE * (monotonic() - place.since))
            size = max(place.size, min(size, earned))
        self._taken += size - place.size
        place.size = size
        if size == wanted:
            self.waiting.discard(upload)
        else:
            self.waiting.add(upload)
            if self._timer is None:
                self._timer = self._loop.call_later(RECHECK, self._recheck)
        return size

    def ended(self, upload: Upload) -> None:
        """Removes a body that is complete, refused or abandoned, and makes its room available to others."""
        place = self._line.pop(upload, None)
        if place is None:
            return
        self._taken -= place.size
        self.waiting.discard(upload)
        if self.waiting:
            self._loop.call_soon(self._pass_on)

    def _pass_on(self) -> None:
        """Gives bodies room in the order of the line, until one of them has to wait again."""
        for upload in [one for one in self._line if one in self.waiting]:
            upload.proceed()
            if upload in self.waiting:
                break

    def _recheck(self) -> None:
        self._timer = None
        for upload in [one for one in self._line if one in self.waiting]:
            upload.proceed()
        if self.waiting and self._timer is None:
            self._timer = self._loop.call_later(RECHECK, self._recheck)


class Pace:
    """Pauses reading on a connection while its large body has no room in `Uploads`.

    Without the windows of HTTP/2, a server can slow a client down only by not reading. `update` is called
    whenever `waits` has changed.
    """

    __slots__ = ("_room", "_size", "_update", "_uploads", "waits")

    def __init__(self, uploads: Uploads, update: Callable[[], None]) -> None:
        self._uploads = uploads
        self._update = update
        self._size = 0
        self._room = FREE
        #: Whether the connection must not be read.
        self.waits = False

    def grew(self, size: int) -> None:
        """Called when `size` bytes of the body, more than FREE, have arrived in total."""
        self._size = size
        if size > self._room:
            self.proceed()

    def proceed(self) -> None:
        # This asks for room for one more read, because a read may return more bytes than the body has room
        # for.
        self._room = self._uploads.room(self, self._size + READ)
        self._set(self._room <= self._size)

    def ended(self) -> None:
        """Called when the body is complete, refused or abandoned."""
        self._uploads.ended(self)
        self._set(False)

    def _set(self, waits: bool) -> None:
        if waits != self.waits:
            self.waits = waits
            self._update()
