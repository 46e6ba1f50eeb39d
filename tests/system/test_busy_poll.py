"""The poll of an event loop before it sleeps, on real loops with real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from time import perf_counter, thread_time

import pytest
import uvloop

from backline_client.system import busy_poll
from backline_client.system.busy_poll import BusyPoll, BusyPollPolicy, PolledSocket

LONGEST = 0.02


def spare(now: float) -> bool:
    """Other programs on this machine do not matter."""
    return True


NewLoop = Callable[[], asyncio.AbstractEventLoop]


class Iterations:
    """Counts the iterations of a loop whose poll learned that input arrives every millisecond. For each
    input, the loop calls `work` once it has run out of input.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, poll: BusyPoll, work: Callable[[], None] = lambda: None
    ) -> None:
        self.loop = loop
        self.work = work
        self.poll = poll
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        loop.add_reader(self.ours, self._readable)

    def _readable(self) -> None:
        self.ours.recv(100)
        self.poll.note_input()
        self.loop.call_soon(self.loop.call_soon, self.work)

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
    poll.allow(LONGEST, spare)
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


async def polls(clock: Clock, poll: BusyPoll, count: int, work: Callable[[], None] = lambda: None) -> int:
    """How many of `count` regular gaps the loop polls for, after it has learned from as many."""
    iterations = Iterations(asyncio.get_running_loop(), poll, work)
    polled = 0
    for number in range(2 * count):
        iterations.theirs.send(b"x")
        await turns()
        polled += number >= count and not poll._asleep
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
    poll.allow(200e-6, spare)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(polls(clock, poll, 150)) == 150
    assert poll._asleep


@pytest.mark.parametrize(
    "new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"]
)
def test_few_gaps_are_observed_until_one_is_worth_a_poll(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, new_loop: NewLoop
) -> None:
    observed: list[float] = []
    observe = BusyPollPolicy.observe
    monkeypatch.setattr(
        BusyPollPolicy, "observe", lambda policy, gap: (observed.append(gap), observe(policy, gap))
    )
    poll = BusyPoll()
    poll.allow(200e-6, spare)

    async def observed_of(gaps: int, seconds: float) -> int:
        iterations = Iterations(asyncio.get_running_loop(), poll)
        observed.clear()
        for _ in range(gaps):
            iterations.theirs.send(b"x")
            await turns()
            clock.now += seconds
        iterations.close()
        return len(observed)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(observed_of(1_000, 0.01)) < 100
        assert runner.run(observed_of(100, 50e-6)) > 80
        assert not poll._asleep, "the policy polls by now"
        assert runner.run(observed_of(1_000, 0.01)) < 120


