"""TorchServe's own answers, recorded, compared with ours: byte by byte where a prediction succeeds, and by
status, type and the beginning of the message where it fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from support.archives import pack
from support.server import ServerProcess, serve

EXCHANGES = json.loads(Path(__file__).with_name("exchanges.json").read_text())["exchanges"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("torchserve")
    pack(folder / "models" / "echo" / "1.0" / "echo.mar")
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    with serve(folder / "models", folder / "log", environment=cache) as running:
        yield running


def ask(
    server: ServerProcess, method: str, path: str, body: str = "", kind: str = ""
) -> tuple[int, dict[str, str], str]:
    connection = HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    try:
        sent = None if method == "GET" else body.encode()
        connection.request(method, path, sent, {"content-type": kind} if kind else {})
        answer = connection.getresponse()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, fields, answer.read().decode("latin-1")
    finally:
        connection.close()


@pytest.mark.parametrize(
    "recorded", EXCHANGES, ids=lambda one: f"{one['path'][1:]}-{one['type'][:16]}-{one['body'][:8]}"
)
def test_an_answer_is_that_of_torchserve(server: ServerProcess, recorded: dict[str, Any]) -> None:
    status, fields, answer = ask(
        server, recorded["method"], recorded["path"], recorded["body"], recorded["type"]
    )

    assert status == recorded["status"]
    if status == 200 or not recorded["fields"].get("content-type"):
        assert answer == recorded["answer"]
        assert {name: fields[name] for name in recorded["fields"]} == recorded["fields"]
    else:
        expected, found = json.loads(recorded["answer"]), json.loads(answer)
        assert found == {**expected, "message": found["message"]}
        assert found["message"].startswith(expected["message"])
    assert ("content-type" in fields) == ("content-type" in recorded["fields"])


def test_requests_have_ids(server: ServerProcess) -> None:
    connection = HTTPConnection("127.0.0.1", server.http_port)
    ids = []
    for fields in ({}, {}, {"x-request-id": "mine"}):
        connection.request("POST", "/predictions/echo", b"text", fields)
        answer = connection.getresponse()
        answer.read()
        ids.append(answer.headers["x-request-id"])
    connection.close()

    assert len(set(ids)) == 3
    assert ids[2] == "mine"


#: What TorchServe 0.12.0 answered to these requests, one after the other: status, type of the error, and the
#: beginning of the message.
MANAGEMENT = (
    ("POST", "/models", 400, "BadRequestException", "Parameter url is required."),
    ("POST", "/models?url=nope.mar", 404, "ModelNotFoundException", "Model not found at: nope.mar"),
    (
        "POST",
        "/models?url=../x.mar",
        404,
        "ModelNotFoundException",
        "Relative path is not allowed in url: ../x.mar",
    ),
    ("GET", "/models/nope", 404, "ModelNotFoundException", "Model not found: nope"),
    (
        "POST",
        "/models?url=echo.mar&initial_workers=1&synchronous=true",
        200,
        "",
        'Model "echo" Version: 2.0 registered with 1 initial workers',
    ),
    (
        "POST",
        "/models?url=echo.mar",
        409,
        "ConflictStatusException",
        "Model version 2.0 is already registered for model echo",
    ),
    (
        "GET",
        "/models/echo/9.0",
        404,
        "ModelVersionNotFoundException",
        "Model version: 9.0 does not exist for model: echo",
    ),
    (
        "PUT",
        "/models/echo?min_worker=3&max_worker=2",
        400,
        "BadRequestException",
        "max_worker cannot be less than min_worker.",
    ),
    (
        "PUT",
        "/models/echo/2.0?min_worker=1&synchronous=true",
        200,
        "",
        "Workers scaled to 1 for model: echo, version: 2.0",
    ),
    (
        "PUT",
        "/models/echo/1.0/set-default",
        200,
        "",
        'Default version successfully updated for model "echo" to "1.0"',
    ),
    (
        "PUT",
        "/models/echo/7.0/set-default",
        404,
        "ModelVersionNotFoundException",
        "Model version 7.0 does not exist for model echo",
    ),
    (
        "DELETE",
        "/models/echo/1.0",
        403,
        "InvalidModelVersionException",
        "Cannot remove default version for model echo",
    ),
    ("DELETE", "/models/echo/2.0", 200, "", 'Model "echo" unregistered'),
    ("DELETE", "/models/echo", 200, "", 'Model "echo" unregistered'),
    ("DELETE", "/models/nope", 404, "ModelNotFoundException", "Model not found: nope"),
    # These two differ: workers are those of the configuration, and settings are not those of requests.
    (
        "POST",
        "/models?url=echo.mar&batch_size=4",
        400,
        "BadRequestException",
        "parameter 'batch_size' cannot",
    ),
    ("POST", "/models?url=http://host/x.mar", 501, "UnsupportedOperationException", "the server registers"),
)


def test_models_are_managed_as_in_torchserve(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for version in ("1.0", "2.0"):
        pack(models / "echo" / version / "echo.mar", version)
    (models / "echo" / "config.pbtxt").write_text('backend: "torchserve"\nversion_policy { all {} }\n')
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    explicit = ("--model-control-mode", "explicit")
    with serve(models, tmp_path / "log", *explicit, environment=cache) as running:
        for method, path, status, kind, text in MANAGEMENT:
            got, _, answer = ask(running, method, path)
            found = json.loads(answer)
            assert (got, found.get("type", "")) == (status, kind), (path, answer)
            assert found["status" if status == 200 else "message"].startswith(text), (path, answer)
            if path.endswith("1.0/set-default"):
                assert json.loads(ask(running, "POST", "/predictions/echo", "x")[2])["version"] == "1.0"
                check_descriptions(running)


def check_descriptions(running: ServerProcess) -> None:
    assert json.loads(ask(running, "GET", "/models?limit=1")[2]) == {
        "models": [{"modelName": "echo", "modelUrl": "echo.mar"}]
    }
    both = json.loads(ask(running, "GET", "/models/echo/all?customized=true")[2])
    assert [one["modelVersion"] for one in both] == ["1.0", "2.0"]
    for one in both:
        assert (one["modelName"], one["modelUrl"], one["runtime"]) == ("echo", "echo.mar", "python")
        assert (one["minWorkers"], one["batchSize"], one["deviceType"]) == (1, 1, "cpu")
        assert [worker["status"] for worker in one["workers"]] == ["READY"]
        assert one["jobQueueStatus"]["pendingRequests"] == 0
        assert one["customizedMetadata"] == {"labels": ["cat", "dog"]}
    assert "customizedMetadata" not in json.loads(ask(running, "GET", "/models/echo")[2])[0]
