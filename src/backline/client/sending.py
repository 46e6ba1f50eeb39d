"""A request in flight to one server, and how its outcome is reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

T = TypeVar("T")

#: Receives the response or the error of a request. Never called before the function that sends the request
#: has returned.
OnOutcome: TypeAlias = Callable[[T | None, BaseException | None], None]


class Sending(Protocol):
    """A request in flight to one server."""

    def abandon(self) -> None:
        """Abandons the request, so that its outcome is no longer reported."""


class TaskSending(Generic[T]):
    """A request that a coroutine sends in an asyncio task."""

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
