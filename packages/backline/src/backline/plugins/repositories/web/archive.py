"""Reads models from an archive, or a single model file, on a web server."""

from __future__ import annotations

import base64
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from backline.engine.config.model_config import ModelFormat
from backline.repository.listing import FileEntry
from backline.repository.remote.cache import CachedContent, ContentCache
from backline.repository.remote.downloads import Downloads
from backline.repository.remote.files import SHA256, Opened, RemoteFiles
from backline.repository.remote.http_client import HttpClient, WebResponse, without_secrets
from backline.repository.remote.unpack import ARCHIVES, archive_kind, members
from backline.system.archive_limits import UnpackLimits
from backline_client.values.errors import InvalidArgument, NotFound, Unavailable

#: Status codes of HEAD after which GET is tried: the server may not support HEAD, or a signed URL may allow
#: only GET.
_NO_HEAD = frozenset({403, 405, 501})
_DENIED = "put the user name and password into the URL (https://user:password@host/...), or use a signed URL"


def web_files(
    location: str,
    formats: Sequence[ModelFormat],
    contents: ContentCache,
    limits: UnpackLimits | None = None,
) -> RemoteFiles:
    """Returns the files at a URL of an archive, such as https://host/models.zip (see ARCHIVES), or of a model
    file, such as https://host/model.onnx.

    `#folder` after the URL of an archive says which folder in the archive is the repository. This is not
    needed if the archive contains only one folder. Raises InvalidArgument for an invalid URL.
    """
    kind = archive_kind(_path(location))
    if kind is not None:
        return _WebArchive(location, kind, contents, limits or UnpackLimits())
    known = sorted({name for model in formats for name in model.suffixes if not model.folder})
    if not _path(location).endswith(tuple(known)):
        raise InvalidArgument(
            f"'{without_secrets(location)}' is neither an archive nor a model file; expected a name that ends"
            f" with {', '.join((*ARCHIVES, *known))}"
        )
    return _WebFile(location)


class _WebFile:
    """The RemoteFiles for a URL of a single file."""

    def __init__(self, location: str) -> None:
        parts = urlsplit(location)
        if not parts.hostname:
            raise InvalidArgument(
                f"'{without_secrets(location)}' names no host; expected https://host/models.zip"
            )
        self._location = without_secrets(location)
        self._file = unquote(parts.path).rpartition("/")[2]
        self._url = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query, ""))
        self._client = HttpClient(
            self._url, authorization=_basic(parts.username, parts.password), denied=_DENIED
        )

    @property
    def location(self) -> str:
        return self._location

    @property
    def name(self) -> str:
        return Path(self._file).stem

    def files(self) -> Mapping[str, FileEntry]:
        return {self._file: self.look()}

    def look(self) -> FileEntry:
        """Returns the entry of the file as it is now on the server. Raises Unavailable if the server does not
        report the file's size.
        """
        with self._client.request(self._url, method="HEAD", also=_NO_HEAD) as answer:
            if answer.status not in _NO_HEAD:
                return self._entry(answer)
        with self._client.request(self._url) as answer:
            return self._entry(answer)

    def _entry(self, answer: WebResponse) -> FileEntry:
        length = answer.headers.get("Content-Length", "")
        if not length.isdigit():
            raise Unavailable(
                f"'{self._location}': the server does not report the file's size; use a server that sends"
                " Content-Length"
            )
        # If there is neither an ETag nor a date, replacing the file with another file of the same size goes
        # unnoticed. To notice it, every scan would have to download the file, which would be worse.
        return FileEntry(int(length), _identity(answer) or f"size:{length}")

    def open(self, path: str, entry: FileEntry, offset: int) -> Opened:
        def check(answer: WebResponse) -> None:
            if _identity(answer) not in {"", entry.identity}:
                raise Unavailable(
                    f"'{self._location}' was replaced during the download; the next scan will find the new"
                    " file",
                    1,
                )

        return self._client.open_from(self._url, offset, check)

    def close(self) -> None:
        """Does nothing: no connection is kept open."""


