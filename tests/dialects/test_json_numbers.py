"""Lists of numbers in JSON: the same bits come back, and all else is left to the slower path."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from backline.dialects import json_data
from backline.dialects.json_data import read_numbers, write_numbers
from backline.dialects.open_inference.rest import messages
from backline.dialects.open_inference.rest.messages import RestReader
from backline.engine.engine import Engine
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument

NUMBERS = [
    datatype for datatype in DataType if datatype not in (DataType.FP16, DataType.BF16, DataType.BYTES)
]
FLOATS = {"allow_nan": False, "allow_infinity": False}


@pytest.mark.parametrize("datatype", NUMBERS, ids=lambda datatype: datatype.name)
@given(data=st.data())
def test_the_same_bits_come_back(datatype: DataType, data: st.DataObject) -> None:
    settings = FLOATS if datatype.dtype.kind == "f" else {}
    elements = arrays.from_dtype(datatype.dtype, **settings)
    array = data.draw(arrays.arrays(datatype.dtype, st.integers(1, 50), elements=elements))

    back = read_numbers(datatype, write_numbers(array))

    assert back is not None
    assert back.tobytes() == array.tobytes()


def test_the_same_bits_come_back_for_every_exponent_of_fp32() -> None:
    random = np.random.default_rng(1)
    bits = random.integers(0, 2**32, 300_000, dtype=np.uint32)
    array = bits.view(np.float32)
    array = array[np.isfinite(array)]

    back = read_numbers(DataType.FP32, write_numbers(array))

    assert back is not None
    assert back.tobytes() == array.tobytes()


def test_large_arrays_and_strided_ones_are_written_whole() -> None:
    array = np.arange(50_001, dtype=np.int32)[::2]

    assert json.loads(write_numbers(array)) == array.tolist()


@pytest.mark.parametrize(
    ("datatype", "text"),
    [
        (DataType.FP32, b"[]"),
        (DataType.FP32, b"[[], [1]]"),
        (DataType.FP32, b"[1, [2]]"),
        (DataType.FP32, b"[[1], 2]"),
        (DataType.FP32, b"[true]"),
        (DataType.FP32, b"[null]"),
        (DataType.FP32, b'["1"]'),
        (DataType.FP32, b'[{"a": 1}]'),
        (DataType.FP32, b"[1e39]"),
        (DataType.FP64, b"[1e309]"),
        (DataType.FP64, b"[NaN]"),
        (DataType.FP64, b"[Infinity]"),
        (DataType.FP64, b"[1,]"),
        (DataType.FP64, b"[1] [2]"),
        (DataType.FP64, b"1"),
        (DataType.INT8, b"[128]"),
        (DataType.UINT8, b"[-1]"),
        (DataType.INT64, b"[9223372036854775808]"),
        (DataType.UINT64, b"[18446744073709551616]"),
        (DataType.INT32, b"[1.0]"),
        (DataType.BOOL, b"[1]"),
        (DataType.BOOL, b"[true, 0]"),
        (DataType.INT32, b"[" * 101 + b"1" + b"]" * 101),
        (DataType.INT32, b"[" * 5000 + b"]" * 5000),
        (DataType.BYTES, b'["a"]'),
    ],
)
def test_anything_else_is_not_read(datatype: DataType, text: bytes) -> None:
    assert read_numbers(datatype, text) is None


def request(data: str, *, before: str = "", after: str = "", shape: str = "[3]") -> bytes:
    text = f'{{{before}"inputs":[{{"name":"x","shape":{shape},"datatype":"FP32","data":{data}{after}}}]}}'
    return text.encode()


@pytest.fixture(params=[False, True], ids=["small", "large"])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether all requests count as large, and are read in pieces of a few bytes."""
    if request.param:
        monkeypatch.setattr(messages, "LARGE", 1)
        monkeypatch.setattr(json_data, "LARGE", 4)
        monkeypatch.setattr(messages, "check_description", lambda *_: None)  # there is no model
    return bool(request.param)


