"""Identical requests that are under way and share one run: who may join it, and how long it waits. Plain data, no clock of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from backline.engine.errors import BacklineError
from backline.engine.messages import Completion, InferRequest
from backline.schedule.queues.queue import QueueSettings, limit_wait

if TYPE_CHECKING:
    from asyncio import TimerHandle


class Flight:
    """Requests with one key on their way: looked up, and then run as one, `run`. Moments are of time.monotonic_ns()."""

    __slots__ = (
        "began_ns",
        "key",
        "lookup_ns",
        "queued",
        "refusal",
        "run",
        "submitting",
        "timers",
        "waiting",
    )

    def __init__(self, request: InferRequest, now_ns: int) -> None:
        self.key = b""
        self.waiting = [request]
        self.began_ns = now_ns
        #: How long the look took.
        self.lookup_ns = 0
        self.run: InferRequest | None = None
        #: The run's `on_cancel` while it waits in the queue; another one tells that it has left it.
        self.queued: object = None
        #: Whether the request is still being submitted, and what it is refused with.
        self.submitting = True
        self.refusal: BacklineError | None = None
        #: Those that end requests at their deadlines.
        self.timers: dict[InferRequest, TimerHandle] = {}

    @property
    def waits(self) -> bool:
        """Whether it has not begun to run."""
        return self.run is None or (self.queued is not None and self.run.on_cancel is self.queued)

    def admits(self, request: InferRequest, settings: QueueSettings) -> bool:
        """Whether a request may join: not behind a run that waits at a lower level than its own."""
        run = self.run
        return (
            not settings.levels
            or run is None
            or not self.waits
            or settings.level_of(request) >= settings.level_of(run)
        )

    def join(self, request: InferRequest, settings: QueueSettings) -> None:
        """Adds a request. A run that still waits does so as long as the most patient of those who want it."""
        policy = settings.policy_of(settings.level_of(request))
        if not policy.delay:
            limit_wait(request, policy)
        run = self.run
        if run is not None and self.waits:
            if run.deadline is not None:
                first = self.waiting[0]
                if first.deadline is None:  # the queue has set one for the run
                    first.deadline = run.deadline
                run.deadline = latest((run.deadline, request.deadline))
            run.waits_until = latest((run.waits_until, request.waits_until))
        self.waiting.append(request)

    def make_run(self, settings: QueueSettings, on_complete: Completion) -> InferRequest:
        """One request for all that wait: the first one's inputs, the highest priority, the most patient deadline."""
        first = self.waiting[0]
        run = first.stand_in(first.inputs, on_complete)
        run.deadline = run.waits_until = latest(request.deadline for request in self.waiting)
        if settings.levels:
            run.priority = min(map(settings.level_of, self.waiting))
        return run


def latest(deadlines: Iterable[float | None]) -> float | None:
    """The deadline of the most patient one, None if somebody waits for any time."""
    found = list(deadlines)
    return None if None in found else max(deadline for deadline in found if deadline is not None)
