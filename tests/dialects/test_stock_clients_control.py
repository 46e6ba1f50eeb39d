"""Triton's own clients load and unload models, over HTTP and gRPC, synchronous and asyncio."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import models
from support.repositories import put
from support.server import ServerProcess, serve

pytest.importorskip("tritonclient")
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

BOTH = """
platform: "ensemble"
max_batch_size: 8
input { name: "IN" data_type: TYPE_FP32 dims: [ 16 ] }
output { name: "OUT" data_type: TYPE_FP32 dims: [ 16 ] }
ensemble_scheduling { step {
  model_name: "add1" model_version: -1
  input_map { key: "INPUT0" value: "IN" } output_map { key: "OUTPUT0" value: "OUT" } } }
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("controlled")


@pytest.fixture(scope="module")
def controlled(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    with serve(
        repository, folder / "log", "--model-control-mode", "explicit", "--state-dir", str(folder / "state")
    ) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def flavour(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def client(flavour: str, controlled: ServerProcess) -> Iterator[Any]:
    if flavour == "http":
        connected: Any = tritonclient.http.InferenceServerClient(f"127.0.0.1:{controlled.http_port}")
    else:
        connected = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{controlled.grpc_port}")
    yield connected
    connected.close()


@pytest.fixture
def make_model(repository: Path, request: pytest.FixtureRequest) -> Callable[[int], str]:
    """Creates a model with versions 1 to n, each adding its number; returns its name."""

    def make(versions: int) -> str:
        name = f"model_{abs(hash(request.node.nodeid))}"
        for version in range(1, versions + 1):
            models.add1(repository, name, str(version), constant=float(version))
        return name

    return make


def index(client: Any, **options: Any) -> dict[tuple[str, str], tuple[str, str]]:
    """State and reason by name and version."""
    found = client.get_model_repository_index(**options)
    if isinstance(found, list):
        return {
            (entry["name"], entry.get("version", "")): (entry.get("state", ""), entry.get("reason", ""))
            for entry in found
        }
    return {(entry.name, entry.version): (entry.state, entry.reason) for entry in found.models}


def added(client: Any, flavour: str, name: str, version: str = "") -> tuple[float, str]:
    """The result of adding to 1, and the version that computed it."""
    module = tritonclient.http if flavour == "http" else tritonclient.grpc
    value = module.InferInput("INPUT0", [1, 16], "FP32")
    value.set_data_from_numpy(np.ones((1, 16), np.float32))
    result = client.infer(name, [value], model_version=version)
    response = result.get_response()
    answered = response["model_version"] if flavour == "http" else response.model_version
    return float(result.as_numpy("OUTPUT0")[0, 0]) - 1, answered


def test_a_model_is_loaded_listed_and_unloaded(client: Any, make_model: Callable[[int], str]) -> None:
    name = make_model(2)
    client.load_model(name)
    assert client.is_model_ready(name)
    assert index(client)[name, "2"] == ("READY", "")
    client.unload_model(name)
    assert not client.is_model_ready(name)
    assert index(client)[name, "2"][0] in (
        "UNLOADING",
        "UNAVAILABLE",
    )  # requests in flight finish after the response


def test_index_of_ready_models(make_model: Callable[[int], str], controlled: ServerProcess) -> None:
    name = make_model(1)
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{controlled.grpc_port}") as client:
        client.load_model(name)
        client.unload_model(name)
        stub, request = (
            client._client_stub,
            service_pb2.RepositoryIndexRequest(ready=True),
        )  # the client has no argument for it
        over_grpc = {entry.name for entry in stub.RepositoryIndex(request).models}
    asked = urllib.request.Request(f"{controlled.url}/v2/repository/index", b'{"ready": true}', method="POST")
    with urllib.request.urlopen(asked, timeout=10) as answer:
        over_http = {entry["name"] for entry in json.load(answer)}
    assert name not in over_http | over_grpc


def test_load_applies_changed_files(
    flavour: str, client: Any, make_model: Callable[[int], str], repository: Path
) -> None:
    name = make_model(1)
    client.load_model(name)
    assert added(client, flavour, name) == (1, "1")
    models.add1(repository, name, "2", constant=7.0)
    client.load_model(name)
    assert added(client, flavour, name) == (7, "2")


def test_a_configuration_overrides_the_repositorys(
    client: Any, flavour: str, make_model: Callable[[int], str]
) -> None:
    name = make_model(2)
    config = {"max_batch_size": 3, "version_policy": {"specific": {"versions": [1]}}}
    client.load_model(name, config=json.dumps({"name": name, "backend": "onnxruntime", **config}))
    assert added(client, flavour, name) == (1, "1")
    found = (
        client.get_model_config(name)
        if flavour == "http"
        else client.get_model_config(name, as_json=True)["config"]
    )
    assert found["max_batch_size"] == 3
    client.load_model(name)  # keeps the configuration, as in Triton
    assert added(client, flavour, name) == (1, "1")
    client.unload_model(name)
    client.load_model(name)
    assert added(client, flavour, name) == (2, "2")


def test_files_override_the_repositorys(
    client: Any, flavour: str, make_model: Callable[[int], str], tmp_path: Path
) -> None:
    name = make_model(1)
    content = models.add1(tmp_path, "elsewhere", constant=40.0).read_bytes()
    client.load_model(name, config='{"backend": "onnxruntime"}', files={"file:5/model.onnx": content})
    assert added(client, flavour, name) == (40, "5")
    client.load_model(name)
    assert added(client, flavour, name) == (1, "1")


def test_dependents_may_be_unloaded_too(client: Any, make_model: Callable[[int], str]) -> None:
    name = make_model(1)
    client.load_model(name)
    client.unload_model(name, unload_dependents=True)
    assert not client.is_model_ready(name)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"files": {"file:1/model.onnx": b"x"}},
            "Load parameter 'config' must be specified for model file override",
        ),
        ({"config": "{}", "files": {"1/model.onnx": b"x"}}, "unrecognized load parameter '1/model.onnx'."),
        (
            {"config": "{}", "files": {"file:../model.onnx": b"x"}},
            "load parameter 'file:../model.onnx' does not name a file inside",
        ),
        ({"config": "{", "files": {"file:1/model.onnx": b"x"}}, "is not JSON"),
        (
            {"config": '{"backend": "onnxruntime"}', "files": {"file:1/model.onnx": b"x"}},
            "load failed for model ",
        ),
    ],
)
def test_error_of_a_malformed_load(
    client: Any, make_model: Callable[[int], str], options: dict[str, Any], text: str
) -> None:
    name = make_model(1)
    client.load_model(name)
    with pytest.raises(InferenceServerException) as raised:
        client.load_model(name, **options)
    assert text in raised.value.message()
    assert client.is_model_ready(name)


