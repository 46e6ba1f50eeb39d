"""The poll of an event loop before it sleeps, on real loops with real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from time import perf_counter, thread_time

import pytest
import uvloop

from backline.system import busy_poll
from backline.system.busy_poll import BusyPoll
from backline.system.polled_socket import PolledSocket

LONGEST = 0.02


@pytest.fixture(autouse=True)
def idle_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs on this machine do not matter."""
    monkeypatch.setattr(busy_poll, "has_idle_core", lambda: True)


NewLoop = Callable[[], asyncio.AbstractEventLoop]


class Iterations:
    """Counts the iterations of a loop whose poll learned that input arrives every millisecond."""

    def __init__(self, loop: asyncio.AbstractEventLoop, poll: BusyPoll) -> None:
        self.loop = loop
        self.poll = poll
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        loop.add_reader(self.ours, self._readable)

    def _readable(self) -> None:
        self.ours.recv(100)
        self.poll.arrived = True
        if self.poll.asleep:
            self.poll.wake()

    async def teach(self) -> None:
        """Lets input arrive regularly, until the policy polls for it."""
        for _ in range(200):
            self.theirs.send(b"x")
            await asyncio.sleep(0.0005)

    def close(self) -> None:
        self.loop.remove_reader(self.ours)
        self.ours.close()
        self.theirs.close()


async def cpu_of_silence(poll: BusyPoll, seconds: float) -> float:
    """The CPU seconds that the loop takes in a silence after regular input."""
    iterations = Iterations(asyncio.get_running_loop(), poll)
    try:
        await iterations.teach()
        await asyncio.sleep(2 * LONGEST)  # the last poll
        began = thread_time()
        await asyncio.sleep(seconds)
        return thread_time() - began
    finally:
        iterations.close()


@pytest.mark.parametrize(
    "new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"]
)
def test_a_silent_loop_takes_no_cpu(new_loop: NewLoop) -> None:
    poll = BusyPoll()
    poll.allow(LONGEST)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        used = runner.run(cpu_of_silence(poll, 0.2))

    assert used < 0.01


class Clock:
    """A clock that advances only when a test says so, so that gaps do not depend on the machine."""

    def __init__(self) -> None:
        self.now = 1.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(busy_poll, "perf_counter", clock)
    return clock


async def turns() -> None:
    """Lets the loop iterate until it has read what was sent and has run out of input."""
    for _ in range(20):
        await asyncio.sleep(0)


async def polls(clock: Clock, poll: BusyPoll, count: int) -> int:
    """How many of `count` regular gaps the loop polls for, after it has learned from as many."""
    iterations = Iterations(asyncio.get_running_loop(), poll)
    polled = 0
    for number in range(2 * count):
        iterations.theirs.send(b"x")
        await turns()
        polled += number >= count and not poll.asleep
        clock.now += 50e-6
    clock.now += 1.0  # ends the last poll
    await turns()
    iterations.close()
    return polled


@pytest.mark.parametrize(
    "new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"]
)
def test_a_loop_polls_while_input_is_expected(clock: Clock, new_loop: NewLoop) -> None:
    poll = BusyPoll()
    poll.allow(200e-6)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(polls(clock, poll, 150)) == 150
    assert poll.asleep


def test_there_is_no_poll_while_all_cores_are_busy(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy_poll, "has_idle_core", lambda: False)
    poll = BusyPoll()
    poll.allow(200e-6)

    assert asyncio.run(polls(clock, poll, 150)) == 0


def test_a_poll_that_was_not_allowed_never_runs() -> None:
    poll = BusyPoll()

    async def asleep() -> bool:
        iterations = Iterations(asyncio.get_running_loop(), poll)
        await iterations.teach()
        iterations.close()
        return poll.asleep

    assert asyncio.run(asleep()) is False
    assert poll.longest == 0.0


def test_a_poll_stops_while_a_thread_computes() -> None:
    poll = BusyPoll()
    poll.allow(LONGEST)

    async def states() -> list[bool]:
        iterations = Iterations(asyncio.get_running_loop(), poll)
        try:
            poll.hold()
            await iterations.teach()
            held = poll.asleep
            poll.release()
            iterations.theirs.send(b"x")
            await asyncio.sleep(3 * LONGEST)
            return [held, poll.asleep]
        finally:
            iterations.close()

    assert asyncio.run(states()) == [True, True]


def test_a_polled_socket_reads_what_a_blocking_one_reads() -> None:
    ours, theirs = socket.socketpair()
    polled = PolledSocket(ours)
    polled.allow(LONGEST)

    def echo() -> None:
        for _ in range(300):
            theirs.send(theirs.recv(10))
        theirs.close()

    peer = threading.Thread(target=echo)
    peer.start()
    for number in range(300):
        message = b"%d" % number
        ours.send(message)
        assert polled.recv(10) == message
    assert polled.recv(10) == b""
    peer.join()
    ours.close()


def test_a_polled_socket_sleeps_until_bytes_arrive() -> None:
    ours, theirs = socket.socketpair()
    polled = PolledSocket(ours)
    polled.allow(0.001)
    timer = threading.Timer(0.1, theirs.send, [b"late"])
    timer.start()
    began, cpu = perf_counter(), thread_time()

    assert polled.recv(10) == b"late"

    assert perf_counter() - began > 0.05
    assert thread_time() - cpu < 0.02
    ours.close()
    theirs.close()
