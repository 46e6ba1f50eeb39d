"""Small ONNX networks that tests build as they run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64
STRING = TensorProto.STRING

Dims = Sequence[str | int | None] | None
Value = tuple[str, int, Dims]

node = helper.make_node


def build(
    path: Path,
    nodes: Sequence[NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    constants: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 10,
) -> Path:
    """Writes a network of `nodes`; `dims` of None leaves the rank unspecified."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """Random weights."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def looping(path: Path, shape: tuple[int | str, ...] = ("N",), *, in_branch: bool = False) -> None:
    """Writes a model with output Y = X, FP32 of `shape`, negated max(ROUNDS) times; ROUNDS is INT64 [N].

    With `in_branch`, the loop is in a branch that runs if max(ROUNDS) is above 0.
    """
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["goes_on"]), helper.make_node("Neg", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("round", INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["ROUNDS"], ["most"], keepdims=0),
        helper.make_node("Loop", ["most", "", "X"], ["Y"], body=body),
    ]
    if in_branch:
        info = helper.make_tensor_value_info("Y", FLOAT, shape)
        without = [helper.make_node("Identity", ["X"], ["Y"])]
        branches = [helper.make_graph(part, "branch", [], [info]) for part in (nodes[1:], without)]
        nodes[1:] = [
            helper.make_node("Greater", ["most", "zero"], ["some"]),
            helper.make_node("If", ["some"], ["Y"], then_branch=branches[0], else_branch=branches[1]),
        ]
    inputs: list[Value] = [("X", FLOAT, shape), ("ROUNDS", INT64, ("N",))]
    build(path, nodes, inputs, [("Y", FLOAT, shape)], {"zero": np.array(0, np.int64)} if in_branch else None)
    onnx.checker.check_model(str(path))
