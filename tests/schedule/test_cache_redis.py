"""The response cache in a real Redis or Valkey, running and stopped."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from backline.schedule.cache.redis import RedisCache, RedisOptions
from backline_client.values.datatypes import DataType
from backline_client.values.tensor import Tensor
from support.redis_server import RedisServer

pytest.importorskip("redis", reason="redis is not installed")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


def outputs() -> list[Tensor]:
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    texts = np.array([b"a", b"\x00\xff"], np.object_)
    return [Tensor("y", DataType.FP32, (2, 3), numbers), Tensor("t", DataType.BYTES, (2,), texts)]


async def look_up(cache: RedisCache, key: bytes) -> Sequence[Tensor] | None:
    answer: asyncio.Future[Sequence[Tensor] | None] = asyncio.get_running_loop().create_future()
    cache.look_up(key, answer.set_result)
    return await answer


async def settled(cache: RedisCache) -> None:
    while cache._tasks:
        await asyncio.wait(cache._tasks)


def test_an_entry_is_found_by_another_server_and_is_read_only(server: RedisServer) -> None:
    async def scenario() -> None:
        first, second = (RedisCache(RedisOptions("127.0.0.1", server.port)) for _ in range(2))
        assert await look_up(first, b"k" * 32) is None
        first.insert(b"k" * 32, outputs())
        await settled(first)
        found = await look_up(second, b"k" * 32)
        assert found is not None
        assert [(one.name, one.datatype, one.shape) for one in found] == [
            ("y", DataType.FP32, (2, 3)),
            ("t", DataType.BYTES, (2,)),
        ]
        assert found[0].data.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found[1].data.tolist() == [b"a", b"\x00\xff"]
        assert not found[0].data.flags.writeable
        await first.close()
        await second.close()

    asyncio.run(scenario())


def test_a_foreign_entry_is_a_miss_and_is_logged_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        cache = RedisCache(RedisOptions("127.0.0.1", server.port))
        for key, entry in (
            (b"a", b"\x80\x04pickle"),
            (b"b", b"BLRC\x02\x92\xc4\x01b\x91\x94\xa1y\xa4FP32\x91\x02\xc4\x01x"),
        ):
            await cache._redis.set(b"backline:response:" + key, entry)
            assert await look_up(cache, key) is None
        await cache.close()

    asyncio.run(scenario())
    assert [record.message for record in caplog.records if "cannot be read" in record.message] == [
        caplog.records[0].message
    ]


def test_an_entry_copied_to_another_key_is_a_miss(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        cache = RedisCache(RedisOptions("127.0.0.1", server.port))
        cache.insert(b"k" * 32, outputs())
        await settled(cache)
        await cache._redis.copy(b"backline:response:" + b"k" * 32, b"backline:response:" + b"l" * 32)
        assert await look_up(cache, b"l" * 32) is None
        assert await look_up(cache, b"k" * 32) is not None
        await cache.close()

    asyncio.run(scenario())
    assert "written under another key" in caplog.text


def test_an_outage_of_redis_is_logged_once_each_way_and_costs_little(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    async def scenario() -> None:
        # Long limits, because Redis may respond late on a busy machine. Connections are refused immediately.
        cache = RedisCache(RedisOptions("127.0.0.1", server.port, socket_timeout=10.0, wait_timeout=10.0))
        cache.insert(b"k", outputs())
        await settled(cache)
        server.stop()
        began = time.monotonic()
        assert await asyncio.gather(*(look_up(cache, b"k") for _ in range(50))) == [None] * 50
        assert time.monotonic() - began < 2
        assert not cache.answers
        now: list[object] = []
        cache.look_up(b"k", now.append)
        assert now == [None]  # at once: Redis is left alone
        server.start()
        async with asyncio.timeout(20):
            while not cache.answers:
                await look_up(cache, b"k")
                await asyncio.sleep(0)
        cache.insert(b"k", outputs())
        await settled(cache)
        assert await look_up(cache, b"k") is not None
        await cache.close()

    asyncio.run(scenario())
    messages = [record.message for record in caplog.records]
    assert len(messages) == 2
    assert "does not respond; requests run without it" in messages[0]
    assert "responds again" in messages[1]


def test_an_unresponsive_redis_costs_its_timeouts_once() -> None:
    async def scenario() -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(64)
            cache = RedisCache(RedisOptions("127.0.0.1", silent.getsockname()[1]))
            began = time.monotonic()
            assert await asyncio.gather(*(look_up(cache, b"k") for _ in range(20))) == [None] * 20
            assert time.monotonic() - began < 2
            began = time.monotonic()
            for _ in range(1000):
                assert await look_up(cache, b"k") is None
            assert time.monotonic() - began < 1
            await cache.close()

    asyncio.run(scenario())
