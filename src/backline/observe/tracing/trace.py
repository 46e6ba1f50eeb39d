"""What is noted of a request on its way, and of the requests that are made for it; what becomes of the notes is a writer's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic, monotonic_ns
from typing import Generic, Protocol, TypeVar

from backline.engine.engine import Engine
from backline.engine.errors import BacklineError, Cancelled, DeadlineExceeded
from backline.engine.messages import InferRequest, InferResponse
from backline.engine.ticket import Listener, Ticket
from backline.engine.tracing import RunMoments, Trace, TraceProtocol
from backline.observe.tracing.settings import TraceSetting

#: What a writer keeps of an exchange, and of a request.
Kept = TypeVar("Kept")
#: Seconds that what ends a request at its deadline may be early.
_EARLY = 0.002
#: Stands for the version of a model that there is not, as in Triton's traces.
UNKNOWN_VERSION = "-1"


@dataclass(frozen=True, slots=True)
class Run:
    """A run of the model with the request in it: moments of time.monotonic_ns(), and the items of the whole batch."""

    started_ns: int
    gathered_ns: int
    ran_ns: int
    ended_ns: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Failure:
    """What an error says. Not the error itself, whose traceback would hold on to the request's tensors."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: BacklineError | None) -> Failure | None:
        return None if error is None else cls(type(error).__name__, error.message)


class TraceWriter(Protocol[Kept]):
    """Makes something lasting of what was noted. Every method is called on the event loop, and must not wait."""

    def arrived(self, exchange: Exchange[Kept]) -> Kept:
        """A client has asked for something."""

    def began(self, trace: RequestTrace[Kept], request: InferRequest) -> Kept:
        """A request is about to be submitted: the client's, or one that is made for another."""

    def context(self, kept: Kept) -> str:
        """See Trace.context."""

    def responded(self, request: RequestTrace[Kept], response: InferResponse) -> None:
        """A request has a response, the only one or one of many."""

    def ended(self, request: RequestTrace[Kept]) -> None:
        """A request has its answer, or will have none."""

    def answered(self, exchange: Exchange[Kept]) -> None:
        """The client has its answer, and no request is under way for it any more."""

    def flush(self) -> None:
        """What is complete is to be written soon."""

    async def close(self) -> None:
        """Writes what there is, for some seconds at most."""


class Exchange(Generic[Kept]):
    """What a client has asked, from its arrival to its answer; fits Trace. `parent` is where its own trace stands, for the writer."""

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
        #: That was asked, as far as it is known without reading.
        self.model = model
        self.parent = parent
        self.began_ns = began_ns
        #: When it was read.
        self.read_ns = monotonic_ns()
        self.response_ns = self.send_ns = self.sent_ns = 0
        self.error: Failure | None = None
        #: Requests that were begun for it, and those that are under way.
        self.requests = 0
        self._open = 0
        self._answered = False
        self.kept = writer.arrived(self)

    @property
    def context(self) -> str:
        return self.writer.context(self.kept)

    def follow(self, ticket: Ticket) -> RequestTrace[Kept]:
        self.read_ns = ticket.request.arrived_ns
        return RequestTrace(self, ticket, None)

    def beside(self, others: Sequence[Trace]) -> Trace:
        return self

    def ran(self, run: RunMoments) -> None:
        """Nothing runs but requests."""

    def unreadable(self, error: BacklineError) -> None:
        self.answer(error)

    def opened(self) -> None:
        """A request was begun for it."""
        self.requests += 1
        self._open += 1

    def closed(self) -> None:
        """A request that was made for it is over."""
        self._open -= 1
        self._look_at_end()

    def answer(self, error: BacklineError | None) -> None:
        """The client has its answer, or waits for none."""
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
    """One request to a model: that of the client, a step of an ensemble, a call of a model. Fits Trace, and listens to its ticket.

    `parent` is the request that it is made for, `links` are further ones.
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
        #: 0 while it is under way.
        self.ended_ns = 0
        self.runs: list[Run] = []
        self.error: Failure | None = None
        #: Responses of a decoupled model so far.
        self.responses = 0
        self.first_response_ns = 0
        self.model_version, composed = _resolve(exchange.engine, request)
        #: Whether it waits for a run of its own: an ensemble's request does not, nor does one that is refused.
        self.queued = not composed
        #: Whether another request was made for it.
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
        """See Trace: only an exchange with a client can be."""

    def beside(self, others: Sequence[Trace]) -> Trace:
        return _Beside(self, [other for other in others if isinstance(other, RequestTrace)])

    def ran(self, run: RunMoments) -> None:
        for part in run.parts or (run,):
            if not part.executed or self.ended_ns or not any(map(self._is_of, part.tickets)):
                continue
            ran, ended = part.ran_ns or part.ended_ns, part.ended_ns
            self.runs.append(
                Run(part.started_ns, part.gathered_ns or part.started_ns, ran, ended, part.items)
            )

    def _is_of(self, ticket: Ticket) -> bool:
        """Whether a ticket that runs is the one of this trace. One that was made for it after tracing ended shares its trace."""
        return ticket.trace is self and ticket.request.model_name == self.model_name

    # from the ticket

    def refused(self, ticket: Ticket, error: BacklineError) -> None:
        self.queued = False
        self._end_all(ticket, error)

    def abandoned(self, ticket: Ticket) -> None:
        late = ticket.waits_until is not None and ticket.waits_until <= monotonic() + _EARLY
        after = f"{(monotonic_ns() - self.began_ns) / 1e6:.0f} ms after it came"
        error: BacklineError = (
            DeadlineExceeded(f"the deadline of the request passed {after}")
            if late
            else Cancelled(f"the client left or stopped waiting {after}")
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
        """Ends the request, and with it the client's exchange if the request was the client's."""
        self._end(ticket, error)
        if self.parent is None:
            self.exchange.answer(error)

    def _end(self, ticket: Ticket, error: BacklineError | None) -> None:
        self.ended_ns = monotonic_ns()
        self.batch_size = ticket.batch_size
        self.error = Failure.of(error)
        self.exchange.writer.ended(self)
        self.exchange.closed()


class _Beside(Generic[Kept]):
    """A request that a request is part of, and others that it is a part of, too. Fits Trace."""

    def __init__(self, first: RequestTrace[Kept], others: Sequence[RequestTrace[Kept]]) -> None:
        self._first = first
        self._others = others
        self.context = first.context

    def follow(self, ticket: Ticket) -> RequestTrace[Kept]:
        first = self._first
        return RequestTrace(first.exchange, ticket, first, self._others)

    def beside(self, others: Sequence[Trace]) -> Trace:
        return self

    def ran(self, run: RunMoments) -> None:
        """It stands before a submit only."""

    def unreadable(self, error: BacklineError) -> None:
        """As `ran`."""


def _resolve(engine: Engine, request: InferRequest) -> tuple[str, bool]:
    """The version that is asked, and whether it runs nothing itself."""
    try:
        model = engine.find(request.model_name, request.model_version)
    except BacklineError:  # said again when it is submitted
        return request.model_version or UNKNOWN_VERSION, False
    return model.version, model.config.ensemble is not None


def numbered(version: str) -> int | str:
    """A version as Triton's traces tell it: its number, -1 for the server's choice."""
    return int(version) if version.removeprefix("-").isdecimal() else version
