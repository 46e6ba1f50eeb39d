"""Keeps an event loop from sleeping while the next input is about to arrive."""

from __future__ import annotations

import os
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Callable
from functools import cache
from math import inf
from time import perf_counter

from backline_client.system.busy_poll_policy import BusyPollPolicy

_CORES = os.cpu_count() or 1
#: While polling would not pay off, the number of inputs after which nobody starts to observe a gap. With the
#: input that ends a gap and the one that starts the next, a cycle takes _UNOBSERVED + 2 inputs. This must be
#: a prime: requests may have two, three or more gaps each, and each kind of gap must be observed in its turn.
#: Observing a gap takes 5 to 9 microseconds: two readings of the clock and one more iteration of the loop.
_UNOBSERVED = 15

#: How much longer a poll may last while the server awaits responses of other servers. When all processes that
#: handle a request sleep until they are woken up, the gaps are up to twice as long as when they poll. If a
#: poll did not outlast such gaps, it would seem not to pay off, and no process would start to poll again.
_OF_SERVERS = 2

#: Lets another thread that is ready to run on this core go first. Unless a poll does so, the kernel may let a
#: thread that it has just woken up wait until the poll ends, and that thread may be the client whose request
#: the poll awaits. Does nothing on Windows, where there is no such call.
give_way: Callable[[], None] = getattr(os, "sched_yield", lambda: None)


def has_idle_core() -> bool:
    """Returns whether the machine has a core for every thread that needs one; True if the answer is unknown.

    On a machine with several cores, the number of threads that are ready to run may exceed the number of
    cores by one. The surplus thread is probably part of the same exchange: at the moment of the check, the
    client of this server, or the client of a server in front, has just been woken up by a response.

    This must be fast, because the input that a poll waits for may arrive in the meantime. So the file stays
    open, and the number of cores is read only once.
    """
    try:
        running = int(os.pread(_load(), 64, 0).split()[3].partition(b"/")[0])
    except (OSError, IndexError, ValueError):  # not Linux, or the code of a model has closed the file
        return True
    return running <= _CORES + (_CORES > 1)


@cache
def _load() -> int:
    """Opens the file whose fourth field starts with the number of threads that run or are ready to run
    (proc(5)). Raises OSError if there is no such file.
    """
    return os.open("/proc/loadavg", os.O_RDONLY)


class BusyPoll:
    """Polls for input before the event loop sleeps, for as long as the policy says. Polling is off until
    `allow` is called.

    While the poll is active, it schedules a callback in every iteration of the loop, so that the loop checks
    for events without waiting for them. This works with any event loop, and timers, threads and signals are
    served as usual.

    Code that reads input on the loop must set `arrived`, and call `wake` if the poll is `asleep`. There is no
    polling while a thread computes for the loop (see `hold`), because polling would compete with that thread
    for the interpreter. There is no polling either while all cores of the machine are busy: other threads
    need the cores, and a core that is busy does not have to be woken up. After a check that found no input,
    the poll offers its core to other threads.

    Gaps in which the server awaits responses of other servers have a separate policy, because polling may pay
    off only in these gaps: on a small machine, a core may be free as long as the client waits too, but not
    once the client has its response and prepares its next request.
    """

    __slots__ = (
        "_holds",
        "_looked",
        "_loop",
        "_policy",
        "_policy_of_clients",
        "_policy_of_servers",
        "_quiet_since",
        "_unobserved",
        "arrived",
        "asleep",
        "awaited",
    )

    def __init__(self) -> None:
        self._policy_of_clients = BusyPollPolicy(0.0)
        self._policy_of_servers = BusyPollPolicy(0.0)
        #: The policy for the current gap.
        self._policy = self._policy_of_clients
        #: The number of responses that this server awaits from other servers.
        self.awaited = 0
        #: Whether input has arrived since the last check.
        self.arrived = False
        #: Whether `wake` must be called when input arrives.
        self.asleep = False
        #: The event loop, once input has arrived. In Python 3.11, get_running_loop makes a system call.
        self._loop: AbstractEventLoop | None = None
        #: When the loop last ran out of input; 0 while the loop has input, or if the time is unknown.
        self._quiet_since = 0.0
        #: When the poll last checked for input.
        self._looked = 0.0
        #: The number of threads that compute for the loop.
        self._holds = 0
        #: The number of inputs after which nobody starts to observe a gap, from now on.
        self._unobserved = 0

    def allow(self, longest: float) -> None:
        """Allows polls of at most `longest` seconds, or twice as long while the server awaits responses of
        other servers; 0 turns polling off. Must be called before input arrives.
        """
        self._policy = self._policy_of_clients = BusyPollPolicy(longest)
        self._policy_of_servers = BusyPollPolicy(_OF_SERVERS * longest)
        self.asleep = longest > 0.0

    @property
    def longest(self) -> float:
        """The maximum duration of a poll for clients, in seconds; 0 if polling is off."""
        return self._policy_of_clients.longest

    def hold(self) -> None:
        """Stops polling until `release`, because a thread computes."""
        self._holds += 1
        self._quiet_since = 0.0

    def release(self) -> None:
        """Ends the effect of one call of `hold`."""
        self._holds -= 1

    def wake(self) -> None:
        """Resumes polling after the loop has slept. Must be called on the loop when input has arrived."""
        if self._holds:
            return
        if self._unobserved:
            self._unobserved -= 1
            return
        if self._quiet_since:
            self._policy.slept(perf_counter() - self._quiet_since)
            self._quiet_since = 0.0
            if self._policy_of_clients.hopeless and self._policy_of_servers.hopeless:
                self._unobserved = _UNOBSERVED
                return
        self.asleep = False
        loop = self._loop
        if loop is None:
            loop = self._loop = get_running_loop()
        loop.call_soon(self._look)

    def _choose(self) -> BusyPollPolicy:
        self._policy = self._policy_of_servers if self.awaited else self._policy_of_clients
        return self._policy

    def _look(self) -> None:
        if self._holds:
            self.asleep = True
            return
        now = perf_counter()
        if self.arrived:
            self.arrived = False
            if self._quiet_since:
                self._policy.observe(now - self._quiet_since)
            if not self._choose().length and not self._policy_of_servers.length:
                # The gap includes the work that remains in this iteration. An exact time would take another
                # iteration.
                self._quiet_since = now
                self.asleep = True
                return
            self._quiet_since = 0.0
        else:
            if not self._quiet_since:
                self._quiet_since = now
                # The policy is chosen again, as the input may have caused a call to another server.
                if not self._choose().begins(now, has_idle_core):
                    self.asleep = True
                    return
                # The rest of this iteration may take a long time although the core is not lost, because
                # deferred work, such as updates of statistics, runs in it.
                now = inf
            elif not self._policy.continues(self._quiet_since, self._looked, now):
                self.asleep = True
                return
            give_way()
            self._looked = now
        assert self._loop is not None, "input has arrived"
        self._loop.call_soon(self._look)
