"""Everything that happens to the requests of one model, and what was promised to them: a scheduler's callers and its instances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Any, ClassVar

import numpy as np

import backline.engine.ticket as ticket_module
from backline.engine.datatypes import DataType
from backline.engine.errors import BacklineError, Cancelled, InvalidArgument, Unavailable
from backline.engine.messages import InferRequest, InferResponse, Rescheduled, SequenceStep
from backline.engine.statistics import ModelStatistics
from backline.engine.tensor import Tensor
from backline.engine.ticket import DONE, EXPIRED, TRANSITIONS, Ticket, TicketState
from backline.schedule.queues.queue import QueueTotal
from backline.workers.batch import Batch
from backline.workers.instance import Finished
from schedule.turns import Clock, SteppedLoop

#: How a batch ends whose requests the model wants to have once more.
AGAIN = 3
#: Seconds that somebody may be told late that the time is over.
SLACK = 0.01


@dataclass(eq=False)
class Asked:
    """A request, and what its caller knows of it."""

    number: int
    ticket: Ticket
    values: list[float]
    #: What its caller does when it has the answer.
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
    """Claims of every transition that the table allows it, and that a ticket which has ended has no owner."""

    __slots__ = ("_state",)
    #: Where a broken promise is noted; set while a world exists.
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
    """Whoever is answered has a fault."""


class HeldInstance:
    """Doubles what it gets, when it is told to; or at once, where it runs on the loop."""

    def __init__(self, world: World, *, beside_loop: bool, prompt: bool) -> None:
        self.beside_loop = beside_loop  # type: ignore[misc]  # of some instances it is known only here
        self._world = world
        #: Whether a batch ends as soon as it is abandoned.
        self._prompt = prompt
        self._finished: Finished | None = None
        self.batch: Batch | None = None
        self.vacated: list[tuple[Batch, Finished]] = []
        self.closed = False

    def run(self, batch: Batch, finished: Finished) -> None:
        self._world.claim(self.batch is None, "an instance runs one batch at a time")
        self._world.claim(not self.closed, "an instance that is closed runs nothing")
        self.batch, self._finished = batch, finished
        if self._prompt:
            batch.on_abandon = self._abandoned
        self._world.began(batch)
        if not self.beside_loop:
            self.end(len(self._world.begun) % 3)

    def vacate(self) -> None:
        """It can have the next batch, before this one has its answers."""
        assert self.batch is not None
        assert self._finished is not None
        self.vacated.append((self.batch, self._finished))
        self.batch.on_abandon = None
        vacate, self.batch.on_vacated = self.batch.on_vacated, None
        self.batch = None
        if vacate is not None:
            vacate(self, self.vacated[-1][0])

    def end(self, failing: int = 0) -> None:
        """Ends what runs: with answers, or with an error for all, or for one of them."""
        if self.batch is None:
            batch, finished = self.vacated.pop(0)
        else:
            batch, finished = self.batch, self._finished  # type: ignore[assignment]
            self.batch = None
        now = self._world.clock.ns
        batch.gathered_ns = batch.ran_ns = batch.ended_ns = now
        batch.executed = True
        batch.on_abandon = None
        outcomes: list[InferResponse | BacklineError | None] = [_doubled(ticket) for ticket in batch.tickets]
        if batch.abandoned:
            outcomes = [Cancelled("nobody waits")] * len(outcomes)
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
        #: What the values of a request are multiplied by.
        self.factor = 2
        self.faults: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(repr(context)))
        self.asked: list[Asked] = []
        #: Those who were refused at once, and how many of them as they asked for what is not there.
        self.refused = 0
        self.invalid = 0
        self.instances: list[HeldInstance] = []
        #: The place of a request among those that wait: nobody runs before somebody with a lower one.
        self.rank: Callable[[Asked], Any] = lambda asked: 0
        #: Those for whom the run of another one is theirs, too.
        self.began_for: Callable[[Asked], list[Asked]] = lambda asked: []
        self.running: list[Batch] = []
        #: Those of the batch that begins to run.
        self.starting: list[Ticket] = []
        self.begun: list[Ticket] = []
        self._ordered = ordered
        #: Those who were taken from the queue, in the order in which they are to be answered.
        self._order: list[Asked] = []
        self._numbers = count()
        WatchedTicket.claim = self.claim
        self._ticket, ticket_module.Ticket = ticket_module.Ticket, WatchedTicket  # stand-ins are watched, too

    def claim(self, holds: bool, what: str) -> None:
        """Notes what is wrong: those who call do not let errors through."""
        if not holds:
            self.faults.append(what)

    def close(self) -> None:
        ticket_module.Ticket = self._ticket
        self.loop.close()
        self.clock.__exit__()

    def instance(self, *, beside_loop: bool = True, prompt: bool = False) -> HeldInstance:
        made = HeldInstance(self, beside_loop=beside_loop, prompt=prompt)
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
        then: Callable[[], None] | None = None,
    ) -> Asked | None:
        """Submits a request; None when it is refused."""
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
        )
        ticket.batch_size, ticket.batch_key = len(values), key
        asked = ticket.context = Asked(number, ticket, values, then)
        try:
            self.loop.inside(lambda: submit(ticket))
        except (Unavailable, InvalidArgument) as error:
            assert not asked.answers, "who is refused is not answered"
            self.refused += 1
            self.invalid += isinstance(error, InvalidArgument)
            asked.cancelled = True
            return None
        self.asked.append(asked)
        return asked

    def _answered(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        asked: Asked = ticket.context  # type: ignore[assignment]
        self.claim(not asked.cancelled, "who has cancelled is not answered")
        self.claim(not asked.answers, "a request is answered once")
        self.claim(ticket.state in (DONE, EXPIRED), "what is answered has ended")
        self.claim(ticket.owner is None, "what is answered has no owner")
        self.claim((response is None) != (error is None), "an answer is a response or an error")
        asked.answers.append(response or error)
        if response is not None:
            self.claim(response.id == ticket.request.id, "a response has the id of its request")
            outputs = [self.factor * value for value in asked.values]
            self.claim(response.outputs[0].data.tolist() == outputs, "a response is that of its request")
        if self._ordered and asked.started:
            before = self._order[: self._order.index(asked)]
            self.claim(all(other.over for other in before), "those who were taken before are answered before")
        if asked.then is not None:
            try:
                asked.then()
            except FaultOfTheirs:
                raise
            except Exception as fault:
                self.claim(False, f"what is done with an answer does not fail: {fault!r}")

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
        self.claim(len({ticket.batch_key for ticket in asked}) == 1, "the requests of a batch have one key")
        for ticket in asked:
            self.claim(not ticket.cancelled, "what was cancelled is not run")
            self.claim(ticket.deadline is None or ticket.deadline > now, "what has expired is not run")
            self.claim(ticket not in self.begun, "nothing is run twice")
            one = self.asked_of(ticket)
            self.claim(
                bool(not one.answers or self.began_for(one)), f"what was answered is not run: {one.number}"
            )
            one.started = True
            for other in self.began_for(one):
                other.started = True
        self.begun += asked
        self.running.append(batch)
        last = max(self.rank(self.asked_of(ticket)) for ticket in asked)
        for other in self.waiting:
            self.claim(self.rank(other) >= last or self.deadline_of(other) <= now, "nobody is passed over")

    def ended(self, batch: Batch) -> None:
        """It does not run any more."""
        self.running.remove(batch)

    def asked_of(self, ticket: Ticket) -> Asked:
        """Whose request, or part of one, is run."""
        return next(asked for asked in self.asked if asked.number == int(ticket.request.id))

    # what is known

    @property
    def open(self) -> list[Asked]:
        """Those who wait for an answer."""
        return [asked for asked in self.asked if not asked.over]

    @property
    def waiting(self) -> list[Asked]:
        """Those of them whose run has not begun."""
        return [asked for asked in self.open if not asked.started]

    @property
    def unloaded(self) -> int:
        """Those who were told that the model goes away."""
        return sum("is being unloaded" in str(answer) for asked in self.asked for answer in asked.answers)

    @staticmethod
    def deadline_of(asked: Asked) -> float:
        return inf if asked.ticket.deadline is None else asked.ticket.deadline

    def overdue(self, asked: Asked) -> bool:
        """Whether somebody should have been told that the time is over."""
        return self.deadline_of(asked) < self.clock.monotonic() - SLACK


def _doubled(ticket: Ticket) -> InferResponse:
    x = ticket.request.inputs["x"]
    return InferResponse("m", "1", ticket.request.id, [Tensor("y", x.datatype, x.shape, x.data * 2)])


def _part(whole: Batch, ticket: Ticket, outcome: InferResponse | BacklineError | None) -> Batch:
    part = Batch([ticket], ticket.batch_size, whole.started_ns)
    part.gathered_ns, part.ran_ns, part.ended_ns = whole.gathered_ns, whole.ran_ns, whole.ended_ns
    part.outcomes, part.executed, part.shared = [outcome], True, True
    return part
