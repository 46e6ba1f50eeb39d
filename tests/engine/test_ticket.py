"""The states of a ticket: each operation does in each state what the table of transitions allows, and no
more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from backline.engine.ticket import (
    CANCELLED,
    DONE,
    EXPIRED,
    NEW,
    QUEUED,
    RUNNING,
    TRANSITIONS,
    IllegalTransition,
    InFlight,
    Listener,
    Owner,
    Ticket,
    TicketState,
    start_all,
)
from backline_client.values.errors import BacklineError, DeadlineExceeded, Internal
from backline_client.values.messages import InferRequest, InferResponse

ENDS = {DONE, CANCELLED, EXPIRED}


class Keeper(Owner):
    """An owner that records its notifications."""

    def __init__(self) -> None:
        self.lost: list[Ticket] = []
        self.moved: list[float | None] = []

    def cancelled(self, ticket: Ticket) -> None:
        self.lost.append(ticket)

    def postponed(self, ticket: Ticket) -> None:
        self.moved.append(ticket.deadline)


class Ear(Listener):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def responded(self, ticket: Ticket, response: InferResponse) -> None:
        self.heard.append("responded")

    def ended(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        self.heard.append("ended")

    def delivered(self, ticket: Ticket, error: BacklineError | None) -> None:
        self.heard.append("delivered")

    def abandoned(self, ticket: Ticket) -> None:
        self.heard.append("abandoned")

    def refused(self, ticket: Ticket, error: BacklineError) -> None:
        self.heard.append("refused")


def made(answers: list[object] | None = None) -> Ticket:
    def complete(_: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        if answers is not None:
            answers.append(response or error)

    return Ticket(InferRequest("m", {}), complete)


def in_state(state: TicketState, answers: list[object] | None = None) -> Ticket:
    ticket = made(answers)
    if state in (QUEUED, RUNNING):
        ticket.enqueue(Keeper())
    if state is RUNNING:
        ticket.start(Keeper())
    elif state is DONE:
        ticket.complete(response(), None)
    elif state is CANCELLED:
        ticket.cancel()
    elif state is EXPIRED:
        ticket.expire(DeadlineExceeded("too late"))
    assert ticket.state is state
    if answers is not None:
        answers.clear()
    return ticket


def response() -> InferResponse:
    return InferResponse("m", "1", "", [])


MOVES: dict[str, tuple[TicketState, Callable[[Ticket], None]]] = {
    "enqueue": (QUEUED, lambda ticket: ticket.enqueue(Keeper())),
    "start": (RUNNING, lambda ticket: ticket.start(None)),
    "start together": (RUNNING, lambda ticket: start_all([ticket], None)),
    "complete": (DONE, lambda ticket: ticket.complete(response(), None)),
    "refuse": (DONE, lambda ticket: ticket.refuse(Internal("no"))),
    "cancel": (CANCELLED, lambda ticket: ticket.cancel()),
    "expire": (EXPIRED, lambda ticket: ticket.expire(DeadlineExceeded("too late"))),
}
#: Operations without effect on an ended ticket, since its caller and owner may not know yet that it has
#: ended.
HARMLESS = {"cancel", "expire", "refuse"}


@pytest.mark.parametrize("before", list(TicketState))
@pytest.mark.parametrize("name", MOVES)
def test_every_operation_moves_a_ticket_as_the_table_allows(before: TicketState, name: str) -> None:
    after, move = MOVES[name]
    ticket = in_state(before)
    late = name == "complete" and before in (CANCELLED, EXPIRED)
    if after in TRANSITIONS[before]:
        move(ticket)
        assert ticket.state is after
    elif late or (before in ENDS and name in HARMLESS):
        move(ticket)
        assert ticket.state is before
    else:
        with pytest.raises(IllegalTransition, match=f"is {before.value}, so it cannot become {after.value}"):
            move(ticket)
        assert ticket.state is before


@pytest.mark.parametrize("before", list(TicketState))
@pytest.mark.parametrize("name", MOVES)
def test_a_ticket_completes_once_and_never_after_cancellation_or_refusal(
    before: TicketState, name: str
) -> None:
    answers: list[object] = []
    ticket = in_state(before, answers)
    for move in (MOVES[name][1], MOVES["complete"][1]):
        with suppress(IllegalTransition):
            move(ticket)
    ended_unanswered = before in ENDS or name in ("cancel", "refuse")
    assert len(answers) == (0 if ended_unanswered else 1)


@pytest.mark.parametrize("state", [QUEUED, RUNNING])
def test_cancellation_notifies_the_owner_once(state: TicketState) -> None:
    first, last = Keeper(), Keeper()
    ticket = made()
    ticket.enqueue(first)
    ticket.enqueue(last)
    if state is RUNNING:
        ticket.start(last)
    ticket.cancel()
    ticket.cancel()
    ticket.expire(DeadlineExceeded("too late"))
    assert (first.lost, last.lost, ticket.owner) == ([], [ticket], None)


def test_cancelling_a_released_ticket_notifies_nobody() -> None:
    keeper = Keeper()
    ticket = made()
    ticket.enqueue(keeper)
    ticket.release()
    ticket.cancel()
    assert keeper.lost == []


def test_postponing_a_deadline_notifies_the_owner() -> None:
    keeper = Keeper()
    ticket = made()
    ticket.enqueue(keeper)
    ticket.postpone(7.0)
    assert keeper.moved == [7.0]


@pytest.mark.parametrize(
    ("end", "heard"),
    [
        ("complete", ["ended", "delivered"]),
        ("expire", ["ended", "delivered"]),
        ("cancel", ["abandoned"]),
        ("refuse", ["refused"]),
    ],
)
def test_listeners_learn_of_the_end_once(end: str, heard: list[str]) -> None:
    ear = Ear()
    ticket = in_state(QUEUED)
    ticket.listen(ear)
    MOVES[end][1](ticket)
    for late in HARMLESS:
        MOVES[late][1](ticket)
    assert ear.heard == heard


def test_a_completion_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault of the caller")

    ear = Ear()
    ticket = Ticket(InferRequest("m", {}), fail)
    ticket.listen(ear)
    ticket.complete(response(), None)
    assert "the completion of a request to model 'm' failed" in caplog.text
    assert (ticket.state, ear.heard) == (DONE, ["ended", "delivered"])


def test_a_stand_in_equals_its_ticket_except_for_the_changes() -> None:
    """Compares all fields, so that a new one cannot be forgotten."""
    request = InferRequest("m", {}, "3", "id", ("y",), {"a": 1}, 2, 5.0, 1.0, None, 17)
    ticket = Ticket(request, lambda *_: None)
    ticket.deadline, ticket.level, ticket.batch_size, ticket.batch_key = 4.0, 1, 3, "key"
    ticket.enqueue(Keeper())
    ticket.listen(Ear())
    ticket.identity = "app"
    flying = InFlight()
    flying.count(ticket)
    other = ticket.stand_in(lambda *_: None, outputs=())
    fields = InferRequest.__struct_fields__
    changed = [name for name in fields if getattr(other.request, name) != getattr(request, name)]
    assert changed == ["outputs"]
    fresh = {
        "_listeners",
        "_on_complete",
        "_on_response",
        "context",
        "flow",
        "owner",
        "request",
        "state",
        "counted",
    }
    kept = [name for name in Ticket.__slots__ if name not in fresh]
    assert [getattr(other, name) for name in kept] == [getattr(ticket, name) for name in kept]
    assert (other.state, other.owner, other.listeners) == (NEW, None, ())
    other.complete(response(), None)
    assert flying.in_flight == 1  # only the ticket itself counts


@pytest.mark.parametrize("end", ["complete", "expire", "cancel", "refuse"])
@pytest.mark.parametrize("heard", [False, True])
def test_a_ticket_is_in_flight_until_its_first_end(end: str, heard: bool) -> None:
    flying = InFlight()
    ticket = in_state(QUEUED)
    flying.count(ticket)
    if heard:
        ticket.listen(Ear())
    assert flying.in_flight == 1
    MOVES[end][1](ticket)
    for late in HARMLESS:
        MOVES[late][1](ticket)
    assert flying.in_flight == 0
