"""A command on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

#: Makes the pseudo-terminal the controlling terminal, so that Ctrl-C raises SIGINT.
_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "backline", *sys.argv[1:]])
"""


class Terminal:
    """`backline ARGUMENTS` with a terminal as its standard streams."""

    def __init__(
        self, *arguments: object, environment: dict[str, str] | None = None, folder: Path | None = None
    ) -> None:
        self._fd, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "NO_COLOR": "1", "TERM": "dumb", **(environment or {})},
            cwd=folder,
        )
        self._theirs = theirs
        self._shown = ""
        self._readable = select.poll()  # unlike select.select, it takes descriptors above 1023
        self._readable.register(self._fd, select.POLLIN)

    def read_until(self, pattern: str, timeout: float = 30.0) -> str:
        """The output up to and including `pattern`."""
        end = time.monotonic() + timeout
        while True:
            if found := re.search(pattern, self._shown):
                shown, self._shown = self._shown[: found.end()], self._shown[found.end() :]
                return shown
            alive = self.process.poll() is None
            assert alive, f"it ended without {pattern!r}:\n{self._shown}"
            assert time.monotonic() < end, f"no {pattern!r} in:\n{self._shown}"
            if self._readable.poll(100):
                self._shown += os.read(self._fd, 65536).decode(errors="replace").replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    @property
    def echoes(self) -> bool:
        """Whether the terminal echoes input, as it must again once a command has exited."""
        return bool(termios.tcgetattr(self._theirs)[3] & termios.ECHO)

    def hang_up(self) -> None:
        """Closes the terminal, as closing its window does."""
        os.close(self._fd)
        self._fd = -1

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self._fd >= 0:
            os.close(self._fd)
        os.close(self._theirs)
