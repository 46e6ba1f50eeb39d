"""Response streams of a real server: server-sent events on plain sockets, and tritonclient's stream."""

from __future__ import annotations

import http.client
import json
import queue
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from support.server import ServerProcess, metrics_page, serve
from support.streaming import put_models
from support.tools import tool
from support.waiting import settled

NOT_ONE = (
    "generate expects model to produce exactly 1 response, "
    "use generate stream for model that generates various number of responses"
)

BUCKETS = """
model_metrics { metric_control {
  metric_identifier { family: "nv_inference_first_response_histogram_ms" }
  histogram_options { buckets: [ 60000 ] } } }
"""


@pytest.fixture(scope="module")
def streaming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("streams")
    repository = put_models(folder / "models")
    with (repository / "square" / "config.pbtxt").open("a") as config:
        config.write(BUCKETS)
    with serve(repository, folder / "server.log") as running:
        yield running


def post(server: ServerProcess, path: str, document: object) -> tuple[int, str, str]:
    """Status, content type and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
    body = document if isinstance(document, str) else json.dumps(document)
    connection.request("POST", path, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    got = answer.status, answer.getheader("content-type") or "", answer.read().decode()
    connection.close()
    return got


def repeat(values: list[int], delay: int = 0) -> dict[str, list[int]]:
    return {"IN": values, "DELAY": [delay] * len(values), "WAIT": [0]}


def test_each_response_is_an_event(streaming: ServerProcess) -> None:
    assert post(streaming, "/v2/models/repeat/generate_stream", {**repeat([7, 8]), "id": "a"}) == (
        200,
        "text/event-stream; charset=utf-8",
        (
            'data: {"IDX":0,"OUT":7,"id":"a","model_name":"repeat","model_version":"1"}\n\n'
            'data: {"IDX":1,"OUT":8,"id":"a","model_name":"repeat","model_version":"1"}\n\n'
        ),
    )


def test_zero_responses_are_an_empty_stream(streaming: ServerProcess) -> None:
    assert post(streaming, "/v2/models/repeat/generate_stream", repeat([])) == (
        200,
        "text/event-stream; charset=utf-8",
        "",
    )


def test_generate_answers_with_a_single_response(streaming: ServerProcess) -> None:
    status, kind, body = post(
        streaming, "/v2/models/repeat/versions/1/generate", {"IN": 5, "DELAY": 0, "WAIT": 0}
    )

    assert (status, kind) == (200, "application/json")
    assert body == '{"IDX":0,"OUT":5,"model_name":"repeat","model_version":"1"}'


@pytest.mark.parametrize("values", [[], [1, 2], list(range(5000))], ids=["none", "two", "many"])
def test_generate_requires_exactly_one_response(values: list[int], streaming: ServerProcess) -> None:
    status, _, body = post(streaming, "/v2/models/repeat/generate", repeat(values))

    assert (status, json.loads(body)) == (500, {"error": NOT_ONE})


def test_the_first_response_decides_the_status(streaming: ServerProcess) -> None:
    wrong = {"IN": [1, 2], "DELAY": [0], "WAIT": 0}

    status, kind, body = post(streaming, "/v2/models/repeat/generate_stream", wrong)

    assert (status, kind) == (400, "text/event-stream; charset=utf-8")
    assert body == 'data: {"error":"expected IN and DELAY shape to match, got [2] and [1]"}\n\n'


@pytest.mark.parametrize(
    ("document", "status", "message"),
    [
        ({"IN": [1]}, 400, "missing required input(s) ['DELAY','WAIT']"),
        ("{bad", 400, "failed to parse the request JSON"),
        ("[1]", 400, "expected an object with inputs by name"),
        ("[" * 100_000, 400, "nested too deeply"),
        (
            '{"IN": [NaN]}',
            400,
            "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer: input 'IN'",
        ),
        (
            {**repeat([1]), "WAIT": [0, 0]},
            400,
            "The schema can not convert input 'WAIT' to tensor with proper shape",
        ),
        ({**repeat([1]), "IN": ["a"]}, 400, "Unable to parse 'data': attempt to access JSON non-"),
        ({**repeat([1]), "IN": {"a": 1}}, 400, "can not convert input 'IN' to tensor with proper shape"),
        (
            {**repeat([1]), "other": {"a": 1}},
            400,
            "parameter 'other' has invalid type. It should be either 'int', 'bool', or 'string'.",
        ),
        ({**repeat([1]), "other": None}, 400, "parameter 'other' has invalid type."),
        ({**repeat([1]), "parameters": 1}, 400, "Expected JSON object for keyword: 'parameters'"),
        (
            {**repeat([1]), "parameters": {"nested": {"twice": 1}}},
            400,
            "Converting keyword: 'parameters': parameter 'nested' has invalid type.",
        ),
        ('{"WAIT":0,"WAIT":1}', 400, "input 'WAIT' already exists in request"),
        (
            {"WAIT": 0, "parameters": {"WAIT": 0}},
            400,
            "Converting keyword: 'parameters': [request id: <id_unknown>] input 'WAIT' already",
        ),
    ],
)
@pytest.mark.parametrize("route", ["generate", "generate_stream"])
def test_malformed_requests_get_a_json_error(
    route: str, document: object, status: int, message: str, streaming: ServerProcess
) -> None:
    got, kind, body = post(streaming, f"/v2/models/repeat/{route}", document)

    assert (got, kind) == (status, "application/json")
    assert message in json.loads(body)["error"]


def test_nested_parameters_are_flattened_and_lists_stay_lists(streaming: ServerProcess) -> None:
    document = {"IN": ["a", "b\n"], "temperature": 0.5, "parameters": {"top": 1, "stop": "x"}}

    status, _, body = post(streaming, "/v2/models/echo/generate_stream", document)

    assert (status, body) == (200, 'data: {"OUT":["a","b\\n"],"model_name":"echo","model_version":"1"}\n\n')


def test_unknown_models_and_models_that_are_not_decoupled(streaming: ServerProcess) -> None:
    assert post(streaming, "/v2/models/nope/generate_stream", {})[0] == 404
    status, _, body = post(
        streaming,
        "/v2/models/square/infer",
        {"inputs": [{"name": "IN", "datatype": "INT32", "shape": [1], "data": [1]}]},
    )
    assert (status, json.loads(body)["error"]) == (
        501,
        "HTTP end point doesn't support models with decoupled transaction policy",
    )


def test_events_of_infer_stream_equal_the_answers_of_infer(streaming: ServerProcess) -> None:
    document = {"id": "9", "inputs": [{"name": "IN", "datatype": "INT32", "shape": [1], "data": [2]}]}

    _, kind, body = post(streaming, "/v2/models/square/infer_stream", document)

    event = {
        "id": "9",
        "model_name": "square",
        "model_version": "1",
        "outputs": [{"name": "OUT", "datatype": "INT32", "shape": [1], "data": [2]}],
    }
    assert kind == "text/event-stream; charset=utf-8"
    assert [json.loads(line.removeprefix("data: ")) for line in body.split("\n\n") if line] == [event, event]


def test_the_decoupled_policy_is_shown(streaming: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", streaming.http_port, timeout=20)
    connection.request("GET", "/v2/models/repeat/config")

    assert json.loads(connection.getresponse().read())["model_transaction_policy"] == {"decoupled": True}


def test_http2_streams_events(streaming: ServerProcess) -> None:
    """The first response is timed like that of any stream, in the model's own buckets."""
    first = 'nv_inference_first_response_histogram_ms_count{model="square",version="1"}'
    before = metrics_page(streaming)[first]
    command = [
        tool("curl"),
        "-s",
        "--http2-prior-knowledge",
        f"{streaming.url}/v2/models/square/generate_stream",
        "-d",
        '{"IN":3}',
    ]

    got = subprocess.run(command, check=True, capture_output=True, timeout=20).stdout

    assert got == b'data: {"OUT":3,"model_name":"square","model_version":"1"}\n\n' * 3
    assert metrics_page(streaming)[first] == before + 1
    bucket = 'nv_inference_first_response_histogram_ms_bucket{model="square",version="1",le='
    assert [name for name in metrics_page(streaming) if name.startswith(bucket)] == [
        f'{bucket}"60000"}}',
        f'{bucket}"+Inf"}}',
    ]


