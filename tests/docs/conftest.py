"""A folder as a reader of the README has it after the first steps, and the servers that its commands start."""

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
    """The reader's folder, in which `models` lies, and the ports that stand for 8000, 8001 and 8002 of the pages."""

    folder: Path
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def environment(self) -> dict[str, str]:
        """With the commands of this environment, and the ports of this workspace as the defaults."""
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "BACKLINE_HTTP_PORT": str(self.http_port),
            "BACKLINE_GRPC_PORT": str(self.grpc_port),
            "BACKLINE_METRICS_PORT": str(self.metrics_port),
            # As some pages start their server.
            "BACKLINE_ALLOW_CLIENT_SHM": "true",
            "BACKLINE_MODEL_CONTROL_MODE": "poll",
            "BACKLINE_URL": f"http://localhost:{self.http_port}",
        }

    def here(self, text: str) -> str:
        """The text of a page with this workspace's ports and path."""
        for port, own in ((8000, self.http_port), (8001, self.grpc_port), (8002, self.metrics_port)):
            text = text.replace(f"localhost:{port}", f"localhost:{own}")
        return text.replace("/path/to/models", str(self.folder / "models"))

    def run_python(self, block: Block) -> str:
        """What a Python block prints."""
        return self._run(
            [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", self.here(block.text)]
        )

    def run_shell(self, commands: str) -> str:
        """What shell commands print on standard output."""
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
        """A server started by a command of a page; not waited for."""
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
    """The commands of a shell block, one a line, without comments."""
    return [line.split("  #")[0].strip() for line in block.text.splitlines()]


def wait_until_loaded(server: ServerProcess) -> None:
    """Asks until the server has tried every model; it says so when it prints how to stop it."""
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
    """A workspace whose models are served, by the README's own command."""
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
