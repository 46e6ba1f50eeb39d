"""Runs uv, the program that finds interpreters and installs packages."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from backline_client.system.private_file import without_keys
from backline_client.values.errors import Internal

log = logging.getLogger("backline.environments")

#: A function that is called with the number of bytes downloaded and the number of bytes to download in total,
#: as far as uv reports these numbers.
OnBytes: TypeAlias = Callable[[int, int], None]
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_DOWNLOADING = re.compile(r"^Downloading (\S+) \(([0-9]+(?:\.[0-9]+)?)(B|KiB|MiB|GiB)\)$")
_DOWNLOADED = re.compile(r"^\s*Downloaded (\S+)$")
_LONGEST_CAUSE = 800
#: Held during the search for the uv program, because the search uses sysconfig, whose first use is not
#: thread-safe.
_FINDING = threading.Lock()


class UvFailed(Exception):
    """Raised when uv fails. The message is the reason, in one line; `lines` is the whole output of uv."""

    def __init__(self, why: str, lines: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.lines = lines


class Uv:
    """Runs uv, one command at a time; `cancel` ends the command in progress."""

    def __init__(self) -> None:
        """Raises Internal, naming the extra to install, if uv is missing."""
        self._program = _find()
        #: The process that runs the current command, until it is reaped. Until then, the system cannot reuse
        #: the id of its process group.
        self._process: subprocess.Popen[str] | None = None
        #: Held while the process is reaped, or killed.
        self._reaping = threading.Lock()
        self._cancelled = threading.Event()

    def run(
        self, *arguments: str, folder: Path, given: str = "", on_bytes: OnBytes = lambda done, total: None
    ) -> str:
        """Runs a command in a folder, with `given` as its standard input, and returns its standard output.
        Blocks until the command ends.

        Raises UvFailed if uv fails or is cancelled.
        """
        output = _UvOutput(on_bytes)
        with tempfile.TemporaryFile("w+") as stdin, tempfile.TemporaryFile("w+") as stdout:
            stdin.write(given)
            stdin.seek(0)
            self._process = process = subprocess.Popen(
                [self._program, *arguments],
                cwd=folder,
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
                env={
                    **without_keys(os.environ),
                    "UV_NO_PROGRESS": "1",
                    "NO_COLOR": "1",
                    "UV_PYTHON_DOWNLOADS": "never",
                },
            )
            if self._cancelled.is_set():  # `cancel` may have run before there was a process
                self.cancel()
            assert process.stderr is not None, "it is a pipe"
            try:
                with process.stderr as stderr:
                    for line in stderr:
                        output.take(line.rstrip())
            except BaseException:
                self._kill()
                raise
            finally:
                with self._reaping:  # held only briefly: the process has closed its output or been killed
                    status = process.wait()
                    self._process = None
            stdout.seek(0)
            printed = stdout.read()
        if self._cancelled.is_set():
            raise UvFailed("the build was cancelled")
        if status:
            raise UvFailed(cause(output.lines) or f"uv ended with exit status {status}", output.lines)
        return printed

    def cancel(self) -> None:
        """Ends the command in progress, and makes later commands fail. May be called on any thread."""
        self._cancelled.set()
        self._kill()

    def _kill(self) -> None:
        with self._reaping, suppress(ProcessLookupError, PermissionError):
            if self._process is not None:
                os.killpg(self._process.pid, signal.SIGKILL)


class _UvOutput:
    """Collects uv's output, and reports the download progress in it."""

    def __init__(self, on_bytes: OnBytes) -> None:
        self.lines: list[str] = []
        self._on_bytes = on_bytes
        self._sizes: dict[str, int] = {}
        self._done = 0

    def take(self, line: str) -> None:
        if not line:
            return
        self.lines.append(line)
        log.info("uv: %s", line)
        if found := _DOWNLOADING.match(line):
            self._sizes[found[1]] = int(float(found[2]) * _UNITS[found[3]])
        elif found := _DOWNLOADED.match(line):
            self._done += self._sizes.get(found[1], 0)
        else:
            return
        self._on_bytes(self._done, sum(self._sizes.values()))


def cause(lines: Sequence[str]) -> str:
    """Returns the reason for uv's failure in one line.

    The reason is the end of uv's output, from the last line that begins with "error:" or contains "×",
    without box-drawing characters and shortened to _LONGEST_CAUSE characters. It is "" if there is no such
    line.
    """
    begin = max(
        (index for index, line in enumerate(lines) if line.startswith("error:") or "×" in line), default=-1
    )
    if begin < 0:
        return ""
    said = [re.sub(r"[×╰─▶│├╭]|^error:", " ", line).strip() for line in lines[begin:]]
    text = " ".join(" ".join(said).split()).replace(" cause: ", ": ").replace(" Caused by: ", ": ")
    return text if len(text) <= _LONGEST_CAUSE else text[:_LONGEST_CAUSE] + "..."


def _find() -> str:
    try:
        from uv import find_uv_bin

        with _FINDING:
            return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if found is None:
        raise Internal(
            "environments of models are built by uv, which is not installed: pip install 'backline[envs]'"
        )
    return found
