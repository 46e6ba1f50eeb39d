"""KServe's runtime: its command line, run as KServe runs it, and the port of a serverless platform."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from backline_client.client import connect
from docs.pages import ROOT
from support import models
from support.server import free_ports

ONES = np.ones((1, 16), np.float32)


def _container() -> dict[str, Any]:
    runtime = yaml.safe_load((ROOT / "deploy" / "kserve" / "backline-runtime.yaml").read_text())
    container: dict[str, Any] = runtime["spec"]["containers"][0]
    return container


@contextmanager
def _started(arguments: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "backline", "serve", *arguments],
            stdout=output,
            stderr=output,
            env={**os.environ, "BACKLINE_ISOLATE": "never", **environment},
        )
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize("layout", ["file", "versions"])
def test_the_runtime_serves_a_model_under_the_name_of_its_service(tmp_path: Path, layout: str) -> None:
    models.add1(tmp_path / "stored")
    mounted = tmp_path / "stored" / "add1" / ("1" if layout == "file" else ".")
    container = _container()
    port = free_ports(1)[0]
    arguments = [
        argument.replace("{{.Name}}", "notes").replace("=8080", f"={port}") for argument in container["args"]
    ]
    environment = {
        entry["name"]: entry["value"].replace("/mnt/models", str(mounted)) for entry in container["env"]
    }

    with _started(arguments, environment, tmp_path / "log"):
        for protocol in ("http", "grpc"):
            with connect(f"{protocol}://127.0.0.1:{port}", retries=100) as client:
                client.wait_ready(timeout=30)
                assert client["notes"](ONES)["OUTPUT0"][0, 0] == 2


def test_a_serverless_platform_reaches_both_protocols_on_its_port(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    port = free_ports(1)[0]
    environment = {
        "PORT": str(port),
        "K_SERVICE": "notes",
        "BACKLINE_MODEL_REPOSITORY": str(tmp_path / "models"),
    }

    with _started(["--no-grpc", "--no-metrics"], environment, tmp_path / "log"):
        for protocol in ("http", "grpc"):
            with connect(f"{protocol}://127.0.0.1:{port}", retries=100) as client:
                client.wait_ready(timeout=30)
                assert client["add1"](ONES)["OUTPUT0"][0, 0] == 2


def test_the_ports_and_probes_of_the_runtime_agree() -> None:
    container = _container()
    (port,) = container["ports"]

    assert f"--http-port={port['containerPort']}" in container["args"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == port["containerPort"]
