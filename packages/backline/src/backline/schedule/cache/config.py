"""Parses Triton's --cache-config option, and opens the response cache that it describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from backline.engine.numbers import parse_bytes
from backline.schedule.cache.cache import LocalCache, ResponseCache
from backline.schedule.cache.redis import RedisCache, RedisOptions
from backline_client.values.errors import InvalidArgument

_KNOWN = {
    "local": ("size",),
    "redis": (
        "host", "port", "user", "password", "db", "pool_size",
        "connect_timeout", "socket_timeout", "wait_timeout", "ttl",
        "tls_enabled", "cert", "key", "cacert",
    ),
}  # fmt: skip
#: The names of the available caches.
CACHES: Final = tuple(_KNOWN)


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """The options of a cache in the server's memory. The cache takes at most `size` bytes."""

    size: int


CacheOptions: TypeAlias = LocalOptions | RedisOptions


def open_cache(options: CacheOptions) -> ResponseCache:
    """Opens a cache for use on the event loop. Raises InvalidArgument if a required package is missing."""
    return LocalCache(options.size) if isinstance(options, LocalOptions) else RedisCache(options)


def parse_cache_config(texts: Sequence[str]) -> CacheOptions | None:
    """Parses the values of --cache-config, such as "local,size=64MiB" or "redis,host=127.0.0.1,port=6379".
    The settings of one cache may be divided among several values. Returns None if there are no values.

    Timeouts are in milliseconds, as in Triton; `ttl` is in seconds. Raises InvalidArgument if the values name
    an unknown cache or several caches, or if a setting is unknown, missing or invalid.
    """
    if not texts:
        return None
    kinds = list(dict.fromkeys(text.partition(",")[0].strip() for text in texts))
    if len(kinds) > 1:
        raise InvalidArgument(
            f"--cache-config names {' and '.join(kinds)}, but a server has one response cache: name only one"
        )
    kind = kinds[0]
    if kind not in _KNOWN:
        raise InvalidArgument(f"--cache-config: unknown response cache '{kind}', expected local or redis")
    given: dict[str, str] = {}
    for part in (part for text in texts for part in text.split(",")[1:]):
        key, equals, value = part.strip().partition("=")
        if not equals:  # the message does not quote the part: it may be the end of a password with a comma
            raise InvalidArgument(
                f"--cache-config {kind}: a part is not of the form NAME=VALUE; values cannot contain commas"
            )
        if key not in _KNOWN[kind]:
            raise InvalidArgument(
                f"--cache-config {kind}: unknown setting '{key}', expected {', '.join(_KNOWN[kind])}"
            )
        given[key] = value
    if kind == "local":
        if "size" not in given:
            raise InvalidArgument("--cache-config local needs a size, for example local,size=64MiB")
        return LocalOptions(_read("size", given["size"], parse_bytes, 1))
    return _redis(given)


def _redis(given: Mapping[str, str]) -> RedisOptions:
    if not given.get("host"):
        raise InvalidArgument("--cache-config redis needs a host, for example redis,host=127.0.0.1,port=6379")
    defaults = RedisOptions("")
    tls = given.get("tls_enabled", "no")
    if tls not in ("yes", "no", "true", "false"):
        raise InvalidArgument(f"--cache-config redis: tls_enabled is '{tls}', expected yes or no")

    def whole(key: str, default: int, least: int) -> int:
        return _read(key, given[key], int, least) if key in given else default

    def milliseconds(key: str, default: float) -> float:
        return whole(key, round(default * 1000), 1) / 1000

    return RedisOptions(
        given["host"],
        whole("port", defaults.port, 1),
        given.get("user"),
        given.get("password"),
        whole("db", defaults.db, 0),
        whole("pool_size", defaults.pool_size, 1),
        milliseconds("connect_timeout", defaults.connect_timeout),
        milliseconds("socket_timeout", defaults.socket_timeout),
        milliseconds("wait_timeout", defaults.wait_timeout),
        whole("ttl", 0, 1) or None,
        tls in ("yes", "true"),
        given.get("cert"),
        given.get("key"),
        given.get("cacert"),
    )


def _read(key: str, text: str, read: Callable[[str], int], least: int) -> int:
    try:
        value = read(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise InvalidArgument(f"--cache-config: {key} is '{text}', expected a number of at least {least}")
    return value
