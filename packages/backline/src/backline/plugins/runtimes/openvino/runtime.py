"""Models in OpenVINO's format, and ONNX, TensorFlow and LiteRT models if configured for OpenVINO."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, ClassVar

import numpy as np

from backline.backends.agreement import agree
from backline.backends.backend import DEFAULT_OPTIONS, LOOPS, LoadOptions
from backline.backends.parameters import Parameters
from backline.backends.runtime import (
    MOST_READ,
    decode,
    encode,
    failed_run,
    import_runtime,
    loading,
    one_line,
    read_start,
    unservable,
)
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import CPU, Device, Gpus
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal, InvalidArgument
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Shape

_DATATYPES = {
    "boolean": DataType.BOOL,
    "u8": DataType.UINT8,
    "u16": DataType.UINT16,
    "u32": DataType.UINT32,
    "u64": DataType.UINT64,
    "i8": DataType.INT8,
    "i16": DataType.INT16,
    "i32": DataType.INT32,
    "i64": DataType.INT64,
    "f16": DataType.FP16,
    "f32": DataType.FP32,
    "f64": DataType.FP64,
    "string": DataType.BYTES,
}
#: Parameters that are passed on as OpenVINO properties of the same name, as in Triton's backend.
_PROPERTIES = (
    "NUM_STREAMS",
    "PERFORMANCE_HINT",
    "INFERENCE_PRECISION_HINT",
    "CACHE_DIR",
    "ENABLE_HYPER_THREADING",
)
_THREADS = "INFERENCE_NUM_THREADS"
_LOOPS = frozenset({"Loop", "TensorIterator"})


class OpenVino:
    """The backend for `*.xml` with `*.bin` files, and for ONNX, SavedModel or LiteRT if configured."""

    name: ClassVar[str] = "openvino"

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        """Returns the GPUs, to be used only if configured, because most are integrated and no faster than the
        CPU.

        See GpuBackend.
        """
        core = import_openvino().Core()
        indexes = gpu_indexes(core.available_devices)
        if not indexes:
            return Gpus(
                reason=f"OpenVINO finds no GPU on this machine, only {', '.join(core.available_devices)}",
                by_default=False,
            )
        return Gpus(indexes, by_default=False)

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> OpenVinoModel:
        """Loads a model and compiles it for a device; with KIND_MODEL, OpenVINO chooses the device (AUTO).

        A run on the CPU uses one core unless INFERENCE_NUM_THREADS is set. A run computes in FP32 unless
        INFERENCE_PRECISION_HINT is set, because OpenVINO's default, BF16 where supported, gives results that
        differ from those of other runtimes.
        """
        runtime = import_openvino()
        parameters = Parameters(config, self.name, (_THREADS, *_PROPERTIES))
        threads = parameters.threads(_THREADS, 1)
        if not path.is_dir():
            read_start(path)
            weights = path.with_suffix(".bin")
            if path.suffix == ".xml" and not weights.exists():
                raise InvalidArgument(
                    f"'{path}' needs its weights next to it: '{weights}' does not exist; copy this file too"
                )
        # A stream computes one request at a time. OpenVINO's thread count is the total of all streams.
        streams = int(parameters.threads("NUM_STREAMS", max(1, (os.cpu_count() or 1) // threads)))
        properties = {
            "INFERENCE_PRECISION_HINT": "f32",
            **{key: config.parameters[key] for key in _PROPERTIES if key in config.parameters},
        }
        if options.device == CPU:
            properties |= {
                "ENABLE_CPU_PINNING": "NO",
                _THREADS: str(threads * streams),
                "NUM_STREAMS": str(streams),
            }
        core = runtime.Core()
        if _size_of_files(path) <= MOST_READ:
            # By default, OpenVINO maps the weights for as long as the model is loaded. If another program
            # then overwrote their file, the weights of the served model would change, and if the file became
            # shorter, the kernel would kill the server with SIGBUS.
            core.set_property({"ENABLE_MMAP": False})
        with loading(path, f"OpenVINO {runtime.__version__}"):
            network = core.read_model(str(path))
            file = Signature(_specs(path, "input", network.inputs), _specs(path, "output", network.outputs))
            unbounded = LOOPS if _has_loop(network) else ""
            compiled = core.compile_model(network, _device_name(options.device), properties)
        signature = agree(path, file, config)
        return OpenVinoModel(config.name, compiled, file, signature, threads, parameters.warnings, unbounded)


def _size_of_files(path: Path) -> int:
    """Returns the total size, in bytes, of all files in a model's folder, or in the folder of its file."""
    folder = path if path.is_dir() else path.parent
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class OpenVinoModel:
    """A compiled model and its idle infer requests, each of which holds the tensors of one run."""

    def __init__(
        self,
        name: str,
        compiled: Any,
        file: Signature,
        signature: Signature,
        threads: int,
        warnings: tuple[str, ...],
        unbounded: str,
    ) -> None:
        self._name = name
        self._compiled = compiled
        self._inputs = {spec.name: index for index, spec in enumerate(file.inputs)}
        self._texts = frozenset(spec.name for spec in file.inputs if spec.datatype is DataType.BYTES)
        self._outputs = {spec.name: index for index, spec in enumerate(file.outputs)}
        self._idle: SimpleQueue[Any] = SimpleQueue()
        self.signature = signature
        self.threads_per_run = threads
        self.warnings = warnings
        #: See UnboundedModel.
        self.unbounded = unbounded

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        if self._compiled is None:
            raise Internal(f"model '{self._name}' is unloaded: load it again to use it")
        feed = {
            self._inputs[name]: decode(self._name, name, array).astype(str) if name in self._texts else array
            for name, array in inputs.items()
        }
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        try:
            request.infer(feed, share_inputs=True)
            # Outputs are copied, because the next run overwrites the tensors of the infer request.
            return [self._read(request, self._outputs[name]) for name in outputs]
        except Exception as error:
            reason = one_line(error)
            # OpenVINO raises the same exception class for all errors.
            refused = "shape" in reason.lower() or "partial" in reason.lower()
            raise failed_run(self._name, reason, refused=refused) from None
        finally:
            self._idle.put(request)

    def _read(self, request: Any, index: int) -> np.ndarray:
        tensor = request.get_output_tensor(index)
        if tensor.element_type.get_type_name() == "string":
            return encode(np.asarray(tensor.str_data))
        return np.array(tensor.data)

    def close(self) -> None:
        self._compiled = None
        self._idle = SimpleQueue()


