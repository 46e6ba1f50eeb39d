"""Downloads remote files into the cache and verifies them. A download resumes after a lost connection."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from backline.repository.listing import FileEntry
from backline.repository.remote.cache import CachedContent, ContentCache
from backline.repository.remote.files import GIT, MD5, SHA256, RemoteFiles, Unreachable
from backline.repository.repository import OnBytes
from backline_client.system.file_lock import Stopped
from backline_client.values.errors import Unavailable
from backline_client.values.names import printable

#: A download fails after this many failed attempts in a row, of which only the first may have received
#: anything.
_ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.2

#: A callback that gets the number of bytes received since the last call. The number is negative if bytes that
#: were already counted must be received again.
OnArrived = Callable[[int], None]


class Downloads:
    """Downloads the files of one remote source into the cache. `fetch` blocks, and may be called on several
    threads at once.
    """

    def __init__(self, files: RemoteFiles, cache: ContentCache) -> None:
        self._files = files
        self._cache = cache
        #: Whether the MD5s that this source reports have turned out not to be the MD5s of the contents.
        self._md5_misleads = False

    def fetch(
        self, path: str, entry: FileEntry, on_arrived: OnArrived, stop: threading.Event
    ) -> CachedContent:
        """Downloads a file into the cache. Raises Stopped once `stop` is set, and BacklineError on
        failure.
        """
        location = self._files.location
        key = (
            entry.identity.removeprefix(SHA256)
            if entry.identity.startswith(SHA256)
            else self._cache.key(location, path, entry)
        )
        with self._cache.lock(key, stop.is_set):
            # Another thread or process may have downloaded the file while this thread waited for the lock.
            if found := self._cache.find(location, path, entry):
                on_arrived(entry.size)
                return found
            partial = self._cache.partial(key)
            try:
                content = self._verified(path, entry, partial, on_arrived, stop)
                self._cache.store(partial, content, location, path, entry)
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
            return content

    def _verified(
        self, path: str, entry: FileEntry, partial: Path, on_arrived: OnArrived, stop: threading.Event
    ) -> CachedContent:
        received = self._receive(path, entry, partial, on_arrived, stop)
        if self._matches(entry, received):
            return received.content
        on_arrived(-entry.size)
        again = self._receive(path, entry, partial, on_arrived, stop)
        if self._matches(entry, again):
            return again.content
        if entry.identity.startswith(MD5) and again.content == received.content:
            # If an object is encrypted with a customer's key, its ETag looks like an MD5 but is not one.
            self._md5_misleads = True
            return again.content
        raise Unavailable(
            f"'{self._place(path)}' was damaged in two downloads: its checksum differs from"
            f" {entry.identity}; check the network, and upload the file again if that does not help"
        )

    def _matches(self, entry: FileEntry, received: _Received) -> bool:
        kind, _, digest = entry.identity.partition(":")
        actual = received.digests.get(f"{kind}:")
        return actual is None or actual == digest or (kind == "md5" and self._md5_misleads)

    def _receive(
        self, path: str, entry: FileEntry, partial: Path, on_arrived: OnArrived, stop: threading.Event
    ) -> _Received:
        """Downloads the whole file to `partial`. After a lost connection, resumes where the download
        stopped.
        """
        with self._cache.explained(f"store '{path}'"), partial.open("wb") as file:
            hashes = _Hashes(entry)
            failures = 0
            while True:
                before = hashes.size
                try:
                    self._append(path, entry, file, hashes, on_arrived, stop)
                    return hashes.received()
                except Unreachable:
                    failures = failures + 1 if hashes.size == before else 1
                    if failures == _ATTEMPTS:
                        raise
                    if stop.wait(_FIRST_PAUSE_SECONDS * 2 ** (failures - 1)):
                        raise Stopped from None

    def _append(
        self,
        path: str,
        entry: FileEntry,
        file: _Writable,
        hashes: _Hashes,
        on_arrived: OnArrived,
        stop: threading.Event,
    ) -> None:
        if stop.is_set():
            raise Stopped
        opened = self._files.open(path, entry, hashes.size)
        if opened.start != hashes.size:
            on_arrived(-hashes.size)
            hashes.restart()
            file.seek(0)
            file.truncate()
        for chunk in opened.chunks:
            if stop.is_set():
                raise Stopped
            if hashes.size + len(chunk) > entry.size:
                raise Unavailable(
                    f"'{self._place(path)}' is larger than the {entry.size:,} bytes that were listed; the"
                    " file changed during the download"
                )
            hashes.update(chunk)
            file.write(chunk)
            on_arrived(len(chunk))
        if hashes.size < entry.size:
            raise Unreachable(
                f"'{self._place(path)}' ended after {hashes.size:,} of {entry.size:,} bytes; the connection"
                " was lost"
            )

    def _place(self, path: str) -> str:
        return f"{self._files.location.rstrip('/')}/{printable(path)}"


class DownloadProgress:
    """Counts the bytes that threads receive, and reports the counts to `on_bytes` on the event loop."""

    def __init__(self, total: int, on_bytes: OnBytes) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._total = total
        self._on_bytes = on_bytes
        self._here = 0
        self._announced = False

    def add(self, count: int) -> None:
        """Adds `count` to the number of bytes received. May be called on any thread."""
        with self._lock:
            self._here += count
            if self._announced:
                return
            self._announced = True
        with contextlib.suppress(RuntimeError):  # the loop has ended, so nobody receives the report
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        with self._lock:
            self._announced = False
            here = self._here
        self._on_bytes(here, self._total)

    def end(self) -> None:
        """Reports the final count immediately. Nothing is reported after that."""
        with self._lock:
            on_bytes, self._on_bytes = self._on_bytes, _say_nothing
            here = self._here
        on_bytes(here, self._total)


def _say_nothing(here: int, total: int) -> None:
    """Ignores progress. This function replaces the callback once the download has ended."""


class _Writable(Protocol):
    def write(self, data: bytes, /) -> int: ...
    def seek(self, offset: int, /) -> int: ...
    def truncate(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Received:
    """A finished download: the content, and the digests that are compared with the file's identity."""

    content: CachedContent
    digests: dict[str, str]


class _Hashes:
    """Computes digests of a file while it arrives. They can then be compared with the file's identity."""

    def __init__(self, entry: FileEntry) -> None:
        self._entry = entry
        self.restart()

    def restart(self) -> None:
        self.size = 0
        self._hashes: dict[str, Any] = {SHA256: hashlib.sha256()}
        if self._entry.identity.startswith(MD5):
            self._hashes[MD5] = hashlib.md5(usedforsecurity=False)
        if self._entry.identity.startswith(GIT):
            self._hashes[GIT] = hashlib.sha1(b"blob %d\0" % self._entry.size, usedforsecurity=False)

    def update(self, chunk: bytes) -> None:
        self.size += len(chunk)
        for digest in self._hashes.values():
            digest.update(chunk)

    def received(self) -> _Received:
        digests = {kind: digest.hexdigest() for kind, digest in self._hashes.items()}
        return _Received(CachedContent(digests[SHA256], self.size), digests)
