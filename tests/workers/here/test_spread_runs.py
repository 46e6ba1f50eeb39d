"""A run that is alone may use several cores; runs that share the machine use one core each."""

from __future__ import annotations

import pytest

from backline.workers.batch import Batch
from backline.workers.here import execution
from backline.workers.here.execution import (
    AFTER_CONTENTION,
    AFTER_OVERLAP,
    FORGET_OVERLAP,
    LONGEST_AFTER_OVERLAP,
    BudgetedExecution,
    CoreBudget,
)


class Clock:
    """A clock that tests move by hand."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


class Runs:
    """A model on two cores, and how each of its runs was made."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.budget = CoreBudget(2)
        self._execution = BudgetedExecution(
            lambda _: self.made.append("one core"), self.budget, 1, lambda _: self.made.append("spread")
        )

    def run(self) -> str:
        self._execution(Batch([], 0, 0))
        return self.made[-1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time, as on a machine on which nothing else runs."""
    clock = Clock()
    monkeypatch.setattr(execution, "monotonic_ns", clock)
    monkeypatch.setattr(execution, "seconds_without_core", lambda: 0.0)
    return clock


@pytest.mark.usefixtures("clock")
def test_every_run_of_a_lone_caller_is_spread() -> None:
    runs = Runs()

    assert [runs.run() for _ in range(3)] == ["spread"] * 3


def test_a_run_next_to_another_uses_one_core(clock: Clock) -> None:
    runs = Runs()
    runs.budget.take(1)
    clock.advance(10 * AFTER_OVERLAP)

    assert runs.run() == "one core"


def test_runs_are_spread_again_once_none_has_overlapped_for_a_while(clock: Clock) -> None:
    runs = Runs()
    runs.budget.take(1)
    runs.run()
    runs.budget.give(1)

    assert runs.run() == "one core"
    clock.advance(AFTER_OVERLAP)
    assert runs.run() == "spread"


def test_runs_are_spread_less_often_while_others_overlap_them(clock: Clock) -> None:
    budget = CoreBudget(2)
    made: list[str] = []
    overlapping = True

    def spread(_: Batch) -> None:
        made.append("spread")
        if overlapping:  # a second caller comes while the first is served
            budget.take(1)
            budget.give(1)

    execute = BudgetedExecution(lambda _: made.append("one core"), budget, 1, spread)

    def runs(count: int) -> list[str]:
        made.clear()
        for _ in range(count):
            execute(Batch([], 0, 0))
            clock.advance(AFTER_OVERLAP)
        return made

    assert runs(7).count("spread") == 3  # after 0, 2 and 4 times the shortest pause
    runs(64)
    assert runs(int(2 * LONGEST_AFTER_OVERLAP / AFTER_OVERLAP)).count("spread") == 2
    overlapping = False
    runs(int(LONGEST_AFTER_OVERLAP / AFTER_OVERLAP))
    assert runs(3) == ["spread"] * 3


@pytest.mark.parametrize(("quiet", "next_run"), [(0.5, "one core"), (2.0, "spread")])
def test_a_lone_caller_after_several_others_does_not_wait_long(
    clock: Clock, quiet: float, next_run: str
) -> None:
    budget = CoreBudget(2)
    made: list[str] = []

    def overlap() -> None:
        budget.take(1)
        budget.give(1)

    def spread(_: Batch) -> None:
        made.append("spread")
        overlap()

    execute = BudgetedExecution(lambda _: made.append("one core"), budget, 1, spread)
    pause = AFTER_OVERLAP
    for _ in range(4):
        execute(Batch([], 0, 0))
        pause *= 2
        clock.advance(pause)
    clock.advance(quiet * FORGET_OVERLAP)
    budget.take(1)
    overlap()
    budget.give(1)
    clock.advance(AFTER_OVERLAP)
    execute(Batch([], 0, 0))

    assert made == ["spread"] * 4 + [next_run]


def test_long_runs_overlap_until_the_first_of_them_ends(clock: Clock) -> None:
    runs = Runs()
    runs.budget.take(1)
    runs.budget.take(1)
    clock.advance(10 * AFTER_OVERLAP)
    runs.budget.give(1)
    runs.budget.give(1)

    assert runs.run() == "one core"


def test_no_run_is_spread_soon_after_one_that_waited_for_a_core(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = 0.0
    monkeypatch.setattr(execution, "seconds_without_core", lambda: waited)

    def run_beside_a_busy_program(_: Batch) -> None:
        nonlocal waited
        clock.advance(0.020)
        waited += 0.005

    budget = CoreBudget(2)
    made: list[str] = []
    run = BudgetedExecution(lambda _: made.append("one core"), budget, 1, run_beside_a_busy_program)
    run(Batch([], 0, 0))
    run(Batch([], 0, 0))
    clock.advance(AFTER_CONTENTION)
    run(Batch([], 0, 0))

    assert made == ["one core"]


@pytest.mark.usefixtures("clock")
def test_a_spread_run_delays_no_other_run() -> None:
    budget = CoreBudget(2)
    waited: list[bool] = []
    run = BudgetedExecution(lambda _: None, budget, 1, lambda _: waited.append(budget.take(1)))

    run(Batch([], 0, 0))

    assert waited == [False]
