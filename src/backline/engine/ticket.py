"""A request on its way through the server: its state, its owner, and what happens when it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from msgspec.structs import replace

from backline.engine.errors import BacklineError
from backline.engine.values.messages import InferRequest, InferResponse, ResponseFlow

if TYPE_CHECKING:
    from backline.engine.statistics import ComputeTimes
    from backline.engine.tracing import Trace

log = logging.getLogger("backline.engine")


class TicketState(Enum):
    """The state of a ticket. The members are also module constants, as `ticket.state is QUEUED` is faster."""

    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


#: Not submitted yet.
NEW: Final = TicketState.NEW
#: In a queue, or run as several requests (an ensemble, a split request): its deadline can still end it.
QUEUED: Final = TicketState.QUEUED
#: Handed to an instance: only cancellation ends it early.
RUNNING: Final = TicketState.RUNNING
#: Completed with a response or an error, or refused by an exception from `submit`.
DONE: Final = TicketState.DONE
#: The caller has left: the completion is never called.
CANCELLED: Final = TicketState.CANCELLED
#: The deadline passed: the ticket completed with an error that says so.
EXPIRED: Final = TicketState.EXPIRED

_ENDS: Final = frozenset({DONE, CANCELLED, EXPIRED})

#: The legal transitions. Queues hand tickets on to other queues; batches that never started return tickets.
TRANSITIONS: Final[Mapping[TicketState, frozenset[TicketState]]] = MappingProxyType(
    {
        NEW: frozenset({QUEUED, RUNNING}) | _ENDS,
        QUEUED: frozenset({QUEUED, RUNNING}) | _ENDS,
        RUNNING: frozenset({QUEUED}) | _ENDS,
        DONE: frozenset(),
        CANCELLED: frozenset(),
        EXPIRED: frozenset(),
    }
)


class IllegalTransition(Exception):
    """Raised when a ticket is moved to a state that cannot follow its current one: a bug in the server."""


class Owner:
    """The holder of a ticket that is not done: a queue, a scheduler during a run, an ensemble or a cache.

    A ticket has at most one owner at a time.
    """

    __slots__ = ()

    def cancelled(self, ticket: Ticket) -> None:
        """Called once, when the caller has left or the deadline has passed; the ticket then has no owner."""
        raise NotImplementedError

    def postponed(self, ticket: Ticket) -> None:
        """Called when the ticket's deadline has moved. An owner that runs stand-ins must move theirs too."""


class InFlight:
    """Counts tickets in flight, each from the call of `count` until the ticket ends."""

    __slots__ = ("in_flight",)

    def __init__(self) -> None:
        self.in_flight = 0

    def count(self, ticket: Ticket) -> None:
        """Counts a ticket that is not counted yet. Invariant: `in_flight` falls by one once it has ended."""
        self.in_flight += 1
        ticket.counted = self


