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

from backline.engine.errors import Internal
from backline.system.busy_poll import BusyPoll
from backline.system.cores import pinned
from backline.system.memory import resident_bytes
from backline.system.private_file import without_keys
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

log = logging.getLogger("backline.workers")

#: Seconds between heartbeats, and seconds of silence after which a worker is considered frozen.
HEARTBEAT = 1.0
HEARTBEAT_TIMEOUT = 30.0
#: Seconds between checks of a worker's memory, if it has a limit.
_MEMORY_LOOK = 0.1
#: Seconds that a hanging worker has to print its stack before it is killed.
_LAST_WORDS = 0.3
_START = Path(__file__).parents[1] / "child" / "start.py"
#: The thread that starts all workers. The system kills a worker when the thread that started it ends
#: (PR_SET_PDEATHSIG), so this thread must live as long as the server.
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="spawn")


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """How to start a worker, and the model to load. `environment` is added to the server's environment
    variables.
    """

    load: WorkerLoad
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    #: The resident memory in bytes above which the worker is killed; None for the limit that the model sets,
    #: if any.
    memory_limit_bytes: int | None = None
    #: The cores to which the worker is pinned, or none for no pinning.
    cores: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """The model and version, for messages."""
        return f"model '{self.load.name}' version {self.load.version}"


