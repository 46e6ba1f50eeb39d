"""A server of Seldon Core 2, in the place of Triton: its command line, and what its agent asks of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from support import models
from support.server import free_ports

#: The arguments of the container `triton` in Seldon's ServerConfig of that name.
ARGUMENTS = (
    "--model-repository=$(SERVER_MODELS_DIR)",
    "--http-port=$(SERVER_HTTP_PORT)",
    "--grpc-port=$(SERVER_GRPC_PORT)",
    "--log-verbose=1",
    "--model-control-mode=explicit",
)


@pytest.fixture(scope="module")
def agents_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that Seldon's agent and the server share: empty, until the agent puts a model there."""
    folder = tmp_path_factory.mktemp("agent") / "models"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def ports(agents_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """The ports for HTTP and gRPC of a server that was started as Kubernetes starts Seldon's."""
    http, grpc, metrics = free_ports(3)
    variables = {
        "SERVER_MODELS_DIR": str(agents_folder),
        "SERVER_HTTP_PORT": str(http),
        "SERVER_GRPC_PORT": str(grpc),
    }
    arguments = list(ARGUMENTS)
    for name, value in variables.items():
        arguments = [argument.replace(f"$({name})", value) for argument in arguments]
    # Only because the ports of other tests are in use at the same time.
    arguments += [f"--metrics-port={metrics}"]
    log = tmp_path_factory.mktemp("seldon") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "backline", "tritonserver", *arguments],
            stdout=output, stderr=output, env={**os.environ, **variables, "BACKLINE_ISOLATE": "never"},
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while not _responds(f"http://127.0.0.1:{http}/v2/health/ready"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield http, grpc
    finally:
        process.terminate()
        process.wait(30)


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def test_the_agent_loads_runs_and_unloads_a_model(ports: tuple[int, int], agents_folder: Path) -> None:
    _, grpc = ports
    with triton.InferenceServerClient(f"127.0.0.1:{grpc}") as agent:
        # The server is ready without any model.
        assert agent.is_server_live()
        assert agent.get_model_repository_index().models == []

        # Seldon appends the generation of its resource to the name of a model.
        models.add1(agents_folder, name="add1_1")
        agent.load_model("add1_1")
        given = triton.InferInput("INPUT0", [1, 16], "FP32")
        given.set_data_from_numpy(np.ones((1, 16), np.float32))
        answer = agent.infer("add1_1", [given]).as_numpy("OUTPUT0")
        states = {model.name: model.state for model in agent.get_model_repository_index().models}
        agent.unload_model("add1_1")
        unloaded = agent.is_model_ready("add1_1")

    assert answer is not None
    assert answer[0, 0] == 2
    assert states == {"add1_1": "READY"}
    assert not unloaded


def test_the_proxy_learns_that_a_model_must_be_loaded(ports: tuple[int, int]) -> None:
    """On 404, 400, NOT_FOUND or UNAVAILABLE, Seldon's proxy loads a model and repeats the request."""
    http, grpc = ports
    url = f"http://127.0.0.1:{http}/v2/models/gone_1/infer"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, b'{"inputs": []}', timeout=10)
    with triton.InferenceServerClient(f"127.0.0.1:{grpc}") as proxy:
        given = triton.InferInput("INPUT0", [1, 16], "FP32")
        given.set_data_from_numpy(np.ones((1, 16), np.float32))
        with pytest.raises(triton.InferenceServerException) as failed:
            proxy.infer("gone_1", [given])

    assert refused.value.code in (400, 404)
    assert failed.value.status() in ("StatusCode.NOT_FOUND", "StatusCode.UNAVAILABLE")
