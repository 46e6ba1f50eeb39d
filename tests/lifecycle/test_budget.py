"""The memory budget: which versions are evicted, and which never."""

from __future__ import annotations

from collections.abc import Collection, Hashable

from hypothesis import given
from hypothesis import strategies as st

from backline.engine.device import CPU, Device
from backline.lifecycle.memory.room import Demand, Shortage, Tenant, idle_too_long, make_room
from backline_client.values.errors import Unavailable

MIB = 1 << 20


def tenant(key: str, memory: int, last_used: float, *, pinned: bool = False, busy: bool = False) -> Tenant:
    return Tenant(key, memory * MIB, last_used, pinned, busy)


def room_on_host(
    tenants: Collection[Tenant], *, budget: int, resident: int, needed: int
) -> list[Hashable] | Shortage:
    return make_room(tenants, {CPU: Demand(budget, resident, needed)})


def test_nothing_is_evicted_while_there_is_room() -> None:
    assert room_on_host([tenant("a", 10, 1)], budget=100 * MIB, resident=50 * MIB, needed=50 * MIB) == []


def test_the_least_recently_used_go_first_and_no_more_than_needed() -> None:
    tenants = [tenant("new", 10, 3), tenant("old", 10, 1), tenant("middle", 10, 2)]
    assert room_on_host(tenants, budget=100 * MIB, resident=100 * MIB, needed=15 * MIB) == ["old", "middle"]


def test_a_small_version_stays_if_a_larger_one_suffices() -> None:
    tenants = [tenant("small", 1, 1), tenant("large", 50, 2)]
    assert room_on_host(tenants, budget=100 * MIB, resident=100 * MIB, needed=40 * MIB) == ["large"]


def test_without_room_the_error_has_the_numbers() -> None:
    tenants = [tenant("pinned", 30, 1, pinned=True), tenant("busy", 20, 2, busy=True), tenant("idle", 10, 3)]
    found = room_on_host(tenants, budget=100 * MIB, resident=90 * MIB, needed=40 * MIB)
    assert isinstance(found, Shortage)
    error = found.error("model 'm' version 1")
    assert isinstance(error, Unavailable)
    assert error.retry_after == 1
    assert error.message == (
        "model 'm' version 1 needs 40 MiB, and the memory budget of 100 MiB has no room for it: 90 MiB is in"
        " use, 30 MiB of it by pinned models and 20 MiB by busy models; unloading the idle models would free"
        " 10 MiB. Try again"
    )


tenants_lists = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 10), st.booleans(), st.booleans()), max_size=12
).map(lambda rows: [Tenant(index, *row) for index, row in enumerate(rows)])


@given(
    tenants=tenants_lists, budget=st.integers(0, 300), base=st.integers(0, 100), needed=st.integers(0, 100)
)
def test_evictions_are_idle_necessary_and_sufficient(
    tenants: list[Tenant], budget: int, base: int, needed: int
) -> None:
    resident = base + sum(one.memory for one in tenants)
    idle = {one.key: one for one in tenants if not one.pinned and not one.busy}
    found = room_on_host(tenants, budget=budget, resident=resident, needed=needed)
    if isinstance(found, Shortage):
        assert resident - sum(one.memory for one in idle.values()) + needed > budget
        return
    assert set(found) <= set(idle)
    assert len(set(found)) == len(found)
    left = resident - sum(idle[key].memory for key in found) + needed
    assert left <= budget or not found
    if not found:
        assert resident + needed <= budget
    for key in found:  # none could have stayed
        assert left + idle[key].memory > budget


@given(tenants=tenants_lists, budget=st.integers(0, 300), needed=st.integers(0, 100))
def test_none_that_stays_was_used_longer_ago_than_all_that_go(
    tenants: list[Tenant], budget: int, needed: int
) -> None:
    resident = sum(one.memory for one in tenants)
    found = room_on_host(tenants, budget=budget, resident=resident, needed=needed)
    if isinstance(found, Shortage) or not found:
        return
    by_key = {one.key: one for one in tenants}
    newest = max(by_key[key].last_used for key in found)
    excess = resident + needed - budget
    older = [
        one
        for one in tenants
        if not one.pinned and not one.busy and one.last_used < newest and one.key not in found
    ]
    # A version less recently used than an evicted one only stays if it would not have sufficed instead.
    assert sum(one.memory for one in older) < excess


def test_an_idle_version_is_unloaded_unless_pinned_or_busy() -> None:
    tenants = [
        Tenant("idle", 1, 10.0, idle_limit=5),
        Tenant("used", 1, 12.0, idle_limit=5),
        Tenant("pinned", 1, 0.0, pinned=True, idle_limit=5),
        Tenant("busy", 1, 0.0, busy=True, idle_limit=5),
        Tenant("for ever", 1, 0.0),
    ]
    assert idle_too_long(tenants, 15.0) == ["idle"]


def sharing(key: str, memory: int, last_used: float, *files: str) -> Tenant:
    return Tenant(key, memory * MIB, last_used, files=dict.fromkeys(files, 50 * MIB))


def test_a_file_that_others_map_is_freed_only_with_its_last_user() -> None:
    tenants = [sharing("a", 10, 1, "torch"), sharing("b", 10, 2, "torch"), sharing("c", 10, 3)]

    def evicted(needed: int, *kept: str) -> list[Hashable] | Shortage:
        return make_room(tenants, {CPU: Demand(80 * MIB, 80 * MIB, needed * MIB)}, kept)

    assert evicted(10) == ["a"]
    assert evicted(60) == ["a", "b"]
    assert evicted(30, "torch") == ["a", "b", "c"]
    assert isinstance(evicted(31, "torch"), Shortage)


def test_room_on_a_gpu_is_made_by_versions_on_that_gpu() -> None:
    tenants = [
        Tenant("host", 50 * MIB, 1.0),
        Tenant("first", MIB, 2.0, gpus={0: 400 * MIB}),
        Tenant("second", MIB, 3.0, gpus={1: 400 * MIB}),
    ]
    demands = {
        CPU: Demand(100 * MIB, 60 * MIB, 10 * MIB),
        Device("gpu", 1): Demand(500 * MIB, 400 * MIB, 200 * MIB),
    }
    assert make_room(tenants, demands) == ["second"]


def test_a_shortage_on_a_gpu_names_the_gpu_and_its_option() -> None:
    found = make_room([], {Device("gpu", 1): Demand(500 * MIB, 400 * MIB, 200 * MIB)})
    assert isinstance(found, Shortage)
    assert found.error("model 'm' version 1").message == (
        "model 'm' version 1 needs 200 MiB, and the memory budget of 500 MiB on GPU 1 has no room for it:"
        " 400 MiB is in use, 0 B of it by pinned models and 0 B by busy models; unloading the idle models"
        " would free 0 B. Raise --gpu-memory-budget"
    )
