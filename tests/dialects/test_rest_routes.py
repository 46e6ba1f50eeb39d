"""Routes of the REST dialect, without inference."""

from __future__ import annotations

import json
import time

import pytest
from fake_models import Caller, arrived_at, fill_engine

from backline.dialects.application import build_application
from backline.engine.engine import Engine
from backline.engine.model import LoadProgress, ModelState


def test_server_metadata(caller: Caller) -> None:
    document = caller.get("/v2").json
    assert document["name"] == "backline"
    assert document["version"]
    assert "binary_tensor_data" in document["extensions"]
    assert not {"trace", "logging", "system_shared_memory", "model_repository"} & set(document["extensions"])


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_health_has_both_keys(caller: Caller, path: str) -> None:
    caller.engine.find("loading").state = ModelState.READY
    answer = caller.get(path)
    assert (answer.status, answer.json) == (200, {"live": True, "ready": True})


def test_not_ready_is_503_with_both_keys(caller: Caller) -> None:
    answer = caller.get("/v2/health/ready")
    assert (answer.status, answer.json) == (503, {"live": True, "ready": False})
    assert caller.get("/v2/health/live").status == 200


def test_with_the_status_of_triton_health_checks_answer_without_a_body(caller: Caller) -> None:
    as_triton = Caller(caller.engine, build_application(caller.engine, not_ready_status=400))
    answers = [as_triton.get(f"/v2/{path}") for path in ("health/ready", "health/live", "models/add1/ready")]
    assert [(answer.status, answer.body) for answer in answers] == [(400, b""), (200, b""), (200, b"")]
    assert list(as_triton.get("/v2/models/nope/ready").json) == ["error"]


def test_models_are_listed_with_their_states(caller: Caller) -> None:
    document = caller.get("/v2/models").json
    assert {"add1", "pair", "loading", "empty"} <= set(document["models"])
    versions = {(entry["name"], entry["version"]): entry for entry in document["versions"]}
    assert versions["add1", "2"] == {
        "name": "add1",
        "version": "2",
        "state": "READY",
        "reason": "",
        "ready": True,
        "default": True,
        "labels": [],
        "memory_bytes": 0,
    }
    assert versions["add1", "1"]["default"] is False
    assert (versions["loading", "1"]["state"], versions["loading", "1"]["reason"]) == (
        "LOADING",
        "reading the file",
    )
    assert versions["loading", "1"]["ready"] is False


def test_the_list_tells_labels_memory_and_progress(caller: Caller) -> None:
    caller.engine.set_labels("add1", {"stable": "1", "canary": "2", "old": "1"})
    caller.engine.find("add1", "1").memory_bytes = 5_000_000
    caller.engine.find("loading").progress = LoadProgress("fetch", time.monotonic() - 3, 10, 100)
    caller.engine.refresh()
    versions = {
        (entry["name"], entry["version"]): entry for entry in caller.get("/v2/models").json["versions"]
    }
    stable = versions["add1", "1"]
    assert (stable["labels"], stable["default"], stable["memory_bytes"]) == (
        ["old", "stable"],
        True,
        5_000_000,
    )
    progress = versions["loading", "1"]["progress"]
    assert 3 <= progress.pop("seconds") < 60
    assert progress == {"phase": "fetch", "bytes_done": 10, "bytes_total": 100}


def test_a_model_that_is_loaded_on_demand_is_ready(caller: Caller) -> None:
    assert caller.get("/v2/models/loading/ready").status == 503
    caller.engine.find("loading").on_demand = True
    assert caller.get("/v2/models/loading/ready").json == {"name": "loading", "ready": True}
    assert caller.rpc("ModelReady", name="loading").ready is True
    assert caller.get("/v2/health/ready").status == 200


async def test_statistics_tell_the_memory_of_a_version(caller: Caller) -> None:
    caller.engine.find("add1", "2").memory_bytes = 4096
    usage = {
        entry["version"]: entry["memory_usage"]
        for entry in (await caller.get_later("/v2/models/add1/stats")).json["model_stats"]
    }
    assert usage == {"1": [], "2": [{"type": "CPU", "id": 0, "byte_size": 4096}]}
    assert (await caller.rpc_later("ModelStatistics", name="add1", version="2")).model_stats[0].memory_usage[
        0
    ].byte_size == 4096


def test_model_metadata_has_full_shapes(caller: Caller) -> None:
    assert caller.get("/v2/models/add1").json == {
        "name": "add1",
        "versions": ["1", "2"],
        "platform": "numpy_function",
        "inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [-1, 16]}],
        "outputs": [{"name": "OUTPUT0", "datatype": "FP32", "shape": [-1, 16]}],
    }
    assert caller.get("/v2/models/add1/versions/1").json["versions"] == ["1"]


