"""Changing models over REST and gRPC."""

from __future__ import annotations

import asyncio
import base64
import json

import numpy as np
import pytest
from fake_control import FakeControl
from fake_models import OIP, Caller, FakeHttpRequest, FakeUnaryCall, HttpAnswer

from backline_client.protos import message
from backline_client.values.control import Overrides
from backline_client.values.errors import InvalidArgument

LOAD = "/v2/repository/models/loading/load"
UNREADABLE = "failed to load 'loading', failed to poll from model repository: "
NOT_SUPPORTED = "is not supported by this server: start it with --model-control-mode explicit"


@pytest.fixture
def control(caller: Caller) -> FakeControl:
    caller.engine.control = FakeControl(caller.engine)
    return caller.engine.control


async def ask(
    caller: Caller,
    method: str,
    path: str,
    document: object = None,
    headers: dict[bytes, bytes] | None = None,
    peer: str = "",
) -> HttpAnswer:
    """The response to a request; `path` may include a query."""
    target, _, query = path.partition("?")
    body = b"" if document is None else json.dumps(document).encode()
    request = FakeHttpRequest(method.encode(), target.encode(), headers or {}, body, query.encode(), peer)
    caller.application.http(request)
    await request.answered.wait()
    assert request.answer is not None
    return request.answer


async def call(
    caller: Caller, method: str, metadata: dict[bytes, bytes] | None = None, **fields: object
) -> FakeUnaryCall:
    asked = FakeUnaryCall(metadata)
    received = message(f"inference.{method}Request")(**fields).SerializeToString()
    caller.application.rpc[OIP + method.encode()].handler(asked, received)  # type: ignore[arg-type]
    await asked.answered.wait()
    return asked


# without control


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/models/add1/load"),
        ("POST", "/v2/repository/models/add1/unload"),
        ("POST", "/v2/repository/models/add1/versions/1/load"),
        ("POST", "/v2/repository/refresh"),
        ("GET", "/v2/repository/history"),
        ("PUT", "/v2/models/add1/labels/stable"),
        ("DELETE", "/v2/models/add1/labels/stable"),
        ("POST", "/v2/models/add1/promote"),
        ("POST", "/v2/models/add1/rollback"),
    ],
)
async def test_change_without_control_is_501_and_names_the_option(
    caller: Caller, method: str, path: str
) -> None:
    answer = await ask(caller, method, path)
    assert answer.status == 501
    assert answer.error.endswith(NOT_SUPPORTED)


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
async def test_without_control_grpc_is_unimplemented(caller: Caller, method: str) -> None:
    asked = await call(caller, method, model_name="add1")
    assert (asked.code, asked.error) == (12, f"loading and unloading models by request {NOT_SUPPORTED}")


async def test_the_extension_is_named_where_it_works(caller: Caller, control: FakeControl) -> None:
    extensions = caller.get("/v2").json["extensions"]
    assert {"model_repository", "model_repository(unload_dependents)"} <= set(extensions)
    assert list(caller.rpc("ServerMetadata").extensions) == extensions


# load and unload


async def test_load_answers_when_the_model_is_ready(caller: Caller, control: FakeControl) -> None:
    control.gate.clear()
    request = caller.http("POST", LOAD)
    await asyncio.sleep(0)
    assert request.answer is None
    control.gate.set()
    await request.answered.wait()
    assert (request.answer.status, request.answer.body) == (200, b"")
    assert control.calls == [("load", "loading", "", None)]
    assert caller.get("/v2/models/loading/ready").status == 200


async def test_a_client_that_goes_away_does_not_cancel_its_load(caller: Caller, control: FakeControl) -> None:
    control.gate.clear()
    request = caller.http("POST", LOAD)
    if request.on_abandon is not None:
        request.on_abandon()
    asked = caller.rpc_call("RepositoryModelLoad", model_name="add1")
    if asked.on_abandon is not None:
        asked.on_abandon()
    control.gate.set()
    await request.answered.wait()
    await asked.answered.wait()
    assert [entry[1] for entry in control.calls] == ["loading", "add1"]


