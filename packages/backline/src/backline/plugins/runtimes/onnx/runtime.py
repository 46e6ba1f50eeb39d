"""ONNX models on ONNX Runtime: on the CPU, on GPUs, or with configured execution providers."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeAlias
from weakref import ref

import numpy as np
from msgspec.structs import replace

from backline.backends.agreement import agree
from backline.backends.backend import DEFAULT_OPTIONS, LOOPS, LoadOptions, Run
from backline.backends.runtime import (
    decode,
    encode,
    failed_run,
    import_runtime,
    loading,
    one_line,
    unservable,
)
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import CPU, Gpus
from backline.plugins.runtimes.onnx.external_data import (
    ModelFile,
    check_model,
    check_structure,
    read_external_data,
)
from backline.plugins.runtimes.onnx.options import SessionSettings, read_settings, spread_settings
from backline.plugins.runtimes.onnx.providers import CPU as CPU_PROVIDER
from backline.plugins.runtimes.onnx.providers import (
    Provider,
    idle_accelerators,
    installed_providers,
    read_providers,
    usable_gpus,
    why_on_no_gpu,
)
from backline.system.file_watch import file_state
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Internal, InvalidArgument
from backline_client.values.signature import Signature, TensorSpec

_DATATYPES = {
    "tensor(bool)": DataType.BOOL,
    "tensor(uint8)": DataType.UINT8,
    "tensor(uint16)": DataType.UINT16,
    "tensor(uint32)": DataType.UINT32,
    "tensor(uint64)": DataType.UINT64,
    "tensor(int8)": DataType.INT8,
    "tensor(int16)": DataType.INT16,
    "tensor(int32)": DataType.INT32,
    "tensor(int64)": DataType.INT64,
    "tensor(float16)": DataType.FP16,
    "tensor(float)": DataType.FP32,
    "tensor(double)": DataType.FP64,
    "tensor(string)": DataType.BYTES,
    "tensor(bfloat16)": DataType.BF16,
}
#: TensorProto.BFLOAT16 of the ONNX specification (onnx.proto).
_ONNX_BFLOAT16 = 16
#: ONNX Runtime's log level "fatal". Errors are raised as exceptions, so ONNX Runtime need not log them too.
_SILENT = 4
_NewOptions: TypeAlias = Callable[[], Any]
#: After runs with at least this many bytes of input, ONNX Runtime's memory arena is shrunk; otherwise the
#: memory for the largest request would stay allocated.
LARGE_RUN = 8 * 1024 * 1024
_SHRINK = ("memory.enable_memory_arena_shrinkage", "cpu:0")
#: Unless `lone_run_threads` is configured, a copy of a model for spread runs is loaded only if the file and
#: its external data have at most this many bytes.
LARGEST_COPY = 64 * 1024 * 1024


class OnnxRuntime:
    """The backend for `*.onnx`."""

    name: ClassVar[str] = "onnxruntime"

    def check_file(self, path: Path) -> None:
        check_structure(path)

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        runtime = import_onnxruntime()
        reason = why_on_no_gpu(config, installed_providers(runtime))
        return Gpus(reason=reason) if reason else usable_gpus(runtime)

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> OnnxModel:
        """Loads a file and its external data.

        A run uses one thread unless parameters say otherwise (see options.py). Raises Internal if ONNX
        Runtime is not installed. Raises InvalidArgument for an invalid parameter, and for a file that is not
        a model, has tensors of unsupported types, or contradicts the configuration.
        """
        runtime = import_onnxruntime()
        settings = read_settings(config)
        providers = read_providers(
            config, installed_providers(runtime), options.device, lambda: usable_gpus(runtime).reason
        )
        if options.device == CPU and (idle := idle_accelerators(config)):
            settings = _without_accelerators(config, settings, idle, strict=options.strict_devices)
        file = check_model(path)
        files = [path, *(path.parent / name for name in file.external)]
        before = [file_state(one) for one in files]
        model = _open(runtime, path, config, settings, providers, file)
        model.unbounded = LOOPS if file.loops else ""
        on_cpu = options.device == CPU and [name for name, _ in providers] == [CPU_PROVIDER]
        if on_cpu and (file.size <= LARGEST_COPY or config.lone_run_threads is not None):

            def open_spread(threads: int) -> OnnxModel | None:
                wide = spread_settings(config, settings, threads)
                if wide is None:
                    return None
                copy = _open(runtime, path, config, wide, providers, file)
                if [file_state(one) for one in files] != before:
                    raise InvalidArgument(f"'{path}' changed while it was being loaded, so a copy may differ")
                return copy

            model.open_spread = open_spread
        return model


def _open(
    runtime: Any,
    path: Path,
    config: ModelConfig,
    settings: SessionSettings,
    providers: Sequence[Provider],
    checked: ModelFile,
) -> OnnxModel:
    """Opens a file in a new session. Raises InvalidArgument; see OnnxRuntime.load."""
    with loading(path, f"ONNX Runtime {runtime.__version__}", _one_line):
        options = _session_options(runtime, settings)
        # Other providers copy weights to their devices, so the files stay mapped only during the load.
        on_cpu = all(name == CPU_PROVIDER for name, _ in providers)
        external = read_external_data(options, path, checked.external) if on_cpu else []
        session = runtime.InferenceSession(str(path), options, providers=providers)
        del external
        file = Signature(
            tuple(_spec(path, "input", node) for node in session.get_inputs()),
            tuple(_spec(path, "output", node) for node in session.get_outputs()),
        )
    _check_providers(config, providers, session.get_providers())
    signature = agree(path, file, config)
    datatypes = {spec.datatype for spec in file.inputs + file.outputs}
    kind = OnnxModel
    if DataType.BF16 in datatypes:
        _check_no_strings(path, file)
        kind = Bfloat16Model
    elif DataType.BYTES in datatypes:
        kind = StringModel
    return kind(config.name, session, partial(_run_options, runtime, settings), signature, settings)


class OnnxModel:
    """A model in a session of ONNX Runtime. Arrays are passed without copies, except as ArenaOutputs says."""

    #: See UnboundedModel.
    unbounded = ""
    #: Opens the file in another session, whose runs use the given number of threads; None if a copy may not
    #: be loaded.
    open_spread: Callable[[int], OnnxModel | None] | None = None

    def __init__(
        self,
        name: str,
        session: Any,
        new_options: _NewOptions,
        signature: Signature,
        settings: SessionSettings,
    ) -> None:
        self._name = name
        self._session = session
        self._new_options = new_options
        self._options, self._shrinking = new_options(), _with_shrinking(new_options(), settings)
        self._settings = settings
        self.signature = signature
        self._ran_large = False
        self._arena_outputs = ArenaOutputs()
        self._run_session = self._runner()
        self.warnings = settings.warnings
        self.threads_per_run = settings.intra_op_threads

    def _runner(self) -> Callable[..., Any]:
        # Bypasses the Python wrapper, whose checks take a third of the time of a small model's run. ONNX
        # Runtime's C++ code repeats these checks.
        return getattr(self._session, "_sess", self._session).run  # type: ignore[no-any-return]

    def run(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], options: Any = None
    ) -> list[np.ndarray]:
        """Runs one batch; see LoadedModel. `options` apply to this run only."""
        size = 0
        for array in inputs.values():
            size += array.nbytes
        if size >= LARGE_RUN or self._ran_large:
            # The outputs of a large run are freed only after the run has shrunk the arena, so the next run
            # shrinks the arena again.
            self._ran_large = size >= LARGE_RUN
            options = self._shrinking if options is None else _with_shrinking(options, self._settings)
        try:
            return self._arena_outputs.limit(self._run_session(outputs, inputs, options or self._options))
        except Exception as error:
            raise self._failure(error) from None

    def cancellable(self) -> tuple[Run, Callable[[], None]]:
        options = self._new_options()  # each run needs its own options, which hold the run's terminate flag

        def cancel() -> None:
            options.terminate = True

        return lambda inputs, outputs: self.run(inputs, outputs, options), cancel

    def spread(self, threads: int) -> OnnxModel | None:
        """Loads a copy whose runs use several threads; see SpreadableModel."""
        return None if self.open_spread is None else self.open_spread(threads)

    def close(self) -> None:
        self._session = None
        self._run_session = self._refuse

    def _refuse(self, *_: object) -> list[np.ndarray]:
        raise Internal(f"model '{self._name}' is unloaded: load it again to use it")

    def _failure(self, error: Exception) -> BacklineError:
        if isinstance(error, BacklineError):
            return error
        # ONNX Runtime's exceptions have no common base class, so they are recognised by name. InvalidArgument
        # means that the inputs do not fit the model or one of its nodes.
        refused = type(error).__name__ == "InvalidArgument"
        return failed_run(self._name, _one_line(error), refused=refused)


class StringModel(OnnxModel):
    """A model with string tensors, which are str in ONNX Runtime and bytes in the protocols."""

    def run(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], options: Any = None
    ) -> list[np.ndarray]:
        decoded = {
            name: decode(self._name, name, array) if array.dtype == np.object_ else array
            for name, array in inputs.items()
        }
        arrays = super().run(decoded, outputs, options)
        return [encode(array) if array.dtype.kind in "OU" else array for array in arrays]


class Bfloat16Model(StringModel):
    """A model with BF16 tensors. numpy lacks this type, so the tensors are uint16 arrays of the same bits."""

    def _runner(self) -> Callable[..., Any]:
        inputs = self.signature.inputs
        self._bfloat16_inputs = frozenset(spec.name for spec in inputs if spec.datatype is DataType.BF16)
        self._value_of = import_onnxruntime().OrtValue
        return self._run_values

    def _run_values(
        self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray], options: Any
    ) -> list[np.ndarray]:
        feed = {name: self._value(name, array) for name, array in inputs.items()}
        return [_array(value) for value in self._session.run_with_ort_values(list(outputs), feed, options)]

    def _value(self, name: str, array: np.ndarray) -> Any:
        if name not in self._bfloat16_inputs:
            return self._value_of.ortvalue_from_numpy(array)
        # np.ascontiguousarray would turn a scalar into an array of shape [1].
        return self._value_of.ortvalue_from_numpy_with_onnx_type(np.asarray(array, order="C"), _ONNX_BFLOAT16)


class _Bits:
    """The memory of a BF16 tensor, which numpy reads as uint16. Arrays made from this object keep the tensor
    alive.
    """

    def __init__(self, value: Any) -> None:
        self._value = value
        self.__array_interface__ = {
            "version": 3,
            "typestr": "<u2",
            "shape": tuple(value.shape()),
            "data": (value.data_ptr(), False),
        }


def _array(value: Any) -> np.ndarray:
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()  # type: ignore[no-any-return]
    if 0 in value.shape():
        return np.empty(value.shape(), np.uint16)
    return np.asarray(_Bits(value))


def import_onnxruntime() -> Any:
    """Imports ONNX Runtime with its telemetry disabled."""
    # From 1.29 on, ONNX Runtime reports loaded models to Microsoft unless this is set before the import.
    if "onnxruntime" not in sys.modules:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_runtime("onnxruntime", what="ONNX models need ONNX Runtime", extra="onnx")


def _session_options(runtime: Any, settings: SessionSettings) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = settings.intra_op_threads
    options.inter_op_num_threads = settings.inter_op_threads
    options.execution_mode = getattr(runtime.ExecutionMode, settings.execution_mode)
    options.graph_optimization_level = getattr(
        runtime.GraphOptimizationLevel, settings.graph_optimization_level
    )
    options.enable_cpu_mem_arena = settings.memory_arena
    options.enable_mem_pattern = settings.memory_pattern
    for key, value in settings.session_entries.items():
        options.add_session_config_entry(key, value)
    return options


def _run_options(runtime: Any, settings: SessionSettings) -> Any:
    options = runtime.RunOptions()
    options.log_severity_level = _SILENT
    for key, value in settings.run_entries.items():
        options.add_run_config_entry(key, value)
    return options


def _with_shrinking(options: Any, settings: SessionSettings) -> Any:
    key, value = _SHRINK
    if settings.memory_arena and key not in settings.run_entries:
        options.add_run_config_entry(key, value)
    return options


def _without_accelerators(
    config: ModelConfig, settings: SessionSettings, idle: str, *, strict: bool
) -> SessionSettings:
    reason = f"model '{config.name}' asks for the GPU accelerator {idle}, but runs on the CPU"
    if strict:
        raise InvalidArgument(reason)
    return replace(settings, warnings=(*settings.warnings, f"{reason}, where it has no effect"))


def _check_providers(config: ModelConfig, wanted: Sequence[Provider], used: Sequence[str]) -> None:
    """Raises InvalidArgument if a configured provider is not used; ONNX Runtime only logs the fallback."""
    for name, _ in wanted:
        if name not in used:
            raise InvalidArgument(
                f"model '{config.name}' asks for the {name}, which is installed but cannot be used on this"
                " machine: a driver, a library or the device is missing; install it, or remove the provider"
                " from the configuration"
            )


def _spec(path: Path, kind: str, node: Any) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        raise unservable(path, kind, node.name, f"a {node.type}")
    # Shape inference may report size 0 for an output dimension that it cannot determine. The real size is
    # larger.
    least = 1 if kind == "output" else 0
    shape = tuple(dim if isinstance(dim, int) and dim >= least else -1 for dim in node.shape)
    return TensorSpec(node.name, datatype, shape)


def _check_no_strings(path: Path, file: Signature) -> None:
    """Raises InvalidArgument for string inputs, which ONNX Runtime's Python API cannot combine with BF16."""
    for spec in file.inputs:
        if spec.datatype is DataType.BYTES:
            raise InvalidArgument(
                f"'{path}' cannot be served: it has BF16 tensors and the string input '{spec.name}', which"
                " ONNX Runtime cannot combine; convert the BF16 tensors to FP32"
            )