def test_unknown_models(client: Any, flavour: str) -> None:
    with pytest.raises(
        InferenceServerException, match="failed to load 'nope', failed to poll from model repository"
    ):
        client.load_model("nope")
    client.unload_model("nope")  # succeeds, as in Triton


def test_the_reason_of_a_failed_load_is_in_the_index(
    client: Any, make_model: Callable[[int], str], repository: Path
) -> None:
    name = make_model(1)
    client.load_model(name)
    broken = repository / name / "2" / "model.onnx"
    broken.parent.mkdir()
    broken.write_bytes(b"no model")
    with pytest.raises(
        InferenceServerException, match=f"load failed for model '{name}': version 2 is at UNAVAILABLE state: "
    ):
        client.load_model(name)
    found = index(client)
    assert found[name, "1"] == ("READY", "")
    assert found[name, "2"][0] == "UNAVAILABLE"
    assert str(broken.relative_to(repository.parent)) in found[name, "2"][1]


@pytest.mark.parametrize("flavour", ["http", "grpc"])
async def test_the_asyncio_clients_load_and_unload(
    flavour: str, controlled: ServerProcess, make_model: Callable[[int], str]
) -> None:
    name = make_model(1)
    module, port = (
        (tritonclient.http.aio, controlled.http_port)
        if flavour == "http"
        else (tritonclient.grpc.aio, controlled.grpc_port)
    )
    client: Any = module.InferenceServerClient(f"127.0.0.1:{port}")
    try:
        await client.load_model(name, config='{"backend": "onnxruntime", "max_batch_size": 2}')
        assert await client.is_model_ready(name)
        await client.unload_model(name)
        assert not await client.is_model_ready(name)
    finally:
        await client.close()


