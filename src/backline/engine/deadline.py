"""Deadlines that end a request wherever it is by then: in a queue, in a run, in a step of an ensemble."""

from __future__ import annotations

import asyncio
from time import monotonic

from backline.engine.errors import BacklineError, DeadlineExceeded
from backline.engine.messages import InferRequest, InferResponse


class Watch:
    """Answers a request with DeadlineExceeded, and cancels it, unless it is done at `deadline` (of time.monotonic()).

    Made before the request is submitted, and to be stopped if it is refused. It stops by itself when the request is done or cancelled.
    """

    __slots__ = ("_complete", "_loop", "_request", "_timer", "deadline")

    def __init__(self, request: InferRequest, deadline: float) -> None:
        self.deadline = deadline
        self._request: InferRequest | None = request
        self._complete = request.on_complete
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(deadline - monotonic(), self._over)
        request.on_complete = self._completed
        request.watch = self

    def bring_forward(self, deadline: float) -> None:
        """The request is to end earlier, if that is earlier."""
        if deadline < self.deadline:
            self.deadline = deadline
            self._timer.cancel()
            self._timer = self._loop.call_later(deadline - monotonic(), self._over)

    def stop(self) -> None:
        """The request is not watched any more; it and the watch do not know each other any more."""
        self._timer.cancel()
        request, self._request = self._request, None
        if request is not None:
            request.on_complete = self._complete
            request.watch = None

    def _completed(
        self, request: InferRequest, response: InferResponse | None, error: BacklineError | None
    ) -> None:
        self.stop()
        self._complete(request, response, error)

    def _over(self) -> None:
        request = self._request
        if request is None:
            return
        took = (monotonic() - request.arrived_ns / 1e9) * 1000
        request.cancel()
        message = f"The deadline of the request passed {took:.0f} ms after it came, before model '{request.model_name}' had answered"
        self._complete(request, None, DeadlineExceeded(message))


def watch(request: InferRequest, deadline: float) -> None:
    """Ends a request at a deadline, or at an earlier one that it has already."""
    if request.deadline is None or request.deadline > deadline:
        request.deadline = deadline
    if request.waits_until is None or request.waits_until > deadline:
        request.waits_until = deadline
    if request.watch is None:
        Watch(request, deadline)
    else:
        request.watch.bring_forward(deadline)


def unwatch(request: InferRequest) -> None:
    """For a request that was refused."""
    if request.watch is not None:
        request.watch.stop()