def response_counts(server: ServerProcess) -> tuple[int, int]:
    """Responses made by `square`, and streams it abandoned."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
    connection.request("GET", "/v2/models/square/stats")
    stats = json.loads(connection.getresponse().read())["model_stats"][0]["response_stats"]
    connection.close()
    return sum(one["success"]["count"] for one in stats.values()), sum(
        one["cancel"]["count"] for one in stats.values()
    )


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_slow_reader_pauses_the_model_and_a_vanished_one_cancels_it(
    protocol: str, streaming: ServerProcess
) -> None:
    before, cancelled = response_counts(streaming)
    memory = psutil.Process(streaming.process.pid).memory_info().rss
    count = 100_000_000
    if protocol == "http":
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", streaming.http_port))
        body = json.dumps({"IN": count}).encode()
        reader.sendall(
            b"POST /v2/models/square/generate_stream HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        close = reader.close
    else:
        close = unread_call(streaming, count)
    deadline = time.monotonic() + 10
    while response_counts(streaming)[0] == before and time.monotonic() < deadline:
        time.sleep(0.01)

    made = settled(lambda: response_counts(streaming)[0]) - before

    assert 0 < made < 200_000
    assert psutil.Process(streaming.process.pid).memory_info().rss - memory < 64 * 1024 * 1024
    close()
    while response_counts(streaming)[1] == cancelled:
        assert time.monotonic() < deadline + 20, "the request was not cancelled"
        time.sleep(0.01)


def unread_call(server: ServerProcess, count: int) -> Any:
    """A ModelStreamInfer call whose responses are never read; returns a function that ends it."""
    import grpc
    from tritonclient.grpc import service_pb2

    channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
    method = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )
    request = service_pb2.ModelInferRequest(
        model_name="square", raw_input_contents=[np.array([count], np.int32).tobytes()]
    )
    request.inputs.add(name="IN", datatype="INT32", shape=[1])
    call = method(iter([request]))
    next(call)
    return channel.close


class Stream:
    """A tritonclient stream, and the answers received so far."""

    def __init__(self, server: ServerProcess, **headers: str) -> None:
        self.client = triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
        self.answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client.start_stream(
            lambda result, error: self.answers.put((result, error)), headers=headers or None
        )

    def ask(
        self, values: list[int], delay: int = 0, *, id: str = "", model: str = "repeat", empty: bool = False
    ) -> None:
        arrays = {
            "IN": np.array(values, np.int32),
            "DELAY": np.full(len(values), delay, np.uint32),
            "WAIT": np.zeros(1, np.uint32),
        }
        inputs = []
        for name, array in arrays.items():
            given = triton.InferInput(name, list(array.shape), "INT32" if name == "IN" else "UINT32")
            given.set_data_from_numpy(array)
            inputs.append(given)
        self.client.async_stream_infer(model, inputs, request_id=id, enable_empty_final_response=empty)

    def next(self) -> tuple[str, bool, list[int]]:
        """Id, whether it is the final response, and OUT."""
        result, error = self.answers.get(timeout=10)
        if error is not None:
            raise error
        response = result.get_response()
        out = result.as_numpy("OUT")
        return (
            response.id,
            response.parameters["triton_final_response"].bool_param,
            [] if out is None else out.tolist(),
        )

    def close(self) -> None:
        self.client.stop_stream()
        self.client.close()
        assert self.answers.empty()


@pytest.fixture
def stream(streaming: ServerProcess) -> Iterator[Stream]:
    opened = Stream(streaming)
    yield opened
    opened.close()


def test_responses_of_a_decoupled_model_are_never_final(stream: Stream) -> None:
    stream.ask([1, 2], id="a")

    assert [stream.next() for _ in range(2)] == [("a", False, [1]), ("a", False, [2])]


def test_the_final_response_is_sent_if_requested(stream: Stream) -> None:
    stream.ask([1], id="a", empty=True)
    stream.ask([], id="b", empty=True)

    got = sorted(stream.next() for _ in range(3))

    assert got == [("a", False, [1]), ("a", True, []), ("b", True, [])]


def test_requests_to_decoupled_models_do_not_wait_for_each_other(stream: Stream) -> None:
    stream.ask([1, 2], delay=200, id="slow")
    stream.ask([3], id="fast")

    assert [stream.next()[0] for _ in range(3)] == ["fast", "slow", "slow"]


def test_a_failed_request_is_answered_on_the_stream(stream: Stream) -> None:
    stream.ask([1], id="bad", model="nope")
    with pytest.raises(InferenceServerException, match="'nope'"):
        stream.next()
    stream.ask([4], id="good")

    assert stream.next() == ("good", False, [4])


def test_ten_thousand_responses_arrive(stream: Stream) -> None:
    stream.ask(list(range(10_000)))

    assert [stream.next()[2] for _ in range(10_000)] == [[number] for number in range(10_000)]


def test_an_error_ends_the_stream_if_requested(streaming: ServerProcess) -> None:
    opened = Stream(streaming, triton_grpc_error="true")
    opened.ask([1], model="nope")

    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        opened.next()

    opened.close()


def test_a_unary_call_to_a_decoupled_model_is_refused(streaming: ServerProcess) -> None:
    given = triton.InferInput("IN", [1], "INT32")
    given.set_data_from_numpy(np.array([1], np.int32))

    with pytest.raises(
        InferenceServerException,
        match="ModelInfer RPC doesn't support models with decoupled transaction policy",
    ):
        triton.InferenceServerClient(f"127.0.0.1:{streaming.grpc_port}").infer("square", [given])
