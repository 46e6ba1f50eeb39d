"""The policy of sequences: which are open, where each one has its place, and which request of it is next. Plain data, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import islice, takewhile
from math import inf

from backline.engine.messages import SequenceStep
from backline.engine.ticket import Ticket
from backline.schedule.sequences.state_store import State


class LiveSequence:
    """An open sequence, or one that has ended but whose last requests are still to be run."""

    __slots__ = ("arriving", "ended", "id", "last_ns", "memory", "place", "running", "state", "waiting")

    def __init__(self, id: int | str, now_ns: int) -> None:
        self.id = id
        #: (slot, lane), while it has a place.
        self.place: tuple[int, int] | None = None
        #: Requests behind the one that runs, in their order.
        self.waiting: deque[Ticket] = deque()
        self.running: Ticket | None = None
        #: Whether its last request has come.
        self.ended = False
        #: What its last request has left; None before the first.
        self.state: State | None = None
        #: Where the model keeps what else it knows of it, since its first request; None where that cannot be lost.
        self.memory: object = None
        #: Whether its state is being fetched: nothing of it is run before.
        self.arriving = False
        #: When something was last heard or run of it.
        self.last_ns = now_ns


class SequenceTable:
    """The sequences of one model version.

    There are `lanes` with `slots` places each. A sequence has one of them from its first request to its end; without a free place it waits
    for one, and so do its requests, the one that began first first. One request of a sequence runs at a time. A sequence ends with the
    request that says so, or after `idle_ns` without any.
    """

    def __init__(
        self, lanes: int, slots: int, idle_ns: int, works: Callable[[int], bool] = lambda _: True
    ) -> None:
        """`works` tells of a lane whether it can run anything at the moment: places on those that can are given first."""
        self.idle_ns = idle_ns
        self._works = works
        #: The open sequences by id, the one that was idle for longest first.
        self.open: dict[int | str, LiveSequence] = {}
        #: Those with requests that wait.
        self.backlogged: dict[LiveSequence, None] = {}
        #: The requests that wait, without those that run.
        self.waiting = 0
        #: The requests that were taken and are not done.
        self.running = 0
        self._placed: dict[LiveSequence, None] = {}
        self._unplaced: dict[LiveSequence, None] = {}
        #: Free places, a heap; those of later slots come when these are taken, as there may be far more places than sequences.
        self._free: list[tuple[int, int]] = []
        self._later: Iterator[list[tuple[int, int]]] = iter(())
        self.resize(lanes, slots)

    @property
    def empty(self) -> bool:
        """Whether no sequence is left, open or ending."""
        return not self.open and not self._placed and not self._unplaced

    def resize(self, lanes: int, slots: int) -> list[LiveSequence]:
        """Goes on with other places; those who had one are the first to get one. Returns who has one now."""
        before = [*self._placed, *self._unplaced]
        self._later = ([(slot, lane) for lane in range(lanes)] for slot in range(slots))
        self._free = next(self._later, [])
        self._placed = {}
        self._unplaced = dict.fromkeys(before)
        for sequence in before:
            sequence.place = None
        return self._fill()

    def runs_at_once(self, step: SequenceStep) -> bool:
        """Whether a request would not wait: its sequence has a place, or gets one, and nothing before it."""
        sequence = self.open.get(step.id)
        if sequence is None:
            return bool(self._free) and not self._unplaced
        return sequence.place is not None and sequence.running is None and not sequence.waiting

    def accept(self, ticket: Ticket, now_ns: int) -> LiveSequence | None:
        """Puts a request behind those of its sequence; None for a sequence that is not open and that the request does not begin."""
        step = ticket.request.sequence
        assert step is not None, "it was checked"
        sequence = self.open.get(step.id)
        if sequence is None:
            if not step.start:
                return None
            sequence = self._begin(step.id, now_ns)
        self._append(sequence, ticket, now_ns)
        return sequence

    def adopt(self, ticket: Ticket, now_ns: int) -> LiveSequence:
        """Goes on with a sequence that began elsewhere, whose state is to be fetched: nothing of it runs before `arrived`."""
        step = ticket.request.sequence
        assert step is not None, "it was checked"
        sequence = self._begin(step.id, now_ns)
        sequence.arriving = True
        self._append(sequence, ticket, now_ns)
        return sequence

    def _begin(self, id: int | str, now_ns: int) -> LiveSequence:
        sequence = self.open[id] = LiveSequence(id, now_ns)
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
        if ticket.request.sequence is not None and ticket.request.sequence.end:
            sequence.ended = True
            del self.open[sequence.id]

    def _heard(self, sequence: LiveSequence, now_ns: int) -> None:
        sequence.last_ns = now_ns
        if self.open.get(sequence.id) is sequence:  # to the end, behind all who were idle for longer
            del self.open[sequence.id]
            self.open[sequence.id] = sequence

    def take(self, sequence: LiveSequence) -> Ticket | None:
        """The next request of a sequence, if it may run now."""
        if (
            sequence.place is None
            or sequence.running is not None
            or sequence.arriving
            or not sequence.waiting
        ):
            return None
        ticket = sequence.running = sequence.waiting.popleft()
        self.waiting -= 1
        self.running += 1
        if not sequence.waiting:
            del self.backlogged[sequence]
        return ticket

    def put_back(self, sequence: LiveSequence) -> None:
        """The request that ran is the next one of its sequence again."""
        assert sequence.running is not None, "it was taken"
        sequence.waiting.appendleft(sequence.running)
        sequence.running = None
        self.backlogged[sequence] = None
        self.waiting += 1
        self.running -= 1

    def finish(self, sequence: LiveSequence, now_ns: int) -> list[LiveSequence]:
        """The request that ran is done. Returns the sequences of which one may run now."""
        sequence.running = None
        self.running -= 1
        self._heard(sequence, now_ns)
        return [sequence] if sequence.waiting else self._release_if_over(sequence)

    def drop(self, sequence: LiveSequence, ticket: Ticket) -> tuple[list[Ticket], list[LiveSequence]]:
        """A request that waits will not be run, nor will what it was to begin. Returns as `lose_beginning`."""
        index = sequence.waiting.index(ticket)
        self._take_out(sequence, [ticket])
        return (
            self.lose_beginning(sequence, index) if _begins(ticket) else ([], self._release_if_over(sequence))
        )

    def lose_beginning(
        self, sequence: LiveSequence, index: int = 0
    ) -> tuple[list[Ticket], list[LiveSequence]]:
        """What was to begin a sequence before the request at `index` of those that wait has not run.

        That one and what follows it are taken out, up to the next request that begins it; if there is none the sequence ends. Returns what
        was taken out, and the sequences of which one may run now.
        """
        behind = list(islice(sequence.waiting, index, None))
        orphans = list(takewhile(lambda ticket: not _begins(ticket), behind))
        self._take_out(sequence, orphans)
        if len(orphans) == len(behind):
            self.end(sequence)
        return orphans, self._release_if_over(sequence)

    def _take_out(self, sequence: LiveSequence, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            sequence.waiting.remove(ticket)
        self.waiting -= len(tickets)
        if not sequence.waiting:
            self.backlogged.pop(sequence, None)

    def clear(self, sequence: LiveSequence) -> list[Ticket]:
        """Takes out the requests of a sequence that wait; it goes on without them."""
        tickets = list(sequence.waiting)
        self._take_out(sequence, tickets)
        return tickets

    def end_idle(self, now_ns: int) -> tuple[list[LiveSequence], list[LiveSequence]]:
        """Ends the sequences of which nothing was heard for too long. Returns them, and the sequences of which one may run now."""
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
        """The moment at which the next sequence will have been idle for too long, unless something is heard of it; or infinity."""
        return next((sequence.last_ns + self.idle_ns for sequence in self.open.values()), inf)

    def expired(self, now: float) -> tuple[list[tuple[LiveSequence, Ticket]], float]:
        """The requests that wait although their deadline is over, and the nearest deadline of the others, or infinity."""
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
        """Nothing more of it comes than waits."""
        sequence.ended = True
        if self.open.get(sequence.id) is sequence:
            del self.open[sequence.id]

    def _release_if_over(self, sequence: LiveSequence) -> list[LiveSequence]:
        return (
            self._release(sequence)
            if sequence.ended and not sequence.waiting and sequence.running is None
            else []
        )

    def _release(self, sequence: LiveSequence) -> list[LiveSequence]:
        """Gives the place of a sequence that is over to the next one."""
        self._unplaced.pop(sequence, None)
        if sequence.place is None:
            return []
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
        if not self._works(free[0][1]):
            if not any(self._works(lane) for _, lane in free):
                free += next(self._later, [])  # one of each lane
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


def _begins(ticket: Ticket) -> bool:
    return ticket.request.sequence is not None and ticket.request.sequence.start
