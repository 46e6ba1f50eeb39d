"""What a worker prints, logged line by line."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque

log = logging.getLogger("backline.model")

#: Longer lines are split.
_LONGEST_LINE = 8192
#: Lines kept for the error after a crash.
_KEPT = 40


class WorkerOutput:
    """One of a worker's two output streams. Lives on the event loop."""

    def __init__(self, descriptor: int, label: str, level: int, loop: asyncio.AbstractEventLoop) -> None:
        """Takes ownership of the descriptor."""
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._label = label
        self._level = level
        self._loop = loop
        self._rest = b""
        #: The last lines.
        self.tail: deque[str] = deque(maxlen=_KEPT)
        loop.add_reader(descriptor, self.read)

    def read(self) -> None:
        """Reads what is available."""
        while self._descriptor >= 0:
            try:
                data = os.read(self._descriptor, 65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            while len(self._rest) > _LONGEST_LINE:
                lines.append(self._rest[:_LONGEST_LINE])
                self._rest = self._rest[_LONGEST_LINE:]
            for line in lines:
                self._say(line)

    def _say(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")
        self.tail.append(text)
        if text:
            log.log(self._level, "%s: %s", self._label, text)

    def close(self) -> None:
        """Stops reading; an unfinished last line is logged."""
        if self._descriptor < 0:
            return
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        if self._rest:
            self._say(self._rest)
            self._rest = b""
