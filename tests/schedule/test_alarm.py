"""A timer for many times: it rings at the first of them."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import pytest

from backline.schedule.turn import Alarm
from schedule.turns import Clock, SteppedLoop


@pytest.fixture
def loop() -> Iterator[SteppedLoop]:
    with Clock() as clock:
        made = SteppedLoop(clock)
        yield made
        made.close()


def test_an_alarm_rings_once_at_the_earliest_time_set(loop: SteppedLoop) -> None:
    rang: list[float] = []
    alarm = Alarm(lambda: rang.append(loop.time()), loop)
    began = loop.time()
    for seconds in (3, 1, 2):
        alarm.set(began + seconds)
    for _ in range(5):
        loop.later(1)
    assert rang == [began + 1]
    assert alarm.moment == inf


def test_an_alarm_can_be_set_again_as_it_rings_and_stopped(loop: SteppedLoop) -> None:
    rang: list[float] = []

    def ring() -> None:
        rang.append(loop.time())
        alarm.set(loop.time() + 1)

    alarm = Alarm(ring, loop)
    alarm.set(loop.time())
    for _ in range(3):
        loop.later(1)
    assert len(rang) == 3
    alarm.stop()
    loop.later(5)
    assert len(rang) == 3


def test_an_alarm_waits_at_least_for_its_pause(loop: SteppedLoop) -> None:
    rang: list[float] = []
    alarm = Alarm(lambda: rang.append(loop.time()), loop, pause=1)
    alarm.set(loop.time() - 5)
    loop.later(0.5)
    assert not rang
    loop.later(0.5)
    assert rang
    alarm.set(loop.time(), pause=3)
    loop.later(2)
    assert len(rang) == 1
    loop.later(1)
    assert len(rang) == 2
