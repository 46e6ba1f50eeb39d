"""Inputs and outputs whose shapes differ between model and clients, on a real server with stock clients."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from support import models
from support.repositories import put
from support.server import ServerProcess, serve
from support.stock_clients import Arrays, Ask, Counts, counts, over_grpc, over_http

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
#: A batch runs only when full, so a test's requests always form one batch, however slowly they arrive.
TOGETHER = (
    "max_batch_size: 8 dynamic_batching "
    "{ preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 20000000 }"
)
#: Clients send [n, 4]; the models see [2, n, 2] and also answer with the shape they saw.
IN_DIMS = 'input { name: "x" data_type: TYPE_FP32 dims: [ 2, -1, 2 ] reshape { shape: [ 2, 1, -1, 2 ] } }'
OUT_DIMS = 'output { name: "y" data_type: TYPE_FP32 dims: [ 2, -1, 2 ] reshape { shape: [ 2, 1, -1, 2 ] } }'
SHAPE = 'output { name: "shape" data_type: TYPE_INT64 dims: [ %d ] }'
SCALAR = '{ name: "%s" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } }'
PYTHON = """
from typing import NamedTuple

import numpy as np

from backline.model import FP32, INT64

class Answer(NamedTuple):
    y: FP32[2, 1, -1, 2]
    shape: INT64[5]

class Model:
    max_batch_size = 8

    def predict(self, x: FP32[2, 1, -1, 2]) -> Answer:
        return Answer(x * 2, np.tile(np.array(x.shape, np.int64), (len(x), 1)))
"""
TRITON = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            seen = np.tile(np.array(x.shape, np.int64), (len(x), 1))
            responses.append(
                pb_utils.InferenceResponse([pb_utils.Tensor("y", x * 2), pb_utils.Tensor("shape", seen)])
            )
        return responses
"""
COMPLETED = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [4]})
        config.add_output({"name": "seen", "data_type": "TYPE_INT64", "dims": [2]})
        config.set_max_batch_size(0)
        return config

    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        answers = [
            (pb_utils.Tensor("y", np.ascontiguousarray(x.T)), pb_utils.Tensor("seen", np.array(x.shape)))
            for x in tensors
        ]
        return [pb_utils.InferenceResponse(list(answer)) for answer in answers]
"""
DECOUPLED = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            sender = request.get_response_sender()
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.ascontiguousarray(x.T))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
STRANGE = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x.reshape(1, 4))]) for x in tensors]
"""
FOUR_AS_TWO = 'name: "%s" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 2, 2 ] }'
STATE = 'state { input_name: "before" output_name: "after" data_type: TYPE_FP32 dims: 1 }'