class Requests:
    """Reads requests with one reader, which remembers, and with a new one for each, which does not."""

    def __init__(self, large: bool) -> None:
        self._on_loop = not large
        self._reader = RestReader(Engine())

    def read(self, body: bytes) -> Any:
        outcomes = []
        for reader in (self._reader, RestReader(Engine())):
            try:
                _, id, tensors = reader.read(body, {}, "m", "", self._on_loop)
            except InvalidArgument as error:
                outcomes.append(error.message)
            else:
                outcomes.append((id, {name: (t.shape, t.data.tolist()) for name, t in tensors.items()}))
        assert outcomes[0] == outcomes[1]
        return outcomes[0]


@pytest.mark.parametrize(
    "body",
    [
        request("[4,5,6]"),
        request("[4, 5,\n6 ]"),
        request("\n[ 4,5,6] "),
        request("\x0b[4,5,6]"),
        request("[4,[5],6]"),
        request("[[4],[5],[6]]"),
        request("[4 4,5,6]"),
        request("[4,5,,6]"),
        request("[4,5,6,]"),
        request("[4,,6]"),
        request("[4,5,-Infinity]"),
        request("[4,5,6]", before='"id":"b",'),
        request("[4,5,6]", before='"id":"a","id":"b",'),
        request("[4,5,6]", after=',"data":[1,2,3]'),
        request("[4,5,6]", after=',"shape":[1]'),
        request("[4,5]"),
        request("[4,5,6,7]"),
        request("[4,5,6"),
        request("[4,5,6]]"),
        request("[4,5,6],7"),
        request('[4,5,6],"shape":[1]'),
        request('[4,5,6],"data":[7,8,9]'),
        request('["4",5,6]'),
        request("[4,5,1e39]"),
        request("4"),
        request(""),
        request("[4,5,6]") + b"x",
        request("[4,5,6]").removesuffix(b"}]}"),
        b'"data":',
    ],
)
def test_a_remembered_request_changes_nothing_about_the_next_one(body: bytes, large: bool) -> None:
    requests = Requests(large)
    for seen in (request("[1,2,3]"), request("[1,2,3]", before='"id":"a",')):
        requests.read(seen)
        requests.read(seen)

    requests.read(body)


@pytest.mark.parametrize(
    "first",
    [
        request("[1,2,3]", after=',"data":[1,2,3]'),
        request("[1,2,3]", before='"x":{"data":[1,2,3]},'),
        request("[1,2,3]", before='"id":"a","id":"a",'),
        request("[1,2,3]", before='"id":"a","\\u0069d":"a",'),
        request("[1,2,3]").replace(b"]}]}", b']}],"id":"a"}'),
        request("[1,2,3]").replace(b"]}]}", b']}],"inputs":[]}'),
    ],
)
def test_keys_that_occur_twice_are_read_as_before(first: bytes, large: bool) -> None:
    requests = Requests(large)
    requests.read(first)

    requests.read(first)
    requests.read(first.replace(b'"data":[1,2,3]', b'"data":[4,5,6]', 1))
    requests.read(first.replace(b'"id":"a"', b'"id":"b"', 1))


def test_a_request_like_an_earlier_one_is_read_without_parsing_the_document(
    large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = RestReader(Engine())
    reader.read(request("[1,2,3]"), {}, "m", "", not large)
    monkeypatch.delattr(RestReader, "_decode")

    for data in ("[4,5,6]", "[4, 5, 6]"):
        _, _, tensors = reader.read(memoryview(request(data)), {}, "m", "", not large)

        assert tensors["x"].data.tolist() == [4, 5, 6]


def test_fp32_is_written_with_the_digits_that_distinguish_it() -> None:
    assert write_numbers(np.array([0.1, 1, -0.0, 1e-45], np.float32)) == b"[0.1,1.0,-0.0,1e-45]"


def test_numbers_near_the_limits_are_read_as_fast_as_others() -> None:
    text = msgspec.json.encode([1.7976931348623157e308] * 3_000)

    back = read_numbers(DataType.FP64, text)

    assert back is not None
    assert (back == 1.7976931348623157e308).all()