def _one_line(error: Exception) -> str:
    """Returns the reason in a runtime's error, without error codes, source files and line breaks."""
    reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    reason = re.sub(
        r"\S*onnxruntime\S*\.(?:cc|h|cpp):\d+ .*?\)(?: const)?(?=\s|$)(?: \[[^\]]*\])?\s*", "", reason
    )
    return one_line(reason) if reason.strip() else type(error).__name__


#: ArenaOutputs counts only outputs of at least this many bytes.
LARGE = 1 << 18
#: The maximum size of all outputs in the arena that are still in use, in bytes.
MAX_HELD = 1 << 24


class ArenaOutputs:
    """Copies outputs out of ONNX Runtime's memory arena while too many bytes of the arena are in use.

    The arena grows for outputs that are still in use, and shrinks again only after runs with large inputs
    (LARGE_RUN): memory for a burst of large responses to slow clients could stay allocated until the model is
    unloaded. The memory of a copy is returned to the system when the copy is freed. Nothing is copied as long
    as clients read fast enough.

    Outputs may be freed on any thread, at any time, so this class must not take a lock. It relies on single
    operations on the dictionary being atomic.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[ref[np.ndarray], int]] = {}

    @property
    def held(self) -> int:
        """The total size of the outputs in the arena that are in use, in bytes."""
        return sum(size for _, size in tuple(self._held.values()))

    def limit(self, outputs: list[np.ndarray]) -> list[np.ndarray]:
        """Returns the outputs of a run. Each large output that would bring the arena memory in use above
        MAX_HELD is replaced by a copy.
        """
        for array in outputs:
            if type(array) is np.ndarray and array.nbytes >= LARGE:
                return [self._limit(array) for array in outputs]
        return outputs

    def _limit(self, array: np.ndarray) -> np.ndarray:
        if type(array) is not np.ndarray or array.nbytes < LARGE or array.dtype == object:
            return array
        if self.held + array.nbytes > MAX_HELD:
            return array.copy()
        held, key = self._held, id(array)
        held[key] = (ref(array, lambda _: held.pop(key, None)), array.nbytes)
        return array
