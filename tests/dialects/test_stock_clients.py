"""Stock clients over real sockets: tritonclient in all its forms, grpcio's health and reflection clients."""

from __future__ import annotations

import queue
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from onnx import TensorProto
from tritonclient.utils import InferenceServerException

from support import models
from support.server import ServerProcess, serve

ROW = np.arange(16, dtype=np.float32).reshape(1, 16)
ARRAYS = {
    "BOOL": np.array([[True, False]]),
    "INT8": np.array([[-128, 127]], np.int8),
    "UINT8": np.array([[0, 255]], np.uint8),
    "INT16": np.array([[-(2**15), 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "FP16": np.array([[0.5, -2.0]], np.float16),
    "FP32": np.array([[0.1, -3e38]], np.float32),
    "FP64": np.array([[0.1, 1e300]], np.float64),
    "BYTES": np.array([[b"", "\u00e4\u00df\u6f22".encode()]], np.object_),
}
_ONNX_TYPES = {"FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE", "BYTES": "STRING"}


@pytest.fixture(scope="module")
def stock_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with add1 and an identity model for each tested datatype."""
    repository = tmp_path_factory.mktemp("repository")
    models.add1(repository)
    for name in ARRAYS:
        models.identity_of(repository, f"ident_{name}", getattr(TensorProto, _ONNX_TYPES.get(name, name)))
    with serve(repository, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


@pytest.fixture
def http(stock_server: ServerProcess) -> Iterator[triton_http.InferenceServerClient]:
    with triton_http.InferenceServerClient(f"127.0.0.1:{stock_server.http_port}", concurrency=4) as client:
        yield client


@pytest.fixture
def rpc(stock_server: ServerProcess) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{stock_server.grpc_port}") as client:
        yield client


@pytest.fixture(params=["http", "rpc"])
def client(request: pytest.FixtureRequest):
    """The synchronous client of either protocol, and its module."""
    return request.getfixturevalue(request.param), triton_http if request.param == "http" else triton_grpc


def row_input(module, array: np.ndarray = ROW, **options: object):
    given = module.InferInput("INPUT0", list(array.shape), "FP32")
    given.set_data_from_numpy(array, **options)
    return given


def test_questions(client) -> None:
    asked, module = client
    options = {} if module is triton_http else {"as_json": True}
    assert asked.is_server_live()
    assert asked.is_server_ready()
    assert asked.is_model_ready("add1")
    assert asked.is_model_ready("add1", "1")
    assert asked.get_server_metadata(**options)["name"] == "backline"
    assert asked.get_model_metadata("add1", **options)["inputs"][0]["name"] == "INPUT0"
    config = asked.get_model_config("add1", **options)
    assert config.get("config", config)["backend"] == "onnxruntime"
    index = asked.get_model_repository_index(**options)
    assert "add1" in [entry["name"] for entry in (index["models"] if isinstance(index, dict) else index)]


def test_statistics_count_inferences(client) -> None:
    asked, module = client
    options = {} if module is triton_http else {"as_json": True}

    def count() -> int:
        return int(
            asked.get_inference_statistics("add1", **options)["model_stats"][0].get("inference_count", 0)
        )

    before = count()
    asked.infer("add1", [row_input(module, np.zeros((3, 16), np.float32))])
    assert count() == before + 3


@pytest.mark.parametrize("name", ARRAYS)
def test_every_datatype(client, name: str) -> None:
    asked, module = client
    array = ARRAYS[name]
    given = module.InferInput("INPUT0", list(array.shape), name)
    given.set_data_from_numpy(array)
    result = asked.infer(f"ident_{name}", [given], request_id="seven")
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


@pytest.mark.parametrize("name", [name for name in ARRAYS if name != "FP16"])
def test_every_datatype_as_json(http: triton_http.InferenceServerClient, name: str) -> None:
    array = ARRAYS[name]
    given = triton_http.InferInput("INPUT0", list(array.shape), name)
    given.set_data_from_numpy(array, binary_data=False)
    output = triton_http.InferRequestedOutput("OUTPUT0", binary_data=False)
    got = http.infer(f"ident_{name}", [given], outputs=[output]).as_numpy("OUTPUT0")
    expected = np.array(
        [[element.decode() if isinstance(element, bytes) else element for element in array[0]]], got.dtype
    )
    np.testing.assert_array_equal(got, expected)


def test_classification(client) -> None:
    asked, module = client
    result = asked.infer(
        "add1", [row_input(module)], outputs=[module.InferRequestedOutput("OUTPUT0", class_count=2)]
    )
    assert result.as_numpy("OUTPUT0").tolist() == [[b"16.000000:15", b"15.000000:14"]]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client, algorithm: str) -> None:
    asked, module = client
    array = np.zeros((64, 16), np.float32)
    if module is triton_http:
        options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    else:
        options = {"compression_algorithm": algorithm}
    result = asked.infer("add1", [row_input(module, array)], **options)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array + 1)


@pytest.mark.parametrize(
    ("model", "version", "array", "text"),
    [
        ("nope", "", ROW, "Request for unknown model: 'nope' is not found"),
        ("add1", "7", ROW, "Request for unknown model: 'add1' version 7 is not found"),
        ("add1", "", np.zeros((1, 17), np.float32), "unexpected shape for input 'INPUT0' for model 'add1'"),
    ],
)
def test_errors_have_tritons_words(client, model: str, version: str, array: np.ndarray, text: str) -> None:
    asked, module = client
    with pytest.raises(InferenceServerException, match=text.replace("(", ".")):
        asked.infer(model, [row_input(module, array)], model_version=version)
    np.testing.assert_array_equal(asked.infer("add1", [row_input(module)]).as_numpy("OUTPUT0"), ROW + 1)


def test_asynchronous_requests_of_the_synchronous_clients(
    http: triton_http.InferenceServerClient, rpc: triton_grpc.InferenceServerClient
) -> None:
    pending = [http.async_infer("add1", [row_input(triton_http, ROW + number)]) for number in range(20)]
    for number, one in enumerate(pending):
        np.testing.assert_array_equal(one.get_result().as_numpy("OUTPUT0"), ROW + number + 1)
    answers: queue.Queue = queue.Queue()
    rpc.async_infer(
        "add1", [row_input(triton_grpc)], callback=lambda result, error: answers.put((result, error))
    )
    result, error = answers.get(timeout=10)
    assert error is None
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ROW + 1)


def test_stream(rpc: triton_grpc.InferenceServerClient) -> None:
    answers: queue.Queue = queue.Queue()
    rpc.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(200):
        model = "nope" if number == 100 else "add1"
        given = row_input(triton_grpc, ROW + number)
        rpc.async_stream_infer(
            model, [given], request_id=str(number), enable_empty_final_response=number % 2 == 0
        )
    for number in range(200):
        result, error = answers.get(timeout=10)
        if number == 100:
            assert "Request for unknown model: 'nope' is not found" in str(error)
        else:
            assert error is None
            assert result.get_response().id == str(number)
            np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ROW + number + 1)
    rpc.stop_stream()
    assert answers.empty()


async def test_asyncio_http(stock_server: ServerProcess) -> None:
    async with triton_http_aio.InferenceServerClient(f"127.0.0.1:{stock_server.http_port}") as client:
        assert await client.is_server_ready()
        result = await client.infer("add1", [row_input(triton_http_aio)])
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ROW + 1)


async def test_asyncio_grpc_and_its_stream(stock_server: ServerProcess) -> None:
    async def requests():
        for number in range(5):
            yield {"model_name": "add1", "inputs": [row_input(triton_grpc_aio, ROW + number)]}

    async with triton_grpc_aio.InferenceServerClient(f"127.0.0.1:{stock_server.grpc_port}") as client:
        assert await client.is_model_ready("add1")
        result = await client.infer("add1", [row_input(triton_grpc_aio)])
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ROW + 1)
        number = 0
        async for result, error in client.stream_infer(requests()):
            assert error is None
            np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ROW + number + 1)
            number += 1
        assert number == 5


def test_grpc_health(stock_server: ServerProcess) -> None:
    with grpc.insecure_channel(
        f"127.0.0.1:{stock_server.http_port}"
    ) as channel:  # any port answers any protocol
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="nope"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_grpc_reflection(stock_server: ServerProcess) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{stock_server.grpc_port}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        file = database.FindFileContainingSymbol("inference.GRPCInferenceService")
        assert "ModelInfer" in [method.name for method in file.service[0].method]


@pytest.mark.parametrize("port", ["http_port", "grpc_port", "metrics_port"])
def test_metrics_on_every_port(stock_server: ServerProcess, port: str) -> None:
    with urllib.request.urlopen(
        f"http://127.0.0.1:{getattr(stock_server, port)}/metrics", timeout=10
    ) as answer:
        assert b"nv_inference" in answer.read()


def test_error_shape_of_an_unknown_route(stock_server: ServerProcess) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{stock_server.url}/v2/modles", timeout=10)
    assert caught.value.code == 404
    assert caught.value.read() == b'{"error":"Not Found: GET /v2/modles (did you mean /v2/models?)"}'


def test_log_has_no_traceback(stock_server: ServerProcess) -> None:
    assert "Traceback" not in Path(stock_server.log).read_text()


async def test_the_asyncio_client_reads_large_answers_that_are_no_inference(
    stock_server: ServerProcess,
) -> None:
    """It asks for gzip, as aiohttp does, but inflates the results of inference only."""
    async with triton_http_aio.InferenceServerClient(f"127.0.0.1:{stock_server.http_port}") as client:
        assert len(str(await client.get_inference_statistics())) > 2048
        assert (await client.get_model_config("add1"))["name"] == "add1"
