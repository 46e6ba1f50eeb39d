"""Arrow IPC streams (arrow.apache.org/docs/format/Columnar.html), with pyarrow. Null is a missing value."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from backline.dialects.bodies.columns import Inputs, Labels, row_count, split_columns
from backline.dialects.bodies.values import widened
from backline.dialects.input_plan import check_bytes_elements
from backline.dialects.off_loop import PIECE, stop_if_abandoned
from backline_client.values.datatypes import DataType
from backline_client.values.errors import (
    InvalidArgument,
    NotAcceptable,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Buffer, Tensor

#: The maximum size in bytes of all strings of a body, of which a dictionary may hold each only once.
MAX_TEXT: Final = 256 << 20
_INSTALL = "Arrow needs pyarrow on the server: pip install 'backline[arrow]'; or send JSON or CSV"
#: The fields of the tables Message, DictionaryBatch and RecordBatch in Arrow's Message.fbs, by their number.
_HEADER_TYPE, _HEADER, _DATA, _COMPRESSION = 1, 2, 1, 3
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


def read(inputs: Inputs, body: Buffer) -> dict[str, Tensor]:
    """Returns the inputs in an Arrow stream. Numbers are cast if none of them changes."""
    try:
        import pyarrow as pa
    except ImportError:
        raise UnsupportedMediaType(_INSTALL) from None
    try:
        _refuse_compression(pa, body)
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            names = reader.schema.names
            if len(set(names)) < len(names):
                raise InvalidArgument("the Arrow stream has two columns of the same name")
            inputs.check_names("the Arrow stream", names)
            table = reader.read_all()
        # Security: offsets and indices come from the client, and pyarrow follows them without checks.
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise InvalidArgument(
            f"the body is not an Arrow IPC stream: {' '.join(str(error).split())[:200]}; write it with"
            " pyarrow.ipc.new_stream"
        ) from None
    inputs.check_rows(table.num_rows)
    specs = [inputs.specs[name] for name in names]
    check_bytes_elements(table.num_rows * sum(spec.datatype is DataType.BYTES for spec in specs))
    reading = _Reading(pa)
    found = {}
    for spec in specs:
        array = reading.array(spec, table.column(spec.name))
        found[spec.name] = Tensor(spec.name, spec.datatype, array.shape, array)
    return found


def _refuse_compression(pa: Any, body: Buffer) -> None:
    """Raises PayloadTooLarge for compressed buffers. Security: a few bytes could become any number."""
    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
        flat = message.metadata.to_pybytes()
        table = struct.unpack_from("<I", flat)[0]
        at = _field(flat, table, _HEADER_TYPE)
        kind = flat[at] if at else 0
        header = _linked(flat, _field(flat, table, _HEADER))
        if kind == _DICTIONARY_BATCH:
            header = _linked(flat, _field(flat, header, _DATA))
        if kind in (_DICTIONARY_BATCH, _RECORD_BATCH) and _field(flat, header, _COMPRESSION):
            raise PayloadTooLarge(
                "the Arrow stream has compressed buffers, whose size is unknown before they are read: write"
                " it without compression"
            )


def _field(flat: bytes, table: int, number: int) -> int:
    """Returns where a field of a FlatBuffers table is; 0 if the table lacks it."""
    fields = table - struct.unpack_from("<i", flat, table)[0]
    slot = 4 + 2 * number
    size: int = struct.unpack_from("<H", flat, fields)[0]
    offset: int = struct.unpack_from("<H", flat, fields + slot)[0] if slot < size else 0
    return table + offset if offset else 0


def _linked(flat: bytes, at: int) -> int:
    linked: int = at + struct.unpack_from("<I", flat, at)[0]
    return linked


class _Reading:
    """Converts the columns of one stream."""

    def __init__(self, pa: Any) -> None:
        self._pa = pa
        self._text = 0

    def array(self, spec: TensorSpec, column: Any) -> np.ndarray:
        """Returns a chunked array as the data of an input."""
        types = self._pa.types
        if types.is_dictionary(column.type) and spec.datatype is not DataType.BYTES:
            column = column.cast(column.type.value_type)
        if types.is_fixed_size_list(column.type) and len(spec.shape) == 2 and not column.null_count:
            size = column.type.list_size
            flat = self._pa.chunked_array([one.flatten() for one in column.chunks], column.type.value_type)
            return self._flat(spec, flat).reshape(len(column), size)
        return self._flat(spec, column)

    def _flat(self, spec: TensorSpec, column: Any) -> np.ndarray:
        types, kind = self._pa.types, column.type
        value = kind.value_type if types.is_dictionary(kind) else kind
        if spec.datatype is DataType.BYTES:
            texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
            if any(is_kind(value) for is_kind in (*texts, types.is_string_view, types.is_null)):
                return self._strings(spec, column)
        elif spec.datatype is not DataType.BF16:
            numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
            if any(is_kind(kind) for is_kind in numbers):
                return self._numbers(spec, column)
        raise InvalidArgument(
            f"column '{spec.name}' of the Arrow stream has the type {str(kind)[:64]}, but the input takes"
            f" {spec.datatype.name}{list(spec.shape)}"
        )

    def _numbers(self, spec: TensorSpec, column: Any) -> np.ndarray:
        pa, dtype = self._pa, spec.datatype.dtype
        if column.null_count and dtype.kind != "f":
            raise _missing(spec)
        try:
            cast = column.cast(pa.from_numpy_dtype(dtype))
        except pa.ArrowException as error:
            raise InvalidArgument(
                f"column '{spec.name}' of the Arrow stream, {column.type}, cannot be cast to"
                f" {spec.datatype.name}: {' '.join(str(error).split())[:200]}"
            ) from None
        return np.concatenate([np.empty(0, dtype), *(_values(chunk, dtype) for chunk in cast.chunks)])

    def _strings(self, spec: TensorSpec, column: Any) -> np.ndarray:
        if column.null_count and not spec.column:
            raise _missing(spec)
        elements = np.empty(len(column), np.object_)
        for start in range(0, len(column), PIECE):
            stop_if_abandoned()
            texts = column.slice(start, PIECE).to_pylist()
            found = [text.encode() if isinstance(text, str) else text or b"" for text in texts]
            self._text += sum(map(len, found))
            if self._text > MAX_TEXT:
                raise PayloadTooLarge(
                    f"the strings of the Arrow stream have more than {MAX_TEXT} bytes, counting each as often"
                    " as it occurs; divide them among several requests"
                )
            elements[start : start + len(found)] = found
        return elements


def _values(chunk: Any, dtype: np.dtype) -> np.ndarray:
    """Returns an array of Arrow as one of numpy, with NaN for null. pyarrow's own method imports pandas."""
    if not len(chunk):
        return np.empty(0, dtype)
    validity, data = chunk.buffers()
    start, end = chunk.offset, chunk.offset + len(chunk)
    if dtype == np.bool_:
        return _bits(data, start, end)
    values = np.frombuffer(data, dtype, end)[start:]
    return values if validity is None else np.where(_bits(validity, start, end), values, np.nan).astype(dtype)


