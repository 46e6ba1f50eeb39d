"""Tensors and their bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.tensor import Tensor, decode_tensor, encode_tensor

NUMBERS = [datatype for datatype in DataType if datatype is not DataType.BYTES]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    datatype = draw(st.sampled_from(list(DataType)))
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    if datatype is DataType.BYTES:
        data = np.empty(shape, np.object_)
        flat = data.reshape(-1)
        for index in range(flat.size):
            flat[index] = draw(st.binary(max_size=20))
        return Tensor("t", datatype, shape, flat.reshape(shape))
    return Tensor("t", datatype, shape, draw(arrays.arrays(datatype.dtype, shape)))


@given(tensors())
def test_encoding_and_decoding_are_inverse(tensor: Tensor) -> None:
    raw = bytes(encode_tensor(tensor))

    decoded = decode_tensor("t", tensor.datatype, tensor.shape, raw)

    assert decoded.shape == tensor.shape
    assert bytes(encode_tensor(decoded)) == raw


@pytest.mark.parametrize("datatype", NUMBERS)
def test_wrong_byte_count_is_refused(datatype: DataType) -> None:
    with pytest.raises(InvalidArgument, match="input byte size mismatch for input 't'"):
        decode_tensor("t", datatype, (3,), b"\0" * (3 * datatype.itemsize - 1))


def test_a_shape_that_dwarfs_the_data_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(
        InvalidArgument, match=f"expected {2**80} string elements for inference input 't', got 1"
    ):
        decode_tensor("t", DataType.BYTES, (2**40, 2**40), b"\0\0\0\0")


#: Two strings of one byte each.
TWO = b"\x01\0\0\0a\x01\0\0\0b"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "expected 1 string elements for inference input 't', got 0"),
        (
            b"\x05\0\0\0abc",
            "incomplete string data for inference input 't', expecting string of length 5 but only 3 bytes",
        ),
        (
            b"\0\0\0",
            "incomplete string length indicator for inference input 't', expecting 4 bytes but only 3 bytes",
        ),
        (b"\0\0\0\0xxxx", "unexpected number of string elements 2 for inference input 't', expecting 1"),
        (b"\xff\xff\xff\xff", "expecting string of length 4294967295 but only 0 bytes available"),
    ],
)
def test_broken_bytes_elements_are_refused_in_tritons_words(raw: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        decode_tensor("t", DataType.BYTES, (1,), raw)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (TWO + b"\0", "incomplete string length indicator for inference input 't', .*only 1 bytes available"),
        (TWO + b"\0\0\0", "incomplete string length indicator for inference input 't', .*only 3 bytes"),
        (TWO + b"\0\0\0\0", "unexpected number of string elements 3 for inference input 't', expecting 2"),
        (TWO + TWO, "unexpected number of string elements 3 for inference input 't', expecting 2"),
        (TWO + b"\x05\0\0\0", "unexpected number of string elements 3 for inference input 't', expecting 2"),
        (b"\x09\0\0\0ab", "expected 2 string elements for inference input 't', got 1"),
        (TWO[:-1], "incomplete string data for inference input 't', expecting string of length 1 but only 0"),
        (TWO[:7], "incomplete string length indicator for inference input 't', .*only 2 bytes available"),
    ],
)
def test_two_strings_that_are_cut_or_followed_by_more_are_refused_in_the_words_of_triton_2_51(
    raw: bytes, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        decode_tensor("t", DataType.BYTES, (2,), raw)


def test_large_arrays_are_encoded_without_a_copy() -> None:
    data = np.arange(10_000, dtype=np.float32)

    view = encode_tensor(Tensor("t", DataType.FP32, data.shape, data))

    assert np.shares_memory(np.frombuffer(view, np.float32), data)


def test_non_contiguous_arrays_are_encoded_in_row_major_order() -> None:
    data = np.arange(6, dtype=np.int32).reshape(2, 3).T

    assert np.frombuffer(encode_tensor(Tensor("t", DataType.INT32, data.shape, data)), np.int32).tolist() == [
        0,
        3,
        1,
        4,
        2,
        5,
    ]
