"""A request's position in a trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from backline.workers.child.requests import WorkerRequest

#: The numbers of the requests that `execute` was called with, in its thread and the coroutines that it
#: starts.
_SERVED: ContextVar[tuple[int, ...]] = ContextVar("served", default=())

#: The context of a request whose trace other spans cannot join.
_NOWHERE = "{}"


class InferenceTrace:
    """The trace that a request belongs to; a model passes it on to the models that it calls."""

    __slots__ = ("_context", "_number")

    def __init__(self, request: WorkerRequest | None = None) -> None:
        self._context = "" if request is None else request.trace
        self._number = request.number if request is not None and request.trace else 0

    def get_context(self) -> str | None:
        """The OpenTelemetry context as JSON, with `traceparent`; None if the request has none."""
        return None if self._context in ("", _NOWHERE) else self._context

    @property
    def requests(self) -> tuple[int, ...]:
        """The numbers of the requests whose traces a call with this trace belongs to: by default those
        that `execute` runs.
        """
        return (self._number,) if self._number else _SERVED.get()


@contextmanager
def serving(requests: Sequence[WorkerRequest]) -> Iterator[None]:
    """Calls made within, also by coroutines that start within, belong to these requests' traces unless
    they name another.
    """
    token = _SERVED.set(tuple(request.number for request in requests if request.trace))
    try:
        yield
    finally:
        _SERVED.reset(token)
