"""Starts Triton or Backline with the same models."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scenarios.repository import Served, write
from scenarios.session import Server
from support.server import serve
from support.triton_server import tritonserver

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """A server configuration that scenarios run against: its options and its models.

    Folders of `folders` are copied into the repository, each with models. `drop_in` runs Backline by its
    command `tritonserver`, with Triton's defaults.
    """

    options: tuple[str, ...]
    models: Mapping[str, Served]
    folders: tuple[str, ...] = ()
    drop_in: bool = False


@contextmanager
def backline(folder: Path, setup: Setup) -> Iterator[Server]:
    """`backline serve` or `backline tritonserver` with its repository in `folder`, until the block ends."""
    repository, gates = _write(folder, setup)
    start = tritonserver if setup.drop_in else serve
    with start(repository, folder / "backline.log", *setup.options) as running:
        running.wait_ready()
        yield Server(
            "backline",
            f"127.0.0.1:{running.http_port}",
            f"127.0.0.1:{running.grpc_port}",
            f"127.0.0.1:{running.metrics_port}",
            gates,
            repository,
            running.log,
        )


@contextmanager
def triton(folder: Path, setup: Setup) -> Iterator[Server]:
    """Real Triton, installed on first use, with its repository in `folder`, until the block ends.

    Raises CannotRun if it cannot be installed.
    """
    sys.path.insert(0, str(BENCHMARKS))
    from harness.peers.triton import Triton

    repository, gates = _write(folder, setup)
    running = Triton()
    try:
        running.start_repository(repository, *setup.options)
        ports = (running.http_port, running.grpc_port, running.metrics_port)
        addresses = (f"127.0.0.1:{port}" for port in ports)
        yield Server("triton", *addresses, gates, repository, running.process.log, settle=0.01)
    finally:
        if running.process is not None:
            running.process.end()


def _write(folder: Path, setup: Setup) -> tuple[Path, Path]:
    gates = folder / "gates"
    gates.mkdir(parents=True)
    repository = write(folder / "models", setup.models, gates)
    for models in setup.folders:
        shutil.copytree(Path(__file__).parent / models, repository, dirs_exist_ok=True)
    return repository, gates
