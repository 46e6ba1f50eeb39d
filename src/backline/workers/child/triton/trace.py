"""Where in a trace a request stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from backline.workers.child.requests import WorkerRequest

#: The requests that `execute` was called with, in the thread or the coroutines of that call; their numbers.
_SERVED: ContextVar[tuple[int, ...]] = ContextVar("served", default=())

#: The context of a request whose trace is not for others to add to.
_NOWHERE = "{}"


class InferenceTrace:
    """The trace that a request belongs to: a model hands it on to the models that it asks."""

    __slots__ = ("_context", "_number")

    def __init__(self, request: WorkerRequest | None = None) -> None:
        self._context = "" if request is None else request.trace
        self._number = request.number if request is not None and request.trace else 0

    def get_context(self) -> str | None:
        """The OpenTelemetry context as JSON, with `traceparent`; None for a request that is in no such trace."""
        return None if self._context in ("", _NOWHERE) else self._context

    @property
    def requests(self) -> tuple[int, ...]:
        """The numbers of the requests in whose traces a call is that has this one: those that are served where it has none."""
        return (self._number,) if self._number else _SERVED.get()


@contextmanager
def serving(requests: Sequence[WorkerRequest]) -> Iterator[None]:
    """Calls from within, and from coroutines that begin within, are part of the traces of these requests, where they name no other."""
    token = _SERVED.set(tuple(request.number for request in requests if request.trace))
    try:
        yield
    finally:
        _SERVED.reset(token)
