"""Permits, which instances need in order to run if the server has a rate limiter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from time import monotonic, monotonic_ns
from typing import ClassVar

from backline.schedule.rate_limit.limits import Claim, Claimant, Owner, RateLimits
from backline.workers.batch import Batch
from backline.workers.instance import Finished, Instance
from backline_client.values.errors import Cancelled

#: The time, in seconds, from a deadline to the check for expired requests. It is above 0 because timers of
#: the event loop may fire early.
_LATE = 0.001


class Permits:
    """Grants permits to the instances of all models, in the order that RateLimits decides. All methods must
    be called on the event loop.

    Released resources are granted again only at the end of the current turn of the event loop. By then, the
    instance that has just run may have been staged again, and that instance may be the next in order.
    """

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        self._granting = False
        self._permits: dict[Claimant, Permit] = {}

    def register(self, claims: list[Claim], owner: Owner) -> list[Permit]:
        """Returns the permits for the instances of a model (`owner`).

        Raises the errors of RateLimits.register.
        """
        permits = [Permit(self, claimant) for claimant in self._limits.register(claims, owner)]
        for permit in permits:
            self._permits[permit.claimant] = permit
        return permits

    def stage(self, permit: Permit) -> None:
        """Stages an instance that has work."""
        self._limits.stage(permit.claimant)
        if not self._granting:
            self._grant()

    def withdraw(self, permit: Permit) -> None:
        """Withdraws an instance that no longer has work."""
        self._limits.withdraw(permit.claimant)
        self._grant_later()  # other instances may have waited for the resources that this one needed

    def release(self, permit: Permit, *, ran: bool) -> None:
        """Releases the resources of an instance that has stopped running, or that did not run after all."""
        self._limits.release(permit.claimant, ran=ran)
        self._grant_later()

    def unregister(self, permit: Permit) -> None:
        """Removes an instance that no longer exists."""
        del self._permits[permit.claimant]
        self._limits.unregister(permit.claimant)

    def wanting(self, waits: Mapping[Owner, Collection[Owner]], waiting: Owner) -> str:
        """Returns the names of the resources over which models might deadlock; see RateLimits.wanting."""
        return self._limits.wanting(waits, waiting)

    def _grant_later(self) -> None:
        if not self._granting:
            self._granting = True
            asyncio.get_running_loop().call_soon(self._grant)

    def _grant(self) -> None:
        self._granting = False
        granted = [self._permits[claimant] for claimant in self._limits.grant()]
        for permit in granted:
            permit.hold()
        # All permits are marked as held before any instance begins. The start of one instance may make
        # another instance release its permit, and only a permit that is marked as held releases its
        # resources.
        for permit in granted:
            permit.begin()


class Permit:
    """The permission for an instance to run: requested before each run, and released after it."""

    __slots__ = ("_held", "_on_granted", "_permits", "claimant")

    def __init__(self, permits: Permits, claimant: Claimant) -> None:
        self._permits = permits
        self.claimant = claimant
        self._held = False
        self._on_granted: Callable[[], None] | None = None

    def ask(self, on_granted: Callable[[], None]) -> None:
        """Requests the permit. `on_granted` is called once, when the instance may run; this may happen before
        this method returns.
        """
        self._on_granted = on_granted
        self._permits.stage(self)

    def hold(self) -> None:
        """Records that the permit is granted, and that the instance holds its resources."""
        self._held = True

    def begin(self) -> None:
        """Notifies the instance that it may run, unless it has released the permit in the meantime."""
        on_granted, self._on_granted = self._on_granted, None
        if on_granted is not None:
            on_granted()

    def give_back(self, *, ran: bool = True) -> None:
        """Releases the permit or, if it has not been granted yet, withdraws the request for it. Called
        after the run, or if the instance no longer has work.
        """
        asked, self._on_granted = self._on_granted is not None, None
        if self._held:
            self._held = False
            self._permits.release(self, ran=ran)
        elif asked:
            self._permits.withdraw(self)

    def close(self) -> None:
        """Removes the instance. If it is still running, its permit is released when the run ends."""
        self._permits.unregister(self)


class PermittedInstance:
    """An instance whose batches wait for a permit. All methods must be called on the event loop.

    A waiting batch is removed immediately if all its requests are cancelled. Any other batch that had to wait
    is formed again (see WaitsForTurn) when the permit is granted, and when the deadline of a request passes
    while the batch waits. If an instance can take its next batch before all responses are sent, it releases
    its permit at that point, and requests a new permit for the next batch.
    """

    off_loop: ClassVar[bool] = True

    def __init__(self, instance: Instance, permit: Permit, loop: asyncio.AbstractEventLoop) -> None:
        self._instance = instance
        self._permit = permit
        self._loop = loop
        self._closing = False
        self._busy = False
        self._waiting: _PermittedRun | None = None
        self.form_again: Callable[[Batch], None] | None = None

    @property
    def memory(self) -> object:
        """The `memory` of the wrapped instance; see Remembers."""
        return self._instance.memory  # type: ignore[attr-defined]

    def run(self, batch: Batch, finished: Finished) -> None:
        """Requests the permit, and runs a batch once the permit is granted; see Instance."""
        self._busy = True
        waiting = self._waiting = _PermittedRun(self, batch, finished)
        batch.on_abandon = waiting.abandoned
        self._permit.ask(waiting.granted)
        waiting.waits()

    def look_again(self) -> None:
        """Forms the waiting batch again; see WaitsForTurn."""
        if self._busy and self._waiting is not None:
            self._waiting.look_again()

    def close(self) -> None:
        """Closes the instance as soon as its current run has ended."""
        self._closing = True
        if not self._busy:
            self._close()

    def when_ready(self, begin: Callable[[], None]) -> None:
        """Calls `begin`: immediately, or, for an inline instance, after the event loop has served the
        sockets.
        """
        if self._instance.off_loop:
            begin()
        else:
            self._loop.call_soon(begin)

    def start(self, batch: Batch, finished: Finished) -> None:
        """Runs a batch whose permit was granted."""
        self._instance.run(batch, finished)

    def free(self, *, ran: bool) -> None:
        """Releases the permit, whether or not the batch has run."""
        self._busy = False
        self._waiting = None  # otherwise an idle instance would keep past requests in memory
        self._permit.give_back(ran=ran)
        if self._closing:
            self._close()

    def _close(self) -> None:
        self._permit.close()
        self._instance.close()


class _PermittedRun:
    """A batch that waits for a permit and then runs."""

    def __init__(self, instance: PermittedInstance, batch: Batch, finished: Finished) -> None:
        self._instance = instance
        self._batch = batch
        self._finished = finished
        self._granted = self._begun = False
        self._has_waited = False
        self._timer: asyncio.TimerHandle | None = None
        self._on_vacated = batch.on_vacated
        #: Whether the instance is free for its next batch. Responses of this batch may still follow.
        self._over = False

    def waits(self) -> None:
        """Called after the permit was requested. If the permit was not granted immediately, sets a timer for
        the deadlines of the requests.
        """
        if self._begun:
            return
        self._has_waited = True
        if not self._granted:
            self._wake_at_deadline()

    def _wake_at_deadline(self) -> None:
        deadlines = [ticket.deadline for ticket in self._batch.tickets if ticket.deadline is not None]
        if deadlines:
            delay = max(min(deadlines) - monotonic(), 0.0) + _LATE
            self._timer = asyncio.get_running_loop().call_later(delay, self.look_again)

    def look_again(self) -> None:
        """Forms the batch again without its expired requests, unless `_begin` is about to do so."""
        if self._granted:
            return
        self._form_again()
        # Forming the batch refuses expired requests, whose completion may have made the scheduler abandon the
        # batch.
        if self._batch.abandoned:
            return
        if self._batch.tickets:
            self._wake_at_deadline()
        else:
            self._end(ran=False)

    def _form_again(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._instance.form_again is not None:
            self._instance.form_again(self._batch)

    def abandoned(self) -> None:
        """Ends the batch without a run, because all its requests are cancelled."""
        if self._timer is not None:
            self._timer.cancel()
        self._batch.outcomes = [Cancelled("the request was cancelled") for _ in self._batch.tickets]
        self._end(ran=False)

    def granted(self) -> None:
        self._granted = True
        if self._timer is not None:
            self._timer.cancel()
        self._instance.when_ready(self._begin)

    def _begin(self) -> None:
        batch = self._batch
        self._begun = True
        if self._has_waited and not batch.abandoned:
            self._form_again()
            # The completion of a refused request may have cancelled other requests.
            while not batch.abandoned and any(ticket.cancelled for ticket in batch.tickets):
                self._form_again()
        # The batch may have been abandoned since the permit was granted, or when a refused request completed.
        if batch.abandoned:
            return
        batch.on_abandon = None
        if not batch.tickets:
            self._end(ran=False)
            return
        batch.started_ns = monotonic_ns()
        if batch.on_vacated is not None:
            batch.on_vacated = self._vacated
        self._instance.start(batch, lambda _, ran: self._end(ran=True))

    def _end(self, *, ran: bool) -> None:
        batch = self._batch
        batch.ended_ns = batch.ended_ns or monotonic_ns()
        if not batch.tickets:
            batch.parts = []  # there is no run to count
        if not self._over:
            self._instance.free(ran=ran)
        self._finished(self._instance, batch)

    def _vacated(self, instance: Instance, batch: Batch) -> None:
        """Called when the instance can take its next batch although responses of this batch are still to
        come.
        """
        self._over = True
        self._instance.free(ran=True)
        if self._on_vacated is not None:
            self._on_vacated(self._instance, batch)
