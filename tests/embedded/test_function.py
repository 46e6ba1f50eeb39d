"""Models as the function of a serverless platform: its events, and the platforms' own runtimes."""

from __future__ import annotations

import base64
import io
import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import backline
from backline_client.client.errors import InvalidArgument, Unavailable
from support import models
from support.repositories import put
from support.server import free_ports
from support.tools import tool

INFER = "/v2/models/add1/infer"
ONES = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [1] * 16}]}
#: Answers each element of IN after as many milliseconds as DELAY has.
REPEAT = """backend: "repeat" model_transaction_policy { decoupled: true }
input [
  { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] }, { name: "DELAY" data_type: TYPE_UINT32 dims: [ -1 ] },
  { name: "WAIT" data_type: TYPE_UINT32 dims: [ 1 ] }
]
output [
  { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] }, { name: "IDX" data_type: TYPE_UINT32 dims: [ 1 ] }
]
"""
HANDLER = """import backline

function = backline.Function({models!r})


def answer(request):
    return function.google(request)
"""
LAMBDA = "\nhandler = function.load().aws\n"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("function") / "models"
    models.add1(folder)
    put(folder / "repeat" / "config.pbtxt", REPEAT)
    put(folder / "repeat" / "1" / "empty", "")
    return folder


@pytest.fixture(scope="module")
def function(repository: Path) -> Iterator[backline.Function]:
    function = backline.Function(repository)
    yield function
    function.close()


def event(path: str, document: object = None, **headers: str) -> dict[str, Any]:
    """An event of a function URL, in the format 2.0."""
    return {
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": "",
        "headers": headers,
        "requestContext": {"stage": "$default", "http": {"method": "GET" if document is None else "POST"}},
        "body": None if document is None else json.dumps(document),
        "isBase64Encoded": False,
    }


class Context:
    """The context of a function with some time left."""

    def __init__(self, milliseconds: int) -> None:
        self._milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        return self._milliseconds


def test_a_request_is_answered_as_by_a_server(function: backline.Function) -> None:
    response = function.aws(event(INFER, ONES), Context(3000))

    assert response["statusCode"] == 200
    assert response["headers"]["content-type"] == "application/json"
    assert json.loads(response["body"])["outputs"][0]["data"] == [2.0] * 16


def test_an_event_of_format_1_is_answered(function: backline.Function) -> None:
    old = {
        "httpMethod": "POST",
        "path": INFER,
        "headers": {"Content-Type": "application/json"},
        "queryStringParameters": None,
        "body": base64.b64encode(json.dumps(ONES).encode()).decode(),
        "isBase64Encoded": True,
    }

    assert function.aws(old)["statusCode"] == 200


def test_the_stage_of_an_api_is_no_part_of_the_path(function: backline.Function) -> None:
    staged = event(f"/prod{INFER}", ONES)
    staged["requestContext"]["stage"] = "prod"

    assert function.aws(staged)["statusCode"] == 200


def test_binary_responses_are_base64(function: backline.Function) -> None:
    asked = event("/models/add1", {"INPUT0": [1] * 16}, accept="application/x-npy")

    response = function.aws(asked)

    assert response["isBase64Encoded"]
    assert np.load(io.BytesIO(base64.b64decode(response["body"]))).ravel().tolist() == [2] * 16


def test_a_stream_arrives_as_one_response(function: backline.Function) -> None:
    asked = {"IN": [7, 8], "DELAY": [0, 0], "WAIT": [0]}

    response = function.aws(event("/v2/models/repeat/generate_stream", asked))

    assert [json.loads(line[6:])["OUT"] for line in response["body"].splitlines() if line] == [7, 8]


def test_the_functions_deadline_is_the_requests(function: backline.Function) -> None:
    slow = {"IN": [7], "DELAY": [2000], "WAIT": [0]}

    response = function.aws(event("/v2/models/repeat/generate", slow), Context(210))

    assert response["statusCode"] == 504


def test_errors_have_the_form_of_a_servers(function: backline.Function) -> None:
    response = function.aws(event("/v2/models/none/infer", ONES))

    assert response["statusCode"] == 404
    assert "none" in json.loads(response["body"])["error"]


