"""Collects the responses to a request for a caller that takes the responses one by one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from backline.engine.ticket import Ticket
from backline.engine.tracing import Trace
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferRequest, InferResponse, ResponseFlow

#: The model is paused once this many responses to a request wait for the caller to take them.
MAX_WAITING = 64
#: The model is paused once the waiting responses to a request have this many bytes.
MAX_WAITING_BYTES = 1024 * 1024


def response_size(response: InferResponse) -> int:
    """Returns the number of bytes in the tensors of a response."""
    size = 0
    for tensor in response.outputs:
        data = tensor.data
        size += sum(map(len, data.reshape(-1).tolist())) if data.dtype.kind == "O" else data.nbytes
    return size


class Responses:
    """An asynchronous iterator over the responses to a request. It creates the request's ticket.

    The model is paused if MAX_WAITING responses, or responses with MAX_WAITING_BYTES bytes, have not been
    taken yet. If the request fails, the iterator first returns the responses that came before the error, and
    then raises the error. A caller that does not take all responses must close the iterator, which cancels
    the request. Used only on the event loop.
    """

    def __init__(self, request: InferRequest, trace: Trace | None = None) -> None:
        self._flow = ResponseFlow()
        self._waiting: deque[tuple[InferResponse, int]] = deque()
        self._bytes = 0
        self._error: BacklineError | None = None
        self._over = False
        self._taker: asyncio.Future[None] | None = None
        #: If set, called with each response that arrives while the caller waits for one. Returns whether it
        #: has taken the response; if not, the iterator returns the response as usual.
        self.offer: Callable[[InferResponse], bool] | None = None
        self.ticket = Ticket(request, self._complete, self._respond, self._flow, trace=trace)

    def _respond(self, _: Ticket, response: InferResponse) -> None:
        if self._over:
            return
        # Invariant: while the caller waits, there are no earlier responses.
        if self._taker is not None and self.offer is not None and self.offer(response):
            return
        size = response_size(response)
        self._waiting.append((response, size))
        self._bytes += size
        if len(self._waiting) >= MAX_WAITING or self._bytes >= MAX_WAITING_BYTES:
            self._flow.pause()
        self._wake()

    def _complete(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        if response is not None:  # the model is not decoupled
            self._respond(ticket, response)
        self._error = error
        self._over = True
        self._wake()

    def _wake(self) -> None:
        taker, self._taker = self._taker, None
        if taker is not None and not taker.done():
            taker.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> InferResponse:
        """Returns the next response. Raises BacklineError if the request has failed."""
        while not self._waiting:
            if self._over:
                error, self._error = self._error, None
                raise error or StopAsyncIteration
            self._taker = asyncio.get_running_loop().create_future()
            await self._taker
        response, size = self._waiting.popleft()
        self._bytes -= size
        if (
            self._flow.paused
            and len(self._waiting) <= MAX_WAITING // 2
            and self._bytes <= MAX_WAITING_BYTES // 2
        ):
            self._flow.resume()
        return response

    def close(self) -> None:
        """Stops the iteration, and cancels the request unless it has ended."""
        self._waiting.clear()
        if not self._over:
            self._over = True
            self.ticket.cancel()
            self._flow.resume()
        self._wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
