"""Caches remote files on local disk. Files with the same content are stored once, and versions share them by
hard links.

    blobs/<2 digits>/<SHA-256>    the contents, read-only
    index/<key>                   the SHA-256 of a file; <key> is a digest of location, path, identity, size
    trees/<SHA-256>/...           folders to load models from, made of links to blobs
    listings/<key>.json           the files of a location when it was last reached
    partial/, locks/              work in progress, and its locks

Several processes may share a cache: files and folders are moved into place when they are complete, and a lock
is held during long work. A file that was damaged by a crash or a full disk is detected by its size and hash,
and replaced when it is next used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from backline.repository.listing import FileEntry
from backline.repository.remote.files import SHA256
from backline_client.system.file_lock import locked
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError, Unavailable

log = logging.getLogger("backline.repository")

#: Entries that have not been used for this many seconds are removed when a repository is first scanned.
KEEP_SECONDS = 30 * 24 * 3600
#: A partial file that has not been written to for this many seconds is considered left over from a crash, and
#: removed.
PARTIAL_SECONDS = 24 * 3600
_USE_SECONDS = 3600
_CHUNK = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class CachedContent:
    """The content of a cached file, identified by its hash."""

    sha256: str
    size: int


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@decodable
class _Remembered(msgspec.Struct, frozen=True):
    """The files of a location as they were at the time `seen`, in seconds since 1970. `files` maps each path
    to (size, identity, problem). For the files in an archive, `source` is the identity of the archive.
    """

    location: str
    seen: float
    files: dict[str, tuple[int, str, str]]
    source: str = ""


_decode = msgspec.json.Decoder(_Remembered).decode


class ContentCache:
    """The cache in one folder. The docstring of this module describes the folder's layout.

    Methods may block, are thread-safe, and raise BacklineError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: Files that this process has verified: (device, inode) -> (size, modification time, hash).
        self._verified: dict[tuple[int, int], tuple[int, int, str]] = {}
        with self.explained("be created"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in ("blobs", "index", "trees", "listings", "partial", "locks"):
                (folder / name).mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Converts a failure of the local disk to a BacklineError, which says that the cache cannot `what`
        (such as "be read"), and what to do.
        """
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise self.full(what) from None
            raise Unavailable(
                f"the model cache '{self.folder}' cannot {what}: {error.strerror or error}; "
                "make it a folder that the server can write to, or choose another folder"
            ) from None

    def full(self, what: str, needed: int = 0) -> BacklineError:
        free = shutil.disk_usage(self.folder).free
        return Unavailable(
            f"the disk of the model cache '{self.folder}' is full, so it cannot {what}: "
            f"{f'{needed:,} bytes are needed, ' if needed else ''}{free:,} bytes are free; "
            "free space there or choose another cache folder. Partly written files were removed"
        )

    def check_space(self, needed: int) -> None:
        """Raises Unavailable if the disk has no space for `needed` more bytes."""
        if needed > shutil.disk_usage(self.folder).free:
            raise self.full("hold the files of the version", needed)

    # -- contents of files

    def find(self, location: str, path: str, entry: FileEntry) -> CachedContent | None:
        """Returns the content of a remote file if the content is in the cache and intact, otherwise None."""
        sha256 = (
            entry.identity.removeprefix(SHA256)
            if entry.identity.startswith(SHA256)
            else self._indexed(location, path, entry)
        )
        if not sha256:
            return None
        with self.explained("be read"):
            blob = self._blob(sha256)
            if not self._intact(blob, sha256, entry.size):
                return None
            _note_use(blob)
            return CachedContent(sha256, entry.size)

    def read(self, content: CachedContent) -> bytes:
        with self.explained("be read"):
            return self._blob(content.sha256).read_bytes()

    def path(self, content: CachedContent) -> Path:
        """Returns the path of the cached file with this content. Callers must not modify the file."""
        return self._blob(content.sha256)

    def take(self, source: Readable, name: str) -> CachedContent:
        """Stores the bytes of a stream, and returns their hash and size. Errors refer to the stream as
        `name`.
        """
        with self.explained(f"store '{name}'"):
            descriptor, partial = tempfile.mkstemp(dir=self.folder / "partial")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    digest, size = hashlib.sha256(), 0
                    while chunk := source.read(_CHUNK):
                        digest.update(chunk)
                        size += file.write(chunk)
                content = CachedContent(digest.hexdigest(), size)
                self.store_blob(Path(partial), content)
            finally:
                Path(partial).unlink(missing_ok=True)
        return content

    def discard(self, content: CachedContent) -> None:
        """Removes cached content that is no longer needed, such as an archive that has been unpacked."""
        with self.explained("be cleaned up"):
            self._blob(content.sha256).unlink(missing_ok=True)

    def store(
        self, partial: Path, content: CachedContent, location: str, path: str, entry: FileEntry
    ) -> None:
        """Moves the complete file `partial`, which has this content, into the cache."""
        with self.explained(f"store '{path}'"):
            self.store_blob(partial, content)
            name = self.key(location, path, entry)
            self._write(self.folder / "index" / name, content.sha256.encode())

    def store_blob(self, partial: Path, content: CachedContent) -> None:
        blob = self._blob(content.sha256)
        if self._intact(blob, content.sha256, content.size):
            partial.unlink()
            return
        blob.parent.mkdir(exist_ok=True)
        partial.chmod(0o444)
        partial.replace(blob)
        self._note(blob, content.sha256)

    def key(self, location: str, path: str, entry: FileEntry) -> str:
        """Returns the name of a remote file in the index, which is also the name of its lock."""
        return _digest("\0".join((location, path, entry.identity, str(entry.size))))

    def _blob(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256[:2] / sha256

    def _indexed(self, location: str, path: str, entry: FileEntry) -> str:
        try:
            text = (self.folder / "index" / self.key(location, path, entry)).read_text("ascii", "replace")
        except OSError:
            return ""  # the file is then downloaded again, and any failure to write it is reported
        return text if len(text) == 64 and text.isalnum() else ""

    def _intact(self, file: Path, sha256: str, size: int) -> bool:
        """Returns whether a file has this content. A process hashes a file once, and again if the file's
        modification time or size has changed.
        """
        try:
            status = file.stat()
        except FileNotFoundError:
            return False
        if status.st_size != size:
            return False
        if self._verified.get((status.st_dev, status.st_ino)) == (size, status.st_mtime_ns, sha256):
            return True
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != sha256:
                return False
        self._note(file, sha256)
        return True

    def _note(self, file: Path, sha256: str) -> None:
        status = file.stat()
        self._verified[status.st_dev, status.st_ino] = (status.st_size, status.st_mtime_ns, sha256)

    # -- folders to load models from

    def tree(self, files: Mapping[str, CachedContent]) -> Path:
        """Returns a folder with these files, which are keyed by path. The contents of the files must be in
        the cache.
        """
        name = _digest("".join(f"{path}\0{files[path].sha256}\n" for path in sorted(files)))
        tree = self.folder / "trees" / name
        with self.explained("link the files of a version"), self.lock(f"tree-{name}"):
            if not self._is_complete(tree, files):
                self._build(tree, files)
        self.keep(tree)
        return tree

    def keep(self, tree: Path) -> None:
        """Marks a tree as used now."""
        with contextlib.suppress(FileNotFoundError), self.explained("record which trees are used"):
            os.utime(tree)

    def _is_complete(self, tree: Path, files: Mapping[str, CachedContent]) -> bool:
        return all(self._intact(tree / path, content.sha256, content.size) for path, content in files.items())

    def _build(self, tree: Path, files: Mapping[str, CachedContent]) -> None:
        made = Path(tempfile.mkdtemp(prefix="tree-", dir=self.folder / "partial"))
        try:
            made.chmod(0o755)
            for path, content in files.items():
                file = made / path
                file.parent.mkdir(parents=True, exist_ok=True)
                _link(self._blob(content.sha256), file)
            if tree.exists():  # the tree is damaged; open files in it remain usable
                tree.rename(made.with_name(made.name + "-old"))
            made.rename(tree)
        finally:
            shutil.rmtree(made, ignore_errors=True)
            shutil.rmtree(made.with_name(made.name + "-old"), ignore_errors=True)

    # -- work in progress

    def partial(self, name: str) -> Path:
        return self.folder / "partial" / name

    @contextlib.contextmanager
    def lock(self, name: str, stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Holds the lock `name` in a `with` block; see `locked` for `stop`."""
        with contextlib.ExitStack() as held:
            with self.explained("be locked"):
                held.enter_context(locked(self.folder / "locks" / name, stop))
            yield

    def _write(self, file: Path, data: bytes) -> None:
        """Writes a file atomically."""
        descriptor, name = tempfile.mkstemp(dir=self.folder / "partial")
        try:
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(data)
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise

    # -- records of the files at each location

    def remember(self, location: str, files: Mapping[str, FileEntry], source: str = "") -> None:
        """Records the files at a location, so that a server can later start offline. If the location is an
        archive, `source` is its identity, and `files` are the files in it.
        """
        plain = {path: (entry.size, entry.identity, entry.problem) for path, entry in files.items()}
        remembered = _Remembered(location, time.time(), plain, source)
        with self.explained("record what a repository holds"):
            self._write(self._listing(location, source), msgspec.json.encode(remembered))

    def recall(self, location: str, source: str = "") -> tuple[dict[str, FileEntry], float] | None:
        """Returns the recorded files and the time of the record; None if there is no usable record."""
        try:
            found = _decode(self._listing(location, source).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.warning(
                "The record of '%s' in the model cache '%s' cannot be read and is ignored: %s",
                location,
                self.folder,
                error,
            )
            return None
        if (found.location, found.source) != (location, source):
            return None
        return {path: FileEntry(*plain) for path, plain in found.files.items()}, found.seen

    def _listing(self, location: str, source: str) -> Path:
        key = f"{location}\0{source}" if source else location
        return self.folder / "listings" / f"{_digest(key)}.json"

    # -- removing old entries

    def prune(self, now: float | None = None) -> None:
        """Removes entries that have not been used for KEEP_SECONDS: first trees, then contents to which no
        tree links. Also removes old locks, index entries without content, and partial files left over from a
        crash.
        """
        now = time.time() if now is None else now
        with self.explained("be cleaned up"):
            for tree in (self.folder / "trees").iterdir():
                if _older(tree, now - KEEP_SECONDS):
                    shutil.rmtree(tree, ignore_errors=True)
            for blob in (self.folder / "blobs").glob("*/*"):
                if _older(blob, now - KEEP_SECONDS, links=1):
                    blob.unlink(missing_ok=True)
            for left in (self.folder / "partial").iterdir():
                if _older(left, now - PARTIAL_SECONDS):
                    shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            for lock in (self.folder / "locks").iterdir():
                if _older(lock, now - KEEP_SECONDS):  # no process holds a lock for that long
                    lock.unlink(missing_ok=True)
            for noted in (self.folder / "index").iterdir():
                if (
                    _older(noted, now - KEEP_SECONDS)
                    and not self._blob(noted.read_text("ascii", "replace")).exists()
                ):
                    noted.unlink(missing_ok=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _link(blob: Path, file: Path) -> None:
    try:
        os.link(blob, file)
    except OSError as error:
        if error.errno in _FULL or isinstance(error, FileNotFoundError):
            raise
        shutil.copyfile(blob, file)  # the file system has no hard links, or the file has too many


def _older(path: Path, moment: float, links: int = 0) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return max(status.st_mtime, status.st_atime if links else 0.0) < moment and (
        not links or status.st_nlink <= links
    )


def _note_use(blob: Path) -> None:
    """Updates the access time of a cached file, at most once an hour. The modification time must not change,
    because the file would then be hashed again.
    """
    status = blob.stat()
    if status.st_atime < time.time() - _USE_SECONDS:
        with contextlib.suppress(OSError):  # only the owner of a file may set its times
            os.utime(blob, ns=(time.time_ns(), status.st_mtime_ns))
