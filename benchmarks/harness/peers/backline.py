"""Backline as installed in the running environment, with its defaults."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from harness.environment import CannotRun
from harness.model import REPOSITORY, Model
from harness.peers.peer import Peer
from harness.server_process import ServerProcess, answers_200, free_ports


def serve_command(repository: Path, http_port: int, grpc_port: int, metrics_port: int) -> list[str]:
    """Returns the command line of `backline serve` on 127.0.0.1."""
    executable = Path(sys.executable).parent / "backline"
    if not executable.exists():
        raise CannotRun(f"{executable} is missing: install Backline into this environment (make install)")
    ports = ["--http-port", http_port, "--grpc-port", grpc_port, "--metrics-port", metrics_port]
    return [str(executable), "serve", str(repository), "--host", "127.0.0.1", *map(str, ports)]


class Backline(Peer):
    name = "backline"
    ways = frozenset({("http", "binary"), ("http", "json"), ("grpc", "binary")})
    setup = "defaults, no configuration file"

    def start(self, models: list[Model]) -> None:
        self.http_port, self.grpc_port, metrics_port = free_ports(3)
        command = serve_command(
            models[0].file.parents[2] if models else REPOSITORY, self.http_port, self.grpc_port, metrics_port
        )
        self.process = ServerProcess(self.name, command)
        self.process.wait_until(lambda: answers_200(f"http://127.0.0.1:{self.http_port}/v2/health/ready"))
        self.versions = {name: version(name) for name in ("backline", "onnxruntime", "numpy")}
