"""Reads files with requests for warm-up, such as recordings, and encodes the records of such files. The
records are TFRecords of TensorFlow Serving's message PredictionLog.

A record consists of its length (8 bytes, little-endian), the masked CRC-32C of the length (4 bytes), a
serialised PredictionLog, and the masked CRC-32C of the PredictionLog
(https://www.tensorflow.org/tutorials/load_data/tfrecord). The messages are in protos/prediction_log.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from backline_client.protos import message
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.tensor import Shape, Tensor, element_count, encode_tensor

#: The maximum size of a record, and of a tensor, in bytes. A tensor may be larger than its record, because a
#: record may leave out repetitions of a tensor's last value.
LARGEST = 1 << 30
_LENGTH = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
#: The maximum number of dimensions that all supported versions of NumPy accept.
_MAX_RANK = 32

#: For each number of TensorFlow's DataType (tensorflow/core/framework/types.proto), the corresponding
#: datatype, and the field of TensorProto with the values of this datatype.
_DATATYPES = {
    1: (DataType.FP32, "float_val"),
    2: (DataType.FP64, "double_val"),
    3: (DataType.INT32, "int_val"),
    4: (DataType.UINT8, "int_val"),
    5: (DataType.INT16, "int_val"),
    6: (DataType.INT8, "int_val"),
    7: (DataType.BYTES, "string_val"),
    9: (DataType.INT64, "int64_val"),
    10: (DataType.BOOL, "bool_val"),
    14: (DataType.BF16, "half_val"),
    17: (DataType.UINT16, "int_val"),
    19: (DataType.FP16, "half_val"),
    22: (DataType.UINT32, "uint32_val"),
    23: (DataType.UINT64, "uint64_val"),
}
_NUMBERS = {datatype: number for number, (datatype, _) in _DATATYPES.items()}


class LoggedRequest(Struct, frozen=True):
    """A predict request in a file. `number` is the number of the request's record, counted from 1; `outputs`
    is None if all outputs are requested.

    If a record is not a predict request, `other` names the record's kind ("classify_log"), and there are no
    inputs.
    """

    number: int
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...] | None = None
    other: str = ""


def read_log(path: Path) -> Iterator[LoggedRequest]:
    """Yields the requests in a file. If a record is invalid, raises InvalidArgument, which names the
    record and says what is wrong with it.
    """
    from google.protobuf.message import DecodeError

    log_type = message("backline.prediction_log.PredictionLog")
    for number, record in _records(path):
        where = f"'{path}', record {number}"
        try:
            log = log_type.FromString(record)
        except DecodeError:
            raise InvalidArgument(f"{where}: not a PredictionLog of TensorFlow Serving") from None
        kind = log.WhichOneof("log_type")
        if kind != "predict_log":
            yield LoggedRequest(number, {}, None, kind or "empty record")
            continue
        request = log.predict_log.request
        inputs = {
            name: _decode(f"{where}: input '{name}'", name, tensor) for name, tensor in request.inputs.items()
        }
        yield LoggedRequest(number, inputs, tuple(request.output_filter) or None)


def encode_record(model: str, inputs: Mapping[str, Tensor], outputs: tuple[str, ...] | None = None) -> bytes:
    """Returns a predict request as a record that can be appended to a file."""
    log = message("backline.prediction_log.PredictionLog")()
    request = log.predict_log.request
    request.model_spec.name = model
    request.output_filter.extend(outputs or ())
    for name, tensor in inputs.items():
        entry = request.inputs[name]
        entry.dtype = _NUMBERS[tensor.datatype]
        for dimension in tensor.shape:
            entry.tensor_shape.dim.add().size = dimension
        if tensor.datatype is DataType.BYTES:
            entry.string_val.extend(
                element if isinstance(element, bytes) else str(element).encode()
                for element in tensor.data.flat
            )
        else:
            entry.tensor_content = bytes(encode_tensor(tensor))
    record: bytes = log.SerializeToString()
    length = len(record).to_bytes(8, "little")
    return b"".join((length, _CHECKSUM.pack(_masked(length)), record, _CHECKSUM.pack(_masked(record))))


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            while head := file.read(_LENGTH.size):
                number += 1
                where = f"'{path}', record {number}"
                if len(head) < _LENGTH.size:
                    raise InvalidArgument(f"{where}: the file ends in the middle of this record")
                length, checksum = _LENGTH.unpack(head)
                if _masked(head[:8]) != checksum:
                    raise InvalidArgument(
                        f"{where}: wrong checksum of the length; the file is damaged or not a TFRecord file"
                    )
                if length > LARGEST:
                    raise InvalidArgument(
                        f"{where}: the record has {length} bytes, above the limit of {LARGEST}"
                    )
                if length + _CHECKSUM.size > size - file.tell():
                    raise InvalidArgument(f"{where}: the file ends in the middle of this record")
                record = file.read(length)
                if _CHECKSUM.unpack(file.read(_CHECKSUM.size))[0] != _masked(record):
                    raise InvalidArgument(f"{where}: wrong checksum of the data; the file is damaged")
                yield number, record
    except OSError as error:
        raise InvalidArgument(f"'{path}' cannot be read: {error.strerror}") from None


def _masked(data: bytes) -> int:
    """Returns the checksum of `data` as TFRecords store it. It is masked, because the CRC of data that
    contains CRCs is weak.
    """
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _decode(where: str, name: str, given: Any) -> Tensor:
    if given.dtype not in _DATATYPES:
        raise InvalidArgument(
            f"{where} has TensorFlow's datatype {given.dtype}, which requests do not support"
        )
    datatype, field = _DATATYPES[given.dtype]
    shape: Shape = tuple(dim.size for dim in given.tensor_shape.dim)
    if given.tensor_shape.unknown_rank or len(shape) > _MAX_RANK or any(size < 0 for size in shape):
        raise InvalidArgument(f"{where} has no definite shape: {list(shape)}")
    count = element_count(shape)
    if count * (datatype.itemsize or 8) > LARGEST:
        raise InvalidArgument(f"{where} has shape {list(shape)}, above the limit of {LARGEST} bytes")
    if given.tensor_content and datatype is not DataType.BYTES:
        expected = count * datatype.itemsize
        if len(given.tensor_content) != expected:
            raise InvalidArgument(
                f"{where}: expected {expected} bytes for shape {list(shape)} of {datatype.name},"
                f" got {len(given.tensor_content)}"
            )
        return Tensor(
            name, datatype, shape, np.frombuffer(given.tensor_content, datatype.dtype).reshape(shape)
        )
    if given.tensor_content:
        raise InvalidArgument(f"{where} has strings in tensor_content; they belong in string_val")
    values = getattr(given, field)
    if len(values) > count or (count and not values):
        raise InvalidArgument(f"{where} has {len(values)} values in {field} for shape {list(shape)}")
    return Tensor(name, datatype, shape, _repeat_last(where, datatype, values, count).reshape(shape))


def _repeat_last(where: str, datatype: DataType, values: Any, count: int) -> np.ndarray:
    """Returns an array of `count` elements: `values`, and then as many repetitions of the last value as
    needed, as in TensorFlow.
    """
    array = np.empty(count, datatype.dtype)
    if not count:
        return array
    if datatype is DataType.BYTES:
        array[: len(values)] = list(values)
    else:
        bits = array.view(np.uint16) if datatype is DataType.FP16 else array
        try:
            bits[: len(values)] = values
        except (OverflowError, ValueError):
            raise InvalidArgument(f"{where} has a value out of range for {datatype.name}") from None
    array[len(values) :] = array[len(values) - 1]
    return array


#: The polynomial of CRC-32C (RFC 7143, section 13.1), with its bits reversed.
_POLYNOMIAL = 0x82F63B78
#: Data of at least _LONG bytes are divided into _LANES blocks, whose checksums are computed in parallel.
_LONG = 1 << 16
_LANES = 1024


def crc32c(data: bytes | memoryview) -> int:
    """Returns the CRC-32C of `data`. If `data` is large, most of the work is done in NumPy."""
    state = 0xFFFFFFFF
    rest = memoryview(data)
    if len(rest) >= _LONG:
        length = len(rest) // _LANES
        state = _in_lanes(np.frombuffer(rest[: length * _LANES], np.uint8).reshape(_LANES, length))
        rest = rest[length * _LANES :]
    table = _table().tolist()
    for byte in rest:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def _in_lanes(blocks: np.ndarray) -> int:
    """Returns the CRC state after all rows of `blocks`, in order.

    The state is linear over GF(2): the state after a block is the state that the block alone gives, started
    from 0, xor the previous state advanced over as many zero bytes as the block has. So the states of all
    blocks, started from 0, are computed in parallel. The same computation advances each of the 32 bits of a
    state over one block of zeros. Then the states of neighbouring blocks are combined in pairs.
    """
    lanes, length = blocks.shape
    table = _table()
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    states = np.concatenate([np.zeros(lanes, np.uint32), bits])
    states[0] = 0xFFFFFFFF
    columns = np.zeros((length, lanes + 32), np.uint8)
    columns[:, :lanes] = blocks.T
    for column in columns:
        states = table[(states ^ column) & np.uint32(0xFF)] ^ (states >> np.uint32(8))
    joined, zeros = states[:lanes], states[lanes:]
    while len(joined) > 1:
        joined = _after_zeros(joined[0::2], zeros) ^ joined[1::2]
        zeros = _after_zeros(zeros, zeros)
    return int(joined[0])


def _after_zeros(states: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """Advances CRC states over a run of zero bytes. `zeros[i]` is the state that results if the state 1 << i
    is advanced over the run.
    """
    result = np.zeros_like(states)
    for bit in range(32):
        result ^= ((states >> np.uint32(bit)) & np.uint32(1)) * zeros[bit]
    return result


@cache
def _table() -> np.ndarray:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(
            values & np.uint32(1), (values >> np.uint32(1)) ^ np.uint32(_POLYNOMIAL), values >> np.uint32(1)
        )
    return values
