"""Threads for work that would block the event loop, such as decoding megabytes of JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from heapq import heappop, heappush
from itertools import count
from threading import local
from typing import Any, TypeVar

from backline.wire.application import Call, HttpRequest, UnaryCall
from backline.wire.peers import address_of
from backline_client.values.datatypes import DataType
from backline_client.values.tensor import Tensor

#: The maximum size in bytes of JSON, BYTES tensors or protobuf fields that are decoded on the event loop:
#: even a hostile request of this size blocks the loop for less than 5 ms. Anything larger is decoded on a
#: thread, in steps between which the loop can run.
LARGE = 64 * 1024
#: The maximum number of inputs, outputs and parameters in a request that is read on the event loop. Reading
#: each takes a few microseconds, so even a small request with thousands of them is read on a thread.
MANY = 512
#: The maximum number of elements in a tensor that is encoded as JSON or BYTES on the event loop. A thread
#: encodes larger tensors in pieces of this size.
PIECE = 8 * 1024
#: The maximum size in bytes of work that runs in the lane for small work: a request of this size takes a few
#: hundredths of a second, whereas the largest takes seconds.
SMALL = 1024 * 1024
Result = TypeVar("Result")


def is_long(tensor: Tensor) -> bool:
    """Returns whether it takes too long to encode a tensor as JSON on the event loop."""
    if tensor.data.size > PIECE:
        return True
    return tensor.datatype is DataType.BYTES and _length(tensor) > LARGE


def _length(tensor: Tensor) -> int:
    return sum(map(len, tensor.data.reshape(-1).tolist()))


def byte_count(tensors: Iterable[Tensor]) -> int:
    """Returns the size of tensors in bytes. An element of BYTES has 8 bytes in addition to its own."""
    return sum(
        tensor.data.nbytes + (_length(tensor) if tensor.datatype is DataType.BYTES else 0)
        for tensor in tensors
    )


def turn_of(caller: HttpRequest | Call) -> str:
    """Returns whose turn the work for a request takes: the caller's, if callers are configured, otherwise
    its address's.
    """
    name: str = "" if caller.identity is None else caller.identity.holder
    return name or str(address_of((caller.peer,)))


class LargeRequest(Exception):
    """Raised when reading a request would block the event loop for too long."""


class Abandoned(Exception):
    """Raised in work for a client that has disconnected."""


#: The job that this thread runs.
_current = local()


def stop_if_abandoned() -> None:
    """Raises Abandoned if the client has disconnected for which this thread works. Called by long work,
    between its pieces.
    """
    job = getattr(_current, "job", None)
    if job is not None and job.future.cancelled():
        raise Abandoned


class OffLoop:
    """Runs work in two lanes, one for small work and one for all other work.

    Each lane runs one piece of work at a time, to limit the memory that decoding takes.
    """

    def __init__(self) -> None:
        self._small = _Lane()
        self._large = _Lane()

    def run(
        self,
        caller: HttpRequest | UnaryCall,
        work: Callable[[], Result],
        size: int,
        done: Callable[[asyncio.Future[Result]], None],
    ) -> None:
        """Runs `work`, of `size` bytes, then calls `done` on the event loop with the finished future.

        If the caller disconnects first, `done` is not called, and `work` does not start or stops early.
        """
        future = self.submit(work, size, turn_of(caller))
        future.add_done_callback(partial(_unless_cancelled, done))
        caller.on_abandon = partial(_cancel, future)

    def submit(self, work: Callable[[], Result], size: int, turn: str) -> asyncio.Future[Result]:
        """Runs `work`, of `size` bytes, in its turn (see `turn_of`). Cancelled work does not start."""
        return (self._small if size <= SMALL else self._large).submit(work, size, turn)


def _unless_cancelled(done: Callable[[asyncio.Future[Result]], None], future: asyncio.Future[Result]) -> None:
    if not future.cancelled():
        done(future)
    del future  # its error holds the frame of `done`, and so this one


def _cancel(future: asyncio.Future[Any]) -> None:
    future.cancel()


class _Job:
    """A piece of work that waits for its lane, or runs in it. `work` is None once it is done or cancelled."""

    __slots__ = ("finish", "future", "number", "turn", "work")

    def __init__(
        self, work: Callable[[], Any], future: asyncio.Future[Any], turn: str, finish: int, number: int
    ) -> None:
        self.work: Callable[[], Any] | None = work
        self.future = future
        self.turn = turn
        self.finish = finish
        self.number = number
        future.add_done_callback(self._over)

    def __lt__(self, other: _Job) -> bool:
        return (self.finish, self.number) < (other.finish, other.number)

    def run(self) -> Any:
        work = self.work
        if work is None:
            return None
        _current.job = self
        try:
            return work()
        finally:
            _current.job = None

    def _over(self, _: asyncio.Future[Any]) -> None:
        self.work = None  # a request of many megabytes


class _Lane:
    """One thread, for which callers take turns by the size of their work: self-clocked fair queueing
    (Golestani, 1994).

    Work gets the number at which it would be finished if the lane worked on all callers at the same time, a
    byte of each in turn, and the lowest number runs first. So a caller waits neither for the other work of a
    caller that has sent much, nor for work that is larger than its own, except for what is running.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: list[_Job] = []
        self._numbers = count()
        #: The `finish` of the work that runs.
        self._clock = 0
        #: The `finish` of the last work of each caller that waits.
        self._last: dict[str, int] = {}
        self._busy = False

    def submit(self, work: Callable[[], Any], size: int, turn: str) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        finish = self._last[turn] = max(self._clock, self._last.get(turn, 0)) + size
        heappush(self._waiting, _Job(work, future, turn, finish, next(self._numbers)))
        if not self._busy:
            self._start_next()
        return future

    def _start_next(self) -> None:
        self._busy = False
        while self._waiting and not self._busy:
            job = heappop(self._waiting)
            self._clock = job.finish
            if self._last.get(job.turn) == job.finish:
                del self._last[job.turn]
            if job.work is not None and not job.future.done():
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, thread_name_prefix="json")
                self._thread.submit(self._run, job, asyncio.get_running_loop())
                self._busy = True

    def _run(self, job: _Job, loop: asyncio.AbstractEventLoop) -> None:
        """Runs a job on the thread of this lane."""
        try:
            result = job.run()
        except BaseException as error:
            self._report(loop, job, None, error)
        else:
            self._report(loop, job, result, None)

    def _report(
        self, loop: asyncio.AbstractEventLoop, job: _Job, result: Any, error: BaseException | None
    ) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._ended, job, result, error)

    def _ended(self, job: _Job, result: Any, error: BaseException | None) -> None:
        future = job.future
        del job.future  # it would keep the error, whose frames keep the job and the request
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        self._start_next()
