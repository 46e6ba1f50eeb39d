"""A request on its way: its state, the one owner it has at any moment, and what happens to it at its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from msgspec.structs import replace

from backline.engine.errors import BacklineError
from backline.engine.messages import InferRequest, InferResponse, ResponseFlow

if TYPE_CHECKING:
    from backline.engine.statistics import ComputeTimes
    from backline.engine.tracing import Trace

log = logging.getLogger("backline.engine")


class TicketState(Enum):
    """Where a ticket stands. The members are also module constants: `ticket.state is QUEUED` is the fast test."""

    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


#: Not submitted yet.
NEW: Final = TicketState.NEW
#: In a queue, or in something made of other requests (an ensemble, a split): its deadline can still end it.
QUEUED: Final = TicketState.QUEUED
#: Handed to an instance: only cancellation ends it early.
RUNNING: Final = TicketState.RUNNING
#: Answered, with a response or an error, or refused by an exception of `submit`.
DONE: Final = TicketState.DONE
#: The caller has left: the completion is never called.
CANCELLED: Final = TicketState.CANCELLED
#: The deadline passed first, and the caller has been answered with that.
EXPIRED: Final = TicketState.EXPIRED

_ENDS: Final = frozenset({DONE, CANCELLED, EXPIRED})

#: The legal transitions. A queue may hand a ticket to another queue, and a batch that never started returns to its queue.
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
    """A ticket was moved to a state that does not follow its present one: a defect of the server, never a client's fault."""


class Owner:
    """What holds a ticket that is not done: a queue, a scheduler with a run, an ensemble, a cache. A ticket has one at a time."""

    __slots__ = ()

    def cancelled(self, ticket: Ticket) -> None:
        """The caller has left, or the deadline has passed. Called once; the ticket has no owner any more."""
        raise NotImplementedError

    def postponed(self, ticket: Ticket) -> None:
        """The ticket's deadline has moved: an owner that has derived other tickets from it moves theirs."""