async def test_the_reason_of_a_failed_load_is_the_answer(caller: Caller, control: FakeControl) -> None:
    control.failure = InvalidArgument(
        "load failed for model 'loading': version 1 is at UNAVAILABLE state: broken"
    )
    answer = await ask(caller, "POST", LOAD)
    assert (answer.status, answer.error) == (
        400,
        "load failed for model 'loading': version 1 is at UNAVAILABLE state: broken",
    )
    asked = await call(caller, "RepositoryModelLoad", model_name="loading")
    assert (asked.code, asked.error) == (3, answer.error)


async def test_an_unexpected_exception_is_hidden(caller: Caller, control: FakeControl) -> None:
    control.failure = ValueError("secret")
    answer = await ask(caller, "POST", LOAD)
    assert answer.status == 500
    assert "secret" not in answer.error


async def test_memory_that_is_used_up_is_503_without_a_traceback(
    caller: Caller, control: FakeControl, caplog: pytest.LogCaptureFixture
) -> None:
    control.failure = MemoryError()
    answer = await ask(caller, "POST", LOAD)
    assert (answer.status, answer.fields[b"retry-after"]) == (503, b"1")
    assert (await call(caller, "RepositoryModelLoad", model_name="loading")).code == 14
    assert [record.exc_info for record in caplog.records] == [None, None]


async def test_overrides_come_as_base64_over_rest(caller: Caller, control: FakeControl) -> None:
    content = bytes(range(256)) * 8192  # base64 of several pieces
    parameters = {
        "config": '{"max_batch_size": 2}',
        "file:1/model.onnx": base64.b64encode(content).decode(),
        "file:labels.txt": "",
    }
    assert (await ask(caller, "POST", LOAD, {"parameters": parameters})).status == 200
    assert control.calls == [
        (
            "load",
            "loading",
            "",
            Overrides('{"max_batch_size": 2}', {"1/model.onnx": content, "labels.txt": b""}),
        ),
    ]


async def test_overrides_come_as_bytes_over_grpc(caller: Caller, control: FakeControl) -> None:
    parameters = {"config": {"string_param": "{}"}, "file:1/model.onnx": {"bytes_param": b"\x00\xff"}}
    assert (await call(caller, "RepositoryModelLoad", model_name="loading", parameters=parameters)).code == 0
    assert control.calls == [("load", "loading", "", Overrides("{}", {"1/model.onnx": b"\x00\xff"}))]


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (
            {"file:1/model.onnx": "AAAA"},
            f"{UNREADABLE}Load parameter 'config' must be specified for model file override",
        ),
        (
            {"confg": "{}"},
            (
                "unexpected error on creating Triton parameter: unrecognized load parameter 'confg'."
                " Did you mean 'config'?"
            ),
        ),
        (
            {"config": {"max_batch_size": 1}},
            (
                "attempt to access JSON non-string as string: invalid value type for load parameter 'config',"
                " expected a string: the configuration as JSON"
            ),
        ),
        (
            {"config": "{}", "file:1/model.onnx": "*"},
            "the value of load parameter 'file:1/model.onnx' is not base64",
        ),
        (
            {"config": "{}", "file:../x": ""},
            f"{UNREADABLE}load parameter 'file:../x' does not name a file inside the model's folder",
        ),
        (
            {"config": "{}", "file:/../x": ""},
            f"{UNREADABLE}load parameter 'file:../x' does not name a file inside",
        ),
        (
            {"config": "{}", "file:1/\0": ""},
            f"{UNREADABLE}load parameter 'file:1/\\x00' does not name a file inside",
        ),
    ],
)
async def test_wrong_load_parameters_over_rest(
    caller: Caller, control: FakeControl, parameters: object, text: str
) -> None:
    answer = await ask(caller, "POST", LOAD, {"parameters": parameters})
    assert answer.status == 400
    assert answer.error.startswith(text)
    assert control.calls == []


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (
            {"file:1/model.onnx": {"bytes_param": b""}},
            f"{UNREADABLE}Load parameter 'config' must be specified for model file override",
        ),
        ({"x": {"string_param": "{}"}}, "unrecognized load parameter 'x'."),
        (
            {"config": {"bytes_param": b"{}"}},
            "invalid value type for load parameter 'config', expected string_param.",
        ),
        (
            {"file:1": {"string_param": ""}},
            "invalid value type for load parameter 'file:1', expected bytes_param.",
        ),
    ],
)
async def test_wrong_load_parameters_over_grpc(
    caller: Caller, control: FakeControl, parameters: object, text: str
) -> None:
    asked = await call(caller, "RepositoryModelLoad", model_name="loading", parameters=parameters)
    assert asked.code == 3
    assert asked.error.startswith(text)
    assert control.calls == []


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"parametres": {}}, "unknown key 'parametres'. Did you mean 'parameters'?"),
        ({"parameters": []}, "Expected `object`, got `array` - at `$.parameters`"),
        ([], "Expected `object`, got `array`"),
    ],
)
async def test_wrong_load_documents(
    caller: Caller, control: FakeControl, document: object, text: str
) -> None:
    answer = await ask(caller, "POST", LOAD, document)
    assert (answer.status, answer.error) == (400, f"failed to parse the request JSON: {text}")


