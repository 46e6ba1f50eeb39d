"""Properties: tensors of all datatypes survive a round trip; mutated requests cause only client errors."""

from __future__ import annotations

import json
import struct

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from fake_models import OIP, Caller, make_caller
from hypothesis import given, settings
from hypothesis import strategies as st

from backline.engine.values.datatypes import DataType
from backline.protos import message

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
