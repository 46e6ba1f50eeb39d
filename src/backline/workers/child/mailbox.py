"""Where a thread or a coroutine waits for what arrives for its call or question."""

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
    """No further response; for a question, its answer. `alone` means the last response did not arrive in
    the same message.
    """

    value: Any = None
    alone: bool = True


Heard: TypeAlias = InferResponse | BacklineError | End
Deliver: TypeAlias = Callable[[Heard], object]


class Mailbox:
    """One thread waits here for what another one puts."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Heard] = SimpleQueue()
        self.put = self._queue.put

    @property
    def empty(self) -> bool:
        return self._queue.empty()

    def get(self, timeout: float) -> Heard:
        """The next item. Raises DeadlineExceeded if there is none within `timeout` seconds."""
        try:
            return self._queue.get(timeout=timeout if isfinite(timeout) else None)
        except Empty:
            raise DeadlineExceeded(f"the server gave no answer within {timeout:.3g} s") from None


class AsyncMailbox:
    """One coroutine waits here for what any thread puts."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Heard] = asyncio.Queue()

    def put(self, heard: Heard) -> None:
        """Called on any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, heard)

    async def get(self, timeout: float) -> Heard:
        """See Mailbox.get."""
        try:
            async with asyncio.timeout(timeout if isfinite(timeout) else None):
                return await self._queue.get()
        except TimeoutError:
            raise DeadlineExceeded(f"the server gave no answer within {timeout:.3g} s") from None


def response_of(heard: Heard) -> InferResponse:
    """The response of a model that gives one. Raises the BacklineError that arrived instead."""
    if isinstance(heard, InferResponse):
        return heard
    raise heard if isinstance(heard, BacklineError) else Internal("a model that gives one response gave none")


def value_of(heard: Heard) -> Any:
    """The answer to a question. Raises the BacklineError that arrived instead."""
    if isinstance(heard, End):
        return heard.value
    raise heard if isinstance(heard, BacklineError) else Internal("a question was answered by a response")


def failure_of(message: Ended) -> BacklineError:
    """The error in a message."""
    kind = getattr(errors, message.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, BacklineError)):
        kind = Internal
    error: BacklineError = kind(message.message)
    error.retry_after = message.retry_after
    return error
