"""The checks that every model file gets before a runtime sees it."""

from __future__ import annotations

from pathlib import Path

from backline.engine.errors import InvalidArgument

_LFS_POINTER = b"version https://git-lfs"


def read_start(path: Path, size: int = 64) -> bytes:
    """The first bytes of a model file.

    Says what a runtime would only call a parse error, and opens nothing that could wait for its writer. Raises InvalidArgument for what is
    no regular file, cannot be read, is empty, or is a pointer of Git LFS.
    """
    if path.exists() and not path.is_file():
        raise InvalidArgument(f"'{path}' is not a regular file")
    try:
        with path.open("rb") as file:
            start = file.read(size)
    except OSError as error:
        raise InvalidArgument(f"'{path}' cannot be read: {error.strerror}") from None
    if not start:
        raise InvalidArgument(f"'{path}' is empty")
    if start.startswith(_LFS_POINTER):
        raise InvalidArgument(f"'{path}' is a pointer of Git LFS, not the model itself: run `git lfs pull`")
    return start
