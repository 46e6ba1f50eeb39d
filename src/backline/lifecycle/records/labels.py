"""Labels set by request, stored on disk: they outlive the server and override those of configurations."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from backline.engine.errors import InvalidArgument, Unavailable
from backline.lifecycle.records.state_folder import make_folder, not_writable

_FILE = "labels.json"


class LabelStore:
    """The labels of all models. A change is on disk when its call returns, or has not happened."""

    def __init__(self, folder: Path) -> None:
        """Raises InvalidArgument, naming the file, when it is damaged."""
        self._file = folder / _FILE
        self._labels = _read(self._file)
        self._stamp = _stamp(self._file)

    def of(self, model: str) -> Mapping[str, str]:
        """The versions that the labels of a model point to."""
        return self._labels.get(model, {})

    def set(self, model: str, label: str, version: str) -> None:
        """Points a label to a version. Raises Internal when it cannot be stored."""
        self._replace({**self._labels, model: {**self.of(model), label: version}})

    def remove(self, model: str, label: str) -> None:
        """Removes a label. Raises Internal when that cannot be stored."""
        left = {name: version for name, version in self.of(model).items() if name != label}
        labels = {name: found for name, found in self._labels.items() if name != model}
        self._replace({**labels, model: left} if left else labels)

    def _replace(self, labels: dict[str, dict[str, str]]) -> None:
        make_folder(self._file.parent)
        if _stamp(self._file) not in (self._stamp, None):
            # Writing would lose another server's labels.
            raise Unavailable(
                f"'{self._file}' with the labels of models was changed by another server, or by hand, since"
                " this server read it;"
                " nothing was changed. Restart this server to take what it holds, and give servers that run"
                " together a --state-dir each"
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
    """Changes whenever the file is written; None if it is missing or unreadable, as the write will report."""
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
