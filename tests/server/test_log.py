"""The log of a running server: its contents, and that failures to write it never affect serving."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import backline
from backline.lifecycle.options import LifecycleOptions
from backline.observe.log.server_log import ServerLog
from backline.observe.log.settings import LogSettings
from backline.server import Server, ServerOptions
from backline_client.protos import message
from support import models
from support.server import ServerProcess, free_ports, serve

BROKEN = "broken"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers and one whose failed load is logged."""
    folder = tmp_path_factory.mktemp("models")
    models.add1(folder)
    broken = folder / BROKEN / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a model")
    return folder


def answers(server: ServerProcess) -> bool:
    with backline.connect(server.url) as client:
        return bool((client["add1"](np.zeros((1, 16), np.float32))["OUTPUT0"] == 1).all())


def test_the_log_can_be_json_lines_in_a_file(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.log"
    with serve(
        repository, tmp_path / "log", "--log-format", "json", "--log-file", str(file), ready=False
    ) as server:
        server.wait_started()
        assert server.stop() == 0

    documents = [json.loads(line) for line in file.read_text().splitlines()]
    assert any(document["level"] == "error" and BROKEN in document["message"] for document in documents)
    assert "ERROR" not in server.output


def test_startup_fails_if_the_log_file_cannot_be_opened(repository: Path, tmp_path: Path) -> None:
    with serve(
        repository, tmp_path / "log", "--log-file", str(tmp_path / "nowhere" / "log"), ready=False
    ) as server:
        assert server.process.wait(30) == 2

    assert f"--log-file {tmp_path / 'nowhere' / 'log'}: No such file or directory" in server.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_does_not_affect_serving(repository: Path, tmp_path: Path) -> None:
    with serve(
        repository, tmp_path / "log", "--log-level", "debug", "--log-file", "/dev/full", ready=False
    ) as server:
        server.wait_started()
        assert answers(server)
        assert server.stop() == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("what", ["closed", "a pipe without a reader", "a full disk"])
def test_a_closed_standard_stream_does_not_affect_serving(
    repository: Path, tmp_path: Path, stream: str, what: str
) -> None:
    (port,) = free_ports(1)
    command = [
        sys.executable,
        "-m",
        "backline",
        "serve",
        str(repository),
        "--http-port",
        str(port),
        "--no-grpc",
        "--no-metrics",
    ]
    command += ["--log-level", "debug", "--no-strict-readiness"]
    if what == "closed":
        command = ["sh", "-c", f'exec "$@" {"1" if stream == "stdout" else "2"}>&-', "sh", *command]
    if what == "a full disk" and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    reading, writing = os.pipe()
    os.close(reading)
    log = tmp_path / "log"
    with (
        log.open("wb") as output,
        Path("/dev/full" if what == "a full disk" else os.devnull).open("wb") as full,
    ):
        gone = full if what == "a full disk" else writing
        streams = {"stdout": output, "stderr": output, stream: gone}
        process = subprocess.Popen(command, stdout=streams["stdout"], stderr=streams["stderr"])
    os.close(writing)
    server = ServerProcess(process, port, 0, 0, log)
    try:
        server.wait_ready()
        assert answers(server)
    finally:
        assert server.stop() == 0
    assert ("Stopped" in server.output) == (stream == "stderr")


SLEEPER = """
backend: "identity" max_batch_size: 8 parameters { key: "execute_delay_ms" value { string_value: "400" } }
input [{ name: "x" data_type: TYPE_FP32 dims: [4] }] output [{ name: "y" data_type: TYPE_FP32 dims: [4] }]
"""
INFER = "/v2/models/add1/infer"
ZEROS = {"name": "INPUT0", "datatype": "FP32", "shape": [2, 16], "data": [0] * 32}
ASLEEP = {"id": "asleep", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0] * 4}]}


@pytest.fixture
def request_lines(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """A function that returns the log's request lines so far."""

    def lines() -> list[dict[str, Any]]:
        documents = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()]
        return [document for document in documents if document["logger"] == "backline.requests"]

    return lines


@contextmanager
def logging_server(tmp_path: Path, *options: str) -> Iterator[ServerProcess]:
    """A server that logs JSON to a file."""
    models.add1(tmp_path / "models")
    (tmp_path / "models" / "sleeper" / "1").mkdir(parents=True)
    (tmp_path / "models" / "sleeper" / "config.pbtxt").write_text(SLEEPER)
    with serve(
        tmp_path / "models",
        tmp_path / "log",
        "--log-format",
        "json",
        "--log-file",
        str(tmp_path / "log.json"),
        "--model-control-mode",
        "poll",
        *options,
    ) as server:
        yield server