def _bits(buffer: Any, start: int, end: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(buffer, np.uint8), count=end, bitorder="little")[start:].astype(
        np.bool_
    )


def _missing(spec: TensorSpec) -> InvalidArgument:
    return InvalidArgument(
        f"column '{spec.name}' of the Arrow stream has nulls, but {spec.datatype.name} values cannot be"
        " missing"
    )


def write(outputs: Sequence[Tensor], labels: Labels) -> bytes:
    """Returns outputs as an Arrow stream. An output with labels has a column for each of them; any other with
    several values for each row is a column of lists.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise NotAcceptable(_INSTALL) from None
    row_count(outputs, "Arrow")
    names, arrays = [], []
    for tensor in outputs:
        named = labels.get(tensor.name, ())
        data = tensor.data.reshape(tensor.shape)
        if data.ndim == 2 and data.shape[1] and len(named) != data.shape[1]:
            flat = _arrow_array(pa, tensor.datatype, data.reshape(-1))
            names.append(tensor.name)
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, data.shape[1]))
            continue
        for name, column in split_columns(tensor, named, "Arrow"):
            names.append(name)
            arrays.append(_arrow_array(pa, tensor.datatype, column))
    batch = pa.RecordBatch.from_arrays(arrays, names)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream


def _arrow_array(pa: Any, datatype: DataType, data: np.ndarray) -> Any:
    """Returns a flat array as one of Arrow, without pyarrow's conversions, which import pandas."""
    if datatype is DataType.BYTES:
        texts = [one if isinstance(one, bytes) else str(one).encode() for one in data.tolist()]
        ends = np.concatenate(([0], np.cumsum([len(text) for text in texts], dtype=np.int64)))
        buffers = [None, pa.py_buffer(ends.astype(np.int64)), pa.py_buffer(b"".join(texts))]
        kind = pa.large_string() if all(map(_is_utf8, texts)) else pa.large_binary()
        return pa.Array.from_buffers(kind, len(texts), buffers)
    if datatype is DataType.BOOL:
        bits = np.packbits(data, bitorder="little")
        return pa.Array.from_buffers(pa.bool_(), len(data), [None, pa.py_buffer(bits)])
    if datatype is DataType.BF16:
        data = widened(data)
    kind = pa.from_numpy_dtype(data.dtype)
    return pa.Array.from_buffers(kind, len(data), [None, pa.py_buffer(np.ascontiguousarray(data))])


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
