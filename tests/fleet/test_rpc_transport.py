"""The remote lane's own gRPC client: calls over connections that are slow, full, refused or broken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from struct import Struct

import numpy as np
import pytest

from backline.client.address import Address
from backline.client.errors import (
    ConnectionFailed,
    ConnectionLost,
    DeadlineExceeded,
    InvalidArgument,
    Unavailable,
)
from backline.client.options import ClientOptions
from backline.client.transport import InferCall
from backline.engine.values.datatypes import DataType
from backline.engine.values.messages import InferResponse
from backline.engine.values.tensor import Tensor
from backline.fleet.rpc_transport import RpcTransport, timeout_field
from backline.protos import message
from backline.system.busy_poll import BusyPoll
from backline.wire.http2 import frames
from support.repositories import put
from support.server import ServerProcess, free_ports, serve

HEADER = Struct(">IBI")
ECHO = """backend: "identity" max_batch_size: 0
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""


def call(size: int = 4, id: str = "", model: str = "echo") -> InferCall:
    data = np.arange(size, dtype=np.float32)
    return InferCall(model, (Tensor("x", DataType.FP32, data.shape, data),), id=id, timeout=20)


@asynccontextmanager
async def transport_to(url: str, **options: float) -> AsyncIterator[RpcTransport]:
    transport = RpcTransport(Address.parse(url), ClientOptions(**options), BusyPoll())  # type: ignore[arg-type]
    try:
        yield transport
    finally:
        await transport.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("rpc")
    for name, more in (
        ("echo", ""),
        ("slow", 'parameters { key: "execute_delay_ms" value { string_value: "50" } }'),
    ):
        put(folder / "models" / name / "config.pbtxt", ECHO + more)
        put(folder / "models" / name / "1" / "empty", "")
    with serve(folder / "models", folder / "log", "--unix-socket", str(folder / "s")) as running:
        yield running


def ask(url: str, calls: list[InferCall]) -> list[InferResponse]:
    async def run() -> list[InferResponse]:
        async with transport_to(url) as transport:
            return await asyncio.gather(*map(transport.infer, calls))

    return asyncio.run(run())


@pytest.mark.parametrize("size", [0, 4, 30_000, 3_000_000])
def test_tensors_of_any_size_arrive_as_they_were_sent(server: ServerProcess, size: int) -> None:
    (response,) = ask(server.grpc_url, [call(size, id="7")])

    np.testing.assert_array_equal(response.outputs[0].data, np.arange(size, dtype=np.float32))
    assert (response.model_name, response.id, response.outputs[0].name) == ("echo", "7", "y")


def test_more_calls_than_a_connection_takes_are_answered(server: ServerProcess) -> None:
    responses = ask(server.grpc_url, [call(4, id=str(number)) for number in range(400)])

    assert [response.id for response in responses] == [str(number) for number in range(400)]


def test_large_and_small_calls_share_a_connection(server: ServerProcess) -> None:
    sizes = [1_000_000, 4, 500_000, 4, 4, 2_000_000]

    assert [
        response.outputs[0].data.size for response in ask(server.grpc_url, list(map(call, sizes)))
    ] == sizes


def test_a_unix_socket_is_an_address_too(server: ServerProcess) -> None:
    (response,) = ask(f"grpc+unix:{server.log.parent / 's'}", [call()])

    assert response.outputs[0].data.size == 4


def test_an_error_of_the_server_has_its_type_and_text(server: ServerProcess) -> None:
    wrong = InferCall("echo", (Tensor("z", DataType.FP32, (1,), np.ones(1, np.float32)),))

    with pytest.raises(InvalidArgument, match="missing required input"):
        ask(server.grpc_url, [wrong])


def test_a_call_that_takes_too_long_ends_on_both_sides(server: ServerProcess) -> None:
    async def run() -> None:
        async with transport_to(server.grpc_url) as transport:
            await transport.infer(call(model="slow"))
            outcomes: asyncio.Queue[BaseException | None] = asyncio.Queue()
            transport.start_infer(
                call(model="slow"), 0.01, lambda response, error: outcomes.put_nowait(error)
            )
            assert isinstance(await outcomes.get(), DeadlineExceeded)
            # The connection still works, and the server has forgotten the call.
            await transport.infer(call())

    asyncio.run(run())


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0001, b"1m"), (0.25, b"250m"), (0.1234, b"130m"), (59.94, b"60000m")]
)
def test_the_server_is_told_a_limit_that_is_not_shorter(seconds: float, told: bytes) -> None:
    assert timeout_field(seconds) == told


