"""The checks that every model file gets before a runtime sees it."""

from __future__ import annotations

from pathlib import Path

from backline.engine.errors import InvalidArgument
from backline.engine.model_config import ModelConfig

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


def require_trust(path: Path, config: ModelConfig) -> None:
    """Raises InvalidArgument for code that comes from elsewhere, unless the server trusts such code.

    Every backend whose format is code calls this before it reads anything of the file that an attacker could have shaped.
    """
    if not config.may_run_code:
        raise InvalidArgument(
            f"'{path.name}' of model '{config.name}' comes from elsewhere (a remote repository, or a load that brought files along)"
            " and would be executed: start the server with --trust-remote-code if you trust where it comes from"
        )
