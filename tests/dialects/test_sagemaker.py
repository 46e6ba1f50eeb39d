"""SageMaker's container routes: bodies of many types, the Open Inference Protocol, and boto3's client."""

from __future__ import annotations

import http.client
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from fake_models import Caller, HttpAnswer, add_model

from backline.access.access import Access, Policy
from backline.access.identity import Grant, Identity, anonymous
from backline.access.keys import hash_key
from backline.access.scope import Scope
from backline.cli.serve import platforms
from backline.cli.serve.options import server_options
from backline.dialects.application import build_application
from backline.engine.engine import Engine
from backline.plugins.dialects.sagemaker import PLUGINS
from backline.testing.dialects import DialectConformance, Sample
from backline_client.values.datatypes import DataType
from backline_client.values.signature import TensorSpec
from support import models
from support.server import serve

ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
BINARY = "application/vnd.sagemaker-triton.binary+json"
INFER = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
#: What sends requests to a container as SageMaker does: /endpoints/NAME/invocations is /invocations.
HOP_BY_HOP = frozenset(("connection", "transfer-encoding", "content-length", "date", "server"))


def make_caller(*names: str, **options: Any) -> Caller:
    engine = Engine()
    for name in names or ("double",):
        add_model(
            engine,
            name,
            [TensorSpec("x", DataType.FP32, (-1, 2))],
            [TensorSpec("y", DataType.FP32, (-1, 2))],
            lambda one: {"y": one["x"] * 2},
            max_batch_size=8,
        )
    engine.refresh()
    engine.started()
    return Caller(engine, build_application(engine, **options))


def ask(caller: Caller, path: str, body: bytes, kind: str = "application/json", **fields: str) -> HttpAnswer:
    headers = {b"content-type": kind.encode()} if kind else {}
    headers |= {name.encode(): value.encode() for name, value in fields.items()}
    answer = caller.http("POST", path, body, headers).answer
    assert answer is not None
    return answer


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("path", ["/invocations", "/models/double/invoke"])
def test_a_body_of_inputs_by_name_runs_the_model(path: str) -> None:
    answer = ask(make_caller(), path, b'{"x": [[1, 2]]}')

    assert (answer.status, answer.json) == (200, {"y": [[2.0, 4.0]]})


def test_accept_chooses_the_form_of_the_response() -> None:
    body = npy(np.array([[1, 2]], np.float32))

    answer = ask(make_caller(), "/invocations", body, "application/x-npy", accept="application/x-npy")

    assert np.load(io.BytesIO(answer.body)).tolist() == [[2.0, 4.0]]


@pytest.mark.parametrize("kind", ["application/json", ""])
@pytest.mark.parametrize("first", [{}, {"id": "7"}, {"id": "7", "parameters": {"a": "[{"}}])
def test_requests_of_the_open_inference_protocol_are_recognised(kind: str, first: dict[str, Any]) -> None:
    answer = ask(make_caller(), "/invocations", json.dumps(first | {"inputs": [INFER]}).encode(), kind)

    assert answer.status == 200, answer.body
    assert answer.json["outputs"][0]["data"] == [2.0, 4.0]  # type: ignore[index]