def import_openvino() -> Any:
    """Imports OpenVINO without OpenVINO's telemetry."""
    # At import, the telemetry would fork this process and send reports to the makers of OpenVINO.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_runtime("openvino", what="This model needs OpenVINO", extra="openvino")


def gpu_indexes(available: Sequence[str]) -> tuple[int, ...]:
    """Returns the indexes of the GPUs among OpenVINO's devices: "GPU" is 0, "GPU.1" is 1."""
    found = [name for name in available if name.partition(".")[0] == "GPU"]
    return tuple(int(name.partition(".")[2] or 0) for name in found)


def _has_loop(network: Any) -> bool:
    """Returns whether a network has a loop, including the branches of conditions in the network."""
    for operation in network.get_ops():
        kind = operation.get_type_name()
        if kind in _LOOPS:
            return True
        if kind == "If" and any(_has_loop(operation.get_function(branch)) for branch in (0, 1)):
            return True
    return False


def _device_name(device: Device) -> str:
    return {"cpu": "CPU", "gpu": f"GPU.{device.index}", "model": "AUTO"}[device.kind]


def _specs(path: Path, kind: str, ports: Sequence[Any]) -> tuple[TensorSpec, ...]:
    specs = []
    for index, port in enumerate(ports):
        name = port.any_name if port.names else f"{kind.upper()}__{index}"
        type_name = port.element_type.get_type_name()
        datatype = _DATATYPES.get(type_name)
        if datatype is None:
            raise unservable(path, kind, name, f"of type {type_name}")
        specs.append(TensorSpec(name, datatype, _shape(path, kind, name, port.partial_shape)))
    return tuple(specs)


def _shape(path: Path, kind: str, name: str, partial: Any) -> Shape:
    if partial.rank.is_dynamic:
        if kind == "input":
            raise InvalidArgument(
                f"'{path}' cannot be served: input '{name}' has no fixed number of dimensions; pass its shape"
                " to openvino.convert_model, in the argument `input`"
            )
        return ()
    return tuple(-1 if dimension.is_dynamic else dimension.get_length() for dimension in partial)
