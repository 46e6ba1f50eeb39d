"""Runs h2load, nghttp2's load generator: for HTTP/2, for gRPC, and for times per HTTP/1.1 request."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.case import Measurement
from harness.environment import CannotRun

FINISHED = re.compile(r"^finished in ([\d.]+)(s|ms|us), ([\d.]+) req/s", re.MULTILINE)
REQUESTS = re.compile(
    r"^requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Request:
    """A line of h2load's log: a request's start (Unix seconds), status (-1: none) and duration in seconds."""

    sent: float
    status: int
    took: float

    @property
    def ended(self) -> float:
        return self.sent + self.took


@dataclass(frozen=True)
class Post:
    """A request for h2load to repeat. h2load ignores grpc-status, so a gRPC error counts as status 200."""

    url: str
    body: bytes
    headers: dict[str, str]


def grpc_post(port: int, message: bytes, *, scheme: str = "http") -> Post:
    """Returns a call of ModelInfer with the serialised `message`, uncompressed."""
    url = f"{scheme}://127.0.0.1:{port}/inference.GRPCInferenceService/ModelInfer"
    return Post(
        url,
        b"\0" + struct.pack(">I", len(message)) + message,
        {"content-type": "application/grpc", "te": "trailers"},
    )


def available() -> bool:
    return shutil.which("h2load") is not None


class Load:
    """A running h2load with one thread; `options` set connections, requests and timing."""

    def __init__(self, post: Post, options: Sequence[str]) -> None:
        if not available():
            raise CannotRun("h2load is not installed (apt install nghttp2-client)")
        self._folder = tempfile.TemporaryDirectory()
        body, self._log = Path(self._folder.name, "body"), Path(self._folder.name, "log")
        body.write_bytes(post.body)
        command = ["h2load", "-t1", *options, f"--log-file={self._log}", "-d", str(body)]
        for name, value in post.headers.items():
            command += ["-H", f"{name}: {value}"]
        self._process = subprocess.Popen(
            [*command, post.url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def running(self) -> bool:
        return self._process.poll() is None

    def finish(self, seconds: float) -> str:
        """Returns h2load's output once it has exited. Raises CannotRun if that takes more than `seconds`."""
        try:
            return self._process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired as error:
            self.end()
            raise CannotRun(f"h2load did not finish within {seconds:.0f} s") from error

    def requests(self) -> list[Request]:
        """Returns all finished requests, in order of completion."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        columns = [line.split("\t") for line in lines if line.count("\t") >= 2]
        return [Request(int(sent) / 1e6, int(status), int(took) / 1e6) for sent, status, took, *_ in columns]

    def end(self) -> None:
        if self.running():
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()


def parse(output: str, durations_us: list[float]) -> Measurement:
    """Parses h2load's report; `durations_us` come from its log. Raises CannotRun if there is no result."""
    finished, requests = FINISHED.search(output), REQUESTS.search(output)
    if finished is None or requests is None:
        raise CannotRun(f"h2load has no result: {output.strip()[-200:] or 'no output'}")
    succeeded = int(requests[4])
    p50, p99 = np.percentile(durations_us, [50, 99]) if durations_us else (np.nan, np.nan)
    return Measurement(float(finished[3]), float(p50), float(p99), succeeded, int(requests[5]))


def unfinished(output: str) -> int:
    """Returns the number of requests without a complete answer. Raises CannotRun if there is no report."""
    requests = REQUESTS.search(output)
    if requests is None:
        raise CannotRun(f"h2load has no result: {output.strip()[-200:] or 'no output'}")
    total, _, done, _, _, errored = map(int, requests.groups())
    return total - done + errored


def run(post: Post, *, concurrency: int, seconds: float) -> Measurement:
    """Sends requests for `seconds` (rounded) on `concurrency` HTTP/2 connections, one at a time on each."""
    load = Load(post, [f"-c{concurrency}", "-m1", f"-D{max(1, round(seconds))}"])
    try:
        output = load.finish(seconds + 90)
        return parse(output, [request.took * 1e6 for request in load.requests()])
    finally:
        load.end()
