"""A short run of clients that leave at any moment; tests/fuzz/orders.py runs more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ORDERS = 2000


@pytest.mark.timeout(300)
def test_nothing_is_lost_and_nothing_completes_twice_whenever_clients_leave() -> None:
    # A separate process: what other tests have left in this one would count as lost.
    program = Path(__file__).with_name("orders.py")
    done = subprocess.run(
        [sys.executable, str(program), "--orders", str(ORDERS), "--seed", "7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.match(r"(\d+) orders with (\d+) answers", done.stdout)
    assert found, done.stdout + done.stderr
    assert int(found[1]) == ORDERS
    assert int(found[2]) > ORDERS // 2
