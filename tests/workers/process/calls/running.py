"""Lets tests of calls observe and control models while they run."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from backline_client.client import Client
from support.server import ServerProcess
from support.waiting import until


def text(value: str) -> np.ndarray:
    return np.array([value.encode()], object)


class Gate:
    """A gate of a gated model: its run waits until the gate opens."""

    def __init__(self, repository: Path, name: str, model: str = "gated") -> None:
        self.name = name
        self._folder = repository / model / "1"

    def wait(self, what: str = "began") -> None:
        """Waits until the run has reached this point."""
        until((self._folder / f"{what}-{self.name}").exists)

    def forget(self, what: str = "began") -> None:
        (self._folder / f"{what}-{self.name}").unlink()

    def open(self) -> None:
        (self._folder / f"open-{self.name}").touch()

    @property
    def input(self) -> triton.InferInput:
        given = triton.InferInput("gate", [1], "BYTES")
        given.set_data_from_numpy(text(self.name))
        return given


def metric(server: ServerProcess, pattern: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as answer:
        found = re.search(rf"^{pattern} (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def waiting(server: ServerProcess, model: str) -> int:
    """The number of requests in a model's queue."""
    return int(metric(server, f'nv_inference_pending_request_count{{model="{model}",version="1"}}'))


def executions(client: Client, model: str) -> int:
    return int(client[model].statistics()[0]["execution_count"])
