"""Locks files and folders against other threads and processes."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_POLL_SECONDS = 0.05


class LockHeld(OSError):
    """Raised if another process does not release a lock in time."""

    def __init__(self, file: Path) -> None:
        super().__init__(errno.ETIMEDOUT, f"another process holds the lock '{file}'")


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
            waiting.wait(_POLL_SECONDS)  # a wait inside flock cannot be stopped
        os.utime(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def edited(file: Path, within: float = math.inf) -> Iterator[None]:
    """Holds a lock in a `with` block that reads a file, changes its contents and replaces it.

    Without the lock, two processes that do so at the same time could undo each other's change. The lock is an
    empty file next to the one that `file` names or links to, and is removed after the block. Raises OSError,
    which names `file`, if the lock cannot be created or is not free within that many seconds.
    """
    target = file.resolve()
    lock = target.with_name(f".{target.name}.lock")
    try:
        descriptor = lock_current(lock, within=within)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not remove an open file
            lock.unlink()
        os.close(descriptor)


def lock_current(file: Path, mode: int = 0o600, within: float = math.inf) -> int:
    """Waits for the lock on a file that its holders remove. Returns the descriptor that holds the lock or, if
    the file system does not support locks, a descriptor without a lock. Raises LockHeld if another process
    holds the lock for longer than `within` seconds.
    """
    end = time.monotonic() + within
    while True:
        descriptor = open_lock(file, mode)
        try:
            while not try_lock(descriptor):
                if time.monotonic() > end:
                    os.close(descriptor)
                    raise LockHeld(file)
                time.sleep(_POLL_SECONDS)
        except LockHeld:
            raise
        except OSError:  # the file system does not support locks
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(file), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # the holder has removed this file, and another process may lock its successor


def open_lock(file: Path, mode: int = 0o600) -> int:
    """Opens a file as a descriptor for `try_lock`. Closing the descriptor releases the lock."""
    return os.open(file, os.O_RDWR | os.O_CREAT, mode)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Takes an exclusive or shared lock. Returns False if another descriptor holds a conflicting lock."""
    if sys.platform == "win32":
        return True  # without locks, two processes may do the same work, but files still appear atomically
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hold(folder: Path) -> int:
    """Takes a shared lock on a folder. The lock is held until all copies of the returned descriptor are
    closed.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # the file system may not support locks
        try_lock(descriptor, shared=True)
    return descriptor
