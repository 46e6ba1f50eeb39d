"""A ticket represents a request on its way through the server. It has the state and the owner of the
request, and the functions to call when the request ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from msgspec.structs import replace

from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferRequest, InferResponse, ResponseFlow

if TYPE_CHECKING:
    from backline.engine.statistics import ComputeTimes
    from backline.engine.tracing import Trace

log = logging.getLogger("backline.engine")


class TicketState(Enum):
    """The state of a ticket. The members are also constants of this module, because `ticket.state is QUEUED`
    is then faster.
    """

    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


#: Not submitted yet.
NEW: Final = TicketState.NEW
#: In a queue; or replaced by other requests that are in flight, because the request is split or goes to an
#: ensemble. The queue's timeout and the caller's deadline can end the ticket.
QUEUED: Final = TicketState.QUEUED
#: Handed to an instance. The queue's timeout no longer applies, but a cancellation or the caller's deadline
#: can still end the ticket.
RUNNING: Final = TicketState.RUNNING
#: Completed with a response or an error, or refused by an exception from `submit`.
DONE: Final = TicketState.DONE
#: Cancelled because the caller no longer wants a response. The completion is never called.
CANCELLED: Final = TicketState.CANCELLED
#: The deadline passed, and the ticket was completed with an error that says so.
EXPIRED: Final = TicketState.EXPIRED

_ENDS: Final = frozenset({DONE, CANCELLED, EXPIRED})

#: The valid transitions. A queued ticket may be queued again, because queues pass tickets on to other queues.
#: A running ticket may be queued, because the tickets of a batch that never started go back to the queue.
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
    """Raised when a ticket is moved to a state that cannot follow its current state. This indicates a bug in
    the server.
    """


class Owner:
    """The object that is responsible for a ticket that has not ended: a queue, a scheduler during a run, an
    ensemble or a cache.

    A ticket has at most one owner at a time.
    """

    __slots__ = ()

    def cancelled(self, ticket: Ticket) -> None:
        """Called once, if the ticket is cancelled or its deadline has passed. The ticket no longer has an
        owner then.
        """
        raise NotImplementedError

    def postponed(self, ticket: Ticket) -> None:
        """Called when the ticket's deadline has changed. An owner that runs stand-ins for the ticket must
        change the deadlines of the stand-ins too.
        """


class InFlight:
    """Counts tickets in flight. Each ticket counts from the call of `count` until the ticket ends."""

    __slots__ = ("in_flight",)

    def __init__(self) -> None:
        self.in_flight = 0

    def count(self, ticket: Ticket) -> None:
        """Counts a ticket that is not counted yet. When the ticket ends, `in_flight` is decremented by
        one.
        """
        self.in_flight += 1
        ticket.counted = self


class Listener:
    """An object that is notified about a ticket without owning it, such as a deadline, a trace or a
    recording. The methods are called on the event loop.
    """

    __slots__ = ()

    def responded(self, ticket: Ticket, response: InferResponse) -> None:
        """Called before a response of a decoupled model is passed to the caller."""

    def ended(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        """Called when the ticket is completed, before its completion callback."""

    def delivered(self, ticket: Ticket, error: BacklineError | None) -> None:
        """Called after the completion callback has returned. `error` is the error that was passed to the
        callback, if any.
        """

    def abandoned(self, ticket: Ticket) -> None:
        """Called when the ticket is cancelled: its completion callback will never be called."""

    def refused(self, ticket: Ticket, error: BacklineError) -> None:
        """Called when the submission of the ticket has raised `error`."""


#: Called once, on the event loop, with a response or an error. After the last response of a decoupled model,
#: it is called with neither.
Completion: TypeAlias = Callable[["Ticket", InferResponse | None, BacklineError | None], None]
#: Called on the event loop with each response of a decoupled model, before the completion.
OnResponse: TypeAlias = Callable[["Ticket", InferResponse], None]


class Ticket:
    """A request that is submitted to a model. The completion is called exactly once, unless the ticket is
    cancelled or refused.

    `request` is the caller's request. `deadline` (in seconds of time.monotonic()) is the time when a waiting
    ticket expires: the caller's deadline (`waits_until`), or an earlier deadline that is set by a queue's
    policy. `level` is the request's priority, or the level that a queue assigned. The model's check sets
    `batch_size`, the number of items, and `batch_key`; only requests with equal keys may share a batch.
    `context` is for the caller's own use. `identity` identifies the caller, because callers take turns in
    queues and can continue only their own sequences; it is empty for callers without credentials. Callers
    that accept any number of responses pass `on_response` and `flow`; a decoupled model refuses requests
    without these two.
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
        "fields",
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
        #: The header fields or metadata with which the request came; None if unknown. Set only for fronts.
        self.fields: Mapping[bytes, bytes] | None = None
        self.counted: InFlight | None = None
        #: The trace of the request; None if it is not traced.
        self.trace = trace
        self.state = NEW
        self.owner: Owner | None = None
        self.deadline = self.waits_until = request.deadline
        self.level = request.priority
        self.batch_size = 1
        self.batch_key: object = None
        #: If set, the times of all runs for this request are added to this object.
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
        """Creates a stand-in for this ticket: a ticket with the same deadlines, whose request is this
        ticket's request with `changes`.
        """
        other = Ticket(replace(self.request, **changes), on_complete, on_response, flow, None, self.trace)
        other.identity, other.fields = self.identity, self.fields
        other.deadline, other.waits_until, other.level = self.deadline, self.waits_until, self.level
        other.batch_size, other.batch_key, other.compute = self.batch_size, self.batch_key, self.compute
        return other

    @property
    def takes_many(self) -> bool:
        """Whether the caller accepts any number of responses."""
        return self._on_response is not None

    @property
    def cancelled(self) -> bool:
        """Whether the ticket is cancelled or expired, so that nobody waits for a response any more."""
        return self.state is CANCELLED or self.state is EXPIRED

    # state changes

    def enqueue(self, owner: Owner) -> None:
        """Hands the ticket to `owner`, which is notified if the ticket is cancelled."""
        state = self.state
        if state is not NEW and state is not QUEUED and state is not RUNNING:
            raise self._illegal(QUEUED)
        self.state = QUEUED
        self.owner = owner

    def start(self, owner: Owner | None) -> None:
        """Hands the ticket to an instance. `owner` is notified if the ticket is cancelled; it is None if the
        run cannot be ended early.
        """
        state = self.state
        if state is not QUEUED and state is not NEW:
            raise self._illegal(RUNNING)
        self.state = RUNNING
        self.owner = owner

    def release(self) -> None:
        """Removes the owner, so that the ticket can be passed to another owner. If the ticket is cancelled
        in between, no owner is notified.
        """
        self.owner = None

    def respond(self, response: InferResponse) -> None:
        """Passes a response of a decoupled model to the caller. Exceptions in `on_response` are logged, not
        raised.
        """
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
        """Completes the ticket, unless the ticket is cancelled or expired.

        Exceptions in the completion callback are logged rather than raised, so that other requests of the
        batch are still completed. A second call raises IllegalTransition. A call after a cancellation has no
        effect, because it may simply be late.
        """
        state = self.state
        if state is not RUNNING and state is not QUEUED and state is not NEW:
            if state is DONE:
                raise self._illegal(DONE)
            return
        self.state = DONE
        self.owner = None
        counted = self.counted
        if counted is not None:
            counted.in_flight -= 1
        if self._listeners:
            self._answer(response, error)
            return
        try:  # this part of `_answer` is inlined, for speed
            self._on_complete(self, response, error)
        except Exception:
            self._log_failure()

    def _answer(self, response: InferResponse | None, error: BacklineError | None) -> None:
        listeners = self._listeners
        for listener in listeners:
            listener.ended(self, response, error)
        try:
            self._on_complete(self, response, error)
        except Exception:
            self._log_failure()
        for listener in listeners:
            listener.delivered(self, error)

    def _log_failure(self) -> None:
        log.exception("the completion of a request to model '%s' failed", self.request.model_name)

    def refuse(self, error: BacklineError) -> None:
        """Ends a ticket whose submission raises `error`. The caller gets this exception instead of a
        completion.
        """
        if self.state in _ENDS:
            return
        self.state = DONE
        self.owner = None
        if self.counted is not None:
            self.counted.in_flight -= 1
        for listener in self._listeners:
            listener.refused(self, error)

    def cancel(self) -> None:
        """Withdraws a request whose caller no longer wants a response. The request is not completed and, if
        it has not started yet, not run.

        Must be called on the event loop. Has no effect on a ticket that has ended.
        """
        if self.state in _ENDS:
            return
        if self.counted is not None:
            self.counted.in_flight -= 1
        for listener in self._listeners:
            listener.abandoned(self)
        self._leave(CANCELLED)

    def expire(self, error: BacklineError) -> None:
        """Ends a request whose deadline has passed: notifies the ticket's owner and completes the ticket with
        `error`.

        Has no effect on a ticket that has ended.
        """
        if self.state in _ENDS:
            return
        self._leave(EXPIRED)
        if self.counted is not None:
            self.counted.in_flight -= 1
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
        """Changes the deadline of a waiting ticket, and notifies its owner. None means no deadline."""
        self.deadline = deadline
        if self.owner is not None:
            self.owner.postponed(self)

    def listen(self, listener: Listener) -> None:
        """Adds a listener, which is notified until the ticket ends."""
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
    """Hands several queued tickets to an instance; see Ticket.start."""
    for ticket in tickets:
        if ticket.state is not QUEUED:
            ticket.start(owner)  # raises unless the ticket is new
        ticket.state = RUNNING
        ticket.owner = owner


def release_all(tickets: Iterable[Ticket]) -> None:
    """Removes the owners of tickets that are handed to another owner; see Ticket.release."""
    for ticket in tickets:
        ticket.owner = None
