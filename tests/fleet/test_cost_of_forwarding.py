"""What a lone request to a remote model costs the server in front: calls, counted rather than timed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvloop

from backline.lifecycle.options import LifecycleOptions
from backline.server import Server, ServerOptions
from backline_client.client.http_codec import encode_infer
from backline_client.client.http_transport import INFER_HEAD
from backline_client.client.transport import InferCall
from backline_client.values.datatypes import DataType
from backline_client.values.tensor import Tensor
from support import models
from support.calls import CallCounter
from support.repositories import put
from support.server import ServerProcess, serve

REQUESTS = 100
#: The most calls of Python functions that the server in front may make for a request over HTTP, by the
#: protocol of the other server. Right after a sleep, a call takes about a microsecond: before you raise a
#: number, see what the added calls buy.
MOST_CALLS = {"http": 105, "grpc": 112}


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("behind")
    models.add1(folder / "models")
    with serve(folder / "models", folder / "log") as server:
        yield server


class Caller:
    """A client that sends one request again and again, on a blocking socket."""

    def __init__(self, port: int) -> None:
        data = np.ones((1, 16), np.float32)
        header, buffers = encode_infer(
            InferCall("add1", (Tensor("INPUT0", DataType.FP32, data.shape, data),))
        )
        body = header + b"".join(buffers)
        self._request = INFER_HEAD % (b"", b"/v2/models/add1", b"Host: x\r\n", len(header), len(body)) + body
        self._answer = (data + 1).tobytes()
        self._socket = socket.create_connection(("127.0.0.1", port))

    def ask(self, times: int) -> None:
        for _ in range(times):
            self._socket.sendall(self._request)
            received = b""
            while not received.endswith(self._answer):
                more = self._socket.recv(65536)
                assert more, received
                received += more
            assert received.startswith(b"HTTP/1.1 200 ")

    def close(self) -> None:
        self._socket.close()


async def calls_per_request(repository: Path) -> float:
    """The calls of a server with this repository for each of several requests, one after the other."""
    options = ServerOptions(
        (repository,),
        host="127.0.0.1",
        http_port=0,
        grpc_port=None,
        metrics_port=None,
        busy_poll_usecs=0,  # the number of polls depends on the machine
        lifecycle=LifecycleOptions(state_folder=repository.parent / "state"),
    )
    front = Server(options)
    await front.start()
    caller = Caller(int(dict(front.urls)["HTTP"].rpartition(":")[2]))
    counter = CallCounter()
    try:
        await asyncio.to_thread(caller.ask, 10)
        with counter.counting():
            await asyncio.to_thread(caller.ask, REQUESTS)
    finally:
        caller.close()
        await front.stop()
    return counter.calls / REQUESTS


@pytest.mark.parametrize("protocol", MOST_CALLS)
def test_forwarding_a_request_takes_few_calls(behind: ServerProcess, protocol: str, tmp_path: Path) -> None:
    url = behind.url if protocol == "http" else behind.grpc_url
    parameter = f'parameters {{ key: "urls" value {{ string_value: "{url}" }} }}'
    put(tmp_path / "front" / "add1" / "config.pbtxt", f'backend: "remote" {parameter}')
    put(tmp_path / "front" / "add1" / "1" / "empty", "")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        calls = runner.run(calls_per_request(tmp_path / "front"))

    assert calls < MOST_CALLS[protocol]
