"""Lists the files of a folder on local disk."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from backline.repository.listing import FileEntry, Listing
from backline_client.values.errors import InvalidArgument, NotFound
from backline_client.values.names import IGNORED_FOLDERS, PYTHON_VERSION, printable

#: The maximum depth of nested folders. All layouts need far fewer levels.
MAX_DEPTH = 16
#: The maximum number of files and folders in total. Scans are repeated and must be quick, and a folder with
#: more files, such as a home folder, was probably not meant to be a repository.
MAX_ENTRIES = 100_000
#: The maximum size, in bytes, of a file that `Listing.read` reads; configurations and labels are far smaller.
MAX_READ = 16 * 1024 * 1024


def walk(root: Path, *, stable_inodes: bool = True) -> Listing:
    """Lists all files and folders below `root`, following links.

    Names that start with a dot (except PYTHON_VERSION) and IGNORED_FOLDERS are left out. An entry that cannot
    be used gets a problem. Such an entry is a link that is broken, is part of a loop or leads outside `root`;
    a folder that is unreadable or nested too deeply; or a file that is unreadable, not regular, or has
    unprintable characters in its name. If `stable_inodes` is set, inodes are part of a file's identity; on
    some network file systems the inode of a file can change. Raises NotFound or InvalidArgument if `root`
    cannot be read.
    """
    location = str(root)
    try:
        real = root.resolve(strict=True)
        if not real.is_dir():
            raise InvalidArgument(
                f"model repository '{location}' is a file, not a folder that holds <model>/<version>/<file>"
            )
        found = _Walk(location, real, stable_inodes)
        found.enter(str(real), "", (str(real),))
    except FileNotFoundError:
        raise NotFound(f"model repository '{location}' does not exist") from None
    except (OSError, RuntimeError) as error:
        raise InvalidArgument(f"model repository '{location}' cannot be read: {reason(error)}") from None
    except _TooMany:
        raise InvalidArgument(
            f"'{location}' holds more than {MAX_ENTRIES} files and folders; name a folder that holds nothing"
            " but models"
        ) from None
    return Listing(
        location, found.files, frozenset(found.folders), lambda path: _read(location, real, found.files, path)
    )


def walk_file(file: Path, *, stable_inodes: bool = True) -> Listing:
    """Lists only the model `file`, and the files in the same folder that belong to the model.

    A file belongs to net.onnx if its name starts with "net" and has another suffix, as files with external
    weights do (net.onnx.data, net_weights.bin). Links may lead to any place, because the user named the file.
    Raises NotFound or InvalidArgument if the file cannot be read.
    """
    folder = file.parent
    location = str(folder)
    found = _Walk(location, folder, stable_inodes)
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                belongs = entry.name.startswith(file.stem) and not entry.name.endswith(file.suffix)
                if (belongs or entry.name == file.name) and entry.is_file():
                    found.files[entry.name] = found.entry(entry, f"{location}/{entry.name}")
    except FileNotFoundError:
        raise NotFound(f"model file '{file}' does not exist") from None
    except OSError as error:
        raise InvalidArgument(f"model file '{file}' cannot be read: {reason(error)}") from None
    return Listing(
        location, found.files, frozenset(), lambda path: _read(location, folder, found.files, path)
    )


def identity(status: os.stat_result, *, stable_inodes: bool = True) -> str:
    """Returns a string that changes when a file is written or replaced. It consists of the file's
    modification time, its size and, with `stable_inodes`, its inode.
    """
    inode = f"-{status.st_ino:x}" if stable_inodes else ""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}{inode}"


def reason(error: Exception) -> str:
    """Returns the reason that the system gives for an error, without the path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class _TooMany(Exception):
    """Raised when there are more than MAX_ENTRIES files and folders."""