def repository_in(folder: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Shape", ["x"], ["seen"])]
    rows = [
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("Expand", ["row", "table"], ["shape"]),
    ]
    nodes += [
        rows[0],
        helper.make_node("Unsqueeze", ["seen", "zero"], ["row"]),
        helper.make_node("Concat", ["rows", "five"], ["table"], axis=0),
        rows[1],
    ]
    constants = [helper.make_tensor("zero", INT, [1], [0]), helper.make_tensor("five", INT, [1], [5])]
    models.save(
        folder / "onnx" / "1" / "model.onnx",
        nodes,
        [("x", FLOAT, ["N", 2, 1, "T", 2])],
        [("y", FLOAT, ["N", 2, 1, "T", 2]), ("shape", INT, ["N", 5])],
        constants,
    )
    reshaped = f"{IN_DIMS} {OUT_DIMS} {SHAPE % 5} {TOGETHER}"
    warm = (
        'model_warmup { name: "w" batch_size: 2 '
        'inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 2, 3, 2 ] random_data: true } } }'
    )
    put(folder / "onnx" / "config.pbtxt", f"{reshaped} {warm}")
    put(folder / "python" / "config.pbtxt", f"{reshaped} {warm}")
    put(folder / "python" / "1" / "model.py", PYTHON)
    put(folder / "triton" / "config.pbtxt", f'backend: "python" {reshaped} {warm}')
    put(folder / "triton" / "1" / "model.py", TRITON)

    models.save(
        folder / "scalars" / "1" / "model.onnx",
        [helper.make_node("Add", ["a", "b"], ["c"])],
        [("a", FLOAT, ["N"]), ("b", FLOAT, ["N"])],
        [("c", FLOAT, ["N"])],
    )
    put(
        folder / "scalars" / "config.pbtxt",
        f"input {SCALAR % 'a'} input {SCALAR % 'b'} output {SCALAR % 'c'} "
        f"{TOGETHER} response_cache {{ enable: true }}",
    )

    transpose = [helper.make_node("Transpose", ["x"], ["y"])]
    for name in ("whole", "partial"):
        models.save(
            folder / name / "1" / "model.onnx", transpose, [("x", FLOAT, [2, 2])], [("y", FLOAT, [2, 2])]
        )
    put(
        folder / "whole" / "config.pbtxt", f"input {{ {FOUR_AS_TWO % 'x'} }} output {{ {FOUR_AS_TWO % 'y'} }}"
    )
    put(
        folder / "partial" / "model.toml",
        'max_batch_size = 0\n[[input]]\nname = "x"\ndata_type = "FP32"\ndims = [4]\nreshape = [2, 2]\n',
    )
    put(folder / "completed" / "1" / "model.py", COMPLETED)
    decoupled = "model_transaction_policy { decoupled: true }"
    for name, code, more in (
        ("completed", COMPLETED, ""),
        ("strange", STRANGE, ""),
        ("decoupled", DECOUPLED, decoupled),
    ):
        put(folder / name / "1" / "model.py", code)
        put(
            folder / name / "config.pbtxt",
            f'backend: "python" input {{ {FOUR_AS_TWO % "x"} }} output {{ {FOUR_AS_TWO % "y"} }} {more}',
        )
    step = (
        'step { model_name: "%s" model_version: -1 '
        'input_map { key: "x" value: "%s" } output_map { key: "y" value: "%s" } }'
    )
    four = 'name: "%s" data_type: TYPE_FP32 dims: [ 4 ]'
    put(
        folder / "ensemble" / "config.pbtxt",
        f'platform: "ensemble" input {{ {four % "x"} }} output {{ {four % "y"} }}'
        f" ensemble_scheduling {{ {step % ('whole', 'x', 'between')}"
        f" {step % ('completed', 'between', 'y')} }}",
    )
    (folder / "ensemble" / "1").mkdir()

    models.save(
        folder / "sums" / "1" / "model.onnx",
        [
            helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
            helper.make_node("Add", ["before", "sum"], ["after"]),
            helper.make_node("Squeeze", ["after", "one"], ["y"]),
        ],
        [("x", FLOAT, ["N", 1, 2]), ("before", FLOAT, ["N", 1])],
        [("y", FLOAT, ["N"]), ("after", FLOAT, ["N", 1])],
        [helper.make_tensor("axes", INT, [1], [2]), helper.make_tensor("one", INT, [1], [1])],
    )
    put(
        folder / "sums" / "config.pbtxt",
        f'input {{ name: "x" data_type: TYPE_FP32 dims: 2 reshape {{ shape: [ 1, 2 ] }} }}'
        f" max_batch_size: 4 sequence_batching {{ {STATE} }} output {SCALAR % 'y'}",
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("models")
    repository_in(folder)
    with serve(
        folder, tmp_path_factory.mktemp("log") / "server.log", "--cache-config", "local,size=1000000"
    ) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def ask(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Ask]:
    yield from over_http(server) if request.param == "http" else over_grpc(server)


def numbers(*shape: int, start: float = 0) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + np.float32(start)


def get(server: ServerProcess, path: str) -> dict[str, object]:
    with urllib.request.urlopen(f"{server.url}/v2/models/{path}") as answer:
        return json.load(answer)  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", ["onnx", "python", "triton"])
def test_requests_are_batched_in_the_models_shape_and_answered_in_the_clients(
    server: ServerProcess, ask: Ask, model: str
) -> None:
    requests: list[Arrays] = [
        {"x": numbers(1, 2, 3, 2)},
        {"x": numbers(2, 2, 3, 2, start=100)},
        {"x": numbers(1, 2, 3, 2, start=1000)},
    ]
    before = counts(server, model)

    answers = ask(model, requests)

    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], request["x"] * 2)
        assert answer["shape"][:, 1:].tolist() == [[2, 1, 3, 2]] * len(request["x"])
    assert counts(server, model).since(before) == Counts(3, 0, 4, 1, {4: 1})


