"""Records what happens to a client's request, and to the requests that models make on its behalf."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic, monotonic_ns
from typing import Generic, Protocol, TypeVar

from msgspec import Struct

from backline.engine.engine import Engine
from backline.engine.ticket import Listener, Ticket
from backline.engine.tracing import RunMoments, Trace, TraceProtocol
from backline.observe.tracing.settings import TraceSetting
from backline_client.values.errors import BacklineError, Cancelled, DeadlineExceeded
from backline_client.values.messages import InferRequest, InferResponse

#: The type of the object that a writer attaches to each exchange and request.
Kept = TypeVar("Kept")
#: The time, in seconds, by which a deadline timer may fire early.
_EARLY = 0.002
#: The version that is recorded for a model that was not found, as in Triton's traces.
UNKNOWN_VERSION = "-1"
#: Triton's names for the start and the end of receiving a request, for each protocol.
RECEIVED = {
    "HTTP": ("HTTP_RECV_START", "HTTP_RECV_END"),
    "GRPC": ("GRPC_WAITREAD_START", "GRPC_WAITREAD_END"),
}


class Run(Struct, frozen=True):
    """A run of the model that included the request. Times are from time.monotonic_ns(); `batch_size` is the
    number of items in the whole batch.
    """

    started_ns: int
    gathered_ns: int
    ran_ns: int
    ended_ns: int
    batch_size: int


class Failure(Struct, frozen=True):
    """The class and message of an error. The error itself is not kept, because the traceback of the error
    would keep the request's tensors alive.
    """

    kind: str
    message: str

    @classmethod
    def of(cls, error: BacklineError | None) -> Failure | None:
        return None if error is None else cls(type(error).__name__, error.message)


class TraceWriter(Protocol[Kept]):
    """Writes traces. All methods are called on the event loop and must not block."""

    def arrived(self, exchange: Exchange[Kept]) -> Kept:
        """Called when a client's request has arrived. Returns the object to attach to the exchange."""

    def began(self, trace: RequestTrace[Kept], request: InferRequest) -> Kept:
        """Called before a ticket is submitted, for a client's request or for a request that is made on
        behalf of a client's request. Returns the object to attach to the request.
        """

    def context(self, kept: Kept) -> str:
        """Returns the trace context that is passed to models; see Trace.context."""

    def responded(self, request: RequestTrace[Kept], response: InferResponse) -> None:
        """Called for each response to a request; there may be several."""

    def ended(self, request: RequestTrace[Kept]) -> None:
        """Called when a request has ended because it was completed, refused or cancelled."""

    def answered(self, exchange: Exchange[Kept]) -> None:
        """Called when the client has received its response, and no request made on the client's behalf is in
        flight.
        """

    def flush(self) -> None:
        """Starts writing the completed traces."""

    async def close(self) -> None:
        """Writes the remaining traces. Returns within a few seconds."""


class Exchange(Generic[Kept]):
    """A client's request, from its arrival to its response; implements Trace. `parent` is the client's trace
    context.
    """

    def __init__(
        self,
        writer: TraceWriter[Kept],
        engine: Engine,
        setting: TraceSetting,
        protocol: TraceProtocol,
        model: str,
        began_ns: int,
        parent: object = None,
    ) -> None:
        self.writer = writer
        self.engine = engine
        self.setting = setting
        self.protocol = protocol
        #: The model in the route or call; empty if only the body names the model.
        self.model = model
        self.parent = parent
        self.began_ns = began_ns
        #: The time when the request had been read completely.
        self.read_ns = monotonic_ns()
        self.response_ns = self.send_ns = self.sent_ns = 0
        self.error: Failure | None = None
        #: The number of requests made for this exchange so far.
        self.requests = 0
        #: The number of requests made for this exchange that are in flight.
        self._open = 0
        self._answered = False
        self.kept = writer.arrived(self)

    @property
    def context(self) -> str:
        return self.writer.context(self.kept)

    def follow(self, ticket: Ticket) -> RequestTrace[Kept]:
        self.read_ns = ticket.request.arrived_ns
        return RequestTrace(self, ticket, None)

    def shared_with(self, others: Sequence[Trace]) -> Trace:
        return self

    def ran(self, run: RunMoments) -> None:
        """Does nothing, because the trace of each request of the exchange records the runs of that
        request.
        """

    def unreadable(self, error: BacklineError) -> None:
        self.answer(error)

    def opened(self) -> None:
        """Records that a request of this exchange has started."""
        self.requests += 1
        self._open += 1

    def closed(self) -> None:
        """Records that a request of this exchange has ended."""
        self._open -= 1
        self._look_at_end()

    def answer(self, error: BacklineError | None) -> None:
        """Records that the client has received its response or error, or has disconnected."""
        if not self._answered:
            self._answered = True
            self.error = Failure.of(error)
            self.sent_ns = monotonic_ns()
            self._look_at_end()

    def _look_at_end(self) -> None:
        if self._answered and self._open == 0:
            self._open = -1
            self.writer.answered(self)


