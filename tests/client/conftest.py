"""Servers for the client's tests: a real one with a model for each datatype, and sockets with scripted
answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from onnx import TensorProto

from backline_client.client import Client, connect
from support import models
from support.server import ServerProcess, serve

DATATYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}


@pytest.fixture(scope="session")
def typed_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An identity model for each datatype, add1, and a model whose file cannot be loaded."""
    repository = tmp_path_factory.mktemp("typed")
    for name, datatype in DATATYPES.items():
        models.identity_of(repository, f"same_{name.lower()}", datatype)
    models.add1(repository)
    models.add1(repository, "plus2", constant=2.0)
    models.ident(repository)
    models.identity_of(repository, "scalar", TensorProto.FLOAT, ())
    broken = repository / "broken" / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a model")
    return repository


@pytest.fixture(scope="session")
def typed_server(typed_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("log")
    with serve(
        typed_repository, folder / "server.log", "--unix-socket", str(folder / "s"), ready=False
    ) as running:
        while (
            "Not all models are ready" not in running.output
        ):  # one model never is, so the server as a whole never becomes ready
            time.sleep(0.02)
            assert running.process.poll() is None, running.output
        yield running


@pytest.fixture(scope="session", params=["http", "grpc", "inproc", "unix", "grpc+unix"])
def url(request: pytest.FixtureRequest, typed_server: ServerProcess, typed_repository: Path) -> str:
    """The same models over every transport."""
    path = typed_server.log.parent / "s"
    return {
        "http": typed_server.url,
        "grpc": typed_server.grpc_url,
        "inproc": f"inproc://{typed_repository}",
        "unix": f"unix:{path}",
        "grpc+unix": f"grpc+unix:{path}",
    }[request.param]


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[Client]:
    with connect(url, timeout=20) as connected:
        yield connected


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Starts a server that reads a request per connection, sends the next of the given answers, and closes
    it.

    Returns its URL. With `close=False` it stays silent after the last answer until the client disconnects.
    """
    listeners: list[socket.socket] = []

    def start(*answers: bytes, close: bool = True) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)
                    while not close and connection.recv(65536):
                        pass

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()