async def test_one_version_is_loaded_and_unloaded(caller: Caller, control: FakeControl) -> None:
    assert (await ask(caller, "POST", "/v2/repository/models/add1/versions/2/unload")).status == 200
    assert caller.get("/v2/models/add1").json["versions"] == ["1"]
    assert (await ask(caller, "POST", "/v2/repository/models/add1/versions/2/load")).status == 200
    assert caller.get("/v2/models/add1").json["versions"] == ["1", "2"]
    assert control.calls == [("unload", "add1", "2", False), ("load", "add1", "2", None)]


async def test_dependents_are_unloaded_where_asked_for(caller: Caller, control: FakeControl) -> None:
    await ask(
        caller, "POST", "/v2/repository/models/pair/unload", {"parameters": {"unload_dependents": True}}
    )
    await call(
        caller,
        "RepositoryModelUnload",
        model_name="add1",
        parameters={"unload_dependents": {"bool_param": True}},
    )
    await call(caller, "RepositoryModelUnload", model_name="animals")
    assert [entry[-1] for entry in control.calls] == [True, True, False]


async def test_wrong_unload_parameters(caller: Caller, control: FakeControl) -> None:
    answer = await ask(
        caller, "POST", "/v2/repository/models/pair/unload", {"parameters": {"unload_dependants": True}}
    )
    assert (
        answer.error == "unrecognized unload parameter 'unload_dependants'. Did you mean 'unload_dependents'?"
    )
    answer = await ask(
        caller, "POST", "/v2/repository/models/pair/unload", {"parameters": {"unload_dependents": 1}}
    )
    assert answer.error == "invalid value type for 'unload_dependents' parameter, expected true or false"
    asked = await call(
        caller,
        "RepositoryModelUnload",
        model_name="pair",
        parameters={"unload_dependents": {"int64_param": 1}},
    )
    assert (asked.code, asked.error) == (
        3,
        "invalid value type for 'unload_dependents' parameter, expected bool_param.",
    )


@pytest.mark.parametrize("action", ["load", "unload"])
async def test_a_named_repository_is_refused(caller: Caller, control: FakeControl, action: str) -> None:
    answer = await ask(caller, "POST", f"/v2/repository/mine/models/add1/{action}")
    assert (answer.status, answer.error) == (501, "'repository_name' specification is not supported")
    asked = await call(caller, f"RepositoryModel{action.title()}", repository_name="mine", model_name="add1")
    assert (asked.code, asked.error) == (12, answer.error)


async def test_no_model_cannot_be_loaded_and_is_unloaded_already(
    caller: Caller, control: FakeControl
) -> None:
    caller.engine.loads_by_request = True

    loaded, unloaded = [await call(caller, f"RepositoryModel{action}") for action in ("Load", "Unload")]

    text = "failed to load '', failed to poll from model repository: the name of the model is empty"
    assert (loaded.code, loaded.error) == (3, f"{text}: set model_name")
    assert unloaded.code == 0
    assert control.calls == []


async def test_the_path_of_a_file_may_begin_with_a_slash(caller: Caller, control: FakeControl) -> None:
    await ask(caller, "POST", LOAD, {"parameters": {"config": "{}", "file:/1/model.onnx": "AAAA"}})

    assert control.calls == [("load", "loading", "", Overrides("{}", {"1/model.onnx": bytes(3)}))]


async def test_a_malformed_message_is_refused(caller: Caller, control: FakeControl) -> None:
    asked = caller.call(OIP + b"RepositoryModelLoad", b"\xff")
    assert asked.code == 3
    assert asked.error.startswith("the message is not an inference.RepositoryModelLoadRequest")


