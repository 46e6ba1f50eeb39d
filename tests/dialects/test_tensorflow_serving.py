"""TensorFlow Serving's REST API and KServe's version 1: recorded exchanges, large bodies, datatypes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_models import Caller, add_model

from backline.dialects.application import build_application
from backline.dialects.bodies.json_arrays import read_array
from backline.dialects.off_loop import LARGE
from backline.engine.config.model_config import ModelConfig
from backline.engine.engine import Engine
from backline.engine.model import Model, ModelState
from backline.plugins.dialects.tensorflow_serving import PLUGINS
from backline.testing.dialects import DialectConformance, Sample
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec
from support.models import add1

EXCHANGES = tomllib.loads(Path(__file__).with_name("tensorflow_serving_exchanges.toml").read_text("utf-8"))


def make_caller() -> Caller:
    engine = Engine()
    fp32, text = DataType.FP32, DataType.BYTES
    for version in ("1", "2"):
        add_model(
            engine,
            "half_plus_two",
            [TensorSpec("x", fp32, (-1, 1))],
            [TensorSpec("y", fp32, (-1, 1))],
            lambda one: {"y": one["x"] / 2 + 2},
            version=version,
            max_batch_size=100_000,
        )
    add_model(
        engine,
        "signal",
        [TensorSpec("tag", text, (-1,)), TensorSpec("signal", fp32, (-1, -1))],
        [TensorSpec("signal", fp32, (-1, -1)), TensorSpec("tag_bytes", text, (-1,))],
        lambda one: {"signal": one["signal"], "tag_bytes": one["tag"]},
        max_batch_size=100_000,
    )
    add_model(
        engine,
        "upper",
        [TensorSpec("text", text, (-1,))],
        [TensorSpec("upper", text, (-1,))],
        lambda one: {"upper": np.array([element.upper() for element in one["text"]], object)},
    )
    add_model(
        engine,
        "explained",
        [TensorSpec("x", fp32, (-1, 2))],
        [TensorSpec("y", fp32, (-1, 1)), TensorSpec("explanations", fp32, (-1, 2))],
        lambda one: {"y": one["x"].sum(1, keepdims=True), "explanations": one["x"] / 2},
        max_batch_size=8,
    )
    add_model(
        engine,
        "square",
        [TensorSpec("x", fp32, (2, 2))],
        [TensorSpec("y", fp32, (2, 2))],
        lambda one: {"y": one["x"] ** 2},
    )
    loading = Model("loading", "1", ModelConfig("loading"))
    loading.state, loading.reason = ModelState.LOADING, "reading the file"
    engine.add(loading)
    engine.set_labels("half_plus_two", {"canary": "1"})
    engine.refresh()
    return Caller(engine, build_application(engine, dialects=("tensorflow-serving",)))


@pytest.fixture
def served() -> Caller:
    return make_caller()


def predict(caller: Caller, model: str, **body: Any) -> Any:
    return caller.post(f"/v1/models/{model}:predict", json.dumps(body).encode()).json


@pytest.mark.parametrize("exchange", EXCHANGES["exchange"], ids=lambda one: one["source"])
def test_recorded_exchanges(served: Caller, exchange: dict[str, Any]) -> None:
    method, _, path = exchange["path"].partition(" ")

    answer = served.http(method, path, exchange.get("body", "").encode()).answer

    assert answer is not None
    assert answer.status == exchange.get("status", 200), answer.body
    assert answer.fields[b"content-type"] == b"application/json"
    if "error" in exchange:
        assert answer.json == {"error": exchange["error"]}
    elif "text" in exchange:
        assert answer.body.decode() == exchange["text"]
    else:
        assert answer.json == json.loads(exchange["answer"])


def test_the_only_row_fits_a_model_without_a_batch_dimension(served: Caller) -> None:
    assert predict(served, "square", instances=[[[1, 2], [3, 4]]]) == {"predictions": [[[1, 4], [9, 16]]]}
    assert predict(served, "square", inputs=[[1, 2], [3, 4]]) == {"outputs": [[1, 4], [9, 16]]}


def test_a_prediction_has_no_explanations(served: Caller) -> None:
    assert predict(served, "explained", instances=[[1, 2]]) == {"predictions": [[3.0]]}


def test_a_model_without_explanations_says_so(served: Caller) -> None:
    answer = served.post("/v1/models/square:explain", b'{"instances": [[[1, 2], [3, 4]]]}')

    assert answer.status == 501
    assert answer.error == "model 'square' does not explain: it needs an output 'explanations', but has y"


@pytest.mark.parametrize("datatype", list(DataType), ids=lambda one: one.name)
def test_values_of_every_datatype_come_back_with_their_nesting(datatype: DataType) -> None:
    engine = Engine()
    spec = TensorSpec("x", datatype, (-1, 2, 1))
    add_model(engine, "echo", [spec], [TensorSpec("y", datatype, spec.shape)],
              lambda one: {"y": one["x"]}, max_batch_size=8)  # fmt: skip
    engine.refresh()
    caller = Caller(engine, build_application(engine))
    value = {"BOOL": [[True], [False]], "BYTES": [["a"], ["[,]"]]}.get(datatype.name, [[1], [2]])

    assert predict(caller, "echo", instances=[value, value]) == {"predictions": [value, value]}
    assert predict(caller, "echo", instances=[{"x": value}]) == {"predictions": [value]}
    assert predict(caller, "echo", inputs={"x": [value]}) == {"outputs": [value]}


@pytest.mark.parametrize("rows", ["values", "objects", "columns"])
async def test_a_large_body_is_read_and_answered_off_the_loop(served: Caller, rows: str) -> None:
    numbers = np.arange(80_000, dtype=np.float32)
    values = [[float(one)] for one in numbers]
    body = {
        "values": {"instances": values},
        "objects": {"instances": [{"x": one} for one in values]},
        "columns": {"inputs": values},
    }[rows]
    text = json.dumps(body).encode()

    request = served.http("POST", "/v1/models/half_plus_two:predict", text)
    assert request.answer is None  # the handler has not read it
    await request.answered.wait()

    answer = request.answer.json
    assert len(text) > LARGE
    assert answer[next(iter(answer))] == (numbers / 2 + 2).reshape(-1, 1).tolist()


async def test_large_texts_keep_their_brackets_and_commas(served: Caller) -> None:
    texts = [f'[{number}],{{"' for number in range(20_000)]

    answer = await served.post_large("/v1/models/upper:predict", json.dumps({"instances": texts}).encode())

    assert answer.json == {"predictions": texts}


NO_ARRAYS = (
    b"[[1,2],[3]]",
    b"[[1,2],3]",
    b"[1,[2]]",
    b"[[1],[[2]]]",
    b'["a"]',
    b"[true]",
    b"[{}]",
    b"[1e99]",
)


@pytest.mark.parametrize("text", NO_ARRAYS)
def test_what_is_no_array_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidArgument):
        read_array(TensorSpec("x", DataType.FP32, (-1, -1)), text)


@pytest.mark.parametrize(
    ("text", "shape"),
    [(b"5", ()), (b"[]", (0, 3)), (b"[[],[]]", (2, 0)), (b"[ [ 1 , 2 ] ]", (1, 2)), (b"[[[1]]]", (1, 1, 1))],
)
def test_the_nesting_is_the_shape(text: bytes, shape: tuple[int, ...]) -> None:
    assert read_array(TensorSpec("x", DataType.INT32, (-1, 3)), text).shape == shape


class TestTensorFlowServing(DialectConformance):
    (plugin,) = PLUGINS
    requests = (Sample("POST", "/v1/models/add1:predict", json.dumps({"instances": [[1.0] * 16]}).encode()),)

    @classmethod
    def add_models(cls, repository: Path) -> None:
        add1(repository)
