"""Ensembles with decoupled steps on a real server: streams, slow and vanishing readers, statistics."""

from __future__ import annotations

import http.client
import json
import queue
import socket
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException

import backline_client.client
from support.server import ServerProcess, metrics_page, serve
from support.streaming import ENSEMBLE_INPUTS, ENSEMBLE_STEP, put_models
from support.waiting import settled

#: repeat (any number of responses) -> timesten (an ONNX model that batches); the ensemble does not batch.
TENFOLD = (
    'platform: "ensemble"'
    + ENSEMBLE_INPUTS
    + """output [
  { name: "TENFOLD" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "PLACE" data_type: TYPE_UINT32 dims: [ 1 ] }
]
ensemble_scheduling {
  max_inflight_requests: 4"""
    + ENSEMBLE_STEP
    + """    output_map { key: "OUT" value: "one" } output_map { key: "IDX" value: "PLACE" } }
  step { model_name: "timesten" model_version: 1
    input_map { key: "x" value: "one" } output_map { key: "y" value: "TENFOLD" } }
}
"""
)
#: repeat -> square: n responses for each element n.
SQUARES = (
    'platform: "ensemble"'
    + ENSEMBLE_INPUTS
    + """output [ { name: "N" data_type: TYPE_INT32 dims: [ 1 ] } ]
ensemble_scheduling {"""
    + ENSEMBLE_STEP
    + """    output_map { key: "OUT" value: "n" } }
  step { model_name: "square" model_version: -1
    input_map { key: "IN" value: "n" } output_map { key: "OUT" value: "N" } }
}
"""
)
#: A Python step that rejects some values.
PICKY = """
from backline.model import INT32, InvalidArgument


class Model:
    def predict(self, x: INT32[1]) -> INT32[1]:
        if x[0] < 0:
            raise InvalidArgument("x is below zero")
        return x
"""
CHOSEN = (
    TENFOLD.replace("timesten", "picky").replace('key: "y"', 'key: "output"').replace("TENFOLD", "CHOSEN")
)


def put_ensembles(repository: Path) -> Path:
    """Adds the ensembles tenfold, squares and chosen, and the models they call."""
    put_models(repository)
    node = helper.make_node("Mul", ["x", "ten"], ["y"])
    spec = [helper.make_tensor_value_info(name, TensorProto.INT32, ["b", 1]) for name in "xy"]
    graph = helper.make_graph(
        [node], "timesten", spec[:1], spec[1:], [numpy_helper.from_array(np.array([10], np.int32), "ten")]
    )
    (repository / "timesten" / "1").mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, repository / "timesten" / "1" / "model.onnx")
    (repository / "picky" / "1").mkdir(parents=True)
    (repository / "picky" / "1" / "model.py").write_text(PICKY)
    for name, text in (("tenfold", TENFOLD), ("squares", SQUARES), ("chosen", CHOSEN)):
        (repository / name).mkdir()
        (repository / name / "1").mkdir()
        (repository / name / "config.pbtxt").write_text(text)
    return repository


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("ensembles")
    with serve(put_ensembles(folder / "models"), folder / "server.log") as running:
        yield running


def asked(values: list[int], delay: int = 0) -> dict[str, list[int]]:
    return {"VALUES": values, "DELAYS": [delay] * len(values), "NEXT": [0]}


def post(server: ServerProcess, path: str, document: object) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
    connection.request("POST", path, json.dumps(document), {"content-type": "application/json"})
    answer = connection.getresponse()
    got = answer.status, answer.read().decode()
    connection.close()
    return got


def events(body: str) -> list[Any]:
    return [json.loads(event.removeprefix("data: ")) for event in body.split("\n\n") if event]


def inputs(values: list[int], delay: int = 0) -> list[triton.InferInput]:
    arrays = (
        ("VALUES", np.array(values, np.int32), "INT32"),
        ("DELAYS", np.full(len(values), delay, np.uint32), "UINT32"),
        ("NEXT", np.zeros(1, np.uint32), "UINT32"),
    )
    made = []
    for name, array, datatype in arrays:
        made.append(triton.InferInput(name, list(array.shape), datatype))
        made[-1].set_data_from_numpy(array)
    return made


class Stream:
    """A ModelStreamInfer call made with tritonclient."""

    def __init__(self, server: ServerProcess) -> None:
        self.client = triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
        self.answers: queue.Queue[Any] = queue.Queue()
        self.client.start_stream(lambda result, error: self.answers.put(error or result))

    def next(self) -> Any:
        return self.answers.get(timeout=20)


@pytest.fixture
def stream(server: ServerProcess) -> Iterator[Stream]:
    made = Stream(server)
    yield made
    made.client.stop_stream()
    made.client.close()


def made_by(server: ServerProcess) -> int:
    """The inference count of timesten."""
    return int(statistics(server, "timesten")["inference_count"])


def statistics(server: ServerProcess, model: str) -> dict[str, Any]:
    return json.loads(
        http_get(server, f"/v2/models/{model}/stats"),
    )["model_stats"][0]


