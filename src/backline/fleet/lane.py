"""The remote lane: instances that send requests to other servers."""

from __future__ import annotations

import asyncio
from time import monotonic, monotonic_ns
from typing import ClassVar

import msgspec

from backline.backends.backend import RemoteModel
from backline.client.balanced_transport import BalancedTransport
from backline.client.errors import ConnectionFailed, PermissionDenied, ProtocolError
from backline.client.transport import InferCall
from backline.engine.errors import BacklineError, Cancelled, Internal, Unavailable
from backline.engine.statistics import ResponseStatistics
from backline.engine.ticket import Ticket
from backline.engine.values.messages import InferRequest, InferResponse, Parameter
from backline.workers.batch import Batch
from backline.workers.instance import Finished, Instance


class RemoteLane:
    """The instances of a version that other servers serve. Each instance has one request in flight at most.

    Requests are not batched here, because the other servers batch them. Lives on the event loop, except
    `close`. `responses` is set for a decoupled model. `time_limit` applies to requests without a deadline, in
    seconds.
    """

    def __init__(
        self,
        name: str,
        version: str,
        remote: RemoteModel,
        transport: BalancedTransport,
        outputs: tuple[str, ...],
        *,
        time_limit: float,
        responses: ResponseStatistics | None,
    ) -> None:
        self.name = name
        self.version = version
        self.responses = responses
        self._remote = remote
        self._transport = transport
        self._outputs = outputs
        self._time_limit = time_limit
        self._loop = asyncio.get_running_loop()
        self._opening: asyncio.Task[None] | None = None
        #: Whether the names of the servers have been resolved.
        self._opened = False
        self.instances: tuple[Instance, ...] = tuple(
            RemoteInstance(self) for _ in range(remote.max_in_flight)
        )

    async def _open(self) -> BalancedTransport:
        if self._opening is None:
            self._opening = self._loop.create_task(self._transport.open())
        try:
            await asyncio.shield(self._opening)
        except BacklineError:
            self._opening = None  # the names of the servers may resolve later
            raise
        self._opened = True
        return self._transport

    def _response(self, ticket: Ticket, answer: InferResponse) -> InferResponse:
        """Returns the response for the caller. Raises Internal if an output is missing."""
        request = ticket.request
        wanted = request.outputs or self._outputs
        known = {output.name: output for output in answer.outputs}
        missing = [name for name in wanted if name not in known]
        if missing:
            raise Internal(
                f"{self._remote.urls} answered without the output '{missing[0]}' of model"
                f" '{self._remote.model}': do all servers serve the same version?"
            )
        return InferResponse(
            self.name, self.version, request.id, [known[name] for name in wanted], answer.parameters
        )

    async def stream(self, ticket: Ticket) -> None:
        """Passes on the responses of one of the servers, as fast as the caller takes them."""
        request, flow, responses = ticket.request, ticket.flow, self.responses
        assert responses is not None, "the model is decoupled"
        resumed = asyncio.Event()

        def resume() -> None:
            resumed.set()

        if flow is not None:
            flow.on_resume = resume
        index, began = 0, monotonic_ns()
        stream = (await self._open()).stream(self._call(ticket))
        try:
            async for answer in stream:
                now = monotonic_ns()
                empty = not answer.outputs
                responses.succeeded(index, request.arrived_ns, began, now, now, empty=empty)
                index, began = index + 1, now
                ticket.respond(
                    InferResponse(self.name, self.version, request.id, answer.outputs, answer.parameters)
                )
                while flow is not None and flow.paused:
                    resumed.clear()
                    await resumed.wait()
        except BaseException as error:
            count = responses.failed if isinstance(error, BacklineError) else responses.cancelled
            count(index, began, monotonic_ns())
            raise
        finally:
            if flow is not None:
                flow.on_resume = None
            await stream.aclose()

    def _call(self, ticket: Ticket) -> InferCall:
        request = ticket.request
        deadline = ticket.waits_until
        left = self._time_limit if deadline is None else max(deadline - monotonic(), 0.001)
        return InferCall(
            self._remote.model,
            tuple(request.inputs.values()),
            self._remote.version,
            request.id,
            request.outputs or self._outputs,
            _parameters(request),
            min(left, self._time_limit),
            () if ticket.trace is None else _trace_fields(ticket.trace.context),
        )

    def explain(self, error: BaseException) -> BacklineError:
        """Returns the error for the caller, who does not know about the other servers."""
        where = f"model '{self.name}' is served by {self._remote.urls}"
        if isinstance(error, asyncio.CancelledError):
            return Cancelled(f"the request to model '{self.name}' was cancelled")
        if isinstance(error, ConnectionFailed):
            return Unavailable(f"{where}: {error.message}", error.retry_after)
        if isinstance(error, (PermissionDenied, ProtocolError)):
            return Internal(f"{where}: {error.message}")
        return error if isinstance(error, BacklineError) else Internal(f"{where}: {error!r}")

    def run(self, instance: Instance, batch: Batch, finished: Finished) -> None:
        """Starts to send the batch's only request."""
        if self._opened and self.responses is None:
            self._send(instance, batch, finished)
            return
        batch.gathered_ns = monotonic_ns()
        task = self._loop.create_task(self._run(batch))

        def end(task: asyncio.Task[InferResponse | None]) -> None:
            # Not at the end of the task: of a task that is cancelled before it begins, no code runs.
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            batch.outcomes = [task.result() if error is None else self.explain(error)]
            batch.on_abandon = None
            batch.ran_ns = batch.ended_ns = monotonic_ns()
            finished(instance, batch)

        task.add_done_callback(end)
        batch.on_abandon = task.cancel

    def _send(self, instance: Instance, batch: Batch, finished: Finished) -> None:
        """Sends a request without a separate task, which would cost two more turns of the loop."""
        ticket = batch.tickets[0]
        batch.gathered_ns = monotonic_ns()
        batch.executed = True

        def end(answer: InferResponse | None, error: BaseException | None) -> None:
            try:
                batch.outcomes = [
                    self.explain(error or asyncio.CancelledError())
                    if answer is None
                    else self._response(ticket, answer)
                ]
            except BacklineError as wrong:
                batch.outcomes = [wrong]
            batch.on_abandon = None
            batch.ran_ns = batch.ended_ns = monotonic_ns()
            finished(instance, batch)

        def abandon() -> None:
            batch.on_abandon = None
            call.abandon()
            # Called later, because the scheduler is in the middle of cancelling the request.
            self._loop.call_soon(end, None, asyncio.CancelledError())

        try:
            request = self._call(ticket)
            call = self._transport.start_infer(request, request.timeout, end)
        except BacklineError as error:
            end(None, error)
            return
        batch.on_abandon = abandon

    async def _run(self, batch: Batch) -> InferResponse | None:
        """The response to the batch's only request; None if its responses were passed on one by one."""
        ticket = batch.tickets[0]
        batch.executed = True
        if self.responses is None:
            return self._response(ticket, await (await self._open()).infer(self._call(ticket)))
        await self.stream(ticket)
        return None

    async def close(self) -> None:
        """Closes the connections to the servers."""
        await self._transport.close()


class RemoteInstance:
    """Sends one request at a time to one of the servers."""

    off_loop: ClassVar[bool] = True

    def __init__(self, lane: RemoteLane) -> None:
        self._lane = lane

    def run(self, batch: Batch, finished: Finished) -> None:
        self._lane.run(self, batch, finished)

    def close(self) -> None:
        """Does nothing: the connections belong to the lane."""


def _parameters(request: InferRequest) -> dict[str, Parameter] | None:
    """Returns the caller's parameters, including the priority and sequence that this server took out."""
    parameters = dict(request.parameters or {})
    if request.priority:
        parameters["priority"] = request.priority
    if request.sequence is not None:
        step = request.sequence
        parameters |= {"sequence_id": step.id, "sequence_start": step.start, "sequence_end": step.end}
    return parameters or None


def _trace_fields(context: str) -> tuple[tuple[str, str], ...]:
    """Returns the header fields `traceparent` and `tracestate`, so that the other server continues the trace.

    `context` is a JSON object, or empty for a trace that only this server knows.
    """
    fields: dict[str, str] = msgspec.json.decode(context) if context else {}
    return tuple((name, text) for name, text in fields.items() if text.isascii() and text.isprintable())
