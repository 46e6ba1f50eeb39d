"""The thread that writes the log, so that a full disk or an unread pipe never blocks the server."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

#: Bytes that may wait to be written; beyond it lines are lost.
MOST_WAITING = 4 << 20
#: Seconds to gather lines before writing them together.
_GATHER = 0.002
#: Seconds between checks whether log rotation has moved the file away.
_LOOK = 1.0
#: Seconds before retrying a descriptor that would block.
_PAUSE = 0.05
#: Seconds for the remaining lines when the server stops.
_LAST = 2.0


class LogWriter:
    """Writes to a file or to stderr, on its own thread.

    Lines that cannot be written are lost, and counted in the log.

    `report_lost(count, reason)` formats the line that says how many. Raises OSError if the file cannot be
    opened.
    """

    def __init__(self, file: Path | None, report_lost: Callable[[int, str], bytes]) -> None:
        self._file = file
        self._report_lost = report_lost
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
        """Queues a line. Never blocks, never raises; may be called from any thread."""
        with self._lock:
            if self._size + len(line) > MOST_WAITING:
                self._lost += 1
                self._reason = "they came faster than they could be written"
                return
            self._size += len(line)
            self._waiting.append(line)
        self._wake.set()

    def close(self) -> None:
        """Writes the remaining lines, for at most _LAST seconds; later lines are lost."""
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
            lines.append(self._report_lost(lost, self._reason))
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
            except BlockingIOError:  # another program made the terminal or pipe non-blocking
                time.sleep(_PAUSE)

    def _look(self) -> None:
        """Opens a new file if the old one was moved or deleted."""
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
            pass  # keep writing to the old one


def _open(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _standard_error() -> int | None:
    """None if stderr was closed at start: its number may belong to another file by now."""
    return None if sys.__stderr__ is None else sys.__stderr__.fileno()
