"""Keeps the server and its workers within the memory budget: decides when a load may begin, and unloads idle
versions to make room.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Hashable, Mapping
from contextlib import asynccontextmanager
from time import monotonic, time
from typing import Any, TypeVar

from msgspec.structs import replace

from backline.engine.device import CPU, Device
from backline.lifecycle.memory.meter import Held
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
from backline_client.values.errors import BacklineError, Unavailable

log = logging.getLogger("backline.lifecycle")

Result = TypeVar("Result")

#: The reason for unloading a version to make room. It is followed by the name of the load that needed the
#: room.
TO_MAKE_ROOM = "unloaded to make room"
#: The reason for unloading a version that was idle for longer than its idle limit.
WHEN_IDLE = "unloaded after it was idle"
#: The maximum interval between checks for idle versions, in seconds. Between the minimum and the maximum, the
#: interval is a quarter of the shortest idle limit.
_LONGEST_LOOK = 5.0
#: The minimum interval between checks for idle versions, in seconds.
_SHORTEST_LOOK = 0.05
#: Seconds for which a load waits for memory that running requests and loads hold.
_PATIENCE = 30.0
#: Seconds for which a load waits for worker processes that are ending.
_ENDING = 5.0
#: A load that has waited for room for at most this many seconds may be overtaken by later loads. Overtaking
#: is allowed, because a request that holds the memory may itself be waiting for a later load.
_OVERTAKEN = 3.0
#: Seconds for which the first load of a model waits for another first load to end, so that each is measured
#: alone. Without a limit, the wait might never end: a model may call another model during its own load.
_ALONE = 5.0
#: Seconds between checks for whether a busy model has become idle.
_BUSY_LOOK = 0.005
#: The maximum wait for a change, in seconds, before another search for room.
_LONGEST_WAIT = 1.0
#: Seconds between checks of the workers of a model that is loaded for the first time.
_GROWTH_LOOK = 0.005
#: The number of bytes by which the reservation of a growing load is extended at a time.
_GROWTH = 32 << 20
#: The number of bytes by which the memory of two loads of the same model may differ by chance.
_NOISE = 4 << 20


class NoRoom(Unavailable):
    """Raised when a load does not fit into the memory budget, even after all evictions that it may cause."""


class Reservation:
    """The memory that is reserved for a running load.

    `what` names the model, and `pids` returns the ids of the worker processes that the load has started. With
    `evict`, idle versions may be unloaded to make room.
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
        #: Whether the load was stopped because other loads held the memory that it needed.
        self.crowded_out = False

    def there(self, held: Held, need: Need) -> int:
        """Returns how many bytes of host memory the load already holds: what its workers hold or, for a model
        in the server's process, its need once it is loaded and 0 before.
        """
        own = sum(held.workers[pid].own for pid in self.pids() if pid in held.workers)
        # The memory of a load in the server's process cannot be distinguished from the rest of the process.
        # Until the model is loaded, it counts twice: as the process's memory and as the reservation.
        return max(own, need.own) if self.loaded and not own else own

    def there_on_gpu(self, index: int, held: Held, need: Need) -> int:
        """Returns how many bytes of a GPU's memory the load already holds; see `there`."""
        by_pid = held.gpus.get(index, {})
        own = sum(by_pid.get(pid, 0) for pid in self.pids())
        return max(own, need.gpus.get(index, 0)) if self.loaded and not own else own


