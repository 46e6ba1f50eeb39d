"""An ensemble of three ONNX models that reads a picture: detect a place, crop it, classify the crop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from backline_client.values.datatypes import DataType
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor
from support.embedded import AwaitedTicket

SIDE = 8
CUT = 4


def put(
    repository: Path, name: str, nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray]
) -> None:
    """Writes an ONNX model with these nodes."""
    tensors = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def detector(repository: Path) -> None:
    """The brightest place in an image: the maximum after a smoothing convolution."""
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["smooth"], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["smooth"], ["flat"]),
        helper.make_node("ArgMax", ["flat"], ["place"], axis=1, keepdims=1),
        helper.make_node("ReduceMax", ["flat"], ["score"], axes=[1], keepdims=1),
    ]
    outputs = [helper.make_tensor_value_info("place", TensorProto.INT64, ["b", 1]), floats("score", "b", 1)]
    put(
        repository,
        "detect",
        nodes,
        [floats("image", "b", 1, SIDE, SIDE)],
        outputs,
        {"kernel": np.ones((1, 1, 3, 3), np.float32)},
    )


def cropper(repository: Path) -> None:
    """The CUT pixels from a place on, in row order."""
    nodes = [
        helper.make_node("Reshape", ["image", "rows"], ["flat"]),
        helper.make_node("Add", ["place", "steps"], ["wanted"]),
        helper.make_node("Min", ["wanted", "last"], ["within"]),
        helper.make_node("GatherElements", ["flat", "within"], ["crop"], axis=1),
    ]
    inputs = [
        floats("image", "b", 1, SIDE, SIDE),
        helper.make_tensor_value_info("place", TensorProto.INT64, ["b", 1]),
    ]
    constants = {
        "rows": np.array([-1, SIDE * SIDE]),
        "steps": np.arange(CUT)[None],
        "last": np.array([SIDE * SIDE - 1]),
    }
    put(repository, "crop", nodes, inputs, [floats("crop", "b", CUT)], constants)


def recogniser(repository: Path) -> None:
    """Probabilities of two classes, dark and bright."""
    weights = np.stack([-np.ones(CUT, np.float32), np.ones(CUT, np.float32)], axis=1)
    nodes = [
        helper.make_node("MatMul", ["crop", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["classes"], axis=1),
    ]
    put(
        repository,
        "recognise",
        nodes,
        [floats("crop", "b", CUT)],
        [floats("classes", "b", 2)],
        {"weights": weights},
    )


READ = f"""
platform: "ensemble"
max_batch_size: 8
input {{ name: "picture" data_type: TYPE_FP32 dims: [ 1, {SIDE}, {SIDE} ] }}
output {{ name: "text" data_type: TYPE_FP32 dims: [ 2 ] }}
output {{ name: "found" data_type: TYPE_FP32 dims: [ 1 ] }}
ensemble_scheduling {{
  step {{ model_name: "detect" model_version: -1
    input_map {{ key: "image" value: "picture" }} output_map {{ key: "place" value: "where" }}
    output_map {{ key: "score" value: "found" }} }}
  step {{ model_name: "crop" model_version: 1
    input_map {{ key: "image" value: "picture" }} input_map {{ key: "place" value: "where" }}
    output_map {{ key: "crop" value: "cut" }} }}
  step {{ model_name: "recognise" model_version: -1
    input_map {{ key: "crop" value: "cut" }} output_map {{ key: "classes" value: "text" }} }}
}}
"""


def reader(repository: Path) -> Path:
    detector(repository)
    cropper(repository)
    recogniser(repository)
    (repository / "read" / "1").mkdir(parents=True)
    (repository / "read" / "config.pbtxt").write_text(READ)
    return repository


def expected(pictures: np.ndarray) -> np.ndarray:
    """The ensemble's answer, computed with NumPy."""
    rows = []
    for picture in pictures[:, 0]:
        padded = np.pad(picture, 1)
        smooth = sum(padded[y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3))
        places = np.minimum(np.argmax(smooth) + np.arange(CUT), SIDE * SIDE - 1)
        total = picture.reshape(-1)[places].sum()
        logits = np.array([-total, total])
        rows.append(np.exp(logits) / np.exp(logits).sum())
    return np.array(rows, np.float32)


class Asked(AwaitedTicket):
    """A request to the ensemble, and the future of its answer."""

    def __init__(self, picture: np.ndarray, outputs: tuple[str, ...] | None = None) -> None:
        tensor = Tensor("picture", DataType.FP32, picture.shape, picture)
        super().__init__(InferRequest("read", {"picture": tensor}, outputs=outputs, id="mine"))
