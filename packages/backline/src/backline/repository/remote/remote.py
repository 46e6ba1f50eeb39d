"""Implements a remote repository, which lists the files of a remote source and fetches them into the
local cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from backline.engine.config.model_config import ModelFormat
from backline.repository.configuration import ConfigFiles
from backline.repository.layouts.layouts import Known
from backline.repository.layouts.scan import check_named, scan_listing
from backline.repository.listing import FileEntry, Listing
from backline.repository.remote.cache import CachedContent, ContentCache
from backline.repository.remote.downloads import DownloadProgress, Downloads
from backline.repository.remote.files import RemoteFiles, Unreachable, checked
from backline.repository.repository import FetchedVersion, FoundModel, FoundVersion, OnBytes
from backline_client.system.file_lock import Stopped
from backline_client.values.errors import BacklineError, InvalidArgument, NotFound, Unavailable

log = logging.getLogger("backline.repository")
T = TypeVar("T")

#: The maximum number of parallel downloads from a repository. A single download rarely uses the whole
#: bandwidth, and too many downloads slow each other down.
PARALLEL = 8
_THREADS = 4
#: The maximum size, in bytes, of files that are fetched in advance because a scan will read them.
_SMALL = 1 << 20
_READ_AT_SCAN = (".pbtxt", ".toml", "model-settings.json", "settings.json", ".config")
#: Seconds after which the trees in use are again marked as used. This time is much shorter than the cache's
#: KEEP_SECONDS.
_KEEP_SECONDS = 3600.0
#: While the files do not change, the number of seconds between two records of the time when the source was
#: last reached.
_REMEMBER_SECONDS = 60.0
#: Seconds between two warnings that the source has been unreachable since the server started.
_WARN_SECONDS = 600.0


class RemoteRepository:
    """A repository whose files come from a remote source. Work that blocks runs on threads of the
    repository.
    """

    def __init__(
        self,
        files: RemoteFiles,
        cache: ContentCache,
        *,
        formats: Sequence[ModelFormat],
        configs: ConfigFiles | None = None,
        name: str = "",
        nested: bool = False,
    ) -> None:
        """Creates the repository. If the source contains a single model, `name` overrides the model's name.
        If `nested` is set, the repository may be the only folder of the source; see scan_listing.
        """
        self._files = files
        self._given_name = name
        self._nested = nested
        self._cache = cache
        self._formats = formats
        self._configs = configs or ConfigFiles()
        self._downloads = Downloads(files, cache)
        self._transfers = ThreadPoolExecutor(PARALLEL, thread_name_prefix="download")
        #: Threads for work that must not wait for downloads: scans, and fetching versions whose files are
        #: already in the cache.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="repository")
        self._scans = threading.Lock()
        self._closing = threading.Event()
        self._closed = asyncio.Event()
        self._trees: set[Path] = set()
        self._kept = time.monotonic()
        self._known: Known = {}
        #: The files of the last scan, and the models found in these files; None if a file could not be read.
        self._last: tuple[Mapping[str, FileEntry], list[FoundModel]] | None = None
        self._reached = False
        self._remembered_at = 0.0
        self._warned_at = -_WARN_SECONDS
        self._pruned = False

    @property
    def location(self) -> str:
        return self._files.location

    @property
    def name(self) -> str:
        return self._given_name or self._files.name

    # -- scanning

    async def scan(self) -> list[FoundModel]:
        self._refuse_if_closed()
        return await asyncio.wrap_future(self._threads.submit(self._scan))

    def _scan(self) -> list[FoundModel]:
        with self._scans, self._unless_closed():
            files = self._list()
            if self._last is not None and self._last[0] == files:
                return self._last[1]
            unread: list[str] = []

            def read(path: str) -> bytes:
                try:
                    return self._read(path, files)
                except BacklineError:
                    unread.append(path)
                    raise

            self._read_ahead(files)
            folders = frozenset(path[:cut] for path in files for cut in range(len(path)) if path[cut] == "/")
            listing = Listing(self.location, files, folders, read)
            models = scan_listing(
                listing,
                formats=self._formats,
                name=self._given_name or self._files.name,
                configs=self._configs,
                known=self._known,
                nested=self._nested,
            )
            check_named(models, self._given_name, self.location)
            self._last = None if unread else (files, models)
            return models

    def _list(self) -> Mapping[str, FileEntry]:
        self._keep_trees()
        try:
            files = checked(self.location, self._files.files())
        except Unreachable as error:
            if self._reached:
                raise
            return self._remembered(error)
        self._reached = True
        if (
            self._last is None
            or self._last[0] != files
            or time.monotonic() - self._remembered_at >= _REMEMBER_SECONDS
        ):
            with self._lenient():
                self._cache.remember(self.location, files)
            self._remembered_at = time.monotonic()
        return files

    def _remembered(self, error: Unreachable) -> Mapping[str, FileEntry]:
        """Returns the files that the source contained when it was last reached. Raises `error` if there is no
        record of these files.
        """
        found = self._cache.recall(self.location)
        if found is None:
            raise error
        files, seen = found
        if time.monotonic() - self._warned_at >= _WARN_SECONDS:
            self._warned_at = time.monotonic()
            log.warning(
                "%s. Serving the files in the cache '%s', recorded %s ago",
                error.message, self._cache.folder, _age(time.time() - seen),
            )  # fmt: skip
        return files

    def _read_ahead(self, files: Mapping[str, FileEntry]) -> None:
        """Fetches, in parallel, the files that the scan will read. Failures are ignored here, because the
        scan reports them.
        """
        missing = [
            path
            for path, entry in files.items()
            if path.endswith(_READ_AT_SCAN) and entry.size <= _SMALL and not entry.problem
            and self._cache.find(self.location, path, entry) is None
        ]  # fmt: skip
        if len(missing) < 2:
            return
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="repository-scan") as threads:
            for path in missing:
                threads.submit(self._downloads.fetch, path, files[path], _ignore, self._closing)

    def _read(self, path: str, files: Mapping[str, FileEntry]) -> bytes:
        entry = files.get(path)
        if entry is None:
            raise NotFound(f"'{self.location.rstrip('/')}/{path}' does not exist")
        if entry.problem:
            raise InvalidArgument(entry.problem)
        content = self._cache.find(self.location, path, entry) or self._downloads.fetch(
            path, entry, _ignore, self._closing
        )
        return self._cache.read(content)

    def _keep_trees(self) -> None:
        if not self._pruned:
            self._pruned = True
            with self._lenient():
                self._cache.prune()
        if time.monotonic() - self._kept >= _KEEP_SECONDS:
            self._kept = time.monotonic()
            with self._lenient():
                for tree in tuple(self._trees):
                    self._cache.keep(tree)

    @contextlib.contextmanager
    def _lenient(self) -> Iterator[None]:
        """Logs a failure of the cache in a `with` block instead of raising it. Used for work that is not
        essential.
        """
        try:
            yield
        except BacklineError as error:
            log.warning("%s", error.message)

    # -- fetching versions

    async def fetch(self, model: FoundModel, version: FoundVersion, on_bytes: OnBytes) -> FetchedVersion:
        self._refuse_if_closed()
        if version.path is None:
            raise InvalidArgument(
                version.problem or f"version {version.version} of model '{model.name}' has no model file"
            )
        for entry in version.files.values():
            if entry.problem:
                raise InvalidArgument(entry.problem)
        stop = threading.Event()
        progress = DownloadProgress(sum(entry.size for entry in version.files.values()), on_bytes)
        try:
            contents = await self._run(self._find_all, version.files)
            missing = [path for path in version.files if path not in contents]
            progress.add(sum(content.size for content in contents.values()))
            if missing:
                await self._run(self._cache.check_space, sum(version.files[path].size for path in missing))
                contents |= await self._fetch_all(
                    {path: version.files[path] for path in missing}, progress, stop
                )
            tree = await self._run(self._cache.tree, contents)
        finally:
            stop.set()
            progress.end()
        self._trees.add(tree)
        return FetchedVersion(tree, tree / version.path, tree / model.folder)

    def _find_all(self, files: Mapping[str, FileEntry]) -> dict[str, CachedContent]:
        found = {path: self._cache.find(self.location, path, entry) for path, entry in files.items()}
        return {path: content for path, content in found.items() if content is not None}

    async def _fetch_all(
        self, files: Mapping[str, FileEntry], progress: DownloadProgress, stop: threading.Event
    ) -> dict[str, CachedContent]:
        """Returns the contents of all files. If a download fails, stops the other downloads and raises the
        first failure.
        """

        def fetch(path: str, entry: FileEntry) -> CachedContent:
            try:
                return self._downloads.fetch(path, entry, progress.add, _Either(stop, self._closing))
            except BaseException:
                stop.set()
                raise

        futures = [self._transfers.submit(fetch, path, entry) for path, entry in files.items()]
        results = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        contents = {}
        stopped = None
        for path, result in zip(files, results, strict=True):
            if isinstance(result, Stopped):
                stopped = result
            elif isinstance(result, BaseException):
                raise result
            else:
                contents[path] = result
        if stopped is not None:
            raise self._closed_error()
        return contents

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        future: Future[T] = self._threads.submit(function, *arguments)
        return await asyncio.wrap_future(future)

    # -- polling and closing

    async def changes(self, interval: float) -> AsyncIterator[None]:
        """Yields every `interval` seconds, because stores do not report changes. If nothing has changed, a
        scan only lists the files.
        """
        while not self._closed.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), interval)
                return
            yield

    async def close(self) -> None:
        self._closing.set()
        self._closed.set()
        for threads in (self._threads, self._transfers):
            threads.shutdown(wait=False, cancel_futures=True)
        self._files.close()

    def _refuse_if_closed(self) -> None:
        if self._closing.is_set():
            raise self._closed_error()

    @contextlib.contextmanager
    def _unless_closed(self) -> Iterator[None]:
        try:
            yield
        except Stopped:
            raise self._closed_error() from None

    def _closed_error(self) -> BacklineError:
        return Unavailable(f"the model repository '{self.location}' is closed")


class _Either(threading.Event):
    """An event that counts as set if either of two other events is set."""

    def __init__(self, one: threading.Event, other: threading.Event) -> None:
        super().__init__()
        self._one = one
        self._other = other

    def is_set(self) -> bool:
        return self._one.is_set() or self._other.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        return self._one.wait(timeout) or self._other.is_set()


def _ignore(count: int) -> None:
    """Ignores the progress of downloads whose progress is not reported."""


def _age(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(seconds, 0):.0f} seconds"
