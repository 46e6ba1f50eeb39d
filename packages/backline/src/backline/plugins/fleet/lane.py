"""The remote lane: instances that send requests to other servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from time import monotonic, monotonic_ns
from typing import ClassVar

import msgspec

from backline.engine.route import route_fields
from backline.engine.statistics import ResponseStatistics
from backline.engine.ticket import Ticket
from backline.plugins.fleet.backend import RemoteModel
from backline.plugins.fleet.description import Description, describe_over
from backline.plugins.fleet.sent_batch import SentBatch, latest
from backline.wire.grpc.timeout import Deadlines
from backline.workers.batch import Batch
from backline.workers.instance import Finished, Instance
from backline.workers.stacking import split, stack
from backline_client.client.balanced_transport import BalancedTransport
from backline_client.client.errors import ConnectionFailed, PermissionDenied, ProtocolError
from backline_client.client.transport import InferCall
from backline_client.system.busy_poll import BusyPoll
from backline_client.values.errors import BacklineError, Cancelled, Internal, InvalidArgument, Unavailable
from backline_client.values.messages import InferRequest, InferResponse, Parameter
from backline_client.values.tensor import Tensor


class RemoteLane:
    """The instances of a version that other servers serve. Each instance has at most one call in flight.

    The requests of a batch are sent as one call (`SentBatch`). All methods must be called on the event loop.
    `responses`, the counters of responses, is set only for a decoupled model. `time_limit` is the maximum
    duration of a call in seconds, and the only time limit of requests without a deadline. For a decoupled
    model, it limits the wait for each response. `idempotent` says whether a request may run twice.
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
        idempotent: bool = True,
        poll: BusyPoll | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.responses = responses
        self.idempotent = idempotent
        self._remote = remote
        self.urls = remote.urls
        #: The busy poll of the event loop, in which the lane counts the responses that it awaits.
        self.poll = poll or BusyPoll()
        self.transport = transport
        self._outputs = outputs
        self._time_limit = time_limit
        self.loop = asyncio.get_running_loop()
        #: Ends requests whose deadline is earlier than the deadline of the call that carries them.
        self.deadlines = Deadlines(self.loop, lambda: remote.max_in_flight)
        self._opening: asyncio.Task[None] | None = None
        #: Whether the names of the servers have been resolved.
        self._opened = False
        self.instances: tuple[Instance, ...] = tuple(
            RemoteInstance(self) for _ in range(remote.max_in_flight)
        )

    async def _open(self) -> None:
        if self._opening is None:
            self._opening = self.loop.create_task(self.transport.open())
        try:
            await asyncio.shield(self._opening)
        except BacklineError:
            self._opening = None  # the next call tries again: the servers' names may resolve by then
            raise
        self._opened = True

    async def describe(self) -> Description:
        """Returns the servers' current description of the model. Raises BacklineError if no server describes
        the model.
        """
        if self.transport.closed:  # the model was unloaded; opening would leave connections behind
            raise self.transport.no_server()
        await self._open()
        return await describe_over(self.transport, self._remote)

    def responses_to(self, tickets: Sequence[Ticket], answer: InferResponse) -> list[InferResponse]:
        """Returns one response for each request of a call, made from `answer`, the response to the call.

        Raises Internal if an output is missing, or if the call carries several requests and an output does
        not have one row for each of their items.
        """
        request = tickets[0].request
        wanted = request.outputs or self._outputs
        outputs = answer.outputs
        if len(outputs) != 1 or wanted != (outputs[0].name,):
            known = {output.name: output for output in outputs}
            missing = [name for name in wanted if name not in known]
            if missing:
                raise Internal(
                    f"{self.urls} answered without the output '{missing[0]}' of model"
                    f" '{self._remote.model}': do all servers serve the same version?"
                )
            outputs = [known[name] for name in wanted]
        if len(tickets) > 1:
            return split(tickets, outputs, self.name, self.version, answer.parameters)
        return [InferResponse(self.name, self.version, request.id, outputs, answer.parameters)]

    async def stream(self, ticket: Ticket) -> None:
        """Sends a request to one server, and passes on responses no faster than the caller takes them."""
        request, flow, responses = ticket.request, ticket.flow, self.responses
        assert responses is not None, "the model is decoupled"
        resumed = asyncio.Event()

        def resume() -> None:
            resumed.set()

        if flow is not None:
            flow.on_resume = resume
        index, began = 0, monotonic_ns()
        await self._open()
        stream = self.transport.stream(self.call([ticket]))
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

    def call(self, tickets: Sequence[Ticket]) -> InferCall:
        """Returns one call that carries the requests of all `tickets`. RemoteCheck decides which requests may
        share a call.
        """
        first = tickets[0]
        request = first.request
        deadline = first.waits_until if len(tickets) == 1 else latest(tickets)
        left = self._time_limit if deadline is None else max(deadline - monotonic(), 0.001)
        inputs: Iterable[Tensor] = request.inputs.values()
        if len(tickets) > 1:
            inputs = [
                Tensor(name, request.inputs[name].datatype, rows.shape, rows)
                for name, rows in stack(tickets).items()
            ]
        return InferCall(
            self._remote.model,
            tuple(inputs),
            self._remote.version,
            request.id if len(tickets) == 1 else "",
            request.outputs or self._outputs,
            _parameters(request),
            min(left, self._time_limit),
            () if first.trace is None and not request.via else _fields(first),
            len(tickets),
            first.identity,
        )

    def explain(self, error: BaseException) -> BacklineError:
        """Converts an error of another server to an error for the caller, who does not know that server."""
        where = f"model '{self.name}' is served by {self.urls}"
        if isinstance(error, asyncio.CancelledError):
            return Cancelled(f"the request to model '{self.name}' was cancelled")
        if isinstance(error, ConnectionFailed):
            return Unavailable(f"{where}: {error.message}", error.retry_after)
        if isinstance(error, (PermissionDenied, ProtocolError)):
            return Internal(f"{where}: {error.message}")
        return error if isinstance(error, BacklineError) else Internal(f"{where}: {error!r}")

    def unsent(self, error: Exception) -> InvalidArgument:
        """Returns the error for the caller of a request that the protocol of the servers cannot carry."""
        return InvalidArgument(
            f"model '{self.name}' is served by {self.urls}, but the request cannot be sent there: {error}"
        )

    def run(self, instance: Instance, batch: Batch, finished: Finished) -> None:
        """Starts sending a batch. `finished` is called when it has ended."""
        sent = SentBatch(self, instance, batch, finished)
        if self._opened and self.responses is None:
            sent.send()
            return
        batch.gathered_ns = monotonic_ns()
        task = self.loop.create_task(self._open() if self.responses is None else self._stream(batch))

        def end(task: asyncio.Task[None]) -> None:
            # This is a callback of the task, because a task that is cancelled before it begins never runs its
            # own code.
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if self.responses is not None:  # the responses have already been passed on, one by one
                sent.end([None if error is None else self.explain(error)])
            elif error is None and not batch.abandoned:
                sent.send()
            else:
                sent.end([self.explain(error or asyncio.CancelledError())] * len(batch.tickets))

        task.add_done_callback(end)
        batch.on_abandon = task.cancel

    async def _stream(self, batch: Batch) -> None:
        batch.executed = True
        await self.stream(batch.tickets[0])

    async def close(self) -> None:
        """Closes the connections to the servers."""
        self.deadlines.cancel()
        await self.transport.close()


