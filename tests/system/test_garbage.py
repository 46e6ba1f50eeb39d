"""What a server has loaded at its start is not walked by the garbage collector again and again."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gc
from backline.system.garbage import collected_rarely, exempt_imports

{before}
threshold, frozen = gc.get_threshold(), gc.get_freeze_count()
with collected_rarely():
    rarely = gc.get_threshold()[0] > threshold[0]
    models = [[number] for number in range(1000)]
print(rarely, gc.get_freeze_count() - frozen >= 1000, gc.isenabled())
served = [[number] for number in range(2000)]
print(gc.get_count()[0] >= 2000, gc.get_threshold()[1:] == threshold[1:])
"""


@pytest.mark.parametrize(
    ("before", "own"),
    [("exempt_imports()", True), ("gc.freeze()", False), ("pass", False)],
    ids=["in the server", "in a program that freezes its objects", "in a program that embeds an engine"],
)
def test_the_collector_runs_rarely_during_a_start_and_then_skips_what_it_loaded_and_what_is_in_flight(
    before: str, own: bool
) -> None:
    program = PROGRAM.format(before=before)

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == f"{own} {own} True\n{own} True\n"