@pytest.mark.parametrize("suffix", ["", "/ready", "/config"])
def test_unknown_models_and_versions_are_404_in_tritons_words(caller: Caller, suffix: str) -> None:
    answer = caller.get("/v2/models/nope" + suffix)
    assert (answer.status, answer.error) == (404, "Request for unknown model: 'nope' is not found")
    answer = caller.get("/v2/models/add1/versions/7" + suffix)
    assert (answer.status, answer.error) == (404, "Request for unknown model: 'add1' version 7 is not found")


def test_statistics_of_unknown_models_and_versions_are_404_in_tritons_words(caller: Caller) -> None:
    answer = caller.get("/v2/models/nope/stats")
    assert (answer.status, answer.error.partition(":")[0]) == (404, "requested model 'nope' is not available")
    answer = caller.get("/v2/models/add1/versions/7/stats")
    assert answer.status == 404
    assert answer.error.startswith("requested model version is not available for model 'add1': ")


def test_model_ready(caller: Caller) -> None:
    answer = caller.get("/v2/models/add1/ready")
    assert (answer.status, answer.json) == (200, {"name": "add1", "ready": True})
    answer = caller.get("/v2/models/loading/versions/1/ready")
    assert answer.status == 503
    assert answer.json["ready"] is False
    assert answer.json["error"] == "Model version not ready: 'loading' version 1 is LOADING: reading the file"


def test_names_are_percent_decoded(caller: Caller) -> None:
    assert caller.get("/v2/models/%61dd1/versions/%31/ready").status == 200
    assert caller.get("/v2/models/n%C3%B6").error == "Request for unknown model: 'nö' is not found"
    assert caller.get("/v2/models/%FF").status == 400


def test_config(caller: Caller) -> None:
    config = caller.get("/v2/models/add1/config").json
    assert config["max_batch_size"] == 64
    assert config["input"][0]["dims"] == [16]
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert config["input"][0]["optional"] is False
    assert config["dynamic_batching"]["preferred_batch_size"] == [64]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 0
    assert config["instance_group"][0]["count"] == 2
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert config["default_model_filename"] == "model.npy"
    config = caller.get("/v2/models/pair/config").json
    assert config["input"][0]["dims"] == [2]
    assert "dynamic_batching" not in config


async def test_statistics(caller: Caller) -> None:
    statistics = caller.engine.find("add1", "2").statistics
    statistics.record_batch([arrived_at(0), arrived_at(10)], 8, 100, 110, 150, 160)
    (entry,) = (await caller.get_later("/v2/models/add1/versions/2/stats")).json["model_stats"]
    assert entry["inference_count"] == 8
    assert entry["execution_count"] == 1
    assert entry["inference_stats"]["success"]["count"] == 2
    assert entry["inference_stats"]["queue"] == {"count": 2, "ns": 190}
    assert entry["batch_stats"] == [
        {
            "batch_size": 8,
            "compute_input": {"count": 1, "ns": 10},
            "compute_infer": {"count": 1, "ns": 40},
            "compute_output": {"count": 1, "ns": 10},
        }
    ]
    assert "call_stats" not in entry
    assert [
        entry["version"] for entry in (await caller.get_later("/v2/models/add1/stats")).json["model_stats"]
    ] == ["1", "2"]
    assert "pair" in [
        entry["name"] for entry in (await caller.get_later("/v2/models/stats")).json["model_stats"]
    ]


async def test_statistics_tell_why_requests_were_not_answered(caller: Caller) -> None:
    statistics = caller.engine.find("add1", "2").statistics
    counters = (
        "rejected_full",
        "rejected_total",
        "rejected_late",
        "expired",
        "cancelled",
        "rejected_invalid",
    )
    for number, counter in enumerate(counters, 1):
        setattr(statistics, counter, number)
    statistics.fail.add(7, 1000)
    (entry,) = (await caller.get_later("/v2/models/add1/versions/2/stats")).json["model_stats"]
    assert entry["failure_stats"] == {
        "queue_full": 1,
        "total_limit": 2,
        "too_late": 3,
        "expired": 4,
        "cancelled": 5,
        "invalid": 6,
        "failed": 7,
    }


@pytest.mark.parametrize(
    ("method", "body"), [("GET", b""), ("POST", b""), ("POST", b"{}"), ("POST", b'{"ready":false}')]
)
def test_repository_index(caller: Caller, method: str, body: bytes) -> None:
    answer = caller.http(method, "/v2/repository/index", body).answer
    assert {"name": "add1", "version": "1", "state": "READY"} in answer.json
    assert {"name": "empty"} in answer.json


def test_repository_index_of_ready_models(caller: Caller) -> None:
    entries = caller.post("/v2/repository/index", b'{"ready":true}').json
    assert {entry["state"] for entry in entries} == {"READY"}


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"ready":1}', b'{"redy":true}', b"\xff", b'{"x":' + b"[" * 50_000]
)
def test_malformed_index_request(caller: Caller, body: bytes) -> None:
    assert caller.post("/v2/repository/index", body).status == 400