def test_tensors_in_binary_form_follow_json_whose_length_the_media_type_tells() -> None:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    document = {"inputs": [tensor], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
    header = json.dumps(document).encode()
    body = header + np.array([1, 2], np.float32).tobytes()

    answer = ask(make_caller(), "/invocations", body, f"{BINARY};json-header-size={len(header)}")

    assert answer.status == 200, answer.body
    kind, _, size = answer.fields[b"content-type"].decode().partition(";json-header-size=")
    assert kind == BINARY
    assert np.frombuffer(answer.body[int(size) :], np.float32).tolist() == [2.0, 4.0]


@pytest.mark.parametrize("size", ["", "x", "9" * 30, "99999"])
def test_a_media_type_with_a_wrong_length_is_refused(size: str) -> None:
    answer = ask(make_caller(), "/invocations", b"{}", f"{BINARY};json-header-size={size}")

    assert answer.status in (400, 415)


def test_custom_attributes_come_back() -> None:
    answer = ask(make_caller(), "/invocations", b'{"x": [[1, 2]]}', **{ATTRIBUTES: "trace=7"})

    assert answer.fields[ATTRIBUTES.encode()] == b"trace=7"


def test_several_models_need_a_default_model() -> None:
    body = b'{"x": [[1, 2]]}'

    refused = ask(make_caller("a", "b"), "/invocations", body)

    assert refused.status == 400
    assert refused.error == (
        "POST /invocations runs the server's only model, but the server has 2 models; name the one to run"
        " with --default-model when starting the server"
    )
    assert ask(make_caller("a", "b", default_model="b"), "/invocations", body).status == 200
    assert ask(make_caller("a", "b", default_model="c"), "/invocations", body).status == 404
    assert ask(make_caller("a", "b"), "/models/b/invoke", body).status == 200
    empty = Caller(Engine(), build_application(Engine()))
    assert ask(empty, "/invocations", body).status == 404


def test_a_key_for_some_models_runs_the_default_model_if_it_is_one_of_them() -> None:
    keys = {hash_key("bk_a"): Identity("a", (Grant(frozenset({Scope.INFER}), ("a",)),))}
    access = Access(Policy(anonymous(()), keys))

    statuses = [
        ask(
            make_caller("a", "b", access=access, default_model=name),
            "/invocations",
            b'{"x": [[1, 2]]}',
            authorization="Bearer bk_a",
        ).status
        for name in ("a", "b")
    ]

    assert statuses == [200, 403]


def test_ping_is_answered_with_and_without_other_dialects() -> None:
    assert make_caller().get("/ping").json == {"status": "Healthy"}
    assert make_caller(dialects=("sagemaker",)).get("/ping").json == {"ready": True}
    loading = Caller(Engine(), build_application(Engine(), dialects=("sagemaker",)))
    assert loading.get("/ping").status == 503


class TestSageMaker(DialectConformance):
    plugin = PLUGINS[0]
    requests = (
        Sample("POST", "/invocations", b'{"INPUT0": [%b]}' % b",".join([b"1.0"] * 16)),
        Sample("POST", "/models/add1/invoke", b'{"INPUT0": [%b]}' % b",".join([b"1.0"] * 16)),
    )

    @classmethod
    def add_models(cls, repository: Path) -> None:
        models.add1(repository)


class StandIn(BaseHTTPRequestHandler):
    """Forwards the requests to an endpoint to a container's /invocations, as SageMaker does."""

    container = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        connection = http.client.HTTPConnection("127.0.0.1", self.container, timeout=60)
        # SageMaker keeps the signature of a request to itself.
        own = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("host", "authorization")
        }
        connection.request("POST", "/invocations", body, own)
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("sagemaker")
    models.add1(folder / "models")
    with serve(folder / "models", folder / "log") as running:
        handler = type("Handler", (StandIn,), {"container": running.http_port})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as stand_in:
            threading.Thread(target=stand_in.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{stand_in.server_port}"
            stand_in.shutdown()


CALLS = """
import io, json, sys
import boto3, botocore.exceptions, numpy as np

runtime = boto3.client(
    "sagemaker-runtime", endpoint_url=sys.argv[1], region_name="eu-west-1",
    aws_access_key_id="a", aws_secret_access_key="b",
)


def invoke(body, **more):
    answer = runtime.invoke_endpoint(EndpointName="add1", Body=body, **more)
    return answer, answer["Body"].read()


ones = [[1.0] * 16]
for number in range(8):
    answer, body = invoke(json.dumps({"INPUT0": [[float(number)] * 16]}), ContentType="application/json")
    assert json.loads(body)["OUTPUT0"][0][0] == number + 1, body
answer, body = invoke(
    json.dumps({"INPUT0": ones}),
    ContentType="application/json", Accept="application/x-npy", CustomAttributes="a=1",
)
assert np.load(io.BytesIO(body)).tolist() == [[2.0] * 16]
assert (answer["ContentType"], answer["CustomAttributes"]) == ("application/x-npy", "a=1"), answer
tensor = {"name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": ones[0]}
answer, body = invoke(json.dumps({"inputs": [tensor]}), ContentType="application/json")
assert json.loads(body)["outputs"][0]["data"][0] == 2.0
file = io.BytesIO()
np.save(file, np.array(ones, np.float32))
answer, body = invoke(file.getvalue(), ContentType="application/x-npy")
assert json.loads(body)["OUTPUT0"][0][0] == 2.0, body
for body, status in ((b"{", 400), (b'{"INPUT": 1}', 400)):
    try:
        invoke(body, ContentType="application/json")
    except botocore.exceptions.ClientError as error:
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == status, error
    else:
        raise AssertionError("not refused")
print("13 calls")
"""


def test_boto3_invokes_the_endpoint(endpoint: str) -> None:
    called = subprocess.run(
        [sys.executable, "-c", CALLS, endpoint], capture_output=True, text=True, timeout=120, check=False
    )

    assert called.stdout == "13 calls\n", called.stderr


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    monkeypatch.setattr(platforms, "SAGEMAKER_MODELS", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def parse(*arguments: str) -> Any:
    """Returns the options that `backline serve` gets from its arguments and environment."""
    parsed = []
    command = click.command()(server_options(lambda options, **_: parsed.append(options)))
    result = CliRunner().invoke(command, arguments)
    return parsed[0] if parsed else result.output


def test_the_arguments_of_sagemaker_start_the_server_where_it_expects(container: Path) -> None:
    options = parse("serve")

    assert (options.repositories, options.host, options.http_port) == ((str(container),), "0.0.0.0", 8080)


def test_the_environment_of_a_container_has_precedence(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "9000")
    assert parse("serve").http_port == 9000
    monkeypatch.setenv("BACKLINE_HTTP_PORT", "9001")
    assert parse("serve").http_port == 9001
    monkeypatch.delenv("BACKLINE_HTTP_PORT")
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "x")
    assert "SAGEMAKER_BIND_TO_PORT is not a port: 'x'" in parse("serve")


def test_a_folder_with_the_name_serve_is_a_repository(container: Path, tmp_path: Path) -> None:
    (tmp_path / "serve").mkdir()

    assert parse("serve").repositories == ("serve",)
