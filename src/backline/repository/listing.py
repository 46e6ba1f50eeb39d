"""The files of a repository as a scan sees them, wherever they are: names, sizes, identities; contents are read one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file. `identity` changes whenever its content does (modification time and inode on disk, the ETag in an object store).

    `problem` says why the file cannot be used (a link out of the repository, no permission); empty when it can.
    """

    size: int
    identity: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """All files below a place. Paths are relative, with "/" between their parts ("add1/1/model.onnx").

    `location` is the folder or URL for messages. `folders` are all folders, also empty ones; an object store has only those with files. A
    folder that cannot be looked into is one of them, and in `files` as well, with its problem.
    `read` gives the content of one (small) file; it raises BacklineError, and may block.
    """

    location: str
    files: Mapping[str, FileEntry]
    folders: frozenset[str]
    read: Callable[[str], bytes]

    def below(self, folder: str) -> Listing:
        """The listing of one folder, with paths relative to it; the folder "" is the whole."""
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
    """A folder: its listing, and where it is below the root of the repository `namespace` ("" for the root itself)."""

    listing: Listing
    path: str
    namespace: str

    @property
    def location(self) -> str:
        """The folder or URL, for messages."""
        return self.listing.location

    @property
    def name(self) -> str:
        """What the folder is called."""
        return self.location.rstrip("/").rpartition("/")[2]

    def folders(self) -> dict[str, Folder]:
        """The folders directly in it, by name, without those whose name begins with a dot."""
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
        """The folder `path` below it; "" is itself."""
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
        """Why what is called `name` directly in it cannot be used; empty when it can."""
        entry = self.listing.files.get(name)
        return entry.problem if entry is not None else ""

    def join(self, path: str) -> str:
        """A path below this folder as one below the root."""
        return "/".join(part for part in (self.path, path) if part)
