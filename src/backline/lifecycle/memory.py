"""The memory budget: how much memory a load needs, and which versions to unload to make room."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from time import time

from backline.engine.byte_size import format_bytes
from backline.engine.errors import BacklineError, Unavailable
from backline.system.memory import resident_bytes, return_large_blocks, trim

log = logging.getLogger("backline.lifecycle")

#: A load that imports at least this many modules has imported its runtime, which is not the model's memory.
_MODULES_OF_A_RUNTIME = 8
#: The ratio of memory to file size before any measurement.
_FIRST_RATIO = 1.2
#: The weight of a new measurement in the mean ratio of memory to file size.
_WEIGHT = 0.2


@dataclass(slots=True, eq=False)
class LoadMemory:
    """The memory that a load took, in bytes; 0 while it runs, or if it failed."""

    memory: int = 0


class LoadMeter:
    """Measures the memory that loads take, on any thread.

    A load that ran alone took the growth of resident memory, or the size of its files if that is larger:
    reused memory does not show as growth. The memory of a load that overlapped others, or imported its
    runtime, is estimated from the size of its files and the ratio measured so far.
    """

    def __init__(self, resident: Callable[[], int] = resident_bytes) -> None:
        self._resident = resident
        self._lock = threading.Lock()
        self._running = 0
        #: Loads begun so far, to detect overlaps.
        self._begun = 0
        self._ratio = _FIRST_RATIO

    def estimate(self, file_bytes: int) -> int:
        """The memory that a model with files of this size probably needs."""
        return int(file_bytes * self._ratio)

    @contextmanager
    def measure(self, file_bytes: int) -> Iterator[LoadMemory]:
        """Measures the memory of the load that runs within the context."""
        measured = LoadMemory()
        with self._lock:
            alone = not self._running
            self._running += 1
            self._begun += 1
            begun = self._begun
            before = self._resident()
        modules = len(sys.modules)
        try:
            yield measured
        except BaseException:
            with self._lock:
                self._running -= 1
            raise
        imported = len(sys.modules) - modules >= _MODULES_OF_A_RUNTIME
        with self._lock:
            self._running -= 1
            if not alone or begun != self._begun or imported:
                measured.memory = self.estimate(file_bytes)
                return
            measured.memory = max(self._resident() - before, file_bytes)
            if file_bytes:
                # Limited, because the overhead of a small model says nothing about large ones.
                ratio = min(measured.memory / file_bytes, 4.0)
                self._ratio += (ratio - self._ratio) * _WEIGHT


@dataclass(frozen=True, slots=True)
class Tenant:
    """A loaded version.

    `memory` is in bytes, `last_used` in seconds of a common clock. A `busy` version is in use and must stay.
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
    """Why a load does not fit, in bytes. `idle` is the memory of the versions that could be unloaded."""

    budget: int
    resident: int
    needed: int
    pinned: int
    busy: int
    idle: int

    def error(self, what: str) -> Unavailable:
        """The error for a load of `what`, such as "model 'a' version 1"."""
        # Whether the shortage ends when running requests have ended.
        passes = self.resident + self.needed - self.budget <= self.idle + self.busy
        raise_it = "Pin fewer models, or raise --memory-budget" if self.pinned else "Raise --memory-budget"
        advice = "Try again" if passes else raise_it
        return Unavailable(
            f"{what} needs {format_bytes(self.needed)}, and the memory budget of {format_bytes(self.budget)}"
            f" has no room for it: {format_bytes(self.resident)} are in use, {format_bytes(self.pinned)} of"
            f" it by pinned models and {format_bytes(self.busy)} by models with requests; unloading the idle"
            f" ones frees {format_bytes(self.idle)}. {advice}",
            retry_after=1 if passes else None,
        )


