"""The memory budget: which versions to unload to make room for another. Plain data in, decision out."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass

from backline.engine.byte_size import format_bytes
from backline.engine.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Tenant:
    """A loaded version.

    `memory` is in bytes, `last_used` in seconds of a common clock. A `busy` one has requests and must stay.
    `idle_limit` is the seconds without a request after which it is unloaded, None for never.
    """

    key: Hashable
    memory: int
    last_used: float
    pinned: bool = False
    busy: bool = False
    idle_limit: float | None = None


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why there is no room, in bytes. `idle` is what could be unloaded."""

    budget: int
    resident: int
    needed: int
    pinned: int
    busy: int
    idle: int

    def error(self, what: str) -> Unavailable:
        """The error for a request for `what`."""
        passes = (
            self.resident + self.needed - self.budget <= self.idle + self.busy
        )  # once running requests end
        raise_it = "Pin fewer models, or raise --memory-budget" if self.pinned else "Raise --memory-budget"
        advice = "Try again" if passes else raise_it
        text = (
            f"{what} needs {format_bytes(self.needed)}, and the memory budget of {format_bytes(self.budget)}"
            " has no room for it:"
            f" {format_bytes(self.resident)} are in use, {format_bytes(self.pinned)} of it by pinned models"
            " and"
            f" {format_bytes(self.busy)} by models with requests; unloading the idle ones frees"
            f" {format_bytes(self.idle)}."
            f" {advice}"
        )
        return Unavailable(text, retry_after=1 if passes else None)


def make_room(
    tenants: Collection[Tenant], *, budget: int, resident: int, needed: int
) -> list[Hashable] | Shortage:
    """The versions to unload so that `needed` more bytes fit into `budget`, with `resident` bytes used now.

    Idle ones that are not pinned, least recently used first, and no more than necessary. A Shortage if all of
    them are not enough: then none is unloaded, as that would not help.
    """
    excess = resident + needed - budget
    if excess <= 0:
        return []
    idle = sorted((one for one in tenants if not one.pinned and not one.busy), key=lambda one: one.last_used)
    chosen: list[Tenant] = []
    freed = 0
    for one in idle:
        if freed >= excess:
            break
        chosen.append(one)
        freed += one.memory
    if freed < excess:
        pinned = sum(one.memory for one in tenants if one.pinned)
        busy = sum(one.memory for one in tenants if one.busy and not one.pinned)
        return Shortage(budget, resident, needed, pinned, busy, freed)
    for one in reversed(
        chosen
    ):  # keep those that a later, larger one made unnecessary, most recently used first
        if freed - one.memory >= excess:
            chosen.remove(one)
            freed -= one.memory
    return [one.key for one in chosen]


def idle_too_long(tenants: Collection[Tenant], now: float) -> list[Hashable]:
    """The versions whose idle limit has passed at `now`."""
    return [
        one.key
        for one in tenants
        if one.idle_limit is not None
        and not one.pinned
        and not one.busy
        and now - one.last_used >= one.idle_limit
    ]
