"""Everything that happens to the requests of one model, and the guarantees they have: callers and
instances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Any, ClassVar

import numpy as np

import backline.engine.ticket as ticket_module
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import DONE, EXPIRED, TRANSITIONS, Ticket, TicketState
from backline.schedule.queues.queue import QueueTotal
from backline.workers.batch import Batch
from backline.workers.instance import Finished
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Cancelled, InvalidArgument, Unavailable
from backline_client.values.messages import InferRequest, InferResponse, Rescheduled, SequenceStep
from backline_client.values.tensor import Tensor
from schedule.turns import Clock, SteppedLoop

#: How a batch ends whose requests the model wants to run again.
AGAIN = 3
#: By how many seconds an expiry may be late.
SLACK = 0.01


@dataclass(eq=False)
class Asked:
    """A request, and what its caller knows about it."""

    number: int
    ticket: Ticket
    values: list[float]
    #: What its caller does on completion.
    then: Callable[[], None] | None = None
    cancelled: bool = False
    started: bool = False
    answers: list[InferResponse | BacklineError | None] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.cancelled or bool(self.answers)

    def cancel(self) -> None:
        if not self.answers:
            self.cancelled = True
            self.ticket.cancel()


class WatchedTicket(Ticket):
    """Claims that every transition is in the table, and that an ended ticket has no owner."""

    __slots__ = ("_state",)
    #: Where violations are recorded; set while a world exists.
    claim: ClassVar[Callable[[bool, str], None]]

    @property
    def state(self) -> TicketState:  # type: ignore[override]
        return self._state

    @state.setter
    def state(self, state: TicketState) -> None:
        before = getattr(self, "_state", None)
        legal = before is None or state in TRANSITIONS[before]
        WatchedTicket.claim(legal, f"a ticket that is {before} does not become {state}")
        self._state = state


class FaultOfTheirs(Exception):
    """A completion raised."""


class HeldInstance:
    """Doubles its inputs: at once on the loop, otherwise when the test ends the batch."""

    def __init__(self, world: World, *, off_loop: bool, prompt: bool) -> None:
        self.off_loop = off_loop  # type: ignore[misc]  # varies per instance here
        self._world = world
        #: Whether a batch ends as soon as it is abandoned.
        self._prompt = prompt
        self._finished: Finished | None = None
        self.batch: Batch | None = None
        self.vacated: list[tuple[Batch, Finished]] = []
        self.closed = False

    def run(self, batch: Batch, finished: Finished) -> None:
        self._world.claim(self.batch is None, "an instance runs one batch at a time")
        self._world.claim(not self.closed, "a closed instance runs nothing")
        self.batch, self._finished = batch, finished
        if self._prompt:
            batch.on_abandon = self._abandoned
        self._world.began(batch)
        if not self.off_loop:
            self.end(len(self._world.begun) % 3)

    def vacate(self) -> None:
        """It can take the next batch before this one has its responses."""
        assert self.batch is not None
        assert self._finished is not None
        self.vacated.append((self.batch, self._finished))
        self.batch.on_abandon = None
        vacate, self.batch.on_vacated = self.batch.on_vacated, None
        self.batch = None
        if vacate is not None:
            vacate(self, self.vacated[-1][0])

    def end(self, failing: int = 0, *, silent: bool = False) -> None:
        """Ends the run: with responses, with an error for all requests or for one, or, if `silent`, without
        any more responses.
        """
        if self.batch is None:
            batch, finished = self.vacated.pop(0)
        else:
            batch, finished = self.batch, self._finished  # type: ignore[assignment]
            self.batch = self._finished = None
        now = self._world.clock.ns
        batch.gathered_ns = batch.ran_ns = batch.ended_ns = now
        batch.executed = True
        batch.on_abandon = None
        outcomes: list[InferResponse | BacklineError | None] = [_doubled(ticket) for ticket in batch.tickets]
        if batch.abandoned:
            outcomes = [Cancelled("the request was cancelled")] * len(outcomes)
        elif silent:
            outcomes = [None] * len(outcomes)
        elif failing == AGAIN:
            outcomes = [Rescheduled("m", "1", ticket.request.id, []) for ticket in batch.tickets]
        elif failing == 2:
            outcomes = [InvalidArgument("all fail")] * len(outcomes)
        elif failing == 1:
            outcomes[-1] = InvalidArgument("the last one fails")
        if failing == 1 and not batch.abandoned and len(outcomes) > 1:
            batch.parts = [
                _part(batch, ticket, outcome) for ticket, outcome in zip(batch.tickets, outcomes, strict=True)
            ]
        batch.outcomes = outcomes
        self._world.ended(batch)
        finished(self, batch)

    def _abandoned(self) -> None:
        self.end()

    def close(self) -> None:
        self.closed = True


class World:
    """One model's callers and instances. `most` is the largest batch."""

    def __init__(self, *, ordered: bool = False) -> None:
        self.clock = Clock().__enter__()
        self.loop = SteppedLoop(self.clock)
        self.statistics = ModelStatistics()
        self.total = QueueTotal(12)
        self.most = 8
        #: The factor that the values of a request are multiplied by.
        self.factor = 2
        self.faults: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(repr(context)))
        self.asked: list[Asked] = []
        #: The numbers of requests refused at once, and of those that were invalid.
        self.refused = 0
        self.invalid = 0
        self.instances: list[HeldInstance] = []
        #: The order of waiting requests: none runs before one with a lower rank.
        self.rank: Callable[[Asked], Any] = lambda asked: 0
        #: Requests that share another one's run.
        self.began_for: Callable[[Asked], list[Asked]] = lambda asked: []
        self.running: list[Batch] = []
        #: The requests of the batch that is about to run.
        self.starting: list[Ticket] = []
        self.begun: list[Ticket] = []
        self._ordered = ordered
        #: Requests taken from the queue, in the order in which they must complete.
        self._order: list[Asked] = []
        self._numbers = count()
        WatchedTicket.claim = self.claim
        self._ticket, ticket_module.Ticket = ticket_module.Ticket, WatchedTicket  # stand-ins are watched, too

    def claim(self, holds: bool, what: str) -> None:
        """Records a violation: callers swallow exceptions."""
        if not holds:
            self.faults.append(what)

    def close(self) -> None:
        ticket_module.Ticket = self._ticket
        self.loop.close()
        self.clock.__exit__()

    def instance(self, *, off_loop: bool = True, prompt: bool = False) -> HeldInstance:
        made = HeldInstance(self, off_loop=off_loop, prompt=prompt)
        self.instances.append(made)
        return made

    def ask(
        self,
        submit: Callable[[Ticket], None],
        values: list[float],
        *,
        within: float | None = None,
        timeout: float | None = None,
        priority: int = 0,
        key: object = None,
        step: SequenceStep | None = None,
        identity: str = "",
        then: Callable[[], None] | None = None,
        on_response: Callable[[Ticket, InferResponse], None] | None = None,
    ) -> Asked | None:
        """Submits a request; None if it is refused."""
        data = np.array(values, np.float32)
        deadline = None if within is None else self.clock.monotonic() + within
        number = next(self._numbers)
        ticket = WatchedTicket(
            InferRequest(
                "m",
                {"x": Tensor("x", DataType.FP32, data.shape, data)},
                id=str(number),
                deadline=deadline,
                timeout=timeout,
                priority=priority,
                sequence=step,
                arrived_ns=self.clock.ns,
            ),
            self._answered,
            on_response,
        )
        ticket.batch_size, ticket.batch_key, ticket.identity = len(values), key, identity
        asked = ticket.context = Asked(number, ticket, values, then)
        try:
            self.loop.inside(lambda: submit(ticket))
        except (Unavailable, InvalidArgument) as error:
            assert not asked.answers, "a refused request does not complete"
            self.refused += 1
            self.invalid += isinstance(error, InvalidArgument)
            asked.cancelled = True
            return None
        self.asked.append(asked)
        return asked

    def _answered(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        asked: Asked = ticket.context  # type: ignore[assignment]
        self.claim(not asked.cancelled, "a cancelled request does not complete")
        self.claim(not asked.answers, "a request completes once")
        self.claim(ticket.state in (DONE, EXPIRED), "a completed ticket has ended")
        self.claim(ticket.owner is None, "a completed ticket has no owner")
        ends = ticket.takes_many and response is error is None
        self.claim(ends or (response is None) != (error is None), "a completion has a response or an error")
        asked.answers.append(response or error)
        if response is not None:
            self.claim(response.id == ticket.request.id, "a response has the id of its request")
            outputs = [self.factor * value for value in asked.values]
            self.claim(response.outputs[0].data.tolist() == outputs, "a response is that of its request")
        if self._ordered and asked.started:
            before = self._order[: self._order.index(asked)]
            self.claim(
                all(other.over for other in before), "requests complete in the order in which they were taken"
            )
        if asked.then is not None:
            try:
                asked.then()
            except FaultOfTheirs:
                raise
            except Exception as fault:
                self.claim(False, f"completions do not fail: {fault!r}")

    # the instances

    def taken(self, batch: Batch) -> None:
        """A batch has been taken from the queue."""
        if self._ordered:
            self._order += [
                asked for ticket in batch.tickets if (asked := self.asked_of(ticket)) not in self._order
            ]

    def began(self, batch: Batch) -> None:
        """A batch runs."""
        self.taken(batch)
        asked = [ticket for ticket in batch.tickets if ticket.request.id]
        self.starting = batch.tickets
        now = self.clock.monotonic()
        self.claim(
            batch.items == sum(ticket.batch_size for ticket in batch.tickets),
            "a batch has the items of its requests",
        )
        self.claim(batch.items <= self.most or len(batch.tickets) == 1, "a batch is not above the maximum")
        if not asked:  # a request that stands for several requests to an ensemble
            self.running.append(batch)
            return
        self.claim(len({ticket.batch_key for ticket in asked}) == 1, "the requests of a batch have one key")
        for ticket in asked:
            self.claim(not ticket.cancelled, "a cancelled request does not run")
            self.claim(ticket.deadline is None or ticket.deadline > now, "an expired request does not run")
            self.claim(ticket not in self.begun, "no request runs twice")
            one = self.asked_of(ticket)
            self.claim(
                bool(not one.answers or self.began_for(one)),
                f"a completed request does not run: {one.number}",
            )
            one.started = True
            for other in self.began_for(one):
                other.started = True
        self.begun += asked
        self.running.append(batch)
        last = max(self.rank(self.asked_of(ticket)) for ticket in asked)
        for other in self.waiting:
            self.claim(self.rank(other) >= last or self.deadline_of(other) <= now, "no request is skipped")

    def ended(self, batch: Batch) -> None:
        """It has stopped running."""
        self.running.remove(batch)

    def asked_of(self, ticket: Ticket) -> Asked:
        """The request that runs, or a part of it."""
        return next(asked for asked in self.asked if asked.number == int(ticket.request.id))

    # what is known

    @property
    def open(self) -> list[Asked]:
        """Requests without a response yet."""
        return [asked for asked in self.asked if not asked.over]

    @property
    def waiting(self) -> list[Asked]:
        """Of these, the requests that have not started."""
        return [asked for asked in self.open if not asked.started]

    @property
    def unloaded(self) -> int:
        """Requests refused because the model was unloaded."""
        return sum("is being unloaded" in str(answer) for asked in self.asked for answer in asked.answers)

    @staticmethod
    def deadline_of(asked: Asked) -> float:
        return inf if asked.ticket.deadline is None else asked.ticket.deadline

    def overdue(self, asked: Asked) -> bool:
        """Whether a request should have expired by now."""
        return self.deadline_of(asked) < self.clock.monotonic() - SLACK


def _doubled(ticket: Ticket) -> InferResponse:
    x = ticket.request.inputs["x"]
    return InferResponse("m", "1", ticket.request.id, [Tensor("y", x.datatype, x.shape, x.data * 2)])


def _part(whole: Batch, ticket: Ticket, outcome: InferResponse | BacklineError | None) -> Batch:
    part = Batch([ticket], ticket.batch_size, whole.started_ns)
    part.gathered_ns, part.ran_ns, part.ended_ns = whole.gathered_ns, whole.ran_ns, whole.ended_ns
    part.outcomes, part.executed, part.shared = [outcome], True, True
    return part
