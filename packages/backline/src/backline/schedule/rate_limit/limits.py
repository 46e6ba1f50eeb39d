"""Decides which instance runs next when instances of all models share named resources.

This is the policy of Triton's rate limiter. It reads no clock.

An instance that has work is staged. Each instance has a number called its pass, and staged instances get
permission to run in ascending order of their passes. A run adds the priority of the instance to the
instance's pass, so an instance with priority 2 runs half as often as an instance with priority 1. An instance
that was idle continues with the pass of the instances that are running, so it cannot save up turns
(start-time fair queueing; Goyal, Vin and Cheng 1996).

Other instances may overtake an instance that waits for a resource. But they may not take any resource that
the waiting instance needs, so every instance gets its turn.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import count
from types import MappingProxyType
from typing import Final, TypeAlias

from backline.engine.config.instance_group import InstanceGroup
from backline.engine.numbers import parse_whole
from backline_client.values.errors import InvalidArgument

#: The device name of resources that the whole server shares.
EVERYWHERE: Final = "GLOBAL"
#: The device name, in the server's options, of a resource that every device has.
EACH_DEVICE: Final = ""
#: The device name of models that run on the CPU.
PROCESSOR: Final = "0"
#: The maximum count of a resource, and the highest device number.
_MOST: Final = 2**31 - 1

#: The name and version of a model.
Owner: TypeAlias = tuple[str, str]
#: The device of a resource (or EVERYWHERE), and the resource's name.
Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Claim:
    """The resources that an instance holds during a run, and the amount by which a run increases the
    instance's pass.
    """

    resources: Mapping[Key, int] = field(default_factory=lambda: MappingProxyType({}))
    priority: int = 1


def claim_of(group: InstanceGroup, device: str = PROCESSOR) -> Claim:
    """Returns the claim of each instance of a group on this device."""
    resources = {
        (EVERYWHERE if resource.everywhere else device, resource.name): resource.count
        for resource in group.resources
        if resource.count
    }
    return Claim(MappingProxyType(resources), group.priority)


@dataclass(slots=True, eq=False)
class Claimant:
    """An instance that may have work, with its position in the order in which instances run."""

    claim: Claim
    #: The model that the instance belongs to.
    owner: Owner | None = None
    #: The instance's pass; see the docstring of this module.
    passed: int = 0
    #: A serial number that orders instances with equal passes: the instance that was staged first comes
    #: first.
    number: int = 0

    def __lt__(self, other: Claimant) -> bool:
        return (self.passed, self.number) < (other.passed, other.number)


class RateLimits:
    """Counts resources and decides which instances run.

    `given` are the server's resources. If `given` is empty, the server has as much of each resource as the
    largest claim needs.
    """

    def __init__(self, given: Mapping[Key, int] | None = None) -> None:
        self._given = dict(given or {})
        self._claimants: list[Claimant] = []
        self._limits: dict[Key, int] = {}
        self._taken: dict[Key, int] = {}
        #: The staged instances, sorted by pass.
        self._staged: list[Claimant] = []
        self._numbers = count()
        #: The highest pass at which an instance has been granted its resources so far. An instance that was
        #: idle continues with at least this pass.
        self._now = 0

    def register(self, claims: list[Claim], owner: Owner | None = None) -> list[Claimant]:
        """Adds the instances of a model (`owner`).

        Raises InvalidArgument, with Triton's message, if one of the instances could never run, or if a
        resource would be both global and specific to a device.
        """
        claimants = [Claimant(claim, owner) for claim in claims]
        self._limits = self._limits_for(self._claimants + claimants)
        self._claimants += claimants
        return claimants

    def unregister(self, claimant: Claimant) -> None:
        """Removes an instance, which must be neither running nor staged."""
        self._claimants = [other for other in self._claimants if other is not claimant]
        self._limits = self._limits_for(self._claimants)

    def stage(self, claimant: Claimant) -> None:
        """Stages an instance that has work."""
        claimant.passed = max(claimant.passed, self._now)
        claimant.number = next(self._numbers)
        insort(self._staged, claimant)

    def withdraw(self, claimant: Claimant) -> None:
        """Withdraws a staged instance that no longer has work."""
        self._staged.remove(claimant)

    def grant(self) -> list[Claimant]:
        """Takes resources for the instances whose turn it is, and returns these instances. An instance holds
        its resources until `release` is called.
        """
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
        """Releases the resources of an instance. If the instance did not run, the increase of its pass is
        undone.
        """
        for key, wanted in claimant.claim.resources.items():
            self._taken[key] -= wanted
        if not ran:
            claimant.passed -= claimant.claim.priority

    def wanting(self, waits: Mapping[Owner, Collection[Owner]], waiting: Owner) -> str:
        """Returns the names of the resources over which the model `waiting`, which calls other models, might
        deadlock, as a string such as "'memory' and 'slots'"; empty if no deadlock is possible.

        `waits` maps each model to the models that it waits for. A model that waits holds all resources that
        its instances claim. In each round, a model finishes, and releases its resources, if every model that
        it waits for is certain to get its own. Rounds are repeated until `waiting` has finished or no other
        model can finish, as in the banker's algorithm (Dijkstra 1965).
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
        """Returns the resources that may run short while the `holders` hold all resources that they claim."""
        held: Counter[Key] = Counter()
        # The largest claim of any instance whose owner is not among the holders, for each resource.
        most: Counter[Key] = Counter()
        for claimant in self._claimants:
            for key, wanted in claimant.claim.resources.items():
                if claimant.owner in holders:
                    held[key] += wanted
                else:
                    most[key] = max(most[key], wanted)
        short = {key for key in held | most if self._limits[key] - held[key] < most[key]}
        # An instance that waits for a resource in `short` keeps other instances from taking any resource that
        # it needs, so these resources may run short too.
        while further := self._kept_back(short):
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
                    f'Resource "{name}" is present as both global and device-specific resource'
                    " in the model configuration."
                )
            if not self._given:
                continue
            there = self._there(device, name)
            if there < needed:
                raise InvalidArgument(
                    f'Resource count for "{name}" is limited to {there} which will prevent scheduling of'
                    f" one or more model instances, the minimum required count is {needed}"
                )
            limits[device, name] = there
        return limits

    def _there(self, device: str, name: str) -> int:
        """Returns the amount of a resource that a device has; 0 if the options give none. As in Triton, this
        is the largest amount that the options give for this device or for every device. For EVERYWHERE, it is
        the largest amount that they give for any device.
        """
        wanted = name.casefold()
        devices = (device, EACH_DEVICE)
        fitting = (
            n
            for (where, other), n in self._given.items()
            if other.casefold() == wanted and (device == EVERYWHERE or where in devices)
        )
        return max(fitting, default=0)


def parse_resources(texts: tuple[str, ...]) -> dict[Key, int]:
    """Parses the server's options for resources, of the form NAME:COUNT or NAME:COUNT:DEVICE. Raises
    InvalidArgument if an option has another form.
    """
    given: dict[Key, int] = {}
    for text in texts:
        name, *rest = text.split(":")
        numbers = [parse_whole(part, 0, _MOST) for part in rest]
        if not name or not 1 <= len(rest) <= 2 or None in numbers:
            raise InvalidArgument(
                f"'{text}' is not a resource: expected NAME:COUNT or NAME:COUNT:DEVICE,"
                " for example memory:4 or memory:4:0"
            )
        given[rest[1] if len(rest) == 2 else EACH_DEVICE, name] = int(rest[0])
    return given
