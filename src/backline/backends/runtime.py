"""What backends share: importing a runtime, checking a file, and reasons in one line."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from backline.backends.backend import LoadOptions
from backline.engine.errors import Internal, InvalidArgument
from backline.engine.model_config import ModelConfig

_MAX_REASON = 300


def import_runtime(module: str, *, what: str, extra: str) -> Any:
    """Imports a runtime. Raises Internal with the extra to install if it is missing or broken.

    `what` begins the sentence ("TensorFlow models need TensorFlow").
    """
    try:
        return import_module(module)
    except ImportError as error:
        missing = error.name is not None and error.name.partition(".")[0] == module.partition(".")[0]
        why = "it is not installed" if missing else f"it cannot be imported ({error})"
        raise Internal(f"{what}, and {why}: pip install 'backline[{extra}]'") from None


def one_line(error: object) -> str:
    """A runtime's reason without line breaks, cut to a sensible length."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return reason if len(reason) <= _MAX_REASON else reason[: _MAX_REASON - 3] + "..."


_LFS_POINTER = b"version https://git-lfs"


def read_start(path: Path, size: int = 64) -> bytes:
    """The first bytes of a model file.

    Detects what runtimes only report as a parse error, and never blocks on a pipe. Raises InvalidArgument for
    a file that is not regular, cannot be read, is empty, or is a Git LFS pointer.
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


def require_trust(path: Path, config: ModelConfig, options: LoadOptions) -> None:
    """Raises InvalidArgument for code from elsewhere, unless the server trusts remote code.

    A backend whose format is code calls this before it reads anything that an attacker could have shaped.
    """
    if not options.may_run_code:
        raise InvalidArgument(
            f"'{path.name}' of model '{config.name}' comes from elsewhere (a remote repository, or a load that"
            " brought files along) and would be executed: start the server with --trust-remote-code if you"
            " trust where it comes from"
        )
