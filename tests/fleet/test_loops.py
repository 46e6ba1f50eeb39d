"""Remote models whose URLs lead back to themselves."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from backline_client.client import Client, connect
from backline_client.client.errors import Internal
from support.repositories import put
from support.server import serve

TENSORS = """max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""
#: Each remote model, with the protocol and the model of the same server that it asks.
REMOTE = {
    "itself over HTTP": ("unix", "itself over HTTP"),
    "itself over gRPC": ("grpc+unix", "itself over gRPC"),
    "ring": ("unix", "second of ring"),
    "second of ring": ("grpc+unix", "ring"),
    "step": ("grpc+unix", "ensemble"),
    "far": ("grpc+unix", "near"),
    "near": ("unix", "echo"),
}
ENSEMBLE = """platform: "ensemble"
ensemble_scheduling { step [ { model_name: "step" model_version: -1
  input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } } ] }
"""
DECOUPLED = "model_transaction_policy { decoupled: true }"
X = np.ones((1, 1), np.float32)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("loops")
    configs = {name: _remote(folder, *asked) for name, asked in REMOTE.items()}
    configs["echo"] = f'backend: "identity" {TENSORS}'
    configs["ensemble"] = ENSEMBLE + TENSORS
    configs["stream"] = _remote(folder, "grpc+unix", "stream") + DECOUPLED
    for name, config in configs.items():
        put(folder / "models" / name / "config.pbtxt", config)
        put(folder / "models" / name / "1" / "empty", "")
    with (
        serve(folder / "models", folder / "log", "--unix-socket", str(folder / "socket")) as server,
        connect(server.grpc_url, timeout=20) as connected,
    ):
        yield connected


def _remote(folder: Path, protocol: str, model: str) -> str:
    values = {"urls": f"{protocol}:{folder / 'socket'}", "model": model, "max_in_flight": "4"}
    parameters = [
        f'parameters {{ key: "{key}" value {{ string_value: "{text}" }} }}' for key, text in values.items()
    ]
    return "\n".join(['backend: "remote"', *parameters, TENSORS])


@pytest.mark.parametrize("model", ["itself over HTTP", "itself over gRPC", "ring", "ensemble"])
def test_requests_that_come_back_are_refused_before_they_take_all_instances(
    client: Client, model: str
) -> None:
    def ask(_: int) -> str:
        with pytest.raises(Internal) as failure:
            client[model](X)
        return str(failure.value)

    with ThreadPoolExecutor(16) as callers:
        messages = set(callers.map(ask, range(32)))

    assert all("from there its requests come back to this server" in message for message in messages)


def test_a_stream_that_comes_back_is_refused(client: Client) -> None:
    with pytest.raises(Internal, match="from there its requests come back to this server"):
        list(client["stream"].stream(X))


def test_a_request_may_pass_a_server_several_times(client: Client) -> None:
    assert client["far"](X)["y"] == X
