"""The server's side of trial processes: starts them, enforces limits, and explains how they ended."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Final, TypeAlias

import msgspec

from backline.engine.numbers import format_bytes
from backline.lifecycle.loading.isolation.messages import (
    LONGEST_MESSAGE,
    Began,
    Passed,
    TrialJob,
    TrialRefused,
    decode_report,
    encode_job,
)
from backline.system.cores import usable_cores
from backline.system.memory import resident_bytes
from backline.workers.process.output import last_words, signal_name
from backline_client.system.private_file import without_keys
from backline_client.values.errors import Cancelled, Internal

log = logging.getLogger("backline.lifecycle")

#: The fork server is ended after this many seconds without a trial.
IDLE_SECONDS: Final = 10.0
#: A runtime may take this many seconds to import, even if the time limit of trials is shorter: an import runs
#: no code of the model, and takes a long time on a slow disk or a busy machine, where trials have a low
#: priority.
_LEAST_IMPORT: Final = 120.0
#: Seconds between checks of a trial's memory and duration.
_LOOK: Final = 0.025
#: Unless the server's options set a limit, a trial may take this many bytes of memory, plus _MEMORY_PER_BYTE
#: bytes for each byte of the model's files, but at most the share _SHARE_OF_FREE of the free memory.
_MEMORY: Final = 4 << 30
_MEMORY_PER_BYTE: Final = 8
_SHARE_OF_FREE: Final = 0.8
#: A trial may write files of up to this many bytes, plus _FILE_PER_BYTE bytes for each byte of the model's
#: files.
_FILE: Final = 64 << 20
_FILE_PER_BYTE: Final = 2
#: The maximum number of bytes from the end of a trial's output that are read for an error message.
_LAST_OUTPUT: Final = 4096
_PROGRAM: Final = (
    "import sys; control, *sys.path = sys.argv[1:];"
    " from backline.lifecycle.loading.isolation.fork_server import main; main(int(control))"
)
_DOING: Final = {"load": "loading", "probe": "running", "warm-up": "warming up"}

OnPhase: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """The limits of a trial: its duration in `seconds`, its resident `memory` in bytes, and the size of each
    `file` that it writes, in bytes.
    """

    seconds: float
    memory: int
    file: int

    @classmethod
    def of(cls, file_bytes: int, *, seconds: float, memory: int | None) -> TrialLimits:
        """Returns limits for a model with files of this size. If `memory` is None, the memory limit depends
        on the size.
        """
        if memory is None:
            import psutil

            free = int(psutil.virtual_memory().available * _SHARE_OF_FREE)
            memory = min(_MEMORY + _MEMORY_PER_BYTE * file_bytes, free)
        return cls(seconds, memory, _FILE + _FILE_PER_BYTE * file_bytes)


class TrialProcesses:
    """The separate processes in which model files are tried. The methods block: call them on load threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._running = 0
        self._trials: set[int] = set()
        self._idle: threading.Timer | None = None
        #: The number of trials so far, for tests.
        self.started = 0

    @property
    def pids(self) -> list[int]:
        """The ids of the fork server, if it runs, and of the trials. Each leads a session."""
        with self._lock:
            return ([] if self._process is None else [self._process.pid]) + list(self._trials)

    def try_out(self, job: TrialJob, runtime: str, limits: TrialLimits, trial: TrialWatch) -> Passed:
        """Tries a model; returns its measurements.

        Raises the error of the load, Cancelled, or Internal if the process crashed or exceeded a limit;
        `runtime` names the library that may crash, such as "LightGBM 4.7.0". `trial` reports phases, and can
        be cancelled.
        """
        with self._fork_server(), ExitStack() as opened:
            channel, given = (opened.enter_context(end) for end in _pair())
            ending, said = (opened.enter_context(end) for end in _pair())
            output = opened.enter_context(os.fdopen(os.memfd_create("output"), "rb"))
            written = opened.enter_context(os.fdopen(os.memfd_create("job"), "r+b"))
            written.write(encode_job(job))
            written.seek(0)
            cpu = int(limits.seconds * usable_cores()) + 1
            asked = {"imports": job.imports, "limits": {"cpu": cpu, "file": limits.file}}
            descriptors = (given.fileno(), written.fileno(), output.fileno(), said.fileno())
            self._ask(json.dumps(asked).encode(), descriptors)
            given.close()
            said.close()
            begun, pidfd = trial.await_start(ending, runtime, max(limits.seconds, _LEAST_IMPORT))
            opened.callback(os.close, pidfd)
            with self._lock:
                self._trials.add(begun.pid)
            try:
                return trial.attend(_Process(job, runtime, limits, begun, channel, ending))
            except _Ended as ended:
                raise Internal(f"{ended}{_said(output.fileno())}") from None
            finally:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                with self._lock:
                    self._trials.discard(begun.pid)

    def close(self) -> None:
        """Ends the fork server, and with it all trials."""
        with self._lock:
            if self._idle is not None:
                self._idle.cancel()
            self._end()

    @contextmanager
    def _fork_server(self) -> Iterator[None]:
        """Keeps the fork server running within the context."""
        with self._lock:
            self._running += 1
            self.started += 1
            if self._idle is not None:
                self._idle.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._idle = threading.Timer(IDLE_SECONDS, self.end_if_idle)
                    self._idle.daemon = True
                    self._idle.start()

    def _ask(self, request: bytes, descriptors: tuple[int, ...]) -> None:
        with self._lock:
            for again in (True, False):
                if self._control is None:
                    self._start()
                assert self._control is not None, "it was started"
                try:
                    socket.send_fds(self._control, [request], descriptors)
                    return
                except OSError as error:  # the fork server was killed
                    self._end()
                    if not again:
                        raise Internal(f"no process can be started to try the model: {error}") from None

    def _start(self) -> None:
        own, given = _pair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(given.fileno()), *(path for path in sys.path if path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[given.fileno()],
                start_new_session=True,
                env=without_keys(os.environ),
            )
        except OSError as error:
            own.close()
            raise Internal(f"no process can be started to try the model: {error}") from None
        finally:
            given.close()
        self._control = own

    def end_if_idle(self) -> None:
        """Ends the fork server unless a trial runs. The next trial starts it again."""
        with self._lock:
            if not self._running:
                self._end()

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            # The trials of the fork server end with it.
            self._process.kill()
            self._process.wait()
            self._process = None


