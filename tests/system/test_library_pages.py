"""Pages of shared libraries that only their initialisation needed do not stay resident."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backline.system.library_pages import unchanged_mappings

PROGRAM = """
import numpy as np
from backline.system.library_pages import release_library_pages
from backline.system.process_memory import count_pages

before = count_pages()
released = release_library_pages()
after = count_pages()
total = float(np.linalg.norm(np.arange(100.0)))
print(released > 0, after.files < before.files / 2, after.anonymous >= before.anonymous, round(total))
"""
#: Reads the file of a library through a mapping that the dynamic loader does not know. Whoever made such a
#: mapping may remove it at any time, and its address is then reused.
FOREIGN = """
import mmap, sys
import numpy
from numpy._core import _multiarray_umath
from backline.system.library_pages import release_library_pages

with open(_multiarray_umath.__file__, "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
address = f"{numpy.frombuffer(mapped, numpy.uint8).ctypes.data:x}-"

def resident():
    with open("/proc/self/smaps") as file:
        mappings = file.read()
    return mappings[mappings.index("\\n" + address):].partition("Rss:")[2].split()[0]

sum(mapped[::4096])
before = resident()
print(release_library_pages() > 0, before != "0", resident() == before)
"""
#: Unloads a library right after the mappings were read for the first or second time, and puts other memory at
#: its address, if that is free.
UNLOADED = """
import builtins, ctypes, io, os, re, shutil, sys
import msgspec._core
from backline.system.library_pages import release_library_pages

library = sys.argv[2] + "/unloaded.so"
shutil.copy(msgspec._core.__file__, library)
process = ctypes.CDLL(None)
process.dlopen.restype = process.mmap.restype = ctypes.c_void_p
process.dlclose.argtypes = [ctypes.c_void_p]
process.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
handle = process.dlopen(library.encode(), os.RTLD_NOW)

def places():
    with read("/proc/self/maps") as file:
        return re.findall(r"(?m)^([0-9a-f]+)-([0-9a-f]+) r.*/unloaded.so$", file.read())

read, reads, blocks = open, 0, []

def open_and_unload(path, *arguments):
    global reads
    if path != "/proc/self/smaps":
        return read(path, *arguments)
    with read(path, "rb") as file:
        mappings = file.read()
    reads += 1
    if reads == int(sys.argv[1]):
        loaded = [(int(start, 16), int(end, 16)) for start, end in places()]
        assert loaded
        process.dlclose(handle)
        for start, end in loaded:  # readable, writable; private, anonymous, MAP_FIXED_NOREPLACE
            if process.mmap(start, end - start, 3, 0x100022, -1, 0) == start:
                ctypes.memset(start, 0xAB, end - start)
                blocks.append((start, end - start))
    return io.BytesIO(mappings)

builtins.open = open_and_unload
release_library_pages()
print(all(set(ctypes.string_at(*block)) == {0xAB} for block in blocks), places())
"""
#: A mapping in the form of proc_pid_smaps(5).
MAPPING = b"""7fcb0000-7fcb3000 r--p 00401000 fe:00 532693                     /usr/lib/libcrypto.so.3
Size:                 12 kB
Rss:                   %(rss)d kB
Private_Dirty:         0 kB
Anonymous:             %(anonymous)d kB
LazyFree:              0 kB
Swap:                  %(swap)d kB
SwapPss:               %(swap)d kB
VmFlags: rd mr mw me
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@linux
def test_pages_of_libraries_are_released_and_come_back_when_they_are_used() -> None:
    assert run(PROGRAM) == "True True True 573\n"


@linux
def test_mappings_that_the_loader_did_not_make_are_left_alone() -> None:
    assert run(FOREIGN) == "True True True\n"


@linux
@pytest.mark.parametrize("reading", ["1", "2"])
def test_memory_at_the_address_of_a_library_unloaded_meanwhile_is_left_alone(
    reading: str, tmp_path: Path
) -> None:
    assert run(UNLOADED, reading, str(tmp_path)) == "True []\n"


def test_only_mappings_without_changed_pages_in_memory_or_in_swap_are_released() -> None:
    unchanged = MAPPING % {b"rss": 12, b"anonymous": 0, b"swap": 0}
    changed = MAPPING % {b"rss": 12, b"anonymous": 4, b"swap": 0}
    swapped = MAPPING % {b"rss": 0, b"anonymous": 0, b"swap": 12}

    assert unchanged_mappings(unchanged) == [(0x7FCB0000, 0x3000)]
    assert unchanged_mappings(changed + swapped) == []
    assert unchanged_mappings(swapped + unchanged) == [(0x7FCB0000, 0x3000)]
    assert unchanged_mappings(unchanged.replace(b"r--p", b"rw-p")) == []
