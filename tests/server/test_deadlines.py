"""Deadlines and latency objectives of a real server with real clients: answers, timing, and counters."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from support.server import ServerProcess, serve
from support.waiting import until

#: A model that sleeps, or waits while the file GATE exists.
MODEL = """
import time
from pathlib import Path

class Model:
    def predict(self, seconds: float) -> float:
        if seconds >= 0:
            time.sleep(seconds)
            return seconds
        Path("GATE.reached").touch()
        while Path("GATE").exists():
            time.sleep(0.01)
        return seconds
"""
WAIT = -1.0
CONFIGURATIONS = {
    "sleeper": "",
    "cancelled": "",
    "hurried": "default_deadline_seconds = 0.2\n",
    "prompt": "[objective]\np99_ms = 300\n",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("models")
    for name, configuration in CONFIGURATIONS.items():
        path = Path(repository, name, "1", "model.py")
        path.parent.mkdir(parents=True)
        path.write_text(MODEL.replace("GATE", str(gate(repository.parent, name))))
        (repository / name / "model.toml").write_text(configuration)
    with serve(repository, repository.parent / "log") as running:
        running.wait_ready()
        yield running


def gate(folder: Path, model: str) -> Path:
    return folder / f"{model}.gate"


@contextmanager
def closed(server: ServerProcess, model: str) -> Iterator[Path]:
    """Makes requests for WAIT wait until the end of the `with` block. Yields the file that the model creates
    when it begins to wait.
    """
    file = gate(server.log.parent, model)
    reached = file.with_name(f"{file.name}.reached")
    reached.unlink(missing_ok=True)
    file.touch()
    try:
        yield reached
    finally:
        file.unlink()


def ask(
    server: ServerProcess, model: str, seconds: float, **headers: str
) -> tuple[int, dict[str, Any], dict[str, str], float]:
    """Status, body and fields of an answer over HTTP, and the seconds it took."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)) as connection:
        began = time.monotonic()
        send(connection, model, seconds, **headers)
        answer = connection.getresponse()
        document = json.loads(answer.read())
        return answer.status, document, dict(answer.getheaders()), time.monotonic() - began


def send(connection: http.client.HTTPConnection, model: str, seconds: float, **headers: str) -> None:
    body = json.dumps({"inputs": [{"name": "seconds", "datatype": "FP64", "shape": [1], "data": [seconds]}]})
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", f"/v2/models/{model}/infer", body, fields)


def stats(server: ServerProcess, model: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.url}/v2/models/{model}/stats", timeout=10) as answer:
        (found,) = json.load(answer)["model_stats"]
    return found  # type: ignore[no-any-return]


