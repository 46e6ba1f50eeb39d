"""An instance that runs when it is its turn, where the server limits the rate of executions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic, monotonic_ns
from typing import ClassVar

from backline.engine.errors import BacklineError, Cancelled, DeadlineExceeded
from backline.engine.messages import InferRequest
from backline.schedule.rate_limit.permits import Permit
from backline.workers.batch import Batch
from backline.workers.instance import Finished, Instance

#: Seconds that a deadline is over for when it is looked at: the loop's timers may be early.
_LATE = 0.001


class PermittedInstance:
    """An instance before which each batch waits for a permit. Lives on the event loop.

    A batch that nobody waits for any more leaves at once, a request whose deadline passes meanwhile is not run. Where `form_again` is set,
    it forms a batch that waits anew, of what waits by then: when its turn comes, and when a deadline passes. Nothing may be left of it. An
    instance that takes the next batch before this one has all its answers asks for the next permit then, and has given this one back.
    """

    beside_loop: ClassVar[bool] = True

    def __init__(self, instance: Instance, permit: Permit, loop: asyncio.AbstractEventLoop) -> None:
        self._instance = instance
        self._permit = permit
        self._loop = loop
        self._closing = False
        self._busy = False
        self.form_again: Callable[[Batch], None] | None = None

    def run(self, batch: Batch, finished: Finished) -> None:
        """See Instance."""
        self._busy = True
        waiting = _Waiting(self, batch, finished)
        batch.on_abandon = waiting.abandoned
        self._permit.ask(waiting.granted)
        waiting.waits()

    def close(self) -> None:
        """See Instance."""
        self._closing = True
        if not self._busy:
            self._close()

    def when_ready(self, begin: Callable[[], None]) -> None:
        """Its turn has come. A run on the event loop lets the sockets have their turn first."""
        if self._instance.beside_loop:
            begin()
        else:
            self._loop.call_soon(begin)

    def start(self, batch: Batch, finished: Finished) -> None:
        """Runs a batch, as its turn has come."""
        self._instance.run(batch, finished)

    def free(self, *, ran: bool) -> None:
        """It does not run any more."""
        self._busy = False
        self._permit.give_back(ran=ran)
        if self._closing:
            self._close()

    def _close(self) -> None:
        self._permit.close()
        self._instance.close()


class _Waiting:
    """A batch that waits for its turn, and then runs."""

    def __init__(self, instance: PermittedInstance, batch: Batch, finished: Finished) -> None:
        self._instance = instance
        self._batch = batch
        self._finished = finished
        self._granted = False
        self._has_waited = False
        self._timer: asyncio.TimerHandle | None = None
        self._on_vacated = batch.on_vacated
        #: Whether the instance has been told to be free.
        self._over = False

    def waits(self) -> None:
        """It has asked for its turn, which may have come at once."""
        if self._granted or self._instance.form_again is None:
            return
        self._has_waited = True
        nearest = min((request.deadline for request in self._batch.requests if request.deadline is not None), default=None)
        if nearest is not None:
            delay = max(nearest - monotonic(), 0.0) + _LATE
            self._timer = asyncio.get_running_loop().call_later(delay, self._deadline_passed)

    def _deadline_passed(self) -> None:
        self._form_again()
        if self._batch.abandoned:  # by who was refused
            return
        if self._batch.requests:
            self.waits()
        else:
            self._end(ran=False)

    def _form_again(self) -> None:
        self._timer = None
        if self._has_waited and self._instance.form_again is not None:
            self._instance.form_again(self._batch)

    def abandoned(self) -> None:
        """Nobody waits for the answers any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._batch.outcomes = [Cancelled("nobody waits for the answer any more") for _ in self._batch.requests]
        self._end(ran=False)

    def granted(self) -> None:
        self._granted = True
        if self._timer is not None:
            self._timer.cancel()
        self._instance.when_ready(self._begin)

    def _begin(self) -> None:
        batch = self._batch
        if not batch.abandoned:
            self._form_again()
        if batch.abandoned:  # since its turn came, or by who was refused
            return
        batch.on_abandon = None
        if not batch.requests:
            self._end(ran=False)
            return
        now = monotonic()
        batch.started_ns = monotonic_ns()
        if batch.on_vacated is not None:
            batch.on_vacated = self._vacated
        live = [request for request in batch.requests if request.deadline is None or request.deadline > now]
        if len(live) == len(batch.requests):
            self._instance.start(batch, lambda _, ran: self._end(ran=True))
        elif live:
            self._start_without_the_late(live)
        else:
            batch.outcomes = [_late(request) for request in batch.requests]
            self._end(ran=False)

    def _start_without_the_late(self, live: list[InferRequest]) -> None:
        whole = self._batch
        part = Batch(live, sum(request.batch_size for request in live), whole.started_ns, beside_loop=True)
        whole.on_abandon = part.abandon
        self._instance.start(part, lambda _, ran: self._put_together(part))

    def _put_together(self, part: Batch) -> None:
        whole = self._batch
        whole.on_abandon = None
        whole.parts = [*(part.parts or (part,))]
        outcomes = dict(zip(part.requests, part.outcomes, strict=True))
        for request in whole.requests:
            if request not in outcomes:
                late = Batch([request], request.batch_size, whole.started_ns)
                late.ended_ns = part.ended_ns
                outcomes[request] = error = _late(request)
                late.outcomes = [error]
                whole.parts.append(late)
        whole.outcomes = [outcomes[request] for request in whole.requests]
        whole.gathered_ns, whole.ran_ns = part.gathered_ns, part.ran_ns
        self._end(ran=True)

    def _end(self, *, ran: bool) -> None:
        batch = self._batch
        batch.ended_ns = batch.ended_ns or monotonic_ns()
        if not self._over:
            self._instance.free(ran=ran)
        self._finished(self._instance, batch)

    def _vacated(self, instance: Instance, batch: Batch) -> None:
        """The instance can take the next batch, while answers of this one are still to come."""
        self._over = True
        self._instance.free(ran=True)
        if self._on_vacated is not None:
            self._on_vacated(self._instance, batch)


def _late(request: InferRequest) -> BacklineError:
    return DeadlineExceeded("The deadline of the request passed while it waited for resources of the server")
