"""The poll of an event loop before it sleeps, on real loops with real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from time import perf_counter, thread_time

import pytest
import uvloop

from backline.system.busy_poll import BusyPoll
from backline.system.polled_socket import PolledSocket

LONGEST = 0.02

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


@pytest.mark.parametrize(
    "new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"]
)
def test_a_loop_polls_while_input_is_expected(new_loop: NewLoop) -> None:
    poll = BusyPoll()
    poll.allow(LONGEST)

    async def polled() -> bool:
        iterations = Iterations(asyncio.get_running_loop(), poll)
        try:
            for _ in range(20):  # another program may take the core, which pauses polling
                await iterations.teach()
                if not poll.asleep:
                    return True
            return False
        finally:
            iterations.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(polled())


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
