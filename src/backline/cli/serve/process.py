"""Standard output and error of a server, which must not end with whoever reads them."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

from backline.wire.limits import Limits

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class LastingOutput(io.RawIOBase):
    """Writes to a descriptor; what a full disk or a pipe without a reader does not take is lost without a word."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return self._descriptor >= 0 and os.isatty(self._descriptor)

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return os.write(self._descriptor, data)
        except OSError:
            return memoryview(data).nbytes


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within it what is printed may fail to be, and no more happens."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_lasting, before)
    try:
        yield
    finally:
        for now, old in zip((sys.stdout, sys.stderr), before, strict=True):
            if now is not old:
                now.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: TextIO | None) -> TextIO:
    """The stream itself where it is a program's own, one to nowhere where it was closed when the program started."""
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(LastingOutput(-1)))
    if not isinstance(stream, io.TextIOWrapper) or stream.closed:
        return stream
    try:
        descriptor = stream.fileno()
    except OSError:
        return stream
    buffered = io.BufferedWriter(LastingOutput(descriptor))
    return io.TextIOWrapper(buffered, stream.encoding, stream.errors, line_buffering=stream.line_buffering)


log = logging.getLogger("backline.serve")

#: Open files that are no connections: models, worker processes, the log, libraries that are imported late.
RESERVED = 256


def within_open_files(limits: Limits) -> Limits:
    """The limits with as many connections as fit, after the process has been allowed as many open files as they need, if it may be.

    Connections for which there is no file could not even be refused, and a model could not be read.
    """
    if sys.platform == "win32":
        return limits
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = limits.max_connections + RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # macOS allows less than it says
            pass
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    fitting = max(soft - RESERVED, soft // 2, 1)
    log.warning(
        "the system allows this process %d open files, so there are at most %d connections, not %d: raise its limit (ulimit -n %d)",
        soft,
        fitting,
        limits.max_connections,
        needed,
    )
    return replace(limits, max_connections=fitting)
