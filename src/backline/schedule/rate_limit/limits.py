"""Which instance runs next, of all models, where they share named resources (Triton's rate limiter): a policy without a clock.

An instance that has work is staged. The staged ones get their turn by their passes, the lowest first: a run adds the priority of its
instance to its pass, so one of priority 2 has half the turns of one of priority 1. One that has had nothing to do goes on at the pass of
those who run, so nobody saves turns up (start-time fair queueing; Goyal, Vin and Cheng 1996).

Who comes later passes one that waits for a resource, but takes none of those that that one needs: everybody's turn comes.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import count
from types import MappingProxyType
from typing import Final, TypeAlias

from backline.engine.errors import InvalidArgument
from backline.engine.instance_group import InstanceGroup

#: For resources that are not of a device, but of the server.
EVERYWHERE: Final = "GLOBAL"
#: In what the server is told: of every device.
EACH_DEVICE: Final = ""
#: The device of models on the processor.
PROCESSOR: Final = "0"

#: A model's name and version.
Owner: TypeAlias = tuple[str, str]
#: The device, or EVERYWHERE, and the name of a resource.
Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Claim:
    """What one instance takes for each run, and what a run adds to its pass."""

    resources: Mapping[Key, int] = field(default_factory=lambda: MappingProxyType({}))
    priority: int = 1


def claim_of(group: InstanceGroup, device: str = PROCESSOR) -> Claim:
    """The claim of each instance of a group."""
    resources = {
        (EVERYWHERE if resource.everywhere else device, resource.name): resource.count
        for resource in group.resources
        if resource.count
    }
    return Claim(MappingProxyType(resources), group.priority)


class Claimant:
    """An instance that may want to run, and its place among the others."""

    __slots__ = ("claim", "number", "owner", "passed")

    def __init__(self, claim: Claim, owner: Owner | None = None) -> None:
        self.claim = claim
        #: Whose instance it is.
        self.owner = owner
        #: Its pass.
        self.passed = 0
        #: Of those with the same pass the one comes first that was staged first.
        self.number = 0

    def __lt__(self, other: Claimant) -> bool:
        return (self.passed, self.number) < (other.passed, other.number)


class RateLimits:
    """Counts resources, and decides whose turn it is. `given` are the resources there are; without any, what the largest claim asks for."""

    def __init__(self, given: Mapping[Key, int] | None = None) -> None:
        self._given = dict(given or {})
        self._claimants: list[Claimant] = []
        self._limits: dict[Key, int] = {}
        self._taken: dict[Key, int] = {}
        #: By pass.
        self._staged: list[Claimant] = []
        self._numbers = count()
        #: The pass of the last one that ran, before its run.
        self._now = 0

    def register(self, claims: list[Claim], owner: Owner | None = None) -> list[Claimant]:
        """The instances of a model, the `owner`. Raises InvalidArgument, in Triton's words, when one could never run."""
        claimants = [Claimant(claim, owner) for claim in claims]
        self._limits = self._limits_for(self._claimants + claimants)
        self._claimants += claimants
        return claimants

    def unregister(self, claimant: Claimant) -> None:
        """An instance is gone; it neither runs nor is staged."""
        self._claimants = [other for other in self._claimants if other is not claimant]
        self._limits = self._limits_for(self._claimants)

    def stage(self, claimant: Claimant) -> None:
        """An instance has work."""
        claimant.passed = max(claimant.passed, self._now)
        claimant.number = next(self._numbers)
        insort(self._staged, claimant)

    def withdraw(self, claimant: Claimant) -> None:
        """A staged instance has no work any more."""
        self._staged.remove(claimant)

    def grant(self) -> list[Claimant]:
        """Takes the resources of those whose turn it is, who run from now on, until they are released."""
        granted: list[Claimant] = []
        kept: list[Claimant] = []
        kept_back: set[Key] = set()
        for claimant in self._staged:
            resources = claimant.claim.resources
            if not kept_back.isdisjoint(resources) or any(
                self._taken.get(key, 0) + n > self._limits[key] for key, n in resources.items()
            ):
                kept_back |= resources.keys()
                kept.append(claimant)
                continue
            for key, wanted in resources.items():
                self._taken[key] = self._taken.get(key, 0) + wanted
            self._now = max(self._now, claimant.passed)
            claimant.passed += claimant.claim.priority
            granted.append(claimant)
        self._staged = kept
        return granted

    def release(self, claimant: Claimant, *, ran: bool = True) -> None:
        """Gives the resources back. One that has not run after all has not had its turn."""
        for key, wanted in claimant.claim.resources.items():
            self._taken[key] -= wanted
        if not ran:
            claimant.passed -= claimant.claim.priority

    def wanting(self, waits: Mapping[Owner, Collection[Owner]], waiting: Owner) -> str:
        """The resources for want of which one of those that wait for others, `waits`, might wait for ever, as a text; empty for none.

        Whoever waits holds what its instances take. Who waits only for models that get what they need, whatever is held, comes to an end
        and gives back; so it goes on until nobody else does, as in the banker's algorithm (Dijkstra 1965).
        """
        stuck = set(waits)
        while waiting in stuck:
            short = self._short(stuck)
            lacking = {
                claimant.owner
                for claimant in self._claimants
                if not short.isdisjoint(claimant.claim.resources)
            } | stuck
            ended = {owner for owner in stuck if lacking.isdisjoint(waits[owner])}
            if not ended:
                return " and ".join(sorted({f"'{name}'" for _, name in short}))
            stuck -= ended
        return ""

    def _short(self, holders: Collection[Owner]) -> set[Key]:
        """The resources that somebody may wait for until one of the holders gives back: too little is left when all hold what they take."""
        held: Counter[Key] = Counter()
        most: Counter[Key] = Counter()  # that one of the others takes
        for claimant in self._claimants:
            for key, wanted in claimant.claim.resources.items():
                if claimant.owner in holders:
                    held[key] += wanted
                else:
                    most[key] = max(most[key], wanted)
        short = {key for key in held | most if self._limits[key] - held[key] < most[key]}
        while further := self._kept_back(short):  # who waits for one of them keeps back what else it needs
            short |= further
        return short

    def _kept_back(self, short: set[Key]) -> set[Key]:
        claims = [claimant.claim.resources for claimant in self._claimants]
        return {key for resources in claims if not short.isdisjoint(resources) for key in resources} - short

    def _limits_for(self, claimants: list[Claimant]) -> dict[Key, int]:
        limits: dict[Key, int] = {}
        for claimant in claimants:
            for key, wanted in claimant.claim.resources.items():
                limits[key] = max(limits.get(key, 0), wanted)
        for (device, name), needed in limits.items():
            if device == EVERYWHERE and any(other == name and where != EVERYWHERE for where, other in limits):
                raise InvalidArgument(
                    f'Resource "{name}" is present as both global and device-specific resource in the model configuration.'
                )
            if not self._given:
                continue
            there = self._there(device, name)
            if there < needed:
                raise InvalidArgument(
                    f'Resource count for "{name}" is limited to {there} which will prevent scheduling of one or more model instances, the'
                    f" minimum required count is {needed}"
                )
            limits[device, name] = there
        return limits

    def _there(self, device: str, name: str) -> int:
        """As in Triton a resource of the server may be given with any device, and one that is not given is not there."""
        wanted = name.casefold()
        devices = (device, EACH_DEVICE)
        fitting = (
            n
            for (where, other), n in self._given.items()
            if other.casefold() == wanted and (device == EVERYWHERE or where in devices)
        )
        return max(fitting, default=0)


def parse_resources(texts: tuple[str, ...]) -> dict[Key, int]:
    """Resources as the server is told them: NAME:COUNT or NAME:COUNT:DEVICE. Raises InvalidArgument for another text."""
    given: dict[Key, int] = {}
    for text in texts:
        name, *rest = text.split(":")
        numbers = [part for part in rest if part.isascii() and part.isdigit()]
        if not name or not 1 <= len(rest) <= 2 or len(numbers) != len(rest):
            raise InvalidArgument(
                f"'{text}' is not a resource: expected NAME:COUNT or NAME:COUNT:DEVICE, for example memory:4 or memory:4:0"
            )
        given[rest[1] if len(rest) == 2 else EACH_DEVICE, name] = int(rest[0])
    return given
