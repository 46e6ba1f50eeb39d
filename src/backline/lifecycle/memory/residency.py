"""Keeps the server and its workers within the memory budget: admits loads, and makes room for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Hashable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic, time
from typing import Any, TypeVar

from backline.engine.errors import BacklineError, Unavailable
from backline.engine.values.device import CPU, Device
from backline.lifecycle.memory.held import Held
from backline.lifecycle.memory.needs import Need
from backline.lifecycle.memory.room import (
    Demand,
    Shortage,
    Tenant,
    idle_too_long,
    make_room,
    union_of_files,
)
from backline.system.memory import return_large_blocks, trim
from backline.system.process_memory import count_pages, pause, resume

log = logging.getLogger("backline.lifecycle")

Result = TypeVar("Result")

#: Reasons for putting a version to sleep. The first is followed by the load that needed the room.
TO_MAKE_ROOM = "unloaded to make room"
WHEN_IDLE = "unloaded after it was idle"
#: The maximum and minimum interval between checks for idle versions, in seconds. The interval is a quarter of
#: the shortest idle limit.
_LONGEST_LOOK = 5.0
_SHORTEST_LOOK = 0.05
#: How many seconds a load waits for memory that running requests and loads hold.
_PATIENCE = 30.0
#: How many seconds a load waits for worker processes that are ending.
_ENDING = 5.0
#: How long a load that waits for room can be overtaken by later loads, in seconds. It can be overtaken
#: because it may wait for a request that in turn waits for a later load.
_OVERTAKEN = 3.0
#: How many seconds the first load of a model waits for another first load, so that each is measured alone. A
#: longer wait might never end: a model may call another model while it is loaded.
_ALONE = 5.0
#: Seconds between checks for a busy model that has become idle.
_BUSY_LOOK = 0.005
#: The maximum wait for a change, in seconds, before another search for room.
_LONGEST_WAIT = 1.0
#: Seconds between checks of the workers of a model that is loaded for the first time.
_GROWTH_LOOK = 0.005
#: By how many bytes the reservation of a growing load is extended at a time.
_GROWTH = 32 << 20
#: Bytes by which two loads of the same model may differ by chance.
_NOISE = 4 << 20


class NoRoom(Unavailable):
    """Raised when a load does not fit into the memory budget, and nothing may be unloaded for it."""


class Reservation:
    """The memory that a running load may use.

    `what` names the model, and `pids` returns the worker processes that the load has started.
    """

    def __init__(self, what: str, need: Need, *, evict: bool, pids: Callable[[], Collection[int]]) -> None:
        self.what = what
        self.need = need
        self.evict = evict
        self.pids = pids
        #: Whether the model is loaded, so that its need is included in the memory in use.
        self.loaded = False
        #: Whether the load's workers are suspended until there is more room.
        self.suspended = False
        #: Whether the load was stopped because other loads held the room that it needed.
        self.crowded_out = False

    def there(self, held: Held, need: Need) -> int:
        """Returns how many bytes of host memory the load already holds, as far as they are attributable."""
        own = sum(held.workers[pid].own for pid in self.pids() if pid in held.workers)
        # A load in the server's process is part of that process's memory, and may count twice while it runs.
        return max(own, need.own) if self.loaded and not own else own

    def there_on_gpu(self, index: int, held: Held, need: Need) -> int:
        """Returns how many bytes of a GPU's memory the load already holds; see `there`."""
        by_pid = held.gpus.get(index, {})
        own = sum(by_pid.get(pid, 0) for pid in self.pids())
        return max(own, need.gpus.get(index, 0)) if self.loaded and not own else own


