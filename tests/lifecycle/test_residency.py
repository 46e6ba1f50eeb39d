"""Room for a load: evictions, and memory promised to running loads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from contextlib import AbstractAsyncContextManager

import pytest

from backline.engine.device import CPU
from backline.lifecycle.memory import residency
from backline.lifecycle.memory.meter import Held
from backline.lifecycle.memory.needs import Need
from backline.lifecycle.memory.residency import Reservation, Residency
from backline.lifecycle.memory.room import Demand, Shortage, Tenant, make_room
from backline.system.process_memory import Footprint, PageCounts
from backline_client.values.errors import Unavailable

MIB = 1 << 20


class House:
    """A 100 MiB process with a 200 MiB budget. An unloaded version keeps the share `stays` of its memory."""

    def __init__(
        self,
        budget: int | None = 200 * MIB,
        stays: float = 0.0,
        gpu_budgets: Mapping[int, int] | None = None,
    ) -> None:
        self.tenants: dict[Hashable, Tenant] = {}
        self.base = 100 * MIB
        self.stays = stays
        #: The memory of workers that are ending, by process.
        self.ending: dict[int, int] = {}
        self.gone: list[Hashable] = []
        self.reasons: list[str] = []
        self.left = asyncio.Event()
        #: Called, on a thread, whenever the memory is read.
        self.on_read: Callable[[], object] = lambda: None
        #: The memory of the idle fork server, which tries files.
        self.fork_server = 0
        self.residency = Residency(
            budget,
            tenants=lambda: list(self.tenants.values()),
            put_to_sleep=self.put_to_sleep,
            workers=lambda: [*self.ending, *(pid for one in self.tenants.values() for pid in one.pids)],
            held=self.held,
            gpu_budgets=gpu_budgets,
            trim=lambda: None,
            release=self.end_fork_server,
        )

    def room(self, what: str, needed: int, *, evict: bool) -> AbstractAsyncContextManager[Reservation]:
        """The room for a load that was measured before."""
        return self.residency.room(what, lambda: Need(needed, needed, measured=True), evict=evict)

    def held(self, _: Collection[int]) -> Held:
        self.on_read()
        inside = sum(one.memory for one in self.tenants.values() if not one.pids)
        workers = {pid: Footprint(one.memory) for one in self.tenants.values() for pid in one.pids}
        workers |= {pid: Footprint(size) for pid, size in self.ending.items()}
        gpus = {
            index: {0: sum(one.gpus.get(index, 0) for one in self.tenants.values())}
            for index in self.residency.gpu_budgets
        }
        return Held(self.base + inside, {}, workers, gpus, self.fork_server)

    def end_fork_server(self) -> None:
        self.fork_server = 0

    def add(
        self,
        key: str,
        size: int,
        last_used: float = 0.0,
        *,
        pinned: bool = False,
        idle_limit: float | None = None,
        pids: tuple[int, ...] = (),
        gpus: Mapping[int, int] | None = None,
    ) -> None:
        self.tenants[key] = Tenant(
            key, size * MIB, last_used, pinned, idle_limit=idle_limit, pids=pids, gpus=gpus or {}
        )

    async def put_to_sleep(self, keys: Collection[Hashable], reason: str) -> None:
        for key in keys:
            self.base += int(self.tenants.pop(key).memory * self.stays)
            self.gone.append(key)
        self.reasons.append(reason)
        self.left.set()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_load_that_fits_evicts_nothing() -> None:
    async def scenario() -> None:
        house = House()
        house.add("a", 30)
        async with house.room("m", 50 * MIB, evict=True):
            assert house.gone == []

    run(scenario)


@pytest.mark.parametrize(("needed", "ended", "gone"), [(20, False, []), (60, True, []), (80, True, ["a"])])
def test_an_idle_fork_server_counts_and_ends_before_versions_are_evicted(
    needed: int, ended: bool, gone: list[str]
) -> None:
    async def scenario() -> None:
        house = House()
        house.add("a", 30)
        house.fork_server = 40 * MIB
        async with house.room("m", needed * MIB, evict=True):
            assert (house.fork_server == 0) == ended
            assert house.gone == gone

    run(scenario)


def test_the_least_recently_used_are_evicted_for_a_load_that_does_not_fit() -> None:
    async def scenario() -> None:
        house = House()
        for key, used in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
            house.add(key, 30, used)
        async with house.room("m", 48 * MIB, evict=True):
            assert house.gone == ["b", "c"]
            assert house.reasons == ["unloaded to make room for m"]

    run(scenario)


def test_more_are_evicted_when_the_first_freed_less_than_measured() -> None:
    async def scenario() -> None:
        house = House(stays=0.5)
        for number in range(5):
            house.add(str(number), 20, float(number))
        async with house.room("m", 24 * MIB, evict=True):
            assert house.held(()).server + 24 * MIB <= 200 * MIB
            assert house.gone == ["0", "1", "2"]

    run(scenario)


def test_a_load_that_may_not_evict_is_refused_with_the_numbers() -> None:
    async def scenario() -> None:
        house = House()
        house.add("a", 90)
        with pytest.raises(
            Unavailable,
            match=r"^model 'm' needs 24 MiB, and the memory budget of 200 MiB has no room for it: 190 MiB",
        ):
            async with house.room("model 'm'", 24 * MIB, evict=False):
                pytest.fail("there is no room")
        assert house.gone == []

    run(scenario)


def test_a_load_without_files_is_admitted_when_memory_is_full() -> None:
    async def scenario() -> None:
        house = House(budget=50 * MIB)
        async with house.room("an ensemble", 0, evict=False):
            assert not house.gone

    run(scenario)


@pytest.mark.parametrize(
    ("budget", "advice", "retry_after"), [(140, "Raise --memory-budget", None), (150, "Try again", 1)]
)
def test_a_refusal_advises_a_retry_if_that_may_help(
    budget: int, advice: str, retry_after: int | None
) -> None:
    busy = Tenant("busy", 30 * MIB, 0.0, busy=True)

    found = make_room([busy], {CPU: Demand(budget * MIB, 130 * MIB, 50 * MIB)})

    assert isinstance(found, Shortage)
    assert found.error("m").message.endswith(f". {advice}")
    assert found.error("m").retry_after == retry_after


def test_pinned_versions_stay_and_are_named_in_the_refusal() -> None:
    async def scenario() -> None:
        house = House()
        house.add("a", 90, pinned=True)
        with pytest.raises(Unavailable, match="90 MiB of it by pinned models"):
            async with house.room("m", 20 * MIB, evict=True):
                pytest.fail("there is no room")

    run(scenario)


def test_memory_promised_to_a_load_is_not_given_to_another_until_it_ends() -> None:
    async def scenario() -> None:
        house = House()
        order: list[str] = []

        async def other() -> None:
            async with house.room("other", 50 * MIB, evict=True):
                order.append("other begins")

        async with house.room("one", 50 * MIB, evict=True):
            waiting = asyncio.ensure_future(other())
            await asyncio.sleep(0)
            order.append("one ends")
        await waiting
        assert order == ["one ends", "other begins"]

    run(scenario)


def test_without_a_budget_everything_fits() -> None:
    async def scenario() -> None:
        async with House(budget=None).room("m", 10**15, evict=False):
            pass

    run(scenario)


def test_a_version_that_is_idle_too_long_is_put_to_sleep() -> None:
    async def scenario() -> None:
        house = House(budget=None)
        house.add("idle", 10, time.time() - 100, idle_limit=60)
        house.add("used", 10, time.time(), idle_limit=60)
        house.residency.look_for_idle()
        await house.left.wait()
        house.residency.close()
        assert house.gone == ["idle"]
        assert house.reasons == ["unloaded after it was idle"]

    run(scenario)


def test_memory_of_workers_counts_as_they_hold_it_now() -> None:
    async def scenario() -> None:
        house = House()
        house.add("grown", 90, 1.0, pids=(7,))
        house.add("used", 5, 2.0, pids=(8,))
        async with house.room("m", 50 * MIB, evict=True):
            assert house.gone == ["grown"]

    run(scenario)


def test_nothing_is_evicted_for_a_load_that_would_not_fit_even_then() -> None:
    async def scenario() -> None:
        house = House()
        house.add("a", 40, pids=(7,))
        house.add("b", 40)
        with pytest.raises(
            Unavailable, match=r"^m needs 120 MiB, .*; unloading the idle models would free 80 MiB"
        ):
            async with house.room("m", 120 * MIB, evict=True):
                pytest.fail("there is no room")
        assert house.gone == []

    run(scenario)


def test_a_load_waits_for_a_busy_version_and_evicts_it_once_it_is_idle() -> None:
    async def scenario() -> None:
        house = House()
        house.tenants["a"] = Tenant("a", 90 * MIB, 0.0, busy=True)
        waiting = asyncio.ensure_future(house.room("m", 50 * MIB, evict=True).__aenter__())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        house.add("a", 90)
        await waiting
        assert house.gone == ["a"]

    run(scenario)


def test_the_peak_of_a_load_is_reserved_and_what_it_does_not_keep_is_given_back() -> None:
    async def scenario() -> None:
        house = House()
        need = Need(20 * MIB, 90 * MIB, measured=True)
        async with house.residency.room("one", lambda: need, evict=True) as one:
            refused = asyncio.ensure_future(house.room("two", 50 * MIB, evict=True).__aenter__())
            await asyncio.sleep(0.05)
            assert not refused.done()
            house.base += 20 * MIB  # the model, in the server's process
            await house.residency.settle(one, need)
        await refused

    run(scenario)


def test_a_load_without_room_for_its_guessed_copies_keeps_the_room_for_its_runtime() -> None:
    async def scenario() -> None:
        house = House()
        guess = Need(20 * MIB, 130 * MIB, runtime=70 * MIB)
        async with house.residency.room("m", lambda: guess, evict=True) as reservation:
            assert reservation.need.peak == 90 * MIB
        guess = Need(20 * MIB, 150 * MIB, runtime=90 * MIB)
        with pytest.raises(Unavailable, match="m needs 110 MiB"):
            await house.residency.room("m", lambda: guess, evict=True).__aenter__()

    run(scenario)


def test_the_id_of_a_worker_that_ended_while_suspended_is_not_resumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signals: list[tuple[str, set[int]]] = []
    pids = [7, 8]

    def pause(given: Collection[int]) -> None:
        signals.append(("pause", set(given)))
        pids.remove(7)

    async def scenario() -> None:
        house = House()
        resumed = asyncio.Event()

        def resume(given: Collection[int]) -> None:
            signals.append(("resume", set(given)))
            resumed.set()

        monkeypatch.setattr(residency, "count_pages", lambda pid: PageCounts(20 * MIB))
        monkeypatch.setattr(residency, "pause", pause)
        monkeypatch.setattr(residency, "resume", resume)
        need = Need(10 * MIB, 10 * MIB)
        async with house.residency.room("m", lambda: need, evict=False, pids=lambda: list(pids)) as one:
            await house.residency.watch(one, resumed.wait(), seen=lambda own: None)

    run(scenario)
    assert signals == [("pause", {7, 8}), ("resume", {8})]


def test_a_load_waits_for_a_suspended_one_to_end_rather_than_doubt_its_estimate() -> None:
    async def scenario() -> None:
        house = House()
        guess = Need(20 * MIB, 90 * MIB)
        async with house.room("one", 40 * MIB, evict=True) as one:
            one.suspended = True
            two = asyncio.ensure_future(house.residency.room("two", lambda: guess, evict=True).__aenter__())
            await asyncio.sleep(0.05)
            assert not two.done()
        assert (await two).need.peak == 90 * MIB

    run(scenario)


def test_a_load_that_ends_while_memory_is_read_can_be_evicted() -> None:
    async def scenario() -> None:
        house = House()
        reads = 0
        reading, ended = threading.Event(), threading.Event()

        def on_read() -> None:
            nonlocal reads
            reads += 1
            if reads == 2:
                reading.set()
                ended.wait()

        one = house.room("one", 60 * MIB, evict=True)
        await one.__aenter__()
        house.on_read = on_read
        two = asyncio.ensure_future(house.room("two", 60 * MIB, evict=True).__aenter__())
        await asyncio.to_thread(reading.wait)
        house.add("one", 60)
        await one.__aexit__(None, None, None)
        ended.set()
        await two
        assert house.gone == ["one"]

    run(scenario)


def test_a_load_that_took_more_than_was_known_makes_more_room_or_fails() -> None:
    async def scenario() -> None:
        house = House()
        house.add("a", 60)
        async with house.room("m", 30 * MIB, evict=True) as reservation:
            house.base += 90 * MIB
            await house.residency.settle(reservation, Need(90 * MIB, 90 * MIB, measured=True))
            assert house.gone == ["a"]
            house.base += 20 * MIB
            with pytest.raises(Unavailable, match="m needs 110 MiB"):
                await house.residency.settle(reservation, Need(110 * MIB, 110 * MIB, measured=True))

    run(scenario)


def test_room_on_a_gpu_is_made_by_what_is_on_it() -> None:
    async def scenario() -> None:
        house = House(budget=None, gpu_budgets={0: 100 * MIB, 1: 100 * MIB})
        house.add("there", 1, 2.0, gpus={1: 80 * MIB})
        house.add("elsewhere", 1, 1.0, gpus={0: 80 * MIB})
        need = Need(MIB, MIB, gpus={1: 50 * MIB}, measured=True)
        async with house.residency.room("m", lambda: need, evict=True):
            assert house.gone == ["there"]

    run(scenario)


def test_a_load_waits_for_workers_that_are_ending() -> None:
    async def scenario() -> None:
        house = House()
        house.ending = {9: 80 * MIB}
        waiting = asyncio.ensure_future(house.room("m", 50 * MIB, evict=True).__aenter__())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        house.ending = {}
        await waiting

    run(scenario)


def test_a_later_load_does_not_take_the_room_that_another_has_long_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(residency, "_OVERTAKEN", 0.0)

    async def scenario() -> None:
        house = House()
        async with house.room("running", 60 * MIB, evict=True):
            large_room = house.room("large", 90 * MIB, evict=True)
            large = asyncio.ensure_future(large_room.__aenter__())
            await asyncio.sleep(0.05)
            small = asyncio.ensure_future(house.room("small", 30 * MIB, evict=True).__aenter__())
            await asyncio.sleep(0.05)
            assert not small.done(), "it would fit, and delay the large one"
        await large
        assert not small.done()
        await large_room.__aexit__(None, None, None)
        await small

    run(scenario)


def test_of_loads_that_wait_for_each_other_the_last_is_refused_and_the_first_goes_on() -> None:
    async def scenario() -> None:
        house = House()
        two_room = house.room("two", 40 * MIB, evict=True)
        async with house.room("one", 40 * MIB, evict=True) as one:
            two = await two_room.__aenter__()
            one.suspended = two.suspended = True
            house.base += 160 * MIB  # both models, in the server's process
            first = asyncio.ensure_future(
                house.residency.settle(one, Need(80 * MIB, 80 * MIB, measured=True))
            )
            with pytest.raises(Unavailable, match="two needs 80 MiB"):
                await house.residency.settle(two, Need(80 * MIB, 80 * MIB, measured=True))
            assert not first.done()
            await two_room.__aexit__(None, None, None)
            house.base -= 80 * MIB
            await first

    run(scenario)
