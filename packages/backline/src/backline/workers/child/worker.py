"""The main loop of a worker process. `start.py` runs it on the channels and shared memory of the process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from inspect import isawaitable
from socket import SHUT_RD, socket
from time import monotonic_ns
from typing import Any

import msgspec

from backline.system.cores import SpareCore
from backline.workers.channel.arena import Arena
from backline.workers.channel.protocol import (
    CONNECTION_LOST,
    Execute,
    Failed,
    FrameSplitter,
    Kind,
    NumberList,
    WorkerLoad,
    WorkerLoaded,
    frame,
)
from backline.workers.child.caller import Caller
from backline.workers.child.connection import DataChannel
from backline.workers.child.requests import RequestBatch
from backline.workers.child.reshaped import is_reshaped, shapes_of
from backline.workers.child.tracebacks import details, reason
from backline.workers.child.worker_model import Adapter, WorkerModel
from backline_client.system.busy_poll import PolledSocket
from backline_client.values.errors import BacklineError, Internal

#: The maximum number of bytes per read. Most frames are smaller, because large tensors are sent in shared
#: memory.
_RECEIVE = 1 << 18


def main(data: int, control: int, calls: int, arena: int) -> None:
    """Runs one worker until the server sends STOP or disconnects. Never returns."""
    # The channel is closed if the server ends, or if the model closes file descriptors that it did not open.
    worker = make_worker(data, control, calls, arena, on_end=lambda: os._exit(CONNECTION_LOST))
    pid = os.getpid()
    os.register_at_fork(after_in_child=lambda: _forked(data, control, calls))
    try:
        worker.serve()
    except BaseException as error:
        if os.getpid() != pid:  # a process that the model forked has returned into this loop
            os._exit(0)
        if isinstance(error, OSError):  # from a channel: exceptions of the model are caught earlier
            os._exit(CONNECTION_LOST)
        raise
    sys.stdout.flush()
    sys.stderr.flush()
    # Unlike sys.exit, this does not wait for the model's threads, which may never end.
    os._exit(0)


def make_worker(data: int, control: int, calls: int, arena: int, *, on_end: Callable[[], None]) -> Worker:
    """Creates a worker, which owns the descriptors. A thread calls `on_end` when the control channel ends."""
    channel = socket(fileno=data)
    connection = DataChannel(channel, Arena(arena, lower=False))
    os.close(arena)
    worker = Worker(channel, connection, Caller(socket(fileno=calls), connection))
    watcher = ControlChannel(socket(fileno=control), connection, worker.stop, on_end)
    threading.Thread(target=watcher.serve, name="backline-control", daemon=True).start()
    return worker


def _forked(*descriptors: int) -> None:
    """Closes the channels in a process that the model has forked, and makes that process end with its
    parent.
    """
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:
            continue
    end_with_parent()


def end_with_parent() -> None:
    """Makes the Linux kernel kill this process when the thread that started it ends (PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


class ControlChannel:
    """The worker's end of the control channel, which is read on a separate thread."""

    def __init__(
        self, control: socket, connection: DataChannel, stop: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        self._socket = control
        self._connection = connection
        self._stop = stop
        self._on_end = on_end
        self._reader = FrameSplitter()

    def serve(self) -> None:
        while True:
            try:
                received = self._socket.recv(_RECEIVE)
            except OSError:
                received = b""
            if not received:
                self._on_end()
                return
            for kind, message, _ in self._reader.feed(received):
                self._take(kind, message)

    def _take(self, kind: Kind, message: Any) -> None:
        if kind is Kind.PING:
            self._connection.take_back(message.numbers)
            self._socket.sendall(frame(Kind.PONG, NumberList(self._connection.take_let_go())))
        elif kind is Kind.CANCEL:
            self._connection.cancel(message.numbers)
        elif kind is Kind.CREDIT:
            self._connection.credit(*message.numbers)
        elif kind is Kind.STOP:
            self._stop()


class Worker:
    """Serves the data channel of a worker process: loads the model, and then runs one batch after another."""

    def __init__(self, data: socket, connection: DataChannel, caller: Caller) -> None:
        self._socket = data
        self._polled = PolledSocket(data)
        #: The buffer for all reads. Allocating a new one for each read would take longer than a small batch,
        #: because the C library maps and unmaps memory for a buffer of this size.
        self._received = bytearray(_RECEIVE)
        self._connection = connection
        self._caller = caller
        self._reader = FrameSplitter()
        self._model: WorkerModel

    def stop(self) -> None:
        """Ends the loop after the batch in progress. May be called on any thread."""
        self._socket.shutdown(SHUT_RD)

    def serve(self) -> None:
        """Serves the data channel until the server closes it or `stop` is called."""
        # The same event loop is used as long as the model is loaded, because the model may keep objects that
        # belong to the loop.
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        frames = self._receive()
        if not frames or not self._load(frames[0][1]):
            return
        if self._model.loaded.concurrency > 1:
            loop.run_until_complete(self._serve_loop())
        else:
            self._serve()
        self._model.close()

    def _receive(self) -> list[tuple[Kind, Any, memoryview]]:
        """Waits for the next frames and returns them, or an empty list at the end of the channel."""
        while True:
            size = self._polled.recv_into(self._received)
            if not size:
                return []
            # A slice of a bytearray is a copy, so a model may write to its inputs, and later reads do not
            # change them.
            frames = self._reader.feed(self._received[:size])
            if frames:
                return frames

    def _load(self, load: WorkerLoad) -> bool:
        self._folder = load.folder
        try:
            self._model = _adapter(load.adapter)(load, self._caller)
            loaded = self._model.loaded
            if is_reshaped(load) and not loaded.completed:
                loaded = self._reshape(load, loaded)
        except BaseException as error:
            # A BacklineError needs no traceback: its message is enough, or the model's traceback is in the
            # log already.
            told = isinstance(error, BacklineError)
            self._connection.send(
                frame(Kind.FAILED, Failed(reason(error, self._folder), "" if told else details(error)))
            )
            return False
        self._connection.send(frame(Kind.LOADED, loaded))
        self._polled.allow(load.busy_poll, SpareCore())
        return True

    def _reshape(self, load: WorkerLoad, loaded: WorkerLoaded) -> WorkerLoaded:
        inputs, outputs = shapes_of(load, loaded)
        self._connection.reshape(inputs.to_model, outputs.to_server)
        return msgspec.structs.replace(loaded, inputs=inputs.specs, outputs=outputs.specs)

    def _serve(self) -> None:
        while frames := self._receive():
            for _, message, payload in frames:
                self._execute(message, payload)

    def _execute(self, message: Execute, payload: memoryview) -> None:
        batch = self._connection.read_batch(message, payload, batched=self._batched)
        began = monotonic_ns()
        try:
            waiting = self._model.execute(batch)
            if waiting is not None:
                raise Internal("the model is asynchronous, but declared that it takes one batch at a time")
            self._check_answered(batch)
        except BaseException as error:
            self._fail(batch, error)
        batch.finish(began, monotonic_ns())

    @property
    def _batched(self) -> bool:
        return self._model.loaded.max_batch_size > 0

    def _check_answered(self, batch: RequestBatch) -> None:
        if self._model.loaded.decoupled or self._model.loaded.deferred:
            return
        for request in batch.requests:
            if not request.answered:
                request.fail(Internal("the model returned without responding to the request"))

    def _fail(self, batch: RequestBatch, error: BaseException) -> None:
        if isinstance(error, BacklineError):
            failure = error
        else:
            print(details(error), file=sys.stderr, flush=True)
            failure = Internal(reason(error, self._folder))
        for request in batch.requests:
            if not request.answered:
                request.fail(failure)

    # running asynchronous models

    async def _serve_loop(self) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        running: set[asyncio.Task[None]] = set()

        def readable() -> None:
            size = self._socket.recv_into(self._received)
            if not size:
                loop.remove_reader(self._socket)
                ended.set()
            for _, message, payload in self._reader.feed(self._received[:size]):
                task = loop.create_task(self._execute_async(message, payload))
                running.add(task)
                task.add_done_callback(running.discard)

        loop.add_reader(self._socket, readable)
        await ended.wait()
        if running:
            await asyncio.wait(running)

    async def _execute_async(self, message: Execute, payload: memoryview) -> None:
        batch = self._connection.read_batch(message, payload, batched=self._batched)
        began = monotonic_ns()
        try:
            waiting = self._model.execute(batch)
            if isawaitable(waiting):
                await waiting
            self._check_answered(batch)
        except BaseException as error:
            self._fail(batch, error)
        batch.finish(began, monotonic_ns())


def _adapter(name: str) -> Adapter:
    # These are imported here, because a worker needs the imports of only one kind of model.
    match name:
        case "python":
            from backline.workers.child.python_model import load
        case _ if "." in name:
            # `workers` must not import the rooms that use it (see ARCHITECTURE.md). So a room that has its
            # own kind of model passes the name of the module that creates the model.
            load = import_module(name).load
        case _:
            raise Internal(f"a worker has no adapter '{name}'")
    return load
