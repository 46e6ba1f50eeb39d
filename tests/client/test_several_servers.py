"""A client of several servers: each request goes to one of them, and to another one if that fails."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from backline_client.client import balanced_transport, connect, connect_async
from backline_client.client.address import Address
from backline_client.client.balanced_transport import BalancedTransport
from backline_client.client.errors import (
    BacklineError,
    ConnectionLost,
    InvalidArgument,
    NotFound,
    ProtocolError,
    Unavailable,
    Unsupported,
)
from backline_client.client.http_transport import HttpTransport
from backline_client.client.options import ClientOptions
from backline_client.client.transport import InferCall
from backline_client.values.datatypes import DataType
from backline_client.values.tensor import Tensor
from support import models
from support.repositories import put
from support.server import ServerProcess, free_ports, serve

ONES = np.ones((1, 16), np.float32)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "models"
    models.add1(folder)
    return folder


@pytest.fixture(scope="module")
def pair(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, ...]]:
    folder = tmp_path_factory.mktemp("logs")
    with contextlib.ExitStack() as stack:
        yield tuple(stack.enter_context(serve(repository, folder / name)) for name in ("a", "b"))


def _urls(servers: tuple[ServerProcess, ...], protocol: str) -> str:
    return ",".join(server.url if protocol == "http" else server.grpc_url for server in servers)


def _counts(servers: tuple[ServerProcess, ...]) -> list[int]:
    counts = []
    for server in servers:
        with connect(server.url) as client:
            counts.append(client["add1"].statistics()[0]["inference_stats"]["success"]["count"])
    return counts


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_requests_are_spread_over_all_servers(pair: tuple[ServerProcess, ...], protocol: str) -> None:
    before = _counts(pair)
    with connect(_urls(pair, protocol)) as client:
        for _ in range(20):
            assert client["add1"](ONES)["OUTPUT0"][0, 0] == 2
    after = _counts(pair)

    got = [end - start for start, end in zip(before, after, strict=True)]
    assert sum(got) == 20
    assert min(got) > 0


def test_a_server_that_is_not_there_costs_no_request(pair: tuple[ServerProcess, ...]) -> None:
    with connect(f"http://127.0.0.1:{free_ports(1)[0]},{pair[0].url}") as client:
        for _ in range(10):
            client["add1"](ONES)
        assert client.ready()


@pytest.mark.parametrize("idempotent", [True, False])
def test_a_server_that_is_not_there_costs_no_sequence(
    pair: tuple[ServerProcess, ...], idempotent: bool
) -> None:
    url = f"{pair[0].url},http://127.0.0.1:{free_ports(1)[0]}"
    for calls in ("single", "stream"):
        with connect(url, idempotent=idempotent) as client:
            add1 = client["add1"]
            add1.metadata()  # from the first server, so the next request is for the second
            begin, later = {"sequence_id": 1, "sequence_start": True}, {"sequence_id": 1}
            if calls == "single":
                add1(ONES, parameters=begin)
                add1(ONES, parameters=later)
            else:
                assert len(list(add1.stream(ONES, parameters=begin))) == 1
                assert len(list(add1.stream(ONES, parameters=later))) == 1


def test_if_no_server_is_there_the_error_says_so() -> None:
    first, second = free_ports(2)
    with (
        connect(f"http://127.0.0.1:{first},http://127.0.0.1:{second}") as client,
        pytest.raises(Unavailable, match="connection refused by http://127"),
    ):
        client["add1"](ONES)


@pytest.mark.parametrize("calls", ["single", "stream"])
def test_a_request_that_may_have_run_is_sent_again_only_if_it_is_idempotent(
    pair: tuple[ServerProcess, ...], answering: Callable[..., str], calls: str
) -> None:
    metadata = _metadata(pair[0])
    for idempotent in (True, False):
        # This server describes its model, then closes the connection instead of answering.
        breaking = answering(metadata, b"")
        with connect(f"{breaking},{pair[0].url}", idempotent=idempotent) as client:
            client["add1"].metadata()
            expectation = contextlib.nullcontext() if idempotent else pytest.raises(ConnectionLost)
            with expectation:
                for _ in range(2):  # one of them goes to the server that breaks
                    if calls == "single":
                        client["add1"](ONES)
                    else:
                        assert len(list(client["add1"].stream(ONES))) == 1


def _metadata(server: ServerProcess) -> bytes:
    """A server's answer to a request for its model's metadata, after which it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.http_port)) as connection:
        connection.sendall(b"GET /v2/models/add1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"nonsense\r\n\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nnonsense", ProtocolError),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"model_na', ConnectionLost),
    ],
    ids=["not HTTP", "not JSON", "half"],
)
def test_a_response_that_cannot_be_read_costs_no_idempotent_request(
    pair: tuple[ServerProcess, ...], answering: Callable[..., str], answer: bytes, error: type[BacklineError]
) -> None:
    metadata = _metadata(pair[0])
    for idempotent in (True, False):
        failing = answering(metadata, answer)
        with connect(f"{failing},{pair[0].url}", idempotent=idempotent) as client:
            client["add1"].metadata()
            with contextlib.nullcontext() if idempotent else pytest.raises(error):
                for _ in range(2):  # one of them goes to the server that fails
                    client["add1"](ONES)


