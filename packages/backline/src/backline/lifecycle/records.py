"""Finds and creates the state folder, whose contents are kept when the server ends."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from backline_client.system.user_folders import user_state
from backline_client.values.errors import BacklineError, Internal

log = logging.getLogger("backline.lifecycle")


def default_state_folder(locations: Iterable[str]) -> Path:
    """Returns the state folder for a set of repositories. It is the same folder at every start."""
    digest = sha256("\n".join(sorted(locations)).encode("utf-8", "surrogateescape")).hexdigest()
    return user_state() / digest[:16]


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Creates the folder if it is missing. By default, only its owner can access it.

    Raises Internal, with advice on what to do, if the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise not_writable(folder, error) from None


def warn_of_folder(folder: Path) -> None:
    """Logs a warning if the folder is not writable; called at start, before the first change."""
    try:
        make_folder(folder)
        if not os.access(folder, os.W_OK):
            raise not_writable(folder, OSError(errno.EACCES, os.strerror(errno.EACCES)))
    except BacklineError as error:
        log.warning("labels and the audit log cannot be stored: %s", error.message)


def not_writable(path: Path, error: OSError) -> BacklineError:
    """Returns the error for a path that cannot be written."""
    return Internal(
        f"'{path}' cannot be written: {error.strerror or error}. Free some space, or choose a writable folder"
        " with --state-dir"
    )
