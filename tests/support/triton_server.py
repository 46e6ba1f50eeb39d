"""A real `backline tritonserver`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from support.server import ServerProcess, free_ports


@contextlib.contextmanager
def tritonserver(repository: Path, log: Path, *options: str) -> Iterator[ServerProcess]:
    """Runs `backline tritonserver` until the block ends, on free ports unless the options name others."""
    http, grpc, metrics = free_ports(3)
    ports = {"http": http, "grpc": grpc, "metrics": metrics}
    given = [
        f"--{name}-port={port}"
        for name, port in ports.items()
        if not any(option.startswith((f"--{name}-port", f"--allow-{name}=")) for option in options)
    ]
    command = [sys.executable, "-m", "backline", "tritonserver", f"--model-repository={repository}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *given, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"BACKLINE_ISOLATE": "never", **os.environ},
        )
    try:
        yield ServerProcess(process, http, grpc, metrics, log)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
