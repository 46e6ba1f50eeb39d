"""What the server needs of its process: standard streams that never fail, and enough open files."""

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
    """Writes to a descriptor; output that a full disk or a closed pipe refuses is silently lost."""

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
    """Makes printing safe for a `with` block: output that cannot be written is dropped."""
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
    """A stream that never raises; replaced streams (as in tests) are kept, closed ones lead nowhere."""
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

#: Open files other than connections: models, worker processes, the log, late imports.
RESERVED = 256


def within_open_files(limits: Limits) -> Limits:
    """Raises the process's limit of open files as far as allowed; returns limits with the connections that
    fit.

    Without a free descriptor a connection could not even be refused, and no model could be read.
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
        except (OSError, ValueError):  # macOS allows less than it reports
            pass
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    fitting = max(soft - RESERVED, soft // 2, 1)
    log.warning(
        "this process may have %d open files, so it accepts at most %d connections instead of %d: raise the"
        " limit"
        " (ulimit -n %d)",
        soft,
        fitting,
        limits.max_connections,
        needed,
    )
    return replace(limits, max_connections=fitting)