def test_a_poll_lets_others_use_its_core_between_two_checks(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[float] = []
    monkeypatch.setattr(busy_poll, "give_way", lambda: offered.append(clock.now))
    poll = BusyPoll()
    poll.allow(200e-6, spare)

    assert asyncio.run(polls(clock, poll, 150)) == 150
    assert len(set(offered)) >= 150  # at least once in each gap


def test_a_poll_keeps_its_core_until_input_has_been_handled(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[None] = []
    offered: list[int] = []
    monkeypatch.setattr(busy_poll, "give_way", lambda: offered.append(len(waiting)))
    poll = BusyPoll()
    poll.allow(200e-6, spare)

    read = Iterations._readable

    def readable(iterations: Iterations) -> None:
        read(iterations)
        waiting.append(None)
        iterations.loop.call_soon(waiting.pop)

    monkeypatch.setattr(Iterations, "_readable", readable)
    assert asyncio.run(polls(clock, poll, 150)) == 150
    assert set(offered) == {0}


def test_there_is_no_poll_while_all_cores_are_busy(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    poll = BusyPoll()
    poll.allow(200e-6, lambda now: False)

    assert asyncio.run(polls(clock, poll, 150)) == 0


@pytest.mark.parametrize(
    "new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"]
)
def test_deferred_work_on_the_loop_does_not_count_as_a_loss_of_the_core(
    clock: Clock, new_loop: NewLoop
) -> None:
    poll = BusyPoll()
    poll.allow(1e-3, spare)

    def work() -> None:
        clock.now += 500e-6

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(polls(clock, poll, 150, work)) == 150


async def polls_by_kind(
    clock: Clock, poll: BusyPoll, count: int, of_server: float = 50e-6, of_client: float = 40e-6
) -> tuple[int, int]:
    """For how many of `count` gaps of each kind the loop polls: while it awaits a server, and a client."""
    iterations = Iterations(asyncio.get_running_loop(), poll)
    of_servers = of_clients = 0
    for number in range(2 * count):
        poll.awaited = 1
        await turns()
        of_servers += number >= count and not poll._asleep
        clock.now += of_server
        poll.awaited = 0
        iterations.theirs.send(b"x")  # the response of the server, which is passed on to the client
        await turns()
        of_clients += number >= count and not poll._asleep
        clock.now += of_client
        poll.awaited = 1
        iterations.theirs.send(b"x")  # the next request of the client, which is passed on to the server
        await turns()
    clock.now += 1.0
    await turns()
    iterations.close()
    return of_servers, of_clients


@pytest.mark.parametrize(
    "new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"]
)
def test_a_loop_that_shares_its_core_with_the_client_still_polls_for_other_servers(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, new_loop: NewLoop
) -> None:
    poll = BusyPoll()
    poll.allow(200e-6, lambda now: poll.awaited > 0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        of_servers, of_clients = runner.run(polls_by_kind(clock, poll, 200))

    assert of_servers > 190
    assert of_clients < 10


@pytest.mark.parametrize("of_client", [390e-6, 10e-3], ids=["soon", "late"])
def test_a_poll_for_another_server_may_last_twice_as_long(clock: Clock, of_client: float) -> None:
    poll = BusyPoll()
    poll.allow(200e-6, spare)

    of_servers, of_clients = asyncio.run(
        polls_by_kind(clock, poll, 400, of_server=390e-6, of_client=of_client)
    )

    assert of_servers > 390
    assert of_clients == 0


@pytest.mark.parametrize("longest", [None, 0.0])
def test_a_poll_that_was_not_allowed_never_runs(
    monkeypatch: pytest.MonkeyPatch, longest: float | None
) -> None:
    monkeypatch.setattr(BusyPoll, "_look", lambda poll, loop: pytest.fail("the loop polls"))
    poll = BusyPoll()
    if longest is not None:
        poll.allow(longest, spare)

    async def run() -> None:
        iterations = Iterations(asyncio.get_running_loop(), poll)
        await iterations.teach()
        iterations.close()

    asyncio.run(run())


def test_a_poll_stops_while_a_thread_computes() -> None:
    poll = BusyPoll()
    poll.allow(LONGEST, spare)

    async def states() -> list[bool]:
        iterations = Iterations(asyncio.get_running_loop(), poll)
        try:
            poll.hold()
            await iterations.teach()
            held = poll._asleep
            poll.release()
            iterations.theirs.send(b"x")
            await asyncio.sleep(3 * LONGEST)
            return [held, poll._asleep]
        finally:
            iterations.close()

    assert asyncio.run(states()) == [True, True]


def test_a_polled_socket_reads_what_a_blocking_one_reads() -> None:
    ours, theirs = socket.socketpair()
    polled = PolledSocket(ours)
    polled.allow(LONGEST, spare)
    buffer = bytearray(10)

    def echo() -> None:
        for _ in range(300):
            theirs.send(theirs.recv(10))
        theirs.close()

    peer = threading.Thread(target=echo)
    peer.start()
    for number in range(300):
        message = b"%d" % number
        ours.send(message)
        size = polled.recv_into(buffer)
        assert buffer[:size] == message
    assert polled.recv_into(buffer) == 0
    peer.join()
    ours.close()


def test_a_polled_socket_sleeps_until_bytes_arrive() -> None:
    ours, theirs = socket.socketpair()
    polled = PolledSocket(ours)
    polled.allow(0.001, spare)
    timer = threading.Timer(0.1, theirs.send, [b"late"])
    timer.start()
    buffer = bytearray(10)
    began, cpu = perf_counter(), thread_time()

    assert polled.recv_into(buffer) == 4

    assert buffer[:4] == b"late"

    assert perf_counter() - began > 0.05
    assert thread_time() - cpu < 0.02
    ours.close()
    theirs.close()