class TrialWatch:
    """Waits for one trial, which another thread may cancel. `on_phase` is called on the load thread."""

    def __init__(self, on_phase: OnPhase) -> None:
        self._on_phase = on_phase
        self._cancelled = False

    def cancel(self) -> None:
        """Makes the load thread kill the trial soon. May be called on any thread, even before the trial
        begins.
        """
        self._cancelled = True

    def await_start(self, ending: socket.socket, runtime: str, seconds: float) -> tuple[_Begun, int]:
        """Waits until the fork server has imported the runtime and started the trial. Returns the trial's
        process id, the size of its shared memory, and its pidfd.

        Raises Cancelled if the load is cancelled, and Internal if the fork server has ended or does not start
        the trial within `seconds`, because it is frozen or the import hangs.
        """
        end = monotonic() + seconds
        poll = select.poll()
        poll.register(ending, select.POLLIN)
        while not poll.poll(_LOOK * 1000):
            self._check()
            if monotonic() > end:
                raise Internal(
                    f"the process that starts trials of model files did not import {runtime} and start a"
                    f" trial within {seconds:g} s; if the import needs longer, raise --load-timeout-secs"
                )
        begun, descriptors, _, _ = socket.recv_fds(ending, 32, 1)
        if not descriptors:
            raise Internal(
                "the process that starts trials of model files ended, so the model was not loaded: load it"
                " again"
            )
        pid, shared = map(int, begun.split())
        return _Begun(pid, shared), descriptors[0]

    def _check(self) -> None:
        if self._cancelled:
            raise Cancelled("the load was cancelled")

    def attend(self, process: _Process) -> Passed:
        """Waits for the result of a trial.

        Raises the error that the load raised, Cancelled, or _Ended if the process crashed or exceeded a
        limit.
        """
        end = monotonic() + process.limits.seconds
        poll = select.poll()
        poll.register(process.channel, select.POLLIN)
        poll.register(process.ending, select.POLLIN)
        while True:
            self._check()
            process.check_memory()
            if monotonic() > end:
                raise process.too_slow()
            ready = [descriptor for descriptor, _ in poll.poll(_LOOK * 1000)]
            if not ready:
                continue
            # The message is read first: a process may have sent its result just before it ended.
            heard = process.channel.fileno() in ready
            data = process.channel.recv(LONGEST_MESSAGE) if heard else b""
            if not data:
                raise process.crash()
            try:
                report = decode_report(data)
            except (ValueError, msgspec.MsgspecError) as error:
                raise process.nonsense(error) from None
            if isinstance(report, Began):
                process.phase = report.phase
                self._on_phase(report.phase)
            elif isinstance(report, TrialRefused):
                raise report.error()
            else:
                return report


