"""Requests of different shapes get the same bits from a real model, joined or alone."""

from __future__ import annotations

from pathlib import Path
from time import monotonic_ns

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from backline.engine.config.joining import Cut, Joining, Padding
from backline.engine.config.model_config import ModelConfig
from backline.engine.ticket import Ticket
from backline.plugins.runtimes.onnx.runtime import OnnxRuntime
from backline.workers.batch import Batch
from backline.workers.here.execution import Execution
from backline.workers.joiner import Joiner
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Tensor
from support import models

FLOAT = TensorProto.FLOAT


def load(path: Path, shape: list[int | str], joining: Joining) -> Execution:
    """y = (x² - x) / (x² + |x|) per element; rounding does not depend on an element's position."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Abs", ["x"], ["size"]),
        helper.make_node("Sub", ["square", "x"], ["above"]),
        helper.make_node("Add", ["square", "size"], ["below"]),
        helper.make_node("Div", ["above", "below"], ["y"]),
    ]
    file = models.save(path / "model.onnx", nodes, [("x", FLOAT, shape)], [("y", FLOAT, shape)])
    model = OnnxRuntime().load(file, ModelConfig("m"))
    scattered = dict.fromkeys(joining.scattered, (-1, -1))
    return Execution("m", "1", model, joiner=Joiner("m", joining, model.signature, scattered, batched=True))


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Execution:
    return load(tmp_path_factory.mktemp("ragged"), ["T"], Joining(ragged=("x",), scattered={"y": "x"}))


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Execution:
    padding = {"x": Padding(value="3", buckets=(4, 8))}
    joining = Joining(allowed_batch_sizes=(2, 5, 9), padding=padding, cuts={"y": Cut("x")})
    return load(tmp_path_factory.mktemp("padded"), ["N", "T"], joining)


def request(rows: int, length: int, seed: int, outputs: tuple[str, ...] | None = None) -> Ticket:
    data = np.random.default_rng(seed).normal(size=(rows, length)).astype(np.float32)
    made = Ticket(
        InferRequest("m", {"x": Tensor("x", DataType.FP32, data.shape, data)}, id=str(seed), outputs=outputs),
        lambda *_: None,
    )
    made.batch_size = rows
    return made


def run(execution: Execution, requests: list[Ticket]) -> list[InferResponse | BacklineError | None]:
    batch = Batch(requests, sum(one.batch_size for one in requests), monotonic_ns())
    execution(batch)
    return batch.outcomes


requests = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 11)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(shapes=requests, which=st.sampled_from(["ragged", "padded"]))
def test_joined_requests_get_the_same_responses_as_alone(
    ragged: Execution, padded: Execution, shapes: list[tuple[int, int]], which: str
) -> None:
    execution = {"ragged": ragged, "padded": padded}[which]
    asked = [request(*shape, seed) for seed, shape in enumerate(shapes)]

    outcomes = run(execution, asked)

    for one, outcome in zip(asked, outcomes, strict=True):
        (alone,) = run(execution, [one])
        assert isinstance(outcome, InferResponse)
        assert isinstance(alone, InferResponse)
        assert outcome.id == one.request.id
        x = one.request.inputs["x"].data
        assert outcome.outputs[0].shape == alone.outputs[0].shape == x.shape
        assert outcome.outputs[0].data.tobytes() == alone.outputs[0].data.tobytes()
        np.testing.assert_allclose(
            outcome.outputs[0].data, (x * x - x) / (x * x + abs(x)), rtol=1e-5, atol=1e-6
        )


def test_each_request_gets_the_outputs_that_it_asks_for(ragged: Execution) -> None:
    nothing, everything = request(1, 2, 1, outputs=()), request(1, 3, 2)

    outcomes = run(ragged, [nothing, everything])

    assert [
        [tensor.name for tensor in outcome.outputs]
        for outcome in outcomes
        if isinstance(outcome, InferResponse)
    ] == [[], ["y"]]
