"""The entry of a key as one string of bytes, for caches outside of this process: MessagePack, checked, and reading it executes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from backline.engine.datatypes import DataType
from backline.engine.errors import BacklineError
from backline.engine.tensor import Tensor, decode_tensor, encode_tensor

#: The first bytes; the last of them is the version of what follows.
_MAGIC = b"BLRC\x02"


class _Output(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview


class _Entry(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    key: bytes
    outputs: list[_Output]


class DamagedEntry(Exception):
    """Bytes that are not the entry of a key; the message says why."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Entry).decode


def encode_entry(key: bytes, outputs: Sequence[Tensor]) -> bytes:
    """The bytes of the outputs that answer a key, as `decode_entry` reads them."""
    written = [
        _Output(tensor.name, tensor.datatype.name, tensor.shape, memoryview(encode_tensor(tensor)))
        for tensor in outputs
    ]
    return _MAGIC + _encode(_Entry(key, written))


def decode_entry(key: bytes, raw: bytes) -> list[Tensor]:
    """The outputs; their data is a read-only view of `raw`. Raises DamagedEntry, also for the entry of another key: what was copied or
    renamed in the cache does not answer there.
    """
    if not raw.startswith(_MAGIC):
        raise DamagedEntry("it does not begin as an entry of this version does")
    try:
        entry = _decode(memoryview(raw)[len(_MAGIC) :])
        if entry.key != key:
            raise DamagedEntry("it was written under another key")
        return [decode_tensor(one.name, DataType[one.datatype], one.shape, one.data) for one in entry.outputs]
    except (msgspec.MsgspecError, BacklineError, KeyError, ValueError) as error:
        raise DamagedEntry(f"{type(error).__name__}: {error}") from None
