"""The requests that a model in a worker process receives, with the methods to respond to them."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from backline.workers.channel.arena import when_unused
from backline.workers.channel.protocol import (
    WINDOW,
    Kind,
    Parameter,
    Part,
    RequestFailure,
    RequestNote,
    Result,
    frame,
)
from backline_client.values.errors import BacklineError
from backline_client.values.tensor import Tensor

if TYPE_CHECKING:
    from backline.workers.child.connection import DataChannel

Outputs: TypeAlias = Sequence[Tensor]
NO_NOTE = RequestNote()


class WorkerRequest:
    """One request. A model responds once with `answer` or `fail`. A decoupled model calls `send` any number
    of times, and then `end`, `answer` or `fail`.

    These methods may be called on any thread, even after `WorkerModel.execute` has returned. `inputs` maps
    names to tensors.
    """

    __slots__ = (
        "_batch",
        "_credit",
        "_first",
        "_inputs",
        "_note",
        "_on_credit",
        "answered",
        "cancelled",
        "number",
        "on_abandon",
        "rows",
    )

    def __init__(
        self,
        batch: RequestBatch,
        number: int,
        note: RequestNote,
        inputs: Mapping[str, Tensor],
        first: int,
        rows: int,
    ) -> None:
        self._batch = batch
        self._note = note
        #: The number of responses that may still be sent. Guarded by the condition `DataChannel.credits`.
        self._credit = WINDOW
        self._on_credit: Callable[[], None] | None = None
        #: The inputs of the request or, if `_first` is not negative, the inputs of all requests in its part,
        #: in which the request's rows begin at `_first`.
        self._inputs = inputs
        self._first = first
        self.number = number
        #: The number of rows of the batch that belong to the request; 1 if the model takes no batches.
        self.rows = rows
        #: Whether the request is cancelled. Set by another thread.
        self.cancelled = False
        #: Called on another thread when the request is cancelled.
        self.on_abandon: Callable[[], object] | None = None
        self.answered = False

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """The input tensors by name, or an empty mapping once they are released."""
        if self._first >= 0:
            self._inputs = _rows(self._inputs, self._first, self._first + self.rows)
            self._first = -1
        return self._inputs

    def let_go(self) -> None:
        """Releases the request's inputs."""
        self._inputs, self._first = {}, -1

    @property
    def id(self) -> str:
        return self._note.id

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return self._note.parameters

    @property
    def wanted(self) -> Sequence[str] | None:
        """The names of the requested outputs, or None for all."""
        return self._note.outputs

    @property
    def sequence(self) -> int | str:
        """The id of the request's sequence, or 0 for none."""
        return self._note.sequence

    @property
    def sequence_start(self) -> bool:
        return self._note.sequence_start

    @property
    def sequence_end(self) -> bool:
        return self._note.sequence_end

    @property
    def queue_timeout_us(self) -> int:
        """The maximum time that the request was allowed to wait in a queue, in microseconds, or 0 for no
        limit.
        """
        return self._note.queue_timeout_us

    @property
    def trace(self) -> str:
        """The request's trace context as JSON, or "" if the request is not traced."""
        return self._note.trace

    def answer(self, outputs: Outputs, parameters: Mapping[str, Parameter] | None = None) -> None:
        """Sends the only response, or the last one."""
        self._batch.answer((self,), outputs, parameters)

    def fail(self, error: BacklineError) -> None:
        """Fails the request."""
        self._batch.fail(self, error)

    def send(self, outputs: Outputs, parameters: Mapping[str, Parameter] | None = None) -> None:
        """Sends a response other than the last one. Blocks while the client does not read responses."""
        with self._batch.credits:
            self._batch.credits.wait_for(self._take_credit)
        if not self.cancelled:
            self._batch.send(self, outputs, parameters)

    async def send_async(self, outputs: Outputs, parameters: Mapping[str, Parameter] | None = None) -> None:
        """The asynchronous counterpart of `send`. Await each call before making the next one."""
        loop = asyncio.get_running_loop()
        welcome = asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(welcome.set)

        while True:
            with self._batch.credits:
                if self._take_credit():
                    break
                self._on_credit = wake
            await welcome.wait()
            welcome.clear()
        if not self.cancelled:
            self._batch.send(self, outputs, parameters)

    def _take_credit(self) -> bool:
        if self.cancelled:
            return True
        if self._credit == 0:
            return False
        self._credit -= 1
        return True

    def may_send(self, count: int) -> None:
        """Adds the credit for further responses that the server has granted."""
        with self._batch.credits:
            self._credit += count
            self._batch.credits.notify_all()
            if self._on_credit is not None:
                self._on_credit()

    def cancel(self) -> None:
        """Cancels the request. From now on, `send` returns immediately and sends nothing."""
        self.cancelled = True
        self.may_send(0)  # wakes a `send` that waits for credit, which then sees `cancelled`
        if self.on_abandon is not None:
            self.on_abandon()

    def reschedule(self) -> None:
        """Ends this run of the request without a response, and makes the server run the request again."""
        self._batch.reschedule(self)

    def end(self) -> None:
        """Ends the request without a further response."""
        self._batch.end(self)


@dataclass(slots=True)
class _QueuedResponse:
    numbers: list[int]
    rows: list[int]
    outputs: Outputs
    parameters: Mapping[str, Parameter]
    more: bool = False


class _Again:
    """The outcome of a request that the model wants to run again."""


