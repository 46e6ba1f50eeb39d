"""The parsers read real output of the load generators."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from threading import Thread
from time import time

import pytest
from harness import h2load, perf_analyzer, wrk
from harness.environment import CannotRun

Recorded = Callable[[str], str]


def test_wrk_rate_latencies_and_count(recorded: Recorded) -> None:
    result = wrk.parse(recorded("wrk.txt"))

    assert result.requests_per_second == pytest.approx(17499.82, rel=1e-4)
    assert (result.p50_us, result.p99_us, result.requests, result.errors) == (213, 403, 17504, 0)


def test_wrk_counts_refused_and_broken_responses_as_errors(recorded: Recorded) -> None:
    output = (
        recorded("wrk.txt")
        .replace('"read": 0', '"read": 3')
        .replace('"status": 0', '"status": 40')
        .replace('"timeout": 0', '"timeout": 2')
    )

    assert wrk.parse(output).errors == 45


def test_wrk_without_a_result_reports_its_output() -> None:
    with pytest.raises(CannotRun, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_perf_analyzer_rate_latencies_and_count(recorded: Recorded) -> None:
    result = perf_analyzer.parse(recorded("perf_analyzer.txt"))

    assert result.requests_per_second == 10929.3
    assert (result.p50_us, result.p99_us, result.requests, result.errors) == (340, 738, 13287, 0)


def test_perf_analyzer_without_a_result_reports_its_error() -> None:
    output = "Request concurrency: 1\nerror: failed to get model config: Method not found!\n"

    with pytest.raises(CannotRun, match="Method not found"):
        perf_analyzer.parse(output)


def test_h2load_rate_and_percentiles_of_the_log(recorded: Recorded) -> None:
    result = h2load.parse(recorded("h2load.txt"), [100, 200, 300])

    assert result.requests_per_second == 12869
    assert (result.p50_us, result.requests, result.errors) == (200, 12869, 0)
    assert result.p99_us == pytest.approx(298)


def test_h2load_counts_failed_requests(recorded: Recorded) -> None:
    output = recorded("h2load.txt").replace("12869 succeeded, 0 failed", "12800 succeeded, 69 failed")

    result = h2load.parse(output, [])

    assert (result.requests, result.errors) == (12800, 69)
    assert math.isnan(result.p50_us)


def test_h2load_without_a_result_reports_its_output() -> None:
    with pytest.raises(CannotRun, match="could not be resolved"):
        h2load.parse("host could not be resolved", [])


def test_h2load_counts_requests_without_a_complete_response(recorded: Recorded) -> None:
    output = recorded("h2load.txt")
    broken = output.replace(
        "12869 done, 12869 succeeded, 0 failed, 0 errored", "12860 done, 12857 succeeded, 3 failed, 3 errored"
    )

    assert h2load.unfinished(output) == 0
    assert h2load.unfinished(broken) == 12


def test_h2load_logs_each_request() -> None:
    if not h2load.available():
        pytest.skip("h2load is not installed")
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
    ]

    def serve(listening: socket.socket) -> None:
        connected, _ = listening.accept()
        with connected:
            for answer in answers:
                connected.recv(65536)
                connected.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Thread(target=serve, args=(listening,))
        server.start()
        before = time()
        load = h2load.Load(
            h2load.Post(f"http://127.0.0.1:{listening.getsockname()[1]}/", b"body", {}),
            ["--h1", "-c1", "-n2"],
        )
        try:
            output = load.finish(20)
            first, second = load.requests()
        finally:
            load.end()
        server.join()

    assert (first.status, second.status) == (200, 503)
    assert before <= first.sent <= first.ended <= second.ended <= time()
    assert h2load.unfinished(output) == 0