def test_a_model_that_was_never_loaded_tells_its_inputs_and_is_loaded_for_it(tmp_path: Path) -> None:
    for name in ("by_metadata", "by_config", "by_raw", "by_grpc_metadata", "by_grpc_config"):
        models.add1(tmp_path / "models", name)
        (tmp_path / "models" / name / "model.toml").write_text('load = "on_demand"\n')
    with serve(tmp_path / "models", tmp_path / "log", "--state-dir", str(tmp_path / "state")) as running:
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{running.http_port}") as client:
            assert {state for state, _ in index(client).values()} == {"ON_DEMAND"}
            assert client.get_model_metadata("by_metadata")["inputs"] == [
                {"name": "INPUT0", "datatype": "FP32", "shape": [-1, 16]}
            ]
            assert [entry["name"] for entry in client.get_model_config("by_config")["input"]] == ["INPUT0"]
            asked = urllib.request.Request(
                f"{running.url}/v2/models/by_raw/infer",
                bytes(64),
                {"Inference-Header-Content-Length": "0"},
                method="POST",
            )
            with urllib.request.urlopen(asked, timeout=10) as answer:
                assert answer.status == 200
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}") as client:
            assert client.get_model_metadata("by_grpc_metadata").inputs[0].name == "INPUT0"
            assert client.get_model_config("by_grpc_config").config.input[0].name == "INPUT0"
            assert {state for state, _ in index(client).values()} == {"READY"}


def test_overrides_of_a_load_count_towards_the_request_limit(tmp_path: Path) -> None:
    models.add1(tmp_path / "models", "add1")
    options = (
        "--model-control-mode",
        "explicit",
        "--state-dir",
        str(tmp_path / "state"),
        "--http-max-input-size",
        "100000",
    )
    too_large = {"config": '{"backend": "onnxruntime"}', "files": {"file:1/model.onnx": bytes(200_000)}}
    with serve(tmp_path / "models", tmp_path / "log", *options) as running:
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{running.http_port}") as client:
            with pytest.raises(InferenceServerException, match="exceeds the maximum of 100000 bytes"):
                client.load_model("add1", **too_large)
            client.load_model("add1")
            assert client.is_model_ready("add1")
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}") as client:
            with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
                client.load_model("add1", **too_large)
            assert client.is_model_ready("add1")


def test_the_configuration_that_a_server_tells_may_be_given_back(tmp_path: Path) -> None:
    """As in tools that read a configuration, change it and reload the model."""
    repository = tmp_path / "models"
    models.add1(repository)
    put(repository / "python" / "1" / "model.py", "def half(x: float) -> float:\n    return x / 2\n")
    put(repository / "both" / "config.pbtxt", BOTH)
    with serve(
        repository, tmp_path / "log", "--model-control-mode", "explicit", "--load-model", "*"
    ) as server:
        client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.http_port}")
        for name in ("add1", "python", "both"):
            config = client.get_model_config(name)
            client.load_model(name, config=json.dumps(config | {"metric_tags": {"again": "yes"}}))
            assert client.is_model_ready(name)
            told = client.get_model_config(name)
            assert told == config | {"metric_tags": {"again": "yes"}}
        client.close()
