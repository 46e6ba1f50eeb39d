"""The thread that writes the log never blocks the others, whatever happens to the file or pipe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backline.observe.log import server_log
from backline.observe.log.server_log import MOST_WAITING, LogWriter


def lost(count: int, reason: str) -> bytes:
    return f"{count} lost: {reason}\n".encode()


def test_lines_are_written_in_order(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"before\n")
    written = LogWriter(file, lost)
    for number in range(1000):
        written.write(b"%d\n" % number)
    written.close()

    assert file.read_bytes() == b"before\n" + b"".join(b"%d\n" % number for number in range(1000))


def test_lines_lost_on_a_full_disk_are_counted_once_writing_works_again(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    file = tmp_path / "log"
    file.symlink_to("/dev/full")
    written = LogWriter(file, lost)
    for number in range(3):
        written.write(b"%d\n" % number)
        written.drain()  # here rather than on the thread, for a known order
    file.unlink()
    written._looked = float("-inf")
    written.write(b"again\n")
    written.close()

    assert file.read_bytes() == b"again\n3 lost: No space left on device\n"


def test_an_unread_pipe_blocks_nothing_and_takes_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_log, "_LAST", 0.1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    written = LogWriter(pipe, lost)
    line = b"x" * 9999 + b"\n"
    count = 4 * MOST_WAITING // len(line)
    for _ in range(count):
        written.write(line)  # more than the pipe and the buffer hold
    written.close()  # returns although the thread is still writing
    assert written._thread.is_alive()

    os.set_blocking(reader, True)
    written_lines = lost_lines = 0
    rest = b""
    with os.fdopen(reader, "rb") as read:
        while written_lines + lost_lines < count:
            *complete, rest = (rest + os.read(read.fileno(), 1 << 16)).split(b"\n")
            for one in complete:
                if one + b"\n" == line:
                    written_lines += 1
                else:
                    number, reason = one.split(b" ", 1)
                    assert reason == b"lost: lines came faster than they could be written"
                    lost_lines += int(number)
    written._thread.join(10)

    assert written_lines + lost_lines == count
    assert lost_lines > 0
    assert written_lines * len(line) < 3 * MOST_WAITING


def test_a_closed_pipe_is_not_an_error(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    written = LogWriter(pipe, lost)
    os.close(reader)
    written.write(b"one\n")
    written.drain()
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    written.write(b"two\n")
    written.close()

    assert os.read(reader, 1000) == b"two\n1 lost: Broken pipe\n"
    os.close(reader)


def test_a_rotated_file_is_reopened(tmp_path: Path) -> None:
    file = tmp_path / "log"
    written = LogWriter(file, lost)
    written.write(b"one\n")
    written.drain()
    file.rename(tmp_path / "log.1")
    written._looked = float("-inf")
    written.write(b"two\n")
    written.close()

    assert ((tmp_path / "log.1").read_bytes(), file.read_bytes()) == (b"one\n", b"two\n")


def test_a_file_that_cannot_be_opened_is_an_immediate_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        LogWriter(tmp_path / "nowhere" / "log", lost)
