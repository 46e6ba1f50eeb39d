"""Which cores a thread may run on, where the system lets a program say so (Linux: sched_setaffinity(2))."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from backline.engine.errors import InvalidArgument


def check_cores(model: str, cores: Collection[int]) -> None:
    """Raises InvalidArgument where a model cannot be kept to these cores."""
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise InvalidArgument(
            f"model '{model}': cpus cannot be kept on this system ({sys.platform}), which pins no threads to cores"
        )
    usable = os.sched_getaffinity(os.getpid())
    missing = sorted(set(cores) - usable)
    if missing:
        names = ", ".join(map(str, missing))
        raise InvalidArgument(
            f"model '{model}': cpus names {names}, but this process may use the cores {format_cores(usable)} only"
        )


def pin(cores: Collection[int]) -> None:
    """Keeps the calling thread, and those that it starts from now on, to some cores; to none in particular without any."""
    if cores:
        os.sched_setaffinity(0, cores)


@contextmanager
def pinned(cores: Collection[int]) -> Iterator[None]:
    """Keeps the calling thread to some cores for a while: what it starts meanwhile stays there."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    pin(cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def format_cores(cores: Collection[int]) -> str:
    """Numbers of cores for people: "0-3, 6"."""
    ranges: list[list[int]] = []
    for core in sorted(cores):
        if ranges and core == ranges[-1][1] + 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