_AGAIN = _Again()


@dataclass(slots=True)
class _Outcome:
    """The content collected for the next RESULT message."""

    answers: list[_QueuedResponse] = field(default_factory=list)
    failures: list[RequestFailure] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    rescheduled: list[int] = field(default_factory=list)


class RequestBatch:
    """A batch of requests, as the model receives it."""

    def __init__(self, connection: DataChannel, number: int, block: np.ndarray | None, block_at: int) -> None:
        self._connection = connection
        self.number = number
        #: The shared memory that holds the inputs, if they are large.
        self._block = block
        self._block_at = block_at
        self._outcome = _Outcome()
        self._executing = True
        self.requests: list[WorkerRequest] = []
        #: The number of rows of all requests together.
        self.rows = 0
        #: The inputs by name, concatenated along the first dimension. None if the requests differ in the
        #: names or shapes of their inputs, or if the model takes no batches.
        self.columns: Mapping[str, Tensor] | None = None

    @property
    def credits(self) -> threading.Condition:
        """The condition that is notified when a request of this worker may send more responses."""
        return self._connection.credits

    def answer(
        self,
        requests: Sequence[WorkerRequest],
        outputs: Outputs,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> None:
        """Responds to requests. The outputs of several requests are concatenated, like the inputs in
        `columns`.
        """
        rows = [request.rows for request in requests] if len(requests) > 1 else []
        self._add(
            requests,
            _QueuedResponse([request.number for request in requests], rows, outputs, parameters or {}),
        )

    def send(
        self, request: WorkerRequest, outputs: Outputs, parameters: Mapping[str, Parameter] | None
    ) -> None:
        """Sends a response; see WorkerRequest.send."""
        with self._connection.lock:
            if request.answered:
                raise RuntimeError("the last response to this request has already been sent")
            self._outcome.answers.append(
                _QueuedResponse([request.number], [], outputs, parameters or {}, more=True)
            )
            self._flush(done=False)

    def end(self, request: WorkerRequest) -> None:
        """Ends a request; see WorkerRequest.end."""
        self._add((request,), None)

    def reschedule(self, request: WorkerRequest) -> None:
        """Reschedules a request; see WorkerRequest.reschedule."""
        self._add((request,), _AGAIN)

    def fail(self, request: WorkerRequest, error: BacklineError) -> None:
        """Fails a request; see WorkerRequest.fail."""
        self._add(
            (request,), RequestFailure(request.number, type(error).__name__, error.message, error.retry_after)
        )

    def _add(
        self, requests: Sequence[WorkerRequest], outcome: _QueuedResponse | RequestFailure | _Again | None
    ) -> None:
        # The lock ensures that each request gets exactly one last response even if two threads respond.
        with self._connection.lock:
            for request in requests:
                if request.answered:
                    raise RuntimeError("the last response to this request has already been sent")
            for request in requests:
                request.answered = True
                self._connection.open.pop(request.number, None)
            if isinstance(outcome, _QueuedResponse):
                self._outcome.answers.append(outcome)
            elif isinstance(outcome, _Again):
                self._outcome.rescheduled.extend(request.number for request in requests)
            elif outcome is not None:
                self._outcome.failures.append(outcome)
            else:
                self._outcome.ended.extend(request.number for request in requests)
            if not self._executing:
                self._flush(done=False)

    def _flush(self, *, done: bool, began: int = 0, ran: int = 0) -> None:
        outcome, self._outcome = self._outcome, _Outcome()
        columns, payload, block = self._connection.pack([answer.outputs for answer in outcome.answers])
        parts = [
            Part(answer.numbers, answer.rows, packed, dict(answer.parameters), answer.more)
            for answer, packed in zip(outcome.answers, columns, strict=True)
        ]
        outcome.answers.clear()
        kept = False
        if done and self._block is not None:
            # Small outputs may be views of the block. The payload is copied, so that these views do not keep
            # the block alive, and this RESULT can return the block.
            payload = list(map(bytes, payload))
            kept = self._let_go()
        result = Result(
            self.number,
            parts,
            outcome.failures,
            outcome.ended,
            done,
            block,
            kept,
            began,
            ran,
            outcome.rescheduled,
        )
        self._connection.send(frame(Kind.RESULT, result, payload))

    def _let_go(self) -> bool:
        """Releases the inputs of the batch in shared memory. Returns whether the model still holds views of
        them.

        If the model holds no views, the RESULT returns the block to the server. Otherwise the block is
        returned once the last view is freed, because the model's arrays would change if the server reused the
        block earlier.
        """
        assert self._block is not None, "the inputs are in shared memory"
        found = weakref.ref(self._block)
        self._block = self.columns = None
        for request in self.requests:
            if request.answered:
                request.let_go()
        # CPython has freed the block by now, unless the model or an unanswered request still refers to it.
        block = found()
        if block is None:
            return False
        let_go, at = self._connection.let_go, self._block_at
        when_unused(block, lambda: let_go.append(at))
        return True

    def finish(self, began: int, ran: int) -> None:
        """Sends the collected responses, and reports that the worker is free for the next batch. Called once
        `execute` has returned.
        """
        with self._connection.lock:
            self._executing = False
            self._flush(done=True, began=began, ran=ran)


def _rows(tensors: Mapping[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    rows = {}
    for name, tensor in tensors.items():
        data = tensor.data[start:end]
        rows[name] = Tensor(name, tensor.datatype, data.shape, data)
    return rows
