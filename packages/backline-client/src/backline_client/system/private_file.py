"""Keeps keys and state private: creates files that only their owner may read, and removes keys from
environments.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Final

from backline_client.system.file_lock import lock_current, try_lock

#: The ending of the names of files that are to replace others.
_NEW: Final = ".new"


@contextmanager
def replacement(
    path: Path, mode: int = 0o600, *, durable: bool = False, inherit: bool = True
) -> Iterator[Path]:
    """Creates an empty file with mode 0600, which replaces `path` at the end of the `with` block.

    The new file then gets the owner, group and mode of `path`, or `mode` if there is no such file; without
    `inherit`, it is created with `mode`, less the process's umask. If `path` is a symbolic link, the file
    that it points to is replaced. If the block raises, `path` does not change. A reader never sees a partly
    written file. If `durable`, the new file survives a power failure: its contents are on disk before it
    replaces `path`, and its name is on disk at the end of the block. Removes the new files of processes that
    were killed in such a block. Raises OSError, which names `path` and not the new file.
    """
    target = path.resolve()
    try:
        remove_left_over(path)
        # The module tempfile would import compression libraries, which few servers need.
        new = target.with_name(f".{target.name}.{os.urandom(4).hex()}{_NEW}")
        # While the file is locked, no other process takes it for left over.
        held = lock_current(new, 0o600 if inherit else mode)
        try:
            yield new
            if durable:
                with new.open("ab") as written:
                    os.fsync(written.fileno())
            if inherit:
                _set_access(new, target, mode)
            new.replace(target)
            if durable:
                sync_folder(target.parent)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        finally:
            os.close(held)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def remove_left_over(path: Path) -> None:
    """Removes the files that were to replace `path`, if the processes that wrote them were killed."""
    target = path.resolve()
    for found in target.parent.glob(f".{escape(target.name)}.*{_NEW}"):
        with suppress(OSError):  # another process may have removed it, or the file system has no locks
            # Security: in a folder that users share, one of them may have put a link here.
            descriptor = os.open(found, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if try_lock(descriptor):
                    found.unlink()
            finally:
                os.close(descriptor)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Creates an empty folder with mode 0700, which becomes `folder` at the end of the `with` block.

    So `folder` is complete from the moment when it exists. If another process creates `folder` in the
    meantime, that folder stays, and an OSError of this call or of the block is suppressed. If the block
    raises another error, nothing remains.
    """
    import shutil  # imported here, because it imports compression libraries, which few servers need

    place = folder.with_name(f"new-{os.urandom(4).hex()}")
    place.mkdir(0o700)
    try:
        yield place
        place.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(place, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Writes the names of a folder's files to disk. Without this, a power failure soon after a rename can
    undo the rename, although the renamed file itself is on disk (fsync(2)).
    """
    if sys.platform == "win32":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network and user-space file systems cannot sync a folder.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_access(new: Path, path: Path, mode: int) -> None:
    """Gives `new` the owner, group and mode of `path`, or `mode` if `path` does not exist.

    An administrator may edit a file that belongs to the user of a server. The server has to be able to read
    the new file. If this process may not give the file to that owner and group, `new` keeps mode 0600,
    because the mode of `path` was meant for the group of `path`.
    """
    if sys.platform == "win32":
        return
    try:
        found = path.stat()
        os.chown(new, found.st_uid, found.st_gid)
    except FileNotFoundError:
        new.chmod(mode)
    except PermissionError:
        return
    else:
        new.chmod(stat.S_IMODE(found.st_mode))


class NotRegular(OSError):
    """Raised if something else, such as a folder or a named pipe, is in the place of a file."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.EINVAL, "it is not a regular file", path)


def check_regular(path: Path) -> None:
    """Raises NotRegular if `path` exists and is not a regular file. Ignores what cannot be looked at, because
    opening it will raise an error that says why.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise NotRegular(str(path))


def regular(path: str, flags: int) -> int:
    """Opens a regular file, and creates it with mode 0600 if the flags say so; serves as the `opener` of
    `open`. Raises NotRegular for anything else: to open a named pipe would block forever.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular(path)
    return descriptor


def private(path: str, flags: int) -> int:
    """Creates a file with mode 0600; serves as the `opener` of `open`. An existing file keeps its mode."""
    return os.open(path, flags, 0o600)


def without_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns a copy of the environment variables without the API keys of the server and of clients, for
    processes that run models.
    """
    return {
        name: value
        for name, value in environment.items()
        if not (name == "BACKLINE_KEY" or (name.startswith("BACKLINE_") and name.endswith("_KEY")))
    }