def failures(server: ServerProcess, model: str) -> dict[str, int]:
    """Non-zero failures by reason: Triton's reasons and Backline's finer ones."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    pattern = (
        r"^(?:nv_inference_request_failure|backline_request_failures_total)"
        rf'{{model="{model}",(?:version="1",)?reason="(\w+)".*}} (\S+)$'
    )
    return {
        reason: int(float(count)) for reason, count in re.findall(pattern, text, re.MULTILINE) if float(count)
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [("grpc_timeout", "100m"), ("grpc_timeout", "100000u"), ("x_envoy_expected_rq_timeout_ms", "100")],
)
def test_a_request_running_at_its_header_deadline_gets_504_at_that_moment(
    server: ServerProcess, field: str, value: str
) -> None:
    with closed(server, "sleeper"):  # so the response does not wait for the end of the run
        status, document, _, took = ask(server, "sleeper", WAIT, **{field: value})
    assert status == 504
    assert document["error"].startswith("The deadline of the request passed ")
    assert 0.1 <= took < 3


def test_the_earlier_deadline_field_counts_and_answers_in_time_are_unaffected(server: ServerProcess) -> None:
    assert ask(server, "sleeper", 0.5, grpc_timeout="20S", x_envoy_expected_rq_timeout_ms="100")[0] == 504
    assert ask(server, "sleeper", 0.0, grpc_timeout="20S", x_envoy_expected_rq_timeout_ms="20000")[0] == 200


def test_a_request_still_queued_at_its_deadline_never_runs(server: ServerProcess) -> None:
    until(lambda: stats(server, "sleeper")["execution_count"], lambda: server.output)
    with ThreadPoolExecutor(1) as threads:
        with closed(server, "cancelled") as reached:
            running = threads.submit(ask, server, "cancelled", WAIT)
            until(reached.exists)
            status, _, _, took = ask(server, "cancelled", 0.0, grpc_timeout="100m")
            assert (status, took < 3) == (504, True)
            assert not running.done()
        assert running.result()[0] == 200
    assert stats(server, "cancelled")["execution_count"] == 1
    assert failures(server, "cancelled") == {"REJECTED": 1, "expired": 1}
    assert stats(server, "cancelled")["inference_stats"]["fail"]["count"] == 1  # as in Triton


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("grpc_timeout", "soon", 400),
        ("grpc_timeout", "1000000000S", 400),
        ("grpc_timeout", "0m", 504),
        ("x_envoy_expected_rq_timeout_ms", "0.5", 400),
        ("x_envoy_expected_rq_timeout_ms", "0", 504),
    ],
)
def test_a_malformed_deadline_is_an_error_and_a_past_one_is_exceeded(
    server: ServerProcess, field: str, value: str, status: int
) -> None:
    assert ask(server, "sleeper", 0.0, **{field: value})[0] == status


def test_generate_honours_the_deadline(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    connection.request("POST", "/v2/models/sleeper/generate", '{"seconds": 0.5}', {"grpc-timeout": "100m"})
    assert connection.getresponse().status == 504
    connection.close()


def test_the_models_deadline_applies_unless_a_request_sets_an_earlier_one(server: ServerProcess) -> None:
    with (
        closed(server, "hurried"),
        triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client,
    ):
        status, _, _, took = ask(server, "hurried", WAIT)
        assert (status, 0.2 <= took < 3) == (504, True)
        began = time.monotonic()
        with pytest.raises(triton.InferenceServerException, match="deadline of the request passed"):
            client.infer("hurried", [_input(WAIT)])
        assert 0.2 <= time.monotonic() - began < 3
        assert failures(server, "hurried") == {"REJECTED": 2, "expired": 2}
    # The worker may still run the abandoned request, and a busy machine may need more than the 0.2 s.
    until(lambda: ask(server, "hurried", 0.0)[0] == 200, lambda: server.output)


def _input(seconds: float) -> Any:
    value = triton.InferInput("seconds", [1], "FP64")
    value.set_data_from_numpy(np.array([seconds]))
    return value


def test_an_objective_refuses_at_once_what_cannot_be_answered_in_time(server: ServerProcess) -> None:
    for _ in range(5):
        assert ask(server, "prompt", 0.05)[0] == 200
    with ExitStack() as stack:
        connections = [
            stack.enter_context(
                closing(http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30))
            )
            for _ in range(40)
        ]
        for connection in connections:
            connection.connect()
        for connection in connections:  # within a few milliseconds, also on a busy machine
            send(connection, "prompt", 0.05)
        answers = [connection.getresponse() for connection in connections]
        documents = [json.loads(answer.read()) for answer in answers]
    answered = [answer for answer in answers if answer.status == 200]
    refused = [
        (document["error"], answer.headers["retry-after"])
        for answer, document in zip(answers, documents, strict=True)
        if answer.status == 503
    ]
    assert len(answered) + len(refused) == 40
    assert 1 <= len(answered) <= 6
    words = r"model 'prompt' is too busy to respond within its objective of 300 ms, try again in \S+ s"
    assert all(re.fullmatch(words, error) for error, _ in refused)
    assert {retry for _, retry in refused} == {"1"}
    assert failures(server, "prompt") == {"REJECTED": len(refused), "too_late": len(refused)}


def test_a_refusal_over_grpc_says_when_to_retry(server: ServerProcess) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        request = triton.service_pb2.ModelInferRequest(model_name="prompt")
        tensor = request.inputs.add(name="seconds", datatype="FP64", shape=[1])
        tensor.contents.fp64_contents.append(0.05)
        calls = [infer.future(request.SerializeToString()) for _ in range(20)]
        refused = [call for call in calls if call.exception() is not None]
        assert refused
        assert {call.code() for call in refused} == {grpc.StatusCode.UNAVAILABLE}
        assert all(int(dict(call.trailing_metadata())["grpc-retry-pushback-ms"]) >= 1 for call in refused)


def test_an_objective_never_refuses_a_request_that_finds_an_empty_queue(server: ServerProcess) -> None:
    assert ask(server, "prompt", 0.4)[0] == 200  # late, but a refusal would help nobody
