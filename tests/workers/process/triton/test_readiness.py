"""A model of Triton's Python backend reports its readiness through `is_ready`."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc

from support.server import ServerProcess, serve

#: The content of the file `says` decides what `is_ready` does.
MODEL = """
import time
from pathlib import Path

import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in given]

    {kind} is_ready(self):
        says = Path({says!r}).read_text()
        if says == "raises":
            raise ValueError("no weights")
        return {{"yes": True, "no": False}}.get(says, says)
"""
CONFIG = """
backend: "python"
input [ { name: "x" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
NAMES = {"plain": "def", "asynchronous": "async def"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readiness")
    for name, kind in NAMES.items():
        version = folder / "models" / name / "1"
        version.mkdir(parents=True)
        (folder / name).write_text("no")
        (version / "model.py").write_text(MODEL.format(kind=kind, says=str(folder / name)))
        (version.parent / "config.pbtxt").write_text(CONFIG)
    own = folder / "models" / "own" / "1"
    own.mkdir(parents=True)
    (own / "model.py").write_text(
        MODEL.format(kind="def", says=str(folder / "plain")).replace(
            "is_ready(self)", "is_ready(self, request)"
        )
    )
    (own.parent / "config.pbtxt").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    with serve(folder / "models", folder / "log", ready=False) as running:
        yield running


def ask(url: str, body: bytes | None = None) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=10) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def until_reported(server: ServerProcess, name: str, *, ready: bool, why: str = "") -> dict:
    deadline = time.monotonic() + 20
    while True:
        try:
            status, answer = ask(f"{server.url}/v2/models/{name}/ready")
        except urllib.error.URLError:
            status, answer = 0, {}
        if (status == 200) is ready and status and why in answer.get("error", ""):
            return answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_as_ready_as_its_is_ready_says(server: ServerProcess, folder: Path, name: str) -> None:
    for says, why in (("no", "returned False"), ("raises", "no weights"), ("perhaps", "returned a str")):
        (folder / name).write_text(says)
        until_reported(server, name, ready=False, why=why)
    assert ask(f"{server.url}/v2/health/ready")[0] == 503
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        assert not client.is_model_ready(name)

    (folder / name).write_text("yes")

    until_reported(server, name, ready=True)


def test_an_unready_model_still_serves_requests(server: ServerProcess, folder: Path) -> None:
    (folder / "plain").write_text("no")
    until_reported(server, "plain", ready=False)

    body = json.dumps({"inputs": [{"name": "x", "datatype": "INT32", "shape": [1], "data": [7]}]}).encode()
    status, answer = ask(f"{server.url}/v2/models/plain/infer", body)

    assert (status, answer["outputs"][0]["data"]) == (200, [7])


def test_the_server_is_ready_once_all_models_are(server: ServerProcess, folder: Path) -> None:
    for name in NAMES:
        (folder / name).write_text("yes")
        until_reported(server, name, ready=True)

    assert ask(f"{server.url}/v2/health/ready")[0] == 200


def test_an_is_ready_with_arguments_is_not_called(server: ServerProcess, folder: Path) -> None:
    (folder / "plain").write_text("no")
    until_reported(server, "plain", ready=False)

    assert ask(f"{server.url}/v2/models/own/ready")[0] == 200