# labels


async def test_a_label_is_set_moved_listed_and_removed(caller: Caller, control: FakeControl) -> None:
    answer = await ask(caller, "PUT", "/v2/models/add1/labels/canary", {"version": 2})
    assert answer.status == 200
    assert answer.json == {
        "time": 1764000000.0,
        "who": "",
        "action": "label",
        "model": "add1",
        "version": "2",
        "label": "canary",
        "before": "",
        "detail": "",
    }
    assert (
        await ask(caller, "PUT", "/v2/models/add1/labels/canary", {"version": "1", "expected": "2"})
    ).json["before"] == "2"
    assert caller.get("/v2/models/add1/labels").json == {"name": "add1", "labels": {"canary": "1"}}
    assert (await ask(caller, "DELETE", "/v2/models/add1/labels/canary?expected=1")).json[
        "action"
    ] == "unlabel"
    assert caller.get("/v2/models/add1/labels").json == {"name": "add1", "labels": {}}


async def test_a_label_that_moved_meanwhile_stays(caller: Caller, control: FakeControl) -> None:
    await ask(caller, "POST", "/v2/models/add1/promote", {"version": "1"})
    answer = await ask(caller, "PUT", "/v2/models/add1/labels/stable", {"version": "2", "expected": ""})
    assert (answer.status, answer.error) == (400, "label 'stable' of model 'add1' points to 1, not to ")
    assert caller.get("/v2/models/add1/labels").json["labels"] == {"stable": "1"}


async def test_promote_and_rollback_move_the_default_version(caller: Caller, control: FakeControl) -> None:
    document = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}]}
    await ask(caller, "POST", "/v2/models/add1/promote", {"version": "2"})
    await ask(caller, "POST", "/v2/models/add1/promote", {"version": "1", "expected": "2"})
    assert caller.infer("add1", document).json["model_version"] == "1"
    change = (await ask(caller, "POST", "/v2/models/add1/rollback", {"label": "stable"})).json
    assert (change["before"], change["version"]) == ("1", "2")
    assert caller.infer("add1", document).json["model_version"] == "2"


@pytest.mark.parametrize(
    ("method", "path", "document", "text"),
    [
        (
            "PUT",
            "/v2/models/add1/labels/x",
            {"versoin": "1"},
            "unknown key 'versoin'. Did you mean 'version'?",
        ),
        ("PUT", "/v2/models/add1/labels/x", {}, "Object missing required field `version`"),
        (
            "POST",
            "/v2/models/add1/promote",
            {"version": True},
            "Expected `int | str`, got `bool` - at `$.version`",
        ),
        ("POST", "/v2/models/add1/rollback", {"lable": "x"}, "unknown key 'lable'. Did you mean 'label'?"),
    ],
)
async def test_wrong_label_documents(
    caller: Caller, control: FakeControl, method: str, path: str, document: object, text: str
) -> None:
    answer = await ask(caller, method, path, document)
    assert (answer.status, answer.error) == (400, f"failed to parse the request JSON: {text}")


def test_labels_of_an_unknown_model(caller: Caller) -> None:
    assert caller.get("/v2/models/nope/labels").status == 404
    assert caller.get("/v2/models/empty/labels").json == {"name": "empty", "labels": {}}


async def test_a_label_stands_wherever_a_version_does(caller: Caller, control: FakeControl) -> None:
    await ask(caller, "PUT", "/v2/models/add1/labels/old", {"version": "1"})
    document = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}]}
    answered = caller.post("/v2/models/add1/versions/old/infer", json.dumps(document).encode())
    assert answered.json["model_version"] == "1"
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 16]}
    raw = np.ones((1, 16), np.float32).tobytes()
    found = caller.rpc_infer(
        model_name="add1", model_version="old", inputs=[tensor], raw_input_contents=[raw]
    )
    assert found.model_version == "1"
    assert caller.get("/v2/models/add1/versions/old/ready").status == 200
    assert (await caller.get_later("/v2/models/add1/versions/old/stats")).json["model_stats"][0][
        "version"
    ] == "1"
    assert caller.rpc("ModelReady", name="add1", version="old").ready
    assert (await caller.rpc_later("ModelStatistics", name="add1", version="old")).model_stats[
        0
    ].version == "1"


# history and refresh


