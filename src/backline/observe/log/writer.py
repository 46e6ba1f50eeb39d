"""The thread that writes the log: whatever becomes of a disk or of who reads a pipe, nobody waits for it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

#: Bytes that may wait to be written; further lines are lost.
MOST_WAITING = 4 << 20
#: Seconds that lines are gathered for, to be written together.
_GATHER = 0.002
#: Seconds between two looks whether a file was moved away, as programs do that rotate logs.
_LOOK = 1.0
#: Seconds until a descriptor that takes nothing now is tried again.
_PAUSE = 0.05
#: Seconds that what is left may take when the server ends.
_LAST = 2.0


class LogWriter:
    """Writes to a file, or to standard error, on a thread of its own. A line that cannot be written is lost; how many is told in the log.

    `tell_lost(count, reason)` makes the line that says so. Raises OSError when the file cannot be opened.
    """

    def __init__(self, file: Path | None, tell_lost: Callable[[int, str], bytes]) -> None:
        self._file = file
        self._tell_lost = tell_lost
        self._descriptor = _standard_error() if file is None else _open(file)
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._size = 0
        self._lost = 0
        self._reason = ""
        self._wake = threading.Event()
        self._ending = False
        self._looked = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Has a line written. Never waits and never raises; of any thread."""
        with self._lock:
            if self._size + len(line) > MOST_WAITING:
                self._lost += 1
                self._reason = "they came faster than they could be written"
                return
            self._size += len(line)
            self._waiting.append(line)
        self._wake.set()

    def close(self) -> None:
        """Ends when all that was to be written is, or cannot be in some time; what comes later is lost."""
        self._ending = True
        self._wake.set()
        self._thread.join(_LAST)

    def _run(self) -> None:
        while not self._ending:
            self._wake.wait()
            if not self._ending:
                time.sleep(_GATHER)
            self._wake.clear()
            self._write_all()
        self._write_all()

    def _write_all(self) -> None:
        with self._lock:
            lines, self._waiting = self._waiting, []
            self._size = 0
            lost, self._lost = self._lost, 0
        if lost:
            lines.append(self._tell_lost(lost, self._reason))
        if not lines:
            return
        self._look()
        try:
            self._put(b"".join(lines))
        except OSError as error:
            with self._lock:
                self._lost += len(lines) + lost - bool(lost)
                self._reason = error.strerror or str(error)

    def _put(self, data: bytes) -> None:
        if self._descriptor is None:
            return
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another program has made the terminal, or the pipe, so
                time.sleep(_PAUSE)

    def _look(self) -> None:
        """Goes on in a new file when the old one was moved or removed."""
        now = time.monotonic()
        if self._file is None or now < self._looked + _LOOK:
            return
        self._looked = now
        assert self._descriptor is not None
        try:
            if not self._file.exists() or not os.path.samestat(self._file.stat(), os.fstat(self._descriptor)):
                before, self._descriptor = self._descriptor, _open(self._file)
                os.close(before)
        except OSError:
            pass  # the old one is as good as any


def _open(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _standard_error() -> int | None:
    """None where it was closed when the program started: its number may be anything's by now."""
    return None if sys.__stderr__ is None else sys.__stderr__.fileno()
