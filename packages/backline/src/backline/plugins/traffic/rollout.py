"""Carries out a rollout: raises the share of the new version step by step, unless the guard is broken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from backline.engine.engine import Engine
from backline.engine.ticket import Ticket
from backline.plugins.traffic.guard import Guard, Violation, parse_guard
from backline.plugins.traffic.route import Rollout, split_target
from backline.plugins.traffic.shadow import Compared
from backline.system.memory import resident_bytes
from backline_client.values.errors import BacklineError

#: Seconds between two looks at the time and the memory.
_INTERVAL: Final = 0.25
_LONGEST_ID: Final = 128


class RolloutRun:
    """The course of one rollout. Calls `end` once: with the violation of the guard, or with None when the
    last step is complete.
    """

    def __init__(self, rollout: Rollout, engine: Engine, end: Callable[[Violation | None], None]) -> None:
        self.rollout = rollout
        self.guard = Guard(parse_guard(rollout.guard))
        self._engine = engine
        self._model, self._version = split_target(rollout.to)
        self._end = end
        self._ended = False
        self.step = 0
        #: The number of requests of the new version in this step, and in all steps.
        self.seen = 0
        self.seen_in_all = 0
        #: The number of those that were requests rather than copies.
        self.canaries = 0
        self._began = monotonic()
        #: The last latency of the base that no latency of the new version has been compared with.
        self._base: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: The worker processes of the new version when the rollout began.
        self._pids: frozenset[int] = frozenset()
        self._resident()
        self._wait()

    @property
    def share(self) -> float:
        """The share of requests that go to the new version, from 0 to 1."""
        return 0.0 if self._ended else self.rollout.steps[self.step] / 100

    @property
    def seconds(self) -> float:
        """How long the current step has lasted."""
        return monotonic() - self._began

    def close(self) -> None:
        """Ends the course without a result."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._look)

    # observations

    def copied(self, copy: Compared) -> None:
        """Observes a copy of a request of the base."""
        error = "" if copy.error is None else copy.error.public_message
        self.guard.error(copy.error is not None, copy.id, error)
        if copy.error is None:
            self.guard.distance(copy.distance, copy.id)
            self.guard.latency(copy.seconds, copy.shadow_seconds, copy.id)
        self._saw()

    def based(self, ticket: Ticket, seconds: float, error: BacklineError | None) -> None:
        """Observes a request of the base."""
        if error is None:
            self._base = seconds

    def served(self, ticket: Ticket, seconds: float, error: BacklineError | None) -> None:
        """Observes a request of the new version. Errors that are the client's fault do not count."""
        id = ticket.request.id[:_LONGEST_ID]
        if error is not None and error.http_status < 500:
            return
        self.canaries += 1
        self.guard.error(error is not None, id, "" if error is None else error.public_message)
        if error is None and self._base is not None:
            base, self._base = self._base, None
            self.guard.latency(base, seconds, id)
        self._saw()

    def _saw(self) -> None:
        self.seen += 1
        self.seen_in_all += 1
        if self.guard.violation is not None:
            self._finish(self.guard.violation)

    # time

    def _look(self) -> None:
        """Measures the memory, and begins the next step if this one is complete."""
        self.guard.memory(self._resident())
        if self.guard.violation is not None:
            self._finish(self.guard.violation)
        elif self.seconds < self.rollout.bake_seconds or self.seen < self.rollout.requests:
            self._wait()
        elif self.step + 1 == len(self.rollout.steps):
            self._finish(None)
        else:
            self.step += 1
            self.seen = 0
            self._began = monotonic()
            self._wait()

    def _resident(self) -> int:
        """Returns the memory of the new version's largest worker process; 0 if it has none, or before it has
        had some requests, which make every process grow.

        Processes that were started later, in place of others that crashed, do not count: their memory grows
        while they start.
        """
        try:
            running = self._engine.find(self._model, self._version).worker_pids()
        except BacklineError:
            return 0
        self._pids = self._pids or frozenset(running)
        if self.seen_in_all < min(20, self.rollout.requests):
            return 0
        return max((resident_bytes(pid) for pid in running if pid in self._pids), default=0)

    def _finish(self, violation: Violation | None) -> None:
        if not self._ended:
            self.close()
            self._end(violation)
