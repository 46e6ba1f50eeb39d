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
