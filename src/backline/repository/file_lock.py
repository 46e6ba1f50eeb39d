"""Locks between threads and processes, by files."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_POLL_SECONDS = 0.05


class Stopped(Exception):
    """Nobody waits for this any more."""


@contextlib.contextmanager
def locked(file: Path, stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Held by one thread of one process at a time; raises Stopped when `stop` turns true while another one has it."""
    descriptor = open_lock(file)
    waiting = threading.Event()
    try:
        while not try_lock(descriptor):
            if stop():
                raise Stopped
            waiting.wait(_POLL_SECONDS)  # a lock between processes that can also be given up
        os.utime(descriptor)
        yield
    finally:
        os.close(descriptor)


def open_lock(file: Path) -> int:
    """A descriptor to lock; closing it unlocks."""
    return os.open(file, os.O_RDWR | os.O_CREAT, 0o644)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Whether the lock is held now, alone or with others who share it."""
    if sys.platform == "win32":
        return True  # without locks things may be made twice, but still appear at once
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
