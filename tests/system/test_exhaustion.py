"""Which errors mean that a limit of the system is reached."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from backline.system.exhaustion import exhausted


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "raise the limit (ulimit -n)"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "raise the limit of the user"),
        (RuntimeError("can't start new thread"), "raise the limit of the user"),
        (OSError(errno.ENOENT, "No such file or directory"), ""),
        (OSError("no number"), ""),
        (RuntimeError("something else"), ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_names_the_limit_to_raise(error: Exception, advice: str) -> None:
    assert advice in exhausted(error)
    assert bool(advice) == bool(exhausted(error))


NO_THREADS = """
import threading

def start(thread):
    raise RuntimeError("can't start new thread")

threading.Thread.start = start
from backline.cli.main import main
main(["serve", "{repository}"])
"""


def test_a_server_that_may_start_no_threads_says_so_without_a_traceback(tmp_path: Path) -> None:
    code = NO_THREADS.format(repository=tmp_path)
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: no more threads or processes can be started: raise the limit")
    assert "Traceback" not in ended.stderr
