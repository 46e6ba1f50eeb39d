"""Small ONNX models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from support import networks


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Sequence[int | str]]],
    outputs: Sequence[tuple[str, int, Sequence[int | str]]],
    initializers: Sequence[onnx.TensorProto] = (),
) -> Path:
    """Writes a model with these nodes to `path`; inputs and outputs are (name, TensorProto type, shape)."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in initializers}
    return networks.build(path, nodes, inputs, outputs, constants, ir_version=8)


def add1(repository: Path, name: str = "add1", version: str = "1", constant: float = 1.0) -> Path:
    """y = x + constant over FP32 [N, 16]."""
    return save(
        repository / name / version / "model.onnx",
        [helper.make_node("Add", ["INPUT0", "constant"], ["OUTPUT0"])],
        [("INPUT0", TensorProto.FLOAT, ["N", 16])],
        [("OUTPUT0", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor("constant", TensorProto.FLOAT, [1], [constant])],
    )


def ident(
    repository: Path, name: str = "ident", version: str = "1", dims: Sequence[int | str] = (3, 224, 224)
) -> Path:
    """y = x over FP32 [N, *dims]; an item of the default shape has 602,112 bytes."""
    return save(
        repository / name / version / "model.onnx",
        [helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])],
        [("INPUT0", TensorProto.FLOAT, ["N", *dims])],
        [("OUTPUT0", TensorProto.FLOAT, ["N", *dims])],
    )


def identity_of(repository: Path, name: str, datatype: int, shape: Sequence[int | str] = ("N", "M")) -> Path:
    """y = x for any datatype and shape."""
    return save(
        repository / name / "1" / "model.onnx",
        [helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])],
        [("INPUT0", datatype, shape)],
        [("OUTPUT0", datatype, shape)],
    )


def slow(repository: Path, name: str = "slow", size: int = 512, layers: int = 8) -> Path:
    """A chain of matrix products over FP32 [N, size] that takes milliseconds an item."""
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [size, size], [0.001] * (size * size))
    names = ["INPUT0", *(f"hidden{i}" for i in range(layers - 1)), "OUTPUT0"]
    return save(
        repository / name / "1" / "model.onnx",
        [helper.make_node("MatMul", [names[i], "weight"], [names[i + 1]]) for i in range(layers)],
        [("INPUT0", TensorProto.FLOAT, ["N", size])],
        [("OUTPUT0", TensorProto.FLOAT, ["N", size])],
        [weight],
    )


def counted_loop(repository: Path, name: str) -> Path:
    """y = -x, computed N times in a loop, where N is an input."""
    value, flag, number = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
    turn = [
        helper.make_node("Identity", ["before"], ["after"]),
        helper.make_node("Neg", ["given"], ["kept"]),
    ]
    info = helper.make_tensor_value_info
    inputs = [info("count", number, []), info("before", flag, []), info("given", value, [1])]
    body = helper.make_graph(turn, "turn", inputs, [info("after", flag, []), info("kept", value, [1])])
    nodes = [
        helper.make_node("Squeeze", ["N"], ["most"]),
        helper.make_node("Loop", ["most", "go_on", "x"], ["y"], body=body),
    ]
    constants = [helper.make_tensor("go_on", flag, [], [True])]
    inputs_given = [("x", value, [1]), ("N", number, [1])]
    return save(repository / name / "1" / "model.onnx", nodes, inputs_given, [("y", value, [1])], constants)


def endless(repository: Path, name: str, *, grows: bool) -> Path:
    """A network with a loop that does not end; with `grows`, each turn adds 1 MiB to an output."""
    value, flag, number = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
    turn = [
        helper.make_node("Identity", ["before"], ["after"]),
        helper.make_node("Neg", ["given"], ["kept"]),
    ]
    outputs = [
        helper.make_tensor_value_info("after", flag, []),
        helper.make_tensor_value_info("kept", value, [1]),
    ]
    if grows:
        ones = helper.make_tensor("ones", value, [1], [1.0])
        turn.append(helper.make_node("ConstantOfShape", ["size"], ["part"], value=ones))
        outputs.append(helper.make_tensor_value_info("part", value, [None]))
    inputs = [
        helper.make_tensor_value_info("count", number, []),
        helper.make_tensor_value_info("before", flag, []),
        helper.make_tensor_value_info("given", value, [1]),
    ]
    body = helper.make_graph(turn, "turn", inputs, outputs)
    looped = ["Y", "parts"] if grows else ["Y"]
    nodes = [helper.make_node("Loop", ["most", "go_on", "X"], looped, body=body)]
    named = [("X", value, [1])], [("Y", value, [1])]
    if grows:
        named[1].append(("parts", value, ["turns", 1 << 18]))
    constants = [
        helper.make_tensor("most", number, [], [1 << 60]),
        helper.make_tensor("go_on", flag, [], [True]),
        helper.make_tensor("size", number, [1], [1 << 18]),
    ]
    return save(repository / name / "1" / "model.onnx", nodes, *named, constants)
