"""Runs `backline serve` in a separate process, on free ports of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import backline
from backline_client.client import Client
from backline_client.client.errors import Unavailable

_START_SECONDS = 60
_STOP_SECONDS = 15


class ProcessError(Exception):
    """Raised when a process has failed. The message says how, for the user, and shows the end of the log."""


class Process:
    """A process that writes its output to a log."""

    #: The exit statuses that the process may have after SIGTERM.
    statuses: tuple[int, ...] = (0,)

    def __init__(self, name: str, command: Sequence[str], log: Path, **environment: str) -> None:
        self.name = name
        self.log = log
        self.started = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
            )

    @property
    def age(self) -> float:
        """The number of seconds since the process was started."""
        return time.monotonic() - self.started

    def pause(self) -> None:
        """Waits a moment for the process to start. Raises ProcessError if it has ended or takes too long."""
        if self.age > _START_SECONDS:
            raise ProcessError(f"{self.name} was not ready within {_START_SECONDS} s. {self.last_words()}")
        try:
            status = self.process.wait(0.05)
        except subprocess.TimeoutExpired:
            return
        raise ProcessError(f"{self.name} exited with status {status} during startup. {self.last_words()}")

    def stop(self) -> str:
        """Stops the process with SIGTERM, unless it has ended. Returns a line to print.

        Raises ProcessError if the process hangs, or exits with a status that is not in `statuses`.
        """
        started = time.monotonic()
        self.process.terminate()
        try:
            status = self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ProcessError(
                f"{self.name} did not stop within {_STOP_SECONDS} s of SIGTERM and was killed."
                f" {self.last_words()}"
            ) from None
        if status not in self.statuses:
            raise ProcessError(f"{self.name} exited with status {status} after SIGTERM. {self.last_words()}")
        return f"stopped by SIGTERM after {time.monotonic() - started:.2f} s, status {status}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return (
            "\n".join([f"Its log ({self.log}) ends with:", *(f"    {line}" for line in lines[-15:])])
            if lines
            else f"Its log ({self.log}) is empty."
        )


class Server(Process):
    """A server for the models in a repository. `options` are further options of `backline serve`."""

    def __init__(self, repository: Path, log: Path, *options: str) -> None:
        http, grpc, metrics = free_ports(3)
        ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
        backline_command = str(Path(sys.executable).with_name("backline"))
        serve = [backline_command, "serve", str(repository), "--host", "127.0.0.1", *ports, *options]
        super().__init__("the server", serve, log)
        self.url = f"http://127.0.0.1:{http}"
        self.grpc_port = grpc
        self.metrics_port = metrics

    def wait_ready(self) -> str:
        """Waits until all models are loaded. Returns a line to print. Raises ProcessError if one fails."""
        with backline.connect(self.url, retries=0) as client:
            while not _is_ready(client):
                self.pause()
        return (
            f"{self.url} (gRPC {self.grpc_port}, metrics {self.metrics_port}),"
            f" ready after {self.age:.2f} s, process {self.process.pid}"
        )


def free_ports(count: int) -> list[int]:
    """Returns ports of this machine that no process uses now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _is_ready(client: Client) -> bool:
    try:
        if client.ready():
            return True
        failed = [
            f"{model.name}: {model.reason}"
            for model in client.models()
            if model.state == "UNAVAILABLE" and model.reason
        ]
    except Unavailable:  # the server is not listening yet
        return False
    if failed:
        raise ProcessError(f"a model could not be loaded: {'; '.join(failed)}")
    return False