def post(server: ServerProcess, path: str, document: object, **fields: str) -> int:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    request = urllib.request.Request(f"{server.url}{path}", json.dumps(document).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_log_settings_cannot_be_changed_where_model_control_is_off(repository: Path, tmp_path: Path) -> None:
    """A client that may only infer can neither fill the disk nor hide errors."""
    with serve(repository, tmp_path / "log", ready=False) as server:
        server.wait_started()
        assert post(server, "/v2/logging", {"log_verbose_level": 2}) == 503
        with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/LogSettings")
            request = message("inference.LogSettingsRequest")(settings={"log_error": {"bool_param": False}})
            with pytest.raises(grpc.RpcError) as caught:
                call(request.SerializeToString())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "--model-control-mode poll or explicit" in caught.value.details()
            call(b"")
        with urllib.request.urlopen(f"{server.url}/v2/logging") as answer:
            shown = json.load(answer)
        assert (shown["log_verbose_level"], shown["log_error"]) == (0, True)
        assert post(server, "/v2/logging", {}) == 200


def test_a_verbose_log_has_one_line_per_request(
    tmp_path: Path, request_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """While it is verbose, and also if requests are traced at the same time."""
    traces = tmp_path / "traces.json"
    tracing = (f"triton,file={traces}", "rate=1", "level=TIMESTAMPS")
    with logging_server(
        tmp_path, *(word for setting in tracing for word in ("--trace-config", setting))
    ) as server:
        assert post(server, INFER, {"id": "before", "inputs": [ZEROS]}) == 200
        assert post(server, "/v2/logging", {"log_verbose_level": 1}) == 200
        assert post(server, INFER, {"id": "one\ntwo", "inputs": [ZEROS]}) == 200
        assert post(server, INFER, {"id": "unfit", "inputs": [{**ZEROS, "name": "other"}]}) == 400
        assert post(server, INFER, []) == 400
        assert post(server, "/v2/models/nobody/infer", {"inputs": [ZEROS]}) == 404
        with backline.connect(server.grpc_url) as client:
            client["add1"](np.zeros((1, 16), np.float32))
            assert len(list(client["add1"].stream(np.zeros((1, 16), np.float32)))) == 1
        assert post(server, "/v2/logging", {"log_verbose_level": 0}) == 200
        assert post(server, INFER, {"id": "after", "inputs": [ZEROS]}) == 200
        assert server.stop() == 0

    keys = ("protocol", "model", "version", "id", "status", "batch_size")
    assert [tuple(line.get(key) for key in keys) for line in request_lines()] == [
        ("HTTP", "add1", "1", "one\ntwo", 200, 2),
        ("HTTP", "add1", "1", "unfit", 400, None),
        ("HTTP", "add1", None, None, 400, None),
        ("HTTP", "nobody", None, None, 404, None),
        ("GRPC", "add1", "1", None, "OK", 1),
        ("GRPC", "add1", "1", None, "OK", 1),
    ]
    for line in request_lines():
        if line["status"] in (200, "OK"):
            assert 0 <= line["queue_us"] + line["compute_us"] <= line["duration_us"]
        else:
            assert line["message"].endswith(line["error"])
    asked = {trace["request_id"] for trace in json.loads(traces.read_text()) if "request_id" in trace}
    assert {"before", "one\ntwo", "after"} <= asked


def test_a_verbose_log_records_deadlines_and_disconnects(
    tmp_path: Path, request_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    with logging_server(tmp_path, "--log-verbose", "1") as server:
        path = "/v2/models/sleeper/infer"
        assert post(server, path, ASLEEP, grpc_timeout="50m") == 504
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port)
        connection.request("POST", path, json.dumps(ASLEEP))
        connection.close()
        assert post(server, path, ASLEEP) == 200  # it queues after the other request

        assert server.stop() == 0

    assert sorted((line["id"], line["status"]) for line in request_lines()) == [
        ("asleep", 200),
        ("asleep", 499),
        ("asleep", 504),
    ]


def test_a_log_that_is_not_verbose_adds_nothing_to_the_request_path(tmp_path: Path) -> None:
    async def ways() -> list[bool]:
        log = ServerLog(LogSettings(file=str(tmp_path / "log")))
        options = ServerOptions(
            (tmp_path,),
            LifecycleOptions(state_folder=tmp_path),
            http_port=0,
            grpc_port=None,
            metrics_port=None,
        )
        with log.installed():
            server = Server(options, log)
            await server.start()
            own = []
            for level in (0, 1, 0):
                log.update({"log_verbose_level": level})
                own.append(server.engine.tracer is None and "submit" not in vars(server.engine))
            await server.stop()
        return own

    assert asyncio.run(ways()) == [True, False, True]
