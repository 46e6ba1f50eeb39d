"""What is written to a socket that does not take it at once."""

from __future__ import annotations

import asyncio
import socket

from backline.workers.process.outbox import Outbox


def test_messages_larger_than_the_socket_buffer_arrive_whole_and_in_order() -> None:
    asyncio.run(send_more_than_fits())


async def send_more_than_fits() -> None:
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    for one in (here, there):
        one.setblocking(False)
    outbox = Outbox(here, loop)
    messages = [bytes([number]) * size for number, size in enumerate((10, 3_000_000, 1, 500_000))]

    for message in messages:
        outbox.send(message)
    received = bytearray()
    while len(received) < sum(map(len, messages)):
        received += await loop.sock_recv(there, 1 << 16)

    assert received == b"".join(messages)
    outbox.send(b"once more")
    assert await loop.sock_recv(there, 100) == b"once more"
    here.close()
    there.close()


def test_nothing_is_raised_when_the_other_end_is_gone() -> None:
    asyncio.run(send_to_nobody())


async def send_to_nobody() -> None:
    here, there = socket.socketpair()
    here.setblocking(False)
    outbox = Outbox(here, asyncio.get_running_loop())
    outbox.send(bytes(3_000_000))
    there.close()

    await asyncio.sleep(0)
    outbox.send(b"more")
    await asyncio.sleep(0)
    outbox.send(b"still more")
    here.close()
