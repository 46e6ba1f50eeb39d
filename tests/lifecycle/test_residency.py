"""Room for a load: evictions, and memory promised to running loads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Hashable

import pytest

from backline.engine.errors import Unavailable
from backline.lifecycle.memory import LoadMeter, Residency, Shortage, Tenant, make_room

MIB = 1 << 20


class House:
    """A 100 MiB process with a 200 MiB budget. An unloaded version keeps the share `stays` of its memory."""

    def __init__(self, budget: int | None = 200 * MIB, stays: float = 0.0) -> None:
        self.tenants: dict[Hashable, Tenant] = {}
        self.base = 100 * MIB
        self.stays = stays
        self.gone: list[Hashable] = []
        self.reasons: list[str] = []
        self.left = asyncio.Event()
        self.residency = Residency(
            budget,
            tenants=lambda: list(self.tenants.values()),
            put_to_sleep=self.put_to_sleep,
            meter=LoadMeter(self.resident),
            resident=self.resident,
            trim=lambda: None,
        )

    def resident(self) -> int:
        return self.base + sum(one.memory for one in self.tenants.values())

    def add(
        self,
        key: str,
        size: int,
        last_used: float = 0.0,
        *,
        pinned: bool = False,
        idle_limit: float | None = None,
    ) -> None:
        self.tenants[key] = Tenant(key, size * MIB, last_used, pinned, idle_limit=idle_limit)

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
        async with house.residency.room("m", 50 * MIB, evict=True):
            assert house.gone == []

    run(scenario)


def test_the_least_recently_used_are_evicted_for_a_load_that_does_not_fit() -> None:
    async def scenario() -> None:
        house = House()
        for key, used in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
            house.add(key, 30, used)
        async with house.residency.room("m", 40 * MIB, evict=True):
            assert house.gone == ["b", "c"]
            assert house.reasons == ["unloaded to make room"]

    run(scenario)


def test_more_are_evicted_when_the_first_freed_less_than_measured() -> None:
    async def scenario() -> None:
        house = House(stays=0.5)
        for number in range(5):
            house.add(str(number), 20, float(number))
        async with house.residency.room("m", 20 * MIB, evict=True):
            assert house.resident() + 24 * MIB <= 200 * MIB
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
            async with house.residency.room("model 'm'", 20 * MIB, evict=False):
                pytest.fail("there is no room")
        assert house.gone == []

    run(scenario)


def test_a_load_without_files_is_admitted_when_memory_is_full() -> None:
    async def scenario() -> None:
        house = House(budget=50 * MIB)
        async with house.residency.room("an ensemble", 0, evict=False):
            assert not house.gone

    run(scenario)


@pytest.mark.parametrize(
    ("budget", "advice", "retry_after"), [(140, "Raise --memory-budget", None), (150, "Try again", 1)]
)
def test_a_refusal_advises_a_retry_if_that_may_help(
    budget: int, advice: str, retry_after: int | None
) -> None:
    busy = Tenant("busy", 30 * MIB, 0.0, busy=True)

    found = make_room([busy], budget=budget * MIB, resident=130 * MIB, needed=50 * MIB)

    assert isinstance(found, Shortage)
    assert found.error("m").message.endswith(f". {advice}")
    assert found.error("m").retry_after == retry_after


def test_pinned_versions_stay_and_are_named_in_the_refusal() -> None:
    async def scenario() -> None:
        house = House()
        house.add("a", 90, pinned=True)
        with pytest.raises(Unavailable, match="90 MiB of it by pinned models"):
            async with house.residency.room("m", 20 * MIB, evict=True):
                pytest.fail("there is no room")

    run(scenario)


def test_memory_promised_to_a_load_is_not_given_to_another_until_it_ends() -> None:
    async def scenario() -> None:
        house = House()
        order: list[str] = []

        async def other() -> None:
            async with house.residency.room("other", 50 * MIB, evict=True):
                order.append("other begins")

        async with house.residency.room("one", 50 * MIB, evict=True):
            waiting = asyncio.ensure_future(other())
            await asyncio.sleep(0)
            order.append("one ends")
        await waiting
        assert order == ["one ends", "other begins"]

    run(scenario)


def test_without_a_budget_everything_fits() -> None:
    async def scenario() -> None:
        async with House(budget=None).residency.room("m", 10**15, evict=False):
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
