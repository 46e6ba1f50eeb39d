"""A response cache in Redis or Valkey that several servers can share. While Redis does not respond, all
requests are run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import msgspec

from backline.schedule.cache.cache import Found
from backline_client.values.datatypes import DataType
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.tensor import Tensor, decode_tensor, encode_tensor

log = logging.getLogger("backline.schedule")

_PREFIX = b"backline:response:"
#: The maximum size of an entry in bytes; larger entries are not stored. Redis would accept up to 512 MB, but
#: fetching such an entry would take too long.
_LARGEST_ENTRY = 64 * 1024 * 1024
#: The maximum total size in bytes of entries that are being sent to Redis at the same time. Further entries
#: are not stored.
_MOST_UNDER_WAY = 128 * 1024 * 1024
#: The first pause, in seconds, before the next attempt to reach a Redis that does not respond. The pause
#: doubles after each failure, up to _LONGEST_PAUSE.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0
#: The first bytes of an entry. The last of these bytes is the version of the format.
_MAGIC = b"BLRC\x02"


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """The address of Redis, and timeouts in seconds: `wait_timeout` limits the wait for a free connection,
    and `socket_timeout` the wait for a reply.

    Entries are kept for `ttl` seconds. If `ttl` is None, they are kept until Redis evicts them
    (maxmemory-policy allkeys-lru). Certificates are given as paths of files.
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
    """A cache that keeps outputs in Redis. While Redis does not respond, the cache skips it, except for a
    single request after each pause.
    """

    def __init__(self, options: RedisOptions) -> None:
        """Raises InvalidArgument if the redis package is not installed. Does not open a connection; the first
        request does.
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
        #: The time when the current pause ends (time.monotonic()).
        self._quiet_until = 0.0
        #: The length of the current pause in seconds; 0 while Redis responds.
        self._pause = 0.0
        self._trying = False
        self._damaged = False

    @property
    def answers(self) -> bool:
        """Whether Redis responds: False from the first failed operation until a lookup succeeds again."""
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
        """Waits for the operations in progress, whose timeouts limit the wait, and closes the connections."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._redis.aclose()

    def _left_alone(self) -> bool:
        """Returns whether to skip Redis because it failed recently. After a pause, returns False for a single
        request, which tries to reach Redis again.
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
            if not self._damaged:  # logged only once, because many entries may be damaged
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
        elif not self._trying:  # this operation was already in progress when another one failed
            return
        self._trying = False
        self._pause = min(max(self._pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
        self._quiet_until = monotonic() + self._pause

    def _answered(self) -> None:
        if self._pause:
            log.warning("the response cache at %s responds again", self._where)
            self._pause, self._trying = 0.0, False


@decodable
class _StoredTensor(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview


@decodable
class _StoredEntry(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    key: bytes
    outputs: list[_StoredTensor]


class DamagedEntry(Exception):
    """Raised for bytes that are not the entry for the key. The message says why."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_StoredEntry).decode


def encode_entry(key: bytes, outputs: Sequence[Tensor]) -> bytes:
    """Encodes the outputs for a key as the bytes of an entry; see `decode_entry`."""
    written = [
        _StoredTensor(tensor.name, tensor.datatype.name, tensor.shape, memoryview(encode_tensor(tensor)))
        for tensor in outputs
    ]
    return _MAGIC + _encode(_StoredEntry(key, written))


def decode_entry(key: bytes, raw: bytes) -> list[Tensor]:
    """Returns the outputs in an entry. The data of the outputs are read-only views of `raw`.

    Raises DamagedEntry if the bytes are malformed or belong to another key, because an entry that was copied
    or renamed in the cache must not be used.
    """
    if not raw.startswith(_MAGIC):
        raise DamagedEntry("it does not have the format that this server writes")
    try:
        entry = _decode(memoryview(raw)[len(_MAGIC) :])
        if entry.key != key:
            raise DamagedEntry("it was written under another key")
        return [decode_tensor(one.name, DataType[one.datatype], one.shape, one.data) for one in entry.outputs]
    except (msgspec.MsgspecError, BacklineError, KeyError, ValueError) as error:
        raise DamagedEntry(f"{type(error).__name__}: {error}") from None
