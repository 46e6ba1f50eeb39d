"""Keeps an event loop from sleeping while the next input is about to arrive (docs/decisions/busy-poll.md)."""

from __future__ import annotations

import os
import select
from asyncio import AbstractEventLoop, get_running_loop
from collections import deque
from collections.abc import Callable
from math import inf
from socket import socket
from time import perf_counter
from typing import Final, TypeAlias

#: Seconds from the arrival of input until a sleeping loop is awake, on an idle core.
WAKE_TIME: Final = 30e-6
#: Polling through a gap of fewer seconds takes less CPU time than falling asleep and waking up.
_CHEAP: Final = 30e-6
#: The weight of the latest gap in the averages: the policy learns from a few dozen gaps.
_WEIGHT: Final = 1 / 16
#: The share of gaps that must be as expected. Of random gaps, half are similar to an earlier one.
_MOST: Final = 0.7
#: Each gap is compared with the gap this many gaps earlier: requests have one, two, three or six gaps each.
_PERIOD: Final = 6
#: If this many seconds pass between two checks for input, others need the core. A client needs it for less.
_LOST_CORE: Final = 400e-6
#: The longest pause after losses of the core, in gaps: 0.1 s of short requests.
_LONGEST_REST: Final = 1023
#: Seconds between checks for a spare core, which take a tenth of the time of a short request.
_CHECK_INTERVAL: Final = 0.01
#: The number of inputs after which no gap is observed while polls would not pay off, since that takes up to
#: 9 microseconds. Two more are a prime, so that each of the gaps of a request is observed in its turn.
_UNOBSERVED: Final = 15
#: Lets a thread that is ready to run on this core go first: it may be the client that the poll waits for.
give_way: Callable[[], None] = getattr(os, "sched_yield", lambda: None)
#: Returns whether a core is left for polling, given the time of `perf_counter`.
SpareCore: TypeAlias = Callable[[float], bool]


class BusyPollPolicy:
    """Learns from gaps whether polling for the next input pays off.

    A gap is the time between finishing all work and receiving the next input, in seconds. Most gaps must end
    within `longest`, but not before the loop can sleep, as they do under load. The policy polls if they are
    short, or like earlier gaps: the gaps of clients that wait for each response. It does not poll for random
    arrivals: what arrives during a sleep runs as one batch, which takes less CPU time.
    """

    def __init__(self, longest: float) -> None:
        self.longest = longest
        #: Whether to poll in the next gap, and whether hardly any gap is worth it: observing some is enough.
        self.polls, self.hopeless = False, True
        # Moving averages: gaps up to `longest`, and the shares of gaps that are worth a poll, and that are
        # similar to an earlier one.
        self._mean, self._hits, self._similar = longest, 0.0, 0.0
        self._earlier = deque([longest] * _PERIOD, _PERIOD)
        # The pause after a loss of the core, and what is left of it, in gaps.
        self._rest = self._resting = 0
        self._checked, self._has_spare_core = -inf, True

    def observe(self, gap: float) -> None:
        """Learns from a gap. If the loop slept, `gap` is WAKE_TIME less than that: negative if the loop was
        awake earlier, because there was input or its core was busy.
        """
        hit = 0.0 <= gap <= self.longest
        gap = min(max(gap, 0.0), self.longest)
        similar = abs(gap - self._earlier[0]) <= (self._mean + WAKE_TIME) / 2
        self._earlier.append(gap)
        self._mean += _WEIGHT * (gap - self._mean)
        self._hits += _WEIGHT * (hit - self._hits)
        self._similar += _WEIGHT * (similar - self._similar)
        if self._resting:
            self._resting -= 1
        elif self.polls:  # nobody else needed the core
            self._rest = 3 * self._rest // 4
        self.hopeless = self._hits < _WEIGHT / 2
        expected = self._mean <= _CHEAP or self._similar >= _MOST
        self.polls = self._hits >= _MOST and expected and not self._resting and self.longest > 0.0

    def begins(self, now: float, has_spare_core: SpareCore) -> bool:
        """Returns whether to poll in the gap that begins at `now`."""
        if self.polls and now - self._checked > _CHECK_INTERVAL:
            self._checked, self._has_spare_core = now, has_spare_core(now)
        return self.polls and self._has_spare_core

    def continues(self, began: float, looked: float, now: float) -> bool:
        """Returns whether to continue a poll that began at `began` and last looked for input at `looked`.
        Polling pauses if it has lost the core since, for longer each time, unless most polls do not.
        """
        if now - looked > _LOST_CORE:
            self._rest = self._resting = min(2 * self._rest + 1, _LONGEST_REST)
            self.polls = False
        return self.polls and now - began <= self.longest


