"""The permission of instances to run, where the server limits the rate of executions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from backline.schedule.rate_limit.limits import Claim, Claimant, Owner, RateLimits


class Permits:
    """Lets the instances of all models have their turn, by RateLimits. Lives on the event loop.

    What is given back is given out at the end of the loop's turn: the instance that has just run may have work again, and its turn may be
    next.
    """

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        self._granting = False
        self._permits: dict[Claimant, Permit] = {}

    def register(self, claims: list[Claim], owner: Owner) -> list[Permit]:
        """The permits of the instances of a model, the `owner`. Raises InvalidArgument when one of them could never run."""
        permits = [Permit(self, claimant) for claimant in self._limits.register(claims, owner)]
        for permit in permits:
            self._permits[permit.claimant] = permit
        return permits

    def stage(self, permit: Permit) -> None:
        """An instance has work."""
        self._limits.stage(permit.claimant)
        if not self._granting:
            self._grant()

    def withdraw(self, permit: Permit) -> None:
        """It has none any more."""
        self._limits.withdraw(permit.claimant)
        self._grant_later()  # others may have waited behind it

    def release(self, permit: Permit, *, ran: bool) -> None:
        """It does not run any more, or has not run after all."""
        self._limits.release(permit.claimant, ran=ran)
        self._grant_later()

    def unregister(self, permit: Permit) -> None:
        """The instance is gone."""
        del self._permits[permit.claimant]
        self._limits.unregister(permit.claimant)

    def wanting(self, waits: Mapping[Owner, Collection[Owner]], waiting: Owner) -> str:
        """See RateLimits."""
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
        for permit in granted:  # who begins may give up others, which hold theirs by now
            permit.begin()


class Permit:
    """What one instance needs to run: asked for before each run, given back behind it."""

    __slots__ = ("_held", "_on_granted", "_permits", "claimant")

    def __init__(self, permits: Permits, claimant: Claimant) -> None:
        self._permits = permits
        self.claimant = claimant
        self._held = False
        self._on_granted: Callable[[], None] | None = None

    def ask(self, on_granted: Callable[[], None]) -> None:
        """Calls `on_granted` once when the instance may run, perhaps before this returns."""
        self._on_granted = on_granted
        self._permits.stage(self)

    def hold(self) -> None:
        """Its turn has come: the resources are its own."""
        self._held = True

    def begin(self) -> None:
        """Tells the instance, unless that has given it back since."""
        on_granted, self._on_granted = self._on_granted, None
        if on_granted is not None:
            on_granted()

    def give_back(self, *, ran: bool = True) -> None:
        """The instance does not run any more, or has nothing to run: it asks no more."""
        asked, self._on_granted = self._on_granted is not None, None
        if self._held:
            self._held = False
            self._permits.release(self, ran=ran)
        elif asked:
            self._permits.withdraw(self)

    def close(self) -> None:
        """The instance is gone; its permit is given back when it does not run any more."""
        self._permits.unregister(self)
