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