def make_room(
    tenants: Collection[Tenant], *, budget: int, resident: int, needed: int
) -> list[Hashable] | Shortage:
    """The versions to unload so that `needed` more bytes fit into `budget`, with `resident` bytes used now.

    Chooses idle versions that are not pinned, least recently used first, and no more than necessary. Returns
    a Shortage, and unloads none, if all of them together would not free enough.
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
    # Keep versions that a larger one, chosen later, made unnecessary to unload, most recently used first.
    for one in reversed(chosen):
        if freed - one.memory >= excess:
            chosen.remove(one)
            freed -= one.memory
    return [one.key for one in chosen]


def idle_too_long(tenants: Collection[Tenant], now: float) -> list[Hashable]:
    """The versions whose idle limit has passed at `now`."""
    idle = (one for one in tenants if not one.pinned and not one.busy)
    return [one.key for one in idle if one.idle_limit is not None and now - one.last_used >= one.idle_limit]


#: Why a version was put to sleep.
TO_MAKE_ROOM = "unloaded to make room"
WHEN_IDLE = "unloaded after it was idle"
#: The longest and the shortest interval, in seconds, between checks for idle versions. It is a quarter of the
#: shortest idle limit.
_LONGEST_LOOK = 5.0
_SHORTEST_LOOK = 0.05


class NoRoom(Unavailable):
    """A load does not fit into the memory budget, and nothing may be unloaded for it."""


class Residency:
    """Keeps the process within `budget` bytes of resident memory, None for no limit. Lives on the event loop.

    `tenants` returns the loaded versions; their clock is time.time(). `put_to_sleep` unloads some, to be
    reloaded on request, and returns once their memory is free.
    """

    def __init__(
        self,
        budget: int | None,
        *,
        tenants: Callable[[], Collection[Tenant]],
        put_to_sleep: Callable[[Collection[Hashable], str], Awaitable[None]],
        meter: LoadMeter,
        resident: Callable[[], int] = resident_bytes,
        trim: Callable[[], object] = trim,
    ) -> None:
        if budget is not None:
            return_large_blocks()
        self.budget = budget
        self._meter = meter
        self._tenants = tenants
        self._put_to_sleep = put_to_sleep
        self._resident = resident
        self._trim = trim
        self._turn = asyncio.Lock()
        #: Bytes promised to running loads.
        self._promised = 0
        self._load_ended = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def room(self, what: str, file_bytes: int, *, evict: bool) -> AsyncIterator[None]:
        """Reserves room for a load of a model with files of this size while the block runs.

        With `evict`, idle versions are unloaded to make room. Raises NoRoom, with the numbers, if there is
        too little; `what` names the model.
        """
        needed = 0 if self.budget is None else self._meter.estimate(file_bytes)
        if self.budget is not None and needed:  # ensembles and misconfigured models have no files
            async with self._turn:
                await self._make_room(self.budget, what, needed, evict=evict)
                self._promised += needed
        try:
            yield
        finally:
            self._promised -= needed
            self._load_ended.set()

    async def give_back(self) -> None:
        """Returns freed memory to the operating system."""
        await asyncio.to_thread(self._trim)

    def look_for_idle(self) -> None:
        """Starts checking for idle versions; call it when a version with an idle limit is loaded."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()

    async def _make_room(self, budget: int, what: str, needed: int, *, evict: bool) -> None:
        if self._resident() + self._promised + needed > budget:
            await self.give_back()
        while True:  # repeat: unloading may free less than was measured
            resident = self._resident() + self._promised
            tenants = self._tenants()
            found = make_room(tenants if evict else (), budget=budget, resident=resident, needed=needed)
            if isinstance(found, Shortage) and self._promised:
                # A shortage is final only without running loads. Memory promised to a load may be in use
                # already, and is then counted twice; and a version can be evicted once it is loaded.
                self._load_ended.clear()
                await self._load_ended.wait()
                continue
            if isinstance(found, Shortage):
                error = found.error(what)
                raise NoRoom(error.message, error.retry_after)
            if not found:
                return
            await self._put_to_sleep(found, TO_MAKE_ROOM)

    async def _look(self) -> None:
        while True:
            tenants = self._tenants()
            limits = [one.idle_limit for one in tenants if one.idle_limit is not None]
            if not limits:
                self._looking = None
                return
            idle = idle_too_long(tenants, time())
            if idle:
                try:
                    await self._put_to_sleep(idle, WHEN_IDLE)
                except BacklineError as error:
                    log.error("idle models could not be unloaded: %s", error.message)
            await asyncio.sleep(min(max(min(limits) / 4, _SHORTEST_LOOK), _LONGEST_LOOK))
