"""Standard output and error of a server, which must not end with whoever reads them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

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
