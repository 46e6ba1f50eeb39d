"""What is heard of a call or a question, and where it waits for who asked: a thread, or a coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from backline.engine import errors
from backline.engine.errors import BacklineError, DeadlineExceeded, Internal
from backline.engine.messages import InferResponse
from backline.workers.channel.protocol import Ended


@dataclass(frozen=True, slots=True)
class End:
    """No further response; of a question, its answer. `alone` says that the last response did not come together with it."""

    value: Any = None
    alone: bool = True


Heard: TypeAlias = InferResponse | BacklineError | End
Deliver: TypeAlias = Callable[[Heard], object]


class Mailbox:
    """What one thread waits for, put there by another one."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Heard] = SimpleQueue()
        self.put = self._queue.put

    @property
    def empty(self) -> bool:
        return self._queue.empty()

    def get(self, timeout: float) -> Heard:
        """What comes next. Raises DeadlineExceeded when nothing has come after so many seconds."""
        try:
            return self._queue.get(timeout=timeout if isfinite(timeout) else None)
        except Empty:
            raise DeadlineExceeded(f"the server gave no answer within {timeout:.3g} s") from None


class AsyncMailbox:
    """What one coroutine waits for, put there by any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Heard] = asyncio.Queue()

    def put(self, heard: Heard) -> None:
        """Called on any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, heard)

    async def get(self, timeout: float) -> Heard:
        """As Mailbox.get."""
        try:
            async with asyncio.timeout(timeout if isfinite(timeout) else None):
                return await self._queue.get()
        except TimeoutError:
            raise DeadlineExceeded(f"the server gave no answer within {timeout:.3g} s") from None


def response_of(heard: Heard) -> InferResponse:
    """The answer of a model that gives one. Raises BacklineError where it is none."""
    if isinstance(heard, InferResponse):
        return heard
    raise heard if isinstance(heard, BacklineError) else Internal("a model that gives one response gave none")


def value_of(heard: Heard) -> Any:
    """The answer to a question. Raises BacklineError where it is none."""
    if isinstance(heard, End):
        return heard.value
    raise heard if isinstance(heard, BacklineError) else Internal("a question was answered by a response")


def failure_of(message: Ended) -> BacklineError:
    """The error that a message tells."""
    kind = getattr(errors, message.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, BacklineError)):
        kind = Internal
    error: BacklineError = kind(message.message)
    error.retry_after = message.retry_after
    return error
