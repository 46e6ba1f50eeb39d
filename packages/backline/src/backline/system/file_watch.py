"""Detects when files change, so that a running server can read changed files again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

#: Seconds between checks of the files.
WATCH_INTERVAL = 1.0

#: Numbers that change when a file's content changes; None if there is no file.
FileState: TypeAlias = tuple[int, int, int] | None
Result = TypeVar("Result")


class FileWatch:
    """Calls `changed` on the event loop after files have been written, replaced, created or removed.

    With `settle`, a change is reported once the files have been unchanged for that many seconds. This is for
    files that belong together, such as a certificate and its key: no program can replace several files in one
    step.

    The files are checked on a thread, because a disk or a file server may not respond for minutes. Only the
    constructor and `mark_read` check them on the caller's thread. Security: the threads belong to this watch,
    because no work that clients cause may delay the revocation of a key.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        changed: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
        *,
        settle: float = 0.0,
    ) -> None:
        self._paths = paths
        self._changed = changed
        self._loop = loop
        self._settle = settle
        self._closed = False
        # Two, so that a read that does not end delays no later one.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="file-watch")
        self._looking: asyncio.Future[list[FileState]] | None = None
        self._reported = self._seen = self._states()
        self._timer = loop.call_later(WATCH_INTERVAL, self._look)

    def close(self) -> None:
        self._closed = True
        self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
        self._threads.shutdown(wait=False)

    def run(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        """Runs `work`, such as reading the changed files, on a thread of this watch."""
        return self._loop.run_in_executor(self._threads, work)

    def mark_read(self) -> None:
        """Discards a change that has not been reported yet, because the caller is about to read the files."""
        self._reported = self._seen = self._states()

    def _look(self) -> None:
        self._looking = self.run(self._states)
        self._looking.add_done_callback(partial(self._compare, self._seen))

    def _compare(self, before: list[FileState], looking: asyncio.Future[list[FileState]]) -> None:
        if self._closed:
            return
        # If `mark_read` was called in the meantime, this result may be older than that call.
        now = looking.result() if self._seen is before else self._seen
        self._seen = now
        unsettled = now not in (self._reported, before) and self._settle > 0
        self._timer = self._loop.call_later(self._settle if unsettled else WATCH_INTERVAL, self._look)
        if now != self._reported and not unsettled:
            self._reported = now
            self._changed()

    def _states(self) -> list[FileState]:
        return [file_state(path) for path in self._paths]


def file_state(path: Path) -> FileState:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
