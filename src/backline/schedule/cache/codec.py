"""Outputs as one string of bytes, for caches outside of this process. Reading it executes nothing: it is MessagePack, and checked."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from backline.engine.datatypes import DataType
from backline.engine.errors import BacklineError
from backline.engine.tensor import Tensor, decode_tensor, encode_tensor

#: The first bytes; the last of them is the version of what follows.
_MAGIC = b"BLRC\x01"


class _Output(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview


class DamagedEntry(Exception):
    """Bytes that are no outputs; the message says why."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[_Output]).decode


def encode_outputs(outputs: Sequence[Tensor]) -> bytes:
    """The bytes of outputs, as `decode_outputs` reads them."""
    return _MAGIC + _encode(
        [_Output(tensor.name, tensor.datatype.name, tensor.shape, memoryview(encode_tensor(tensor))) for tensor in outputs]
    )


def decode_outputs(raw: bytes) -> list[Tensor]:
    """The outputs; their data is a read-only view of `raw`. Raises DamagedEntry."""
    if not raw.startswith(_MAGIC):
        raise DamagedEntry("it does not begin as an entry of this version does")
    try:
        found = _decode(memoryview(raw)[len(_MAGIC) :])
        return [decode_tensor(one.name, DataType[one.datatype], one.shape, one.data) for one in found]
    except (msgspec.MsgspecError, BacklineError, KeyError, ValueError) as error:
        raise DamagedEntry(f"{type(error).__name__}: {error}") from None
