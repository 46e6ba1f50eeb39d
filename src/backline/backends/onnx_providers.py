"""The execution providers of an ONNX Runtime session: what computes the parts of a network, the first that can takes each.

Configured by Triton's `optimization.execution_accelerators`, or by the parameter `execution_providers`, names in order ("openvino, cpu").
Without either the CPU computes everything. The CPU always comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backline.engine.errors import InvalidArgument
from backline.engine.model_config import ModelConfig

PARAMETER = "execution_providers"
CPU = "CPUExecutionProvider"

Provider = tuple[str, dict[str, str]]

#: By the names of Triton's accelerators and their like: ONNX Runtime's name, and the package that has it.
_PROVIDERS: Mapping[str, tuple[str, str]] = {
    "cpu": (CPU, "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime on macOS"),
}
#: What Triton's TensorRT accelerator calls differently than ONNX Runtime does.
_TENSORRT_KEYS = {"max_workspace_size_bytes": "trt_max_workspace_size"}
_TENSORRT_PRECISIONS: Mapping[str, dict[str, str]] = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}


def read_providers(config: ModelConfig, available: Callable[[], Sequence[str]]) -> list[Provider]:
    """The providers to make a session with; `available` are those of the installed ONNX Runtime.

    Raises InvalidArgument for one that does not exist, or that is not installed, with the package that brings it.
    """
    wanted = _of_parameter(config) if PARAMETER in config.parameters else _of_accelerators(config)
    if not wanted:
        return [(CPU, {})]
    installed = available()
    providers: list[Provider] = []
    for name, options in wanted:
        if name not in _PROVIDERS:
            raise InvalidArgument(
                f"model '{config.name}' asks for the execution provider '{name}'; expected one of {', '.join(_PROVIDERS)}"
            )
        provider, package = _PROVIDERS[name]
        if provider not in installed:
            raise InvalidArgument(
                f"model '{config.name}' asks for the execution provider '{name}', which the installed ONNX Runtime does not have"
                f" (it has {', '.join(installed)}): pip install {package} in place of onnxruntime"
            )
        providers.append((provider, _options(config, name, options)))
    if CPU not in (provider for provider, _ in providers):
        providers.append((CPU, {}))
    return providers


def _of_parameter(config: ModelConfig) -> list[Provider]:
    return [(name.strip().lower(), {}) for name in config.parameters[PARAMETER].split(",") if name.strip()]


def _of_accelerators(config: ModelConfig) -> list[Provider]:
    if not config.declared:
        return []
    from backline.protos import message  # only for models with a configuration

    declared: Any = message("inference.ModelConfig").FromString(config.declared)
    accelerators = declared.optimization.execution_accelerators
    given = (*accelerators.gpu_execution_accelerator, *accelerators.cpu_execution_accelerator)
    return [(one.name.lower(), dict(one.parameters)) for one in given]


def _options(config: ModelConfig, name: str, given: Mapping[str, str]) -> dict[str, str]:
    """A provider's options under ONNX Runtime's names. OpenVINO computes on one core unless they say otherwise."""
    options = {"device_type": "CPU", "num_of_threads": "1"} if name == "openvino" else {}
    for key, value in given.items():
        if name == "tensorrt" and key == "precision_mode":
            if value not in _TENSORRT_PRECISIONS:
                raise InvalidArgument(
                    f"precision_mode of model '{config.name}' is '{value}', expected one of {', '.join(_TENSORRT_PRECISIONS)}"
                )
            options.update(_TENSORRT_PRECISIONS[value])
        else:
            options[_TENSORRT_KEYS.get(key, key) if name == "tensorrt" else key] = value
    return options
