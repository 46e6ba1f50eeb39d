"""Chooses the execution providers of an ONNX Runtime session.

Each part of a network runs on the first provider that supports it. Providers are configured by Triton's
`optimization.execution_accelerators`, or by the parameter `execution_providers`, a list of names in order
("openvino, cpu"). The default for instances on GPUs is CUDA. The CPU's provider comes last, unless the
list names it earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from backline.backends.runtime import cuda_gpus
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Device, Gpus
from backline_client.values.errors import InvalidArgument

PARAMETER = "execution_providers"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

Provider = tuple[str, dict[str, str]]


#: For each name used in configurations, ONNX Runtime's name of the provider and the package that contains it.
#: The package is "" if only ONNX Runtime for macOS contains the provider.
_PROVIDERS: Mapping[str, tuple[str, str]] = {
    "cpu": (CPU, "onnxruntime"),
    "cuda": (CUDA, "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "coreml": ("CoreMLExecutionProvider", ""),
}
#: Providers that compute on the instance's GPU.
_ON_GPUS = ("cuda", "tensorrt")
#: Options of Triton's TensorRT accelerator that ONNX Runtime names differently.
_TENSORRT_KEYS = {"max_workspace_size_bytes": "trt_max_workspace_size"}
_TENSORRT_PRECISIONS: Mapping[str, dict[str, str]] = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}
_DEVICE = "device_id"
#: Options that need tensors at the same addresses in every run, which requests cannot guarantee.
_GRAPHS = ("enable_cuda_graph", "trt_cuda_graph_enable")


def read_providers(
    config: ModelConfig, installed: Sequence[str], device: Device, why_no_gpu: Callable[[], str]
) -> list[Provider]:
    """Returns the providers for a session on a device, in order of preference.

    `installed` names the providers of the installed ONNX Runtime. `why_no_gpu` returns why ONNX Runtime
    cannot use a GPU, or "" if it can. As in Triton, accelerators for GPUs apply only to instances on GPUs.
    Raises InvalidArgument for a provider that is unknown, is not installed (the error names its package), or
    computes on another device.
    """
    providers: list[Provider] = []
    for name, options in _wanted(config, device):
        if name not in _PROVIDERS:
            raise InvalidArgument(
                f"model '{config.name}' asks for the execution provider '{name}'; expected one of"
                f" {', '.join(_PROVIDERS)}"
            )
        provider, package = _PROVIDERS[name]
        if provider not in installed:
            where = (
                f"pip install {package} in place of onnxruntime"
                if package
                else "only ONNX Runtime for macOS has it"
            )
            raise InvalidArgument(
                f"model '{config.name}' asks for the execution provider '{name}', which the installed ONNX"
                f" Runtime does not have (it has {', '.join(installed)}): {where}"
            )
        if name in _ON_GPUS and device.kind == "cpu":
            raise InvalidArgument(
                f"model '{config.name}' asks for the execution provider '{name}', but its instances are on"
                f" the CPU: {why_no_gpu() or 'its instance_group says KIND_CPU'}"
            )
        providers.append((provider, _options(config, name, options, device)))
    if CPU not in (provider for provider, _ in providers):
        providers.append((CPU, {}))
    return providers


def why_on_no_gpu(config: ModelConfig, installed: Sequence[str]) -> str:
    """Returns why sessions of a model cannot use any GPU; "" if sessions can use one."""
    if PARAMETER in config.parameters and not any(name in _ON_GPUS for name, _ in _of_parameter(config)):
        return f"its parameter {PARAMETER} is '{config.parameters[PARAMETER]}'"
    if CUDA not in installed:
        return (
            f"the installed ONNX Runtime has no {CUDA} (it has {', '.join(installed)}): pip install"
            " onnxruntime-gpu in place of onnxruntime"
        )
    return ""


def idle_accelerators(config: ModelConfig) -> str:
    """Returns the names of accelerators configured for GPUs, which have no effect on the CPU; "" if none."""
    return "" if PARAMETER in config.parameters else ", ".join(name for name, _ in _accelerators(config)[0])


def _wanted(config: ModelConfig, device: Device) -> list[Provider]:
    if PARAMETER in config.parameters:
        wanted = _of_parameter(config)
        on_gpus = [name for name, _ in wanted if name in _ON_GPUS]
        if device.kind == "gpu" and not on_gpus:
            raise InvalidArgument(
                f"model '{config.name}' is configured to run on {device}, but {PARAMETER} names none of"
                f" {', '.join(_ON_GPUS)}; add one of them"
            )
        return wanted
    of_gpu, of_cpu = _accelerators(config)
    if device.kind == "cpu":
        return of_cpu
    if device.kind == "gpu" and "cuda" not in (name for name, _ in of_gpu):
        of_gpu = [*of_gpu, ("cuda", {})]
    return [*of_gpu, *of_cpu]


def _of_parameter(config: ModelConfig) -> list[Provider]:
    return [(name.strip().lower(), {}) for name in config.parameters[PARAMETER].split(",") if name.strip()]


def _accelerators(config: ModelConfig) -> tuple[list[Provider], list[Provider]]:
    """Returns the accelerators for GPUs, and the accelerators for the CPU."""
    if not config.declared:
        return [], []
    from backline_client.protos import message  # imported late, as only models with a configuration need it

    declared: Any = message("inference.ModelConfig").FromString(config.declared)
    given = declared.optimization.execution_accelerators
    of_gpu, of_cpu = (
        [(one.name.lower(), dict(one.parameters)) for one in ones]
        for ones in (given.gpu_execution_accelerator, given.cpu_execution_accelerator)
    )
    return of_gpu, of_cpu


def _options(config: ModelConfig, name: str, given: Mapping[str, str], device: Device) -> dict[str, str]:
    """Returns a provider's options under ONNX Runtime's names. OpenVINO uses one core by default."""
    options = {"device_type": "CPU", "num_of_threads": "1"} if name == "openvino" else {}
    if name in _ON_GPUS and device.kind == "gpu":
        if _DEVICE in given:
            raise InvalidArgument(
                f"model '{config.name}' sets {_DEVICE} for '{name}'; remove it, and choose the GPU in"
                " instance_group, with kind KIND_GPU and gpus"
            )
        options[_DEVICE] = str(device.index)
    for key, value in given.items():
        if key in _GRAPHS and value not in ("0", "false", "False"):
            raise InvalidArgument(
                f"model '{config.name}' sets {key} for '{name}', but this option needs tensors at fixed"
                " addresses, which requests do not have; remove it"
            )
        if name == "tensorrt" and key == "precision_mode":
            if value not in _TENSORRT_PRECISIONS:
                raise InvalidArgument(
                    f"precision_mode of model '{config.name}' is '{value}', expected one of"
                    f" {', '.join(_TENSORRT_PRECISIONS)}"
                )
            options.update(_TENSORRT_PRECISIONS[value])
        else:
            options[_TENSORRT_KEYS.get(key, key) if name == "tensorrt" else key] = value
    return options


#: An ONNX model with a single node, Identity, on an FP32 tensor of shape [1].
_TINY = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a080801"
    "12040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)


@cache
def installed_providers(runtime: Any) -> tuple[str, ...]:
    """Returns the names of the providers that the runtime was built with."""
    return tuple(runtime.get_available_providers())


@cache
def usable_gpus(runtime: Any) -> Gpus:
    """Returns the GPUs; none if a session on the first GPU fails, as it does without CUDA's libraries."""
    gpus = cuda_gpus()
    if gpus.indexes and (preload := getattr(runtime, "preload_dlls", None)) is not None:
        preload()  # loads CUDA from its Python packages, which are outside the system's search path
    if gpus.indexes and not can_use(runtime, (CUDA, {"device_id": str(gpus.indexes[0])})):
        return Gpus(
            reason=f"the {CUDA} of ONNX Runtime {runtime.__version__} cannot be used:"
            " CUDA or cuDNN is missing, or is not the version"
            " that it was built for (pip install 'onnxruntime-gpu[cuda,cudnn]')"
        )
    return gpus


def can_use(runtime: Any, provider: Provider) -> bool:
    """Returns whether a session can use a provider. If not, ONNX Runtime would only log a fallback to the
    CPU.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # fatal
    try:
        session = runtime.InferenceSession(_TINY, options, providers=[provider])
    except Exception:
        return False
    return provider[0] in session.get_providers()
