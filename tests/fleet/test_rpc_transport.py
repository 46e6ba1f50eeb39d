"""The remote lane's own gRPC client: calls over connections that are slow, full, refused or broken."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from struct import Struct

import numpy as np
import pytest
from msgspec.structs import replace

from backline.plugins.fleet.rpc_call import RpcStream
from backline.plugins.fleet.rpc_transport import RpcTransport, timeout_field
from backline.wire.http2 import frames
from backline.wire.http2.frames import OUR_STREAM_WINDOW
from backline_client.client import grpc_codec
from backline_client.client.address import Address
from backline_client.client.balanced_transport import BalancedTransport
from backline_client.client.errors import (
    BacklineError,
    ConnectionFailed,
    ConnectionLost,
    DeadlineExceeded,
    InvalidArgument,
    ProtocolError,
    Unavailable,
)
from backline_client.client.http_transport import HttpTransport
from backline_client.client.options import ClientOptions
from backline_client.client.transport import InferCall, Transport
from backline_client.protos import message
from backline_client.system.busy_poll import BusyPoll
from backline_client.values.datatypes import DataType
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Buffer, Tensor
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


def test_responses_that_differ_in_little_are_told_apart(server: ServerProcess) -> None:
    async def run() -> None:
        async with transport_to(server.grpc_url) as transport:
            for values, id in (([1, 2], ""), ([3, 4], ""), ([3, 4], "5"), ([5, 6, 7], ""), ([8, 9, 10], "")):
                data = np.array(values, np.float32)
                asked = InferCall("echo", (Tensor("x", DataType.FP32, data.shape, data),), id=id)
                response = await transport.infer(asked)
                assert (response.outputs[0].data.tolist(), response.id) == (values, id)

    asyncio.run(run())


def test_responses_of_alternating_sizes_are_split_once_each(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    split: list[object] = []

    def splitting(received: Buffer) -> tuple[bytes, str, list[tuple[int, int]]]:
        split.append(received)
        return split_message(received)

    split_message = grpc_codec._split
    monkeypatch.setattr(grpc_codec, "_split", splitting)

    async def run() -> None:
        async with transport_to(server.grpc_url) as transport:
            for size in (1, 2, 3, 2, 3, 1, 3, 1, 2):
                response = await transport.infer(call(size))
                assert response.outputs[0].data.tolist() == list(range(size))

    asyncio.run(run())
    assert len(split) == 3


def test_a_lone_call_is_written_at_once_and_further_ones_together(server: ServerProcess) -> None:
    async def run() -> None:
        async with transport_to(server.grpc_url) as transport:
            await transport.infer(call())
            (connection,) = transport._connections
            ended: asyncio.Queue[BaseException | None] = asyncio.Queue()
            unwritten = []
            for _ in range(3):
                transport.start_infer(call(), 20, lambda response, error: ended.put_nowait(error))
                unwritten.append(len(connection._parts))
            assert [await ended.get() for _ in range(3)] == [None] * 3
        assert unwritten[0] == 0 < unwritten[1] < unwritten[2]

    asyncio.run(run())


def test_a_request_is_not_kept_after_its_response(server: ServerProcess) -> None:
    async def run() -> None:
        async with transport_to(server.grpc_url) as transport:
            data = np.zeros(100_000, np.float32)
            kept = weakref.ref(data)
            asked = InferCall("echo", (Tensor("x", DataType.FP32, data.shape, data),))
            ended: asyncio.Queue[BaseException | None] = asyncio.Queue()
            transport.start_infer(asked, 20, lambda response, error: ended.put_nowait(error))
            del asked, data
            assert await ended.get() is None
            assert kept() is None

    asyncio.run(run())


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
async def scripted(answer: Answer, greeting: bytes = frames.settings({})) -> AsyncIterator[str]:
    """A server that calls `answer(connection, stream, writer)` for each request. Both count from 1.

    Each connection begins with the `greeting`.
    """
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        try:
            await reader.readexactly(len(frames.PREFACE))
            writer.write(greeting)
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


def outcome(answer: Answer, greeting: bytes = frames.settings({})) -> InferResponse:
    async def run() -> InferResponse:
        async with scripted(answer, greeting) as url, transport_to(url) as transport:
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

    with pytest.raises(Unavailable, match="accepts no calls"):
        outcome(answer)


def test_a_call_that_may_have_run_is_not_sent_again_here() -> None:
    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    with pytest.raises(ConnectionLost, match="broke before the response"):
        outcome(answer)


def with_status(answer: bytes, status: bytes) -> bytes:
    """A response with another gRPC status of one digit."""
    before, after = (frames.encode_fields([(b"grpc-status", one)]) for one in (b"0", status))
    assert len(before) == len(after)
    assert answer.count(before) == 1
    return answer.replace(before, after)


def test_responses_of_equal_sizes_are_told_apart() -> None:
    def on_another_stream(answer: bytes, stream: int) -> bytes:
        """A response whose last frame belongs to a stream that has ended, so that the call does not end."""
        numbers = [position for position in range(len(answer)) if answer.startswith(ends, position)]
        return answer[: numbers[-1] + 1] + (stream - 2).to_bytes(4, "big") + answer[numbers[-1] + 5 :]

    ends = bytes((frames.END_STREAM | frames.END_HEADERS, 0, 0, 0))
    outcomes: list[object] = []

    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        sent = response_frames(stream)
        if stream in (5, 7):
            sent = with_status(sent, b"3")
        if stream == 11:
            sent = on_another_stream(sent, stream)
        writer.write(sent)

    async def run() -> None:
        async with scripted(answer) as url, transport_to(url) as transport:
            for limit in (20, 20, 20, 20, 20, 0.2):
                try:
                    response = await transport.infer(replace(call(), timeout=limit))
                    outcomes.append(response.outputs[0].data[0])
                except BacklineError as error:
                    outcomes.append(type(error))

    asyncio.run(run())
    assert outcomes == [1, 1, InvalidArgument, InvalidArgument, 1, DeadlineExceeded]


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


# hostile servers


@pytest.mark.parametrize("large", [900_000, 1_000_000, 5_000_000])
def test_a_large_message_of_a_stream_arrives_after_small_ones(large: int) -> None:
    sizes = [100_000, large, 20_000, large, large]
    messages = [b"\0" + size.to_bytes(4, "big") + bytes(size) for size in sizes]

    async def run() -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Sends the messages, but never more than the window of the stream allows."""
            await reader.readexactly(len(frames.PREFACE))
            writer.write(frames.settings({}))
            left, began = bytearray(b"".join(messages)), False
            window = OUR_STREAM_WINDOW
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    word, flags, stream = HEADER.unpack(await reader.readexactly(9))
                    payload = await reader.readexactly(word >> 8)
                    if word & 0xFF == frames.DATA and flags & frames.END_STREAM:
                        writer.write(head_frames(stream, (b":status", b"200")))
                        began = True
                    elif word & 0xFF == frames.WINDOW_UPDATE and stream:
                        window += int.from_bytes(payload, "big")
                    while began and left and window:
                        size = min(16_384, len(left), window)
                        writer.write(frames.frame(frames.DATA, 0, 1, bytes(left[:size])))
                        del left[:size]
                        window -= size
            writer.close()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
            url = f"grpc://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
            async with transport_to(url) as transport, asyncio.timeout(20):
                stream = transport.exchange_stream("ModelStreamInfer", b"", 20)
                assert [len(await anext(stream)) for _ in sizes] == sizes
                await stream.aclose()

    asyncio.run(run())


