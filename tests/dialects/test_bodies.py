"""Tables as bodies: JSON rows, CSV and Arrow, read and written by a model's signature."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from fake_models import Caller, HttpAnswer, add_model

from backline.dialects.application import build_application
from backline.dialects.bodies.bodies import ARROW, BODIES, CSV
from backline.dialects.bodies.columns import Inputs
from backline.dialects.bodies.json_rows import MAX_ROWS
from backline.dialects.input_plan import MAX_BYTES_ELEMENTS
from backline.dialects.off_loop import LARGE
from backline.engine.engine import Engine
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument, NotAcceptable, PayloadTooLarge
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Tensor

pa = pytest.importorskip("pyarrow")


def column(name: str, datatype: DataType, *dims: int) -> TensorSpec:
    return TensorSpec(name, datatype, (-1, *dims), column=True)


SPECS = (
    column("age", DataType.FP64),
    column("count", DataType.INT64),
    column("city", DataType.BYTES),
    column("member", DataType.BOOL),
)
INPUTS = Inputs("m", {spec.name: spec for spec in SPECS})
EXPECTED: dict[str, list[Any]] = {
    "age": [31.5, float("nan"), 1.0],
    "count": [1, 2, 3],
    "city": [b"Oslo, N", b"", b'"B"'],
    "member": [True, False, True],
}


def stream(columns: dict[str, Any], **options: Any) -> bytes:
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def lists(tensors: dict[str, Tensor]) -> dict[str, list[Any]]:
    return {name: tensor.data.tolist() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "body",
    [
        'age,count,city,member\r\n31.5,1,"Oslo, N",true\r\n,2,,FALSE\r\nTrue,3.0,"""B""",1\r\n',
        '\ufeffcity,age,count,member\n"Oslo, N",31.5,1,True\n,NaN,2,0\n\n"""B""",1e0,3,true',
    ],
    ids=["as RFC 4180 says", "as spreadsheets write it"],
)
def test_csv_is_read_by_the_types_of_the_signature(body: str) -> None:
    np.testing.assert_equal(lists(BODIES[CSV].read(INPUTS, body.encode())), EXPECTED)


@pytest.mark.parametrize(
    "columns",
    [
        {"age": [31.5, None, 1.0], "count": [1, 2, 3], "member": [True, False, True]},
        {
            "age": pa.array([31.5, None, 1], pa.float32()),
            "count": [1.0, 2.0, 3.0],
            "member": [True, False, True],
        },
    ],
    ids=["same types", "other types"],
)
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]
)
def test_arrow_is_read_in_batches_by_the_types_of_the_signature(columns: dict[str, Any], kind: Any) -> None:
    cities = pa.array(["Oslo, N", None, '"B"']).cast(kind)

    found = BODIES[ARROW].read(INPUTS, stream({**columns, "city": cities}))

    np.testing.assert_equal(lists(found), EXPECTED)


def test_a_slice_of_a_column_keeps_its_values_and_nulls() -> None:
    table = pa.table({"age": [9.0, None, 2.0, None, 4.0]}).slice(1)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    inputs = Inputs("m", {"age": SPECS[0]})

    found = BODIES[ARROW].read(inputs, sink.getvalue().to_pybytes())

    np.testing.assert_equal(lists(found), {"age": [float("nan"), 2.0, float("nan"), 4.0]})


def test_a_column_of_lists_is_an_input_with_two_dimensions() -> None:
    inputs = Inputs("m", {"x": TensorSpec("x", DataType.FP32, (-1, 3))})
    values = pa.FixedSizeListArray.from_arrays(pa.array(range(6), pa.float64()), 3)

    assert lists(BODIES[ARROW].read(inputs, stream({"x": values}))) == {"x": [[0, 1, 2], [3, 4, 5]]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "names the columns, lacks 'age', 'count', 'city', 'member'"),
        (b"age,count,city,member\n", "the body has no rows"),
        (
            b"age,count,city,member\n1,2,x\n",
            "row 1 of the CSV has 3 fields, but its first line names 4 columns",
        ),
        (b"age,count,city,member\n1,2,x,1\nold,2,x,1\n", "row 2 of the CSV has 'old' in column 'age'"),
        (b"age,count,city,member\n1,,x,1\n", "row 1 of the CSV has an empty field in column 'count'"),
        (b"age,count,city,member\n1,1.5,x,1\n", "has '1.5' in column 'count', which takes numbers"),
        (b"age,count,city,member\n1,2,x,maybe\n", "column 'member', which takes true or false"),
        (b"age,count,town,member\n1,2,x,1\n", "'town' is not an input of model 'm'"),
        (b"age,age,count,city,member\n1,1,2,x,1\n", "has column 'age' more than once"),
        (b"age,count,city,member\n1,2,\xff,1\n", "the CSV is not UTF-8"),
        (b'age,count,city,member\n1,2,"x"y,1\n', "the CSV is malformed"),
        (b"age,count,city,member\n1,2," + b"x" * 200_000 + b",1\n", "field larger than field limit"),
        (b"age,count,city,member\n" + b"1" * (1 << 20), "the CSV has a line of over 1048576 characters"),
    ],
)
def test_csv_that_does_not_fit_is_refused_with_the_place(body: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument) as told:
        BODIES[CSV].read(INPUTS, body)
    assert text in told.value.message.replace("more than 1048576", "over 1048576")


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"x": ["a"]}, "column 'x' of the Arrow stream has the type string, but the input takes FP64[-1]"),
        ({"x": pa.array([0], pa.timestamp("us"))}, "has the type timestamp[us]"),
        ({"x": pa.array([], pa.float64())}, "the body has no rows"),
        ({"y": [1.0]}, "'y' is not an input of model 'm'"),
    ],
)
def test_arrow_that_does_not_fit_is_refused_by_column(columns: dict[str, Any], text: str) -> None:
    inputs = Inputs("m", {"x": column("x", DataType.FP64)})

    with pytest.raises(InvalidArgument) as told:
        BODIES[ARROW].read(inputs, stream(columns))
    assert text in told.value.message


@pytest.mark.parametrize("datatype", [DataType.INT64, DataType.BOOL])
def test_nulls_where_no_value_can_be_missing_are_refused(datatype: DataType) -> None:
    inputs = Inputs("m", {"x": column("x", datatype)})

    with pytest.raises(InvalidArgument, match="column 'x' of the Arrow stream has nulls"):
        BODIES[ARROW].read(inputs, stream({"x": pa.array([1, None])}))


def test_every_damaged_arrow_stream_is_refused_or_read() -> None:
    whole = stream({"age": [1.0, None], "count": [1, 2], "city": ["a", None], "member": [True, False]})
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        for body in (bytes(damaged), whole[:position]):
            try:
                found = BODIES[ARROW].read(INPUTS, body)
            except (InvalidArgument, PayloadTooLarge):
                continue
            assert {len(tensor.data) for tensor in found.values()} == {2}


def test_compressed_arrow_is_refused_before_it_is_unpacked() -> None:
    body = stream({"x": np.zeros(1 << 16)}, options=pa.ipc.IpcWriteOptions(compression="zstd"))

    with pytest.raises(PayloadTooLarge, match="compressed buffers"):
        BODIES[ARROW].read(Inputs("m", {"x": column("x", DataType.FP64)}), body)


def test_a_dictionary_cannot_multiply_its_strings_without_limit() -> None:
    word = pa.array(["x" * (1 << 20)])
    many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), word)

    with pytest.raises(PayloadTooLarge, match="counting each as often as it occurs"):
        BODIES[ARROW].read(Inputs("m", {"x": column("x", DataType.BYTES)}), stream({"x": many}))


def test_strings_of_a_table_are_limited_in_number() -> None:
    inputs = Inputs("m", {"x": column("x", DataType.BYTES)})
    half = b"\n".join([b"a"] * (MAX_BYTES_ELEMENTS + 1))

    with pytest.raises(PayloadTooLarge, match="BYTES inputs"):
        BODIES[CSV].read(inputs, b"x\n" + half)


def outputs() -> list[Tensor]:
    texts = np.array([b"no", b"yes"], object)
    return [
        Tensor("predict", DataType.BYTES, (2,), texts),
        Tensor("predict_proba", DataType.FP32, (2, 2), np.array([[0.9, 0.1], [np.nan, 1.0]], np.float32)),
        Tensor("leaf", DataType.BOOL, (2,), np.array([True, False])),
    ]


def test_csv_names_the_classes_and_leaves_missing_values_empty() -> None:
    written = BODIES[CSV].write(outputs(), {"predict_proba": ("no", "yes")})

    assert written.decode().split() == [
        "predict,predict_proba.no,predict_proba.yes,leaf",
        "no,0.9,0.1,true",
        "yes,,1.0,false",
    ]


def test_arrow_names_the_classes_or_holds_lists() -> None:
    labels = {"predict_proba": ("no", "yes")}
    named = pa.ipc.open_stream(BODIES[ARROW].write(outputs(), labels)).read_all()
    unnamed = pa.ipc.open_stream(BODIES[ARROW].write(outputs(), {})).read_all()

    assert named.column_names == ["predict", "predict_proba.no", "predict_proba.yes", "leaf"]
    assert named.column("leaf").to_pylist() == [True, False]
    assert named.column("predict").to_pylist() == ["no", "yes"]
    assert unnamed.column("predict_proba").to_pylist()[0] == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize("kind", [CSV, ARROW])
def test_outputs_that_are_no_table_are_not_acceptable(kind: str) -> None:
    uneven = [
        Tensor("a", DataType.INT64, (2,), np.zeros(2, np.int64)),
        Tensor("b", DataType.INT64, (), np.array(1)),
    ]

    with pytest.raises(NotAcceptable, match=r"differ in the number of rows: a \[2\], b \[\]"):
        BODIES[kind].write(uneven, {})


def table_model() -> Caller:
    engine = Engine()
    specs = [column("age", DataType.FP64), column("city", DataType.BYTES)]
    outputs = [
        TensorSpec("city", DataType.BYTES, (-1,)),
        TensorSpec("odds", DataType.FP64, (-1, 2), labels=("no", "yes")),
    ]
    add_model(
        engine,
        "table",
        specs,
        outputs,
        lambda one: {"city": one["city"], "odds": np.stack([one["age"], 1 - one["age"]], 1)},
        max_batch_size=1 << 20,
    )
    engine.refresh()
    engine.started()
    return Caller(engine, build_application(engine))


def ask(caller: Caller, body: bytes, kind: str = "application/json", accept: str = "*/*") -> HttpAnswer:
    headers = {b"content-type": kind.encode(), b"accept": accept.encode()}
    return caller.http("POST", "/models/table", body, headers).answer


def test_rows_are_answered_as_rows_with_classes_by_name() -> None:
    answer = ask(table_model(), b'[{"age": 0.25, "city": null}, {"city": "Oslo", "age": NaN}]')

    assert answer.json == [
        {"city": "", "odds": {"no": 0.25, "yes": 0.75}},
        {"city": "Oslo", "odds": {"no": "NaN", "yes": "NaN"}},
    ]


def test_columns_may_be_missing_and_booleans_be_numbers() -> None:
    answer = ask(table_model(), b'{"age": [true, null], "city": [null, "Oslo"]}')

    assert answer.json == {"city": ["", "Oslo"], "odds": [[1.0, 0.0], ["NaN", "NaN"]]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"[1]", "element 1 of its list is not a row"),
        (b"[]", "the body has no rows"),
        (b'[{"age": 1}]', "row 1 lacks 'city'"),
        (b'[{"age": 1, "city": "a"}, {"age": 1}]', "row 2 lacks 'city'"),
        (b'[{"age": 1, "cty": "a"}]', "'cty' is not an input of model 'table': did you mean 'city'?"),
        (b'[{"age": 1, "city": "a"}', "failed to parse the request JSON"),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_the_row(body: bytes, text: str) -> None:
    answer = ask(table_model(), body)

    assert answer.status == 400
    assert text in answer.json["error"]


async def test_large_rows_and_csv_are_read_and_written_off_the_loop() -> None:
    caller = table_model()
    count = LARGE // 8
    rows = [{"age": 0.5, "city": f"c{index}"} for index in range(count)]
    text = "age,city\n" + "\n".join(f"0.5,c{index}" for index in range(count))
    for body, kind in ((json.dumps(rows).encode(), "application/json"), (text.encode(), CSV)):
        assert len(body) > LARGE
        request = caller.http("POST", "/models/table", body, {b"content-type": kind.encode()})
        assert request.answer is None  # nothing was read yet
        await request.answered.wait()
        assert request.answer is not None
        assert request.answer.status == 200
        found = request.answer.json
        assert (found[-1] if isinstance(found, list) else {"city": found["city"][-1]})[
            "city"
        ] == f"c{count - 1}"


def test_rows_are_limited_in_number() -> None:
    from backline.dialects.bodies import json_rows

    with pytest.raises(PayloadTooLarge, match=f"more than the {MAX_ROWS} allowed"):
        json_rows.read(INPUTS, b"[" + b",".join([b"{}"] * (MAX_ROWS + 1)) + b"]")
