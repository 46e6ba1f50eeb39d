"""Batches of requests with different shapes, on a real server with stock clients."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

import backline
from support import models
from support.repositories import put
from support.server import ServerProcess, serve
from support.stock_clients import Ask, Counts, counts, over_grpc, over_http

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT32
#: A batch runs only when full, so a test's requests always form one batch, however slowly they arrive.
TOGETHER = (
    "max_batch_size: 8 dynamic_batching "
    "{ preferred_batch_size: [ %d ] max_queue_delay_microseconds: 20000000 }"
)
RAGGED = 'input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }'
BOUNDS = (
    "batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO "
    'target_name: "bounds" data_type: TYPE_INT32 source_input: "x" }'
)
SCATTERED = 'batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "%s" source_input: "x" }'
SUMS_IN_PYTHON = """
import numpy as np
from backline.model import FP32, INT32

class Model:
    max_batch_size = 8

    def predict(self, x: FP32[-1], bounds: INT32) -> FP32[1]:
        assert x.ndim == 1
        return np.add.reduceat(x, bounds[:-1])[:, np.newaxis]
"""
TWICE_IN_PYTHON = """
from backline.model import FP32

class Model:
    max_batch_size = 8

    async def predict(self, x: FP32[-1]) -> FP32[-1]:
        if (x < 0).any():
            raise ValueError("negative")
        return x * 2
"""
#: Each answer holds the number of requests in its `execute`.
BATCH_SIZES_IN_TRITON = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        shapes = [pb_utils.get_input_tensor_by_name(request, "x").shape() for request in requests]
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("y", np.full((shape[0], 2), [len(requests), shape[1]], np.int32))]
            )
            for shape in shapes
        ]
"""
OPTIONAL_IN_PYTHON = """
from backline.model import FP32

class Model:
    max_batch_size = 8

    def predict(self, x: FP32[2], bias: FP32[2] | None = None) -> FP32[2]:
        return x if bias is None else x + bias
"""


def sums(repository: Path) -> None:
    """The sum of each request's elements, whose bounds are an input."""
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    last = helper.make_tensor("last", TensorProto.INT64, [1], [2**62])
    first = helper.make_tensor("first", TensorProto.INT64, [1], [0])
    but_last = helper.make_tensor("but_last", TensorProto.INT64, [1], [-1])
    zero = helper.make_tensor("zero", FLOAT, [1], [0.0])
    axis = helper.make_tensor("axis", INT, [], [0])
    nodes = [
        helper.make_node("CumSum", ["x", "axis"], ["running"]),
        helper.make_node("Concat", ["zero", "running"], ["totals"], axis=0),
        helper.make_node("Slice", ["bounds", "one", "last"], ["ends"]),
        helper.make_node("Slice", ["bounds", "first", "but_last"], ["starts"]),
        helper.make_node("Gather", ["totals", "ends"], ["after"]),
        helper.make_node("Gather", ["totals", "starts"], ["before"]),
        helper.make_node("Sub", ["after", "before"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "one"], ["y"]),
    ]
    initializers = [one, last, first, but_last, zero, axis]
    models.save(
        repository / "sums" / "1" / "model.onnx",
        nodes,
        [("x", FLOAT, ["T"]), ("bounds", INT, ["B"])],
        [("y", FLOAT, ["N", 1])],
        initializers,
    )
    put(
        repository / "sums" / "config.pbtxt",
        f'{RAGGED} output {{ name: "y" data_type: TYPE_FP32 dims: 1 }} {BOUNDS} {TOGETHER % 4}',
    )


