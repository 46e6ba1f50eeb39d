"""A small document that several servers read, and replace only if nobody else has replaced it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from backline.engine.errors import BacklineError, Unavailable
from backline.lifecycle.records import make_folder, not_writable
from backline.system.file_lock import locked


@dataclass(frozen=True, slots=True)
class Edition:
    """A document as it was read. `data` is None, and `revision` "", if there is no document yet."""

    data: bytes | None
    revision: str


class Replaced(Exception):
    """Raised when a document is no longer the edition that its writer has read."""


class LabelDocument(Protocol):
    """A document in a file, a bucket or Redis. The methods block, and raise BacklineError on failure."""

    @property
    def where(self) -> str:
        """The place of the document, for messages. It contains no password."""

    def read(self) -> Edition: ...

    def replace(self, data: bytes, revision: str) -> str:
        """Writes the document if its revision is still `revision`, and returns the new revision.

        The change is durable when the call returns. Raises Replaced if somebody else was faster.
        """


class FileDocument:
    """A document in a file, which may be on a network file system that has locks and atomic renames."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def where(self) -> str:
        return f"'{self._file}'"

    def read(self) -> Edition:
        try:
            data = self._file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return Edition(None, "")
        except OSError as error:
            raise Unavailable(f"{self.where} cannot be read: {error.strerror or error}") from None
        return Edition(data, revision_of(data))

    def replace(self, data: bytes, revision: str) -> str:
        try:
            make_folder(self._file.parent)
            with locked(self._file.with_name(f".{self._file.name}.lock")):
                if self.read().revision != revision:
                    raise Replaced
                self._write(data)
        except OSError as error:
            raise not_writable(self._file, error) from None
        return revision_of(data)

    def _write(self, data: bytes) -> None:
        written = self._file.with_suffix(f".{os.getpid()}.new")
        try:
            with written.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            written.replace(self._file)
        except BaseException:
            with suppress(OSError):
                written.unlink()
            raise


def revision_of(data: bytes) -> str:
    """A revision for places that number none: equal contents need no distinction."""
    return sha256(data).hexdigest()


def unreachable(where: str, reason: str) -> BacklineError:
    """The error for a document whose place does not respond."""
    return Unavailable(f"{where} cannot be reached: {reason}", 1)
