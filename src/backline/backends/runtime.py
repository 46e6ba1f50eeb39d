"""What all runtimes share at their edge: the import that may fail, and reasons in one line."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from backline.engine.errors import Internal, InvalidArgument

_MAX_REASON = 300


def import_runtime(module: str, *, what: str, extra: str) -> Any:
    """The package of a runtime. Raises Internal with the extra to install where it is missing or broken.

    `what` begins the sentence ("TensorFlow models need TensorFlow").
    """
    try:
        return import_module(module)
    except ImportError as error:
        missing = error.name is not None and error.name.partition(".")[0] == module.partition(".")[0]
        why = "it is not installed" if missing else f"it cannot be imported ({error})"
        raise Internal(f"{what}, and {why}: pip install 'backline[{extra}]'") from None


def one_line(error: object) -> str:
    """A runtime's reason without line breaks, cut where it would fill a screen."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return reason if len(reason) <= _MAX_REASON else reason[: _MAX_REASON - 3] + "..."


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
