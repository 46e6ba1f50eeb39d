"""The document that stores labels: in a file, in Redis or where a plug-in stores it. Several servers may read
and replace it. A replacement fails if another server has changed the document since it was read.
"""

from __future__ import annotations

import re
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, urlsplit, urlunsplit

from msgspec import Struct

from backline.lifecycle.records import make_folder, not_writable
from backline_client.system.file_lock import locked
from backline_client.system.private_file import NotRegular, regular, remove_left_over, replacement
from backline_client.values.errors import BacklineError, InvalidArgument, Unavailable

#: The maximum size of a document in bytes. A user who can write to the shared folder must not be able to
#: exhaust the servers' memory.
MOST_BYTES: Final = 64 * 1024 * 1024
SCHEMES: Final = ("redis", "rediss")
_KEY: Final = "backline:labels"
_TIMEOUT: Final = 2.0
_FORM: Final = "redis://[user:password@]host[:port][/database][?key=NAME]"


class Edition(Struct, frozen=True):
    """A document as it was read. `data` is None, and `revision` "", if there is no document yet."""

    data: bytes | None
    revision: str


class Replaced(Exception):
    """Raised when a document that a server wants to replace has changed since that server read it."""


class LabelDocument(Protocol):
    """A document, such as a file or an object in a bucket. The methods block, and raise BacklineError on
    failure.
    """

    @property
    def where(self) -> str:
        """The location of the document, for messages. Contains no password."""

    def read(self) -> Edition: ...

    def replace(self, data: bytes, revision: str) -> str:
        """Writes the document if its revision is still `revision`, and returns the new revision.

        Every later `read`, by any server, returns the new contents. Raises Replaced if the document has
        another revision.
        """


class FileDocument:
    """A document in a file, which may be on a network file system that has locks and atomic renames.

    Only the owner may read a `private` document. Other documents get the process's default file mode, because
    servers of several users may share them.
    """

    def __init__(self, file: Path, *, private: bool = False) -> None:
        self._file = file
        self._private = private
        with suppress(OSError, RuntimeError):  # reading the document will say what is wrong
            remove_left_over(file)

    @property
    def where(self) -> str:
        return f"'{self._file}'"

    def read(self) -> Edition:
        try:
            with open(self._file, "rb", opener=regular) as file:
                data = file.read(MOST_BYTES + 1)
        except NotRegular:
            raise InvalidArgument(f"{self.where} must be a regular file") from None
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
        # Servers of other users must be able to read a shared document, so its mode is never inherited.
        mode = 0o600 if self._private else 0o666
        with replacement(self._file, mode, durable=True, inherit=False) as new:
            new.write_bytes(data)


def revision_of(data: bytes) -> str:
    """Returns a digest of the contents, to use as the revision where the storage has no revisions."""
    return sha256(data).hexdigest()


def too_large(where: str) -> BacklineError:
    """Returns the error for a document of more than MOST_BYTES."""
    return InvalidArgument(f"{where} has more than the {MOST_BYTES >> 20} MiB allowed")


def unreachable(where: str, reason: str) -> BacklineError:
    """Returns the error for labels whose storage does not respond."""
    return Unavailable(f"{where} cannot be reached: {reason}", 1)


class RedisDocument:
    """A document under one key in Redis, for example redis://user:password@host:6379/0?key=production.

    The scheme rediss means Redis over TLS. The default `key` is backline:labels. Connects on first use.
    """

    def __init__(self, url: str) -> None:
        """Raises InvalidArgument for an invalid URL, or if the redis package is not installed."""
        try:
            from redis import Redis
            from redis.exceptions import RedisError, WatchError
        except ImportError:
            raise InvalidArgument(
                "labels in Redis need the package redis: pip install 'backline[redis]'"
            ) from None
        parts = urlsplit(url)
        plain = re.sub("//[^/?#]*@", "//", url)
        options = parse_qs(parts.query)
        if not parts.hostname or set(options) - {"key"}:
            raise InvalidArgument(f"'{plain}' cannot hold labels; expected {_FORM}")
        self._key = options.get("key", [_KEY])[-1]
        self._where = f"'{plain}'"
        address = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
        try:
            self._redis: Any = Redis.from_url(
                address, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT
            )
        except ValueError as error:
            raise InvalidArgument(f"'{plain}' cannot hold labels: {error}; expected {_FORM}") from None
        self._failures = (RedisError, OSError)
        self._overtaken = WatchError

    @property
    def where(self) -> str:
        return self._where

    def read(self) -> Edition:
        try:
            with self._redis.pipeline() as transaction:
                transaction.exists(self._key)
                transaction.getrange(self._key, 0, MOST_BYTES)
                exists, data = transaction.execute()
        except self._failures as error:
            raise unreachable(self._where, _reason(error)) from None
        return self._edition(exists, data)

    def replace(self, data: bytes, revision: str) -> str:
        try:
            with self._redis.pipeline() as transaction:
                transaction.watch(self._key)
                exists = transaction.exists(self._key)
                now = self._edition(exists, transaction.getrange(self._key, 0, MOST_BYTES))
                if now.revision != revision:
                    raise Replaced
                transaction.multi()
                transaction.set(self._key, data)
                transaction.execute()
        except self._overtaken:
            raise Replaced from None
        except self._failures as error:
            raise unreachable(self._where, _reason(error)) from None
        return revision_of(data)

    def _edition(self, exists: int, data: bytes) -> Edition:
        """Returns the document with this `data`. Raises BacklineError if the document is too large; at most
        one byte more than allowed is read.
        """
        if len(data) > MOST_BYTES:
            raise too_large(self._where)
        return Edition(data, revision_of(data)) if exists else Edition(None, "")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