async def test_history_names_the_user_of_each_change(caller: Caller, control: FakeControl) -> None:
    await ask(
        caller,
        "POST",
        "/v2/models/add1/promote",
        {"version": "1"},
        {b"x-backline-user": b"ada@laptop"},
        "10.0.0.7",
    )
    await ask(caller, "POST", "/v2/repository/models/pair/load", None, {}, "10.0.0.8")
    metadata = {b"x-backline-user": "adä\nline\x1b[31m".encode() + b"x" * 500}
    await call(caller, "RepositoryModelUnload", metadata, model_name="pair")
    changes = (await ask(caller, "GET", "/v2/repository/history")).json["changes"]
    assert [(change["action"], change["model"]) for change in changes] == [
        ("unload", "pair"),
        ("load", "pair"),
        ("label", "add1"),
    ]
    forged, address, named = (change["who"] for change in changes)
    assert forged == "adä?line?[31m" + "x" * 51 + " (local)"
    assert (address, named) == ("10.0.0.8", "ada@laptop (10.0.0.7)")


async def test_the_history_is_filtered_and_limited(caller: Caller, control: FakeControl) -> None:
    for version in ("1", "2", "1"):
        await ask(caller, "POST", "/v2/models/add1/promote", {"version": version})
    await ask(caller, "POST", "/v2/repository/models/pair/load")
    changes = (await ask(caller, "GET", "/v2/repository/history?model=add1&limit=2")).json["changes"]
    assert [(change["model"], change["version"], change["before"]) for change in changes] == [
        ("add1", "1", "2"),
        ("add1", "2", "1"),
    ]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("limt=3", "unknown key 'limt'. Did you mean 'limit'?"),
        ("limit=many", "Expected `int`, got `str` - at `$.limit`"),
        ("limit=0", "limit is 0, expected 1 to 1000"),
        ("limit=1&limit=2", "a parameter was given twice"),
        ("model=%ff", "invalid start byte"),
    ],
)
async def test_wrong_queries(caller: Caller, control: FakeControl, query: str, text: str) -> None:
    answer = await ask(caller, "GET", f"/v2/repository/history?{query}")
    assert answer.status == 400
    assert text in answer.error


async def test_refresh_looks_at_the_repositories(caller: Caller, control: FakeControl) -> None:
    assert (await ask(caller, "POST", "/v2/repository/refresh")).status == 200
    assert control.calls == [("refresh",)]


# names

NO_NAMES = ["%2Ftmp%2Fx", "..%2Fx", "%2E%2E", "%2Ex", "a%5Cb", "a%00b", "a%0Ab", "__pycache__", "x" * 256]


@pytest.mark.parametrize("name", NO_NAMES)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/{}"),
        ("GET", "/v2/models/{}/ready"),
        ("GET", "/v2/models/{}/config"),
        ("GET", "/v2/models/{}/stats"),
        ("GET", "/v2/models/{}/labels"),
        ("POST", "/v2/models/{}/infer"),
        ("POST", "/v2/models/{}/infer_stream"),
        ("POST", "/v2/models/{}/generate"),
        ("POST", "/v2/models/{}/generate_stream"),
        ("GET", "/v2/models/{}/versions/1/ready"),
        ("GET", "/v2/models/add1/versions/{}/ready"),
        ("POST", "/v2/models/add1/versions/{}/infer"),
    ],
)
async def test_a_name_that_nothing_can_have_is_a_fault_of_the_client(
    caller: Caller, method: str, path: str, name: str
) -> None:
    whole = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [0.0] * 16}]}
    answer = await ask(caller, method, path.format(name), whole if method == "POST" else None)
    assert answer.status == 400, answer.body
    assert answer.error.startswith("the name of the ")
    assert len(answer.error) < 300


@pytest.mark.parametrize("name", ["/tmp/x", "..", "a\0b", "x" * 256])
@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("ModelReady", "name"),
        ("ModelMetadata", "name"),
        ("ModelConfig", "name"),
        ("ModelStatistics", "name"),
        ("ModelInfer", "model_name"),
    ],
)
async def test_a_name_that_nothing_can_have_is_an_invalid_argument(
    caller: Caller, method: str, field: str, name: str
) -> None:
    asked = await call(caller, method, **{field: name})
    assert asked.code == 3
    assert asked.error.startswith("the name of the model ")
