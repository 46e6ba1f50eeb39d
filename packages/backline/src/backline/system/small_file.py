"""Reads small files with few system calls.

A block takes three system calls, where open() would make up to seven. Each call gives up the interpreter
lock, and while many models load, another thread is woken each time.
"""

from __future__ import annotations

import os

_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0)


def read_start(path: str | os.PathLike[str], size: int) -> bytes:
    """Returns the first `size` bytes of a regular file, or all if it has fewer. Raises OSError."""
    file = os.open(path, _FLAGS)
    try:
        return os.read(file, size)
    finally:
        os.close(file)


def read_file(path: str | os.PathLike[str], size: int) -> bytes:
    """Returns the content of a regular file, which is read in blocks of `size` bytes. Raises OSError."""
    file = os.open(path, _FLAGS)
    try:
        content = block = os.read(file, size)
        while len(block) == size:  # a regular file returns less only at its end
            block = os.read(file, size)
            content += block
        return content
    finally:
        os.close(file)
