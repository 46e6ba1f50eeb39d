"""Properties: tensors of all datatypes survive a round trip; mutated requests cause only client errors."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from fake_models import OIP, Caller, make_caller
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backline.dialects.open_inference.grpc.messages import GrpcReader
from backline.wire.application import Buffer
from backline_client.protos import message
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError

CALLER = make_caller()
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
DATATYPES = pytest.mark.parametrize("datatype", list(DataType), ids=lambda datatype: datatype.name)
TEXT = st.text(max_size=8)
#: Each test runs for every datatype.
FEW = settings(max_examples=25)


def elements_of(datatype: DataType, *, text: bool) -> st.SearchStrategy[np.ndarray]:
    if datatype is DataType.BYTES:
        element = TEXT.map(str.encode) if text else st.binary(max_size=8)
        return arrays.arrays(np.object_, SHAPES, elements=element, fill=st.nothing())
    if text and datatype.dtype.kind == "f":
        width = datatype.itemsize * 8
        return arrays.arrays(
            datatype.dtype, SHAPES, elements=st.floats(allow_nan=False, allow_infinity=False, width=width)
        )
    return arrays.arrays(datatype.dtype, SHAPES)


def raw_of(array: np.ndarray) -> bytes:
    if array.dtype != np.object_:
        return array.tobytes()
    return b"".join(struct.pack("<I", len(element)) + element for element in array.reshape(-1))


@DATATYPES
@FEW
@given(data=st.data(), id=TEXT)
def test_binary_over_rest(datatype: DataType, data: st.DataObject, id: str) -> None:
    array = data.draw(elements_of(datatype, text=False))
    raw = raw_of(array)
    shape = list(array.shape)
    document = {
        "id": id,
        "inputs": [
            {
                "name": "INPUT0",
                "shape": shape,
                "datatype": datatype.name,
                "parameters": {"binary_data_size": len(raw)},
            }
        ],
        "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True}}],
    }
    answer = CALLER.infer(f"echo_{datatype.name}_{array.ndim}", document, raw)
    assert answer.status == 200
    assert answer.json["outputs"][0]["shape"] == shape
    assert answer.json.get("id", "") == id
    assert answer.body[int(answer.fields[b"inference-header-content-length"]) :] == raw


@pytest.mark.parametrize(
    "datatype",
    [datatype for datatype in DataType if datatype not in (DataType.FP16, DataType.BF16)],
    ids=lambda datatype: datatype.name,
)
@FEW
@given(data=st.data(), nested=st.booleans())
def test_json_over_rest(datatype: DataType, data: st.DataObject, nested: bool) -> None:
    array = data.draw(elements_of(datatype, text=True))
    values = (
        np.array([element.decode() for element in array.reshape(-1)], np.object_).reshape(array.shape)
        if array.dtype == np.object_
        else array
    )
    flat = values.reshape(-1).tolist()
    given_input = {
        "name": "INPUT0",
        "shape": list(array.shape),
        "datatype": datatype.name,
        "data": values.tolist() if nested else flat,
    }
    answer = CALLER.infer(f"echo_{datatype.name}_{array.ndim}", {"inputs": [given_input]})
    assert answer.status == 200, answer.error
    (output,) = answer.json["outputs"]
    assert output["shape"] == list(array.shape)
    if datatype is DataType.FP32:  # written with the digits that distinguish it from other FP32 numbers
        assert np.array(output["data"], np.float32).tobytes() == values.tobytes()
    else:
        assert output["data"] == flat


@DATATYPES
@FEW
@given(data=st.data(), id=TEXT)
def test_raw_over_grpc(datatype: DataType, data: st.DataObject, id: str) -> None:
    array = data.draw(elements_of(datatype, text=False))
    response = CALLER.rpc_infer(
        model_name=f"echo_{datatype.name}_{array.ndim}",
        id=id,
        inputs=[{"name": "INPUT0", "datatype": datatype.name, "shape": array.shape}],
        raw_input_contents=[raw_of(array)],
    )
    assert response.id == id
    assert tuple(response.outputs[0].shape) == array.shape
    assert list(response.raw_output_contents) == [raw_of(array)]


_FIELDS = {
    "BOOL": "bool",
    "FP32": "fp32",
    "FP64": "fp64",
    "BYTES": "bytes",
    "INT64": "int64",
    "UINT64": "uint64",
}


@pytest.mark.parametrize(
    "datatype",
    [datatype for datatype in DataType if datatype not in (DataType.FP16, DataType.BF16)],
    ids=lambda datatype: datatype.name,
)
@FEW
@given(data=st.data())
def test_typed_over_grpc(datatype: DataType, data: st.DataObject) -> None:
    array = data.draw(elements_of(datatype, text=False))
    field = _FIELDS.get(datatype.name, "uint" if datatype.name.startswith("U") else "int") + "_contents"
    given_input = {
        "name": "INPUT0",
        "datatype": datatype.name,
        "shape": array.shape,
        "contents": {field: array.reshape(-1).tolist()},
    }
    response = CALLER.rpc_infer(model_name=f"echo_{datatype.name}_{array.ndim}", inputs=[given_input])
    got = (
        np.frombuffer(response.raw_output_contents[0], datatype.dtype)
        if datatype.itemsize
        else response.raw_output_contents[0]
    )
    if datatype.itemsize:
        np.testing.assert_array_equal(got, array.reshape(-1))  # Python floats may change the bits of a NaN
    else:
        assert got == raw_of(array)


HEADER = json.dumps(
    {
        "id": "a",
        "inputs": [
            {"name": "A", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": 8}},
            {"name": "B", "shape": [2], "datatype": "INT32", "data": [1, 2]},
        ],
        "outputs": [
            {"name": "SUM", "parameters": {"classification": 1}},
            {"name": "DIFFERENCE", "parameters": {"binary_data": True}},
        ],
        "parameters": {"timeout": 1000000, "priority": 1, "mood": "blue"},
    },
    separators=(",", ":"),
).encode()
REST_BODY = HEADER + bytes(8)
GRPC_BODY = message("inference.ModelInferRequest")(
    model_name="pair",
    id="a",
    parameters={"timeout": {"int64_param": 1000000}},
    inputs=[
        {"name": "A", "datatype": "INT32", "shape": [2]},
        {"name": "B", "datatype": "INT32", "shape": [2]},
    ],
    outputs=[{"name": "SUM", "parameters": {"classification": {"int64_param": 1}}}],
    raw_input_contents=[bytes(8), bytes(8)],
).SerializeToString()
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)
FRAGMENTS = st.binary(max_size=4) | st.sampled_from([b"[", b"]", b'"', b"-", b"9" * 20, b"{"])
ANY_SHAPE = st.lists(st.integers(-2, 2**70), max_size=5) | st.lists(st.integers(0, 3), max_size=4)
SEGMENTS = st.sampled_from(["v2", "models", "pair", "%", "%ff", "", "infer", "versions", "1", "..", "\u00e4"])


@st.composite
def mutated(draw: st.DrawFn, body: bytes) -> bytes:
    """The body with a few bytes replaced, removed or inserted."""
    changed = bytearray(body)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(changed)))
        changed[start : start + draw(st.integers(0, 4))] = draw(FRAGMENTS)
    return bytes(changed)


def test_the_bodies_that_are_mutated_are_good(caller: Caller) -> None:
    assert caller.post("/v2/models/pair/infer", REST_BODY, len(HEADER)).status == 200
    assert caller.call(OIP + b"ModelInfer", GRPC_BODY).code == 0


@settings(max_examples=400)
@given(
    body=mutated(REST_BODY),
    length=st.sampled_from([None, 0, len(HEADER)]) | st.integers(0, 2 * len(REST_BODY)),
)
def test_mutated_rest_requests_are_at_most_a_clients_fault(body: bytes, length: int | None) -> None:
    assert CALLER.post("/v2/models/pair/infer", body, length).status < 500


@settings(max_examples=400)
@given(body=mutated(GRPC_BODY))
def test_mutated_grpc_requests_are_at_most_a_clients_fault(body: bytes) -> None:
    assert CALLER.call(OIP + b"ModelInfer", body).code in (0, 3, 5)


@st.composite
def documents(draw: st.DrawFn) -> object:
    """A valid request with some value replaced, at any depth."""
    document = json.loads(HEADER)
    place = document
    while True:
        key = (
            draw(st.sampled_from(sorted(place)))
            if isinstance(place, dict)
            else draw(st.integers(0, len(place) - 1))
        )
        if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        place[key] = draw(JSON_VALUES)
        return document


@settings(max_examples=250)
@given(document=documents())
def test_any_json_is_at_most_a_clients_fault(document: object) -> None:
    answer = CALLER.infer("pair", document, bytes(8))
    assert answer.status < 500 or answer.status == 501


@settings(max_examples=150)
@given(value=JSON_VALUES, shape=ANY_SHAPE, datatype=st.sampled_from(list(DataType)))
def test_any_data_is_at_most_a_clients_fault(value: object, shape: list[int], datatype: DataType) -> None:
    document = {"inputs": [{"name": "INPUT0", "shape": shape, "datatype": datatype.name, "data": value}]}
    assert CALLER.infer(f"echo_{datatype.name}_{min(len(shape), 3)}", document).status in (200, 400, 413)


@settings(max_examples=150)
@given(path=st.text(max_size=30) | st.lists(SEGMENTS, max_size=6).map("/".join))
def test_any_path_is_at_most_a_clients_fault(path: str) -> None:
    answer = CALLER.http("GET", "/" + path.encode("utf-8", "replace").decode()).answer
    assert answer.status < 500 or answer.status == 501


def field(number: int, content: bytes, longer: int = 0) -> bytes:
    """A length-delimited field, whose length is `longer` bytes longer than necessary."""
    length = bytearray()
    left = len(content)
    while left > 127 or longer:
        if left < 128:
            longer -= 1
        length.append(left & 127 | 128)
        left >>= 7
    return bytes([number << 3 | 2, *length, left]) + content


REQUEST = message("inference.ModelInferRequest")
DECLARED = [
    REQUEST(inputs=[{"name": name, "datatype": datatype, "shape": shape, **more}]).SerializeToString()
    for name in ("A", "B")
    for datatype, shape in (("INT32", [2]), ("INT8", [8]), ("INT8", [2, 4]), ("INT32", [0]), ("BYTES", [1]))
    for more in (
        {},
        {"contents": {"int_contents": [1, 2]}},
        {"parameters": {"shared_memory_region": {"string_param": "r"}}},
    )
]
OTHERS = [
    field(1, b"m"),
    field(1, b"n"),
    field(2, b"1"),
    field(3, b""),
    field(3, b"x"),
    field(3, b"\xff"),
    field(7, b""),
    field(7, bytes(8)),
    field(7, bytes(7)),
    field(7, bytes(8), longer=1),
    field(9, b"unknown"),
    b"\x08\x01",  # the number of the model's name, with another type
    b"\xba\x00" + field(7, bytes(8))[1:],  # the tag of raw contents, longer than necessary
    REQUEST(parameters={"priority": {"int64_param": 1}}).SerializeToString(),
    REQUEST(outputs=[{"name": "Y"}]).SerializeToString(),
]


@st.composite
def alike(draw: st.DrawFn) -> list[bytes]:
    """Messages that begin alike: most have one input and end with its contents."""
    begin = field(1, b"m") + draw(st.sampled_from(DECLARED[::3]))
    longer = draw(st.integers(0, 2))
    found = []
    for _ in range(draw(st.integers(2, 6))):
        content = draw(st.sampled_from([b"", b"\x04\x00\x00\x00abcd"]) | st.binary(min_size=8, max_size=8))
        parts = [begin, field(7, content, longer)]
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
            parts.insert(draw(st.integers(0, len(parts))), draw(st.sampled_from(OTHERS + DECLARED)))
        whole = b"".join(parts)
        found.append(draw(mutated(whole)) if draw(st.integers(0, 4)) == 4 else whole)
    return found


def read_by(reader: GrpcReader, received: Buffer) -> object:
    """What a reader makes of a message, as values."""
    try:
        plan, id, tensors = reader.read(received, {}, "", "", False)
    except BacklineError as error:
        return type(error), error.message
    slots = {name for kind in type(plan).__mro__ for name in getattr(kind, "__slots__", ())}
    planned = {name: getattr(plan, name) for name in slots - {"inputs", "single", "shared"}}
    inputs = [(spec.name, spec.datatype, spec.shape) for spec in plan.inputs]
    read = [(name, one.name, one.datatype, one.shape, one.data.tolist()) for name, one in tensors.items()]
    return planned, inputs, plan.single is None, id, read


def of_bytes(count: int) -> bytes:
    """A message up to its contents: `count` numbers of a byte."""
    input = {"name": "A", "datatype": "INT8", "shape": [count]}
    return field(1, b"m") + REQUEST(inputs=[input]).SerializeToString() + bytes([7 << 3 | 2, count])


@settings(max_examples=400)
@example(received=[of_bytes(8) + bytes(8), of_bytes(9) + bytes(9), of_bytes(8) + bytes(9)])
@example(received=[field(3, b"x") + of_bytes(8) + bytes(8)])
@given(received=alike())
def test_a_grpc_request_is_read_alike_whatever_was_read_before(received: list[bytes]) -> None:
    reader = GrpcReader(CALLER.engine)
    for one in received * 2:
        assert read_by(reader, one) == read_by(GrpcReader(CALLER.engine), one)


@pytest.mark.parametrize("buffer", [bytes, lambda message: memoryview(bytearray(message))])
def test_a_repeated_grpc_request_is_recognised_by_its_beginning(
    monkeypatch: pytest.MonkeyPatch, buffer: Callable[[bytes], Buffer]
) -> None:
    reader = GrpcReader(CALLER.engine)
    begin = field(1, b"m") + DECLARED[0]
    read_by(reader, begin + field(7, bytes(8)))
    monkeypatch.setattr(reader, "_read", None)
    *_, read = read_by(reader, buffer(begin + field(7, b"\x01\0\0\0\x02\0\0\0")))  # type: ignore[misc]
    assert read == [("A", "A", DataType.INT32, (2,), [1, 2])]