def test_small_messages_of_a_stream_extend_the_window_together() -> None:
    count = 3 * OUR_STREAM_WINDOW // 1000
    message = b"\0" + (995).to_bytes(4, "big") + bytes(995)
    sent = asyncio.Semaphore(0)

    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        writer.write(head_frames(stream, (b":status", b"200")))
        for _ in range(count):
            await sent.acquire()
            writer.write(frames.frame(frames.DATA, 0, stream, message))

    async def run() -> None:
        async with scripted(answer) as url, transport_to(url) as transport:
            for _ in range(OUR_STREAM_WINDOW // 2000):
                sent.release()
            stream = transport.exchange_stream("ModelStreamInfer", b"", 20)
            extended: list[bytes] = []
            for _ in range(count):
                assert await anext(stream) == bytes(995)
                (connection,) = transport._connections
                connection._write = extended.append  # type: ignore[method-assign, assignment]
                sent.release()
            assert 20 <= len(extended) <= 24
            await stream.aclose()

    asyncio.run(run())


def head_frames(stream: int, *fields: tuple[bytes, bytes], flags: int = 0) -> bytes:
    return frames.header_frames(stream, frames.encode_fields(list(fields)), flags, 16384)


def ends_with(*fields: tuple[bytes, bytes]) -> Answer:
    """Answers with a header block only."""

    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        writer.write(head_frames(stream, (b":status", b"200"), *fields, flags=frames.END_STREAM))

    return answer


@pytest.mark.parametrize("name", [b"grpc-status", b":status"])
def test_a_status_of_thousands_of_digits_is_none(name: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ProtocolError, match="without a gRPC status"):
        outcome(ends_with((name, b"9" * 5000)))
    assert not [record for record in caplog.records if record.name.startswith("backline")]


def test_an_absurd_waiting_time_is_none() -> None:
    with pytest.raises(Unavailable, match="busy") as raised:
        outcome(
            ends_with(
                (b"grpc-status", b"14"), (b"grpc-message", b"busy"), (b"grpc-retry-pushback-ms", b"9" * 400)
            )
        )
    assert raised.value.retry_after is None


@pytest.mark.parametrize(("shape", "value"), [(1, 300), (-1, 3)], ids=["value", "shape"])
def test_contents_that_do_not_fit_their_datatype_or_a_negative_shape_are_an_error(
    caplog: pytest.LogCaptureFixture, shape: int, value: int
) -> None:
    response = message("inference.ModelInferResponse")(model_name="echo", model_version="1")
    response.outputs.add(name="y", datatype="INT8", shape=[shape]).contents.int_contents.append(value)
    body = response.SerializeToString()

    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        writer.write(
            head_frames(stream, (b":status", b"200"))
            + frames.frame(frames.DATA, 0, stream, b"\0" + len(body).to_bytes(4, "big") + body)
            + head_frames(stream, (b"grpc-status", b"0"), flags=frames.END_STREAM)
        )

    with pytest.raises(ProtocolError, match="cannot be read"):
        outcome(answer)
    assert not [record for record in caplog.records if record.name.startswith("backline")]


def test_more_data_than_the_window_allows_ends_the_call() -> None:
    piece = b"\0" + (15_000).to_bytes(4, "big") + bytes(15_000)

    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        writer.write(head_frames(stream, (b":status", b"200")))
        for _ in range(2 * frames.OUR_STREAM_WINDOW // len(piece)):
            writer.write(frames.frame(frames.DATA, 0, stream, piece))

    async def run() -> None:
        async with scripted(answer) as url, transport_to(url) as transport:
            stream = RpcStream(
                url, "ModelStreamInfer", transport._header("ModelStreamInfer", 20, ()), (b"",), 20
            )
            transport._start(stream)
            async with asyncio.timeout(20):
                while not stream.closed:  # nobody reads meanwhile
                    stream._arrived.clear()
                    await stream._arrived.wait()
            while await stream.receive() is not None:
                pass

    with pytest.raises(ProtocolError, match="more of a response than it was allowed to"):
        asyncio.run(run())


def test_a_call_that_starts_when_another_expires_does_not_delay_deadlines() -> None:
    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        return  # never answers

    async def run() -> None:
        async with scripted(answer) as url, transport_to(url) as transport:
            ended: asyncio.Queue[str] = asyncio.Queue()
            transport.start_infer(call(), 0.2, lambda response, error: ended.put_nowait("second"))
            transport.start_infer(
                call(),
                0.1,
                lambda response, error: (
                    ended.put_nowait("first"),
                    transport.start_infer(call(), 60, lambda response, error: None),
                ),
            )
            async with asyncio.timeout(20):
                assert [await ended.get(), await ended.get()] == ["first", "second"]

    asyncio.run(run())


def test_calls_that_end_while_they_wait_for_a_connection_are_forgotten() -> None:
    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("it allows no streams")

    async def run() -> None:
        greeting = frames.settings({frames.MAX_CONCURRENT_STREAMS: 0})
        async with scripted(answer, greeting) as url, transport_to(url) as transport:
            with pytest.raises(DeadlineExceeded):
                await transport.exchange("ServerLive", b"", 0.05)
            for _ in range(100):
                transport.start_infer(call(), 20, lambda response, error: None).abandon()
            assert not transport._waiting

    asyncio.run(run())


@pytest.mark.parametrize(
    "sent",
    [
        frames.frame(frames.PING, 0, 0, bytes(8)),
        frames.frame(frames.DATA, frames.PADDED, 1, b"\x01\x00"),
    ],
    ids=["pings", "padding"],
)
def test_a_server_that_reads_no_acknowledgements_is_left(sent: bytes) -> None:
    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        while True:  # and never reads
            writer.write(sent * 4096)
            await writer.drain()

    with pytest.raises(ConnectionLost, match="does not read the acknowledgements"):
        outcome(answer)


def test_a_server_that_takes_no_calls_is_not_asked_for_ever() -> None:
    async def answer(connection: int, stream: int, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("it has said that it takes none")

    with pytest.raises(ConnectionFailed, match="without taking a call"):
        outcome(answer, greeting=frames.settings({}) + frames.goaway(0, 0))


def test_a_call_that_only_the_first_server_could_carry_fails_with_its_error() -> None:
    def make(address: Address, options: ClientOptions) -> Transport:
        if address.protocol == "grpc":
            return RpcTransport(address, options, BusyPoll())
        return HttpTransport(address, options)

    async def run() -> None:
        gone, other = free_ports(2)
        url = f"http://127.0.0.1:{gone},grpc://127.0.0.1:{other}"
        transport = BalancedTransport(url, Address.parse_all(url), ClientOptions(), make)
        await transport.open()
        # JSON carries this number, but protobuf does not.
        asked = replace(call(), parameters={"number": 2**64})
        with pytest.raises(ConnectionFailed, match=f"refused by http://127.0.0.1:{gone}"):
            await asyncio.wait_for(transport.infer(asked), 20)
        await transport.close()

    asyncio.run(run())
