"""One real server process for the whole session, and connections to it.

BACKLINE_TEST_PORT (and BACKLINE_TEST_HOST) name a server that runs already; then none is started, and its output is not seen.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from h1probe import HttpProbe
from h2probe import Probe

START_TIMEOUT = 30.0


def write_models(repository: Path) -> None:
    """add1 (FP32 [N, 16], y = x + 1) and ident (FP32 [N, 3, 224, 224], y = x)."""
    from onnx import TensorProto, helper, save

    for name, dims in (("add1", [16]), ("ident", [3, 224, 224])):
        x = helper.make_tensor_value_info("INPUT0", TensorProto.FLOAT, ["N", *dims])
        y = helper.make_tensor_value_info("OUTPUT0", TensorProto.FLOAT, ["N", *dims])
        if name == "add1":
            node = helper.make_node("Add", ["INPUT0", "one"], ["OUTPUT0"])
            constants = [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])]
        else:
            node = helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])
            constants = []
        model = helper.make_model(helper.make_graph([node], name, [x], [y], constants), opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        path = repository / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        save(model, path)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, held until all are chosen so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass(frozen=True)
class Server:
    """A running server. `output` is None when it was not started here."""

    host: str
    port: int
    pid: int | None = None
    output: Path | None = None

    def printed(self) -> str:
        return self.output.read_text(errors="replace") if self.output else ""


def wait_until_ready(host: str, port: int, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}:\n{output.read_text(errors='replace')}")
        connection = http.client.HTTPConnection(host, port, timeout=1)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        process_gone = process.poll()
        if process_gone is None:
            time.sleep(0.02)
    raise RuntimeError(f"the server was not ready after {START_TIMEOUT:.0f} s:\n{output.read_text(errors='replace')}")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server under test."""
    if port := os.environ.get("BACKLINE_TEST_PORT"):
        yield Server(os.environ.get("BACKLINE_TEST_HOST", "127.0.0.1"), int(port))
        return
    with tempfile.TemporaryDirectory(prefix="backline-conformance-") as folder:
        write_models(Path(folder) / "models")
        output = Path(folder) / "output"
        http_port, grpc_port, metrics_port = free_ports(3)
        ports = ("--http-port", str(http_port), "--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port))
        command = [sys.executable, "-m", "backline", "serve", f"{folder}/models", "--host", "127.0.0.1", *ports]
        with output.open("wb") as sink:
            process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        try:
            wait_until_ready("127.0.0.1", http_port, process, output)
            yield Server("127.0.0.1", http_port, process.pid, output)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def raw(server: Server) -> Iterator[Probe]:
    """A connection on which nothing was said yet."""
    probe = Probe(server.host, server.port)
    yield probe
    probe.close()


@pytest.fixture
def h2(raw: Probe) -> Probe:
    """An HTTP/2 connection after the exchange of SETTINGS."""
    raw.handshake()
    return raw


@pytest.fixture
def h1(server: Server) -> Iterator[HttpProbe]:
    """An HTTP/1.1 connection."""
    probe = HttpProbe(server.host, server.port)
    yield probe
    probe.close()


@pytest.fixture
def answer_length(server: Server) -> Callable[[int], None]:
    """Asserts that the answer to `GET /` has a body of at least so many bytes: windows cannot be measured without."""

    def check(minimum: int) -> None:
        probe = Probe(server.host, server.port)
        try:
            length = probe.response_length()
        finally:
            probe.close()
        assert length >= minimum, f"GET / must have a body of at least {minimum} bytes, it has {length}"

    return check
