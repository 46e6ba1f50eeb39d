"""Keeps an event loop from sleeping while the next input is about to arrive."""

from __future__ import annotations

import os
from asyncio import get_running_loop
from pathlib import Path
from time import perf_counter

from backline.system.busy_poll_policy import CHECK_INTERVAL, LOST_CORE, WAKE_TIME, BusyPollPolicy

#: The fourth field starts with the number of threads that run or are ready to run (proc(5)).
_LOAD = Path("/proc/loadavg")


def has_idle_core() -> bool:
    """Returns whether the machine has a core for every thread that is ready to run; True if that is
    unknown.
    """
    try:
        running = _LOAD.read_text().split()[3].partition("/")[0]
    except (OSError, IndexError):  # not Linux
        return True
    return int(running) <= (os.cpu_count() or 1)


class BusyPoll:
    """Polls for input before the event loop sleeps, for as long as its policy says. Polling is off until
    `allow` is called.

    While polling, a callback runs in every iteration of the loop, so that the loop asks for events without
    waiting for them. This works with any event loop, and timers, threads and signals are served as usual.

    Code that reads input on the loop must set `arrived`, and call `wake` if the poll is `asleep`. There is no
    polling while a thread computes for the loop, because polling would compete with it for the interpreter:
    see `hold`. Nor is there any while all cores of the machine are busy: other threads need them, and a busy
    core wakes up at once anyway.
    """

    __slots__ = (
        "_holds",
        "_looked",
        "_next_check",
        "_policy",
        "_quiet_since",
        "arrived",
        "asleep",
    )

    def __init__(self) -> None:
        self._policy = BusyPollPolicy(0.0)
        #: Whether input has arrived since the last check.
        self.arrived = False
        #: Whether `wake` must be called when input arrives.
        self.asleep = False
        #: When the loop last ran out of input; 0 while it has input, or if the time is unknown.
        self._quiet_since = 0.0
        #: When the poll last looked for input.
        self._looked = 0.0
        #: When to check next whether a core is idle; 0 before the first poll after a sleep.
        self._next_check = 0.0
        #: The number of threads that compute for the loop.
        self._holds = 0

    def allow(self, longest: float) -> None:
        """Allows polls of at most `longest` seconds; 0 turns polling off. Must be called before input
        arrives.
        """
        self._policy = BusyPollPolicy(longest)
        self.asleep = longest > 0.0

    @property
    def longest(self) -> float:
        """The maximum duration of a poll, in seconds; 0 if polling is off."""
        return self._policy.longest

    def hold(self) -> None:
        """Stops polling until `release`, because a thread computes."""
        self._holds += 1
        self._quiet_since = 0.0

    def release(self) -> None:
        """Cancels one call of `hold`."""
        self._holds -= 1

    def wake(self) -> None:
        """Resumes polling after the loop has slept. Must be called on the loop when input has arrived."""
        if self._holds:
            return
        self.asleep = False
        if self._quiet_since:
            self._policy.observe(perf_counter() - self._quiet_since - WAKE_TIME)
            self._quiet_since = 0.0
        get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        if self._holds:
            self.asleep = True
            return
        policy = self._policy
        now = perf_counter()
        if self.arrived:
            self.arrived = False
            if self._quiet_since:
                policy.observe(now - self._quiet_since)
            if not policy.length:
                # The gap includes the work that remains in this turn. An exact time would take another
                # iteration.
                self._quiet_since = now
                self._next_check = 0.0
                self.asleep = True
                return
            self._quiet_since = 0.0
        elif not self._quiet_since:
            self._quiet_since = now
            if policy.length and now > self._next_check:
                self._next_check = now + CHECK_INTERVAL
                if not has_idle_core():
                    policy.lose_core()
                    self.asleep = True
                    return
        elif now - self._looked > LOST_CORE:
            policy.lose_core()
            self._quiet_since = 0.0
            self.asleep = True
            return
        elif now - self._quiet_since > policy.length:
            self.asleep = True
            return
        self._looked = now
        get_running_loop().call_soon(self._look)