@dataclass
class _Walk:
    """The files and folders found so far below `real`, which is the path of the root with all links
    resolved.
    """

    location: str
    real: Path
    stable_inodes: bool
    files: dict[str, FileEntry] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)

    def enter(self, folder: str, prefix: str, chain: tuple[str, ...]) -> None:
        """Records the entries of `folder`. `chain` has the real paths of all folders from the root to
        `folder`.
        """
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name == PYTHON_VERSION or not (
                    entry.name.startswith(".") or entry.name in IGNORED_FOLDERS
                ):
                    self._note(entry, prefix + entry.name, chain)
                    if len(self.files) + len(self.folders) > MAX_ENTRIES:
                        raise _TooMany

    def entry(self, entry: os.DirEntry[str], place: str) -> FileEntry:
        """Returns the FileEntry of a file, with a problem if the file cannot be used."""
        status = entry.stat()
        problem = ""
        if not stat.S_ISREG(status.st_mode):
            problem = f"'{printable(place)}' is not a regular file"
        elif not entry.name.isprintable():
            problem = (
                f"the name of the file '{printable(place)}' has characters that cannot be printed; rename it"
            )
        elif not os.access(entry.path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            problem = f"'{place}' cannot be read: Permission denied"
        return FileEntry(status.st_size, identity(status, stable_inodes=self.stable_inodes), problem)

    def _note(self, entry: os.DirEntry[str], path: str, chain: tuple[str, ...]) -> None:
        place = f"{self.location.rstrip('/')}/{path}"
        try:
            target = self._target(entry, place, chain)
            is_folder = entry.is_dir()
            if is_folder:
                if len(chain) > MAX_DEPTH:
                    raise InvalidArgument(
                        f"'{printable(place)}' is more than {MAX_DEPTH} folders deep, and is not searched:"
                        " move it up"
                    )
                self.folders.add(path)
                self.enter(target, path + "/", (*chain, target))
            else:
                self.files[path] = self.entry(entry, place)
        except InvalidArgument as error:
            self._note_broken(entry, path, error.message)
        except OSError as error:
            self._note_broken(entry, path, f"'{printable(place)}' cannot be read: {reason(error)}")

    def _note_broken(self, entry: os.DirEntry[str], path: str, problem: str) -> None:
        self.files[path] = FileEntry(0, "", problem)
        if _may_be_folder(entry):
            self.folders.add(path)

    def _target(self, entry: os.DirEntry[str], place: str, chain: tuple[str, ...]) -> str:
        """Returns the real path of an entry. Raises InvalidArgument for a link that must not, or cannot, be
        followed.
        """
        here = os.path.join(chain[-1], entry.name)
        if not entry.is_symlink():
            return here
        try:
            target = os.path.realpath(here, strict=True)
        except FileNotFoundError:
            raise InvalidArgument(
                f"'{printable(place)}' is a link to something that does not exist; correct or remove the link"
            ) from None
        if not Path(target).is_relative_to(self.real):
            raise InvalidArgument(
                f"'{printable(place)}' points outside the model repository, to '{printable(target)}'; copy it"
                f" into '{self.real}' instead"
            )
        if any(Path(folder).is_relative_to(target) for folder in chain):
            raise InvalidArgument(
                f"'{printable(place)}' is a link to a folder that contains it, '{printable(target)}'; remove"
                " it"
            )
        return target


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is a folder, or a broken link that may have led to a folder."""
    try:
        return entry.is_dir() or (entry.is_symlink() and not entry.is_file())
    except OSError:
        return True  # as a folder, the unreadable entry becomes a model with a problem


def _read(location: str, root: Path, files: dict[str, FileEntry], path: str) -> bytes:
    entry = files.get(path)
    place = f"{location.rstrip('/')}/{path}"
    if entry is None:
        raise NotFound(f"'{printable(place)}' does not exist")
    if entry.problem:
        raise InvalidArgument(entry.problem)
    if entry.size > MAX_READ:
        raise InvalidArgument(f"'{place}' is too large ({entry.size} bytes); at most {MAX_READ} are read")
    try:
        with (root / path).open("rb") as file:
            return file.read(MAX_READ)
    except OSError as error:
        raise InvalidArgument(f"'{place}' cannot be read: {reason(error)}") from None
