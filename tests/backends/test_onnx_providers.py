"""Execution providers: Triton's accelerators and their own names, and what is not installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends.loading import load
from backline.backends.onnx_providers import CPU, read_providers
from backline.engine.errors import InvalidArgument
from backline.engine.model_config import ModelConfig
from backline.protos import message
from support.networks import FLOAT, build, floats, node

OPENVINO = "OpenVINOExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
CUDA = "CUDAExecutionProvider"
INSTALLED = [TENSORRT, CUDA, OPENVINO, CPU]


def declared(text: dict[str, list[tuple[str, dict[str, str]]]]) -> ModelConfig:
    config = message("inference.ModelConfig")()
    for kind, accelerators in text.items():
        for name, parameters in accelerators:
            added = getattr(config.optimization.execution_accelerators, f"{kind}_execution_accelerator").add(name=name)
            added.parameters.update(parameters)
    return ModelConfig("m", declared=config.SerializeToString(), source="config.pbtxt")


def test_without_a_configuration_the_cpu_computes() -> None:
    assert read_providers(ModelConfig("m"), lambda: INSTALLED) == [(CPU, {})]


def test_tritons_accelerators_keep_their_options_under_onnx_runtimes_names() -> None:
    config = declared(
        {"gpu": [("tensorrt", {"precision_mode": "FP16", "max_workspace_size_bytes": "1073741824", "trt_dump_subgraphs": "1"})]}
    )

    assert read_providers(config, lambda: INSTALLED) == [
        (TENSORRT, {"trt_fp16_enable": "1", "trt_max_workspace_size": "1073741824", "trt_dump_subgraphs": "1"}),
        (CPU, {}),
    ]


def test_accelerators_of_the_gpu_come_before_those_of_the_cpu() -> None:
    config = declared({"cpu": [("openvino", {"num_of_threads": "2"})], "gpu": [("cuda", {})]})

    assert read_providers(config, lambda: INSTALLED) == [
        (CUDA, {}),
        (OPENVINO, {"device_type": "CPU", "num_of_threads": "2"}),
        (CPU, {}),
    ]


def test_a_parameter_names_providers_in_order() -> None:
    config = ModelConfig("m", parameters={"execution_providers": "CUDA, cpu"})

    assert read_providers(config, lambda: INSTALLED) == [(CUDA, {}), (CPU, {})]


def test_a_provider_that_does_not_exist_is_told_those_that_do() -> None:
    with pytest.raises(InvalidArgument, match="asks for the execution provider 'abacus'; expected one of cpu, cuda"):
        read_providers(ModelConfig("m", parameters={"execution_providers": "abacus"}), lambda: INSTALLED)


def test_a_precision_that_does_not_exist_is_told_those_that_do() -> None:
    with pytest.raises(InvalidArgument, match="precision_mode of model 'm' is 'FP8', expected one of FP32, FP16, INT8"):
        read_providers(declared({"gpu": [("tensorrt", {"precision_mode": "FP8"})]}), lambda: INSTALLED)


def test_a_provider_that_is_not_installed_is_told_with_the_package_that_has_it(tmp_path: Path) -> None:
    build(tmp_path / "model.onnx", [node("Identity", ["X"], ["Y"])], [("X", FLOAT, ["N"])], [("Y", FLOAT, ["N"])])

    with pytest.raises(InvalidArgument, match=r"'coreml', which the installed ONNX Runtime does not have \(it has .*CPUExecutionProvider"):
        load(tmp_path / "model.onnx", parameters={"execution_providers": "coreml"})


def test_openvino_computes_what_the_cpu_computes(tmp_path: Path) -> None:
    import onnxruntime

    if OPENVINO not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no OpenVINO (it comes with onnxruntime-openvino, in place of onnxruntime)")
    build(
        tmp_path / "model.onnx",
        [node("MatMul", ["X", "W"], ["Y"])],
        [("X", FLOAT, ["N", 4])],
        [("Y", FLOAT, ["N", 3])],
        {"W": floats(4, 3)},
    )
    model = load(tmp_path / "model.onnx", parameters={"execution_providers": "openvino"})

    np.testing.assert_allclose(model.run({"X": floats(2, 4)}, ["Y"])[0], floats(2, 4) @ floats(4, 3), rtol=1e-4)
