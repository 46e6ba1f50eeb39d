"""Describes the files of a repository by their names, sizes and identities. Contents are read on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from backline_client.values.errors import InvalidArgument
from backline_client.values.names import fault_in_name, printable


class FileEntry(Struct, frozen=True):
    """A file in a repository.

    `identity` changes when the content changes: on disk it consists of the modification time, the size and
    usually the inode; for a remote file it is a checksum, an ETag, a date or, if there is none, the size.
    `problem` says why the file cannot be used, for example because it is a link to a place outside the
    repository; it is empty if the file can be used.
    """

    size: int
    identity: str
    problem: str = ""


def place_below(location: str, path: str) -> str:
    """Joins a location and a path below that location. If the location is an archive on a web server, `#`
    precedes the path.
    """
    in_archive = location.startswith(("http://", "https://")) and "#" not in location
    return f"{location.rstrip('/')}{'#' if in_archive else '/'}{path}"


class Listing(Struct, frozen=True):
    """All files below the folder or URL `location`. Paths are relative to it, such as "add1/1/model.onnx".

    `folders` contains all folders, including empty folders, which do not exist in object stores. A folder
    that cannot be read is in `folders`, and also in `files`, with its problem. `read` returns the content of
    a small file; it may block, and raises BacklineError if the file cannot be read.
    """

    location: str
    files: Mapping[str, FileEntry]
    folders: frozenset[str]
    read: Callable[[str], bytes]

    def below(self, folder: str) -> Listing:
        """Returns the listing of one folder, with paths relative to that folder; "" returns the whole
        listing.
        """
        if not folder:
            return self
        prefix = folder + "/"
        cut = len(prefix)
        return Listing(
            place_below(self.location, folder),
            {path[cut:]: entry for path, entry in self.files.items() if path.startswith(prefix)},
            frozenset(path[cut:] for path in self.folders if path.startswith(prefix)),
            lambda path: self.read(prefix + path),
        )


class Folder(Struct, frozen=True):
    """A folder in the repository `namespace`: its listing, and its path below the root of the repository (""
    for the root itself).
    """

    listing: Listing
    path: str
    namespace: str

    @property
    def location(self) -> str:
        return self.listing.location

    @property
    def name(self) -> str:
        return self.location.rstrip("/").rpartition("/")[2]

    def folders(self) -> dict[str, Folder]:
        """Returns the folders directly in this folder, keyed by name, except folders whose names start with a
        dot.
        """
        files: dict[str, dict[str, FileEntry]] = {}
        folders: dict[str, set[str]] = {folder: set() for folder in self.listing.folders if "/" not in folder}
        for path, entry in self.listing.files.items():
            top, slash, rest = path.partition("/")
            if slash:
                files.setdefault(top, {})[rest] = entry
        for path in self.listing.folders:
            top, slash, rest = path.partition("/")
            if slash:
                folders.setdefault(top, set()).add(rest)
        names = sorted(name for name in files.keys() | folders.keys() if not name.startswith("."))
        return {name: self._below(name, files.get(name, {}), folders.get(name, set())) for name in names}

    def below(self, path: str) -> Folder:
        """Returns the folder `path` below this folder; "" returns this folder itself."""
        return Folder(self.listing.below(path), self.join(path), self.namespace)

    def _below(self, name: str, files: Mapping[str, FileEntry], folders: set[str]) -> Folder:
        read = self.listing.read
        listing = Listing(
            place_below(self.location, name),
            files,
            frozenset(folders),
            lambda path: read(f"{name}/{path}"),
        )
        return Folder(listing, self.join(name), self.namespace)

    def problem(self, name: str) -> str:
        """Returns why the entry `name` directly in this folder cannot be used; empty if it can be used."""
        entry = self.listing.files.get(name)
        return entry.problem if entry is not None else ""

    def join(self, path: str) -> str:
        """Converts a path below this folder to a path below the root."""
        return f"{self.path}/{path}" if self.path and path else self.path or path


#: The maximum number of names that `some_of` lists.
_SHOWN = 20


def check_name(what: str, name: str, place: str) -> None:
    """Raises InvalidArgument if a name found in a repository is not valid according to engine.names.

    `what` is "model" or "version"; `place` is the folder or file that the name comes from.
    """
    fault = fault_in_name(name)
    if fault:
        raise InvalidArgument(f"the name of the {what} '{printable(place)}' {fault}; rename the folder")


def some_of(names: Sequence[str]) -> str:
    """Joins names for a message. A long list is shortened: "1, 2 and 998 more"."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