def test_a_new_client_finds_the_servers_of_open_sequences(tmp_path: Path) -> None:
    model = tmp_path / "models" / "steps"
    put(model / "1" / "empty", "")
    put(
        model / "config.pbtxt",
        """backend: "identity" max_batch_size: 8
        sequence_batching { max_sequence_idle_microseconds: 600000000 }
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]""",
    )
    data = np.ones((1, 1), np.float32)
    with serve(model.parent, tmp_path / "a") as a, serve(model.parent, tmp_path / "b") as b:
        for protocol in ("http", "grpc"):
            for number, server in enumerate((a, b, a, b), 1):
                with connect(_urls((server,), protocol)) as client:
                    client["steps"](data, parameters={"sequence_id": number, "sequence_start": True})
            with connect(_urls((a, b), protocol)) as client:
                for last in (False, True):
                    for number in range(1, 5):
                        parameters = {"sequence_id": number, "sequence_end": last}
                        client["steps"](data, parameters=parameters)
                with pytest.raises(InvalidArgument, match="must specify the START flag"):
                    client["steps"](data, parameters={"sequence_id": 1})


def test_a_server_without_the_model_costs_no_request(pair: tuple[ServerProcess, ...], tmp_path: Path) -> None:
    models.add1(tmp_path / "models", "other")
    with serve(tmp_path / "models", tmp_path / "log") as other:
        for protocol in ("http", "grpc"):
            with connect(_urls((other, pair[0]), protocol), idempotent=False) as client:
                for _ in range(10):
                    assert client["add1"](ONES)["OUTPUT0"][0, 0] == 2
                with pytest.raises(NotFound):
                    client["no_such_model"](ONES)


def test_a_killed_server_costs_no_request(
    pair: tuple[ServerProcess, ...], repository: Path, tmp_path: Path
) -> None:
    async def send(url: str, killed: ServerProcess) -> int:
        answered = 0
        async with connect_async(url) as client:

            async def caller() -> None:
                nonlocal answered
                for _ in range(50):
                    assert (await client["add1"](ONES))["OUTPUT0"][0, 0] == 2
                    answered += 1
                    if answered == 200:
                        killed.process.send_signal(signal.SIGKILL)

            await asyncio.gather(*(caller() for _ in range(16)))
        return answered

    with serve(repository, tmp_path / "log") as killed:
        assert asyncio.run(send(_urls((pair[0], killed), "http"), killed)) == 800


def test_a_frozen_server_costs_no_request(
    pair: tuple[ServerProcess, ...], repository: Path, tmp_path: Path
) -> None:
    async def send(url: str, frozen: ServerProcess) -> None:
        async with connect_async(url, timeout=20) as client:

            async def caller(number: int) -> None:
                for count in range(40):
                    if number == 0 and count == 20:
                        frozen.process.send_signal(signal.SIGSTOP)
                    await client["add1"](ONES)

            await asyncio.gather(*(caller(number) for number in range(16)))

    with serve(repository, tmp_path / "log") as frozen:
        try:
            asyncio.run(send(_urls((pair[0], frozen), "http"), frozen))
        finally:
            frozen.process.send_signal(signal.SIGCONT)


def test_a_late_request_is_answered_by_the_second_server(
    pair: tuple[ServerProcess, ...], repository: Path, tmp_path: Path
) -> None:
    async def waits(url: str, frozen: ServerProcess) -> list[float]:
        loop = asyncio.get_running_loop()
        async with connect_async(url, timeout=20) as client:
            for _ in range(64):  # from which it is known when a request is late
                await client["add1"](ONES)
            frozen.process.send_signal(signal.SIGSTOP)
            waited = []
            for _ in range(4):
                began = loop.time()
                await client["add1"](ONES)
                waited.append(loop.time() - began)
        return waited

    with serve(repository, tmp_path / "log") as frozen:
        try:
            waited = asyncio.run(waits(_urls((pair[0], frozen), "http"), frozen))
        finally:
            frozen.process.send_signal(signal.SIGCONT)

    assert max(waited) < 1.0  # the least time after which the server could be found frozen


