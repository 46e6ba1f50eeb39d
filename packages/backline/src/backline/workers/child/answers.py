"""Reads the server's responses to a model's calls and questions, and delivers each to the thread or coroutine
that waits for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf, isfinite
from queue import Empty, SimpleQueue
from socket import socket
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from backline.workers.channel.protocol import WINDOW, FrameSplitter, Kind
from backline_client.values.errors import BacklineError, DeadlineExceeded, Internal
from backline_client.values.messages import InferResponse

if TYPE_CHECKING:
    from backline.workers.child.caller import Caller
_RECEIVE = 1 << 18
Take: TypeAlias = Callable[[Kind, Any, memoryview], None]


@dataclass(frozen=True, slots=True)
class End:
    """The end of a call, or the result of a `Question`. `alone` means that the end came in a separate
    message, without a response.
    """

    value: Any = None
    alone: bool = True


Heard: TypeAlias = InferResponse | BacklineError | End
Deliver: TypeAlias = Callable[[Heard], object]


class Mailbox:
    """A queue from which one thread takes answers that another thread adds."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Heard] = SimpleQueue()
        self.put = self._queue.put

    @property
    def empty(self) -> bool:
        return self._queue.empty()

    def get(self, timeout: float) -> Heard:
        """Returns the next item. Raises DeadlineExceeded if none arrives within `timeout` seconds."""
        try:
            return self._queue.get(timeout=timeout if isfinite(timeout) else None)
        except Empty:
            raise DeadlineExceeded(f"the server did not respond within {timeout:.3g} s") from None


class AsyncMailbox:
    """A queue from which one coroutine takes answers that any thread adds."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Heard] = asyncio.Queue()

    def put(self, heard: Heard) -> None:
        """Delivers an answer. May be called on any thread."""
        with suppress(RuntimeError):  # the loop is closed, so no coroutine waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, heard)

    async def get(self, timeout: float) -> Heard:
        """Returns the next item. Raises DeadlineExceeded if none arrives within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout if isfinite(timeout) else None):
                return await self._queue.get()
        except TimeoutError:
            raise DeadlineExceeded(f"the server did not respond within {timeout:.3g} s") from None


def response_of(heard: Heard) -> InferResponse:
    """Returns the response of a model that is not decoupled. Raises the BacklineError that arrived instead,
    or Internal if the call ended without a response.
    """
    if isinstance(heard, InferResponse):
        return heard
    raise heard if isinstance(heard, BacklineError) else Internal("the called model sent no response")


def value_of(heard: Heard) -> Any:
    """Returns the value that the server sent as the result of a `Question`. Raises the BacklineError that
    arrived instead, or Internal if a response arrived.
    """
    if isinstance(heard, End):
        return heard.value
    raise heard if isinstance(heard, BacklineError) else Internal("the server sent a response to a query")


class ChannelReader:
    """Reads the calls channel. If only one thread waits for answers, that thread reads, which saves a thread
    switch. Otherwise a dedicated thread reads.

    `take` is called with each frame, `on_end` when no more frames can arrive, and `awaited` to find out
    whether any thread waits. All three are called on the thread that reads.
    """

    def __init__(
        self, channel: socket, take: Take, on_end: Callable[[], None], awaited: Callable[[], bool]
    ) -> None:
        self._channel = channel
        self._take = take
        self._on_end = on_end
        self._awaited = awaited
        self._frames = FrameSplitter()
        self._received = bytearray(_RECEIVE)
        #: Held by the thread that reads the channel.
        self._reading = threading.Lock()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self.ended = False

    def wait(self, heard: Mailbox) -> None:
        """Reads until the mailbox has an item or the channel ends. Returns immediately if another thread is
        already reading.
        """
        if not self._reading.acquire(blocking=False):
            return
        try:
            while heard.empty and not self.ended:
                self._read()
        finally:
            # The lock is released before the check, so that a thread that begins to wait after the check gets
            # the lock and reads.
            self._reading.release()
            if self._awaited():  # other threads relied on this thread to read their answers
                self.listen()

    def listen(self) -> None:
        """Starts a dedicated thread that reads from now on, unless it is already running."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="backline-calls", daemon=True)
                self._thread.start()

    def _listen(self) -> None:
        with self._reading:
            while not self.ended:
                self._read()

    def _read(self) -> None:
        try:
            size = self._channel.recv_into(self._received)
            # A slice of a bytearray is a copy, so a model may write to its arrays, and later reads do not
            # change them.
            for kind, message, payload in self._frames.feed(self._received[:size]):
                self._take(kind, message, payload)
        except OSError:
            size = 0
        except BaseException:
            self._end()
            raise
        if not size:
            self._end()

    def _end(self) -> None:
        self.ended = True
        self._on_end()


class CallStream:
    """An iterator over the responses to a call. The called model pauses while too many of its responses have
    not been read. To stop early, close the stream.
    """

    def __init__(self, caller: Caller, number: int, heard: Mailbox) -> None:
        self._heard = heard
        self._credit = _Credit(caller, number)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> InferResponse:
        response = self.take()
        if response is None:
            raise StopIteration
        return response

    def take(self, timeout: float = inf) -> InferResponse | None:
        """Returns the next response, or None at the end. Raises DeadlineExceeded if none arrives within
        `timeout` seconds, and the BacklineError with which the call failed.
        """
        return None if self._credit.over else self._credit.taken(self._heard.get(timeout))

    def close(self) -> None:
        """Cancels the call. May be called while another thread waits in `next`."""
        self._credit.close()
        self._heard.put(End(alone=False))

    @property
    def ended_alone(self) -> bool:
        """Whether the end of the stream came in a separate message, after the last response."""
        return self._credit.ended_alone


class AsyncCallStream:
    """An asynchronous iterator over the responses to a call; see CallStream."""

    def __init__(self, caller: Caller, number: int, heard: AsyncMailbox) -> None:
        self._heard = heard
        self._credit = _Credit(caller, number)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> InferResponse:
        response = await self.take()
        if response is None:
            raise StopAsyncIteration
        return response

    async def take(self, timeout: float = inf) -> InferResponse | None:
        """Returns the next response, or None at the end. Raises as CallStream.take does."""
        return None if self._credit.over else self._credit.taken(await self._heard.get(timeout))

    def close(self) -> None:
        """Cancels the call."""
        self._credit.close()
        self._heard.put(End())


class _Credit:
    """Counts the responses that have been read, and grants the server credit for as many more, half a window
    at a time.
    """

    def __init__(self, caller: Caller, number: int) -> None:
        self._caller = caller
        self._number = number
        self._taken = 0
        self.over = False
        self.ended_alone = False

    def taken(self, heard: Heard) -> InferResponse | None:
        if not isinstance(heard, InferResponse):
            self.over = True
            if isinstance(heard, BacklineError):
                raise heard
            self.ended_alone = heard.alone
            return None
        self._taken += 1
        if self._taken >= WINDOW // 2:
            self._caller.take_more(self._number, self._taken)
            self._taken = 0
        return heard

    def close(self) -> None:
        self.over = True
        self._caller.drop(self._number)