def twice(repository: Path) -> None:
    """Twice each element of the concatenated requests, and the shape of each item."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Identity", ["shapes"], ["s"])]
    inputs = [("x", FLOAT, ["T"]), ("shapes", INT, ["N", 1])]
    models.save(
        repository / "twice" / "1" / "model.onnx", nodes, inputs, [("y", FLOAT, ["T"]), ("s", INT, ["N", 1])]
    )
    put(
        repository / "twice" / "config.pbtxt",
        f'{RAGGED} output {{ name: "y" data_type: TYPE_FP32 dims: -1 }}'
        'output { name: "s" data_type: TYPE_INT32 dims: 1 }'
        'batch_input { kind: BATCH_ITEM_SHAPE target_name: "shapes" data_type: TYPE_INT32 source_input: "x" }'
        f"{SCATTERED % 'y'} {TOGETHER % 6}"
        'model_warmup { name: "w" batch_size: 2 count: 3 '
        'inputs { key: "x" value { data_type: TYPE_FP32 dims: 5 random_data: true } } }',
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("models")
    sums(repository)
    twice(repository)
    put(repository / "sums_py" / "1" / "model.py", SUMS_IN_PYTHON)
    put(repository / "sums_py" / "config.pbtxt", f"{RAGGED} {BOUNDS} {TOGETHER % 4}")
    put(repository / "twice_py" / "1" / "model.py", TWICE_IN_PYTHON)
    output = 'output { name: "output" data_type: TYPE_FP32 dims: -1 }'
    put(repository / "twice_py" / "config.pbtxt", f"{RAGGED} {output} {SCATTERED % 'output'} {TOGETHER % 4}")
    put(repository / "optional" / "1" / "model.py", OPTIONAL_IN_PYTHON)
    counted = (
        f'backend: "python" output {{ name: "y" data_type: TYPE_INT32 dims: 2 }} {BOUNDS} {TOGETHER % 4}'
    )
    put(repository / "batch_sizes" / "1" / "model.py", BATCH_SIZES_IN_TRITON)
    put(repository / "batch_sizes" / "config.pbtxt", f"{RAGGED} {counted}")
    for name, setting in (("add1", "false"), ("split", "true")):
        models.add1(repository, name)
        put(
            repository / name / "model.toml",
            f"max_batch_size = 8\ndynamic_batching = {{}}\nenable_large_batch_splitting = {setting}",
        )
    models.identity_of(repository, "split_free", FLOAT)
    put(repository / "split_free" / "model.toml", "max_batch_size = 8\nenable_large_batch_splitting = true")
    batching = "dynamic_batching { max_queue_delay_microseconds: 300000 }"
    put(repository / "optional" / "config.pbtxt", f"max_batch_size: 8 {batching}")
    with serve(repository, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def ask(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Ask]:
    yield from over_http(server) if request.param == "http" else over_grpc(server)


def ramps(*lengths: int, rows: int = 1) -> list[dict[str, np.ndarray]]:
    """Requests whose `x` are consecutive integers, all different."""
    return [
        {"x": np.arange(1, 1 + rows * length, dtype=np.float32).reshape(rows, length) + 100 * i}
        for i, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("model", ["sums", "sums_py"])
def test_ragged_requests_run_as_one_batch(server: ServerProcess, ask: Ask, model: str) -> None:
    requests = ramps(3, 1, 7, 4)
    before = counts(server, model)

    answers = ask(model, requests)

    output = "y" if model == "sums" else "output"
    assert [answer[output].tolist() for answer in answers] == [[[request["x"].sum()]] for request in requests]
    assert counts(server, model).since(before) == Counts(4, 0, 4, 1, {4: 1})


def test_outputs_are_scattered_by_the_shapes_of_the_inputs(server: ServerProcess, ask: Ask) -> None:
    requests = [*ramps(3, 1), *ramps(5, 2, rows=2)]
    before = counts(server, "twice")

    answers = ask("twice", requests)

    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], request["x"] * 2)
        assert answer["s"].tolist() == [[request["x"].shape[1]]] * len(request["x"])
    assert counts(server, "twice").since(before) == Counts(4, 0, 6, 1, {6: 1})


def test_a_python_model_gets_concatenated_requests_and_a_bad_request_fails_alone(
    server: ServerProcess, ask: Ask
) -> None:
    requests = ramps(3, 2, 5, 1)
    answers = ask("twice_py", requests)

    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer["output"], request["x"] * 2)

    before = counts(server, "twice_py")
    requests[2]["x"] = -requests[2]["x"]
    with pytest.raises(InferenceServerException, match="negative"):
        ask("twice_py", requests)
    got = counts(server, "twice_py").since(before)
    assert (got.succeeded, got.failed) == (3, 1)


def test_a_triton_python_model_gets_each_request_separately(server: ServerProcess, ask: Ask) -> None:
    """As in Triton 2.51, whose Python backend never concatenates requests and ignores `batch_input`."""
    before = counts(server, "batch_sizes")

    answers = ask("batch_sizes", ramps(3, 1, 7, 4))

    assert [answer["y"].tolist() for answer in answers] == [[[4, length]] for length in (3, 1, 7, 4)]
    assert counts(server, "batch_sizes").since(before) == Counts(4, 0, 4, 1, {4: 1})


def test_large_ragged_tensors_go_through_shared_memory(server: ServerProcess) -> None:
    requests = ramps(100_000, 50_000, 1, 200_000)

    for ask in over_http(server):  # over gRPC, a new connection admits only two large requests at a time
        for request, answer in zip(requests, ask("twice_py", requests), strict=True):
            np.testing.assert_array_equal(answer["output"], request["x"] * 2)


@pytest.mark.parametrize("model", ["sums", "sums_py"])
def test_clients_do_not_see_generated_inputs(server: ServerProcess, model: str) -> None:
    with backline.connect(server.url) as client:
        inputs = client[model].metadata().inputs

        assert [(spec.name, list(spec.shape)) for spec in inputs] == [("x", [-1, -1])]
        assert client[model].config()["batch_input"][0]["target_name"] == ["bounds"]


def test_a_request_larger_than_a_batch_gets_one_answer(server: ServerProcess, ask: Ask) -> None:
    large = np.arange(20 * 16, dtype=np.float32).reshape(20, 16)
    before = counts(server, "split")

    (answer,) = ask("split", [{"INPUT0": large}])

    np.testing.assert_array_equal(answer["OUTPUT0"], large + 1)
    assert counts(server, "split").since(before) == Counts(1, 0, 20, 3, {8: 2, 4: 1})


def test_a_request_with_too_many_parts_is_refused(server: ServerProcess) -> None:
    body = b'{"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1099511627776, 0], "data": []}]}'
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.url}/v2/models/split_free/infer", body, timeout=10)

    assert refused.value.code == 400
    told = refused.value.read().decode()
    assert "runs at most 8 items at a time, and a request is split into at most 4096 parts" in told


def test_without_the_setting_a_larger_request_is_refused(server: ServerProcess, ask: Ask) -> None:
    with pytest.raises(
        InferenceServerException, match="inference request batch-size must be <= 8 for 'add1'"
    ):
        ask("add1", [{"INPUT0": np.zeros((20, 16), np.float32)}])


def test_only_requests_with_the_same_optional_inputs_are_batched(server: ServerProcess, ask: Ask) -> None:
    x = np.ones((1, 2), np.float32)
    before = counts(server, "optional")

    answers = ask("optional", [{"x": x}, {"x": x}, {"x": x, "bias": x}, {"x": x, "bias": x}])

    assert [answer["output"].tolist() for answer in answers] == [[[1, 1]], [[1, 1]], [[2, 2]], [[2, 2]]]
    got = counts(server, "optional").since(before)
    assert got.succeeded == 4
    assert got.runs >= 2
    assert max(got.sizes) <= 2
