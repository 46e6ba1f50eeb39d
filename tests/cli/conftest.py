"""Runs the command line in a separate process, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

Run = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def backline() -> Run:
    """`backline(*arguments, **environment)` runs a command; returns the process with its output."""

    def run(*arguments: object, **environment: str) -> CompletedProcess[str]:
        command = [sys.executable, "-m", "backline", *map(str, arguments)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BACKLINE_")}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env={**clean, **environment}
        )

    return run
