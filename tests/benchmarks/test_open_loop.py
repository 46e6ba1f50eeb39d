"""The overload benchmark's clients classify the outcomes of their requests, on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from harness.open_loop import Clients
from harness.server_process import free_ports

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def fates(answers: list[bytes], *, close: bool = False) -> dict[str, int]:
    """Outcomes that a client reports for one request per answer, which the server writes in turn."""

    async def main() -> dict[str, int]:
        left = iter(answers)

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(65536):
                writer.write(next(left))
                if close:
                    break
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        clients = Clients(server.sockets[0].getsockname()[1], REQUEST)
        for _ in answers:
            clients.send(1.0)
            assert await clients.settle(5) == 0
        clients.close()
        server.close()
        return dict(clients.fates.count())

    return asyncio.run(main())


def test_answers_are_counted_by_status() -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n",
    ]

    assert fates(answers) == {"200": 1, "503": 1}


def test_a_truncated_answer_is_partial() -> None:
    assert fates([b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhi"], close=True) == {"partial": 1}


def test_a_connection_closed_without_a_byte_is_unanswered() -> None:
    assert fates([b""], close=True) == {"unanswered": 1}


def test_bytes_after_the_answer_are_reported() -> None:
    assert fates([b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nhello"]) == {"too many bytes": 1}


def test_a_closed_port_is_no_connection() -> None:
    async def main() -> dict[str, int]:
        clients = Clients(free_ports(1)[0], REQUEST)
        clients.send(1.0)
        assert await clients.settle(5) == 0
        return dict(clients.fates.count())

    assert asyncio.run(main()) == {"no connection": 1}


def test_the_open_loop_sends_at_its_rate_without_waiting_for_answers() -> None:
    async def main() -> int:
        received = 0
        enough = asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal received
            await reader.readuntil(b"\r\n\r\n")
            received += 1
            if received == 50:
                enough.set()
            await enough.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        clients = Clients(server.sockets[0].getsockname()[1], REQUEST)
        await clients.open_loop(rate=500, seconds=0.1)
        assert await clients.settle(10) == 0
        server.close()
        return clients.fates.count()["200"]

    assert asyncio.run(main()) == 50
