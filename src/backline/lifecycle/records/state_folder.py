"""Where a server keeps what was decided by request: labels and the audit log."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from backline.engine.errors import BacklineError, Internal
from backline.system.user_folders import user_state

log = logging.getLogger("backline.lifecycle")


def default_state_folder(locations: Iterable[str]) -> Path:
    """The folder of a server with these repositories: the same at every start, another for other repositories."""
    digest = sha256("\n".join(sorted(locations)).encode("utf-8", "surrogateescape")).hexdigest()
    return user_state() / digest[:16]


def make_folder(folder: Path) -> None:
    """Creates the folder where it is missing. Raises Internal with the way out when that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(folder, error) from None


def warn_of_folder(folder: Path) -> None:
    """Says in the log when nothing can be kept in the folder: at the start, not with the first change."""
    try:
        make_folder(folder)
        if not os.access(folder, os.W_OK):
            raise not_writable(folder, OSError(errno.EACCES, os.strerror(errno.EACCES)))
    except BacklineError as error:
        log.warning("labels and the audit log cannot be kept: %s", error.message)


def not_writable(path: Path, error: OSError) -> BacklineError:
    """What is said when something cannot be kept."""
    return Internal(
        f"'{path}' cannot be written: {error.strerror or error}. Make room, or name a folder that can be written with --state-dir"
    )
