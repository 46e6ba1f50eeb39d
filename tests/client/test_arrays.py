"""Which values an input accepts, and how others are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backline_client.client.arrays import to_tensor
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec


def tensor(datatype: str, value: Any, shape: tuple[int, ...] = (-1,)) -> np.ndarray:
    return to_tensor("m", TensorSpec("x", DataType.from_name(datatype), shape), value).data


@pytest.mark.parametrize(
    ("datatype", "value", "expected"),
    [
        ("FP32", [1, 2.5], np.array([1, 2.5], np.float32)),
        ("FP16", [0.1], np.array([0.1], np.float16)),
        ("INT8", [-128, 127], np.array([-128, 127], np.int8)),
        ("UINT64", [2**64 - 1], np.array([2**64 - 1], np.uint64)),
        ("BOOL", [True], np.array([True])),
        ("FP64", np.float32([1]), np.array([1.0])),
        ("INT64", np.int8([3]), np.array([3])),
        ("FP32", np.array([1.0], ">f4"), np.array([1], np.float32)),
        ("FP32", [], np.zeros(0, np.float32)),
        ("BF16", [1.0, 1.00390625, float("nan")], np.array([0x3F80, 0x3F80, 0x7FC0], np.uint16)),
    ],
)
def test_values_that_fit_are_converted(datatype: str, value: Any, expected: np.ndarray) -> None:
    data = tensor(datatype, value)
    assert data.dtype == expected.dtype
    np.testing.assert_array_equal(data, expected)


def test_a_dict_is_sent_as_json_text() -> None:
    assert tensor("BYTES", {"a": [1, "é"]}, (1,)).tolist() == ['{"a": [1, "é"]}'.encode()]
    with pytest.raises(InvalidArgument, match=r"input 'x' of model 'm' cannot be converted to JSON: .*set"):
        tensor("BYTES", {"a": {1}}, (1,))


def test_an_array_of_the_right_type_is_not_copied() -> None:
    value = np.zeros(4, np.float32)
    assert tensor("FP32", value) is value


@pytest.mark.parametrize(
    ("datatype", "value", "message"),
    [
        ("FP32", np.zeros(2), "expects FP32 .float32., got an array of float64"),
        ("INT32", np.zeros(2, np.int64), "expects INT32 .int32., got an array of int64"),
        ("INT32", [1.5], "expects INT32, got Python floats"),
        ("INT8", [128], r"expects INT8 \(-128 to 127\), got 128"),
        ("UINT8", [-1], r"expects UINT8 \(0 to 255\), got -1"),
        ("FP32", [1e300], "numbers beyond"),
        ("FP32", ["a"], "got Python strings"),
        ("BOOL", [1], "expects BOOL, got Python integers"),
        ("FP32", [[1], [1, 2]], "do not form an array"),
        ("BYTES", [["a"], ["a", "b"]], "do not form an array"),
        ("BYTES", [1], "got int at position 0; .* pass json.dumps"),
        ("BYTES", np.zeros(2), "got an array of float64"),
        ("BF16", np.zeros(2, np.float32), "expects BF16"),
    ],
)
def test_lossy_conversions_are_refused(datatype: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        tensor(datatype, value)
    assert "input 'x' of model 'm'" in str(caught.value)


def test_bytes_keep_their_zeros() -> None:
    assert tensor("BYTES", [b"a\0", "\0"]).tolist() == [b"a\0", b"\0"]


def test_a_missing_batch_dimension_is_reported() -> None:
    with pytest.raises(InvalidArgument, match=r"expects shape \[-1, 16\], got \[16\].*x\[None\]"):
        tensor("FP32", np.zeros(16, np.float32), (-1, 16))


def test_a_wrong_shape_is_reported() -> None:
    with pytest.raises(InvalidArgument, match=r"expects shape \[-1, 16\], got \[1, 17\]$"):
        tensor("FP32", np.zeros((1, 17), np.float32), (-1, 16))
