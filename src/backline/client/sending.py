"""A request that is on its way to one server, and how its outcome is reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

T = TypeVar("T")

#: Receives the response or the error of a request, later than the call that sends the request.
OnOutcome: TypeAlias = Callable[[T | None, BaseException | None], None]


class Sending(Protocol):
    """A request on its way to one server."""

    def abandon(self) -> None:
        """Gives the request up, because nobody waits for the outcome any more. Nothing is reported then."""


class TaskSending(Generic[T]):
    """A request that a coroutine sends, in a task."""

    __slots__ = ("_on_outcome", "_task")

    def __init__(self, request: Coroutine[Any, Any, T], on_outcome: OnOutcome[T]) -> None:
        self._on_outcome: OnOutcome[T] | None = on_outcome
        self._task = asyncio.get_running_loop().create_task(request)
        self._task.add_done_callback(self._ended)

    def abandon(self) -> None:
        self._on_outcome = None
        self._task.cancel()

    def _ended(self, task: asyncio.Task[T]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        report, self._on_outcome = self._on_outcome, None
        if report is not None:
            report(None if error is not None else task.result(), error)