# servers that follow a script


def response_frames(stream: int) -> bytes:
    response = message("inference.ModelInferResponse")(model_name="echo", model_version="1")
    response.outputs.add(name="y", datatype="FP32", shape=[1])
    response.raw_output_contents.append(np.ones(1, np.float32).tobytes())
    body = response.SerializeToString()
    head = frames.encode_fields([(b":status", b"200"), (b"content-type", b"application/grpc")])
    return (
        frames.header_frames(stream, head, 0, 16384)
        + frames.frame(frames.DATA, 0, stream, b"\0" + len(body).to_bytes(4, "big") + body)
        + frames.header_frames(
            stream, frames.encode_fields([(b"grpc-status", b"0")]), frames.END_STREAM, 16384
        )
    )


Answer = Callable[[int, int, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(answer: Answer) -> AsyncIterator[str]:
    """A server that calls `answer(connection, stream, writer)` for each request. Both count from 1."""
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        try:
            await reader.readexactly(len(frames.PREFACE))
            writer.write(frames.settings({}))
            while True:
                word, flags, stream = HEADER.unpack(await reader.readexactly(9))
                await reader.readexactly(word >> 8)
                if word & 0xFF == frames.DATA and flags & frames.END_STREAM:
                    await answer(number, stream, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        yield f"grpc://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def outcome(answer: Answer) -> InferResponse:
    async def run() -> InferResponse:
        async with scripted(answer) as url, transport_to(url) as transport:
            return await transport.infer(call())

    return asyncio.run(run())


def test_a_call_that_a_stopping_server_has_not_begun_is_sent_to_the_next_connection() -> None:
    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        writer.write(frames.goaway(0, 0) if connection == 1 else response_frames(stream))

    assert outcome(answer).outputs[0].data[0] == 1


def test_a_refused_call_is_sent_again() -> None:
    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        refuses = stream == 1
        writer.write(frames.rst_stream(stream, frames.REFUSED_STREAM) if refuses else response_frames(stream))

    assert outcome(answer).outputs[0].data[0] == 1


def test_a_call_that_is_always_refused_fails_in_the_end() -> None:
    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        writer.write(frames.rst_stream(stream, frames.REFUSED_STREAM))

    with pytest.raises(Unavailable, match="takes no calls"):
        outcome(answer)


def test_a_call_that_may_have_run_is_not_sent_again_here() -> None:
    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    with pytest.raises(ConnectionLost, match="broke before the response"):
        outcome(answer)


def test_a_response_in_tiny_pieces_is_put_together() -> None:
    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        for byte in response_frames(stream):
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)

    assert outcome(answer).outputs[0].data[0] == 1


def test_a_port_where_nothing_listens_says_so() -> None:
    with pytest.raises(ConnectionFailed, match="nothing listens there"):
        ask(f"grpc://127.0.0.1:{free_ports(1)[0]}", [call()])


def test_a_port_that_speaks_something_else_says_so() -> None:
    async def run() -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(24)
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            async with transport_to(f"grpc://127.0.0.1:{port}") as transport:
                await transport.infer(call())

    with pytest.raises(ConnectionFailed, match="Is it a gRPC port"):
        asyncio.run(run())


def test_a_stream_may_not_run_ahead_of_its_reader(tmp_path: Path) -> None:
    """Without flow control the whole stream would be in memory here."""
    sent = 0

    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        piece = message("inference.ModelStreamInferResponse")()
        piece.infer_response.outputs.add(name="y", datatype="FP32", shape=[60_000])
        piece.infer_response.raw_output_contents.append(bytes(240_000))
        body = piece.SerializeToString()
        framed = b"\0" + len(body).to_bytes(4, "big") + body
        head = frames.encode_fields([(b":status", b"200"), (b"content-type", b"application/grpc")])
        writer.write(frames.header_frames(stream, head, 0, 16384))
        while sent + len(framed) <= frames.OUR_STREAM_WINDOW:
            writer.write(frames.frame(frames.DATA, 0, stream, framed))
            sent += len(framed)

    async def run() -> None:
        async with scripted(answer) as url, transport_to(url) as transport:
            stream = transport.stream(call())
            assert (await anext(stream)).outputs[0].data.size == 60_000
            (connection,) = transport._connections
            (rpc,) = connection.calls.values()
            # One message was read, and room was made for one more.
            assert rpc.window_in <= frames.OUR_STREAM_WINDOW
            await stream.aclose()
            assert not connection.calls

    asyncio.run(run())
