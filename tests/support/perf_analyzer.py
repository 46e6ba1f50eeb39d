"""perf_analyzer, Triton's load generator, against a real server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import urllib.request

import pytest

from support.tools import tool


def run_perf_analyzer(metrics: str, *arguments: str) -> str:
    """Runs perf_analyzer and returns its report. `metrics` is the address of the server's /metrics.

    perf_analyzer sometimes hangs after all its requests were answered. If it has sent nothing for a while and
    nothing waits in the server, it is started again. It may take any time while it sends requests: the
    machine may be busy.
    """
    command = [tool("perf_analyzer"), *arguments]
    for _ in range(3):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
        ) as started:
            answered, since = -1.0, time.monotonic()
            while time.monotonic() < since + 20:
                try:
                    output, _ = started.communicate(timeout=1)
                except subprocess.TimeoutExpired:
                    now = _total("nv_inference_request_success", metrics)
                    if now != answered:
                        answered, since = now, time.monotonic()
                else:
                    assert started.returncode == 0, output
                    return output
            os.killpg(started.pid, signal.SIGKILL)  # the command is a script whose child sends the requests
        end = time.monotonic() + 10
        while _waiting(metrics) and time.monotonic() < end:
            time.sleep(0.05)
        assert _waiting(metrics) == 0, "requests of a client that is gone still wait in the server"
    pytest.fail("perf_analyzer hung three times")


def throughput(report: str) -> float:
    """The inferences per second of a report."""
    found = re.search(r"throughput: ([0-9.e+]+) infer/sec", report)
    assert found is not None, report
    return float(found[1])


def _waiting(metrics: str) -> float:
    return _total("nv_inference_pending_request_count", metrics)


def _total(metric: str, metrics: str) -> float:
    with urllib.request.urlopen(f"{metrics}/metrics", timeout=60) as answer:
        counts = re.findall(rf"^{metric}.* (\S+)$", answer.read().decode(), re.MULTILINE)
    return sum(map(float, counts))
