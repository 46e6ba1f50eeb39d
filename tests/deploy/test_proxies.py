"""The configurations of proxies, run in front of a server."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from backline_client.client import Client, Model, connect
from backline_client.client.errors import BacklineError, ConnectionFailed, NotFound
from docs.pages import ROOT
from support import models
from support.repositories import put
from support.server import ServerProcess, free_ports, serve
from support.tools import tool

CONFIGURATIONS = {
    "nginx": "nginx.conf",
    "haproxy": "haproxy.cfg",
    "caddy": "Caddyfile",
    "envoy": "envoy.yaml",
}
#: What to replace in each configuration so that it names two servers.
SECOND_SERVER = {
    "nginx": (r"( +server 127\.0\.0\.1:80)0(.*)", r"\g<0>\n\g<1>1\2"),
    "haproxy": (r"( +server )a( 127\.0\.0\.1:80)0(.*)", r"\g<0>\n\1b\g<2>1\3"),
    "caddy": (r"(reverse_proxy )(.*:80)0(\d)", r"\g<0> \g<2>1\3"),
    "envoy": (r"( +- endpoint: .*port_value: 80)0(.*)", r"\g<0>\n\g<1>1\2"),
}
REPEAT = """backend: "repeat" model_transaction_policy { decoupled: true }
input [
  { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] }, { name: "DELAY" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "WAIT" data_type: TYPE_UINT32 dims: [ 1 ] }
]
output [
  { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] }, { name: "IDX" data_type: TYPE_UINT32 dims: [ 1 ] }
]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("behind")
    models.add1(folder / "models")
    models.identity_of(folder / "models", "same", 1)
    put(folder / "models" / "repeat" / "config.pbtxt", REPEAT)
    put(folder / "models" / "repeat" / "1" / "empty", "")
    with serve(folder / "models", folder / "log", "--max-peer-share", "1") as running:
        yield running


@dataclass
class Proxy:
    """A running proxy, and the URLs of its ports."""

    http: str
    grpc: str

    def url(self, protocol: str) -> str:
        return self.http if protocol == "http" else self.grpc