def test_a_server_whose_connections_are_all_in_use_is_not_taken_for_dead(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "models" / "echo"
    put(model / "1" / "empty", "")
    put(
        model / "config.pbtxt",
        """backend: "identity" max_batch_size: 1
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
        parameters { key: "execute_delay_ms" value { string_value: "2000" } }""",
    )
    with serve(model.parent, tmp_path / "log") as slow:
        url = f"{slow.url},http://127.0.0.1:{free_ports(1)[0]}"
        with connect(url, max_connections=1, timeout=30) as client:
            client["echo"](np.ones((1, 1), np.float32))  # takes longer than the first probe waits

    assert "no connection" not in caplog.text, "the probe waited for a connection"


def test_a_server_that_comes_back_gets_requests_again(repository: Path, tmp_path: Path) -> None:
    async def back(client_url: str, second: contextlib.AbstractContextManager[ServerProcess]) -> None:
        async with connect_async(client_url) as client:
            for _ in range(4):
                await client["add1"](ONES)
            with second as server:
                while not _counts((server,))[0]:
                    await client["add1"](ONES)
                    await asyncio.sleep(0.05)

    with serve(repository, tmp_path / "a") as first:
        second = serve(repository, tmp_path / "b", "--unix-socket", str(tmp_path / "s"))
        asyncio.run(back(f"{first.url},unix:{tmp_path}/s", second))


def test_a_change_is_refused_because_it_would_reach_one_server_only(pair: tuple[ServerProcess, ...]) -> None:
    with connect(_urls(pair, "http")) as client:
        assert client.models()[0].name == "add1"
        with pytest.raises(Unsupported, match="connect to each server separately"):
            client.load("add1")


def test_a_name_stands_for_all_its_addresses(pair: tuple[ServerProcess, ...]) -> None:
    with connect(f"dns+http://localhost:{pair[0].http_port}") as client:
        assert client["add1"](ONES)["OUTPUT0"][0, 0] == 2
    with (
        connect("dns+http://no-such-name.invalid:8000") as client,
        pytest.raises(Unavailable, match="look up"),
    ):
        client["add1"](ONES)


def test_a_failed_look_up_of_the_servers_does_not_end_the_watch(
    pair: tuple[ServerProcess, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While replicas with all models are replaced by shards, a look-up without a model is an invalid one."""
    looked_up: list[Address] = []

    async def run() -> None:
        again = asyncio.Event()

        async def resolve(address: Address) -> tuple[Address, ...]:
            looked_up.append(address)
            if len(looked_up) in (2, 3):
                raise InvalidArgument("the replicas have different models")
            if len(looked_up) > 3:
                again.set()
            return (Address.parse(pair[0].url),)

        monkeypatch.setattr(balanced_transport, "resolve", resolve)
        monkeypatch.setattr(balanced_transport, "_LOOK_AGAIN", 0.01)
        async with connect_async("ray://backline") as client:
            await client["add1"](ONES)
            async with asyncio.timeout(30):
                await again.wait()
            assert (await client["add1"](ONES))["OUTPUT0"][0, 0] == 2

    asyncio.run(run())
    assert [record.message for record in caplog.records if "different models" in record.message] == [
        "the replicas have different models. The known servers still get requests"
    ]


def test_a_name_that_is_unknown_costs_no_request(pair: tuple[ServerProcess, ...]) -> None:
    url = f"dns+http://no-such-name.invalid:8000,dns+http://localhost:{pair[0].http_port}"
    with connect(url) as client:
        assert client["add1"](ONES)["OUTPUT0"][0, 0] == 2


def test_a_name_server_that_does_not_respond_costs_no_request(
    pair: tuple[ServerProcess, ...], repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Address("dns+http://name", "http", by_dns=True)
    hangs = asyncio.Event()

    async def look_up(_: Address) -> tuple[Address, ...]:
        if hangs.is_set():
            await asyncio.Event().wait()
        return Address.parse_all(urls)

    async def send(frozen: ServerProcess) -> None:
        transport = BalancedTransport("name", (given,), ClientOptions(timeout=20), HttpTransport)
        await transport.open()
        call = InferCall("add1", (Tensor("INPUT0", DataType.FP32, ONES.shape, ONES),), timeout=20)
        try:
            await asyncio.gather(*(transport.infer(call) for _ in range(4)))
            hangs.set()
            frozen.process.send_signal(signal.SIGSTOP)
            await asyncio.gather(*(transport.infer(call) for _ in range(4)))  # two go to the frozen server
        finally:
            await transport.close()

    monkeypatch.setattr(balanced_transport, "resolve", look_up)
    monkeypatch.setattr(balanced_transport, "_RESOLVE", 0.0)
    with serve(repository, tmp_path / "log") as frozen:
        urls = _urls((pair[0], frozen), "http")
        try:
            asyncio.run(send(frozen))
        finally:
            frozen.process.send_signal(signal.SIGCONT)


def test_lists_of_urls_are_checked(tmp_path: Path) -> None:
    assert [address.port for address in Address.parse_all("http://a:1, grpc://b:2")] == [1, 2]
    with pytest.raises(InvalidArgument, match="is not a list of server URLs"):
        Address.parse_all("http://a:1,inproc:///models")
    put(tmp_path / "a,b" / "file")
    assert len(Address.parse_all(f"inproc://{tmp_path}/a,b")) == 1
