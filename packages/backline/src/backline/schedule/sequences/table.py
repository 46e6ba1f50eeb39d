"""The policy for sequences. It tracks which sequences are open, which places they have, and which request of
each sequence is next. This module performs no I/O and reads no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import islice, takewhile
from math import inf
from types import MappingProxyType

from backline.engine.ticket import Ticket
from backline.schedule.sequences.state_store import State
from backline_client.values.errors import Forbidden
from backline_client.values.messages import SequenceStep


@dataclass(slots=True, eq=False)
class LiveSequence:
    """A sequence that is open, or that has ended but still has requests that must run."""

    id: int | str
    #: The time when the sequence last had a request or a run, from time.monotonic_ns().
    last_ns: int
    #: The `Ticket.identity` of the caller that began the sequence.
    holder: str = ""
    #: The place of the sequence, as (slot, lane). None while the sequence has no place.
    place: tuple[int, int] | None = None
    #: The requests that wait, in order.
    waiting: deque[Ticket] = field(default_factory=deque)
    running: Ticket | None = None
    #: Whether the last request of the sequence has arrived.
    ended: bool = False
    #: The state after the previous request; None before the first request.
    state: State | None = None
    #: The `Remembers.memory` of the instance in whose process the model keeps the state of the sequence; None
    #: if the state cannot be lost.
    memory: object = None
    #: Whether a waiting request may have a timeout. Timeouts apply only while the sequence has no place.
    timed: bool = False
    #: Whether the state of the sequence is still being fetched from the store. Until then, no request of the
    #: sequence runs.
    arriving: bool = False

    @property
    def over(self) -> bool:
        """Whether the sequence has ended and has no more requests to run."""
        return self.ended and not self.waiting and self.running is None


class SequenceTable:
    """The sequences of a model version.

    There are `lanes` lanes with `slots` places each. A sequence has a place from its first request to its
    end. If no place is free, the sequence and its requests wait for a place; of the waiting sequences, the
    one that began first gets the next place. Only one request of a sequence runs at a time. A sequence ends
    with a request that is marked as the last, or after `idle_ns` nanoseconds without a request.
    """

    def __init__(
        self, lanes: int, slots: int, idle_ns: int, works: Callable[[int], bool] = lambda _: True
    ) -> None:
        """Creates the table. `works` returns whether a lane can currently run requests; places on such
        lanes are assigned first.
        """
        self.idle_ns = idle_ns
        self._works = works
        #: The open sequences by id. The sequence that has been idle for the longest time is first.
        self.open: dict[int | str, LiveSequence] = {}
        #: The sequences that have waiting requests.
        self.backlogged: dict[LiveSequence, None] = {}
        #: The number of waiting requests, not counting requests that are running.
        self.waiting = 0
        #: The number of requests that have been taken and have not been finished.
        self.running = 0
        self._placed: dict[LiveSequence, None] = {}
        self._unplaced: dict[LiveSequence, None] = {}
        #: A heap of free places. To save memory, the places of a slot are added only once all places of lower
        #: slots are taken: there may be far more places than sequences.
        self._free: list[tuple[int, int]] = []
        self._later: Iterator[list[tuple[int, int]]] = iter(())
        #: The number of lanes that get sequences.
        self._lanes = lanes
        self.resize(lanes, slots)

    @property
    def empty(self) -> bool:
        """Whether there are no open sequences, and no sequences with requests that must run."""
        return not self.open and not self._placed and not self._unplaced

    def resize(
        self, lanes: int, slots: int, kept: Mapping[int, int] = MappingProxyType({})
    ) -> list[LiveSequence]:
        """Changes the number of places. Sequences on lanes in `kept`, which maps the old number of a lane to
        its new number, keep their slots; the other places are assigned again, first to the sequences that had
        a place. Lanes with numbers from `lanes` on get no further sequences.

        Returns the sequences that have a place now.
        """
        before = [*self._placed, *self._unplaced]
        self._placed, self._unplaced = {}, {}
        for sequence in before:
            if sequence.place is not None and sequence.place[1] in kept:
                sequence.place = sequence.place[0], kept[sequence.place[1]]
                self._placed[sequence] = None
            else:
                sequence.place = None
                self._unplaced[sequence] = None
        taken = {sequence.place for sequence in self._placed}
        rows = ([(slot, lane) for lane in range(lanes)] for slot in range(slots))
        self._later = (free for row in rows if (free := [place for place in row if place not in taken]))
        self._free = next(self._later, [])
        self._lanes = lanes
        return [*self._placed, *self._fill()]

    def uses(self, lane: int) -> bool:
        """Returns whether a sequence has a place on a lane."""
        return any(sequence.place is not None and sequence.place[1] == lane for sequence in self._placed)

    def runs_at_once(self, step: SequenceStep) -> bool:
        """Returns whether a request would run immediately: its sequence has a place or gets one, and has no
        other request to run.
        """
        sequence = self.open.get(step.id)
        if sequence is None:
            return bool(self._free) and not self._unplaced
        return sequence.place is not None and sequence.running is None and not sequence.waiting

    def is_foreign(self, ticket: Ticket) -> bool:
        """Returns whether the sequence of a request is open and was begun by another caller."""
        sequence = self.open.get(step_of(ticket).id)
        return sequence is not None and sequence.holder != ticket.identity

    def accept(self, ticket: Ticket, now_ns: int) -> LiveSequence | None:
        """Queues a request in its sequence. Returns None if the sequence is not open and the request does not
        start one.
        """
        step = step_of(ticket)
        sequence = self.open.get(step.id)
        if sequence is None:
            if not step.start:
                return None
            sequence = self._begin(ticket, now_ns)
        self._append(sequence, ticket, now_ns)
        return sequence

    def adopt(self, ticket: Ticket, now_ns: int) -> LiveSequence:
        """Opens a sequence that began in another load of this version, or on another server.

        No request of the sequence runs while the sequence is `arriving`, that is, while its state is being
        fetched.
        """
        sequence = self._begin(ticket, now_ns)
        sequence.arriving = True
        self._append(sequence, ticket, now_ns)
        return sequence

    def _begin(self, ticket: Ticket, now_ns: int) -> LiveSequence:
        id = step_of(ticket).id
        sequence = self.open[id] = LiveSequence(id, now_ns, ticket.identity)
        if self._free and not self._unplaced:
            self._put(sequence)
        else:
            self._unplaced[sequence] = None
        return sequence

    def _append(self, sequence: LiveSequence, ticket: Ticket, now_ns: int) -> None:
        sequence.waiting.append(ticket)
        self.backlogged[sequence] = None
        self.waiting += 1
        self._heard(sequence, now_ns)
        if step_of(ticket).end:
            sequence.ended = True
            del self.open[sequence.id]

    def _heard(self, sequence: LiveSequence, now_ns: int) -> None:
        sequence.last_ns = now_ns
        # `open` is sorted by idle time, so the sequence moves to the end.
        if self.open.get(sequence.id) is sequence:
            del self.open[sequence.id]
            self.open[sequence.id] = sequence

    def take(self, sequence: LiveSequence) -> Ticket | None:
        """Removes and returns the next request of a sequence; None if no request of the sequence may run
        now.
        """
        blocked = sequence.place is None or sequence.running is not None or sequence.arriving
        if blocked or not sequence.waiting:
            return None
        ticket = sequence.running = sequence.waiting.popleft()
        self.waiting -= 1
        self.running += 1
        if not sequence.waiting:
            del self.backlogged[sequence]
        return ticket

    def put_back(self, sequence: LiveSequence) -> None:
        """Makes the running request of a sequence its next request again."""
        assert sequence.running is not None, "called for a running request"
        sequence.waiting.appendleft(sequence.running)
        sequence.running = None
        self.backlogged[sequence] = None
        self.waiting += 1
        self.running -= 1

    def finish(self, sequence: LiveSequence, now_ns: int) -> list[LiveSequence]:
        """Records that the running request of a sequence has finished. Returns the sequences that may now
        have a request to run.
        """
        sequence.running = None
        self.running -= 1
        self._heard(sequence, now_ns)
        return [sequence] if sequence.waiting else self._release_if_over(sequence)

    def drop(self, sequence: LiveSequence, ticket: Ticket) -> tuple[list[Ticket], list[LiveSequence]]:
        """Removes a waiting request. If the request begins the sequence, also removes the requests that
        depend on it; see `lose_beginning`.
        """
        index = sequence.waiting.index(ticket)
        self._take_out(sequence, [ticket])
        if step_of(ticket).start:
            return self.lose_beginning(sequence, index)
        return [], self._release_if_over(sequence)

    def lose_beginning(
        self, sequence: LiveSequence, index: int = 0
    ) -> tuple[list[Ticket], list[LiveSequence]]:
        """Removes requests that cannot run because the request that begins their sequence did not run.

        Removes the waiting requests from `index` up to the next request that begins the sequence. If there is
        no such request, the sequence ends. Returns the removed requests, and the sequences that may now have
        a request to run.
        """
        following = list(islice(sequence.waiting, index, None))
        orphans = list(takewhile(lambda ticket: not step_of(ticket).start, following))
        self._take_out(sequence, orphans)
        if len(orphans) == len(following):
            self.end(sequence)
        return orphans, self._release_if_over(sequence)

    def _take_out(self, sequence: LiveSequence, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            sequence.waiting.remove(ticket)
        self.waiting -= len(tickets)
        if not sequence.waiting:
            self.backlogged.pop(sequence, None)

    def reject(self, sequence: LiveSequence) -> list[Ticket]:
        """Ends a sequence that still waits for a place. Removes and returns the requests of the sequence."""
        tickets = self.clear(sequence)
        self.end(sequence)
        self._release_if_over(sequence)
        return tickets

    def clear(self, sequence: LiveSequence) -> list[Ticket]:
        """Removes and returns the waiting requests of a sequence. The sequence continues."""
        tickets = list(sequence.waiting)
        self._take_out(sequence, tickets)
        return tickets

    def end_idle(self, now_ns: int) -> tuple[list[LiveSequence], list[LiveSequence]]:
        """Ends the sequences that have been idle for too long.

        Returns the ended sequences, and the sequences that may now have a request to run.
        """
        ended: list[LiveSequence] = []
        runnable: list[LiveSequence] = []
        for sequence in list(self._idle_since(now_ns - self.idle_ns)):
            if sequence.waiting or sequence.running is not None or sequence.arriving:
                self._heard(sequence, now_ns)
                continue
            ended.append(sequence)
            self.end(sequence)
            runnable += self._release(sequence)
        return ended, runnable

    def _idle_since(self, moment_ns: int) -> Iterator[LiveSequence]:
        for sequence in self.open.values():
            if sequence.last_ns > moment_ns:
                return
            yield sequence

    def next_idle_ns(self) -> float:
        """Returns the time, in nanoseconds, when the next sequence will have been idle for too long; infinity
        if there is none.
        """
        return next((sequence.last_ns + self.idle_ns for sequence in self.open.values()), inf)

    def expired(self, now: float) -> tuple[list[tuple[LiveSequence, Ticket]], float]:
        """Returns the waiting requests that have expired, and the nearest deadline of the other waiting
        requests; infinity if there is none.
        """
        over: list[tuple[LiveSequence, Ticket]] = []
        nearest = inf
        for sequence in self.backlogged:
            for ticket in sequence.waiting:
                if ticket.deadline is None:
                    continue
                if ticket.deadline <= now:
                    over.append((sequence, ticket))
                else:
                    nearest = min(nearest, ticket.deadline)
        return over, nearest

    def end(self, sequence: LiveSequence) -> None:
        """Makes a sequence end once its waiting requests have run."""
        sequence.ended = True
        if self.open.get(sequence.id) is sequence:
            del self.open[sequence.id]

    def _release_if_over(self, sequence: LiveSequence) -> list[LiveSequence]:
        return self._release(sequence) if sequence.over else []

    def _release(self, sequence: LiveSequence) -> list[LiveSequence]:
        """Gives the place of a finished sequence to the next sequence that waits for a place."""
        self._unplaced.pop(sequence, None)
        if sequence.place is None:
            return []
        if sequence.place[1] < self._lanes:
            heappush(self._free, sequence.place)
        del self._placed[sequence]
        sequence.place = None
        return self._fill()

    def _fill(self) -> list[LiveSequence]:
        filled = []
        while self._free and self._unplaced:
            sequence = next(iter(self._unplaced))
            del self._unplaced[sequence]
            self._put(sequence)
            filled.append(sequence)
        return filled

    def _put(self, sequence: LiveSequence) -> None:
        sequence.place = self._next_place()
        self._placed[sequence] = None

    def _next_place(self) -> tuple[int, int]:
        free = self._free
        # A place on a lane that cannot run requests now is assigned only if there is no other place.
        if not self._works(free[0][1]):
            if not any(self._works(lane) for _, lane in free):
                free += next(self._later, [])  # a place on each lane
            if others := [place for place in free if self._works(place[1])]:
                place = min(others)
                free.remove(place)
                heapify(free)
                self._free = free or next(self._later, [])
                return place
            heapify(free)
        place = heappop(free)
        self._free = free or next(self._later, [])
        return place


def begun_by_another(name: str, id: int | str) -> Forbidden:
    """Returns the error for a request of a sequence that another caller has begun.

    Security: callers choose the ids of their sequences, and often choose small numbers, so another caller can
    guess an id.
    """
    return Forbidden(
        f"sequence {id} of model '{name}' was begun by another caller; choose another correlation ID"
    )


def step_of(ticket: Ticket) -> SequenceStep:
    """Returns the step of a request in its sequence."""
    step = ticket.request.sequence
    assert step is not None, "the batcher has checked it"
    return step
