"""The state folder, which outlives the server, and the labels in it that were set by request."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from backline.engine.errors import BacklineError, Internal, InvalidArgument, Unavailable
from backline.system.user_folders import user_state

log = logging.getLogger("backline.lifecycle")

_LABELS_FILE = "labels.json"


class LabelStore:
    """The labels of all models. A change is on disk when the call returns; nothing changes if it raises."""

    def __init__(self, folder: Path) -> None:
        """Raises InvalidArgument, with the file's path, if the stored labels are damaged."""
        self._file = folder / _LABELS_FILE
        self._labels = _read(self._file)
        self._stamp = _stamp(self._file)

    def of(self, model: str) -> Mapping[str, str]:
        """The labels of a model, with the versions that they point to."""
        return self._labels.get(model, {})

    def set(self, model: str, label: str, version: str) -> None:
        """Stores a label. Raises Internal if that fails, Unavailable if another process changed the file."""
        self._replace({**self._labels, model: {**self.of(model), label: version}})

    def remove(self, model: str, label: str) -> None:
        """Removes a label. Raises the same errors as `set`."""
        left = {name: version for name, version in self.of(model).items() if name != label}
        labels = {name: found for name, found in self._labels.items() if name != model}
        self._replace({**labels, model: left} if left else labels)

    def _replace(self, labels: dict[str, dict[str, str]]) -> None:
        make_folder(self._file.parent)
        if _stamp(self._file) not in (self._stamp, None):
            # Replacing the file would lose another server's labels.
            raise Unavailable(
                f"'{self._file}' with the labels of models was changed by another server, or by hand, since"
                " this server read it; nothing was changed. Restart this server to read it again, and"
                " give each server its own --state-dir"
            )
        written = self._file.with_suffix(f".{os.getpid()}.new")
        try:
            with written.open("w", encoding="utf-8") as file:
                json.dump(labels, file, indent=2, sort_keys=True)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            written.replace(self._file)
            self._stamp = _stamp(self._file)
        except OSError as error:
            with suppress(OSError):
                written.unlink()
            raise not_writable(self._file, error) from None
        self._labels = labels


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """A value that changes whenever the file is written; None if it is missing or unreadable."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(file: Path) -> dict[str, dict[str, str]]:
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidArgument(
            f"'{file}' with the labels of models cannot be read: {error.strerror}"
        ) from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, str(error)) from None
    if not _is_labels(found):
        raise _damaged(file, 'expected {"model": {"label": "version"}}')
    return found  # type: ignore[no-any-return]


def _is_labels(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(labels, dict)
        and all(label and isinstance(version, str) and version for label, version in labels.items())
        for labels in found.values()
    )


def _damaged(file: Path, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"'{file}' with the labels of models is damaged: {reason}. Repair it, or remove it to start with the"
        " labels of the configurations"
    )


def default_state_folder(locations: Iterable[str]) -> Path:
    """The state folder for a set of repositories: the same at every start."""
    digest = sha256("\n".join(sorted(locations)).encode("utf-8", "surrogateescape")).hexdigest()
    return user_state() / digest[:16]


def make_folder(folder: Path) -> None:
    """Creates the folder if missing. Raises Internal, saying what to do, when that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(folder, error) from None


def warn_of_folder(folder: Path) -> None:
    """Logs a warning if nothing can be stored in the folder; called at start, before the first change."""
    try:
        make_folder(folder)
        if not os.access(folder, os.W_OK):
            raise not_writable(folder, OSError(errno.EACCES, os.strerror(errno.EACCES)))
    except BacklineError as error:
        log.warning("labels and the audit log cannot be stored: %s", error.message)


def not_writable(path: Path, error: OSError) -> BacklineError:
    """The error for a path that cannot be written."""
    return Internal(
        f"'{path}' cannot be written: {error.strerror or error}. Free some space, or choose a writable folder"
        " with --state-dir"
    )
