"""Locks files and folders against other threads and processes."""

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
    """Raised when a wait for a lock is abandoned."""


@contextlib.contextmanager
def locked(file: Path, stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Holds an exclusive lock in a `with` block: only one thread of one process can hold it at a time.

    Raises Stopped if `stop` returns true during the wait.
    """
    descriptor = open_lock(file)
    waiting = threading.Event()
    try:
        while not try_lock(descriptor):
            if stop():
                raise Stopped
            waiting.wait(_POLL_SECONDS)  # a wait inside flock could not be stopped
        os.utime(descriptor)
        yield
    finally:
        os.close(descriptor)


def open_lock(file: Path) -> int:
    """Opens a file as a descriptor for `try_lock`; closing it releases the lock."""
    return os.open(file, os.O_RDWR | os.O_CREAT, 0o600)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Takes an exclusive or shared lock. Returns False if another descriptor holds a conflicting one."""
    if sys.platform == "win32":
        return True  # without locks, work may be done twice, but files still appear atomically
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hold(folder: Path) -> int:
    """Takes a shared lock on a folder. The lock lasts until all copies of the returned descriptor are
    closed.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # the file system may not support locks
        try_lock(descriptor, shared=True)
    return descriptor