class BusyPoll:
    """Polls before an event loop sleeps, with a callback in every iteration, once `allow` has been called.

    Gaps in which the server awaits other servers have a policy of their own, and polls that last twice as
    long: if all processes that handle a request sleep, the gaps are so long that none would start to poll.
    """

    def __init__(self) -> None:
        self._policies = BusyPollPolicy(0.0), BusyPollPolicy(0.0)
        self._policy = self._policies[0]
        self._has_spare_core: SpareCore = lambda now: False
        #: The longest poll in seconds, and the number of responses that are awaited from other servers.
        self.longest, self.awaited = 0.0, 0
        self._arrived = self._asleep = False
        # When the loop ran out of input (0 while it has input, or if unknown), and when the poll last looked.
        self._began = self._looked = 0.0
        # The number of threads that compute for the loop, and of inputs until a gap is observed.
        self._holds = self._unobserved = 0

    def allow(self, longest: float, has_spare_core: SpareCore) -> None:
        """Allows polls of at most `longest` seconds while `has_spare_core`; 0 turns polling off."""
        self.longest, self._has_spare_core = longest, has_spare_core
        self._policies = BusyPollPolicy(longest), BusyPollPolicy(2 * longest)
        self._asleep = longest > 0.0

    def hold(self) -> None:
        """Stops polling until `release`: a thread computes, and needs the interpreter once it is done."""
        self._holds += 1
        self._began = 0.0

    def release(self) -> None:
        self._holds -= 1

    def note_input(self) -> None:
        """Code that reads input on the loop must call this afterwards."""
        self._arrived = True
        if not self._asleep or self._holds:
            return
        if self._unobserved:
            self._unobserved -= 1
            return
        if self._began:
            self._policy.observe(perf_counter() - self._began - WAKE_TIME)
            self._began = 0.0
            if all(policy.hopeless for policy in self._policies):
                self._unobserved = _UNOBSERVED
                return
        self._asleep = False
        loop = get_running_loop()
        loop.call_soon(self._look, loop)

    def _look(self, loop: AbstractEventLoop) -> None:
        self._asleep = self._holds > 0 or not self._stays_awake(perf_counter())
        if not self._asleep:
            loop.call_soon(self._look, loop)

    def _stays_awake(self, now: float) -> bool:
        if self._arrived:
            self._arrived = False
            if self._began:
                self._policy.observe(now - self._began)
            self._policy = self._policies[self.awaited > 0]
            # A gap without a poll includes the rest of this iteration: to know better would take one more.
            self._began = 0.0 if any(policy.polls for policy in self._policies) else now
            return not self._began
        if self._began:
            if not self._policy.continues(self._began, self._looked, now):
                return False
            self._looked = now
        else:
            self._began, self._looked = now, inf  # deferred work may follow, which is no loss of the core
            self._policy = self._policies[self.awaited > 0]  # the input may have caused a call
            if not self._policy.begins(now, self._has_spare_core):
                return False
        give_way()
        return True


class PolledSocket:
    """A blocking socket that is polled before a read sleeps. Only one thread may read."""

    def __init__(self, connected: socket) -> None:
        self._socket = connected
        self._policy = BusyPollPolicy(0.0)
        self._look = select.poll()
        self._look.register(connected, select.POLLIN)

    def allow(self, longest: float, has_spare_core: SpareCore) -> None:
        self._policy, self._has_spare_core = BusyPollPolicy(longest), has_spare_core

    def recv_into(self, buffer: bytearray) -> int:
        policy = self._policy
        if not policy.longest:
            return self._socket.recv_into(buffer)
        began = perf_counter()
        polls, looked = policy.begins(began, self._has_spare_core), inf
        while polls:
            ready = self._look.poll(0)
            now = perf_counter()
            if ready:
                policy.observe(now - began)
                return self._socket.recv_into(buffer)
            polls, looked = policy.continues(began, looked, now), now
            give_way()
        size = self._socket.recv_into(buffer)
        policy.observe(perf_counter() - began - WAKE_TIME)
        return size
