"""The folder of a reader who has followed the README's first steps, and servers started by its commands."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from docs.pages import Block, blocks
from support.server import ServerProcess, free_ports


@dataclass
class Workspace:
    """The reader's folder, with `models` in it, and the ports that replace the pages' 8000 to 8002."""

    folder: Path
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables: commands on PATH, and this workspace's ports as defaults."""
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "BACKLINE_HTTP_PORT": str(self.http_port),
            "BACKLINE_GRPC_PORT": str(self.grpc_port),
            "BACKLINE_METRICS_PORT": str(self.metrics_port),
            # Set by some pages when they start a server.
            "BACKLINE_ALLOW_CLIENT_SHM": "true",
            "BACKLINE_MODEL_CONTROL_MODE": "poll",
            "BACKLINE_URL": f"http://localhost:{self.http_port}",
        }

    def here(self, text: str) -> str:
        """A page's text with this workspace's ports and path."""
        for port, own in ((8000, self.http_port), (8001, self.grpc_port), (8002, self.metrics_port)):
            text = text.replace(f"localhost:{port}", f"localhost:{own}")
        return text.replace("/path/to/models", str(self.folder / "models"))

    def run_python(self, block: Block) -> str:
        """The output of a Python block."""
        return self._run(
            [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", self.here(block.text)]
        )

    def run_shell(self, commands: str) -> str:
        """The standard output of shell commands."""
        return self._run(["bash", "-euo", "pipefail", "-c", self.here(commands)])

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            check=False,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextlib.contextmanager
    def serving(self, command: str) -> Iterator[ServerProcess]:
        """A server started by a page's command, without waiting for it."""
        log = self.folder / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                shlex.split(self.here(command)),
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        server = ServerProcess(process, self.http_port, self.grpc_port, self.metrics_port, log)
        try:
            yield server
        finally:
            assert server.stop() == 0, server.output


def commands(block: Block) -> list[str]:
    """The commands of a shell block, one per line, without comments."""
    return [line.split("  #")[0].strip() for line in block.text.splitlines()]


def wait_until_loaded(server: ServerProcess) -> None:
    """Waits until the server has tried to load every model and printed how to stop it."""
    end = time.monotonic() + 30
    while "Ctrl-C stops" not in server.output:
        assert server.process.poll() is None, server.output
        assert time.monotonic() < end, server.output
        time.sleep(0.02)


def _new_workspace(folder: Path) -> Workspace:
    workspace = Workspace(folder, *free_ports(3))
    workspace.run_python(next(block for block in blocks("README.md") if block.language == "python"))
    return workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace with a server, started by the README's own command."""
    workspace = _new_workspace(tmp_path_factory.mktemp("reader"))
    (serve,) = (
        line for block in blocks("README.md") for line in commands(block) if line.startswith("backline serve")
    )
    with workspace.serving(serve) as server:
        server.wait_ready()
        yield workspace


@pytest.fixture
def idle_workspace(tmp_path: Path) -> Workspace:
    """A workspace without a server."""
    return _new_workspace(tmp_path)
