"""A folder of a repository as the rules of the layouts read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backline.repository.listing import FileEntry, Listing


@dataclass(frozen=True, slots=True)
class Place:
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

    def folders(self) -> dict[str, Place]:
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

    def below(self, path: str) -> Place:
        """The folder `path` below it; "" is itself."""
        return Place(self.listing.below(path), self.join(path), self.namespace)

    def _below(self, name: str, files: Mapping[str, FileEntry], folders: set[str]) -> Place:
        read = self.listing.read
        listing = Listing(
            f"{self.location.rstrip('/')}/{name}",
            files,
            frozenset(folders),
            lambda path: read(f"{name}/{path}"),
        )
        return Place(listing, self.join(name), self.namespace)

    def problem(self, name: str) -> str:
        """Why what is called `name` directly in it cannot be used; empty when it can."""
        entry = self.listing.files.get(name)
        return entry.problem if entry is not None else ""

    def join(self, path: str) -> str:
        """A path below this folder as one below the root."""
        return "/".join(part for part in (self.path, path) if part)
