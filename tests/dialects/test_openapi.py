"""The OpenAPI documents are valid, describe every route, and hold the exact schemas of the models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fake_models import Caller, add_model
from openapi_spec_validator import OpenAPIV31SpecValidator

from backline.dialects.application import build_application
from backline.engine.engine import Engine
from backline.observe.metrics import Metrics
from backline.observe.recording import Recorder
from backline.plugins.dialects.openapi.operations import OPERATIONS
from backline_client.values.datatypes import DataType
from backline_client.values.signature import TensorSpec


def router_of(folder: Path) -> Any:
    engine = Engine()
    application = build_application(engine, Metrics(engine).page, recorder=Recorder(engine, folder))
    return application.http.router  # type: ignore[attr-defined]


def test_every_route_is_described_and_nothing_else(tmp_path: Path) -> None:
    routes = {(method, pattern) for method, pattern, _ in router_of(tmp_path).routes()}
    assert routes == set(OPERATIONS)


def test_the_document_of_the_server_is_valid(caller: Caller) -> None:
    document = caller.get("/openapi.json").json
    OpenAPIV31SpecValidator(document).validate()
    promote = document["paths"]["/v2/models/{model}/promote"]["post"]
    assert promote["x-backline-scope"] == "manage"
    assert [one["name"] for one in promote["parameters"]] == ["model"]


@pytest.mark.parametrize("method", ["get", "post"])
def test_the_index_of_a_named_repository_is_described_like_the_index(caller: Caller, method: str) -> None:
    paths = caller.get("/openapi.json").json["paths"]
    index = paths["/v2/repository/index"][method]
    named = paths["/v2/repository/{repository}/index"][method]
    assert named.get("requestBody") == index.get("requestBody")
    assert named["responses"] == index["responses"]


@pytest.mark.parametrize("model", ["add1", "pair", "animals", "echo_BYTES_0", "echo_BF16_2", "echo_BOOL_1"])
def test_the_document_of_a_model_is_valid(caller: Caller, model: str) -> None:
    for path in (f"/v2/models/{model}/openapi.json", f"/v2/models/{model}/versions/1/openapi.json"):
        OpenAPIV31SpecValidator(caller.get(path).json).validate()


def test_the_document_of_an_unknown_model_is_an_error(caller: Caller) -> None:
    assert caller.get("/v2/models/none/openapi.json").status == 404


@pytest.mark.parametrize(
    ("word", "valid"), [("a", True), ({"b64": "/w=="}, True), ({"b64": "/w"}, False), (1, False)]
)
def test_the_schema_of_an_inference_request_has_every_form_of_a_string(
    caller: Caller, word: object, valid: bool
) -> None:
    path = "/v2/models/echo_BYTES_1/infer"
    document = caller.get("/v2/models/echo_BYTES_1/openapi.json").json
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    tensor = {"name": "INPUT0", "datatype": "BYTES", "shape": [1], "data": [word]}
    request = {"inputs": [tensor], "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]}

    answer = caller.post(path, json.dumps(request).encode())

    assert jsonschema.Draft202012Validator(schema).is_valid(request) == valid == (answer.status == 200)


ROW = [0.5] * 16
#: Requests to a model with an FP32 input x of 16 in batches and an optional input of strings.
REQUESTS = [
    ({"x": ROW}, True),
    ({"x": [ROW, ROW], "words": [["a"], ["b"]]}, True),
    ({"x": ROW, "words": [{"b64": "AA=="}]}, True),
    ({"x": ROW[:-1]}, False),
    ({"x": [1e39, *ROW[1:]]}, False),
    ({"x": [True, *ROW[1:]]}, False),
    ({"x": ["NaN", *ROW[1:]]}, True),
    ({"words": ["a"]}, False),
    ({"x": ROW, "y": 1}, False),
    ({"x": ROW, "words": [1]}, False),
]


@pytest.mark.parametrize(("request_", "valid"), REQUESTS)
def test_the_schema_says_of_each_request_what_the_server_does(request_: dict[str, Any], valid: bool) -> None:
    engine = Engine()
    inputs = [
        TensorSpec("x", DataType.FP32, (-1, 16)),
        TensorSpec("words", DataType.BYTES, (-1, 1), optional=True),
    ]
    output = TensorSpec("y", DataType.FP32, (-1, 16))
    add_model(engine, "both", inputs, [output], lambda one: {"y": one["x"]}, max_batch_size=8)
    engine.refresh()
    engine.started()
    caller = Caller(engine, build_application(engine))
    document = caller.get("/v2/models/both/openapi.json").json
    operation = document["paths"]["/models/both"]["post"]

    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    answer = caller.post("/models/both", json.dumps(request_).encode())

    assert jsonschema.Draft202012Validator(schema).is_valid(request_) == valid == (answer.status == 200)
    if valid:
        answers = operation["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json, answers, jsonschema.Draft202012Validator)
