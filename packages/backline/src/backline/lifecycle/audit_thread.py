"""The thread that reads and writes the audit log, so that the event loop never waits for the disk."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from backline.lifecycle.audit_log import DEFAULT_LIMIT, AuditLog, Line, line_of
from backline_client.values.control import Attempt, Change

log = logging.getLogger("backline.lifecycle")

#: Seconds to wait at shutdown for a disk that does not respond.
_FLUSH_SECONDS = 5.0
Result = TypeVar("Result")


class AuditThread:
    """Reads and writes an audit log on one thread, in the order of the calls: a read sees all entries that
    were appended before it.
    """

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._lock = threading.Lock()
        #: The lines that are to be written, and their size in bytes.
        self._pending: list[Line] = []
        self._size = 0
        #: The number of entries that were dropped because the disk was too slow.
        self._dropped = 0
        self._closed = False

    def append(self, entry: Change | Attempt) -> None:
        line = line_of(entry)
        with self._lock:
            if self._closed:
                self._audit.write([line])
                return
            if self._size + len(line[0]) > DEFAULT_LIMIT:
                self._dropped += 1
                return
            self._pending.append(line)
            self._size += len(line[0])
            if len(self._pending) == 1:  # otherwise, the write that has been submitted takes this line too
                self._thread.submit(self._write)

    def _write(self) -> None:
        with self._lock:
            lines, self._pending, self._size = self._pending, [], 0
            dropped, self._dropped = self._dropped, 0
        self._audit.write(lines)
        if dropped:
            log.error(
                "%d entries of the audit log were dropped, because the disk of the state folder is too slow",
                dropped,
            )

    async def read(self, work: Callable[[AuditLog], Result]) -> Result:
        """Runs `work` on the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._audit)

    async def close(self) -> None:
        """Writes the pending entries. Later entries are written at once, on the caller's thread."""
        flushed = asyncio.wrap_future(self._thread.submit(self._close))
        await asyncio.wait((flushed,), timeout=_FLUSH_SECONDS)
        if not flushed.done():
            log.error("the audit log is incomplete, because the disk with the state folder does not respond")
        self._thread.shutdown(wait=False)

    def _close(self) -> None:
        self._write()
        with self._lock:
            self._closed = True
