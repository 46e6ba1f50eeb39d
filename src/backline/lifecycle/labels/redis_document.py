"""A document in Redis or Valkey."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit, urlunsplit

from backline.engine.errors import InvalidArgument
from backline.lifecycle.labels.document import Edition, Replaced, revision_of, unreachable

SCHEMES: Final = ("redis", "rediss")
_KEY: Final = "backline:labels"
_TIMEOUT: Final = 2.0
_FORM: Final = "redis://[user:password@]host[:port][/database][?key=NAME]"


class RedisDocument:
    """A document at one key of Redis, for example redis://user:password@host:6379/0?key=production.

    The scheme rediss is Redis over TLS. Without `key`, the key is backline:labels. Connects at the first use.
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
            data = self._redis.get(self._key)
        except self._failures as error:
            raise unreachable(self._where, _reason(error)) from None
        return Edition(data, "" if data is None else revision_of(data))

    def replace(self, data: bytes, revision: str) -> str:
        try:
            with self._redis.pipeline() as transaction:
                transaction.watch(self._key)
                now = transaction.get(self._key)
                if ("" if now is None else revision_of(now)) != revision:
                    raise Replaced
                transaction.multi()
                transaction.set(self._key, data)
                transaction.execute()
        except self._overtaken:
            raise Replaced from None
        except self._failures as error:
            raise unreachable(self._where, _reason(error)) from None
        return revision_of(data)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
