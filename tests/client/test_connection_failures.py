"""Errors of the client when the other side is missing, slow, or not a server of the protocol."""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from backline_client.client import connect, connect_async
from backline_client.client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    InvalidArgument,
    PayloadTooLarge,
    PermissionDenied,
    ProtocolError,
    QuotaExceeded,
    Unavailable,
    from_grpc_code,
    from_http_status,
)
from support.server import ServerProcess, free_ports


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_refused_connection_names_the_url_and_what_to_do(scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{free_ports(1)[0]}"
    with connect(url) as client, pytest.raises(ConnectionFailed, match="backline serve") as caught:
        client.live()
    assert url in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_unknown_host_is_named_with_what_to_check(scheme: str) -> None:
    with (
        connect(f"{scheme}://no-such-host.invalid") as client,
        pytest.raises(
            ConnectionFailed,
            match=rf"cannot look up the host of {scheme}://no-such-host\.invalid: .*Is the name right\?",
        ) as caught,
    ):
        client.live()
    assert "Errno" not in str(caught.value)


def test_a_missing_socket_names_its_path() -> None:
    with (
        connect("unix:/nowhere/s") as client,
        pytest.raises(ConnectionFailed, match="--unix-socket /nowhere/s"),
    ):
        client.live()


def test_a_missing_answer_ends_at_the_timeout(answering: Callable[..., str]) -> None:
    with (
        connect(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", close=False)) as client,
        pytest.raises(DeadlineExceeded, match=r"0\.2 s"),
    ):
        client.live(timeout=0.2)


def test_a_connection_closed_before_the_answer_is_reported_and_not_retried(
    answering: Callable[..., str],
) -> None:
    with (
        connect(answering(b"")) as client,
        pytest.raises(ConnectionFailed, match="before it answered; the request may have run"),
    ):
        client.live()


def test_a_port_without_tls_is_reported(server: ServerProcess) -> None:
    url = server.url.replace("http:", "https:")
    with (
        connect(url) as client,
        pytest.raises(ConnectionFailed, match=f"Use {server.url}, or start the server with --ssl"),
    ):
        client.live()


def test_a_connection_closed_during_the_answer_is_reported(answering: Callable[..., str]) -> None:
    url = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\nabc")
    with connect(url) as client, pytest.raises(ConnectionFailed, match="in the middle of its response"):
        client.metadata()


def test_an_answer_that_is_not_http_is_reported(answering: Callable[..., str]) -> None:
    with (
        connect(answering(b"SSH-2.0-x\r\n")) as client,
        pytest.raises(ProtocolError, match=r"does not respond in HTTP/1\.1"),
    ):
        client.live()


def test_an_answer_that_is_not_json_is_reported(answering: Callable[..., str]) -> None:
    with (
        connect(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n<html")) as client,
        pytest.raises(ProtocolError, match="did not answer with JSON"),
    ):
        client.metadata()


def test_a_chunked_answer_after_an_interim_one_is_read(answering: Callable[..., str]) -> None:
    body = b'{"name":"other","version":"1","extensions":[]}'
    answer = (
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n"
        b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
        % (
            len(body),
            body,
        )
    )
    with connect(answering(answer)) as client:
        assert client.metadata().name == "other"


def test_a_body_that_ends_with_the_connection_is_read(answering: Callable[..., str]) -> None:
    with connect(answering(b'HTTP/1.1 200 OK\r\n\r\n{"name":"other"}')) as client:
        assert client.metadata().name == "other"


def test_the_error_of_a_busy_server_has_its_retry_after(answering: Callable[..., str]) -> None:
    answer = b'HTTP/1.1 503 x\r\nretry-after: 7\r\ncontent-length: 16\r\n\r\n{"error":"full"}'
    with connect(answering(answer)) as client, pytest.raises(Unavailable, match="full") as caught:
        client.metadata()
    assert caught.value.retry_after == 7


def test_a_connection_that_the_server_closed_is_replaced(answering: Callable[..., str]) -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    with connect(answering(answer, answer)) as client:
        assert client.live()
        assert client.live()


def test_invalid_options_are_refused() -> None:
    for options in (
        {"timeout": 0},
        {"max_connections": 0},
        {"headers": {"a b": "c"}},
        {"headers": {"a": "b\r\nc: d"}},
        {"key": "k"},
    ):
        with pytest.raises(InvalidArgument):
            connect("http://a", **options)  # type: ignore[arg-type]


def test_a_missing_ca_file_is_reported() -> None:
    with (
        connect("https://127.0.0.1:1", ca="/nowhere.pem") as client,
        pytest.raises(InvalidArgument, match=r"/nowhere\.pem"),
    ):
        client.live()


def test_statuses_become_the_engines_errors() -> None:
    assert isinstance(from_http_status(403, "x"), PermissionDenied)
    assert isinstance(from_http_status(429, "x"), QuotaExceeded)
    assert isinstance(from_grpc_code(8, "the key 'message' may send 1 requests", 0.5), QuotaExceeded)
    assert isinstance(from_grpc_code(8, "the message is too large"), PayloadTooLarge)
    assert isinstance(from_http_status(418, "x"), InvalidArgument)
    assert isinstance(from_grpc_code(8, "queue is full"), Unavailable)
    assert isinstance(from_grpc_code(16, "x"), PermissionDenied)


def test_a_client_used_after_a_fork_fails_with_a_reason(server: ServerProcess) -> None:
    program = (
        "import backline, os, sys\n"
        "client = backline.connect(sys.argv[1]); client.live()\n"
        "if os.fork() == 0:\n"
        "    try: client.live()\n"
        "    except Exception as error: print(error, flush=True)\n"
        "    print(backline.connect(sys.argv[1]).live(), flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ},
    )
    assert "connect again in the child" in done.stdout
    assert done.stdout.strip().endswith("True")


def test_grpc_after_a_fork_is_refused_and_does_not_hang(server: ServerProcess) -> None:
    program = (
        "import backline, os, sys\n"
        "backline.connect(sys.argv[1]).live()\n"
        "if os.fork() == 0:\n"
        "    try: backline.connect(sys.argv[1]).live()\n"
        "    except Exception as error: print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, server.grpc_url],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "grpcio was used before a fork" in done.stdout


def test_the_loop_stops_at_exit_and_later_calls_fail_with_a_reason(server: ServerProcess) -> None:
    """A loop that still runs while the interpreter shuts down can crash the program after all its work is
    done."""
    program = (
        "import atexit, backline, sys, threading\n"
        "@atexit.register\n"
        "def last():\n"
        "    print('running' if any(thread.name == 'backline-client' for thread in threading.enumerate())"
        " else 'ended')\n"
        "    try: client.live()\n"
        "    except Exception as error: print(error)\n"
        "client = backline.connect(sys.argv[1]); client.live()\n"
    )
    for url in (server.url, server.grpc_url):
        done = subprocess.run(
            [sys.executable, "-c", program, url], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.splitlines() == [
            "ended",
            "the program is exiting: a synchronous client can no longer be called",
        ]
        assert done.stderr == ""


def test_grpc_without_grpcio_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['grpc'] = None\nimport backline\n"
        "backline.connect('grpc://127.0.0.1:1').live()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert "pip install 'backline[grpc]'" in done.stderr


def test_importing_backline_imports_neither_client_nor_server() -> None:
    program = (
        "import backline, sys; print([name for name in sys.modules"
        " if name in ('backline_client.client', 'backline.server', 'numpy')])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
        ).stdout.strip()
        == "[]"
    )


def test_the_pool_opens_at_most_max_connections(server: ServerProcess) -> None:
    async def main() -> int:
        async with connect_async(server.url, max_connections=2) as client:
            await asyncio.gather(*(client["add1"](np.zeros((1, 16), np.float32)) for _ in range(40)))
            return len((await client.transport())._pool._all)  # type: ignore[attr-defined]

    assert asyncio.run(main()) == 2


def test_an_empty_tensor_after_a_large_one_does_not_make_the_loop_spin(
    answering: Callable[..., str],
) -> None:
    inputs = [{"name": name, "datatype": "FP32", "shape": [-1]} for name in ("a", "b")]
    metadata = {"name": "m", "versions": ["1"], "platform": "p", "inputs": inputs, "outputs": []}
    answers = [
        json.dumps(body).encode()
        for body in (metadata, {"model_name": "m", "model_version": "1", "outputs": []})
    ]
    heads = [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n",
    ]
    url = answering(
        *(head % len(body) + body for head, body in zip(heads, answers, strict=True)), close=False
    )

    class Counting(selectors.DefaultSelector):
        turns = 0

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            self.turns += 1
            return super().select(timeout)

    async def main() -> int:
        async with connect_async(url) as client:
            await client["m"](a=np.zeros(100_000, np.float32), b=np.zeros(0, np.float32))
            before = selector.turns
            await asyncio.sleep(0.2)
            return selector.turns - before

    selector = Counting()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        assert runner.run(main()) < 20
