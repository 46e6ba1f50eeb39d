"""A small document that several servers read, and that a server replaces only if no other was faster."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

from backline.engine.errors import BacklineError, InvalidArgument, Unavailable
from backline.lifecycle.records import make_folder, not_writable
from backline.system.file_lock import locked
from backline.system.private_file import private

#: The maximum size of a document. A user who can write to the shared folder must not be able to exhaust the
#: servers' memory.
MOST_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Edition:
    """A document as it was read. `data` is None, and `revision` "", if there is no document yet."""

    data: bytes | None
    revision: str


class Replaced(Exception):
    """Raised when a document has changed since its writer read it."""


class LabelDocument(Protocol):
    """A document in a file, a bucket or Redis. The methods block, and raise BacklineError on failure."""

    @property
    def where(self) -> str:
        """The place of the document, for messages. It contains no password."""

    def read(self) -> Edition: ...

    def replace(self, data: bytes, revision: str) -> str:
        """Writes the document if its revision is still `revision`, and returns the new revision.

        The change is durable when the call returns. Raises Replaced if another server was faster.
        """


class FileDocument:
    """A document in a file, which may be on a network file system that has locks and atomic renames.

    Only the owner may read a `private` document. Other documents get the process's default file mode, because
    servers of several users may share them.
    """

    def __init__(self, file: Path, *, private: bool = False) -> None:
        self._file = file
        self._private = private

    @property
    def where(self) -> str:
        return f"'{self._file}'"

    def read(self) -> Edition:
        try:
            with open(self._file, "rb", opener=_open) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise InvalidArgument(f"{self.where} must be a regular file")
                data = file.read(MOST_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return Edition(None, "")
        except OSError as error:
            raise Unavailable(f"{self.where} cannot be read: {error.strerror or error}") from None
        if len(data) > MOST_BYTES:
            raise too_large(self.where)
        return Edition(data, revision_of(data))

    def replace(self, data: bytes, revision: str) -> str:
        try:
            make_folder(self._file.parent, 0o700 if self._private else 0o777)
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
            with open(written, "wb", opener=private if self._private else None) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            written.replace(self._file)
        except BaseException:
            with suppress(OSError):
                written.unlink()
            raise


def _open(path: str, flags: int) -> int:
    """Opens a file without blocking, even if there is a named pipe in its place."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def revision_of(data: bytes) -> str:
    """Returns a digest of the contents, as a revision for storage that has none."""
    return sha256(data).hexdigest()


def too_large(where: str) -> BacklineError:
    """Returns the error for a document of more than MOST_BYTES."""
    return InvalidArgument(f"{where} has more than the {MOST_BYTES >> 20} MiB allowed")


def unreachable(where: str, reason: str) -> BacklineError:
    """Returns the error for labels whose storage does not respond."""
    return Unavailable(f"{where} cannot be reached: {reason}", 1)
