"""The command, against a real server."""

from __future__ import annotations

import subprocess
import sys

import backline


def double(x: float) -> float:
    return 2 * x


def test_the_models_are_printed() -> None:
    with backline.serve(double) as server:
        done = subprocess.run(
            [sys.executable, "-m", "backline", "NAME", "--url", server.url],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, "double\n"), done.stderr