class Residency:
    """The memory budget: the server and its workers together may hold `budget` bytes; None means no limit.

    Use it only on the event loop. `tenants` returns the loaded versions, with times from time.time().
    `workers` returns the ids of all worker processes. `put_to_sleep` unloads the versions with the given
    keys, to be reloaded on request, and returns once their memory is free. `gpu_budgets` holds the budgets of
    GPUs, in bytes. `release` ends processes that are kept for later use; it may block.
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
        release: Callable[[], object] = lambda: None,
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
        self._release = release
        self._turn = asyncio.Lock()
        self._first = asyncio.Lock()
        self._running: dict[Reservation, None] = {}
        #: The loads that wait for room, with their times of arrival, in that order.
        self._waiting: dict[Reservation, float] = {}
        #: Set, and replaced by a new event, when a load has ended, is suspended, or no longer waits. Each
        #: waiter keeps the event that was current when it last checked, so it cannot miss a change between
        #: its check and its wait.
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

        `need` returns the current estimate, which changes when another load imports the same runtime. With
        `evict`, idle versions are unloaded, but only if that makes enough room. Raises NoRoom, whose message
        has the sizes, if there is too little room. `pids` returns the ids of the workers that the load has
        started.
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
                await self.give_back()  # a load that reuses memory kept by the C library seems to need none
            yield reservation
        finally:
            if alone:
                self._first.release()
            self._running.pop(reservation, None)
            self._announce_change()

    async def watch(
        self, reservation: Reservation, load: Coroutine[Any, Any, Result], *, seen: Callable[[int], None]
    ) -> Result:
        """Runs a load, and keeps its workers from taking more memory than was reserved.

        Workers that need more than was estimated are suspended until there is room. If no room can be made,
        the load is cancelled, `seen` is called with the minimum number of bytes that it needs, and NoRoom is
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

        Raises NoRoom if there is not enough room for that much memory.
        """
        if reservation not in self._running:
            return
        before, reservation.loaded = reservation.need, True
        gpus_fit = all(size <= before.gpus.get(index, 0) for index, size in need.gpus.items())
        if need.own > before.peak + max(before.peak // 50, _NOISE) or not gpus_fit:
            await self._find_room(reservation, lambda: need)
        reservation.need = replace(need, peak=need.own)

    async def give_back(self) -> None:
        """Returns to the operating system the memory that this process has freed."""
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
        # The workers are suspended first: while this load waits for room, they must take no more memory.
        pause(pids)
        reservation.suspended = True
        self._announce_change()
        try:
            grown = replace(reservation.need, own=own, peak=own + _GROWTH)
            await self._find_room(reservation, lambda: grown)
        except NoRoom:
            # The next load of this model reserves this much before it begins. If there is too little room, it
            # is refused, and evicts nothing.
            seen(own + _GROWTH)
            reservation.crowded_out = len(self._running) > 1
            raise
        finally:
            reservation.suspended = False
            # A worker may have ended meanwhile, and another process may have its id.
            resume(set(pids).intersection(reservation.pids()))

    async def _find_room(self, reservation: Reservation, current: Callable[[], Need]) -> None:
        """Reserves the memory that the load needs now, in place of its current reservation. Raises NoRoom if
        that fails.
        """
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
                        continue  # a load ended meanwhile: its memory was counted, but not its version
                    if not trimming:
                        trimming = True  # try this before evictions: the C library may hold freed memory
                    elif isinstance(found, Shortage):
                        break
                    else:
                        await self._put_to_sleep(found, f"{TO_MAKE_ROOM} for {reservation.what}")
            # Waits without holding `_turn`: the memory may be held by a request that waits for another load,
            # which needs `_turn` first.
            others = self._will_end(reservation)
            waited = monotonic() - began
            if (
                not (others or (reservation.evict and found.passes))
                and not (waited < _ENDING and self._are_ending(tenants))
            ) or waited > _PATIENCE:
                guessed = not need.measured and need.own + need.runtime < need.peak
                if reservation.evict and guessed and waited <= _PATIENCE:
                    # The peak was only estimated, and an estimate must not prevent the load forever. So the
                    # search is repeated without the peak.
                    doubted = True
                    continue
                error = found.error(reservation.what)
                raise NoRoom(error.message, error.retry_after)
            await self._wait_for_change(changed, {one.key for one in tenants if one.busy})

    def _will_end(self, reservation: Reservation) -> bool:
        """Returns whether any running load can end, and so free memory, without waiting for this one.

        A load that has not begun holds no memory, so no other load waits for it. Of the suspended loads, the
        load that began last is stopped, and the others wait for the memory that it held.
        """
        began = list(self._running)
        if reservation not in self._running:
            return bool(began)
        later = began[began.index(reservation) + 1 :]
        return any(other is not reservation and (not other.suspended or other in later) for other in began)

    def _must_queue(self, reservation: Reservation) -> bool:
        """Returns whether an earlier load has waited for so long that this load must not be admitted before
        the earlier one.
        """
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
            self._release()
            self._trim()
        return self._held(workers)

    async def _wait_for_change(self, changed: asyncio.Event, busy: set[Hashable]) -> None:
        """Returns once `changed` is set, a version in `busy` is no longer busy, or a worker has ended.

        Returns after _LONGEST_WAIT seconds in any case, so that the caller can check its time limit.
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
            total = held.server + held.trials + sum(mapped.values()) - there
            total += sum(one.own for one in held.workers.values())
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
    """Updates a tenant with the memory that its workers hold now, which may be more than when the version was
    loaded.
    """
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
