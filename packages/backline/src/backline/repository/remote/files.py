"""Defines the interface of remote files, which object stores, the hub and web servers implement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from backline.repository.listing import FileEntry
from backline_client.values.errors import Unavailable
from backline_client.values.names import printable

#: The prefixes of identities that are checksums, such as "sha256:9f86...". Contents are verified against such
#: an identity. "git:" precedes the SHA-1 that git computes for a blob.
SHA256, MD5, GIT = "sha256:", "md5:", "git:"

#: The maximum length, in bytes, of a part of a path. There is a limit because each part becomes a file name
#: on local disk.
_MAX_PART = 255


class Unreachable(Unavailable):
    """Raised if a remote source cannot be reached or has stopped responding. A retry may succeed."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The content of a file from byte `start` on; `start` is 0 if the remote source can send only whole
    files.
    """

    start: int
    chunks: Iterator[bytes]


class RemoteFiles(Protocol):
    """The files of a remote source. Methods block and may be called on several threads at once.

    The methods raise Unreachable if a retry may succeed, and another BacklineError if a retry would fail
    again.
    """

    @property
    def location(self) -> str:
        """The location as the user gave it, without secrets."""

    @property
    def name(self) -> str:
        """The name of the model, if the source contains a single model."""

    def files(self) -> Mapping[str, FileEntry]:
        """Returns all files, keyed by path."""

    def open(self, path: str, entry: FileEntry, offset: int) -> Opened:
        """Returns the content of a file from `offset` on. Raises Unavailable if the file differs from
        `entry`.
        """

    def close(self) -> None: ...


def name_problem(path: str) -> str:
    """Returns the reason why a remote path must not be used as a path on local disk; empty if the path may be
    used.
    """
    if not path or path.startswith("/"):
        return "its name is absolute or empty; give it a relative name"
    if "\0" in path:
        return "its name has a NUL character; rename it"
    if "\\" in path:
        return "its name has a backslash, which separates folders on some systems; rename it"
    parts = path.split("/")
    if ".." in parts:
        return "its name contains '..', which may lead outside the repository; rename it"
    if "" in parts or "." in parts:
        return "its name has an empty part or '.'; rename it"
    if any(len(part.encode("utf-8", "surrogatepass")) > _MAX_PART for part in parts):
        return f"a part of its name is longer than {_MAX_PART} bytes; rename it"
    return ""


def checked(location: str, files: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """Returns the files. Adds a problem to each file whose path must not, or cannot, be used on local
    disk.
    """
    folders = {path[:cut] for path in files for cut in range(len(path)) if path[cut] == "/"}
    result = {}
    for path, entry in files.items():
        problem = name_problem(path) or (
            path in folders and "it is both a file and a folder; rename one of them"
        )
        if problem:
            entry = FileEntry(
                entry.size, entry.identity, f"'{location.rstrip('/')}/{printable(path)}': {problem}"
            )
        result[path] = entry
    return result