def http_get(server: ServerProcess, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
    connection.request("GET", path)
    body = connection.getresponse().read().decode()
    connection.close()
    return body


def test_each_response_passes_through_the_later_steps(server: ServerProcess) -> None:
    status, body = post(server, "/v2/models/tenfold/generate_stream", asked([3, 1, 2]))

    assert status == 200
    assert [(event["TENFOLD"], event["PLACE"]) for event in events(body)] == [(30, 0), (10, 1), (20, 2)]


def test_many_responses_arrive_in_order(server: ServerProcess) -> None:
    _, body = post(server, "/v2/models/tenfold/generate_stream", asked(list(range(3000))))

    assert [event["TENFOLD"] for event in events(body)] == list(range(0, 30000, 10))


def test_infer_stream_answers_with_events(server: ServerProcess) -> None:
    given = [
        {
            "name": name,
            "datatype": "INT32" if name == "VALUES" else "UINT32",
            "shape": [len(values)],
            "data": values,
        }
        for name, values in asked([4, 5]).items()
    ]

    _, body = post(server, "/v2/models/tenfold/infer_stream", {"inputs": given})

    assert [event["outputs"][0]["data"] for event in events(body)] == [[40], [50]]


def test_two_consecutive_decoupled_steps_keep_the_order(server: ServerProcess) -> None:
    _, body = post(server, "/v2/models/squares/generate_stream", asked([3, 0, 1, 2]))

    assert [event["N"] for event in events(body)] == [3, 3, 3, 1, 2, 2]


def test_zero_responses_are_an_empty_stream(server: ServerProcess) -> None:
    assert post(server, "/v2/models/tenfold/generate_stream", asked([])) == (200, "")


def test_the_ensemble_reports_that_it_is_decoupled(server: ServerProcess) -> None:
    status, body = post(server, "/v2/models/tenfold/infer", {"inputs": []})

    assert json.loads(http_get(server, "/v2/models/tenfold/config"))["model_transaction_policy"] == {
        "decoupled": True
    }
    assert (status, json.loads(body)["error"]) == (
        501,
        "HTTP end point doesn't support models with decoupled transaction policy",
    )


def test_a_tritonclient_stream_ends_with_the_final_response(server: ServerProcess, stream: Stream) -> None:
    """Whether the last response or an empty one after it is final depends on when the decoupled step ends."""
    stream.client.async_stream_infer(
        "tenfold", inputs([1, 2]), request_id="r", enable_empty_final_response=True
    )

    answers = [stream.next().get_response()]
    while not answers[-1].parameters["triton_final_response"].bool_param:
        answers.append(stream.next().get_response())
    made = [np.frombuffer(answer.raw_output_contents[0], np.int32)[0] for answer in answers if answer.outputs]
    assert made == [10, 20]


def test_a_failing_step_names_the_ensemble_and_ends_the_stream(server: ServerProcess, stream: Stream) -> None:
    stream.client.async_stream_infer("chosen", inputs([1, 2, -1, 4], delay=20))

    answers = [stream.next()]
    while not isinstance(answers[-1], InferenceServerException):
        answers.append(stream.next())
    assert [int(answer.as_numpy("CHOSEN")[0]) for answer in answers[:-1]] == [1, 2]
    assert answers[-1].message() == "in ensemble 'chosen', model 'picky': x is below zero"


def test_the_backline_client_iterates_over_the_responses(server: ServerProcess) -> None:
    with backline_client.client.connect(server.grpc_url) as client:
        given = {
            name: np.array(values, np.int32 if name == "VALUES" else np.uint32)
            for name, values in asked([7, 8]).items()
        }
        got = [int(answer["TENFOLD"][0]) for answer in client.model("tenfold").stream(given)]

    assert got == [70, 80]


def test_the_ensemble_counts_each_request_and_its_steps_each_response(server: ServerProcess) -> None:
    before = {
        model: statistics(server, model)["inference_count"] for model in ("tenfold", "repeat", "timesten")
    }

    post(server, "/v2/models/tenfold/generate_stream", asked([1] * 9))

    after = {model: statistics(server, model)["inference_count"] for model in before}
    assert {model: after[model] - before[model] for model in before} == {
        "tenfold": 1,
        "repeat": 1,
        "timesten": 9,
    }


def responses(server: ServerProcess, model: str, outcome: str) -> list[int]:
    """How many responses at each position in their streams had this outcome."""
    return [counters[outcome]["count"] for counters in statistics(server, model)["response_stats"].values()]


def grown(after: list[int], before: list[int]) -> list[int]:
    """The growth of per-position counters."""
    return [number - known for number, known in zip_longest(after, before, fillvalue=0)]


def test_responses_are_counted_by_position_and_the_first_is_timed(
    server: ServerProcess, stream: Stream
) -> None:
    succeeded, failed = responses(server, "chosen", "success"), responses(server, "chosen", "fail")
    first = 'nv_inference_first_response_histogram_ms_count{model="chosen",version="1"}'
    timed = metrics_page(server)[first]

    stream.client.async_stream_infer("chosen", inputs([1, 2, -1, 4], delay=20))
    while not isinstance(stream.next(), InferenceServerException):
        pass

    assert grown(responses(server, "chosen", "success"), succeeded)[:4] == [1, 1, 0]
    assert grown(responses(server, "chosen", "fail"), failed)[:4] == [0, 0, 1]
    assert metrics_page(server)[first] == timed + 1


def test_a_slow_reader_pauses_the_decoupled_step_through_its_later_steps(server: ServerProcess) -> None:
    """Producing all of the million responses ahead of the reader would take minutes and gigabytes."""
    before = statistics(server, "timesten")["inference_count"]
    values = b",".join([b"5"] * 1_000_000)
    body = b'{"VALUES":[' + values + b'],"DELAYS":[' + b",".join([b"0"] * 1_000_000) + b'],"NEXT":[0]}'
    head = b"POST /v2/models/tenfold/generate_stream HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(
        body
    )
    with socket.create_connection(("127.0.0.1", server.http_port)) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.sendall(head + body)
        assert reader.recv(1)
        made = settled(lambda: made_by(server))
        assert 0 < made - before < 200_000

    assert settled(lambda: made_by(server)) < made + 100  # the reader left: every step stops