def test_callers_may_not_change_what_is_served(function: backline.Function) -> None:
    assert function.aws(event("/v2/repository/models/add1/unload", {}))["statusCode"] in (401, 403)


def test_a_compressed_body_is_refused(function: backline.Function) -> None:
    assert function.aws(event(INFER, ONES, **{"Content-Encoding": "gzip"}))["statusCode"] == 415


def test_other_events_are_refused(function: backline.Function) -> None:
    with pytest.raises(InvalidArgument, match=r"no HTTP request.*Records"):
        function.aws({"Records": []})


def test_a_model_that_cannot_be_loaded_fails_the_start(tmp_path: Path) -> None:
    put(tmp_path / "models" / "broken" / "1" / "model.onnx", "no model")

    with pytest.raises(Unavailable, match="broken"):
        backline.Function(tmp_path / "models").load()


def test_keys_in_the_environment_are_demanded(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKLINE_API_KEY", "k" * 40)
    function = backline.Function(repository, models=["add1"])
    try:
        refused = function.aws(event(INFER, ONES))
        admitted = function.aws(event(INFER, ONES, authorization=f"Bearer {'k' * 40}"))
    finally:
        function.close()

    assert (refused["statusCode"], admitted["statusCode"]) == (401, 200)


# the platforms' own runtimes


class Runtime(ThreadingHTTPServer):
    """Lambda's runtime API: gives events to the function, and takes its responses."""

    def __init__(self) -> None:
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.responses: queue.Queue[tuple[str, Any]] = queue.Queue()
        super().__init__(("127.0.0.1", 0), _RuntimeApi)

    def handle_error(self, request: object, client_address: object) -> None:
        """The function's process has ended while it waited for its next event."""


class _RuntimeApi(BaseHTTPRequestHandler):
    server: Runtime
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps(self.server.events.get()).encode()
        self.send_response(200)
        self.send_header("Lambda-Runtime-Aws-Request-Id", "1")
        self.send_header("Lambda-Runtime-Deadline-Ms", str(int((time.time() + 60) * 1000)))
        self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu:1:function:f")
        self.send_header("Lambda-Runtime-Trace-Id", "Root=1-0-0")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.responses.put((self.path.rpartition("/")[2], json.loads(body)))
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def _started(command: list[str], folder: Path, **environment: str) -> Iterator[None]:
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=output, env={**os.environ, **environment}
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def test_lambdas_runtime_runs_the_function(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("awslambdaric")
    (tmp_path / "app.py").write_text(HANDLER.format(models=str(repository)) + LAMBDA)
    runtime = Runtime()
    threading.Thread(target=runtime.serve_forever, daemon=True).start()
    runtime.events.put(event(INFER, ONES))
    began = time.monotonic()
    address = f"127.0.0.1:{runtime.server_address[1]}"
    command = [sys.executable, "-m", "awslambdaric", "app.handler"]
    with _started(command, tmp_path, AWS_LAMBDA_RUNTIME_API=address, PYTHONPATH=str(tmp_path)):
        kind, response = runtime.responses.get(timeout=60)
    runtime.shutdown()
    runtime.server_close()

    print(f"from the start of Lambda's runtime to the first response: {time.monotonic() - began:.2f} s")
    assert kind == "response", response
    assert json.loads(response["body"])["outputs"][0]["data"] == [2.0] * 16


def test_googles_framework_runs_the_function(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("functions_framework")
    (tmp_path / "main.py").write_text(HANDLER.format(models=str(repository)))
    (port,) = free_ports(1)
    command = [tool("functions-framework"), "--target", "answer", "--host", "127.0.0.1", "--port", str(port)]
    began = time.monotonic()
    with _started(command, tmp_path):
        body = _ask(f"http://127.0.0.1:{port}{INFER}", tmp_path)

    print(f"from the start of Google's framework to the first response: {time.monotonic() - began:.2f} s")
    assert json.loads(body)["outputs"][0]["data"] == [2.0] * 16


def _ask(url: str, folder: Path) -> bytes:
    request = urllib.request.Request(url, json.dumps(ONES).encode(), {"Content-Type": "application/json"})
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                body: bytes = answer.read()
                return body
        except OSError:  # it is not listening yet
            assert time.monotonic() < end, (folder / "output").read_text()
            time.sleep(0.05)
