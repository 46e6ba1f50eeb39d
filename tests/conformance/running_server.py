"""The server under test: a new process with two small models, or a server that already runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import models
from support.server import serve


@dataclass(frozen=True)
class Server:
    """A running server. `pid` and `output` are None if the test did not start it."""

    host: str
    port: int
    pid: int | None = None
    output: Path | None = None

    def printed(self) -> str:
        return self.output.read_text(errors="replace") if self.output else ""


@contextmanager
def running_server() -> Iterator[Server]:
    """Starts and stops a server with add1 and ident, or yields the one that BACKLINE_TEST_PORT names."""
    host = os.environ.get("BACKLINE_TEST_HOST", "127.0.0.1")
    if port := os.environ.get("BACKLINE_TEST_PORT"):
        pid = os.environ.get("BACKLINE_TEST_PID")
        log = os.environ.get("BACKLINE_TEST_LOG")
        yield Server(host, int(port), int(pid) if pid else None, Path(log) if log else None)
        return
    with tempfile.TemporaryDirectory(prefix="backline-conformance-") as folder:
        repository = Path(folder) / "models"
        models.add1(repository)
        models.ident(repository)
        with serve(repository, Path(folder) / "server.log") as process:
            yield Server(host, process.http_port, process.process.pid, process.log)