class Listener:
    """Follows a ticket without owning it, for a deadline, trace or recording. Called on the event loop."""

    __slots__ = ()

    def responded(self, ticket: Ticket, response: InferResponse) -> None:
        """Called before one of many responses is passed to the caller."""

    def ended(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        """Called when the ticket is done, before its completion callback."""

    def delivered(self, ticket: Ticket, error: BacklineError | None) -> None:
        """Called after the completion callback has returned; `error` is the error that it got, if any."""

    def abandoned(self, ticket: Ticket) -> None:
        """Called when the ticket is cancelled: its completion callback will never be called."""

    def refused(self, ticket: Ticket, error: BacklineError) -> None:
        """Called when the submission of the ticket has raised `error`."""


#: Called once, on the event loop, with a response or an error; with neither after the last of many responses.
Completion: TypeAlias = Callable[["Ticket", InferResponse | None, BacklineError | None], None]
#: Called on the event loop with each response of a decoupled model, before the completion.
OnResponse: TypeAlias = Callable[["Ticket", InferResponse], None]


class Ticket:
    """A submitted request. The completion is called exactly once, unless the ticket is cancelled or refused.

    `request` is what the caller asked for. `deadline` (seconds of time.monotonic()) is when a waiting ticket
    expires: the caller's deadline (`waits_until`), or an earlier one set by a queue's policy. `level` is the
    request's priority, or the level assigned by a queue. The model's check sets `batch_size`, the number of
    items, and `batch_key`, which must be equal for requests to share a batch. `context` belongs to the
    caller. `identity` tells callers apart: they take turns in queues, and continue only their own sequences.
    It is empty for callers without a key. Callers that take any number of responses pass `on_response` and
    `flow`; without them a decoupled model refuses the request.
    """

    __slots__ = (
        "_listeners",
        "_on_complete",
        "_on_response",
        "batch_key",
        "batch_size",
        "compute",
        "context",
        "counted",
        "deadline",
        "flow",
        "identity",
        "level",
        "owner",
        "request",
        "state",
        "trace",
        "waits_until",
    )

    def __init__(
        self,
        request: InferRequest,
        on_complete: Completion,
        on_response: OnResponse | None = None,
        flow: ResponseFlow | None = None,
        context: Any = None,
        trace: Trace | None = None,
    ) -> None:
        self.request = request
        self.flow = flow
        self.context = context
        self.identity = ""
        self.counted: InFlight | None = None
        #: The trace of the request; None if it is not traced.
        self.trace = trace
        self.state = NEW
        self.owner: Owner | None = None
        self.deadline = self.waits_until = request.deadline
        self.level = request.priority
        self.batch_size = 1
        self.batch_key: object = None
        #: Sums the times of the request's runs, if set.
        self.compute: ComputeTimes | None = None
        self._on_complete = on_complete
        self._on_response = on_response
        self._listeners: tuple[Listener, ...] = ()

    def stand_in(
        self,
        on_complete: Completion,
        on_response: OnResponse | None = None,
        flow: ResponseFlow | None = None,
        **changes: Any,
    ) -> Ticket:
        """Creates a stand-in for this ticket, with `changes` to the request and the same deadlines."""
        other = Ticket(replace(self.request, **changes), on_complete, on_response, flow, None, self.trace)
        other.identity = self.identity
        other.deadline, other.waits_until, other.level = self.deadline, self.waits_until, self.level
        other.batch_size, other.batch_key, other.compute = self.batch_size, self.batch_key, self.compute
        return other

    @property
    def takes_many(self) -> bool:
        """Whether the caller takes any number of responses."""
        return self._on_response is not None

    @property
    def cancelled(self) -> bool:
        """Whether nobody awaits a response any more: the ticket is cancelled or expired."""
        return self.state is CANCELLED or self.state is EXPIRED

    # state changes

    def enqueue(self, owner: Owner) -> None:
        """Hands the ticket to `owner`, which is notified of a cancellation."""
        state = self.state
        if state is not NEW and state is not QUEUED and state is not RUNNING:
            raise self._illegal(QUEUED)
        self.state = QUEUED
        self.owner = owner

    def start(self, owner: Owner | None) -> None:
        """Hands the ticket to an instance. `owner` is notified of a cancellation; pass None if the run cannot
        be ended early.
        """
        state = self.state
        if state is not QUEUED and state is not NEW:
            raise self._illegal(RUNNING)
        self.state = RUNNING
        self.owner = owner

    def release(self) -> None:
        """Removes the owner while the ticket changes hands: a cancellation in between notifies nobody."""
        self.owner = None

    def respond(self, response: InferResponse) -> None:
        """Passes one of many responses to the caller. Exceptions in `on_response` are logged, not raised."""
        for listener in self._listeners:
            listener.responded(self, response)
        on_response = self._on_response
        if on_response is None or self.cancelled:
            return
        try:
            on_response(self, response)
        except Exception:
            log.exception(
                "the on_response callback of a request to model '%s' failed", self.request.model_name
            )

    def complete(self, response: InferResponse | None, error: BacklineError | None) -> None:
        """Completes the ticket, unless it is cancelled or expired.

        Exceptions in the completion callback are logged, so that later requests still complete. A second call
        raises IllegalTransition. A call after a cancellation is merely late and has no effect.
        """
        state = self.state
        if state is not RUNNING and state is not QUEUED and state is not NEW:
            if state is DONE:
                raise self._illegal(DONE)
            return
        self.state = DONE
        self.owner = None
        self._answer(response, error)

    def _answer(self, response: InferResponse | None, error: BacklineError | None) -> None:
        if self.counted is not None:
            self.counted.in_flight -= 1
        listeners = self._listeners
        for listener in listeners:
            listener.ended(self, response, error)
        try:
            self._on_complete(self, response, error)
        except Exception:
            log.exception("the completion of a request to model '%s' failed", self.request.model_name)
        for listener in listeners:
            listener.delivered(self, error)

    def refuse(self, error: BacklineError) -> None:
        """Ends a ticket whose submission raises `error`. The caller gets the exception, not a completion."""
        if self.state in _ENDS:
            return
        self.state = DONE
        self.owner = None
        if self.counted is not None:
            self.counted.in_flight -= 1
        for listener in self._listeners:
            listener.refused(self, error)

    def cancel(self) -> None:
        """Withdraws a request whose caller has left: it is never completed, nor run if it has not started.

        Called on the event loop. No effect on a ticket that is done.
        """
        if self.state in _ENDS:
            return
        if self.counted is not None:
            self.counted.in_flight -= 1
        for listener in self._listeners:
            listener.abandoned(self)
        self._leave(CANCELLED)

    def expire(self, error: BacklineError) -> None:
        """Ends a request whose deadline has passed: notifies its owner and completes it with `error`.

        No effect on a ticket that is done.
        """
        if self.state in _ENDS:
            return
        self._leave(EXPIRED)
        self._answer(None, error)

    def _leave(self, state: TicketState) -> None:
        self.state = state
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.cancelled(self)

    def _illegal(self, state: TicketState) -> IllegalTransition:
        return IllegalTransition(
            f"a request to model '{self.request.model_name}' is {self.state.value},"
            f" so it cannot become {state.value}"
        )

    # deadline and listeners

    def postpone(self, deadline: float | None) -> None:
        """Changes the deadline of a waiting ticket."""
        self.deadline = deadline
        if self.owner is not None:
            self.owner.postponed(self)

    def listen(self, listener: Listener) -> None:
        """Adds a listener for the rest of the ticket's life."""
        self._listeners = (*self._listeners, listener)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        return self._listeners


def unsubmitted(request: InferRequest) -> Ticket:
    """Creates a ticket for a request that is checked but never submitted."""
    return Ticket(request, _never_called)


def _never_called(*_: object) -> None:
    raise AssertionError("a request that is only checked never completes")


def start_all(tickets: Iterable[Ticket], owner: Owner | None) -> None:
    """Hands queued tickets to an instance together; see Ticket.start."""
    for ticket in tickets:
        if ticket.state is not QUEUED:
            ticket.start(owner)  # raises unless the ticket is new
        ticket.state = RUNNING
        ticket.owner = owner


def release_all(tickets: Iterable[Ticket]) -> None:
    """Removes the owner of tickets that change hands; see Ticket.release."""
    for ticket in tickets:
        ticket.owner = None
