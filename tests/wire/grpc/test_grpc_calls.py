"""Calls with the stock gRPC client."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from backline.wire.limits import MIB, Limits
from wire.http2.served import Served, serve

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


@pytest.fixture
def channel(served: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{served.port}", options=OPTIONS) as connected:
        yield connected


@pytest.mark.parametrize("size", [0, 1, 16_000, 16_379, 16_380, 70_000, MIB, 30 * MIB])
def test_unary_call_of_any_size(channel: grpc.Channel, served: Served, size: int) -> None:
    message = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert channel.unary_unary("/test.Test/Echo")(message, timeout=30) == message
    served.wait_until(lambda: served.wire.requests == 0 and served.wire.buffered_bytes == 0)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("size", [1000, 10 * MIB])
def test_compressed_unary_call(channel: grpc.Channel, compression: grpc.Compression, size: int) -> None:
    message = bytes(size)
    assert channel.unary_unary("/test.Test/Echo")(message, compression=compression, timeout=30) == message


def test_response_is_compressed_when_the_request_was(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/test.Test/Echo")
    _, plain = call.with_call(bytes(1000))
    _, packed = call.with_call(bytes(1000), compression=grpc.Compression.Gzip)
    # grpcio hides grpc-encoding, so this checks only the status; test_grpc_refusals checks the bytes.
    assert plain.code() is packed.code() is grpc.StatusCode.OK


def test_many_calls_at_once(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/test.Test/Echo")
    futures = [call.future(b"%d" % number, timeout=30) for number in range(500)]
    assert [future.result() for future in futures] == [b"%d" % number for number in range(500)]


def test_bidirectional_stream(channel: grpc.Channel) -> None:
    sent = [b"a" * size for size in (0, 1, 100_000, 3 * MIB)] * 5
    assert list(channel.stream_stream("/test.Test/Each")(iter(sent), timeout=30)) == sent


def test_compressed_stream(channel: grpc.Channel) -> None:
    sent = [b"a" * size for size in (0, 1, 100_000, MIB)]
    call = channel.stream_stream("/test.Test/Each")
    assert list(call(iter(sent), timeout=30, compression=grpc.Compression.Gzip)) == sent


def test_client_stream(channel: grpc.Channel) -> None:
    assert (
        channel.stream_unary("/test.Test/Sum")((bytes(1000) for _ in range(3000)), timeout=30) == b"3000000"
    )


def test_empty_client_stream(channel: grpc.Channel) -> None:
    assert channel.stream_unary("/test.Test/Sum")(iter(()), timeout=30) == b"0"


def test_server_stream(channel: grpc.Channel) -> None:
    assert list(channel.unary_stream("/test.Test/Count")(b"3000", timeout=30)) == [
        b"%d" % number for number in range(3000)
    ]


def test_server_stream_waits_for_a_slow_client(served: Served, channel: grpc.Channel) -> None:
    served.handlers.sent = 0
    served.handlers.cancelled.clear()
    call = channel.unary_stream("/test.Test/Endless")(b"")
    for _ in range(3):
        assert len(next(call)) == 100_000
    # The client's windows, the socket and the server's queue are full, so nothing changes with time.
    last = -1
    while last != (now := served.run(lambda: served.handlers.sent)):
        last = now
        time.sleep(0.1)
    # How much the client takes unread depends on the windows that grpcio chooses.
    held = served.run(lambda: sum(one.unsent()[0] for one in served.wire.connections))
    assert held <= served.wire.limits.max_unsent_bytes
    call.cancel()
    assert served.handlers.cancelled.wait(5)
    served.wait_until(lambda: served.wire.requests == 0 and served.wire.buffered_bytes == 0)


def test_client_stream_waits_for_a_slow_handler(served: Served, channel: grpc.Channel) -> None:
    served.handlers.arrived.clear()
    served.handlers.cancelled.clear()
    call = channel.stream_unary("/test.Test/Deaf").future(bytes(100_000) for _ in range(10_000))
    assert served.handlers.arrived.wait(5)
    served.wait_until(lambda: served.wire.buffered_bytes > 900_000)
    # Nothing changes with time.
    last = -1
    while last != (now := served.run(lambda: served.wire.buffered_bytes)) and now <= 2 * MIB:
        last = now
        time.sleep(0.1)
    assert now <= 2 * MIB
    call.cancel()
    assert served.handlers.cancelled.wait(5)
    served.wait_until(lambda: served.wire.requests == 0 and served.wire.buffered_bytes == 0)


def test_metadata_reaches_the_handler(channel: grpc.Channel) -> None:
    sent = (("x-plain", "value"), ("x-blank", " padded "), ("x-bytes-bin", b"\0\xff"))
    seen = channel.unary_unary("/test.Test/Metadata")(b"", metadata=sent)
    assert b"(b'x-plain', b'value')" in seen
    assert b"(b'x-blank', b'padded')" in seen
    assert base64.b64encode(b"\0\xff").rstrip(b"=") in seen


def test_status_with_message_and_details(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test.Test/Fail")(b"")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "ä % fault"
    assert dict(caught.value.trailing_metadata())["grpc-status-details-bin"] == b"\0\1\2"


@pytest.mark.parametrize("path", ["/test.Test/Nothing", "/no.Service/Echo"])
def test_unknown_method(channel: grpc.Channel, path: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path)(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert path in caught.value.details()


def test_failing_handler_is_internal_and_logged_once(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test.Test/Broken")(b"")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "broken on purpose" not in caught.value.details()
    assert len([record for record in caplog.records if record.name == "backline.wire"]) == 1
    assert channel.unary_unary("/test.Test/Echo")(b"still there") == b"still there"


def test_failing_stream_handler_is_internal(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream("/test.Test/Count")(b"no number"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("path", ["/test.Test/Hold", "/test.Test/Deaf"])
def test_server_enforces_the_deadline(served: Served, channel: grpc.Channel, path: str) -> None:
    served.handlers.cancelled.clear()
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path)(b"", timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert served.handlers.cancelled.wait(5)
    served.wait_until(lambda: served.wire.requests == 0)


def test_distant_deadline_is_accepted(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/test.Test/Echo")
    assert [call(b"x", timeout=100 + number) for number in range(300)] == [b"x"] * 300


@pytest.mark.parametrize("path", ["/test.Test/Hold", "/test.Test/Deaf"])
def test_cancelling_a_call_notifies_the_handler(served: Served, channel: grpc.Channel, path: str) -> None:
    served.handlers.arrived.clear()
    served.handlers.cancelled.clear()
    call = channel.unary_unary(path).future(b"")
    assert served.handlers.arrived.wait(5)
    call.cancel()
    assert served.handlers.cancelled.wait(5)
    served.wait_until(lambda: served.wire.requests == 0)


def test_reply_after_the_end_of_a_call_is_dropped(served: Served, channel: grpc.Channel) -> None:
    served.handlers.held.clear()
    served.handlers.cancelled.clear()
    with pytest.raises(grpc.RpcError):
        channel.unary_unary("/test.Test/Hold")(b"", timeout=0.05)
    assert served.handlers.cancelled.wait(5)
    served.run(lambda: [call.reply(b"late") for call in served.handlers.held])
    assert channel.unary_unary("/test.Test/Echo")(b"next") == b"next"


def test_message_above_the_limit_is_refused() -> None:
    with (
        serve(Limits(max_body_size=1000)) as served,
        grpc.insecure_channel(f"127.0.0.1:{served.port}", options=OPTIONS) as channel,
    ):
        call = channel.unary_unary("/test.Test/Echo")
        for compression in (None, grpc.Compression.Gzip):
            with pytest.raises(grpc.RpcError) as caught:
                call(bytes(1001), compression=compression)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "Use --http-max-input-size to increase the limit." in (caught.value.details() or "")
        assert call(bytes(1000)) == bytes(1000)


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip], ids=["plain", "gzip"])
@pytest.mark.parametrize("size", [0, 1, 1000, 100_000, 3_000_001])
def test_a_reply_in_parts_is_one_message(
    channel: grpc.Channel, size: int, compression: grpc.Compression | None
) -> None:
    message = bytes(range(251)) * (size // 251) + bytes(size % 251)

    assert channel.unary_unary("/test.Test/Halves")(message, compression=compression) == message


def test_calls_above_the_limit_are_refused() -> None:
    with (
        serve(Limits(max_concurrent_requests=1)) as served,
        grpc.insecure_channel(f"127.0.0.1:{served.port}", options=OPTIONS) as channel,
    ):
        held = channel.unary_unary("/test.Test/Hold").future(b"")
        assert served.handlers.arrived.wait(5)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Test/Echo")(b"")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        served.run(lambda: served.handlers.held.pop().reply(b"done"))
        assert held.result() == b"done"


def test_drain_under_load_breaks_no_call() -> None:
    with serve() as served, grpc.insecure_channel(f"127.0.0.1:{served.port}", options=OPTIONS) as channel:
        call = channel.unary_unary("/test.Test/Echo")
        answers: list[bytes] = []
        drained = threading.Event()

        def work() -> None:
            while not drained.is_set() or len(answers) < 2000:
                answers.append(call(b"x", timeout=10))

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for _ in range(5):
            before = len(answers)
            while len(answers) < before + 50:
                pass
            served.run(lambda: [connection.drain() for connection in list(served.wire.connections)])
        drained.set()
        for worker in workers:
            worker.join(20)
        assert not any(worker.is_alive() for worker in workers)
        assert set(answers) == {b"x"}


def test_failed_call_drops_its_on_cancel_callback(served: Served, channel: grpc.Channel) -> None:
    served.handlers.arrived.clear()
    served.handlers.held.clear()
    answer = channel.unary_unary("/test.Test/Hold").future(b"", timeout=30)
    assert served.handlers.arrived.wait(5)
    (call,) = served.handlers.held
    assert call.on_abandon is not None

    served.run(lambda: call.fail(14, "no"))

    assert answer.code() is grpc.StatusCode.UNAVAILABLE
    assert call.on_abandon is None
