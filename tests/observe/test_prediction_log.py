"""Request files: round trips, files written by TensorFlow, and damage."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.observe.prediction_log import crc32c, encode_record, read_log
from backline_client.protos import message
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.tensor import Tensor


def bitwise_crc32c(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_from_the_rfc(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


@pytest.mark.parametrize("size", [1 << 16, (1 << 16) + 1, 100_003])
def test_vectorised_checksums_equal_stepwise_ones(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == bitwise_crc32c(data)


def record(log: Any) -> bytes:
    """A message as a TFRecord, as TensorFlow writes it."""

    def masked(data: bytes) -> bytes:
        crc = bitwise_crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    body = log.SerializeToString()
    length = struct.pack("<Q", len(body))
    return length + masked(length) + body + masked(body)


def logged(fill: Callable[[Any], None]) -> bytes:
    """A record with one input 'x', filled by `fill`."""
    log = message("backline.prediction_log.PredictionLog")()
    fill(log.predict_log.request.inputs["x"])
    return record(log)


def read_one(tmp_path: Path, content: bytes) -> Tensor:
    (tmp_path / "log").write_bytes(content)
    (request,) = read_log(tmp_path / "log")
    return request.inputs["x"]


@pytest.mark.parametrize("datatype", list(DataType))
def test_every_datatype_survives_a_round_trip(tmp_path: Path, datatype: DataType) -> None:
    data = np.array([[0, 1, 2], [1, 0, 1]]).astype(datatype.dtype)
    if datatype is DataType.BYTES:
        data = np.array([[b"", b"a", b"\xff\x00"], [b"b", b"c", b"d"]], np.object_)
    (tmp_path / "log").write_bytes(encode_record("m", {"x": Tensor("x", datatype, (2, 3), data)}, ("y",)))
    (request,) = read_log(tmp_path / "log")
    assert request.outputs == ("y",)
    tensor = request.inputs["x"]
    assert (tensor.name, tensor.datatype, tensor.shape) == ("x", datatype, (2, 3))
    assert tensor.data.dtype == datatype.dtype
    assert tensor.data.tolist() == data.tolist()


@pytest.mark.parametrize(
    ("dtype", "field", "values", "expected"),
    [
        (1, "float_val", [1.5, 2.5], [1.5, 2.5, 2.5]),
        (2, "double_val", [1.5], [1.5, 1.5, 1.5]),
        (3, "int_val", [-1, 2, 3], [-1, 2, 3]),
        (4, "int_val", [255], [255, 255, 255]),
        (7, "string_val", [b"a", b""], [b"a", b"", b""]),
        (9, "int64_val", [1 << 40], [1 << 40] * 3),
        (10, "bool_val", [True, False], [True, False, False]),
        (19, "half_val", [0x3C00, 0x4000], [1.0, 2.0, 2.0]),
        (14, "half_val", [0x3F80], [0x3F80] * 3),
        (22, "uint32_val", [4_000_000_000], [4_000_000_000] * 3),
        (23, "uint64_val", [1 << 63], [1 << 63] * 3),
    ],
)
def test_typed_values_are_read_and_the_last_one_repeated(
    tmp_path: Path, dtype: int, field: str, values: list[Any], expected: list[Any]
) -> None:
    def fill(tensor: Any) -> None:
        tensor.dtype = dtype
        tensor.tensor_shape.dim.add().size = 3
        getattr(tensor, field).extend(values)

    assert read_one(tmp_path, logged(fill)).data.tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "dims", "content", "values", "reason"),
    [
        (1, [2], b"\x00" * 7, [], r"expected 8 bytes for shape \[2\] of FP32, got 7"),
        (8, [2], b"", [], "datatype 8, which requests do not support"),
        (1, [-1], b"", [1.0], r"no definite shape: \[-1\]"),
        (1, [1 << 40], b"", [1.0], "above the limit of 1073741824 bytes"),
        (1, [1], b"", [1.0, 2.0], r"2 values in float_val for shape \[1\]"),
        (1, [1], b"", [], r"0 values in float_val for shape \[1\]"),
    ],
)
def test_invalid_tensors_are_refused_with_record_and_input(
    tmp_path: Path, dtype: int, dims: list[int], content: bytes, values: list[float], reason: str
) -> None:
    def fill(tensor: Any) -> None:
        tensor.dtype = dtype
        for size in dims:
            tensor.tensor_shape.dim.add().size = size
        tensor.tensor_content = content
        tensor.float_val.extend(values)

    with pytest.raises(InvalidArgument, match=rf"log', record 1: input 'x'.*{reason}"):
        read_one(tmp_path, logged(fill))


def test_records_of_other_kinds_are_named(tmp_path: Path) -> None:
    log = message("backline.prediction_log.PredictionLog")(classify_log=b"")
    (tmp_path / "log").write_bytes(record(log))
    assert [request.other for request in read_log(tmp_path / "log")] == ["classify_log"]


@given(cut=st.integers(1, 200), flipped=st.none() | st.integers(0, 2000))
def test_damage_is_an_error_or_a_shorter_file(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flipped: int | None
) -> None:
    one = encode_record("m", {"x": Tensor("x", DataType.UINT8, (20,), np.zeros(20, np.uint8))})
    content = bytearray(one * 2)[: -cut or None]
    if flipped is not None and content:
        content[flipped % len(content)] ^= 0x40
    file = tmp_path_factory.mktemp("damaged") / "log"
    file.write_bytes(content)
    if not content or (len(content) == len(one) and flipped is None):
        assert len(list(read_log(file))) == len(content) // len(one)
    else:
        with pytest.raises(InvalidArgument, match=r"record [12]"):
            list(read_log(file))
