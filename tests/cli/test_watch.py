"""`backline watch` prints requests as they end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from backline.cli.watch import line
from cli.conftest import Run
from support.server import ServerProcess

TRACE: dict[str, Any] = {
    "time": 0.0, "protocol": "HTTP", "model": "both", "took": 1500, "error": "",
    "requests": [
        {"model": "both", "version": "3", "began": 0, "ended": 1400, "responses": 1, "runs": [
            {"started": 100, "gathered": 150, "ran": 900, "ended": 950, "batch_size": 4}]},
        {"model": "add1", "version": "1", "began": 200, "ended": 800, "responses": 1, "runs": []},
    ],
}  # fmt: skip


def test_a_line_says_where_the_time_went() -> None:
    shown = line(TRACE)
    assert shown[8:] == (
        "  both 3  HTTP  1.50 ms  (queue 0.10 ms, model 0.75 ms, in a batch of 4, add1 0.60 ms)"
    )
    assert line({**TRACE, "requests": [], "error": "no\x1b[31m"}).endswith("  HTTP  1.50 ms  no\\x1b[31m")


@contextmanager
def watching(server: ServerProcess, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "backline", "watch", "--url", server.url, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_failed_requests_to_one_model_are_picked(server: ServerProcess) -> None:
    with watching(server, "--model", "add1", "--failed", "--count", "1", "--json") as process:
        # Requests are traced once the command watches, which shows only when one is printed.
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            for values in ([0] * 16, [0]):
                body = json.dumps({"INPUT0": values}).encode()
                with contextlib.suppress(urllib.error.HTTPError):
                    urllib.request.urlopen(f"{server.url}/models/add1", body, timeout=30).close()
        told = json.loads(process.stdout.read() if process.stdout else "")
    assert process.returncode == 0
    assert (told["model"], "unexpected shape" in told["error"]) == ("add1", True)


def test_grpc_is_refused_with_what_to_do(backline: Run, server: ServerProcess) -> None:
    done = backline("watch", "--url", server.grpc_url)
    assert done.returncode in (1, 2)
    assert "use http://" in done.stderr
