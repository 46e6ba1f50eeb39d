"""The response cache: its keys, its bounds, its entries and its options."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.engine.ticket import Ticket
from backline.schedule.cache.cache import LocalCache
from backline.schedule.cache.config import LocalOptions, parse_cache_config
from backline.schedule.cache.flight import RequestKeys
from backline.schedule.cache.redis import DamagedEntry, RedisOptions, decode_entry, encode_entry
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import InferRequest, Parameter
from backline_client.values.tensor import Tensor


def tensor(name: str, data: np.ndarray, datatype: DataType = DataType.FP32) -> Tensor:
    return Tensor(name, datatype, data.shape, data)


def floats(count: int, value: float = 1.0) -> list[Tensor]:
    return [tensor("y", np.full(count, value, np.float32))]


def ticket(
    *tensors: Tensor,
    outputs: tuple[str, ...] | None = None,
    parameters: dict[str, Parameter] | None = None,
    id: str = "",
) -> Ticket:
    return Ticket(
        InferRequest("m", {one.name: one for one in tensors}, outputs=outputs, parameters=parameters, id=id),
        lambda *_: None,
    )


# keys


def test_requests_that_differ_in_anything_a_response_depends_on_have_different_keys() -> None:
    x = np.array([1, 2, 3, 4], np.float32)
    keys = RequestKeys("m", "1", "f")
    different = [
        keys.of(ticket(tensor("x", x))),
        keys.of(ticket(tensor("z", x))),
        keys.of(ticket(tensor("x", x.reshape(2, 2)))),
        keys.of(ticket(tensor("x", x.view(np.int32), DataType.INT32))),
        keys.of(ticket(tensor("x", x + 1))),
        keys.of(ticket(tensor("x", x), tensor("z", x))),
        keys.of(ticket(tensor("x", x), outputs=("y",))),
        keys.of(ticket(tensor("x", x), parameters={"temperature": 1})),
        RequestKeys("n", "1", "f").of(ticket(tensor("x", x))),
        RequestKeys("m", "2", "f").of(ticket(tensor("x", x))),
        RequestKeys("m", "1", "g").of(ticket(tensor("x", x))),
        keys.of(ticket(tensor("x", np.array([b"ab", b"c"], np.object_), DataType.BYTES))),
        keys.of(ticket(tensor("x", np.array([b"a", b"bc"], np.object_), DataType.BYTES))),
    ]
    assert len(set(different)) == len(different)


def test_the_order_of_inputs_the_id_and_the_layout_in_memory_do_not_change_the_key() -> None:
    x, z = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
    keys = RequestKeys("m", "1", "f")
    one = keys.of(ticket(tensor("x", x), tensor("z", z), id="a"))
    assert keys.of(ticket(tensor("z", z), tensor("x", np.asfortranarray(x)), id="b")) == one


# the local cache


def find(cache: LocalCache, key: bytes) -> Sequence[Tensor] | None:
    found: list[Sequence[Tensor] | None] = []
    cache.look_up(key, found.append)
    return found[0]


def test_the_least_recently_used_entry_is_evicted_first() -> None:
    cache = LocalCache(3 * 5000)
    for key in (b"a", b"b", b"c"):
        cache.insert(key, floats(1000))
    assert find(cache, b"a") is not None
    cache.insert(b"d", floats(1000))
    assert [find(cache, key) is not None for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert cache.evictions == 1


def test_cached_outputs_are_read_only_copies() -> None:
    cache = LocalCache(10_000)
    batch = np.arange(100, dtype=np.float32)
    cache.insert(b"a", [tensor("y", batch[:10])])
    batch[:] = 7
    found = find(cache, b"a")
    assert found is not None
    assert found[0].data.tolist() == list(range(10))
    with pytest.raises(ValueError, match="read-only"):
        found[0].data[0] = 1
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        found[0].data.flags.writeable = True


@pytest.mark.parametrize(
    "make",
    [
        lambda: [tensor("y", np.ones(1, np.float32))],
        lambda: [tensor("y", np.ones(5000, np.float32)), tensor("z", np.ones(3, np.float32))],
        lambda: [tensor("y", np.array([os.urandom(50) for _ in range(40)], np.object_), DataType.BYTES)],
    ],
)
def test_entries_count_the_memory_they_take(make: object) -> None:
    cache = LocalCache(1 << 30)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(2000):
        cache.insert(number.to_bytes(32, "big"), make())  # type: ignore[operator]
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken * 0.95 <= cache.used <= taken * 1.6


def cost(count: int) -> int:
    """The bytes of an entry with this many numbers."""
    cache = LocalCache(1_000_000)
    cache.insert(b"", floats(count, 0))
    return cache.used


COSTS = {count: cost(count) for count in (0, 100, 1000, 3000)}


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.sampled_from(sorted(COSTS))), max_size=60),
    st.integers(1, 20_000),
)
def test_the_cache_holds_the_most_recently_used_entries_that_fit(
    steps: list[tuple[bool, int, int]], size: int
) -> None:
    cache = LocalCache(size)
    held: dict[int, int] = {}  # least recently used first
    for looks, number, count in steps:
        if looks:
            assert (find(cache, bytes([number])) is not None) == (number in held)
            if number in held:
                held[number] = held.pop(number)
            continue
        cache.insert(bytes([number]), floats(count, number))
        held.pop(number, None)
        if COSTS[count] <= size:
            held[number] = count
        while sum(COSTS[one] for one in held.values()) > size:
            del held[next(iter(held))]
        assert cache.used == sum(COSTS[one] for one in held.values()) <= size
    for number, count in held.items():
        found = find(cache, bytes([number]))
        assert found is not None
        assert found[0].shape == (count,)
        assert (found[0].data == number).all()


# entries for external caches


def test_entries_of_every_datatype_survive_encoding() -> None:
    made = [
        tensor(
            kind.name,
            np.array([b"x", b""], np.object_) if kind is DataType.BYTES else np.ones((2, 1), kind.dtype),
            kind,
        )
        for kind in DataType
    ]
    found = decode_entry(b"k" * 32, encode_entry(b"k" * 32, made))
    assert [(one.name, one.datatype, one.shape, one.data.tolist()) for one in found] == [
        (one.name, one.datatype, one.shape, one.data.tolist()) for one in made
    ]


@given(st.binary(max_size=200), st.integers(0, 60), st.integers(0, 255))
def test_damaged_entries_are_refused_or_decoded_without_other_errors(
    noise: bytes, place: int, value: int
) -> None:
    whole = bytearray(encode_entry(b"k", floats(4)))
    whole[min(place, len(whole) - 1)] = value
    for raw in (noise, bytes(whole), bytes(whole[:place])):
        try:
            decode_entry(b"k", raw)
        except DamagedEntry:
            continue


# options


def test_options_are_tritons_with_units_and_possibly_in_several_values() -> None:
    assert parse_cache_config([]) is None
    assert parse_cache_config(["local,size=1048576"]) == LocalOptions(1048576)
    assert parse_cache_config(["local,size=64MiB"]) == LocalOptions(64 << 20)
    assert parse_cache_config(
        ["redis,host=h,port=7000", "redis,socket_timeout=50,tls_enabled=yes,ttl=60"]
    ) == RedisOptions("h", 7000, socket_timeout=0.05, tls=True, ttl=60)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["local"], "needs a size"),
        (["local,size=many"], "size is 'many'"),
        (["local,size=0"], "size is '0'"),
        (["local,sise=1"], "unknown setting 'sise', expected size"),
        (["redis,host=h,password=a,b"], "a part is not of the form NAME=VALUE"),
        (["redis,port=1"], "needs a host"),
        (["redis,host=h,port=x"], "port is 'x'"),
        (["redis,host=h,tls_enabled=perhaps"], "expected yes or no"),
        (["memcached,host=h"], "unknown response cache 'memcached'"),
        (["local,size=1", "redis,host=h"], "has one response cache"),
    ],
)
def test_invalid_options_are_refused_by_name(texts: list[str], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        parse_cache_config(texts)
