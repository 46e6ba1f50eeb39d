"""Writing to a worker whose socket is full, or closed."""

from __future__ import annotations

import asyncio
import socket

import pytest

from backline.workers.process import channel_end
from backline.workers.process.channel_end import ChannelEnd


def ignore(*_: object) -> None:
    pass


def test_messages_larger_than_the_socket_buffer_arrive_whole_and_in_order() -> None:
    asyncio.run(send_more_than_fits())


async def send_more_than_fits() -> None:
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    there.setblocking(False)
    end = ChannelEnd(here, loop, ignore, ignore)
    messages = [bytes([number]) * size for number, size in enumerate((10, 3_000_000, 1, 500_000))]

    for message in messages:
        end.send(message)
    received = bytearray()
    while len(received) < sum(map(len, messages)):
        received += await loop.sock_recv(there, 1 << 16)

    assert received == b"".join(messages)
    end.send(b"once more")
    assert await loop.sock_recv(there, 100) == b"once more"
    end.close()
    there.close()


def test_nothing_is_raised_when_the_other_end_is_gone() -> None:
    asyncio.run(send_to_nobody())


async def send_to_nobody() -> None:
    here, there = socket.socketpair()
    end = ChannelEnd(here, asyncio.get_running_loop(), ignore, ignore)
    end.send(bytes(3_000_000))
    there.close()

    await asyncio.sleep(0)
    end.send(b"more")
    await asyncio.sleep(0)
    end.send(b"still more")
    end.close()


def test_a_worker_that_never_reads_its_channel_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_end, "_MOST_UNSENT", 1 << 20)

    async def send_without_end() -> list[str]:
        here, there = socket.socketpair()
        reasons: list[str] = []
        end = ChannelEnd(here, asyncio.get_running_loop(), ignore, reasons.append)
        for _ in range(100):
            end.send(bytes(100_000))
        assert reasons == []
        await asyncio.sleep(0)
        end.close()
        there.close()
        return reasons

    assert asyncio.run(send_without_end()) == ["left 1 MiB of messages unread"]