class Listener:
    """Follows a ticket without owning it: a deadline, a trace, a recording. Every method is called on the event loop."""

    __slots__ = ()

    def responded(self, ticket: Ticket, response: InferResponse) -> None:
        """One of any number of responses is about to be handed to the caller."""

    def ended(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        """The ticket is done; the completion is called next."""

    def delivered(self, ticket: Ticket, error: BacklineError | None) -> None:
        """The completion has returned."""

    def abandoned(self, ticket: Ticket) -> None:
        """The ticket was cancelled: its completion is never called."""

    def refused(self, ticket: Ticket, error: BacklineError) -> None:
        """`submit` has raised this error."""


#: Called once, on the event loop: with a response, or with an error; with neither after the last of many responses.
Completion: TypeAlias = Callable[["Ticket", InferResponse | None, BacklineError | None], None]
#: Called on the event loop with each response of a decoupled model, before the completion.
OnResponse: TypeAlias = Callable[["Ticket", InferResponse], None]


class Ticket:
    """A submitted request. The completion is called exactly once, unless the ticket is cancelled or refused.

    `request` is what the caller asked. `deadline` (seconds of time.monotonic()) is when it is refused unless it runs: the
    caller's, or an earlier one that a queue's policy sets. `waits_until` is the caller's deadline alone. `level` is the
    request's priority, or the level a queue has assigned. `batch_size` and `batch_key` are set when the model checks the
    request: items, and what must be equal for two requests to run in one batch. `context` belongs to the caller. A caller
    that takes any number of responses passes `on_response` and `flow`; without them a decoupled model refuses the request.
    """

    __slots__ = (
        "_listeners",
        "_on_complete",
        "_on_response",
        "batch_key",
        "batch_size",
        "compute",
        "context",
        "deadline",
        "flow",
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
        #: What follows the request, if anything does.
        self.trace = trace
        self.state = NEW
        self.owner: Owner | None = None
        self.deadline = self.waits_until = request.deadline
        self.level = request.priority
        self.batch_size = 1
        self.batch_key: object = None
        #: Where the times of its run are added, if somebody wants to know them.
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
        """A new ticket that runs in place of this one: the same request but for `changes`, with the same age, patience and level."""
        other = Ticket(replace(self.request, **changes), on_complete, on_response, flow, None, self.trace)
        other.deadline, other.waits_until, other.level = self.deadline, self.waits_until, self.level
        other.batch_size, other.batch_key, other.compute = self.batch_size, self.batch_key, self.compute
        return other

    @property
    def takes_many(self) -> bool:
        """Whether the caller takes any number of responses."""
        return self._on_response is not None

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more: cancelled or expired."""
        return self.state is CANCELLED or self.state is EXPIRED

    # the way through the server

    def enqueue(self, owner: Owner) -> None:
        """Puts the ticket into the hands of `owner`, which is notified when it is cancelled."""
        state = self.state
        if state is not NEW and state is not QUEUED and state is not RUNNING:
            raise self._illegal(QUEUED)
        self.state = QUEUED
        self.owner = owner

    def start(self, owner: Owner | None) -> None:
        """Hands the ticket to an instance. `owner` is notified of a cancellation; None where the run cannot be ended early."""
        state = self.state
        if state is not QUEUED and state is not NEW:
            raise self._illegal(RUNNING)
        self.state = RUNNING
        self.owner = owner

    def release(self) -> None:
        """Leaves the ticket without an owner while it changes hands: a cancellation in between notifies nobody."""
        self.owner = None

    def respond(self, response: InferResponse) -> None:
        """Hands out one of any number of responses. Exceptions in the callback are logged, so that later requests still run."""
        for listener in self._listeners:
            listener.responded(self, response)
        on_response = self._on_response
        if on_response is None or self.cancelled:
            return
        try:
            on_response(self, response)
        except Exception:
            log.exception("a response of model '%s' could not be delivered", self.request.model_name)

    def complete(self, response: InferResponse | None, error: BacklineError | None) -> None:
        """Answers the caller, unless nobody waits. Exceptions in the completion are logged, so that later requests still complete.

        A second completion raises IllegalTransition. One after a cancellation is late, which is no fault of anybody's.
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
        listeners = self._listeners
        for listener in listeners:
            listener.ended(self, response, error)
        try:
            self._on_complete(self, response, error)
        except Exception:
            log.exception("the answer of model '%s' could not be delivered", self.request.model_name)
        for listener in listeners:
            listener.delivered(self, error)

    def refuse(self, error: BacklineError) -> None:
        """Ends a ticket whose submission raises `error`: the caller gets the exception, so the completion is not called."""
        if self.state in _ENDS:
            return
        self.state = DONE
        self.owner = None
        for listener in self._listeners:
            listener.refused(self, error)

    def cancel(self) -> None:
        """The caller has left: the completion is never called, and a request that has not started never runs.

        Called on the event loop. Has no effect on a ticket that is done.
        """
        if self.state in _ENDS:
            return
        for listener in self._listeners:
            listener.abandoned(self)
        self._leave(CANCELLED)

    def expire(self, error: BacklineError) -> None:
        """The deadline has passed: as `cancel`, but the caller is answered with `error`. Has no effect on a ticket that is done."""
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
            f"a request of model '{self.request.model_name}' is {self.state.value} and cannot become {state.value}"
        )

    # what others may want

    def postpone(self, deadline: float | None) -> None:
        """Gives the ticket another deadline while it waits."""
        self.deadline = deadline
        if self.owner is not None:
            self.owner.postponed(self)

    def listen(self, listener: Listener) -> None:
        """Adds a listener, for the rest of the ticket's life."""
        self._listeners = (*self._listeners, listener)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        return self._listeners


def unsubmitted(request: InferRequest) -> Ticket:
    """The ticket of a request that is checked and never submitted."""
    return Ticket(request, _never_called)


def _never_called(*_: object) -> None:
    raise AssertionError("a request that is only checked has no answer")


def start_all(tickets: Iterable[Ticket], owner: Owner | None) -> None:
    """Hands queued tickets to an instance together; see Ticket.start."""
    for ticket in tickets:
        if ticket.state is not QUEUED:
            ticket.start(owner)  # raises, unless it was never queued
        ticket.state = RUNNING
        ticket.owner = owner


def release_all(tickets: Iterable[Ticket]) -> None:
    """See Ticket.release."""
    for ticket in tickets:
        ticket.owner = None