class RemoteInstance:
    """An instance that sends one batch at a time to one of the servers."""

    off_loop: ClassVar[bool] = True
    calls_server: ClassVar[bool] = True

    def __init__(self, lane: RemoteLane) -> None:
        self._lane = lane

    def run(self, batch: Batch, finished: Finished) -> None:
        self._lane.run(self, batch, finished)

    def close(self) -> None:
        """Does nothing, because the connections belong to the lane."""


def _parameters(request: InferRequest) -> dict[str, Parameter] | None:
    """Returns the caller's parameters, or None if there are none. Restores the priority and the sequence,
    which this server removed when it read the request.
    """
    if not request.parameters and not request.priority and request.sequence is None:
        return None
    parameters = dict(request.parameters or {})
    if request.priority:
        parameters["priority"] = request.priority
    if request.sequence is not None:
        step = request.sequence
        parameters |= {"sequence_id": step.id, "sequence_start": step.start, "sequence_end": step.end}
    return parameters or None


def _fields(ticket: Ticket) -> tuple[tuple[str, str], ...]:
    """Returns the header fields that differ from request to request: those of the trace, and the ids of the
    remote models that have forwarded the request.
    """
    via, trace = ticket.request.via, ticket.trace
    fields = () if trace is None else _trace_fields(trace.context)
    return (*fields, *route_fields(via).items())


def _trace_fields(context: str) -> tuple[tuple[str, str], ...]:
    """Returns the header fields `traceparent` and `tracestate`, with which the other server continues the
    trace.

    `context` is a JSON object of these fields, or empty for a trace that only this server knows.
    """
    fields: dict[str, str] = msgspec.json.decode(context) if context else {}
    return tuple((name, text) for name, text in fields.items() if text.isascii() and text.isprintable())