@pytest.fixture(scope="module", params=list(CONFIGURATIONS))
def proxy(
    request: pytest.FixtureRequest, server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    name = request.param
    tool(name)
    text = (ROOT / "deploy" / "proxies" / CONFIGURATIONS[name]).read_text()
    with _proxy(name, text, tmp_path_factory.mktemp(name), server) as running:
        yield running


def _with_a_second_server(name: str) -> str:
    """The configuration of a proxy, with a second server on the ports 8010 and 8011."""
    text = (ROOT / "deploy" / "proxies" / CONFIGURATIONS[name]).read_text()
    text, lines = re.subn(*SECOND_SERVER[name], text)
    assert lines == 2
    return text


@contextlib.contextmanager
def _proxy(name: str, text: str, folder: Path, *servers: ServerProcess) -> Iterator[Proxy]:
    """Runs a proxy with a configuration. The servers replace the ports 8000 and 8001, 8010 and 8011, ..."""
    http, grpc = free_ports(2)
    ports = {8080: http, 8081: grpc}
    for number, one in enumerate(servers):
        ports |= {8000 + 10 * number: one.http_port, 8001 + 10 * number: one.grpc_port}
    for printed, own in ports.items():
        text = text.replace(f":{printed}", f":{own}").replace(f"listen {printed}", f"listen 127.0.0.1:{own}")
        text = text.replace(f"port_value: {printed}", f"port_value: {own}")
    file = folder / CONFIGURATIONS[name]
    file.write_text(text)
    with _running(_command(name, file, folder), folder, http):
        yield Proxy(f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{grpc}")


def _command(name: str, file: Path, folder: Path) -> list[str]:
    if name == "nginx":
        places = f"daemon off; pid {folder}/pid; error_log {folder}/error.log;"
        return [tool("nginx"), "-p", str(folder), "-c", str(file), "-e", f"{folder}/error.log", "-g", places]
    if name == "haproxy":
        return [tool("haproxy"), "-db", "-f", str(file)]
    if name == "envoy":
        quiet = ["--log-level", "warning", "--concurrency", "1", "--disable-hot-restart"]
        return [tool("envoy"), "--config-path", str(file), *quiet]
    return [tool("caddy"), "run", "--config", str(file), "--adapter", "caddyfile"]


@contextlib.contextmanager
def _running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None, (folder / "output").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_single_requests_pass(proxy: Proxy, protocol: str) -> None:
    with connect(proxy.url(protocol), timeout=20) as client:
        client.wait_ready()
        for _ in range(5):
            assert client["add1"](np.ones((1, 16), np.float32))["OUTPUT0"][0, 0] == 2


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_large_bodies_pass(proxy: Proxy, protocol: str) -> None:
    sent = np.arange(4_000_000, dtype=np.float32).reshape(1, -1)

    with connect(proxy.url(protocol), timeout=40) as client:
        name = client["same"].metadata().outputs[0].name
        np.testing.assert_array_equal(client["same"](sent)[name], sent)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_each_response_of_a_stream_arrives_at_once(proxy: Proxy, protocol: str) -> None:
    inputs = {
        "IN": np.arange(3, dtype=np.int32),
        "DELAY": np.array([0, 0, 3000], np.uint32),
        "WAIT": np.zeros(1, np.uint32),
    }
    with connect(proxy.url(protocol), timeout=20) as client:
        client["repeat"].metadata()
        began = time.monotonic()
        stream = client["repeat"].stream(inputs)
        first = [next(stream)["OUT"][0] for _ in range(2)]
        took = time.monotonic() - began
        stream.close()

    assert first == [0, 1]
    assert took < 3


@pytest.mark.parametrize("name", ["haproxy", "caddy", "envoy"])
def test_a_server_that_is_not_ready_gets_no_requests(
    server: ServerProcess, tmp_path: Path, name: str
) -> None:
    tool(name)
    text = _with_a_second_server(name)
    models.add1(tmp_path / "models")
    put(tmp_path / "models" / "broken" / "1" / "model.onnx", "not a model")
    with (
        serve(tmp_path / "models", tmp_path / "log", ready=False) as unready,
        connect(unready.url) as direct,
        _proxy(name, text, tmp_path, server, unready) as proxy,
    ):
        end = time.monotonic() + 60
        while not _is_ready(direct["add1"]):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert not direct.ready()
        for protocol in ("http", "grpc"):
            with connect(proxy.url(protocol), timeout=20) as client:
                end = time.monotonic() + 60
                while True:
                    before = _successes(direct)
                    for _ in range(20):
                        client["add1"](np.ones((1, 16), np.float32))
                    if _successes(direct) == before:
                        break
                    assert time.monotonic() < end


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_models_that_refuse_requests_cost_other_models_none(tmp_path: Path, name: str) -> None:
    tool(name)
    opened = _troublesome_models(tmp_path / "models")
    options = ("--max-peer-share", "1", "--no-strict-readiness", "--model-control-mode", "explicit")
    options += tuple(f"--load-model={model}" for model in ("add1", "broken", "full"))
    ones, stop = np.ones((1, 16), np.float32), threading.Event()
    with contextlib.ExitStack() as stack:
        logs = [tmp_path / "a.log", tmp_path / "b.log"]
        servers = [stack.enter_context(serve(tmp_path / "models", log, *options)) for log in logs]
        proxy = stack.enter_context(_proxy(name, _with_a_second_server(name), tmp_path, *servers))
        threads = stack.enter_context(ThreadPoolExecutor(16))
        stack.callback(stop.set)
        stack.callback(opened.touch)
        for one in servers:
            threads.submit(_load, one.url, "loading")
        wanted = [f"{protocol} {model}" for protocol in ("http", "grpc") for model in TROUBLESOME]
        refusals: Counter[str] = Counter()
        for protocol in ("http", "grpc"):
            threads.submit(_ask, proxy.url(protocol), "broken", refusals, stop)
            threads.submit(_ask, proxy.url(protocol), "loading", refusals, stop)
            for _ in range(5):  # each server runs one and queues one
                threads.submit(_ask, proxy.url(protocol), "full", refusals, stop)
        failed: list[BacklineError] = []
        answered, end = 0, time.monotonic() + 60
        while answered < 400 or not all(refusals[each] >= 10 for each in wanted):
            assert time.monotonic() < end, refusals
            for protocol in ("http", "grpc"):
                try:
                    with connect(proxy.url(protocol), timeout=20) as client:
                        client["add1"](ones)
                        answered += 1
                except BacklineError as error:
                    failed.append(error)

    assert failed == []


#: Models that refuse requests: one failed to load, one is being loaded, and the queue of one is full.
TROUBLESOME = ("broken", "loading", "full")


def _troublesome_models(repository: Path) -> Path:
    """Writes `add1` and the troublesome models; `loading` loads until the returned file exists."""
    models.add1(repository)
    put(repository / "broken" / "1" / "model.onnx", "not a model")
    opened = repository.parent / "opened"
    wait = "import time\nfrom pathlib import Path\n"
    wait += f"while not Path({str(opened)!r}).exists():\n    time.sleep(0.05)\n"
    put(
        repository / "loading" / "1" / "model.py",
        f"{wait}\n\ndef loading(x: float) -> float:\n    return x\n",
    )
    slow = "import time\n\n\ndef full(x: float) -> float:\n    time.sleep(0.3)\n    return x\n"
    put(repository / "full" / "1" / "model.py", slow)
    queue = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }"
    put(repository / "full" / "config.pbtxt", f"instance_group [{{ count: 1 }}] {queue}")
    return opened


def _load(url: str, model: str) -> None:
    with contextlib.suppress(BacklineError), connect(url, timeout=120) as client:
        client.load(model)


def _ask(url: str, model: str, refusals: Counter[str], stop: threading.Event) -> None:
    """Sends requests to a troublesome model until told to stop, and counts those that were refused."""
    with connect(url, timeout=20) as client:
        while not stop.is_set():
            try:
                client[model](x=np.zeros(1))
            except BacklineError:
                refusals[f"{url.partition(':')[0]} {model}"] += 1
                stop.wait(0.05)


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_requests_go_to_another_server_if_one_cannot_be_reached(tmp_path: Path, name: str) -> None:
    tool(name)
    models.add1(tmp_path / "models")
    options = ("--max-peer-share", "1")
    with (
        serve(tmp_path / "models", tmp_path / "a.log", *options) as one,
        serve(tmp_path / "models", tmp_path / "b.log", *options) as other,
        _proxy(name, _with_a_second_server(name), tmp_path, one, other) as proxy,
        connect(proxy.http, timeout=20) as http,
        connect(proxy.grpc, timeout=20) as grpc,
    ):
        for client in (http, grpc):
            client.wait_ready()
        one.process.kill()
        one.process.wait()

        for _ in range(40):
            http["add1"].metadata()
        for _ in range(40):
            for client in (http, grpc):
                assert client["add1"](np.ones((1, 16), np.float32))["OUTPUT0"][0, 0] == 2


def _is_ready(model: Model) -> bool:
    with contextlib.suppress(ConnectionFailed, NotFound):  # the server starts
        return model.ready()
    return False


def _successes(client: Client) -> int:
    count: int = client["add1"].statistics()[0]["inference_stats"]["success"]["count"]
    return count
