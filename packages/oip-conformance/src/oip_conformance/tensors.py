"""The protocol's datatypes: their sizes, their form in JSON, on the wire and in gRPC's typed contents."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from oip_conformance.row import Failure


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype of the protocol."""

    name: str
    #: NumPy's type, or "" for BF16 and BYTES, which NumPy does not have.
    numpy: str
    #: Bytes of an element; 0 for BYTES, whose elements have a length each.
    size: int
    #: The field of InferTensorContents, or "" for FP16 and BF16, which have none.
    contents: str
    #: Four values that a server must return as they are: the extremes, and what is often mistaken for them.
    sample: tuple[Any, ...]


def _integer(name: str, numpy: str, contents: str) -> Datatype:
    limits = np.iinfo(numpy)
    low = int(limits.min) if limits.min else 1
    return Datatype(name, numpy, np.dtype(numpy).itemsize, contents, (low, 0, 7, int(limits.max)))


DATATYPES = {
    datatype.name: datatype
    for datatype in (
        Datatype("BOOL", "?", 1, "bool_contents", (True, False, False, True)),
        _integer("UINT8", "uint8", "uint_contents"),
        _integer("UINT16", "uint16", "uint_contents"),
        _integer("UINT32", "uint32", "uint_contents"),
        _integer("UINT64", "uint64", "uint64_contents"),
        _integer("INT8", "int8", "int_contents"),
        _integer("INT16", "int16", "int_contents"),
        _integer("INT32", "int32", "int_contents"),
        _integer("INT64", "int64", "int64_contents"),
        Datatype("FP16", "<f2", 2, "", (-1.5, 0.0, 65504.0, 2.0**-14)),
        Datatype("FP32", "<f4", 4, "fp32_contents", (-1.5, 0.0, float(np.finfo("f4").max), 2.0**-120)),
        Datatype("FP64", "<f8", 8, "fp64_contents", (-1.5, 0.0, 1.7976931348623157e308, 0.1)),
        Datatype("BYTES", "", 0, "bytes_contents", (b"", b"a", "h\u00e9 \u6f22\U0001f600".encode(), b'"\\/\n')),
        Datatype("BF16", "", 2, "", (-1.5, 0.0, 2.0**127, 2.0**-126)),
    )
}
#: The datatypes that have a form in JSON without doubt: the specification calls FP16 and BF16 problematic.
IN_JSON = tuple(name for name in DATATYPES if name not in ("FP16", "BF16"))


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor with its elements in row-major order: bool, int, float, or bytes for BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any]

    def raw(self) -> bytes:
        """The elements in little-endian binary form, as the binary extension and gRPC's raw contents define it."""
        if self.datatype == "BYTES":
            return b"".join(struct.pack("<I", len(element)) + element for element in self.data)
        if self.datatype == "BF16":
            return (np.array(self.data, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
        return np.array(self.data, np.dtype(DATATYPES[self.datatype].numpy).newbyteorder("<")).tobytes()

    def json_data(self) -> list[Any]:
        """The elements as JSON has them; BYTES as text."""
        return [element.decode() if isinstance(element, bytes) else element for element in self.data]

    def entry(self, **parameters: Any) -> dict[str, Any]:
        """The tensor's entry of `inputs` without data."""
        entry: dict[str, Any] = {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}
        if parameters:
            entry["parameters"] = parameters
        return entry

    def json(self) -> dict[str, Any]:
        """The tensor's entry of `inputs` with its data."""
        return {**self.entry(), "data": self.json_data()}


def sample(name: str, datatype: str, shape: tuple[int, ...] = (2, 2)) -> Tensor:
    """A tensor with the sample values of its datatype."""
    values = DATATYPES[datatype].sample
    return Tensor(name, datatype, shape, [values[i % len(values)] for i in range(math.prod(shape))])


def fp32(name: str, *rows: list[float]) -> Tensor:
    """A FP32 tensor of [rows, columns]."""
    return Tensor(name, "FP32", (len(rows), len(rows[0])), [value for row in rows for value in row])


def read_raw(name: str, datatype: str, shape: tuple[int, ...], data: bytes) -> Tensor:
    """The tensor of binary data.

    Raises Failure if the length of the data contradicts the shape.
    """
    kind = DATATYPES[datatype]
    count = math.prod(shape)
    if datatype == "BYTES":
        elements: list[Any] = []
        rest = data
        while rest:
            length = struct.unpack("<I", rest[:4])[0] if len(rest) >= 4 else -1
            if length < 0 or 4 + length > len(rest):
                raise Failure(
                    f"output '{name}': each BYTES element as 4 bytes of length and that many bytes", data[:60]
                )
            elements.append(rest[4 : 4 + length])
            rest = rest[4 + length :]
        if len(elements) != count:
            raise Failure(f"output '{name}' of shape {list(shape)}: {count} elements", f"{len(elements)} elements")
        return Tensor(name, datatype, shape, elements)
    if len(data) != count * kind.size:
        raise Failure(
            f"output '{name}', {datatype} of shape {list(shape)}: {count * kind.size} bytes", f"{len(data)} bytes"
        )
    if datatype == "BF16":
        values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").tolist()
    else:
        values = np.frombuffer(data, np.dtype(kind.numpy).newbyteorder("<")).tolist()
    return Tensor(name, datatype, shape, values)


def same_values(got: list[Any], wanted: list[Any]) -> bool:
    """Whether the elements are equal, NaN to NaN and 0.0 not to -0.0."""

    def key(value: Any) -> Any:
        if isinstance(value, float):
            return "NaN" if math.isnan(value) else (value, math.copysign(1, value))
        return value

    return len(got) == len(wanted) and all(key(a) == key(b) for a, b in zip(got, wanted, strict=True))