@dataclass(frozen=True, slots=True)
class _Begun:
    """A trial's process id, and how much of its resident memory it shares with the fork server, in bytes."""

    pid: int
    shared_bytes: int


class _Ended(Exception):
    """Raised when a trial has ended without a result; the message says why."""


class _Process:
    """The server's side of a running trial."""

    def __init__(
        self,
        job: TrialJob,
        runtime: str,
        limits: TrialLimits,
        begun: _Begun,
        channel: socket.socket,
        ending: socket.socket,
    ) -> None:
        self.limits = limits
        self.channel = channel
        self.phase = "load"
        self._path = job.path
        self._runtime = runtime
        self._begun = begun
        self.ending = ending

    def check_memory(self) -> None:
        """Raises _Ended if the process exceeds its memory limit."""
        used = resident_bytes(self._begun.pid) - self._begun.shared_bytes
        if used > self.limits.memory:
            raise _Ended(
                f"{self._runtime} used more than {format_bytes(self.limits.memory)} of memory while"
                f" {self._doing()}, so its process was killed; if the model needs that much, raise"
                " --load-memory-limit"
            )

    def too_slow(self) -> _Ended:
        return _Ended(
            f"{self._runtime} did not finish {self._doing()} within {self.limits.seconds:g} s, so its process"
            " was killed; if the model needs longer, raise --load-timeout-secs"
        )

    def nonsense(self, error: Exception) -> _Ended:
        return _Ended(
            f"the process in which {self._runtime} was {self._doing()} sent no valid result: {error}"
        )

    def crash(self) -> _Ended:
        """Returns an error that says how the process ended."""
        self.ending.settimeout(5)
        try:
            # If the fork server ends, the kernel kills its trials, and nobody reports their status.
            status = int(self.ending.recv(32) or -signal.SIGKILL)
        except (OSError, ValueError):
            status = 1
        if status == -signal.SIGKILL:
            return _Ended(
                f"the process in which {self._runtime} was {self._doing()} was killed, perhaps because the"
                " machine or the container ran out of memory; the server is not affected"
            )
        how = signal_name(-status) if status < 0 else f"exit status {status}"
        return _Ended(f"{self._runtime} crashed while {self._doing()} ({how}); the server is not affected")

    def _doing(self) -> str:
        return f"{_DOING[self.phase]} '{self._path}'"


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _said(output: int) -> str:
    """Returns the last lines that a trial printed, worded to end a sentence; "" if the trial printed
    nothing.
    """
    size = os.fstat(output).st_size
    text = os.pread(output, _LAST_OUTPUT, max(0, size - _LAST_OUTPUT)).decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    words = last_words(["".join(c if c.isprintable() else " " for c in line) for line in lines])
    return f"; its last output: {words}" if words else ""