def test_the_index_of_a_named_repository_lists_all_models(caller: Caller) -> None:
    named, whole = caller.post("/v2/repository/mine/index"), caller.post("/v2/repository/index")
    assert (named.status, named.json) == (200, whole.json)


@pytest.mark.parametrize("path", ["/v2/repository/models/add1/load", "/v2/logging"])
def test_routes_not_served_are_501(caller: Caller, path: str) -> None:
    answer = caller.post(path, b"{}")
    assert answer.status == 501
    assert "is not supported" in answer.error


def test_wrong_method_tells_the_right_ones(caller: Caller) -> None:
    answer = caller.post("/v2/health/live")
    assert answer.status == 405
    assert answer.fields[b"allow"] == b"GET, HEAD, OPTIONS"
    assert answer.error.startswith("Method Not Allowed")
    assert caller.get("/v2/models/add1/infer").fields[b"allow"] == b"OPTIONS, POST"


def test_options_tell_the_methods(caller: Caller) -> None:
    answer = caller.http("OPTIONS", "/v2/models/add1/infer").answer
    assert (answer.status, answer.fields[b"allow"], answer.body) == (204, b"OPTIONS, POST", b"")
    assert caller.http("OPTIONS", "*").answer.status == 204


def test_head_wherever_get(caller: Caller) -> None:
    for path in ("/", "/v2", "/v2/health/live", "/v2/models/add1/ready"):
        assert caller.http("HEAD", path).answer.status == 200


def test_unknown_route_suggests_a_near_one(caller: Caller) -> None:
    answer = caller.get("/v2/modles/add1")
    assert (answer.status, answer.error) == (
        404,
        "Not Found: GET /v2/modles/add1 (did you mean /v2/models/add1?)",
    )
    assert caller.get("/nothing/like/it").error == "Not Found: GET /nothing/like/it"
    assert caller.get("/v2/models/add1/redy").error.endswith("(did you mean /v2/models/add1/ready?)")


def test_only_routes_that_take_the_method_are_suggested(caller: Caller) -> None:
    assert caller.post("/v2/models/add1/infre").error.endswith("(did you mean /v2/models/add1/infer?)")
    assert caller.post("/v2/models/add1/redy").error == "Not Found: POST /v2/models/add1/redy"


@pytest.mark.parametrize(
    ("method", "path", "instead"),
    [
        ("POST", "add1:predict", "inference is POST /v2/models/add1/infer"),
        ("POST", "add1/versions/2:classify", "inference is POST /v2/models/add1/versions/2/infer"),
        ("POST", "add1/labels/stable:predict", "inference is POST /v2/models/add1/versions/stable/infer"),
        ("GET", "add1", "the state of a model is GET /v2/models/add1/ready"),
        ("GET", "add1/versions/2/metadata", "metadata is GET /v2/models/add1/versions/2"),
    ],
)
def test_a_route_of_tensorflow_serving_gets_the_route_to_use_instead(
    method: str, path: str, instead: str
) -> None:
    engine = fill_engine()
    caller = Caller(engine, build_application(engine, dialects=()))

    answer = caller.http(method, f"/v1/models/{path}").answer

    assert answer.status == 404
    assert answer.error == (
        f"Not Found: {method} /v1/models/{path}. The REST protocol of TensorFlow Serving (v1 of KServe) is"
        f" not served, because --dialects leaves it out; in the Open Inference Protocol, {instead}"
    )


def test_trailing_slash(caller: Caller) -> None:
    assert caller.get("/v2/").status == 200
    assert caller.get("/v2/models/add1/").status == 200


def test_index_page_names_server_and_urls(caller: Caller) -> None:
    answer = caller.get("/")
    assert answer.json["name"] == "backline"
    assert answer.json["urls"]["infer"] == "/v2/models/{model}/infer"


async def test_metrics(caller: Caller) -> None:
    answer = await caller.get_later("/metrics")
    assert (answer.status, answer.fields[b"content-type"], answer.body) == (
        200,
        b"text/plain; charset=utf-8",
        b"metric 1\nother 2\n",
    )


async def test_metrics_that_fail_are_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> tuple[bytes, list[bytes]]:
        raise RuntimeError("secret detail")

    engine = Engine()
    answer = await Caller(engine, build_application(engine, fail)).get_later("/metrics")
    assert answer.status == 500
    assert "internal error" in answer.error
    assert "secret" not in answer.error
    assert "secret detail" in caplog.text


def test_many_paths_are_not_all_remembered(caller: Caller) -> None:
    for number in range(5000):
        assert caller.get(f"/v2/models/m{number}").status == 404
    assert caller.get("/v2/models/add1").status == 200


def test_errors_of_the_wire_have_the_same_shape(caller: Caller) -> None:
    content_type, body = caller.application.render_error(431, 'too "large"')
    assert content_type == b"application/json"
    assert json.loads(body) == {"error": 'too "large"'}