@pytest.mark.parametrize("model", ["python", "triton"])
def test_large_tensors_are_reshaped_in_place(ask: Ask, model: str) -> None:
    for start in (0, 1):  # the second request reuses the first one's shared memory
        (answer,) = ask(model, [{"x": numbers(4, 2, 50_000, 2, start=start)}])
        np.testing.assert_array_equal(answer["y"], numbers(4, 2, 50_000, 2, start=start) * 2)


@pytest.mark.parametrize("model", ["onnx", "python", "triton"])
def test_metadata_shows_the_clients_shapes(server: ServerProcess, model: str) -> None:
    metadata = get(server, model)
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2, -1, 2]}]
    assert metadata["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [-1, 2, -1, 2]},
        {"name": "shape", "datatype": "INT64", "shape": [-1, 5]},
    ]
    (given,) = get(server, f"{model}/config")["input"]  # type: ignore[misc]
    assert (given["dims"], given["reshape"]) == ([2, -1, 2], {"shape": [2, 1, -1, 2]})


@pytest.mark.parametrize("model", ["onnx", "python", "triton"])
def test_requests_in_the_models_shape_are_refused(ask: Ask, model: str) -> None:
    with pytest.raises(InferenceServerException, match=r"Expected \[-1,2,-1,2\], got \[1,2,1,3,2\]"):
        ask(model, [{"x": numbers(1, 2, 1, 3, 2)}])


def test_an_empty_reshape_leaves_the_batch_dimension(
    server: ServerProcess, ask: Ask, request: pytest.FixtureRequest
) -> None:
    start = 1.0 if "http" in request.node.name else 2.0
    requests = [
        {"a": numbers(2, 1, start=start), "b": numbers(2, 1)},
        {"a": numbers(2, 1, start=start + 10), "b": numbers(2, 1)},
    ]
    before = counts(server, "scalars")

    first, again = ask("scalars", requests), ask("scalars", requests)

    for answers in (first, again):  # the second time from the cache
        assert [answer["c"].tolist() for answer in answers] == [
            [[start], [start + 2]],
            [[start + 10], [start + 12]],
        ]
    assert counts(server, "scalars").since(before).runs == 1


@pytest.mark.parametrize("model", ["whole", "completed"])
def test_a_model_without_a_batch_dimension_is_reshaped(ask: Ask, model: str) -> None:
    (answer,) = ask(model, [{"x": numbers(4)}])
    assert answer["y"].tolist() == [0, 2, 1, 3]


def test_auto_complete_config_keeps_the_files_reshape(ask: Ask) -> None:
    (answer,) = ask("completed", [{"x": numbers(4)}])
    assert answer["seen"].tolist() == [2, 2]


def test_an_output_without_a_reshape_is_unchanged(ask: Ask) -> None:
    (answer,) = ask("partial", [{"x": numbers(4)}])
    assert answer["y"].tolist() == [[0, 2], [1, 3]]


def test_the_steps_of_an_ensemble_use_the_clients_shapes(ask: Ask) -> None:
    (answer,) = ask("ensemble", [{"x": numbers(4)}])
    assert answer["y"].tolist() == [0, 1, 2, 3]


def test_an_output_of_an_unexpected_shape_fails_only_its_request(ask: Ask) -> None:
    with pytest.raises(
        InferenceServerException,
        match=r"'y' with shape \[1, 4\], but its configuration reshapes \[2, 2\] to \[4\]",
    ):
        ask("strange", [{"x": numbers(4)}])


def test_streamed_responses_are_reshaped(server: ServerProcess) -> None:
    import queue

    import tritonclient.grpc

    got: queue.Queue[tuple[object, object]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: got.put((result, error)))
        given = tritonclient.grpc.InferInput("x", [4], "FP32")
        given.set_data_from_numpy(numbers(4))
        client.async_stream_infer("decoupled", [given])
        result, error = got.get(timeout=30)
    assert error is None
    assert result.as_numpy("y").tolist() == [0, 2, 1, 3]  # type: ignore[attr-defined]


def test_a_reshape_leaves_sequence_state_intact(server: ServerProcess) -> None:
    import tritonclient.http

    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        given = tritonclient.http.InferInput("x", [1, 2], "FP32")
        given.set_data_from_numpy(np.array([[1, 2]], np.float32))
        answers = [
            client.infer(
                "sums", [given], sequence_id=7, sequence_start=step == 0, sequence_end=step == 2
            ).as_numpy("y")
            for step in range(3)
        ]
    assert [answer.tolist() for answer in answers] == [[[3.0]], [[6.0]], [[9.0]]]
