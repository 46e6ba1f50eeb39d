"""Tracks the progress of a request through an ensemble, and decides which steps run next. This module
performs no I/O and reads no clock.

A decoupled step sends any number of responses. For each response, the steps that follow the decoupled step
run once; this is called a round. The level of a step is the number of decoupled steps that precede it in the
graph, and a round consists of the steps of one level. Rounds are numbered in the order of the responses that
began them, and the responses of the ensemble are sent in the order of the rounds, even if later rounds finish
first. A decoupled step that follows another decoupled step processes its rounds one after the other, so that
its responses are in order, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from backline.schedule.ensembles.graph import EnsemblePlan
from backline_client.values.tensor import Tensor

#: Tensors by their names in the ensemble; None in place of a tensor that a response lacks.
Tensors = Mapping[str, Tensor | None]


class Round:
    """A round of a level, with the tensors that are available so far."""

    __slots__ = ("lacks", "level", "number", "tensors", "waits")

    def __init__(self, level: int, number: int, tensors: Tensors, plan: EnsemblePlan) -> None:
        self.level = level
        self.number = number
        self.tensors = dict(tensors)
        #: For each step of the plan, the number of tensors that the step still waits for.
        self.waits = list(plan.waits)
        #: The number of the ensemble's outputs that are still missing.
        self.lacks = plan.made


@dataclass(slots=True, eq=False)
class _Rounds:
    """The rounds of a level: the numbers of rounds that have begun (`made`) and that are `open`, and whether
    the level is `closed`, so that no more rounds can begin.
    """

    made: int = 0
    open: int = 0
    closed: bool = False


@dataclass(slots=True, eq=False)
class _InTurn:
    """The rounds that a decoupled step still has to process, one after the other.

    `number` is the number of the current round if the step is `busy`, and of the next round otherwise.
    `early` has the rounds whose inputs are available, but whose turn has not come yet.
    """

    number: int = 0
    busy: bool = False
    early: dict[int, Round] = field(default_factory=dict)


class EnsembleProgress:
    """Decides, whenever a step responds or ends, which steps start, and which rounds are sent as responses.

    A step has at most `limit` rounds in flight; a decoupled step has only one. More than `limit` rounds of a
    level are open only if the decoupled step that begins them keeps responding although the level is `full`.
    """

    def __init__(self, plan: EnsemblePlan, inputs: Tensors, limit: int) -> None:
        """Begins the first round. `inputs` are the tensors of the request."""
        self._plan = plan
        self._limit = limit
        self._levels = [_Rounds() for _ in range(plan.depth + 1)]
        self._under_way = [0] * len(plan.steps)
        self._waiting: dict[int, deque[Round]] = {}
        #: The decoupled steps by their numbers in the plan. Each decoupled step begins the rounds of the next
        #: level.
        self._turns = {number: _InTurn() for number in plan.chain}
        self._complete: dict[int, Round] = {}
        self._answered = 0
        #: The steps to start, in order: the round, and the number of the step in the plan. The caller removes
        #: the entries.
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
        """Whether all rounds have been sent, and no more rounds can follow."""
        level = self._levels[-1]
        return level.closed and self._answered == level.made

    def full(self, level: int) -> bool:
        """Returns whether the decoupled step that begins the rounds of this level should pause, because too
        many of these rounds are open.
        """
        return self._levels[level].open >= self._limit

    def next_answer(self) -> Round | None:
        """Returns the next round to send as a response, or None if the outputs of that round are not
        complete.
        """
        complete = self._complete.pop(self._answered, None)
        if complete is not None:
            self._answered += 1
            self._levels[-1].open -= 1
        return complete

    def responded(self, asked: Round, number: int, tensors: Tensors) -> None:
        """Processes a response that a step has sent in the round `asked`. A decoupled step may send
        several.
        """
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
        """Records that a step will send no more responses in the round `asked`."""
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
        """Starts a step whose inputs are available."""
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
        """Closes the next level if the decoupled step that begins its rounds has finished, and likewise each
        level after that.
        """
        for number in self._plan.chain[level:]:
            rounds = self._levels[level]
            if not rounds.closed or self._turns[number].number < rounds.made:
                return
            level += 1
            self._levels[level].closed = True
