"""TorchServe's own answers to gRPC calls, recorded, compared with ours: whole where a call succeeds, and by
status, the beginning of the text and the type of the error where it fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from dialects.torchserve.rpc_calls import ask
from support.archives import pack
from support.server import ServerProcess, serve

RECORDED = json.loads(Path(__file__).with_name("rpc_exchanges.json").read_text())["exchanges"]


def listed(name: str) -> str:
    """Returns a page with one model."""
    models = [{"modelName": name, "modelUrl": f"{name}.mar"}]
    return json.dumps({"models": models}, indent=2)


_HTTP = "org.pytorch.serve.http."
#: What we answer instead, by the method and the recorded answers.
DIFFERENT: tuple[tuple[str, Any, dict[str, Any]], ...] = (
    # TorchServe's own bugs.
    (
        "UnregisterModel",
        {"model_name": "echo", "model_version": "1.0"},
        {
            "code": "PERMISSION_DENIED",
            "text": f"Cannot remove default version for model echo\n{_HTTP}InvalidModelVersionException",
        },
    ),
    (
        "UnregisterModel",
        {},
        {
            "code": "NOT_FOUND",
            "text": "Model not found: \norg.pytorch.serve.archive.model.ModelNotFoundException",
        },
    ),
    (
        "StreamPredictions",
        {"model_name": "echo", "input": {"data": "text"}},
        {"answers": [{"prediction": "plain text"}]},
    ),
    (
        "ListModels",
        {},
        {"answers": [{"msg": listed("echo")}]},
    ),
    (
        "ListModels",
        {"limit": 1, "next_page_token": 1},
        {"answers": [{"msg": listed("other")}]},
    ),
    # Types with their package.
    (
        "Predictions",
        {"model_name": "", "input": {"data": "x"}},
        {"code": "INTERNAL", "text": f"Parameter model_name is required.\n{_HTTP}BadRequestException"},
    ),
    (
        "StreamPredictions2",
        [{"model_name": "echo", "input": {"data": "hello"}}],
        {
            "answers": [
                {
                    "status": [
                        13,
                        "Parameter sequenceId is required.",
                        f"\n*{_HTTP}BadRequestException",
                    ]
                }
            ]
        },
    ),
    # A stream goes on after an error.
    (
        "StreamPredictions2",
        [{"model_name": "nope", "sequence_id": "s", "input": {"data": "x"}}],
        {
            "answers": [
                {
                    "sequence_id": "s",
                    "status": [
                        13,
                        "Model not found: nope",
                        "\n6org.pytorch.serve.archive.model.ModelNotFoundException",
                    ],
                }
            ]
        },
    ),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("rpc")
    models = folder / "models"
    for version in ("1.0", "2.0"):
        pack(models / "echo" / version / "echo.mar", version)
    (models / "echo" / "config.pbtxt").write_text('backend: "torchserve"\nversion_policy { all {} }\n')
    pack(models / "other" / "1.0" / "other.mar", name="other")
    options = ("--model-control-mode", "explicit", "--load-model", "echo")
    with serve(
        models, folder / "log", *options, environment={"XDG_CACHE_HOME": str(folder / "cache")}
    ) as running:
        yield running


def expected(recorded: dict[str, Any]) -> dict[str, Any]:
    for method, request, instead in DIFFERENT:
        if (method, request) == (recorded["method"], recorded["request"]):
            return {"answers": [], **instead}
    return {key: value for key, value in recorded.items() if key not in ("method", "request")}


def test_calls_are_answered_as_by_torchserve(server: ServerProcess) -> None:
    """One test, because the calls change the models that later calls see."""
    channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
    for recorded in RECORDED:
        found = ask(channel, channel, recorded["method"], recorded["request"])
        wanted = expected(recorded)
        what = (recorded["method"], recorded["request"], found)
        assert (found["answers"], found.get("code")) == (wanted["answers"], wanted.get("code")), what
        if "code" in wanted:
            (text, _, kind), (beginning, _, same) = (one["text"].rpartition("\n") for one in (found, wanted))
            assert text.startswith(beginning), what
            assert kind == same, what
    channel.close()
    assert len(RECORDED) >= 35


def test_every_difference_is_one(server: ServerProcess) -> None:
    asked = [(recorded["method"], recorded["request"]) for recorded in RECORDED]
    for method, request, instead in DIFFERENT:
        recorded = RECORDED[asked.index((method, request))]
        assert {"answers": [], **instead} != {
            key: recorded[key] for key in ("answers", "code", "text") if key in recorded
        }


def test_models_are_described(server: ServerProcess) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        request = {"model_name": "echo", "customized": True}
        (answer,) = ask(channel, channel, "DescribeModel", request)["answers"]
        (found,) = json.loads(answer["msg"])
        assert (found["modelName"], found["modelUrl"], found["runtime"]) == ("echo", "echo.mar", "python")
        assert found["customizedMetadata"] == {"labels": ["cat", "dog"]}


def test_requests_of_a_stream_are_answered_in_order(server: ServerProcess) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        requests = [
            {"model_name": "echo", "sequence_id": str(number), "input": {"data": data}}
            for number, data in enumerate(("text", "broken", "number"))
        ]
        first, failed, last = ask(channel, channel, "StreamPredictions2", requests)["answers"]
    assert (first, last) == (
        {"prediction": "plain text", "sequence_id": "0"},
        {"prediction": "3.5", "sequence_id": "2"},
    )
    code, text, _ = failed["status"]
    assert code == 14
    assert text.startswith("Prediction failed: ")
    assert text.endswith("KeyError: 'it broke'")
