"""Unpacks a model that is a single archive. The archive is unpacked once for all processes that run the
model.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import zipfile
from pathlib import Path

from backline.repository.remote.unpack import members
from backline.system.archive_limits import UnpackLimits
from backline_client.system.file_lock import try_lock
from backline_client.system.private_file import new_folder
from backline_client.values.errors import InvalidArgument, Unavailable

#: The time, in seconds, for which an unpacked archive is kept after the last load that used it.
_KEPT = 24 * 3600.0
_PIECE = 1 << 20


def unpacked(archive: Path, cache: Path, root: str = "", limits: UnpackLimits | None = None) -> Path:
    """Returns the folder below `cache` with the unpacked files of an archive (zip or gzipped tar). Only files
    whose paths in the archive start with `root` are unpacked, without this prefix.

    An archive is unpacked when it is first used. At that time, unpacked archives that have not been used for
    a day, and that no process holds with `file_lock.hold`, are removed. Raises InvalidArgument for an archive
    that must not be unpacked (see `unpack.members`), and Unavailable if the folder cannot be written.
    """
    status = archive.stat()
    identity = f"{archive.resolve()}\n{status.st_size}\n{status.st_mtime_ns}\n{status.st_ino}\n{root}"
    folder = cache / hashlib.sha256(identity.encode()).hexdigest()[:32]
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not folder.is_dir():
            _prune(cache)
            _unpack(archive, folder, root, limits or UnpackLimits())
        os.utime(folder)
    except OSError as error:
        raise Unavailable(
            f"'{archive}' cannot be unpacked to '{cache}': {error.strerror}; make room, or choose another"
            " folder with --cache-dir"
        ) from None
    return folder


def _unpack(archive: Path, folder: Path, root: str, limits: UnpackLimits) -> None:
    """Unpacks all files below `root` or none, even if another process unpacks the same archive at the same
    time.
    """
    kind = "zip" if zipfile.is_zipfile(archive) else "gz"
    with new_folder(folder) as place:
        for member in members(archive, kind, str(archive), limits):
            if not member.path.startswith(root):
                continue
            file = place / member.path.removeprefix(root)
            file.parent.mkdir(parents=True, exist_ok=True)
            written = 0
            with file.open("xb") as target:
                while piece := member.content.read(_PIECE):
                    written += len(piece)
                    if written > member.size:
                        raise InvalidArgument(
                            f"archive '{archive}' is damaged: '{member.path}' is larger than its header says"
                        )
                    target.write(piece)


def _prune(cache: Path) -> None:
    for folder in cache.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime < _KEPT:
                continue
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                if try_lock(descriptor):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
