"""Workers whose code attacks the server: the memory and the channel that they share with it."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import backline
from backline_client.values.errors import Internal, Unavailable
from support import models
from support.repositories import put
from support.server import ServerProcess, serve
from support.waiting import until

#: The interpreter of the model's environment: keeps a second descriptor of the shared memory, then runs
#: Python.
INTERPRETER = """#!{python}
import os, sys
if sys.argv[1].endswith("start.py"):
    os.dup2(int(sys.argv[6]), 99)
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""
CONFIG = """
backend: "python"
parameters { key: "EXECUTION_ENV_PATH" value { string_value: "environment" } }
"""
MODEL = """
import os
from backline.model import FP32

class Model:
    def predict(self, x: FP32[-1]) -> str:
        try:
            os.ftruncate(99, 0)
        except OSError as error:
            return f"{len(x)}: {error.strerror}"
        return f"{len(x)}: truncated"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can seal memory")
def test_a_worker_cannot_truncate_the_memory_that_the_server_writes_its_inputs_to(tmp_path: Path) -> None:
    model = tmp_path / "models" / "hostile"
    put(model / "environment" / "bin" / "python", INTERPRETER.format(python=sys.executable)).chmod(0o755)
    put(model / "config.pbtxt", CONFIG)
    put(model / "1" / "model.py", MODEL)

    with serve(tmp_path / "models", tmp_path / "log") as server, backline.connect(server.url) as client:
        answers = [client["hostile"](np.zeros(size, np.float32))["output"][0] for size in (1, 1_000_000)]

        assert answers == [b"1: Operation not permitted", b"1000000: Operation not permitted"]
        assert client.ready()


FLOODING = """
import os, random, socket
from backline.model import FP32

class Model:
    def predict(self, x: FP32[-1]) -> FP32[-1]:
        numbers = random.Random(int(x[0]))
        for descriptor in range(3, 1024):
            try:
                channel = socket.socket(fileno=os.dup(descriptor))
            except OSError:
                continue
            for _ in range(20):
                try:
                    size = numbers.choice([1, 4, 64, 4096, 60_000])
                    channel.send(numbers.randbytes(size), socket.MSG_DONTWAIT)
                except OSError:
                    break
        return x
"""

SCALARS = """
import backline.workers.child.requests as requests
from backline.model import FP32

real = requests.Part

def scalars(numbers, rows, columns, *rest):
    for column in columns:
        column.shape = []
    return real(numbers, [1], columns, *rest)

requests.Part = scalars

class Model:
    def predict(self, x: FP32[1]) -> FP32[1]:
        return x
"""


def _has_broken(server: ServerProcess, times: int) -> bool:
    return server.output.count("broke the protocol: ") >= times


def test_random_bytes_from_a_worker_end_that_worker_only(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    put(tmp_path / "models" / "hostile" / "1" / "model.py", FLOODING)

    with serve(tmp_path / "models", tmp_path / "log") as server, backline.connect(server.url) as client:
        for number in range(1, 5):
            given = np.full(4, number, np.float32)
            # The model returns at last; its answer may arrive before the server ends the worker.
            with suppress(Internal, Unavailable):
                np.testing.assert_array_equal(client["hostile"](given)["output"], given)
            until(partial(_has_broken, server, number))
            assert client["add1"](np.ones((1, 16), np.float32))["OUTPUT0"][0, 0] == 2
        assert "Traceback" not in server.output
        assert server.stop() == 0


def test_outputs_without_the_rows_that_a_worker_announces_end_that_worker(tmp_path: Path) -> None:
    put(tmp_path / "models" / "hostile" / "1" / "model.py", SCALARS)

    with serve(tmp_path / "models", tmp_path / "log") as server, backline.connect(server.url) as client:
        with pytest.raises(Internal, match="broke the protocol"):
            client["hostile"](np.ones(1, np.float32), timeout=30)
        assert "Traceback" not in server.output
