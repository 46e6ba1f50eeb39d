"""Triton's four Python clients and perf_analyzer on the drop-in command, as they are documented."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import queue
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.grpc.auth import BasicAuth as GrpcBasicAuth
from tritonclient.http.auth import BasicAuth as HttpBasicAuth
from tritonclient.utils import (
    InferenceServerException,
    np_to_triton_dtype,
    serialize_byte_tensor,
    shared_memory,
)

from scenarios.servers import Setup, backline
from scenarios.session import Server
from support.perf_analyzer import run_perf_analyzer, throughput

MODELS = ("gain", "meter", "genre", "text", "words", "types")
SETUP = Setup(
    ("--model-control-mode=explicit", *(f"--load-model={name}" for name in MODELS)),
    {},
    ("studio", "probes"),
    drop_in=True,
)
AUDIO = np.array([[1.0, -2.0]], np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with backline(tmp_path_factory.mktemp("clients"), SETUP) as server:
        yield server


class Client:
    """One of the clients; the calls of an asyncio client run until they are done."""

    def __init__(self, kind: str, server: Server, **options: Any) -> None:
        modules = {
            "http": tritonclient.http,
            "grpc": tritonclient.grpc,
            "http.aio": tritonclient.http.aio,
            "grpc.aio": tritonclient.grpc.aio,
        }
        self.kind = kind
        self.over_http = kind.startswith("http")
        #: Has the classes of inputs and outputs.
        self.module: ModuleType = tritonclient.http if self.over_http else tritonclient.grpc
        self._loop = asyncio.new_event_loop()
        address = server.http if self.over_http else server.grpc

        async def connect() -> Any:
            return modules[kind].InferenceServerClient(address, **options)

        self.stock = self._loop.run_until_complete(connect())

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.stock, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            return self._loop.run_until_complete(result) if inspect.isawaitable(result) else result

        return call

    def read(self, name: str, *arguments: Any) -> Any:
        """A reply as plain data."""
        more = {} if self.over_http else {"as_json": True}
        return getattr(self, name)(*arguments, **more)

    def input(self, name: str, array: np.ndarray, **options: Any) -> Any:
        given = self.module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        given.set_data_from_numpy(array, **options)
        return given

    def output(self, name: str, **options: Any) -> Any:
        return self.module.InferRequestedOutput(name, **options)

    def end(self) -> None:
        self.close()
        self._loop.close()


KINDS = ("http", "grpc", "http.aio", "grpc.aio")


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Client]:
    client = Client(request.param, server)
    yield client
    client.end()


def test_health_metadata_configuration_and_statistics(client: Client) -> None:
    assert (client.is_server_live(), client.is_server_ready()) == (True, True)
    assert (client.is_model_ready("gain"), client.is_model_ready("gain", "1")) == (True, True)
    assert client.read("get_server_metadata")["name"] == "triton"
    metadata = client.read("get_model_metadata", "gain")
    assert [given["name"] for given in metadata["inputs"]] == ["AUDIO", "GAIN"]
    config = client.read("get_model_config", "gain")
    config = config if client.over_http else config["config"]
    assert (config["name"], config["max_batch_size"], config["backend"]) == ("gain", 8, "python")
    (counted,) = client.read("get_inference_statistics", "gain")["model_stats"]
    assert counted["name"] == "gain"
    index = client.read("get_model_repository_index")
    models = index if client.over_http else index["models"]
    assert {"name": "gain", "version": "1", "state": "READY"} in models


def test_inference_with_an_id_chosen_outputs_and_header_fields(client: Client) -> None:
    result = client.infer(
        "gain",
        [client.input("AUDIO", AUDIO), client.input("GAIN", np.array([[3.0]], np.float32))],
        outputs=[client.output("LOUDER")],
        request_id="mine",
        headers={"x-example": "1"},
    )

    assert result.as_numpy("LOUDER").tolist() == [[3, -6]]
    response = result.get_response() if client.over_http else result.get_response(as_json=True)
    assert response["id"] == "mine"
    assert result.get_output("LOUDER") is not None
    assert result.as_numpy("NOPE") is None


def test_inputs_and_outputs_may_be_used_again(client: Client) -> None:
    given, wanted = client.input("AUDIO", AUDIO), client.output("LOUDER")
    for factor in (1, 2, 3):
        given.set_data_from_numpy(AUDIO * factor)
        result = client.infer("gain", [given], outputs=[wanted])
        assert (result.as_numpy("LOUDER") == 2 * factor * AUDIO).all()


def test_strings(client: Client) -> None:
    for text in (b"some words", "grün".encode()):
        result = client.infer("text", [client.input("TEXT", np.array([text], np.object_))])
        assert result.as_numpy("CAPITALS")[0] == text.upper()


def test_classes(client: Client) -> None:
    given = client.input("TEMPO", np.array([[118]], np.float32))
    result = client.infer("genre", [given], outputs=[client.output("SCORES", class_count=2)])

    best = [one.decode().split(":") for one in result.as_numpy("SCORES")[0]]
    assert [(number, label) for _, number, label in best] == [("2", "house"), ("1", "waltz")]


def test_a_sequence_of_requests(client: Client) -> None:
    sequence = 1000 + KINDS.index(client.kind)
    totals = []
    for place, level in enumerate((3, 4, 5)):
        given = client.input("LEVEL", np.array([[level]], np.int32))
        flags = {"sequence_start": place == 0, "sequence_end": place == 2}
        result = client.infer("meter", [given], sequence_id=sequence, **flags)
        totals.append(int(result.as_numpy("TOTAL")[0, 0]))

    assert totals == [3, 7, 12]


def test_priority_timeout_and_parameters(client: Client) -> None:
    result = client.infer(
        "types",
        [client.input("INT32", np.array([1, 2], np.int32))],
        timeout=10_000_000,
        parameters={"text": "a", "number": 5, "flag": True},
    )

    assert json.loads(result.as_numpy("SEEN")[0]) == {"text": "a", "number": 5, "flag": True}


@pytest.mark.parametrize("strings", [False, True], ids=["numbers", "strings"])
def test_tensors_in_shared_memory(client: Client, strings: bool, tmp_path: Path) -> None:
    array = np.array([b"one", b"three"], np.object_) if strings else np.array([1.5, 2.5], np.float32)
    content = serialize_byte_tensor(array) if strings else array
    name, datatype = ("STRING", "BYTES") if strings else ("FP32", "FP32")
    both = tmp_path.name
    size = 64
    region = shared_memory.create_shared_memory_region(both, f"/{both}", 2 * size)
    try:
        shared_memory.set_shared_memory_region(region, [content])
        client.register_system_shared_memory(both, f"/{both}", 2 * size)
        status = client.read("get_system_shared_memory_status")
        assert both in (str(status) if client.over_http else status["regions"])
        given = client.module.InferInput(name, [2], datatype)
        given.set_shared_memory(both, len(content.item()) if strings else content.nbytes)
        wanted = client.output(f"OF_{name}")
        wanted.set_shared_memory(both, size, offset=size)
        result = client.infer("types", [given], outputs=[wanted])
        output = result.get_output(f"OF_{name}")
        shape = output["shape"] if client.over_http else list(output.shape)
        seen = shared_memory.get_contents_as_numpy(region, array.dtype, shape, offset=size)
        assert seen.tolist() == array.tolist()
        client.unregister_system_shared_memory(both)
    finally:
        shared_memory.destroy_shared_memory_region(region)


def test_models_are_loaded_and_unloaded(client: Client) -> None:
    given = np.array([[7]], np.int32)
    client.load_model("spare")
    assert client.is_model_ready("spare")
    assert client.infer("spare", [client.input("IN", given)]).as_numpy("OUT").tolist() == [[7]]
    config = {"backend": "python", "max_batch_size": 2}
    for direction, name in (("input", "IN"), ("output", "OUT")):
        config[direction] = [{"name": name, "data_type": "TYPE_INT32", "dims": [1]}]
    client.load_model("spare", config=json.dumps(config))
    told = client.read("get_model_config", "spare")
    assert (told if client.over_http else told["config"])["max_batch_size"] == 2
    client.unload_model("spare")
    with pytest.raises(InferenceServerException):
        client.infer("spare", [client.input("IN", given)])


def test_settings_of_the_log_and_of_traces(client: Client) -> None:
    def log() -> Any:
        told = client.read("get_log_settings")
        return told if client.over_http else told["settings"]

    def traces(model: str = "") -> Any:
        told = client.read("get_trace_settings", model)
        return told if client.over_http else told["settings"]

    before = log()
    client.update_log_settings({"log_info": False})
    assert log()["log_info"] in (False, {"bool_param": False})
    client.update_log_settings({"log_info": True})
    assert log() == before
    client.update_trace_settings("gain", {"trace_rate": "7"})
    assert traces("gain")["trace_rate"] in ("7", {"value": ["7"]})
    client.update_trace_settings("gain", {"trace_rate": None})
    assert traces("gain") == traces()


@pytest.mark.parametrize(
    ("model", "array", "text"),
    [
        ("nobody", AUDIO, "Request for unknown model: 'nobody' is not found"),
        ("gain", AUDIO.astype(np.int32), "data-type is 'INT32', but model 'gain' expects 'FP32'"),
    ],
)
def test_errors_are_exceptions(client: Client, model: str, array: np.ndarray, text: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [client.input("AUDIO", array)])

    assert text in caught.value.message()
    assert (
        caught.value.status()
        == {
            ("nobody", True): "404",
            ("gain", True): "400",
            ("nobody", False): "StatusCode.NOT_FOUND",
            ("gain", False): "StatusCode.INVALID_ARGUMENT",
        }[model, client.over_http]
    )


def test_a_plugin_adds_credentials(client: Client) -> None:
    client.register_plugin((HttpBasicAuth if client.over_http else GrpcBasicAuth)("user", "secret"))
    assert client.is_server_live()
    result = client.infer("gain", [client.input("AUDIO", AUDIO)])
    assert result.as_numpy("LOUDER").tolist() == [[2, -4]]
    client.unregister_plugin()


@pytest.mark.parametrize("kind", ["http", "http.aio"])
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_http_compresses_both_ways_and_may_send_json(server: Server, kind: str, algorithm: str) -> None:
    client = Client(kind, server)
    audio = np.arange(2000, dtype=np.float32).reshape(1, 2000)
    result = client.infer(
        "gain",
        [client.input("AUDIO", audio, binary_data=False)],
        outputs=[client.output("LOUDER", binary_data=False)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert (result.as_numpy("LOUDER") == 2 * audio).all()
    client.end()


def test_http_requests_run_at_the_same_time(server: Server) -> None:
    client = Client("http", server, concurrency=4)
    asked = [client.async_infer("gain", [client.input("AUDIO", AUDIO * factor)]) for factor in range(8)]
    for factor, one in enumerate(asked):
        assert (one.get_result(block=True, timeout=30).as_numpy("LOUDER") == 2 * factor * AUDIO).all()
    client.end()


def test_http_bodies_may_be_made_and_read_apart_from_the_client(server: Server) -> None:
    client = Client("http", server)
    body, length = tritonclient.http.InferenceServerClient.generate_request_body(
        [client.input("AUDIO", AUDIO)], outputs=[client.output("LOUDER")]
    )
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    sent = urllib.request.Request(f"http://{server.http}/v2/models/gain/infer", body, headers)
    with urllib.request.urlopen(sent, timeout=30) as answer:
        header = answer.headers["Inference-Header-Content-Length"]
        result = tritonclient.http.InferenceServerClient.parse_response_body(
            answer.read(), header_length=int(header)
        )
    assert result.as_numpy("LOUDER").tolist() == [[2, -4]]
    client.end()


@pytest.mark.parametrize("kind", ["grpc", "grpc.aio"])
def test_grpc_takes_options_of_the_channel_and_a_deadline(server: Server, kind: str) -> None:
    keepalive = tritonclient.grpc.KeepAliveOptions(
        keepalive_time_ms=2**31 - 1, keepalive_timeout_ms=20000, keepalive_permit_without_calls=True
    )
    arguments = [("grpc.max_receive_message_length", -1), ("grpc.lb_policy_name", "pick_first")]
    for options in ({"keepalive_options": keepalive}, {"channel_args": arguments}):
        client = Client(kind, server, **options)
        result = client.infer(
            "gain",
            [client.input("AUDIO", AUDIO)],
            client_timeout=30.0,
            compression_algorithm="gzip",
        )
        assert result.as_numpy("LOUDER").tolist() == [[2, -4]]
        client.end()


def test_grpc_calls_back_and_may_be_cancelled(server: Server) -> None:
    client = Client("grpc", server)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def take(result: Any, error: Any) -> None:
        answers.put((result, error))

    for factor in range(4):
        client.stock.async_infer(
            "gain",
            [client.input("AUDIO", AUDIO * factor)],
            take,
        )
    results = [answers.get(timeout=30) for _ in range(4)]
    assert {error for _, error in results} == {None}
    assert {float(result.as_numpy("LOUDER")[0, 0]) for result, _ in results} == {0, 2, 4, 6}
    call = client.stock.async_infer("gain", [client.input("AUDIO", AUDIO)], take)
    call.cancel()
    result, error = answers.get(timeout=30)
    assert result is not None or error.status() == "StatusCode.CANCELLED"
    client.end()


def test_grpc_streams_sequences_and_decoupled_responses(server: Server) -> None:
    client = Client("grpc", server)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.stock.start_stream(lambda result, error: answers.put((result, error)))
    for place, level in enumerate((1, 2, 3)):
        given = client.input("LEVEL", np.array([[level]], np.int32))
        client.stock.async_stream_infer(
            "meter", [given], sequence_id=2000, sequence_start=place == 0, sequence_end=place == 2
        )
    totals = [answers.get(timeout=30)[0].as_numpy("TOTAL") for _ in range(3)]
    assert [int(total[0, 0]) for total in totals] == [1, 3, 6]
    text = client.input("TEXT", np.array([b"one two"], np.object_))
    client.stock.async_stream_infer("words", [text], request_id="w", enable_empty_final_response=True)
    responses = [answers.get(timeout=30)[0] for _ in range(3)]
    final = [one.get_response().parameters["triton_final_response"].bool_param for one in responses]
    assert final == [False, False, True]
    assert [one.as_numpy("WORD")[0] for one in responses[:2]] == [b"one", b"two"]
    client.stock.stop_stream()
    client.end()


def test_the_asyncio_stream_answers_sequences_and_decoupled_responses(server: Server) -> None:
    client = Client("grpc.aio", server)

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for place, level in enumerate((1, 2)):
            given = client.input("LEVEL", np.array([[level]], np.int32))
            flags = {"sequence_start": place == 0, "sequence_end": place == 1}
            yield {"model_name": "meter", "inputs": [given], "sequence_id": 3000, **flags}
        text = client.input("TEXT", np.array([b"one two"], np.object_))
        yield {"model_name": "words", "inputs": [text]}

    async def ask() -> list[Any]:
        responses = client.stock.stream_infer(inputs_iterator=requests(), stream_timeout=30)
        return [(result, error) async for result, error in responses]

    answers = client._loop.run_until_complete(ask())
    assert [error for _, error in answers] == [None] * 4
    outputs = {name: [result.as_numpy(name) for result, _ in answers] for name in ("TOTAL", "WORD")}
    assert [int(one[0, 0]) for one in outputs["TOTAL"] if one is not None] == [1, 3]
    assert [one[0] for one in outputs["WORD"] if one is not None] == [b"one", b"two"]
    client.end()


@pytest.mark.parametrize("raw", [True, False], ids=["raw contents", "typed contents"])
def test_the_generated_stub_without_a_client(server: Server, raw: bool) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
        request = service_pb2.ModelInferRequest(model_name="types")
        arrays = {"INT8": np.array([-5, 5], np.int8), "INT32": np.array([-500, 500], np.int32)}
        for name, array in arrays.items():
            given = request.inputs.add(name=name, datatype=name, shape=[2])
            if raw:
                request.raw_input_contents.append(array.tobytes())
            else:
                given.contents.int_contents.extend(array.tolist())
        response = stub.ModelInfer(request)

    outputs = dict(zip((one.name for one in response.outputs), response.raw_output_contents, strict=True))
    assert {name: outputs[f"OF_{name}"] for name in arrays} == {
        name: array.tobytes() for name, array in arrays.items()
    }


#: The metrics that the dashboards in Triton's repository query for servers without GPUs, grouped by model.
DASHBOARD = (
    "nv_inference_count",
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_request_duration_us",
)


def test_the_metrics_that_tritons_dashboards_query_are_there_and_rise(server: Server) -> None:
    def totals() -> dict[str, float]:
        with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=30) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return {
            family.name: sum(
                one.value
                for one in family.samples
                if (one.labels["model"], one.labels["version"]) == ("gain", "1")
            )
            for family in families
            if family.type == "counter" and family.name in DASHBOARD
        }

    client = Client("grpc", server)
    before = totals()
    for audio in (AUDIO, AUDIO, AUDIO.astype(np.int32)):
        with contextlib.suppress(InferenceServerException):
            client.infer("gain", [client.input("AUDIO", audio)])
    client.end()
    after = totals()

    assert set(before) == set(DASHBOARD)
    grown = {name: after[name] - before[name] for name in DASHBOARD}
    assert [grown[name] for name in DASHBOARD[:3]] == [2, 2, 1]
    assert min(grown[name] for name in DASHBOARD[4:]) > 0


#: The modes of perf_analyzer: the model, the protocol and the options. Files of a mode are in FILES.
MODES: dict[str, tuple[str, str, str]] = {
    "concurrency over HTTP": ("gain", "http", "--shape AUDIO:16 -b 2 --concurrency-range 3"),
    "concurrency over gRPC": ("gain", "grpc", "--shape AUDIO:16 --concurrency-range 3 --async"),
    "a request rate": (
        "gain",
        "http",
        "--shape AUDIO:16 --request-rate-range 200 --request-distribution poisson",
    ),
    "custom intervals": ("gain", "grpc", "--shape AUDIO:16 --request-intervals {folder}/intervals"),
    "sequences": (
        "meter",
        "grpc",
        "--input-data zero --concurrency-range 2 --sequence-length 4 --sequence-id-range 1000:2000",
    ),
    "sequences at a rate": (
        "meter",
        "grpc",
        "--input-data zero --streaming --request-rate-range 100 --num-of-sequences 3 --sequence-length 4",
    ),
    "shared memory over HTTP": (
        "gain",
        "http",
        "--shape AUDIO:16 --shared-memory system --output-shared-memory-size 1024",
    ),
    "shared memory over gRPC": (
        "gain",
        "grpc",
        "--shape AUDIO:16 --shared-memory system --output-shared-memory-size 1024",
    ),
    "a stream of several responses": ("words", "grpc", "--streaming --input-data {folder}/texts"),
    "several inputs": ("gain", "grpc", "--input-data {folder}/audio"),
}
FILES: dict[str, str] = {
    "intervals": "5000\n1000\n9000\n",
    "texts": json.dumps({"data": [{"TEXT": ["some words"]}]}),
    "audio": json.dumps({"data": [{"AUDIO": {"content": [1.0, 2.0], "shape": [2]}, "GAIN": [3.0]}]}),
}


@pytest.mark.parametrize("mode", MODES)
def test_perf_analyzer_measures_in_each_of_its_modes(server: Server, tmp_path: Path, mode: str) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    model, protocol, options = MODES[mode]
    address = server.http if protocol == "http" else server.grpc

    report = run_perf_analyzer(
        f"http://{server.metrics}", "-m", model, "-i", protocol, "-u", address,
        *options.format(folder=tmp_path).split(), "-p", "100", "-s", "999", "-r", "20",
    )  # fmt: skip

    assert throughput(report) > 0
