"""The classes of messages are made once, however many threads need them first."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from threading import Barrier, Thread
from backline_client.protos import message, pool

sys.setswitchinterval(1e-6)
start, found = Barrier(8), []

def work():
    start.wait()
    found.append((pool(), message("inference.ModelConfigResponse"), message("inference.ModelConfig")))

threads = [Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(set(found)) == 1, found
_, response, config = found[0]
response(config=config(name="m"))
"""


def test_threads_that_need_messages_first_share_one_pool() -> None:
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
