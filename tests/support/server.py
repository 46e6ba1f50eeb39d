"""A real server process."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class ServerProcess:
    """A running `backline serve`."""

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    metrics_port: int
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"

    @property
    def output(self) -> str:
        """What the server has printed so far."""
        return self.log.read_text(errors="replace")

    def wait_ready(self, timeout: float = 60.0, context: ssl.SSLContext | None = None) -> None:
        """Waits until all models are loaded, over TLS if `context` is given.

        Raises RuntimeError with the server's output if it exits or is not ready in time.
        """
        url = self.url if context is None else self.url.replace("http:", "https:")
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server exited with status {self.process.returncode}:\n{self.output}")
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5, context=context) as answer,
            ):
                if answer.status == 200:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"the server was not ready after {timeout} s:\n{self.output}")

    def wait_started(self, timeout: float = 60.0) -> None:
        """Waits until startup has finished and been logged, whether or not the models loaded."""
        self.wait_for("Ctrl-C stops", timeout)

    def wait_for(self, text: str, timeout: float = 10.0) -> None:
        """Waits until the server has printed `text`: its log may lag the response."""
        end = time.monotonic() + timeout
        while text not in self.output:
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not print {text!r}:\n{self.output}")
            time.sleep(0.02)

    def stop(self, timeout: float = 40.0) -> int:
        """Stops the server with SIGTERM and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


def _own_ports() -> Iterator[int]:
    """Yields the ports of this test process, again and again.

    They are below those that the system gives to clients, which could otherwise take a port between the
    moment it is found free and the moment the server opens it.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 10_000 + worker % 14 * 1_500
    ports = range(first, first + 1_500)
    begin = random.randrange(len(ports))  # as test runs may follow each other, or be nested
    return itertools.cycle((*ports[begin:], *ports[:begin]))


_PORTS = _own_ports()


def free_ports(count: int) -> list[int]:
    """Returns ports that are free now, on all addresses."""
    found: list[int] = []
    while len(found) < count:
        port = next(_PORTS)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("0.0.0.0", port))
            found.append(port)
    return found


@contextlib.contextmanager
def serve(
    repository: Path | str,
    log: Path,
    *options: str,
    ready: bool = True,
    environment: dict[str, str] | None = None,
    python: Path | str = sys.executable,
) -> Iterator[ServerProcess]:
    """Runs `backline serve` on free ports until the block ends; with `ready`, first waits for all models.

    `python` is the interpreter of an environment in which Backline is installed.

    Unless the options say otherwise, model files are not tried in a separate process, which would take
    most of a test's time.
    """
    http, grpc, metrics = free_ports(3)
    ports: Sequence[str] = (
        "--http-port",
        str(http),
        "--grpc-port",
        str(grpc),
        "--metrics-port",
        str(metrics),
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(python), "-m", "backline", "serve", str(repository), *ports, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"BACKLINE_ISOLATE": "never", **os.environ, **(environment or {})},
        )
    server = ServerProcess(process, http, grpc, metrics, log)
    try:
        if ready:
            server.wait_ready()
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def metrics_page(server: ServerProcess) -> dict[str, float]:
    """The metrics page's values, keyed by name and labels as printed there."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }
