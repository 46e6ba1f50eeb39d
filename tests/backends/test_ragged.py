"""Ragged inputs and padding work with every format, without support from the backends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from backends.served_models import need
from backline.backends.backend import LoadOptions
from backline.engine.config.joining import BatchInput, Joining, Padding
from backline.engine.config.model_config import ModelConfig
from backline.lifecycle.loading.loaded_here import LoadedHere
from backline.lifecycle.loading.loader import load
from backline.lifecycle.view.join import JoinRequests
from backline_client.values.datatypes import DataType
from backline_client.values.signature import TensorSpec
from support import models

FP32 = DataType.FP32
REQUESTS = [{"INPUT__0": np.array([[1, 2, 3]], np.float32)}, {"INPUT__0": np.array([[4]], np.float32)}]
#: y = x - the number of requests, elementwise: the length of the batch input.
RAGGED = Joining(
    ragged=("INPUT__0",),
    batch_inputs=(BatchInput("BATCH_ELEMENT_COUNT", ("INPUT__1",), DataType.INT32, "INPUT__0"),),
    scattered={"OUTPUT__0": "INPUT__0"},
)
#: y = the mean of what is real.
PADDED = Joining(padding={"INPUT__0": Padding(mask="INPUT__1", value="9")})


def onnx_ragged(folder: Path) -> Path:
    nodes = [
        helper.make_node("Shape", ["INPUT__1"], ["count"]),
        helper.make_node("Cast", ["count"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["INPUT__0", "number"], ["OUTPUT__0"]),
    ]
    inputs = [("INPUT__0", TensorProto.FLOAT, ["T"]), ("INPUT__1", TensorProto.INT32, ["R"])]
    return models.save(folder / "model.onnx", nodes, inputs, [("OUTPUT__0", TensorProto.FLOAT, ["T"])])


def onnx_padded(folder: Path) -> Path:
    nodes = [
        helper.make_node("Cast", ["INPUT__1"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["INPUT__0", "real"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "last"], ["sum"]),
        helper.make_node("ReduceSum", ["real", "last"], ["count"]),
        helper.make_node("Div", ["sum", "count"], ["OUTPUT__0"]),
    ]
    inputs = [("INPUT__0", TensorProto.FLOAT, ["N", "T"]), ("INPUT__1", TensorProto.BOOL, ["N", "T"])]
    last = helper.make_tensor("last", TensorProto.INT64, [1], [1])
    return models.save(
        folder / "model.onnx", nodes, inputs, [("OUTPUT__0", TensorProto.FLOAT, ["N", 1])], [last]
    )


def torch_ragged(folder: Path) -> Path:
    need("torch")
    import torch

    class Ragged(torch.nn.Module):
        def forward(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
            return x - counts.size(0)

    torch.jit.script(Ragged()).save(str(folder / "model.pt"))
    return folder / "model.pt"


def torch_padded(folder: Path) -> Path:
    need("torch")
    import torch

    class Padded(torch.nn.Module):
        def forward(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
            return (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)

    torch.jit.script(Padded()).save(str(folder / "model.pt"))
    return folder / "model.pt"


def openvino(build: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        need("openvino")
        return build(folder)

    return made


def loaded(backend: str, path: Path, joining: Joining, output: tuple[int, ...]) -> LoadedHere:
    config = ModelConfig(
        "m",
        backend=backend,
        max_batch_size=8,
        inputs=(TensorSpec("INPUT__0", FP32, (-1,)),),
        outputs=(TensorSpec("OUTPUT__0", FP32, output),),
        joining=joining,
        source="config.pbtxt",
    )
    found = load(path, config, options=LoadOptions(may_run_code=True))
    assert isinstance(found, LoadedHere)
    return found


FORMATS = {
    "onnxruntime": (onnx_ragged, onnx_padded),
    "openvino": (openvino(onnx_ragged), openvino(onnx_padded)),
    "pytorch": (torch_ragged, torch_padded),
}


@pytest.mark.parametrize("backend", FORMATS)
def test_ragged_requests_run_together(tmp_path: Path, backend: str) -> None:
    found = loaded(backend, FORMATS[backend][0](tmp_path), RAGGED, (-1,))

    answers = found.view.stage(JoinRequests).run_together(found.model.run, REQUESTS, ["OUTPUT__0"])

    assert [answer[0].tolist() for answer in answers] == [[[-1, 0, 1]], [[2]]]
    assert [(spec.name, spec.shape) for spec in found.signature.inputs] == [("INPUT__0", (-1, -1))]
    assert [(spec.name, spec.shape) for spec in found.signature.outputs] == [("OUTPUT__0", (-1, -1))]
    found.model.close()


@pytest.mark.parametrize("backend", FORMATS)
def test_padded_requests_run_together(tmp_path: Path, backend: str) -> None:
    found = loaded(backend, FORMATS[backend][1](tmp_path), PADDED, (1,))

    answers = found.view.stage(JoinRequests).run_together(found.model.run, REQUESTS, ["OUTPUT__0"])

    assert [answer[0].tolist() for answer in answers] == [[[2]], [[4]]]
    assert [spec.name for spec in found.signature.inputs] == ["INPUT__0"]
    assert found.warnings == ()
    found.model.close()
