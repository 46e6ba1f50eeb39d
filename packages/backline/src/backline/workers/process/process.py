"""The server's side of one worker process: starts, watches and ends it, and exchanges messages with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

import numpy as np

import backline_client
from backline.system.cores import pinned
from backline.system.exhaustion import exhausted
from backline.system.memory import resident_bytes
from backline.system.standstill import stood_still
from backline.workers.channel import arena
from backline.workers.channel.arena import Arena
from backline.workers.channel.protocol import (
    Empty,
    Execute,
    Kind,
    NumberList,
    Result,
    WorkerLoad,
    WorkerLoaded,
    WorkerProtocolError,
    frame,
)
from backline.workers.process.call_channel import CallChannel
from backline.workers.process.channel_end import ChannelEnd
from backline.workers.process.output import (
    WorkerOutput,
    describe_exit,
    fault_place,
    last_words,
    out_of_memory_kills,
)
from backline_client.system.busy_poll import BusyPoll
from backline_client.system.private_file import without_keys
from backline_client.values.errors import Internal

log = logging.getLogger("backline.workers")

#: Seconds between heartbeats.
HEARTBEAT = 1.0
#: A worker counts as frozen after this many seconds without a message on the control channel.
HEARTBEAT_TIMEOUT = 30.0
#: Seconds between checks of the memory of a worker with a memory limit.
_MEMORY_LOOK = 0.1
#: The time in seconds that a worker gets, before it is killed, to print its stack if it hangs, or to end if
#: it has closed the data channel.
_LAST_WORDS = 0.3
_START = (str(Path(__file__).parents[1] / "child" / "start.py"), str(Path(backline_client.__file__).parent))
#: The thread that starts all workers. The kernel kills a worker when the thread that started it ends
#: (PR_SET_PDEATHSIG), so this thread must run as long as the server.
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="spawn")


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """The interpreter and settings of a worker, and the model that it loads. `environment` is added to the
    server's environment variables.
    """

    load: WorkerLoad
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    #: The resident memory in bytes above which the worker is killed; None for the limit that the model sets,
    #: if any.
    memory_limit_bytes: int | None = None
    #: The cores to which the worker is pinned; empty for no pinning.
    cores: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """The model and version, for messages."""
        return f"model '{self.load.name}' version {self.load.version}"


class WorkerProcess:
    """A worker process. Use it only on the event loop.

    `on_result` is called with each RESULT and its payload. `on_exit` is called once, when the process has
    ended, with the reason ("was killed by SIGSEGV ..."). All messages that the worker had sent on the data
    channel have been handled by then.
    """

    #: Seconds after STOP until a worker that has not ended is killed.
    farewell: ClassVar[float] = 5.0
    #: Whether the model runs in the server's process, for a debugger.
    debugged: ClassVar[bool] = False

    def __init__(
        self,
        command: WorkerCommand,
        loop: asyncio.AbstractEventLoop,
        on_result: Callable[[WorkerProcess, Result, memoryview], None],
        on_exit: Callable[[WorkerProcess, str], None],
        calls: CallChannel,
    ) -> None:
        self.command = command
        self._loop = loop
        self._on_result = on_result
        self._on_exit = on_exit
        self._calls = calls
        self._loading: asyncio.Future[WorkerLoaded] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._process: subprocess.Popen[bytes] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._pidfd = -1
        self._memory_limit = command.memory_limit_bytes
        #: Whether `start` was cancelled while the system was starting the process.
        self._cancelled = False
        self._why = ""
        self._heard = 0.0
        self._kills = 0
        #: Blocks of the worker that no array uses any more, with their sizes, to be returned to the worker.
        #: Arrays may be freed on any thread; the methods of a deque are atomic.
        self._unused: deque[tuple[int, int]] = deque()
        #: The total size in bytes of the worker's blocks that have not been returned.
        self._held = 0
        #: Why the model is not ready, as its last report says; empty if it is ready.
        self.unready = ""
        #: Called for every report on the model's readiness.
        self.on_ready: Callable[[], None] = lambda: None
        #: The busy poll, to which messages on the data channel and the calls channel are reported.
        self.poll = BusyPoll()
        #: Whether the worker has ever sent a RESULT.
        self.proved = False

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        return self._process is not None and not self._ended.done()

    @property
    def resident_bytes(self) -> int:
        """The worker's resident memory in bytes, or 0 once it has ended."""
        return resident_bytes(self.pid)

    async def start(self) -> WorkerLoaded:
        """Starts the process and loads the model. Raises Internal with the root cause if either fails."""
        own: list[socket.socket] = []
        try:
            with contextlib.ExitStack() as given:  # closed here once the process has them
                ends = []
                for _ in range(3):
                    mine, end = socket.socketpair()
                    own.append(mine)
                    ends.append(given.enter_context(end).fileno())
                descriptor = arena.create()
                given.callback(os.close, descriptor)
                self.arena = Arena(descriptor, lower=True)
                self._kills = out_of_memory_kills()
                await self._launch(*ends, descriptor)
        except (OSError, MemoryError) as error:
            for mine in own:
                mine.close()
            why = exhausted(error) or error
            raise Internal(f"a worker process of {self.command.label} cannot be started: {why}") from None
        data, control, calls = own
        self._data = ChannelEnd(data, self._loop, self._take, self._broken, self._disconnected, self.poll)
        self._control = ChannelEnd(control, self._loop, self._take_control, self.kill)
        self._calls.attend(calls, self)
        self._data.send(frame(Kind.LOAD, self.command.load))
        try:
            if self._cancelled:
                raise asyncio.CancelledError
            return await asyncio.shield(self._loading)
        except asyncio.CancelledError:
            # The callback retrieves the exception, which asyncio would otherwise log.
            self._loading.add_done_callback(lambda loading: loading.exception())
            self.kill("was no longer needed")
            raise

    async def _launch(self, *descriptors: int) -> None:
        """Starts the process with these descriptors: data, control, calls, arena. Raises OSError if the
        process cannot be started or watched.
        """
        starting = self._loop.run_in_executor(_SPAWNER, self._spawn, *descriptors)
        while not starting.done():
            # The start of the process must not be cancelled: its descriptors are closed after this method
            # returns, and without the result of `_spawn` the process could not be killed.
            try:
                await asyncio.wait([starting])
            except asyncio.CancelledError:
                self._cancelled = True
        self._process = starting.result()
        self._attend()

    def _spawn(self, *descriptors: int) -> subprocess.Popen[bytes]:
        with pinned(self.command.cores):  # the process inherits the pinning
            return subprocess.Popen(
                [self.command.python, *_START, *map(str, descriptors), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=descriptors,
                start_new_session=True,
                # Security: the model's code must not see the keys of the server or of a client.
                env={**without_keys(os.environ), "PYTHONUNBUFFERED": "1", **self.command.environment},
            )

    def _attend(self) -> None:
        assert self._process is not None, "it was started"
        loop = self._loop
        label = self.command.label
        assert self._process.stdout is not None, "it is a pipe"
        assert self._process.stderr is not None, "it is a pipe"
        with self._process.stdout as out, self._process.stderr as errors, contextlib.ExitStack() as undo:
            undo.callback(self._abandon)
            stdout = os.dup(out.fileno())
            undo.callback(os.close, stdout)
            stderr = os.dup(errors.fileno())
            undo.callback(os.close, stderr)
            if hasattr(os, "pidfd_open"):
                self._pidfd = os.pidfd_open(self._process.pid)
            undo.pop_all()
        self._stdout = WorkerOutput(stdout, label, logging.INFO, loop)
        self._stderr = WorkerOutput(stderr, label, logging.WARNING, loop)
        if self._pidfd >= 0:
            loop.add_reader(self._pidfd, self._look_for_end)
        else:
            self._later("end", 0.05, self._look_for_end)
        self._look_at_memory()

    def _abandon(self) -> None:
        """Kills a process that cannot be watched, because no more file descriptors are available."""
        assert self._process is not None, "it was started"
        self._process.kill()
        self._process.wait()
        self._process = None

    def _later(self, name: str, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        self._timers[name] = self._loop.call_later(seconds, call, *arguments)

    # sending to the worker

    def execute(self, message: Execute, payload: list[Any]) -> None:
        """Sends a batch."""
        if self._unused:
            message.returned = self.take_unused()
        self._data.send(frame(Kind.EXECUTE, message, payload))

    def cancel(self, numbers: list[int]) -> None:
        """Cancels requests, and calls that were made only for cancelled requests."""
        self._send_control(Kind.CANCEL, NumberList(numbers))
        self._calls.abandoned()

    def credit(self, number: int, count: int) -> None:
        """Allows the worker to send `count` further responses to a request."""
        self._send_control(Kind.CREDIT, NumberList([number, count]))

    def hold(self, block: np.ndarray, at: int) -> int:
        """Keeps a block of the worker until the last array in it is freed, and then queues the block to be
        returned to the worker. Returns the total size in bytes of all kept blocks.
        """
        size = block.nbytes
        self._held += size
        unused = self._unused
        arena.when_unused(block, lambda: unused.append((at, size)))
        return self._held

    def take_unused(self) -> list[int]:
        """Removes and returns the offsets of the blocks that the next message returns to the worker."""
        taken = [self._unused.popleft() for _ in range(len(self._unused))]
        self._held -= sum(size for _, size in taken)
        return [at for at, _ in taken]

    def _send_control(self, kind: Kind, message: Any) -> None:
        # The number of unsent bytes is bounded by time: a worker that does not read misses its heartbeats,
        # and is killed.
        self._control.send(frame(kind, message))

    # receiving from the worker

    def _disconnected(self) -> None:
        self._later("silence", _LAST_WORDS, self.kill, "closed its connection to the server")

    def _broken(self, why: str) -> None:
        log.error("a worker of %s %s", self.command.label, why)
        self.kill(why)

    def _take(self, kind: Kind, message: Any, payload: memoryview) -> None:
        if kind is Kind.RESULT:
            self.proved = True
            self._on_result(self, message, payload)
        elif self._loading.done():
            raise WorkerProtocolError(f"a frame of kind {kind.name} after the load")
        elif kind is Kind.LOADED:
            self._loading.set_result(message)
            self._heard = monotonic()
            self._later("heartbeat", HEARTBEAT, self._beat)
        elif kind is Kind.FAILED:
            if message.details:
                log.warning("%s: %s", self.command.label, message.details, extra={"multiline": True})
            why = f"{self.command.label} cannot be loaded: {message.message}"
            self._loading.set_exception(Internal(why))
        else:
            raise WorkerProtocolError(f"a frame of kind {kind.name}, which may not be sent on this channel")

    def _take_control(self, kind: Kind, message: Any, _: memoryview) -> None:
        self._heard = monotonic()
        if kind is Kind.PONG:
            for at in message.numbers:
                self.arena.give_back(at)
        else:
            raise WorkerProtocolError(f"a frame of kind {kind.name}, which may not be sent on this channel")

    # watching the worker's health

    def _beat(self) -> None:
        # If the server itself was suspended, the lack of messages does not mean that the worker is frozen.
        if stood_still(self._timers["heartbeat"], self._loop):
            self._heard = monotonic()
        silent = monotonic() - self._heard
        if silent > HEARTBEAT_TIMEOUT:
            self.hang(f"did not respond for {silent:.0f} s")
            return
        self._send_control(Kind.PING, NumberList(self.take_unused()))
        self._later("heartbeat", HEARTBEAT, self._beat)

    def says_ready(self, reason: str) -> None:
        """Records the model's report on its readiness: "" if the model is ready, otherwise the reason why it
        is not.
        """
        self.unready = reason
        self.on_ready()

    def limit_memory(self, limit: int) -> None:
        """Applies the limit that the model's code sets for the resident memory of its process, unless the
        configuration sets a limit.
        """
        if self._memory_limit is None:
            self._memory_limit = limit
            self._look_at_memory()

    def _look_at_memory(self) -> None:
        limit = self._memory_limit
        if limit is None:
            return
        used = self.resident_bytes
        if used > limit:
            self.kill(
                f"used {used >> 20} MiB of memory, more than its limit of {limit >> 20} MiB, and was killed"
            )
            return
        self._later("memory", _MEMORY_LOOK, self._look_at_memory)

    # ending the process

    def hang(self, why: str) -> None:
        """Kills a worker that does not respond. SIGABRT first makes the worker print its stack."""
        if self.alive and not self._why:
            self._why = why
            # SIGABRT is sent only to the worker itself, because the output would otherwise also contain the
            # stacks of processes that the worker has forked.
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGABRT)
            self._later("last words", _LAST_WORDS, self._signal, signal.SIGKILL)

    def kill(self, why: str) -> None:
        """Kills the process. `why` is the reason passed to `on_exit`, unless there is an earlier one."""
        self._why = self._why or why
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.alive and self._process is not None:
            # The signal is sent to the whole process group, which includes the processes that the worker has
            # forked.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def stop(self) -> None:
        """Makes the worker unload the model and exit, and waits until it has. Kills a worker that needs more
        than `farewell` seconds.
        """
        if not self.alive:
            return
        self._why = self._why or "was stopped"
        self._send_control(Kind.STOP, Empty())
        self._later("farewell", self.farewell, self.kill, "was stopped")
        await asyncio.shield(self._ended)

    def _look_for_end(self) -> None:
        assert self._process is not None, "it was started"
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        elif self._process.poll() is None:
            self._later("end", 0.05, self._look_for_end)
            return
        # This kills processes that the worker has started and that are still in its process group. With a
        # pidfd, the worker has ended but has not been reaped, so no other process can have its id yet.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._take_rest()
        for output in (self._stdout, self._stderr):
            output.read()
            output.close()
        lines = [line for line in self._stderr.tail if line.strip()]
        # The last results and all output have been handled before the end of the process is reported below.
        reason = self._reason(self._process.wait(), lines)
        self._ended.set_result(None)
        if not self._loading.done():
            last = f"; its last output: {said}" if (said := last_words(lines)) else ""
            self._loading.set_exception(
                Internal(f"{self.command.label} cannot be loaded: its worker process {reason}{last}")
            )
        self._on_exit(self, reason)

    def _take_rest(self) -> None:
        """Handles the messages that the worker sent before it ended, and closes all channels."""
        for timer in self._timers.values():
            timer.cancel()
        self._data.read_rest()
        for timer in self._timers.values():  # again, because a LOADED message starts the heartbeat timer
            timer.cancel()
        self._data.close()
        self._control.close()
        self._calls.close()
        # Without this reference, the mapping is freed with the last response that has tensors in it.
        del self.arena

    def _reason(self, status: int, lines: list[str]) -> str:
        oom = status == -signal.SIGKILL and not self._why and out_of_memory_kills() > self._kills
        place = fault_place(lines, self.command.load.folder)
        return (self._why or describe_exit(status, out_of_memory=oom)) + (f" at {place}" if place else "")
