"""How far one request has come on its way through an ensemble, and what is next: a policy over plain data, without a clock and I/O.

A decoupled step answers with any number of responses, each of which goes through the steps behind it: that is a round of these steps. The
rounds of a level are numbered in the order of the responses, and the outputs are given in the order of their rounds, also when later ones
are ready first. Behind a decoupled step another one takes one round after the other, so that its responses have an order, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from backline.engine.tensor import Tensor
from backline.schedule.ensembles.graph import EnsemblePlan

#: By the ensemble's name of a tensor; None is one that a response does not have.
Tensors = Mapping[str, Tensor | None]


class Round:
    """One pass through the steps of a level, and the tensors that are there."""

    __slots__ = ("lacks", "level", "number", "tensors", "waits")

    def __init__(self, level: int, number: int, tensors: Tensors, plan: EnsemblePlan) -> None:
        self.level = level
        self.number = number
        self.tensors = dict(tensors)
        #: For each step of the plan, the tensors that it still waits for.
        self.waits = list(plan.waits)
        #: The outputs of the ensemble that are not there.
        self.lacks = plan.made


class _Rounds:
    """The rounds of a level: how many have begun, how many of these are open, and whether there are no more."""

    __slots__ = ("closed", "made", "open")

    def __init__(self) -> None:
        self.made = 0
        self.open = 0
        self.closed = False


class _InTurn:
    """The rounds that a decoupled step has still to do, one after the other."""

    __slots__ = ("busy", "early", "number")

    def __init__(self) -> None:
        self.number = 0
        self.busy = False
        self.early: dict[int, Round] = {}


class EnsembleProgress:
    """Told what has happened, it says which steps are to be started and which rounds are to be answered.

    No step has more than `limit` rounds under way at once, a decoupled one has one. More are open for a moment only, when a decoupled
    step gives responses although it was told that its level is `full`.
    """

    def __init__(self, plan: EnsemblePlan, inputs: Tensors, limit: int) -> None:
        """`inputs` are the tensors of the request."""
        self._plan = plan
        self._limit = limit
        self._levels = [_Rounds() for _ in range(plan.depth + 1)]
        self._under_way = [0] * len(plan.steps)
        self._waiting: dict[int, deque[Round]] = {}
        #: The decoupled steps: of each level below the last there is one, by which the next begins.
        self._turns = {number: _InTurn() for number in plan.chain}
        self._complete: dict[int, Round] = {}
        self._answered = 0
        #: The steps to be started, by their numbers in the plan, in this order: to be taken from it.
        self.ready: deque[tuple[Round, int]] = deque()
        first = self._begin(0, inputs)
        self._levels[0].closed = True
        for number, waits in enumerate(plan.waits):
            if not waits:
                self._start(first, number)
        if not plan.made:
            self._complete[0] = first

    @property
    def finished(self) -> bool:
        """Whether all rounds that there will be were answered."""
        level = self._levels[-1]
        return level.closed and self._answered == level.made

    def full(self, level: int) -> bool:
        """Whether the decoupled step that gives the rounds of a level should give no more for now."""
        return self._levels[level].open >= self._limit

    def next_answer(self) -> Round | None:
        """The round whose outputs are to be given now, if they are there."""
        complete = self._complete.pop(self._answered, None)
        if complete is not None:
            self._answered += 1
            self._levels[-1].open -= 1
        return complete

    def responded(self, asked: Round, number: int, tensors: Tensors) -> None:
        """A step has given a response, which may be the first of many, to a round."""
        plan = self._plan
        planned = plan.steps[number]
        target = self._begin(asked.level + 1, {}) if planned.decoupled else asked
        own, waits, consumers = target.tensors, target.waits, plan.consumers
        for name, tensor in tensors.items():
            own[name] = tensor
            for consumer in consumers.get(name, ()):
                waits[consumer] -= 1
                if not waits[consumer]:
                    self._start(target, consumer)
        if planned.answers:
            target.lacks -= planned.answers
            if not target.lacks:
                self._complete[target.number] = target

    def ended(self, asked: Round, number: int) -> None:
        """A step gives no more responses to a round."""
        turn = self._turns.get(number)
        if turn is None:
            self._under_way[number] -= 1
            waiting = self._waiting.get(number)
            if waiting:
                self._start(waiting.popleft(), number)
            return
        turn.busy = False
        turn.number += 1
        self._levels[asked.level].open -= 1
        self._take_turn(turn, number)
        self._close(asked.level)

    def _begin(self, level: int, tensors: Tensors) -> Round:
        rounds = self._levels[level]
        begun = Round(level, rounds.made, tensors, self._plan)
        rounds.made += 1
        rounds.open += 1
        return begun

    def _start(self, begun: Round, number: int) -> None:
        """The tensors of a step are there."""
        turn = self._turns.get(number)
        if turn is not None:
            turn.early[begun.number] = begun
            self._take_turn(turn, number)
        elif self._under_way[number] < self._limit:
            self._under_way[number] += 1
            self.ready.append((begun, number))
        else:
            self._waiting.setdefault(number, deque()).append(begun)

    def _take_turn(self, turn: _InTurn, number: int) -> None:
        if not turn.busy and turn.number in turn.early:
            turn.busy = True
            self.ready.append((turn.early.pop(turn.number), number))

    def _close(self, level: int) -> None:
        """Closes the levels above one of which a decoupled step has done another round."""
        for number in self._plan.chain[level:]:
            rounds = self._levels[level]
            if not rounds.closed or self._turns[number].number < rounds.made:
                return
            level += 1
            self._levels[level].closed = True
