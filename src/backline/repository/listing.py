"""The files of a repository as a scan sees them: names, sizes and identities; contents are read on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file.

    `identity` changes with its content (modification time and inode on disk, ETag in an object store).

    `problem` says why the file cannot be used (a link out of the repository, no permission); empty when it
    can.
    """

    size: int
    identity: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """All files below a place. Paths are relative, with "/" as the separator ("add1/1/model.onnx").

    `location` is the folder or URL, for messages. `folders` has all folders, including empty ones; an object
    store has only those with files. A folder that cannot be read is in `folders` and, with its problem, in
    `files`. `read` returns the content of one (small) file; it raises BacklineError, and may block.
    """

    location: str
    files: Mapping[str, FileEntry]
    folders: frozenset[str]
    read: Callable[[str], bytes]

    def below(self, folder: str) -> Listing:
        """The listing of one folder, with paths relative to it; "" is the whole listing."""
        if not folder:
            return self
        prefix = folder + "/"
        cut = len(prefix)
        return Listing(
            f"{self.location.rstrip('/')}/{folder}",
            {path[cut:]: entry for path, entry in self.files.items() if path.startswith(prefix)},
            frozenset(path[cut:] for path in self.folders if path.startswith(prefix)),
            lambda path: self.read(prefix + path),
        )


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder: its listing, and its path below the root of the repository `namespace` ("" for the root)."""

    listing: Listing
    path: str
    namespace: str

    @property
    def location(self) -> str:
        """The folder or URL, for messages."""
        return self.listing.location

    @property
    def name(self) -> str:
        """The last part of the location."""
        return self.location.rstrip("/").rpartition("/")[2]

    def folders(self) -> dict[str, Folder]:
        """The folders directly in it, by name, except those whose name starts with a dot."""
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
        """The folder `path` below it; "" is the folder itself."""
        return Folder(self.listing.below(path), self.join(path), self.namespace)

    def _below(self, name: str, files: Mapping[str, FileEntry], folders: set[str]) -> Folder:
        read = self.listing.read
        listing = Listing(
            f"{self.location.rstrip('/')}/{name}",
            files,
            frozenset(folders),
            lambda path: read(f"{name}/{path}"),
        )
        return Folder(listing, self.join(name), self.namespace)

    def problem(self, name: str) -> str:
        """Why the entry `name` directly in it cannot be used; empty when it can."""
        entry = self.listing.files.get(name)
        return entry.problem if entry is not None else ""

    def join(self, path: str) -> str:
        """Turns a path below this folder into one below the root."""
        return "/".join(part for part in (self.path, path) if part)