class _WebArchive(_WebFile):
    """The RemoteFiles in an archive. The first scan unpacks the archive to find out which files it
    contains.
    """

    def __init__(self, location: str, kind: str, cache: ContentCache, limits: UnpackLimits) -> None:
        super().__init__(location)
        self._kind = kind
        self._cache = cache
        self._limits = limits
        self._folder = unquote(urlsplit(location).fragment).strip("/")
        self._downloads = Downloads(_WebFile(location), cache)
        self._closing = threading.Event()

    @property
    def name(self) -> str:
        name = self._folder.rpartition("/")[2] or self._file
        suffix = next((suffix for suffix in ARCHIVES if name.lower().endswith(suffix)), "")
        return name[: len(name) - len(suffix)]

    def files(self) -> Mapping[str, FileEntry]:
        entry = self.look()
        known = self._cache.recall(self._place, entry.identity)
        return self._below(known[0] if known else self._unpack(entry))

    def open(self, path: str, entry: FileEntry, offset: int) -> Opened:
        """Unpacks the archive again. Called if the file is no longer in the cache."""
        path = f"{self._folder}/{path}" if self._folder else path
        if self._unpack(self.look()).get(path) != FileEntry(entry.size, entry.identity):
            raise Unavailable(
                f"'{self._location}' was replaced, and '{path}' in it has changed; the next scan will find"
                " the new archive",
                1,
            )
        return Opened(
            0, iter((self._cache.read(CachedContent(entry.identity.removeprefix(SHA256), entry.size)),))
        )

    def close(self) -> None:
        self._closing.set()

    @property
    def _place(self) -> str:
        return self._location.partition("#")[0]

    def _unpack(self, entry: FileEntry) -> Mapping[str, FileEntry]:
        with self._cache.lock(self._cache.key(self._place, "unpacked", entry), self._closing.is_set):
            archive = self._downloads.fetch(self._file, entry, lambda count: None, self._closing)
            files = {}
            for member in members(self._cache.path(archive), self._kind, self._place, self._limits):
                self._cache.check_space(member.size)
                content = self._cache.take(member.content, member.path)
                files[member.path] = FileEntry(content.size, f"{SHA256}{content.sha256}")
            self._cache.discard(archive)
        self._cache.remember(self._place, files, entry.identity)
        return files

    def _below(self, files: Mapping[str, FileEntry]) -> Mapping[str, FileEntry]:
        if not self._folder:
            return files
        prefix = self._folder + "/"
        below = {path.removeprefix(prefix): entry for path, entry in files.items() if path.startswith(prefix)}
        if not below:
            nested = sorted({path[: path.index(f"/{prefix}")] for path in files if f"/{prefix}" in path})
            if nested:
                hint = f"did you mean '{self._place}#{nested[0]}/{self._folder}'?"
            else:
                held = ", ".join(sorted({f"'{path.partition('/')[0]}'" for path in files})[:10])
                hint = f"it holds {held or 'nothing'}"
            raise NotFound(f"archive '{self._place}' has no folder '{self._folder}'; {hint}")
        return below


def _identity(answer: WebResponse) -> str:
    """Returns a string that changes whenever the file changes: the ETag, or the date if there is no ETag;
    empty if the response has neither.
    """
    if etag := answer.headers.get("ETag", ""):
        return f"etag:{etag}"
    modified = answer.headers.get("Last-Modified", "")
    return f"modified:{modified}" if modified else ""


def _path(location: str) -> str:
    return unquote(urlsplit(location).path).lower()


def _basic(user: str | None, password: str | None) -> str:
    """Returns the Authorization header for the user and password in a URL; empty if the URL has no user."""
    if user is None:
        return ""
    return "Basic " + base64.b64encode(f"{unquote(user)}:{unquote(password or '')}".encode()).decode()
