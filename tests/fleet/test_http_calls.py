"""The remote lane's calls over HTTP, which start without a task: their answers, ends and connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from backline_client.client import http_transport
from backline_client.client.address import Address
from backline_client.client.balanced_transport import BalancedTransport
from backline_client.client.errors import (
    ConnectionFailed,
    ConnectionLost,
    DeadlineExceeded,
    InvalidArgument,
    ProtocolError,
)
from backline_client.client.http_connection import HttpConnection
from backline_client.client.http_transport import HttpTransport
from backline_client.client.options import ClientOptions
from backline_client.client.transport import InferCall, Sending
from backline_client.system.busy_poll import BusyPoll
from backline_client.values.datatypes import DataType
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Tensor

Answer = Callable[[int, bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(answer: Answer, closed: asyncio.Queue[int]) -> AsyncIterator[str]:
    """A server that calls `answer(connection, tensor, writer)` for each request. Connections count from 1.

    Puts the number of each connection that its client has closed into `closed`.
    """
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                header, whole = (
                    int(head.split(f"\n{name}: ")[1].split("\r")[0])
                    for name in ("inference-header-content-length", "content-length")
                )
                body = await reader.readexactly(whole)
                await answer(number, body[header:], writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            closed.put_nowait(number)

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def answer_of(raw: bytes) -> bytes:
    output = {"name": "y", "datatype": "FP32", "shape": [len(raw) // 4]}
    output["parameters"] = {"binary_data_size": len(raw)}
    header = json.dumps({"model_name": "echo", "outputs": [output]}).encode()
    fields = f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {len(header) + len(raw)}"
    return f"HTTP/1.1 200 OK\r\n{fields}\r\n\r\n".encode() + header + raw


class Calls:
    """Calls over a transport, and their outcomes in the order in which they end."""

    def __init__(self, url: str, closed: asyncio.Queue[int], options: ClientOptions) -> None:
        self.closed = closed
        self.poll = BusyPoll()
        self.transport = HttpTransport(Address.parse(url), options, self.poll)
        self.outcomes: asyncio.Queue[InferResponse | BaseException | None] = asyncio.Queue()

    def start(self, *values: float, timeout: float = 20) -> Sending:
        data = np.array(values, np.float32)
        call = InferCall("echo", (Tensor("x", DataType.FP32, data.shape, data),))
        return self.transport.start_infer(
            call, timeout, lambda response, error: self.outcomes.put_nowait(response or error)
        )

    async def outcome(self) -> InferResponse | BaseException | None:
        return await asyncio.wait_for(self.outcomes.get(), 20)

    async def values(self) -> list[float]:
        outcome = await self.outcome()
        assert isinstance(outcome, InferResponse)
        found: list[float] = outcome.outputs[0].data.tolist()
        return found


@asynccontextmanager
async def calls(answer: Answer, options: ClientOptions | None = None) -> AsyncIterator[Calls]:
    closed: asyncio.Queue[int] = asyncio.Queue()
    async with served(answer, closed) as url:
        made = Calls(url, closed, options or ClientOptions())
        try:
            yield made
        finally:
            await made.transport.close()


async def echo(connection: int, raw: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(answer_of(raw))


def test_responses_of_alternating_sizes_are_parsed_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    decoded: list[object] = []

    def parsing(connection: HttpConnection, nbytes: int) -> None:
        parsed.append(nbytes)
        parse(connection, nbytes)

    def decoding(*given: Any) -> InferResponse:
        decoded.append(given)
        return decode(*given)

    parse, decode = HttpConnection._read, http_transport.decode_infer
    monkeypatch.setattr(HttpConnection, "_read", parsing)
    monkeypatch.setattr(http_transport, "decode_infer", decoding)

    async def run() -> None:
        async with calls(echo) as made:
            for values in ([1.0], [1.0, 2.0], [3.0], [4.0, 5.0], [6.0]):
                made.start(*values)
                assert await made.values() == values

    asyncio.run(run())
    assert len(parsed) == len(decoded) == 2


async def test_responses_that_differ_in_little_are_told_apart() -> None:
    async with calls(echo) as made:
        for values in ([1.0, 2.0], [3.0, 4.0], [5.0], [6.0], []):
            made.start(*values)
            assert await made.values() == values


async def test_calls_at_the_same_time_use_several_connections() -> None:
    seen = set()

    async def answer(connection: int, raw: bytes, writer: asyncio.StreamWriter) -> None:
        seen.add(connection)
        writer.write(answer_of(raw))

    async with calls(answer) as made:
        for _ in range(2):
            for number in range(3):
                made.start(number)
            assert sorted([await made.values() for _ in range(3)]) == [[0], [1], [2]]
    assert seen == {1, 2, 3}


async def test_the_busy_poll_learns_when_answers_arrive() -> None:
    async with calls(echo) as made:
        made.start(1)
        await made.values()

        assert made.poll._arrived


async def test_a_call_that_is_abandoned_closes_its_connection_and_reports_nothing() -> None:
    async def answer(connection: int, raw: bytes, writer: asyncio.StreamWriter) -> None:
        if raw != np.float32(2).tobytes():
            writer.write(answer_of(raw))

    async with calls(answer) as made:
        made.start(1)
        await made.values()
        made.start(2).abandon()
        assert await asyncio.wait_for(made.closed.get(), 20) == 1
        made.start(3)
        assert await made.values() == [3]


async def test_a_second_answer_is_not_taken_for_that_of_the_next_call() -> None:
    async def answer(connection: int, raw: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer_of(raw) * (2 if connection == 1 else 1))

    async with calls(answer) as made:
        for number in (1.0, 2.0, 3.0):
            made.start(number)
            assert await made.values() == [number]


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", ConnectionLost),
        (
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 17\r\n\r\n" + b'{"error":"no way"}'[:17],
            InvalidArgument,
        ),
        (
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 88\r\n\r\n"
                b'{"model_name":"echo","outputs":[{"name":"y","datatype":"FP32","shape":[-1],"data":[7]}]}'
            ),
            ProtocolError,
        ),
    ],
    ids=["closed", "refused", "negative"],
)
async def test_a_call_that_fails_reports_the_error_once(sent: bytes, error: type[BaseException]) -> None:
    async def answer(connection: int, raw: bytes, writer: asyncio.StreamWriter) -> None:
        if raw == np.float32(2).tobytes():
            writer.write(sent)
            writer.close()
        else:
            writer.write(answer_of(raw))

    async with calls(answer) as made:
        for number in (1, 2):  # the second call uses the connection of the first
            made.start(number)
        assert isinstance(await made.outcome(), InferResponse)
        assert isinstance(await made.outcome(), error)
        assert made.outcomes.empty()


async def test_a_call_ends_at_its_time_limit() -> None:
    async def answer(connection: int, raw: bytes, writer: asyncio.StreamWriter) -> None:
        if raw == np.float32(1).tobytes():
            writer.write(answer_of(raw))

    async with calls(answer) as made:
        made.start(1)
        await made.values()
        made.start(2, timeout=0.05)
        assert isinstance(await made.outcome(), DeadlineExceeded)


async def test_a_short_time_limit_is_forgotten_with_its_call() -> None:
    async def answer(connection: int, raw: bytes, writer: asyncio.StreamWriter) -> None:
        if raw == np.float32(2).tobytes():
            await asyncio.sleep(0.6)  # longer than the limit of the first call
        writer.write(answer_of(raw))

    async with calls(answer) as made:
        made.start(0)
        await made.values()
        made.start(1, timeout=0.5)
        assert await made.values() == [1]
        made.start(2, timeout=20)
        assert await made.values() == [2]


async def test_answers_with_equal_sizes_and_other_heads_are_told_apart() -> None:
    short, long = (answer_of(bytes(size)) for size in (4, 8))
    refused = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 17\r\n\r\n" + b'{"error":"no way"'
    answers = [
        long,
        short.replace(b"\r\n", b"\r\na:\r\n", 1),  # four bytes more, like the second element of `long`
        long,
        refused + b" " * (len(long) - len(refused)),
    ]
    assert len({len(one) for one in answers}) == 1
    sent = iter(answers)

    async def answer(connection: int, raw: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(next(sent))

    async with calls(answer) as made:
        found = []
        for _ in answers[:3]:
            made.start(1)
            found.append(await made.values())
        made.start(1)
        assert found == [[0, 0], [0], [0, 0]]
        assert isinstance(await made.outcome(), InvalidArgument)


async def test_calls_in_flight_end_when_the_transport_is_closed() -> None:
    begun = asyncio.Event()

    async def never(connection: int, raw: bytes, writer: asyncio.StreamWriter) -> None:
        if raw == np.float32(1).tobytes():
            writer.write(answer_of(raw))
        else:
            begun.set()

    async with calls(never) as made:
        made.start(1)
        assert await made.values() == [1]
        made.start(2)  # over the connection that is free
        await asyncio.wait_for(begun.wait(), 20)
        begun.clear()
        made.start(3)  # over a new connection
        await asyncio.wait_for(begun.wait(), 20)
        await made.transport.close()

        assert [type(await made.outcome()) for _ in range(2)] == [ConnectionLost, ConnectionLost]


async def test_calls_that_wait_for_a_connection_are_not_sent_after_the_transport_is_closed() -> None:
    begun: asyncio.Queue[int] = asyncio.Queue()

    async def never(connection: int, raw: bytes, writer: asyncio.StreamWriter) -> None:
        begun.put_nowait(connection)

    async with calls(never, ClientOptions(max_connections=1)) as made:
        made.start(1)
        await asyncio.wait_for(begun.get(), 20)
        made.start(2)
        await asyncio.sleep(0)  # the call begins to wait
        await made.transport.close()
        made.start(3)

        outcomes = [type(await made.outcome()) for _ in range(3)]
        assert sorted(outcomes, key=str) == [ConnectionFailed, ConnectionFailed, ConnectionLost]
        assert begun.empty()


async def test_calls_in_flight_to_one_of_several_servers_end_when_the_client_is_closed() -> None:
    begun: asyncio.Queue[int] = asyncio.Queue()

    async def never(connection: int, raw: bytes, writer: asyncio.StreamWriter) -> None:
        begun.put_nowait(connection)

    closed: asyncio.Queue[int] = asyncio.Queue()
    async with served(never, closed) as one, served(never, closed) as other:
        url = f"{one},{other}"
        transport = BalancedTransport(
            url, Address.parse_all(url), ClientOptions(idempotent=True), HttpTransport
        )
        await transport.open()
        data = np.zeros(1, np.float32)
        call = InferCall("echo", (Tensor("x", DataType.FP32, data.shape, data),), timeout=20)
        asked = asyncio.ensure_future(transport.infer(call))
        await asyncio.wait_for(begun.get(), 20)
        await transport.close()

        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(asked, 20)
        with pytest.raises(ConnectionFailed, match="is closed"):
            await transport.infer(call)
        assert begun.empty()
        assert not transport._transports


def in_chunks(document: bytes, trailer: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n0\r\n%b" % (len(document), document, trailer)


async def test_trailer_fields_are_not_header_fields() -> None:
    output = {"name": "y", "datatype": "FP32", "shape": [1], "data": [7]}
    document = json.dumps({"model_name": "echo", "outputs": [output]}).encode()

    async def answer(connection: int, raw: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(in_chunks(document, b"Inference-Header-Content-Length: 5\r\n\r\n"))

    async with calls(answer) as made:
        made.start(1)
        assert await made.values() == [7]


@pytest.mark.parametrize("field", [b"x", b"x: y\r\n"], ids=["one", "many"])
async def test_endless_trailer_fields_end_the_call(field: bytes) -> None:
    async def answer(connection: int, raw: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(in_chunks(b"{}", field))
        while True:
            writer.write(field * 8192)
            await writer.drain()

    async with calls(answer) as made:
        made.start(1)
        outcome = await made.outcome()
        assert isinstance(outcome, ProtocolError)
        assert "chunk headers and trailers" in outcome.message
