"""A response cache in Redis or Valkey that several servers share. While Redis is down, all requests run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import msgspec

from backline.engine.errors import BacklineError, InvalidArgument
from backline.engine.values.datatypes import DataType
from backline.engine.values.tensor import Tensor, decode_tensor, encode_tensor
from backline.schedule.cache.cache import Found

log = logging.getLogger("backline.schedule")

_PREFIX = b"backline:response:"
#: Larger entries are not stored: Redis accepts at most 512 MB, and fetching such an entry would take too long
#: anyway.
_LARGEST_ENTRY = 64 * 1024 * 1024
#: Maximum number of bytes in transit to Redis. Further entries are not stored.
_MOST_UNDER_WAY = 128 * 1024 * 1024
#: Seconds before an unresponsive Redis is tried again: the first pause, which doubles each time, and the
#: maximum.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0
#: The first bytes of an entry. The last of them is the version of the format.
_MAGIC = b"BLRC\x02"


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """The address of Redis, and timeouts in seconds: `wait_timeout` for a free connection, `socket_timeout`
    for a reply.

    Entries are kept for `ttl` seconds or, if it is None, until Redis evicts them (maxmemory-policy
    allkeys-lru). Certificates are given as paths of files.
    """

    host: str
    port: int = 6379
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    pool_size: int = 8
    connect_timeout: float = 0.25
    socket_timeout: float = 0.1
    wait_timeout: float = 0.1
    ttl: float | None = None
    tls: bool = False
    cert: str | None = None
    key: str | None = None
    cacert: str | None = None


class RedisCache:
    """Looks outputs up in Redis. While Redis does not respond, only one request after each pause tries to
    reach it.
    """

    def __init__(self, options: RedisOptions) -> None:
        """Raises InvalidArgument if the redis package is not installed. The first request opens the
        connection.
        """
        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.connection import Connection, SSLConnection
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ImportError:
            raise InvalidArgument(
                "a response cache in Redis needs the package redis: pip install 'backline[redis]'"
            ) from None
        given = {"ssl_certfile": options.cert, "ssl_keyfile": options.key, "ssl_ca_certs": options.cacert}
        certificates: dict[str, Any] = given if options.tls else {}
        pool = BlockingConnectionPool(
            max_connections=options.pool_size,
            timeout=options.wait_timeout,
            connection_class=SSLConnection if options.tls else Connection,
            host=options.host,
            port=options.port,
            username=options.user,
            password=options.password,
            db=options.db,
            socket_timeout=options.socket_timeout,
            socket_connect_timeout=options.connect_timeout,
            retry=Retry(NoBackoff(), 0),
            **certificates,
        )
        self._redis = Redis(connection_pool=pool)
        self._where = f"{options.host}:{options.port}"
        self._ttl_ms = None if options.ttl is None else max(1, int(options.ttl * 1000))
        self._limit = options.connect_timeout + options.wait_timeout + options.socket_timeout
        self._failures = (RedisError, OSError, TimeoutError)
        self._under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()
        #: When the current pause ends, and the length of the pause in seconds; 0 while Redis responds.
        self._quiet_until = 0.0
        self._pause = 0.0
        self._trying = False
        self._damaged = False

    @property
    def answers(self) -> bool:
        """Whether Redis responded to the last operation."""
        return not self._pause

    def look_up(self, key: bytes, found: Found) -> None:
        if self._left_alone():
            found(None)
            return
        self._do(self._fetch(key, found))

    def insert(self, key: bytes, outputs: Sequence[Tensor]) -> None:
        size = sum(tensor.data.nbytes for tensor in outputs)
        if self._pause or size > _LARGEST_ENTRY or self._under_way + size > _MOST_UNDER_WAY:
            return
        entry = encode_entry(key, outputs)
        if len(entry) <= _LARGEST_ENTRY:
            self._under_way += len(entry)
            self._do(self._store(key, entry))

    async def close(self) -> None:
        """Waits for the operations in progress, which end at the latest with their timeouts."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._redis.aclose()

    def _left_alone(self) -> bool:
        """Returns whether to skip Redis because it failed recently. After a pause, a single request tries it
        again.
        """
        if not self._pause:
            return False
        if self._trying or monotonic() < self._quiet_until:
            return True
        self._trying = True
        return False

    def _do(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, key: bytes, found: Found) -> None:
        outputs: Sequence[Tensor] | None = None
        try:
            async with asyncio.timeout(self._limit):
                raw = await self._redis.get(_PREFIX + key)
        except self._failures as error:
            self._failed(error)
        else:
            self._answered()
            outputs = None if raw is None else self._decode(key, raw)
        found(outputs)

    async def _store(self, key: bytes, entry: bytes) -> None:
        try:
            async with asyncio.timeout(self._limit):
                await self._redis.set(_PREFIX + key, entry, px=self._ttl_ms)
        except self._failures as error:
            self._failed(error)
        finally:
            self._under_way -= len(entry)

    def _decode(self, key: bytes, raw: Any) -> list[Tensor] | None:
        try:
            return decode_entry(key, raw)
        except DamagedEntry as error:
            if not self._damaged:  # log only once: if one entry is damaged, others may be too
                text = "the response cache at %s has an entry that cannot be read and is ignored: %s"
                log.warning(text, self._where, error)
            self._damaged = True
            return None

    def _failed(self, error: Exception) -> None:
        if not self._pause:
            why = str(error) or type(error).__name__
            log.warning(
                "the response cache at %s does not respond; requests run without it: %s", self._where, why
            )
        elif not self._trying:  # the operation was in progress when another one failed
            return
        self._trying = False
        self._pause = min(max(self._pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
        self._quiet_until = monotonic() + self._pause

    def _answered(self) -> None:
        if self._pause:
            log.warning("the response cache at %s responds again", self._where)
            self._pause, self._trying = 0.0, False


class _StoredTensor(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview


class _StoredEntry(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    key: bytes
    outputs: list[_StoredTensor]


class DamagedEntry(Exception):
    """Raised for bytes that are not the entry of the key. The message says why."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_StoredEntry).decode


def encode_entry(key: bytes, outputs: Sequence[Tensor]) -> bytes:
    """Encodes the outputs for a key as bytes; see `decode_entry`."""
    written = [
        _StoredTensor(tensor.name, tensor.datatype.name, tensor.shape, memoryview(encode_tensor(tensor)))
        for tensor in outputs
    ]
    return _MAGIC + _encode(_StoredEntry(key, written))


def decode_entry(key: bytes, raw: bytes) -> list[Tensor]:
    """Returns the outputs in an entry; their data is a read-only view of `raw`.

    Raises DamagedEntry if the bytes are malformed, or belong to another key: an entry that was copied or
    renamed in the cache must not be returned.
    """
    if not raw.startswith(_MAGIC):
        raise DamagedEntry("its format is not the one that this server writes")
    try:
        entry = _decode(memoryview(raw)[len(_MAGIC) :])
        if entry.key != key:
            raise DamagedEntry("written under another key")
        return [decode_tensor(one.name, DataType[one.datatype], one.shape, one.data) for one in entry.outputs]
    except (msgspec.MsgspecError, BacklineError, KeyError, ValueError) as error:
        raise DamagedEntry(f"{type(error).__name__}: {error}") from None
