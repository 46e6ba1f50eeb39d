"""Recording on a running server, by command and over HTTP, and the warm-up that follows at the next start."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backline.observe.prediction_log import read_log
from backline.observe.recording import recorded_file
from backline_client.client import connect
from support import models
from support.server import ServerProcess, serve
from support.waiting import until


def ask(server: ServerProcess, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
    request = urllib.request.Request(f"{server.url}{path}", body or None, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_the_command_records_and_the_next_load_replays(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    state = tmp_path / "state"
    with (
        serve(tmp_path / "models", tmp_path / "log", "--state-dir", str(state)) as server,
        connect(server.grpc_url) as client,
    ):
        command = [
            sys.executable,
            "-m",
            "backline",
            "models",
            "record",
            "add1",
            "--count",
            "3",
            "--json",
            "--url",
            server.url,
        ]
        recording = subprocess.Popen(command, stdout=subprocess.PIPE)
        stop = threading.Event()

        def keep_asking() -> None:
            while not stop.is_set():
                client["add1"](np.full((2, 16), 5, np.float32))

        asking = threading.Thread(target=keep_asking)
        asking.start()
        output, _ = recording.communicate(timeout=60)
        stop.set()
        asking.join()
        assert recording.returncode == 0
        assert {key: json.loads(output)[key] for key in ("model", "state", "recorded")} == {
            "model": "add1",
            "state": "done",
            "recorded": 3,
        }
    requests = list(read_log(recorded_file(state, "add1")))
    assert [request.inputs["INPUT0"].data.tolist() for request in requests] == [[[5.0] * 16] * 2] * 3
    # The load reports the damaged recording, which shows that it reads it.
    recorded_file(state, "add1").write_bytes(b"damaged")
    with serve(tmp_path / "models", tmp_path / "log", "--state-dir", str(state), ready=False) as server:
        until(lambda: "failed to load 'add1'" in server.output, lambda: server.output)
        assert "add1.tfrecord', record 1: the file ends in the middle of this record" in server.output


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b'{"count": 0}', 400, "count is 0, expected 1 to 1000"),
        (b'{"cuont": 8}', 400, "unknown key 'cuont'. Did you mean 'count'?"),
        (b"[]", 400, "failed to parse the request JSON"),
    ],
)
def test_invalid_recording_requests_are_refused_with_the_reason(
    server: ServerProcess, body: bytes, status: int, reason: str
) -> None:
    answered, document = ask(server, "POST", "/v2/models/add1/record", body)
    assert answered == status
    assert reason in document["error"]


def test_a_recording_can_be_started_queried_and_stopped_over_http(server: ServerProcess) -> None:
    begun = ask(server, "POST", "/v2/models/slow/record", b'{"count": 5}')
    assert (begun[0], begun[1]["state"], begun[1]["recorded"]) == (200, "recording", 0)
    with connect(server.url) as client:
        client["slow"](np.ones((1, 512), np.float32))
    assert ask(server, "GET", "/v2/models/slow/record")[1]["recorded"] == 1
    status, stopped = ask(server, "DELETE", "/v2/models/slow/record")
    assert (status, stopped["state"], stopped["reason"]) == (200, "done", "the recording was stopped")
    Path(stopped["file"]).unlink()


def test_a_model_without_a_recording_is_404(server: ServerProcess) -> None:
    status, document = ask(server, "GET", "/v2/models/ident/record")
    assert (status, document["error"]) == (
        404,
        "no requests of model 'ident' have been recorded since the server started; start a recording first",
    )
