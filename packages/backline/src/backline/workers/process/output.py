"""Reads a worker's output, and explains from the output and the exit status why the worker ended."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from backline.workers.channel.protocol import CONNECTION_LOST

log = logging.getLogger("backline.model")

#: The maximum length of a line in bytes; longer lines are split.
_LONGEST_LINE = 8192
#: The number of output lines that are kept, so that the error after a crash can quote the last ones.
_KEPT = 40
_SAID = {
    signal.SIGSEGV: "a segmentation fault: native code used memory that it may not use",
    signal.SIGBUS: "a bus error: the system could not provide memory, or a mapped file was cut short",
    signal.SIGABRT: "an abort: native code detected an inconsistent state",
    signal.SIGILL: "an illegal instruction: native code was built for another processor",
    signal.SIGFPE: "an arithmetic error in native code",
}
_FAULT_LINE = re.compile(r'^\s*File "(.*)", line (\d+) in (.*)$')
_OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


#: The text in the first line of a traceback.
_TRACEBACK = "Traceback (most recent call last):"
#: The lines that Python prints between two tracebacks of chained exceptions (traceback.py).
_CONNECTING = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
#: Seconds to wait for the rest of a traceback.
_REST_WITHIN = 0.1


class WorkerOutput:
    """Reads one of a worker's two output streams, and logs each line, or each traceback, as one record.

    Use it only on the event loop.
    """

    def __init__(self, descriptor: int, label: str, level: int, loop: asyncio.AbstractEventLoop) -> None:
        """Takes ownership of the descriptor. Each logged line begins with `label`."""
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._label = label
        self._level = level
        self._loop = loop
        self._rest = b""
        #: The lines of the traceback that is being read.
        self._traceback: list[str] = []
        #: Whether the line that names the exception of this traceback has been read.
        self._named = False
        self._waiting: asyncio.TimerHandle | None = None
        #: The last output lines, without their line breaks.
        self.tail: deque[str] = deque(maxlen=_KEPT)
        loop.add_reader(descriptor, self.read)

    def read(self) -> None:
        """Reads and logs all available output, without blocking."""
        while self._descriptor >= 0:
            try:
                data = os.read(self._descriptor, 65536)
            except BlockingIOError:
                if self._named:
                    self._end_traceback()
                elif self._traceback and self._waiting is None:
                    self._waiting = self._loop.call_later(_REST_WITHIN, self._end_traceback)
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
        if self._traceback and self._continues(text):
            self._traceback.append(text)
            return
        self._end_traceback()
        if _TRACEBACK in text:
            self._traceback.append(text)
        elif text:
            self._log(text)

    def _continues(self, line: str) -> bool:
        """Returns whether a line belongs to the traceback before it."""
        if _TRACEBACK in line or line in _CONNECTING:
            self._named = False
        elif line and not line.startswith((" ", "\t")):
            # The first line without an indent names the exception. A second such line does not belong to the
            # traceback.
            before, self._named = self._named, True
            return not before
        return True

    def _end_traceback(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        lines, self._traceback = self._traceback, []
        self._named, self._waiting = False, None
        if lines:
            self._log("\n".join(lines).rstrip(), multiline=True)

    def _log(self, text: str, *, multiline: bool = False) -> None:
        log.log(self._level, "%s: %s", self._label, text, extra={"multiline": multiline})

    def close(self) -> None:
        """Stops reading, and logs an unfinished last line."""
        if self._descriptor < 0:
            return
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        if self._rest:
            self._say(self._rest)
            self._rest = b""
        self._end_traceback()


def describe_exit(status: int, *, out_of_memory: bool = False) -> str:
    """Describes how a process ended, from its return code: "ended with exit status 3", "was killed by SIGSEGV
    (...)". The text completes "its worker process ...".
    """
    if status == CONNECTION_LOST:
        return (
            "lost its connection to the server"
            " (perhaps the model closed file descriptors that it had not opened)"
        )
    if status >= 0:
        return f"ended with exit status {status}"
    number = -status
    name = signal_name(number)
    if out_of_memory:
        return f"was killed by {name}, because the machine or the container was out of memory"
    said = _SAID.get(number)  # type: ignore[call-overload]
    return f"was killed by {name}" + (f" ({said})" if said else "")


def signal_name(number: int) -> str:
    """Returns the name of a signal, such as SIGSEGV."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def fault_place(lines: Sequence[str], folder: str) -> str:
    """Returns where the model crashed, such as "model.py, line 12, in predict", or "" if that is unknown.
    `lines` is the output, in which faulthandler may have printed a stack.
    """
    for line in lines:
        found = _FAULT_LINE.match(line)
        if found and found[1].startswith(folder):
            return f"{Path(found[1]).name}, line {found[2]}, in {found[3]}"
    return ""


def last_words(lines: Sequence[str]) -> str:
    """Returns the last lines that a process printed, at most five, joined into one. Leaves out stacks that
    Python and faulthandler printed, because they are in the log.
    """
    printed: list[str] = []
    for line in lines:
        if line.startswith("Fatal Python error"):
            break
        if line.strip() and not line.startswith((" ", "\t", "Traceback (most recent call last)")):
            printed.append(line)
    return " | ".join(printed[-5:])


def out_of_memory_kills() -> int:
    """Returns the number of processes that the kernel has killed for lack of memory, or 0 if the kernel does
    not report it.
    """
    for path in _OOM_COUNTERS:
        try:
            text = path.read_text()
        except OSError:
            continue
        if found := re.search(r"^oom_kill (\d+)$", text, re.MULTILINE):
            return int(found[1])
    return 0
