"""Kinds of ONNX files that exist in the wild: quantised, larger than protobuf allows, with types that no
request can carry.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from backends.loading import load
from backline.plugins.runtimes.onnx import external_data
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from support.networks import FLOAT, INT64, build, floats, node


def _value(name: str, kind: onnx.TypeProto) -> onnx.ValueInfoProto:
    return helper.make_value_info(name, kind)


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> Path:
    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def test_a_sequence_is_refused_by_the_name_of_the_input(tmp_path: Path) -> None:
    tensor = helper.make_tensor_type_proto(FLOAT, ["N"])
    inputs = [_value("parts", helper.make_sequence_type_proto(tensor))]
    path = _save(
        tmp_path / "model.onnx",
        [node("ConcatFromSequence", ["parts"], ["Y"], axis=0)],
        inputs,
        [_value("Y", tensor)],
    )

    with pytest.raises(
        InvalidArgument,
        match=r"model.onnx' cannot be served: input 'parts' is a seq\(tensor\(float\)\), which no request",
    ):
        load(path)


def test_an_optional_is_refused_by_the_name_of_the_input(tmp_path: Path) -> None:
    tensor = helper.make_tensor_type_proto(FLOAT, ["N"])
    inputs = [_value("maybe", helper.make_optional_type_proto(tensor))]
    path = _save(
        tmp_path / "model.onnx", [node("OptionalGetElement", ["maybe"], ["Y"])], inputs, [_value("Y", tensor)]
    )

    with pytest.raises(
        InvalidArgument, match=r"model.onnx' cannot be served: input 'maybe' is a optional\(tensor\(float\)\)"
    ):
        load(path)


def test_an_unknown_operator_is_reported(tmp_path: Path) -> None:
    path = build(
        tmp_path / "model.onnx",
        [node("Transmogrify", ["X"], ["Y"])],
        [("X", FLOAT, ["N"])],
        [("Y", FLOAT, ["N"])],
    )

    with pytest.raises(InvalidArgument, match=r"model.onnx' cannot be loaded by ONNX Runtime .*Transmogrify"):
        load(path)


def test_int8_weights_compute_the_values_they_represent(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["X", "scale", "zero"], ["quantised"]),
        node("MatMulInteger", ["quantised", "W", "zero"], ["sum"]),
        node("Cast", ["sum"], ["Y"], to=FLOAT),
    ]
    weights = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
    constants = {"scale": np.array(0.5, np.float32), "zero": np.array(128, np.uint8), "W": weights}
    model = load(
        build(tmp_path / "model.onnx", nodes, [("X", FLOAT, ["N", 4])], [("Y", FLOAT, ["N", 3])], constants)
    )
    x = np.array([[0.5, 1.0, -1.5, 2.0]], np.float32)

    np.testing.assert_allclose(model.run({"X": x}, ["Y"])[0], (x / 0.5) @ weights)


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8])
def test_int8_inputs_and_outputs_are_served_as_they_are(kind: int, tmp_path: Path) -> None:
    model = load(
        build(
            tmp_path / "model.onnx",
            [node("Identity", ["X"], ["Y"])],
            [("X", kind, ["N"])],
            [("Y", kind, ["N"])],
        )
    )

    assert model.signature.inputs[0].datatype in (DataType.INT8, DataType.UINT8)
    assert model.run({"X": np.array([1, 2], model.signature.inputs[0].datatype.dtype)}, ["Y"])[
        0
    ].tolist() == [1, 2]


def test_a_model_of_more_than_two_gigabytes_is_served_from_external_data(tmp_path: Path) -> None:
    rows, columns = 9 * 1024 * 1024, 64  # of floats: 2.25 GiB, above what one protobuf message can hold
    last = floats(columns)
    with (tmp_path / "weights.bin").open("wb") as file:  # a hole, but for its end
        file.seek((rows - 1) * columns * 4)
        file.write(last.tobytes())
    table = TensorProto(
        name="table", data_type=FLOAT, dims=[rows, columns], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(rows * columns * 4))):
        table.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [node("Gather", ["table", "index"], ["row"])],
        "graph",
        [helper.make_tensor_value_info("index", INT64, ["N"])],
        [helper.make_tensor_value_info("row", FLOAT, ["N", columns])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    (row,) = load(tmp_path / "model.onnx").run({"index": np.array([rows - 1, 0])}, ["row"])

    np.testing.assert_array_equal(row, np.stack([last, np.zeros(columns, np.float32)]))


def lookup(path: Path, table: np.ndarray) -> Path:
    """Writes a model that returns rows of a table."""
    return build(
        path,
        [node("Gather", ["table", "index"], ["row"])],
        [("index", INT64, ["N"])],
        [("row", FLOAT, ["N", table.shape[1]])],
        {"table": table},
    )


def test_weights_of_a_loaded_model_do_not_change_with_their_file(tmp_path: Path) -> None:
    table = floats(1000, 64)
    index = np.array([999], np.int64)
    path = lookup(tmp_path / "a.onnx", table)
    onnx.save_model(onnx.load(path), tmp_path / "b.onnx", save_as_external_data=True, location="weights.bin")
    model = load(tmp_path / "b.onnx")

    with (tmp_path / "weights.bin").open("r+b") as file:
        file.write(bytes(table.nbytes))
        file.flush()
        np.testing.assert_array_equal(model.run({"index": index}, ["row"])[0], table[999:])
        file.truncate(0)
        np.testing.assert_array_equal(model.run({"index": index}, ["row"])[0], table[999:])


def test_a_file_that_is_shortened_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_data, "_READ_WHOLE", 1000)
    table = floats(100, 200)
    path = lookup(tmp_path / "model.onnx", table)
    check = external_data._check_top_level

    def shorten(path: Path, content: Any) -> None:
        os.truncate(path, 4096)
        check(path, content)

    monkeypatch.setattr(external_data, "_check_top_level", shorten)
    with pytest.raises(InvalidArgument, match="is truncated"):
        load(path)


def test_missing_external_data_is_reported(tmp_path: Path) -> None:
    table = TensorProto(name="table", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    table.external_data.add(key="location", value="gone.bin")
    graph = helper.make_graph(
        [node("Add", ["X", "table"], ["Y"])],
        "graph",
        [helper.make_tensor_value_info("X", FLOAT, [4])],
        [helper.make_tensor_value_info("Y", FLOAT, [4])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    with pytest.raises(InvalidArgument, match=r"model.onnx' cannot be loaded by ONNX Runtime .*gone\.bin"):
        load(tmp_path / "model.onnx")


def test_a_name_that_is_not_utf_8_is_refused_with_a_reason(tmp_path: Path) -> None:
    value = ("X", FLOAT, ["side"])
    path = build(tmp_path / "model.onnx", [node("Identity", ["X"], ["Y"])], [value], [("Y", FLOAT, ["side"])])
    path.write_bytes(path.read_bytes().replace(b"side", b"\x8f\x8f\x8f\x8f"))
    with pytest.raises(InvalidArgument, match=r"cannot be loaded by ONNX Runtime .*utf-8"):
        load(path)
