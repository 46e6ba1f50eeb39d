"""Execution providers: by Triton's accelerators, by name, and missing ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends.loading import load
from backline.backends.backend import LoadOptions
from backline.backends.runtime import cuda_gpus
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import CPU as PROCESSOR
from backline.engine.device import Device
from backline.plugins.runtimes.onnx.providers import CPU, Provider, can_use, read_providers, why_on_no_gpu
from backline.plugins.runtimes.onnx.runtime import OnnxRuntime
from backline_client.protos import message
from backline_client.values.errors import InvalidArgument
from support.networks import FLOAT, build, floats, node

OPENVINO = "OpenVINOExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
CUDA = "CUDAExecutionProvider"
INSTALLED = [TENSORRT, CUDA, OPENVINO, CPU]


def declared(text: dict[str, list[tuple[str, dict[str, str]]]]) -> ModelConfig:
    config = message("inference.ModelConfig")()
    for kind, accelerators in text.items():
        for name, parameters in accelerators:
            added = getattr(config.optimization.execution_accelerators, f"{kind}_execution_accelerator").add(
                name=name
            )
            added.parameters.update(parameters)
    return ModelConfig("m", declared=config.SerializeToString(), source="config.pbtxt")


GPU = Device("gpu", 1)


def providers(config: ModelConfig, device: Device = GPU) -> list[Provider]:
    return read_providers(config, INSTALLED, device, lambda: "there is no driver")


def test_by_default_the_cpu_uses_its_own_provider_and_a_gpu_cuda() -> None:
    assert providers(ModelConfig("m"), PROCESSOR) == [(CPU, {})]
    assert providers(ModelConfig("m")) == [(CUDA, {"device_id": "1"}), (CPU, {})]


def test_tritons_accelerators_keep_their_options_under_onnx_runtimes_names() -> None:
    config = declared(
        {
            "gpu": [
                (
                    "tensorrt",
                    {
                        "precision_mode": "FP16",
                        "max_workspace_size_bytes": "1073741824",
                        "trt_dump_subgraphs": "1",
                    },
                )
            ]
        }
    )

    assert providers(config) == [
        (
            TENSORRT,
            {
                "device_id": "1",
                "trt_fp16_enable": "1",
                "trt_max_workspace_size": "1073741824",
                "trt_dump_subgraphs": "1",
            },
        ),
        (CUDA, {"device_id": "1"}),
        (CPU, {}),
    ]


def test_accelerators_of_the_gpu_come_before_those_of_the_cpu() -> None:
    config = declared(
        {
            "cpu": [("openvino", {"num_of_threads": "2"})],
            "gpu": [("cuda", {"cudnn_conv_algo_search": "HEURISTIC"})],
        }
    )

    assert providers(config) == [
        (CUDA, {"device_id": "1", "cudnn_conv_algo_search": "HEURISTIC"}),
        (OPENVINO, {"device_type": "CPU", "num_of_threads": "2"}),
        (CPU, {}),
    ]


def test_accelerators_of_the_gpu_are_left_out_on_the_cpu() -> None:
    config = declared({"cpu": [("openvino", {})], "gpu": [("tensorrt", {})]})

    assert providers(config, PROCESSOR) == [
        (OPENVINO, {"device_type": "CPU", "num_of_threads": "1"}),
        (CPU, {}),
    ]


def test_a_parameter_names_providers_in_order() -> None:
    config = ModelConfig("m", parameters={"execution_providers": "CUDA, cpu"})

    assert providers(config) == [(CUDA, {"device_id": "1"}), (CPU, {})]


def test_kind_model_uses_the_configured_providers() -> None:
    config = declared({"gpu": [("cuda", {"device_id": "3"})]})

    assert providers(config, Device("model")) == [(CUDA, {"device_id": "3"}), (CPU, {})]


@pytest.mark.parametrize(
    ("config", "device", "message"),
    [
        (
            ModelConfig("m", parameters={"execution_providers": "abacus"}),
            GPU,
            "to run on GPU 1, but execution_providers names none of cuda",
        ),
        (
            ModelConfig("m", parameters={"execution_providers": "abacus"}),
            PROCESSOR,
            "'abacus'; expected one of cpu, cuda",
        ),
        (
            ModelConfig("m", parameters={"execution_providers": "cuda"}),
            PROCESSOR,
            "provider 'cuda', but its instances are on the CPU: there is no driver",
        ),
        (
            declared({"gpu": [("tensorrt", {"precision_mode": "FP8"})]}),
            GPU,
            "'m' is 'FP8', expected one of FP32, FP16, INT8",
        ),
        (
            declared({"gpu": [("cuda", {"device_id": "0"})]}),
            GPU,
            "sets device_id for 'cuda'; remove it, and choose the GPU in instance_group",
        ),
        (
            declared({"gpu": [("cuda", {"enable_cuda_graph": "1"})]}),
            GPU,
            "sets enable_cuda_graph for 'cuda', but this option needs tensors at fixed addresses",
        ),
    ],
)
def test_impossible_providers_are_refused(config: ModelConfig, device: Device, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        providers(config, device)


@pytest.mark.parametrize(
    ("parameters", "installed", "reason"),
    [
        (
            {},
            [CPU],
            (
                "the installed ONNX Runtime has no CUDAExecutionProvider (it has CPUExecutionProvider): pip"
                " install onnxruntime-gpu"
            ),
        ),
        ({"execution_providers": "openvino"}, INSTALLED, "its parameter execution_providers is 'openvino'"),
        ({"execution_providers": "tensorrt,cpu"}, INSTALLED, ""),
        ({}, INSTALLED, ""),
    ],
)
def test_the_reason_for_no_gpu_is_given(
    parameters: dict[str, str], installed: list[str], reason: str
) -> None:
    assert why_on_no_gpu(ModelConfig("m", parameters=parameters), installed).startswith(reason)
    assert bool(why_on_no_gpu(ModelConfig("m", parameters=parameters), installed)) == bool(reason)


def test_a_provider_can_be_used_where_a_session_gets_it() -> None:
    """Here these are the CPU's, and Azure's or OpenVINO's; CUDA's needs a GPU."""
    import onnxruntime

    others = [name for name in onnxruntime.get_available_providers() if name not in (CUDA, TENSORRT)]
    assert len(others) > 1 or CUDA in onnxruntime.get_available_providers()
    assert all(can_use(onnxruntime, (name, {})) for name in others)
    assert can_use(onnxruntime, (CUDA, {})) == bool(
        cuda_gpus().indexes and CUDA in onnxruntime.get_available_providers()
    )


def test_an_accelerator_of_a_gpu_is_warned_about_on_the_cpu_and_refused_by_a_strict_server(
    tmp_path: Path,
) -> None:
    build(
        tmp_path / "model.onnx",
        [node("Identity", ["X"], ["Y"])],
        [("X", FLOAT, ["N"])],
        [("Y", FLOAT, ["N"])],
    )
    config = declared({"gpu": [("tensorrt", {})]})
    reason = "model 'm' asks for the GPU accelerator tensorrt, but runs on the CPU"

    assert OnnxRuntime().load(tmp_path / "model.onnx", config).warnings == (
        f"{reason}, where it has no effect",
    )
    with pytest.raises(InvalidArgument, match=reason):
        OnnxRuntime().load(tmp_path / "model.onnx", config, LoadOptions(strict_devices=True))


def test_a_missing_provider_is_reported_with_where_it_is(tmp_path: Path) -> None:
    build(
        tmp_path / "model.onnx",
        [node("Identity", ["X"], ["Y"])],
        [("X", FLOAT, ["N"])],
        [("Y", FLOAT, ["N"])],
    )

    with pytest.raises(
        InvalidArgument,
        match=r"'coreml', which the installed ONNX Runtime does not have \(it has .*CPUExecutionProvider.*\):"
        r" only ONNX Runtime for macOS has it$",
    ):
        load(tmp_path / "model.onnx", parameters={"execution_providers": "coreml"})


def test_openvino_computes_the_same_as_the_cpu(tmp_path: Path) -> None:
    import onnxruntime

    if OPENVINO not in onnxruntime.get_available_providers():
        pytest.skip(
            "this ONNX Runtime has no OpenVINO (it comes with onnxruntime-openvino, in place of onnxruntime)"
        )
    build(
        tmp_path / "model.onnx",
        [node("MatMul", ["X", "W"], ["Y"])],
        [("X", FLOAT, ["N", 4])],
        [("Y", FLOAT, ["N", 3])],
        {"W": floats(4, 3)},
    )
    model = load(tmp_path / "model.onnx", parameters={"execution_providers": "openvino"})

    np.testing.assert_allclose(
        model.run({"X": floats(2, 4)}, ["Y"])[0], floats(2, 4) @ floats(4, 3), rtol=1e-4
    )