class Residency:
    """Keeps the server and its workers within `budget` bytes of memory; None means no limit.

    Lives on the event loop. `tenants` returns the loaded versions, with times from time.time(). `workers`
    returns the ids of all worker processes. `put_to_sleep` unloads some versions, to be reloaded on request,
    and returns once their memory is free. `gpu_budgets` holds the budgets of GPUs, in bytes.
    """

    def __init__(
        self,
        budget: int | None,
        *,
        tenants: Callable[[], Collection[Tenant]],
        workers: Callable[[], Collection[int]],
        put_to_sleep: Callable[[Collection[Hashable], str], Awaitable[None]],
        held: Callable[[Collection[int]], Held],
        gpu_budgets: Mapping[int, int] | None = None,
        trim: Callable[[], object] = trim,
    ) -> None:
        if budget is not None:
            return_large_blocks()
        self.budget = budget
        self.gpu_budgets = dict(gpu_budgets or {})
        self._tenants = tenants
        self._workers = workers
        self._put_to_sleep = put_to_sleep
        self._held = held
        self._trim = trim
        self._turn = asyncio.Lock()
        self._first = asyncio.Lock()
        self._running: dict[Reservation, None] = {}
        #: The loads that wait for room, with their times of arrival, in that order.
        self._waiting: dict[Reservation, float] = {}
        #: Set and replaced when a load has ended or no longer waits. Each waiter holds the event that existed
        #: at its last check, so that it misses no change.
        self._changed = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    @property
    def limited(self) -> bool:
        """Whether there is any budget."""
        return self.budget is not None or bool(self.gpu_budgets)

    @asynccontextmanager
    async def room(
        self, what: str, need: Callable[[], Need], *, evict: bool, pids: Callable[[], Collection[int]] = tuple
    ) -> AsyncIterator[Reservation]:
        """Reserves room for a load while the block runs. `what` names the model.

        `need` returns the current estimate, which changes when another load imports the same runtime.
        With `evict`, idle versions are unloaded, but only if that makes enough room. Raises NoRoom, with the
        numbers, if there is too little. `pids` returns the workers that the load has started.
        """
        reservation = Reservation(what, need(), evict=evict, pids=pids)
        if not self.limited or reservation.need.nothing:  # ensembles and misconfigured models need no memory
            yield reservation
            return
        alone = not reservation.need.measured and await self._take_first_turn()
        try:
            self._waiting[reservation] = monotonic()
            try:
                await self._find_room(reservation, need)
            finally:
                del self._waiting[reservation]
                self._announce_change()
            if alone:
                await self.give_back()  # a load into memory that was kept for reuse would seem to need none
            yield reservation
        finally:
            if alone:
                self._first.release()
            self._running.pop(reservation, None)
            self._announce_change()

    async def watch(
        self, reservation: Reservation, load: Coroutine[Any, Any, Result], *, seen: Callable[[int], None]
    ) -> Result:
        """Runs a load, and keeps its workers from outgrowing what was reserved.

        Workers that need more than was estimated are suspended until there is room. If there is none, the
        load is cancelled, `seen` is called with the minimum number of bytes that it needs, and NoRoom is
        raised.
        """
        if reservation not in self._running or reservation.need.measured:
            return await load
        task = asyncio.get_running_loop().create_task(load)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_GROWTH_LOOK)
                pids = reservation.pids()
                own = sum(counts.anonymous + counts.shared for counts in map(count_pages, pids))
                if own > reservation.need.peak and not task.done():
                    await self._grow(reservation, pids, own, seen)
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def settle(self, reservation: Reservation, need: Need) -> None:
        """Replaces the reservation of a load that has ended with the memory that it was measured to need.

        Raises NoRoom if there is not enough room for that.
        """
        if reservation not in self._running:
            return
        before, reservation.loaded = reservation.need, True
        gpus_fit = all(size <= before.gpus.get(index, 0) for index, size in need.gpus.items())
        if need.own > before.peak + max(before.peak // 50, _NOISE) or not gpus_fit:
            await self._find_room(reservation, lambda: need)
        reservation.need = replace(need, peak=need.own)

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

    async def _take_first_turn(self) -> bool:
        try:
            async with asyncio.timeout(_ALONE):
                await self._first.acquire()
        except TimeoutError:
            return False
        return True

    async def _grow(
        self, reservation: Reservation, pids: Collection[int], own: int, seen: Callable[[int], None]
    ) -> None:
        pause(pids)
        reservation.suspended = True
        self._announce_change()
        try:
            grown = replace(reservation.need, own=own, peak=own + _GROWTH)
            await self._find_room(reservation, lambda: grown)
        except NoRoom:
            seen(own + _GROWTH)  # the next load asks for this much at once, and is refused without evictions
            reservation.crowded_out = len(self._running) > 1
            raise
        finally:
            reservation.suspended = False
            resume(pids)

    async def _find_room(self, reservation: Reservation, current: Callable[[], Need]) -> None:
        """Reserves the current need, in place of what is reserved. Raises NoRoom."""
        began = monotonic()
        trimming = doubted = False
        while True:
            while self._must_queue(reservation) and monotonic() < began + _PATIENCE:
                await self._wait_for_change(self._changed, set())
            async with self._turn:
                while True:  # repeat: unloading may free less than was measured
                    changed, tenants, need = self._changed, self._tenants(), current()
                    if doubted:
                        need = replace(need, peak=need.own + need.runtime)
                    found = await self._plan(reservation, need, tenants, trim=trimming)
                    if not found:
                        reservation.need = need
                        self._running[reservation] = None
                        return
                    if changed.is_set():
                        continue  # a load ended: its memory was counted, but not its model
                    if not trimming:
                        trimming = True  # try this before evictions: the C library may keep freed memory
                    elif isinstance(found, Shortage):
                        break
                    else:
                        await self._put_to_sleep(found, f"{TO_MAKE_ROOM} for {reservation.what}")
            # Waits without the lock, since whatever this load waits for may itself wait for another load.
            others = self._will_end(reservation)
            waited = monotonic() - began
            if (
                not (others or (reservation.evict and found.passes))
                and not (waited < _ENDING and self._are_ending(tenants))
            ) or waited > _PATIENCE:
                guessed = not need.measured and need.own + need.runtime < need.peak
                if reservation.evict and guessed and waited <= _PATIENCE:
                    # A mere guess of the load's peak must not keep the model out for ever.
                    doubted = True
                    continue
                error = found.error(reservation.what)
                raise NoRoom(error.message, error.retry_after)
            await self._wait_for_change(changed, {one.key for one in tenants if one.busy})

    def _will_end(self, reservation: Reservation) -> bool:
        """Returns whether any running load will end without the room that this one waits for.

        A load that has not begun holds nothing, so no other waits for it. Of the suspended loads, the one
        that began last is stopped, and the others wait for that.
        """
        began = list(self._running)
        if reservation not in self._running:
            return bool(began)
        later = began[began.index(reservation) + 1 :]
        return any(other is not reservation and (not other.suspended or other in later) for other in began)

    def _must_queue(self, reservation: Reservation) -> bool:
        """Returns whether an earlier load has waited for so long that this one must not take its room."""
        if reservation in self._running:  # running loads take precedence
            return False
        for one, since in self._waiting.items():
            if one is reservation:
                return False
            if monotonic() - since > _OVERTAKEN:
                return True
        return False

    def _are_ending(self, tenants: Collection[Tenant]) -> bool:
        """Returns whether any worker is about to end: its version is unloading, or its load was stopped."""
        kept = {pid for one in tenants for pid in one.pids} | {
            pid for one in self._running for pid in one.pids()
        }
        return not kept.issuperset(self._workers())

    def _announce_change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _read(self, workers: Collection[int], trim: bool) -> Held:
        if trim:
            self._trim()
        return self._held(workers)

    async def _wait_for_change(self, changed: asyncio.Event, busy: set[Hashable]) -> None:
        """Returns once `changed` is set, a version that was `busy` is not, or a worker has ended.

        Returns after a moment in any case, so that the caller can check its time limit.
        """
        workers = set(self._workers())
        until = monotonic() + _LONGEST_WAIT
        while not changed.is_set() and monotonic() < until:
            try:
                async with asyncio.timeout(_BUSY_LOOK):
                    await changed.wait()
            except TimeoutError:
                if busy - {one.key for one in self._tenants() if one.busy} or workers - set(self._workers()):
                    return

    async def _plan(
        self, reservation: Reservation, need: Need, tenants: Collection[Tenant], *, trim: bool
    ) -> list[Hashable] | Shortage:
        held = await asyncio.to_thread(self._read, self._workers(), trim)
        tenants = [_as_held(one, held) for one in tenants]
        others = [one for one in self._running if one is not reservation]
        kept = [held.server_files, *(one.need.files for one in others)]
        # The load need not count files that the server or a worker maps already.
        mapped = union_of_files([*kept, *(one.files for one in held.workers.values())])
        demands: dict[Device, Demand] = {}
        if self.budget is not None:
            there = reservation.there(held, need)
            total = held.server + sum(mapped.values()) + sum(one.own for one in held.workers.values()) - there
            total += sum(max(one.need.peak - one.there(held, one.need), 0) for one in others)
            files = sum(size for name, size in need.files.items() if name not in mapped)
            demands[CPU] = Demand(
                self.budget, total, max(need.own if reservation.loaded else need.peak, there) + files
            )
        for index, budget in self.gpu_budgets.items():
            there = reservation.there_on_gpu(index, held, need)
            total = sum(held.gpus.get(index, {}).values()) - there
            for one in others:
                total += max(one.need.gpus.get(index, 0) - one.there_on_gpu(index, held, one.need), 0)
            demands[Device("gpu", index)] = Demand(budget, total, max(need.gpus.get(index, 0), there))
        return make_room(tenants if reservation.evict else (), demands, {*union_of_files(kept), *need.files})

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


def _as_held(one: Tenant, held: Held) -> Tenant:
    """Updates a tenant with what its workers hold now, which may be more than when it was loaded."""
    if not one.pids:
        return one
    prints = [held.workers[pid] for pid in one.pids if pid in held.workers]
    gpus = {index: sum(by_pid.get(pid, 0) for pid in one.pids) for index, by_pid in held.gpus.items()}
    return replace(
        one,
        memory=sum(each.own for each in prints),
        files=union_of_files(each.files for each in prints),
        gpus=gpus,
    )
