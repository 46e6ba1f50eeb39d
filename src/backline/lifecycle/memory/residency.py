"""Makes room before loads, and unloads versions that were idle for too long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable
from contextlib import asynccontextmanager
from time import time

from backline.engine.errors import BacklineError, Unavailable
from backline.lifecycle.loading.memory import LoadMeter
from backline.lifecycle.memory.budget import Shortage, Tenant, idle_too_long, make_room
from backline.system.memory import resident_bytes, return_large_blocks, trim

log = logging.getLogger("backline.lifecycle")

#: Why a version was put to sleep.
TO_MAKE_ROOM = "unloaded to make room"
WHEN_IDLE = "unloaded after it was idle"
#: The longest and shortest interval between checks for idle versions, in seconds; it depends on the shortest
#: limit.
_LONGEST_LOOK = 5.0
_SHORTEST_LOOK = 0.05


class NoRoom(Unavailable):
    """A load does not fit, and nothing may be unloaded for it."""


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

        With `evict` idle versions are unloaded for it. Raises NoRoom with the numbers if there is none;
        `what` names the model.
        """
        needed = 0 if self.budget is None else self._meter.estimate(file_bytes)
        if self.budget is not None and needed:  # ensembles, and models with a wrong configuration, need none
            async with self._turn:
                await self._make_room(self.budget, what, needed, evict=evict)
                self._promised += needed
        try:
            yield
        finally:
            self._promised -= needed
            self._load_ended.set()

    async def give_back(self) -> None:
        """Returns freed memory to the system."""
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
                # Promised memory may be in use already and so count twice, and loads that end can be evicted:
                # only a shortage without promises is final.
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