class RequestTrace(Listener, Generic[Kept]):
    """The trace of a request to a model: the client's request, a step of an ensemble, or a call from another
    model.

    Implements Trace, and listens to the request's ticket. `parent` is the request on whose behalf this
    request was made; `links` are further requests on whose behalf it was made.
    """

    def __init__(
        self,
        exchange: Exchange[Kept],
        ticket: Ticket,
        parent: RequestTrace[Kept] | None,
        links: Sequence[RequestTrace[Kept]] = (),
    ) -> None:
        self.exchange = exchange
        request = ticket.request
        self.model_name = request.model_name
        self.id = request.id
        self.batch_size = ticket.batch_size
        self.parent = parent
        self.links = links
        self.began_ns = request.arrived_ns
        #: The time when the request ended; 0 while it is in flight.
        self.ended_ns = 0
        self.runs: list[Run] = []
        self.error: Failure | None = None
        #: The number of responses so far.
        self.responses = 0
        self.first_response_ns = 0
        self.model_version, composed = _resolve(exchange.engine, request)
        #: Whether the request waited in a queue. Requests to ensembles and refused requests do not wait in
        #: queues.
        self.queued = not composed
        #: Whether other requests were made on behalf of this request.
        self.asked_others = False
        exchange.opened()
        self.kept = exchange.writer.began(self, request)
        ticket.listen(self)

    @property
    def context(self) -> str:
        return self.exchange.writer.context(self.kept)

    def follow(self, ticket: Ticket) -> RequestTrace[Kept]:
        self.asked_others = True
        return RequestTrace(self.exchange, ticket, self)

    def unreadable(self, error: BacklineError) -> None:
        """Never called: only a client's message can be unreadable, and the client's exchange records that."""

    def shared_with(self, others: Sequence[Trace]) -> Trace:
        return _Shared(self, [other for other in others if isinstance(other, RequestTrace)])

    def ran(self, run: RunMoments) -> None:
        for part in run.parts or (run,):
            if not part.executed or self.ended_ns or not any(map(self._is_of, part.tickets)):
                continue
            ran, ended = part.ran_ns or part.ended_ns, part.ended_ns
            self.runs.append(
                Run(part.started_ns, part.gathered_ns or part.started_ns, ran, ended, part.items)
            )

    def _is_of(self, ticket: Ticket) -> bool:
        """Returns whether a ticket in a run is the ticket that this trace follows.

        Other tickets may have this trace too: those of requests that were made on behalf of the traced one
        after tracing was switched off.
        """
        return ticket.trace is self and ticket.request.model_name == self.model_name

    # as a listener of the ticket

    def refused(self, ticket: Ticket, error: BacklineError) -> None:
        self.queued = False
        self._end_all(ticket, error)

    def abandoned(self, ticket: Ticket) -> None:
        late = ticket.waits_until is not None and ticket.waits_until <= monotonic() + _EARLY
        after = f"{(monotonic_ns() - self.began_ns) / 1e6:.0f} ms after the request arrived"
        error: BacklineError = (
            DeadlineExceeded(f"the deadline passed {after}")
            if late
            else Cancelled(f"the client disconnected or stopped waiting {after}")
        )
        self._end_all(ticket, error)

    def responded(self, ticket: Ticket, response: InferResponse) -> None:
        self.responses += 1
        self.first_response_ns = self.first_response_ns or monotonic_ns()
        self.exchange.writer.responded(self, response)

    def ended(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        exchange, top = self.exchange, self.parent is None
        if top:
            exchange.response_ns = monotonic_ns()
        if response is not None:
            exchange.writer.responded(self, response)
        self._end(ticket, error)
        if top:
            exchange.send_ns = monotonic_ns()

    def delivered(self, ticket: Ticket, error: BacklineError | None) -> None:
        if self.parent is None:
            self.exchange.answer(error)

    def _end_all(self, ticket: Ticket, error: BacklineError) -> None:
        """Records that a request was refused or abandoned, so it will not be completed. If it is the client's
        request, the exchange also ends.
        """
        self._end(ticket, error)
        if self.parent is None:
            self.exchange.answer(error)

    def _end(self, ticket: Ticket, error: BacklineError | None) -> None:
        self.ended_ns = monotonic_ns()
        self.batch_size = ticket.batch_size
        self.error = Failure.of(error)
        self.exchange.writer.ended(self)
        self.exchange.closed()


class _Shared(Generic[Kept]):
    """The trace of a request that is made on behalf of several other requests. It is a child of the first of
    their traces, and linked to the others.
    """

    def __init__(self, first: RequestTrace[Kept], others: Sequence[RequestTrace[Kept]]) -> None:
        self._first = first
        self._others = others
        self.context = first.context

    def follow(self, ticket: Ticket) -> RequestTrace[Kept]:
        first = self._first
        return RequestTrace(first.exchange, ticket, first, self._others)

    def shared_with(self, others: Sequence[Trace]) -> Trace:
        return self

    def ran(self, run: RunMoments) -> None:
        """Never called: once the request has been submitted, it has the trace that `follow` returned."""

    def unreadable(self, error: BacklineError) -> None:
        """Never called; see `ran`."""


def _resolve(engine: Engine, request: InferRequest) -> tuple[str, bool]:
    """Returns the version of the model that would serve the request, and whether the model is an ensemble."""
    try:
        model = engine.find(request.model_name, request.model_version)
    except BacklineError:  # submitting the request raises this error again
        return request.model_version or UNKNOWN_VERSION, False
    return model.version, model.config.ensemble is not None


def numbered(version: str) -> int | str:
    """Formats a version as Triton's traces do: as an integer if it is a number."""
    return int(version) if version.removeprefix("-").isdecimal() else version
