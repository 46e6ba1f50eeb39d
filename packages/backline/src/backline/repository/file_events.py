"""Detects changes to files by file system events, or by polling where there are no such events."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

from backline.repository.walk import reason

log = logging.getLogger("backline.repository")

#: A change counts as complete after this many seconds without an event, but no later than _LONGEST seconds
#: after its first event.
_SETTLED = 0.25
_LONGEST = 10.0
#: The watcher reports events once no further event has arrived for this many milliseconds, or 1.6 seconds
#: after the first event (the default of watchfiles).
_STEP_MS = 50
#: Seconds between checks that each path still leads to the watched file or folder, because a link may have
#: changed.
_CHECK = 5.0
#: Seconds after which a scan is due even without an event, because the system drops events if too many occur
#: at once.
_LOST_EVENTS = 60.0
#: Linux's table of mounts (proc(5)).
MOUNTS = Path("/proc/self/mounts")
#: The types of file systems that other machines can write to: first the names on Linux, then those in virtual
#: machines, in Docker Desktop and on macOS.
_REMOTE = (
    "nfs nfs4 cifs smb2 smb3 smbfs ncpfs afs 9p v9fs ceph glusterfs lustre gpfs beegfs"
    " virtiofs vboxsf prl_fs vmhgfs fakeowner grpcfuse afpfs webdav"
)
#: The beginnings of the names of such types.
_REMOTE_PREFIXES = ("fuse.", "osxfuse", "macfuse")


async def changes(places: Callable[[], Sequence[Path]], interval: float) -> AsyncGenerator[None, None]:
    """Yields when one of `places()`, or anything below it, may have changed. Yields once for a burst of
    changes.

    Without file system events, yields every `interval` seconds: on network file systems, if the extra "watch"
    is not installed, while a place does not exist, and if the system has no watches left.
    """
    # Files are checked on threads, because a disk or a file server may not respond for minutes.
    watching = await asyncio.to_thread(_can_watch, places())
    while True:
        if watching:
            try:
                async with aclosing(_events(places, interval)) as events:
                    async for _ in events:
                        yield
                continue
            except FileNotFoundError:
                pass  # a place is missing: poll until it exists
            except (OSError, RuntimeError, ExceptionGroup) as error:
                why = reason(_first(error))
                log.warning(
                    "'%s' cannot be watched (%s) and is scanned every %g seconds",
                    places()[0],
                    why,
                    interval,
                )
                watching = False
        await asyncio.sleep(interval)
        yield


def _first(error: Exception) -> Exception:
    """Returns the first error in nested exception groups. The watcher raises such groups for file names that
    are not UTF-8.
    """
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _can_watch(paths: Sequence[Path]) -> bool:
    try:
        import watchfiles  # noqa: F401
    except ImportError:
        log.info(
            "'%s' is scanned at intervals; to notice changes immediately: pip install 'backline[watch]'",
            paths[0],
        )
        return False
    return not any(map(is_remote, paths))


async def _events(places: Callable[[], Sequence[Path]], interval: float) -> AsyncGenerator[None, None]:
    """Yields after changes, until one of the places is replaced. Raises FileNotFoundError if a place is
    missing.
    """
    watched = await asyncio.to_thread(_inodes, places())
    event = asyncio.Event()
    event.set()  # changes that were made before the watch began must also cause a scan
    watch = asyncio.create_task(_watch(places(), event))
    try:
        last = time.monotonic()
        while True:
            if await _wait(event, min(interval, _CHECK)):
                first = time.monotonic()
                while time.monotonic() - first < _LONGEST and await _wait(event, _SETTLED):
                    pass
            elif (
                await asyncio.to_thread(_inodes, places()) == watched
                and time.monotonic() - last < _LOST_EVENTS
            ):
                continue
            if watch.done():
                await watch
            last = time.monotonic()
            yield
            if await asyncio.to_thread(_inodes, places()) != watched:
                return
    finally:
        watch.cancel()
        await asyncio.wait([watch])


async def _watch(paths: Sequence[Path], event: asyncio.Event) -> None:
    """Sets `event` for every change. While a file is being written, several changes are reported."""
    from watchfiles import awatch

    try:
        async for _ in awatch(*paths, watch_filter=None, step=_STEP_MS):
            event.set()
    finally:
        event.set()


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    """Waits up to `seconds` for the event and clears it. Returns whether the event was set in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True


def _inodes(paths: Sequence[Path]) -> list[tuple[Path, int, int]]:
    """Returns the current device and inode of each file or folder. Raises FileNotFoundError if one is
    missing.
    """
    found = [(path, os.stat(path)) for path in paths]
    return [(path, status.st_dev, status.st_ino) for path, status in found]


def is_remote(path: Path) -> bool:
    """Returns whether a path, or its parent if the path does not exist, is on a file system that other
    machines can write to.
    """
    real = os.path.realpath(path)
    best, kind = "", ""
    for point, mounted in mounts():
        # If several file systems are mounted at one point, the last one hides the others.
        if len(point) >= len(best) and (real == point or real.startswith(point.rstrip("/") + "/")):
            best, kind = point, mounted
    return kind in _REMOTE.split() or kind.startswith(_REMOTE_PREFIXES)


def mounts() -> Iterator[tuple[str, str]]:
    """Yields the mount points and the types of their file systems."""
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        import psutil

        yield from ((mount.mountpoint, mount.fstype) for mount in psutil.disk_partitions(all=True))
        return
    for line in lines:
        _, point, kind, *_ = line.split(" ")
        yield (
            re.sub(r"\\([0-7]{3})", lambda escaped: chr(int(escaped[1], 8)), point),
            kind,
        )  # white space is escaped in octal
