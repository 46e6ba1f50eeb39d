"""A document in Redis or Valkey."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit, urlunsplit

from backline.engine.errors import InvalidArgument
from backline.lifecycle.labels.document import (
    MOST_BYTES,
    Edition,
    Replaced,
    revision_of,
    too_large,
    unreachable,
)

SCHEMES: Final = ("redis", "rediss")
_KEY: Final = "backline:labels"
_TIMEOUT: Final = 2.0
_FORM: Final = "redis://[user:password@]host[:port][/database][?key=NAME]"


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
        """Returns the document that was read; `data` has up to one byte more than is allowed."""
        if len(data) > MOST_BYTES:
            raise too_large(self._where)
        return Edition(data, revision_of(data)) if exists else Edition(None, "")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
