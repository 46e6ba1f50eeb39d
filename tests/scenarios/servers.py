"""Starts Triton or Backline with the same models."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scenarios.repository import Served, write
from scenarios.session import Server
from support.server import serve

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """A server configuration that scenarios run against: its options and its models."""

    options: tuple[str, ...]
    models: Mapping[str, Served]


@contextmanager
def backline(folder: Path, setup: Setup) -> Iterator[Server]:
    """`backline serve` with its repository in `folder`, until the block ends."""
    repository, gates = _write(folder, setup.models)
    with serve(repository, folder / "backline.log", *setup.options) as running:
        yield Server(
            "backline",
            f"127.0.0.1:{running.http_port}",
            f"127.0.0.1:{running.grpc_port}",
            f"127.0.0.1:{running.metrics_port}",
            gates,
        )


@contextmanager
def triton(folder: Path, setup: Setup) -> Iterator[Server]:
    """Real Triton, installed on first use, with its repository in `folder`, until the block ends.

    Raises CannotRun if it cannot be installed.
    """
    sys.path.insert(0, str(BENCHMARKS))
    from harness.peers.triton import Triton

    repository, gates = _write(folder, setup.models)
    running = Triton()
    try:
        running.start_repository(repository, *setup.options)
        ports = (running.http_port, running.grpc_port, running.metrics_port)
        yield Server("triton", *(f"127.0.0.1:{port}" for port in ports), gates, settle=0.01)
    finally:
        if running.process is not None:
            running.process.end()


def _write(folder: Path, models: Mapping[str, Served]) -> tuple[Path, Path]:
    gates = folder / "gates"
    gates.mkdir(parents=True)
    return write(folder / "models", models, gates), gates