class WorkerProcess:
    """A running worker. Use only on the event loop.

    `on_result` is called with each RESULT and its payload. `on_exit` is called once, when the process has
    ended, with the reason ("was killed by SIGSEGV ..."). By then, everything that the worker had sent has
    been handled.
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
        #: Blocks that no array uses any more, to be returned to the worker, with their sizes. A deque,
        #: because arrays may be freed on any thread.
        self._unused: deque[tuple[int, int]] = deque()
        self._held = 0
        #: Why the model reports that it is not ready; empty if it is ready. `on_ready` is called for every
        #: report.
        self.unready = ""
        self.on_ready: Callable[[], None] = lambda: None
        #: The busy poll, which is notified of messages on the data channel and of calls.
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
        own, given = zip(*(socket.socketpair() for _ in range(3)), strict=True)
        descriptor = arena.create()
        try:
            self.arena = Arena(descriptor, lower=True)
            self._kills = out_of_memory_kills()
            await self._launch(*(end.fileno() for end in given), descriptor)
        except OSError as error:
            for end in own:
                end.close()
            raise Internal(f"a worker process of {self.command.label} cannot be started: {error}") from None
        finally:
            for end in given:
                end.close()
            os.close(descriptor)
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
        """Starts the process with these descriptors: data, control, calls, arena. Raises OSError."""
        starting = self._loop.run_in_executor(_SPAWNER, self._spawn, *descriptors)
        while not starting.done():
            # This must not be cancelled: the process gets descriptors that are closed afterwards, and without
            # the result the process could not be killed.
            try:
                await asyncio.wait([starting])
            except asyncio.CancelledError:
                self._cancelled = True
        self._process = starting.result()
        self._attend()

    def _spawn(self, *descriptors: int) -> subprocess.Popen[bytes]:
        with pinned(self.command.cores):  # the process inherits the pinning
            return subprocess.Popen(
                [self.command.python, str(_START), *map(str, descriptors), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=descriptors,
                start_new_session=True,
                env={**without_keys(os.environ), "PYTHONUNBUFFERED": "1", **self.command.environment},
            )

    def _attend(self) -> None:
        assert self._process is not None, "it was started"
        loop = self._loop
        label = self.command.label
        assert self._process.stdout is not None, "it is a pipe"
        assert self._process.stderr is not None, "it is a pipe"
        self._stdout = WorkerOutput(os.dup(self._process.stdout.fileno()), label, logging.INFO, loop)
        self._stderr = WorkerOutput(os.dup(self._process.stderr.fileno()), label, logging.WARNING, loop)
        self._process.stdout.close()
        self._process.stderr.close()
        if hasattr(os, "pidfd_open"):
            self._pidfd = os.pidfd_open(self._process.pid)
            loop.add_reader(self._pidfd, self._look_for_end)
        else:
            self._later("end", 0.05, self._look_for_end)
        self._look_at_memory()

    def _later(self, name: str, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        self._timers[name] = self._loop.call_later(seconds, call, *arguments)

    # sending to the worker

    def execute(self, message: Execute, payload: list[Any]) -> None:
        """Sends a batch."""
        if self._unused:
            message.returned = self.take_unused()
        self._data.send(frame(Kind.EXECUTE, message, payload))

    def cancel(self, numbers: list[int]) -> None:
        """Cancels requests, and the calls that were made for them."""
        self._send_control(Kind.CANCEL, NumberList(numbers))
        self._calls.abandoned()

    def credit(self, number: int, count: int) -> None:
        """Grants a request `count` further responses."""
        self._send_control(Kind.CREDIT, NumberList([number, count]))

    def hold(self, block: np.ndarray, at: int) -> int:
        """Keeps a block of the worker until the last array in it is freed, and then queues the block for
        return. Returns the total size in bytes of all kept blocks.
        """
        size = block.nbytes
        self._held += size
        unused = self._unused
        arena.when_unused(block, lambda: unused.append((at, size)))
        return self._held

    def take_unused(self) -> list[int]:
        """Removes and returns the blocks to send back to the worker with the next message."""
        taken = [self._unused.popleft() for _ in range(len(self._unused))]
        self._held -= sum(size for _, size in taken)
        return [at for at, _ in taken]

    def _send_control(self, kind: Kind, message: Any) -> None:
        # The number of unsent bytes is bounded, because a worker that does not read misses heartbeats and is
        # killed.
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
                log.warning("%s: %s", self.command.label, message.details)
            why = f"{self.command.label} cannot be loaded: {message.message}"
            self._loading.set_exception(Internal(why))
        else:
            raise WorkerProtocolError(f"a frame of kind {kind.name}")

    def _take_control(self, kind: Kind, message: Any, _: memoryview) -> None:
        self._heard = monotonic()
        if kind is Kind.PONG:
            for at in message.numbers:
                self.arena.give_back(at)

    # watching the worker's health

    def _beat(self) -> None:
        # After the server itself was suspended, silence of the worker does not mean that it is frozen.
        if stood_still(self._timers["heartbeat"], self._loop):
            self._heard = monotonic()
        silent = monotonic() - self._heard
        if silent > HEARTBEAT_TIMEOUT:
            self.hang(f"did not answer for {silent:.0f} s")
            return
        self._send_control(Kind.PING, NumberList(self.take_unused()))
        self._later("heartbeat", HEARTBEAT, self._beat)

    def says_ready(self, reason: str) -> None:
        """Records whether the model reports that it is ready: "" if it is, otherwise the reason why not."""
        self.unready = reason
        self.on_ready()

    def limit_memory(self, limit: int) -> None:
        """Applies the model's own limit for the resident memory of its process, unless the configuration has
        one.
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
        """Kills a worker that does not respond, after a moment in which it prints its stack."""
        if self.alive and not self._why:
            self._why = why
            # The signal goes only to the worker itself: otherwise the stacks of processes that it has forked
            # would be mixed in.
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGABRT)
            self._later("last words", _LAST_WORDS, self._signal, signal.SIGKILL)

    def kill(self, why: str) -> None:
        """Kills the process; `why` is the reason passed to `on_exit`."""
        self._why = self._why or why
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.alive and self._process is not None:
            # This kills the whole session, including the processes that the worker has forked.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def stop(self) -> None:
        """Gives the model `farewell` seconds to finish and unload, and waits for the process to end."""
        if not self.alive:
            return
        self._why = self._why or "was stopped"
        self._send_control(Kind.STOP, Empty())
        self._later("farewell", self.farewell, self.kill, "was stopped")
        await asyncio.shield(self._ended)

    def _look_for_end(self) -> None:
        assert self._process is not None, "it was started"
        status = self._process.poll()
        if status is None:
            if self._pidfd < 0:
                self._later("end", 0.05, self._look_for_end)
            return
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._take_rest()
        for output in (self._stdout, self._stderr):
            output.read()
            output.close()
        lines = [line for line in self._stderr.tail if line.strip()]
        reason = self._reason(status, lines)
        self._ended.set_result(None)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if not self._loading.done():
            last = f"; its last words: {said}" if (said := last_words(lines)) else ""
            self._loading.set_exception(
                Internal(f"{self.command.label} cannot be loaded: its worker process {reason}{last}")
            )
        self._on_exit(self, reason)

    def _take_rest(self) -> None:
        """Handles the messages that the worker sent before it ended, and closes all channels."""
        for timer in self._timers.values():
            timer.cancel()
        self._data.read_rest()
        for timer in self._timers.values():  # again, because a LOADED among the messages starts the heartbeat
            timer.cancel()
        self._data.close()
        self._control.close()
        self._calls.close()
        # This drops the reference to the mapping, so that the mapping is freed with the last response in it.
        del self.arena

    def _reason(self, status: int, lines: list[str]) -> str:
        oom = status == -signal.SIGKILL and not self._why and out_of_memory_kills() > self._kills
        place = fault_place(lines, self.command.load.folder)
        return (self._why or describe_exit(status, out_of_memory=oom)) + (f" at {place}" if place else "")
