"""Who may be in memory: makes room before a load, and sends to sleep what was idle for too long."""

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
#: Seconds between two looks for versions that were idle too long; at most, as a limit may be shorter.
_LONGEST_LOOK = 5.0
_SHORTEST_LOOK = 0.05


class NoRoom(Unavailable):
    """A load does not fit, and nobody may be sent away for it."""


class Residency:
    """Keeps the process within `budget` bytes of resident memory, None for no limit. Lives on the event loop.

    `tenants` gives the loaded versions as they are now; their clock is time.time(). `put_to_sleep` unloads some of them so that they are
    loaded again on request, and returns when their memory was given back.
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
        #: What loads under way were promised.
        self._promised = 0
        self._load_ended = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def room(self, what: str, file_bytes: int, *, evict: bool) -> AsyncIterator[None]:
        """Room for a load of a model with files of this size, while the block runs.

        With `evict` idle versions are put to sleep for it. Raises NoRoom, with the numbers, when there is none; `what` names the model.
        """
        needed = 0 if self.budget is None else self._meter.estimate(file_bytes)
        if (
            self.budget is not None and needed
        ):  # an ensemble, or a model whose configuration is wrong, takes none
            async with self._turn:
                await self._make_room(self.budget, what, needed, evict=evict)
                self._promised += needed
        try:
            yield
        finally:
            self._promised -= needed
            self._load_ended.set()

    async def give_back(self) -> None:
        """Gives memory that unloaded versions have freed back to the system."""
        await asyncio.to_thread(self._trim)

    def look_for_idle(self) -> None:
        """Begins to look for versions whose idle limit has passed; called again whenever one with such a limit is loaded."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()

    async def _make_room(self, budget: int, what: str, needed: int, *, evict: bool) -> None:
        if self._resident() + self._promised + needed > budget:
            await self.give_back()
        while True:  # as long as somebody leaves: what was measured of them may be more than they give back
            resident = self._resident() + self._promised
            tenants = self._tenants()
            found = make_room(tenants if evict else (), budget=budget, resident=resident, needed=needed)
            if isinstance(found, Shortage) and self._promised:
                # What loads under way were promised may be there already, and so be counted twice; and they can leave when they have ended.
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
