"""The heap is extended at once without taking memory before it is used."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes
from backline.system.memory import HEAP_START, extend_heap, resident_bytes

library = ctypes.CDLL(None)
library.sbrk.restype = ctypes.c_void_p
end, resident = library.sbrk(0), resident_bytes()
print(extend_heap(), library.sbrk(0) - end >= HEAP_START, resident_bytes() - resident < HEAP_START // 4)
end = library.sbrk(0)
blocks = [bytes(1 << 16) for _ in range(HEAP_START // (1 << 16) // 2)]
print(library.sbrk(0) == end)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_blocks_are_allocated_from_the_extension_which_takes_no_memory_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout == "True True True\nTrue\n"
