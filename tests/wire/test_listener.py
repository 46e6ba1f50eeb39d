"""Addresses, connection limits and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import WireServer, read_all, read_answer

Start = Callable[..., WireServer]
GET = b"GET /dump HTTP/1.1\r\nHost: a\r\n\r\n"


def test_port_0_selects_one_free_port_for_all_addresses_of_the_host(start: Start) -> None:
    server = start()
    port = server.wait(server.listeners.open_tcp("localhost", 0))
    with socket.create_connection(("localhost", port), 5) as client:
        client.sendall(GET)
        assert read_answer(client)[0] == 200


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_ipv6_address_is_served(start: Start) -> None:
    server = start()
    port = server.wait(server.listeners.open_tcp("::1", 0))
    with socket.create_connection(("::1", port), 5) as client:
        client.sendall(GET)
        assert read_answer(client)[0] == 200


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_ipv6_wildcard_includes_ipv4(start: Start) -> None:
    server = start()
    port = server.wait(server.listeners.open_tcp("::", 0))
    for address in ("::1", "127.0.0.1"):
        with socket.create_connection((address, port), 5) as client:
            client.sendall(GET)
            assert read_answer(client)[0] == 200


def test_port_in_use_is_an_error_that_names_it(start: Start) -> None:
    server = start()
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{server.port}: "):
        server.wait(server.listeners.open_tcp("127.0.0.1", server.port))


def test_unknown_host_is_an_error_that_names_it(start: Start) -> None:
    server = start()
    with pytest.raises(OSError, match=r"cannot listen on no-such-host\.invalid:80"):
        server.wait(server.listeners.open_tcp("no-such-host.invalid", 80))


def test_unix_socket_is_served_and_its_file_removed_on_close(start: Start, tmp_path: Path) -> None:
    server, path = start(), tmp_path / "socket"
    server.wait(server.listeners.open_unix(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(GET)
        assert read_answer(client)[0] == 200
    server.wait(server.listeners.close(1))
    assert not path.exists()


def test_stale_unix_socket_is_replaced(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    server = start()
    server.wait(server.listeners.open_unix(path))
    assert stat.S_ISSOCK(path.stat().st_mode)


def test_unix_socket_in_use_and_other_files_are_not_replaced(start: Start, tmp_path: Path) -> None:
    server, path, file = start(), tmp_path / "socket", tmp_path / "file"
    server.wait(server.listeners.open_unix(path))
    with pytest.raises(OSError, match="another server is listening on this socket"):
        server.wait(server.listeners.open_unix(path))
    file.write_text("precious")
    with pytest.raises(OSError, match="not a socket"):
        server.wait(server.listeners.open_unix(file))
    assert file.read_text() == "precious"


def test_connections_above_the_limit_get_503_and_others_are_unaffected(start: Start) -> None:
    server = start(max_connections=2)
    with server.connect() as first, server.connect():
        server.until(lambda: len(server.wire.connections) == 2)
        assert server.send(b"").startswith(b"HTTP/1.1 503 ")
        first.sendall(GET)
        assert read_answer(first)[0] == 200
    server.until(lambda: not server.wire.connections)
    with server.connect() as again:
        again.sendall(GET)
        assert read_answer(again)[0] == 200


def test_thousands_of_silent_connections_do_not_slow_another_client(start: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 5000:
        pytest.skip("this process may not open 5,000 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))
    server = start()
    with contextlib.ExitStack() as silent:
        for _ in range(2000):
            silent.enter_context(server.connect())
        with server.connect(1) as honest:
            for _ in range(100):
                honest.sendall(GET)
                assert read_answer(honest)[0] == 200
        assert server.state()[0] >= 2000
    server.until(lambda: not server.wire.connections)


def test_close_completes_requests_in_flight_with_connection_close(start: Start) -> None:
    server = start()
    with server.connect() as client, server.connect() as idle:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        assert server.echo.arrived.acquire(timeout=5)
        closing = asyncio.run_coroutine_threadsafe(server.listeners.close(10), server.loop)
        assert read_all(idle) == b""
        with pytest.raises(ConnectionError):
            server.connect(1)
        server.release(server.echo.held.pop())
        status, fields, body = read_answer(client)
        assert (status, fields["connection"], body) == (200, "close", b"held")
        assert read_all(client) == b""
        closing.result(5)


def test_close_aborts_requests_that_outlast_the_drain_timeout(start: Start) -> None:
    server = start()
    with server.connect() as client:
        client.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        assert server.echo.arrived.acquire(timeout=5)
        server.wait(server.listeners.close(0.1))
        assert server.echo.lost.acquire(timeout=5)
        assert read_all(client) == b""
    assert server.state() == (0, 0, 0)


def drain(server: WireServer) -> None:
    async def begin() -> None:
        for connection in server.wire.connections:
            connection.drain()

    server.wait(begin())


def test_drained_connection_closes_after_a_stream_that_had_begun(start: Start) -> None:
    server = start()
    with server.connect(5) as client:
        client.sendall(b"GET /stream?20000 HTTP/1.1\r\nHost: a\r\n\r\n")
        begun = client.recv(1)
        drain(server)
        assert b"connection: close" not in begun
        assert read_all(client).endswith(b"0\r\n\r\n")


def test_drained_connection_drops_a_large_body_after_its_last_response(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    server = start()
    with server.connect(5) as client:
        head = b"POST /size HTTP/1.1\r\nHost: a\r\nContent-Length: 400000\r\n\r\n"
        client.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n" + head + bytes(200_000))
        assert server.echo.arrived.acquire(timeout=5)
        server.until(lambda: server.wire.buffered_bytes == 200_000)
        drain(server)
        server.release(server.echo.held.pop())
        assert read_answer(client)[2] == b"held"
        server.until(lambda: server.wire.requests == 0 and server.wire.buffered_bytes == 0)
        client.sendall(bytes(200_000))
        client.sendall(bytes(200_000))
        assert client.recv(1) == b""
    server.until(lambda: not server.wire.connections)
    assert [record.getMessage() for record in caplog.records] == []


def test_close_under_load_truncates_no_response(start: Start) -> None:
    server = start()
    broken: list[str] = []
    answered = threading.Semaphore(0)

    def ask(client: socket.socket) -> None:
        with client:
            while True:
                client.sendall(
                    b"POST /later HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n" + bytes(70_000)
                )
                status, fields, body = read_answer(client)
                if status != 200 or not body.endswith(bytes(70_000)):
                    broken.append(f"{status} {len(body)}")
                answered.release()
                if fields.get("connection") == "close":
                    return

    def run(client: socket.socket) -> None:
        try:
            ask(client)
        except OSError as error:
            broken.append(repr(error))

    threads = [threading.Thread(target=run, args=(server.connect(),)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        assert answered.acquire(timeout=10)
    server.wait(server.listeners.close(10))
    for thread in threads:
        thread.join(10)
    assert broken == []


@pytest.fixture
def few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_server_survives_running_out_of_file_descriptors(start: Start, few_files: None) -> None:
    server = start()
    with contextlib.ExitStack() as clients:
        waiting = [clients.enter_context(socket.socket()) for _ in range(30)]
        highest = max(client.fileno() for client in waiting)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        for client in waiting:
            client.settimeout(5)
            client.connect(("127.0.0.1", server.port))
        server.state()
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 100, hard))
    with server.connect() as client:
        client.sendall(GET)
        assert read_answer(client)[0] == 200
