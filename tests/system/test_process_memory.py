"""What processes hold in memory, measured on real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from backline.system.process_memory import (
    Footprints,
    count_pages,
    mapped_files,
    pause,
    peak_bytes,
    proportional_bytes,
    resume,
    sessions,
)

MIB = 1 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@contextmanager
def process(program: str) -> Iterator[int]:
    """The id of a process in a new session that has run the program and waits."""
    code = f"import sys\n{program}\nprint('done', flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"done\n"
        try:
            yield started.pid
        finally:
            started.kill()


def test_own_pages_and_mapped_files_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * 4096 * 40)
    program = (
        f"import mmap\nfile = open({str(file)!r}, 'rb')\n"
        "mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\nsum(mapped[::4096])\n"
        "own = bytearray(b'x') * (30 << 20)"
    )
    with process(program) as pid:
        assert mapped_files(pid)[str(file)] == 40 * MIB
        counts = count_pages(pid)
        assert 30 * MIB < counts.anonymous < 50 * MIB
        assert counts.files > 40 * MIB
        footprint = Footprints().read_one(pid)
        assert footprint.own == counts.anonymous + counts.shared
        assert footprint.files[str(file)] == 40 * MIB


def test_forked_processes_count_the_pages_that_they_share_once() -> None:
    program = (
        "import os\nown = bytearray(b'x') * (64 << 20)\n"
        "if os.fork() == 0:\n    sys.stdin.read()\n    os._exit(0)"
    )
    with process(program) as pid:
        (child,) = psutil.Process(pid).children()
        assert sorted(sessions([pid])[pid]) == sorted([pid, child.pid])
        assert 64 * MIB < Footprints().read([pid])[pid].own < 90 * MIB
        assert proportional_bytes(pid) < 50 * MIB


def test_a_process_that_has_ended_holds_nothing() -> None:
    with process("") as pid:
        pass
    assert count_pages(pid).total == proportional_bytes(pid) == peak_bytes(pid) == 0
    assert Footprints().read([pid]) == {}


def test_the_peak_counts_from_its_restart() -> None:
    # In a separate process, since others of this one's tests may free memory meanwhile.
    code = """
from backline.system.process_memory import peak_bytes, restart_peak
data = bytearray(b"x") * (50 << 20)
del data
assert restart_peak()
before = peak_bytes()
data = bytearray(b"x") * (30 << 20)
del data
print(peak_bytes() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 25 * MIB < int(done.stdout) < 45 * MIB


def test_a_suspended_session_continues_when_it_is_resumed() -> None:
    with process("") as pid:
        pause([pid])
        assert os.waitid(os.P_PID, pid, os.WSTOPPED) is not None
        resume([pid])
        assert os.waitid(os.P_PID, pid, os.WCONTINUED) is not None
