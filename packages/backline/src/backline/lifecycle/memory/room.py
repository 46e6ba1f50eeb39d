"""Decides which versions to unload so that a load fits into the memory budget: pure functions of sizes in
bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping

from msgspec import Struct, field

from backline.engine.device import CPU, Device
from backline.engine.numbers import format_bytes
from backline_client.values.errors import Unavailable


class Tenant(Struct, frozen=True):
    """A loaded version.

    `memory` is the memory that the version shares with no other version, in bytes, and `files` are the files
    that it maps, with their resident bytes. Other tenants may map the same files. `last_used` is a time in
    seconds, on the same clock for all tenants. A `busy` version is in use and must not be unloaded. After
    `idle_limit` seconds without a request, the version is unloaded even if nothing needs its memory; None
    means no limit.
    """

    key: Hashable
    memory: int
    last_used: float
    pinned: bool = False
    busy: bool = False
    idle_limit: float | None = None
    files: Mapping[str, int] = field(default_factory=dict)
    #: Bytes on each GPU, by the GPU's number.
    gpus: Mapping[int, int] = field(default_factory=dict)
    #: The ids of the worker processes that hold the version; none for a model in the server's process.
    pids: tuple[int, ...] = ()


class Demand(Struct, frozen=True):
    """The memory that a load needs on one device, the device's budget, and the memory in use, in bytes.

    If the device is the CPU, this is host memory.
    """

    budget: int
    held: int
    needed: int

    @property
    def excess(self) -> int:
        """The number of bytes that must be freed before the load; negative if room is left."""
        return self.held + self.needed - self.budget


class Shortage(Struct, frozen=True):
    """The reason why a load does not fit into the memory budget, as sizes in bytes. `idle` is the memory that
    unloading all idle versions would free.
    """

    demand: Demand
    pinned: int
    busy: int
    idle: int
    device: Device = CPU

    @property
    def passes(self) -> bool:
        """Whether there would be enough room if no version were busy."""
        return self.demand.excess <= self.idle + self.busy

    def error(self, what: str) -> Unavailable:
        """Returns the error for a load of `what`, such as "model 'a' version 1"."""
        option = "--memory-budget" if self.device == CPU else "--gpu-memory-budget"
        raise_it = f"Pin fewer models, or raise {option}" if self.pinned else f"Raise {option}"
        advice = "Try again" if self.passes else raise_it
        place = "" if self.device == CPU else f" on {self.device}"
        demand = self.demand
        text = (
            f"{what} needs {format_bytes(demand.needed)}, and the memory budget of"
            f" {format_bytes(demand.budget)}{place} has no room for it: {format_bytes(demand.held)} is in"
            f" use, {format_bytes(self.pinned)} of it by pinned models and {format_bytes(self.busy)} by busy"
            f" models; unloading the idle models would free {format_bytes(self.idle)}. {advice}"
        )
        return Unavailable(text, retry_after=1 if self.passes else None)


class _Freed:
    """The bytes that unloading a set of tenants frees on each device. A mapped file is freed with the last
    tenant that maps it.
    """

    def __init__(self, tenants: Collection[Tenant], kept_files: Collection[str]) -> None:
        self.bytes: Counter[Device] = Counter()
        self._users = Counter(file for one in tenants for file in one.files)
        self._users.update(kept_files)

    def add(self, one: Tenant) -> None:
        self._users.subtract(one.files.keys())
        self._count(one, 1)

    def remove(self, one: Tenant) -> None:
        self._count(one, -1)
        self._users.update(one.files.keys())

    def _count(self, one: Tenant, sign: int) -> None:
        files = sum(size for file, size in one.files.items() if not self._users[file])
        self.bytes[CPU] += sign * (one.memory + files)
        for index, size in one.gpus.items():
            self.bytes[Device("gpu", index)] += sign * size

    def suffices(self, demands: Mapping[Device, Demand]) -> bool:
        return all(self.bytes[device] >= demand.excess for device, demand in demands.items())


def make_room(
    tenants: Collection[Tenant], demands: Mapping[Device, Demand], kept_files: Collection[str] = ()
) -> list[Hashable] | Shortage:
    """Returns the versions to unload so that what a load needs fits into the budget of every device.

    Chooses idle versions that are not pinned, least recently used first, and no more than necessary. Returns
    a Shortage if unloading all of them would not free enough. Unloading does not free `kept_files`, because
    the server or other loads map them too.
    """
    short = {device: demand for device, demand in demands.items() if demand.excess > 0}
    if not short:
        return []
    freed = _Freed(tenants, kept_files)
    chosen: list[Tenant] = []
    idle = sorted((one for one in tenants if not one.pinned and not one.busy), key=lambda one: one.last_used)
    for one in idle:
        if freed.suffices(short):
            break
        before = Counter(freed.bytes)
        freed.add(one)
        if all(freed.bytes[device] <= before[device] for device in short):
            freed.remove(one)  # unloading it would free nothing on a device where memory is short
        else:
            chosen.append(one)
    if not freed.suffices(short):
        device = next(one for one, demand in short.items() if freed.bytes[one] < demand.excess)
        return Shortage(
            short[device],
            _total([one for one in tenants if one.pinned], device),
            _total([one for one in tenants if one.busy and not one.pinned], device),
            freed.bytes[device],
            device,
        )
    # A larger version that was chosen later may make earlier choices unnecessary. Such versions stay loaded,
    # the most recently used first.
    for one in reversed(chosen):
        freed.remove(one)
        if freed.suffices(short):
            chosen.remove(one)
        else:
            freed.add(one)
    return [one.key for one in chosen]


def _total(tenants: Collection[Tenant], device: Device) -> int:
    if device != CPU:
        return sum(one.gpus.get(device.index, 0) for one in tenants)
    return sum(one.memory for one in tenants) + sum(union_of_files(one.files for one in tenants).values())


def union_of_files(each: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Returns the files that several processes map, each with the largest of its resident sizes."""
    union: dict[str, int] = {}
    for files in each:
        for name, size in files.items():
            union[name] = max(union.get(name, 0), size)
    return union


def idle_too_long(tenants: Collection[Tenant], now: float) -> list[Hashable]:
    """Returns the unpinned versions that have been idle for their idle limit or longer at the time `now`."""
    idle = (one for one in tenants if not one.pinned and not one.busy)
    return [one.key for one in idle if one.idle_limit is not None and now - one.last_used >= one.idle_limit]
