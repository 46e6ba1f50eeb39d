"""What a remote place must be able to do for its files to be listed and downloaded: object stores, hubs and web servers implement it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from backline.engine.errors import Unavailable
from backline.repository.listing import FileEntry
from backline.repository.names import printable

#: Checksums that an identity may start with ("sha256:9f86..."): the content is then held against it. "git" is git's SHA-1 of a blob.
SHA256, MD5, GIT = "sha256:", "md5:", "git:"

#: A part of a name is a file name on local disk, of at most this many bytes.
_MAX_PART = 255


class Unreachable(Unavailable):
    """The place cannot be reached at the moment, or stopped answering; trying again may help."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The bytes of a file from `start`, which is 0 where a place cannot begin in the middle."""

    start: int
    chunks: Iterator[bytes]


class RemoteFiles(Protocol):
    """Files somewhere else. The methods block and are called on threads, several at a time.

    They raise Unreachable when trying again may help, another BacklineError when it does not.
    """

    @property
    def location(self) -> str:
        """As the user gave it, without secrets."""

    @property
    def name(self) -> str:
        """What a model is called that is the whole place."""

    def files(self) -> Mapping[str, FileEntry]:
        """All files by path, with what is wrong with a name in its `problem`."""

    def open(self, path: str, entry: FileEntry, offset: int) -> Opened:
        """The content of one file from `offset` on; refuses when it is no longer the one of `entry`."""

    def close(self) -> None: ...


def name_problem(path: str) -> str:
    """Why a path from elsewhere must not become one on local disk; empty when it may."""
    if not path or path.startswith("/"):
        return "its name is absolute or empty; give it a relative name"
    if "\0" in path:
        return "its name has a NUL character; rename it"
    if "\\" in path:
        return "its name has a backslash, which separates folders on some systems; rename it"
    parts = path.split("/")
    if ".." in parts:
        return "its name leads out of the repository by '..'; rename it"
    if "" in parts or "." in parts:
        return "its name has an empty part or '.'; rename it"
    if any(len(part.encode("utf-8", "surrogatepass")) > _MAX_PART for part in parts):
        return f"a part of its name is longer than {_MAX_PART} bytes; rename it"
    return ""


def checked(location: str, files: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """The files, those whose names cannot exist on local disk marked with the reason."""
    folders = {path[:cut] for path in files for cut in range(len(path)) if path[cut] == "/"}
    result = {}
    for path, entry in files.items():
        problem = name_problem(path) or (
            path in folders and "it is a file and a folder at once; rename one of them"
        )
        if problem:
            entry = FileEntry(
                entry.size, entry.identity, f"'{location.rstrip('/')}/{printable(path)}': {problem}"
            )
        result[path] = entry
    return result
