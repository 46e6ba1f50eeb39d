"""One server for all tests of calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton

import backline
from backline_client.client import Client
from support.server import ServerProcess, serve
from workers.process.calls.models import put_models


@pytest.fixture(scope="package")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    put_models(folder)
    return folder


@pytest.fixture(scope="package")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serve(
        repository, log, "--model-control-mode", "explicit", "--load-model", "*", "--trust-remote-code"
    ) as running:
        yield running


@pytest.fixture(scope="package")
def client(server: ServerProcess) -> Iterator[Client]:
    with backline.connect(server.url) as client:
        yield client


@pytest.fixture
def stock(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        yield client
