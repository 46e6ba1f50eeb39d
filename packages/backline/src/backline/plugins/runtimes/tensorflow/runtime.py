"""TensorFlow SavedModels, run as graphs, without Keras objects."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from backline.backends.agreement import agree
from backline.backends.backend import DEFAULT_OPTIONS, LoadOptions
from backline.backends.parameters import Parameters
from backline.backends.runtime import (
    LLVM_IMPORT,
    cuda_gpus,
    encode,
    failed_run,
    import_runtime,
    loading,
    one_line,
)
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import CPU, Device, Gpus
from backline.plugins.runtimes.tensorflow.operations import check_operations
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Internal, InvalidArgument
from backline_client.values.signature import Signature, TensorSpec

#: Datatypes by their numbers in tensorflow/core/framework/types.proto.
_DATATYPES = {
    1: DataType.FP32,
    2: DataType.FP64,
    3: DataType.INT32,
    4: DataType.UINT8,
    5: DataType.INT16,
    6: DataType.INT8,
    7: DataType.BYTES,
    9: DataType.INT64,
    10: DataType.BOOL,
    14: DataType.BF16,
    17: DataType.UINT16,
    19: DataType.FP16,
    22: DataType.UINT32,
    23: DataType.UINT64,
}
_FILE = "saved_model.pb"
_DEFAULT_SIGNATURE = "serving_default"
#: An internal signature that TensorFlow 2 adds to every SavedModel.
_INIT_SIGNATURE = "__saved_model_init_op"
_KNOWN = ("TF_SIGNATURE_DEF", "TF_GRAPH_TAG", "TF_NUM_INTRA_THREADS")


class TensorFlow:
    """The backend for folders that contain a saved_model.pb."""

    name: ClassVar[str] = "tensorflow"

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        runtime = import_tensorflow()
        found = runtime.config.list_physical_devices("GPU")
        if found:
            return Gpus(tuple(range(len(found))))
        why = cuda_gpus().reason or "CUDA or cuDNN is missing"
        if not runtime.test.is_built_with_gpu_support():
            why = "it supports only the CPU"
        return Gpus(
            reason=f"TensorFlow {runtime.__version__} cannot use a GPU ({why}):"
            " pip install 'tensorflow[and-cuda]'"
        )

    def load(
        self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS
    ) -> TensorFlowModel:
        """Loads a signature of a SavedModel.

        The signature is the one that the parameter TF_SIGNATURE_DEF names; without it, the only signature, or
        "serving_default" if there are several. The parameter TF_GRAPH_TAG names the tag of the graph, by
        default "serve". `path` is the folder of a SavedModel, a file in it, or a folder that contains
        model.savedmodel. A run computes on the calling thread, or on several threads if the parameter
        TF_NUM_INTRA_THREADS is set (the first model's value applies to the whole process).
        """
        parameters = Parameters(config, self.name, _KNOWN)
        threads = parameters.threads("TF_NUM_INTRA_THREADS", 1)
        folder = _folder(path)
        runtime = import_tensorflow()
        v1 = runtime.compat.v1
        graph = runtime.Graph()
        # -1 means that operations run on the calling thread, so that parallel runs use one core each.
        session_config = v1.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=-1)
        device = options.device
        _place(session_config, device)
        with graph.as_default(), graph.device(f"/GPU:{device.index}" if device.kind == "gpu" else None):
            session = v1.Session(graph=graph, config=session_config)
            try:
                with loading(folder, f"TensorFlow {runtime.__version__}"):
                    meta, unbounded = _load(session, folder, parameters.text("TF_GRAPH_TAG", "serve"))
            except BaseException:
                session.close()
                raise
        try:
            key, definition = _choose_signature(
                folder, meta.signature_def, parameters.text("TF_SIGNATURE_DEF")
            )
            file = Signature(
                _specs(folder, "input", key, definition.inputs),
                _specs(folder, "output", key, definition.outputs),
            )
            signature = agree(folder, file, config)
        except BacklineError:
            session.close()
            raise
        feeds = [(spec.name, definition.inputs[spec.name].name) for spec in signature.inputs]
        fetches = [definition.outputs[spec.name].name for spec in signature.outputs]
        return TensorFlowModel(
            config.name, session, feeds, fetches, signature, threads, parameters.warnings, unbounded
        )


class TensorFlowModel:
    """A session with a SavedModel. Each run computes all outputs of the signature.

    TensorFlow prepares a graph for each list of outputs that a run asks for. This takes many times as long as
    a run, and TensorFlow keeps the graph until the session is closed. If runs asked only for the requested
    outputs, clients could make TensorFlow prepare any number of graphs.
    """

    def __init__(
        self,
        name: str,
        session: Any,
        feeds: Sequence[tuple[str, str]],
        fetches: Sequence[str],
        signature: Signature,
        threads: int,
        warnings: tuple[str, ...],
        unbounded: str,
    ) -> None:
        self._name = name
        self._session = session
        self._feeds = [name for name, _ in feeds]
        self._bfloat16 = frozenset(spec.name for spec in signature.inputs if spec.datatype is DataType.BF16)
        self._call = session.make_callable(fetches, feed_list=[tensor for _, tensor in feeds])
        self._positions = {spec.name: index for index, spec in enumerate(signature.outputs)}
        self.signature = signature
        self.threads_per_run = threads
        self.warnings = warnings
        #: See UnboundedModel.
        self.unbounded = unbounded

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        if self._session is None:
            raise Internal(f"model '{self._name}' is unloaded: load it again to use it")
        try:
            arrays = self._call(*(self._feed(name, inputs[name]) for name in self._feeds))
        except Exception as error:
            raise _failure(self._name, error) from None
        return [_array(arrays[self._positions[name]]) for name in outputs]

    def _feed(self, name: str, array: np.ndarray) -> np.ndarray:
        if name not in self._bfloat16:
            return array
        from ml_dtypes import bfloat16  # a dependency of TensorFlow

        return array.view(bfloat16)

    def close(self) -> None:
        session, self._session, self._call = self._session, None, None
        if session is not None:
            session.close()


def import_tensorflow() -> Any:
    """Imports TensorFlow, which takes seconds."""
    # Hides messages about the processor and the search for GPUs, unless the user has set a level.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with LLVM_IMPORT:
        runtime = import_runtime("tensorflow", what="SavedModels need TensorFlow", extra="tensorflow")
    # Hides warnings of TensorFlow's Python code, such as those about deprecated functions, because the user
    # cannot change how this backend calls TensorFlow.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return runtime


def _load(session: Any, folder: Path, tag: str) -> tuple[Any, str]:
    """Loads a model as v1.saved_model.load does, but checks the graph first, before any of it runs.

    Also returns the value of UnboundedModel.unbounded.
    """
    loader = import_module("tensorflow.python.saved_model.loader_impl").SavedModelLoader(str(folder))
    unbounded = check_operations(folder, loader.get_meta_graph_def_from_tags([tag]))
    return loader.load(session, [tag]), unbounded


def _place(config: Any, device: Device) -> None:
    """Hides GPUs from models on the CPU. Models on GPUs allocate memory on demand and may use the CPU too."""
    if device == CPU:
        config.device_count["GPU"] = 0
    else:
        config.allow_soft_placement = True
        config.gpu_options.allow_growth = True


def _folder(path: Path) -> Path:
    """Returns the folder of saved_model.pb: `path`, its subfolder model.savedmodel, or its parent."""
    for folder in (path, path / "model.savedmodel", path.parent):
        if (folder / _FILE).is_file():
            return folder
    raise InvalidArgument(
        f"'{path}' is not a SavedModel: it holds no {_FILE}; copy the whole folder that TensorFlow saved"
    )


def _choose_signature(folder: Path, signatures: Mapping[str, Any], wanted: str) -> tuple[str, Any]:
    keys = sorted(key for key in signatures if key != _INIT_SIGNATURE)
    listed = ", ".join(f"'{key}'" for key in keys) or "none"
    wanted = wanted or (keys[0] if len(keys) == 1 else _DEFAULT_SIGNATURE)
    if wanted not in keys:
        raise InvalidArgument(
            f"'{folder}' has no signature '{wanted}': set the parameter TF_SIGNATURE_DEF to one of {listed}"
        )
    return wanted, signatures[wanted]


def _specs(folder: Path, kind: str, key: str, tensors: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    specs = []
    for name in sorted(tensors):  # sorted because the tensors of a signature have no order
        info = tensors[name]
        datatype = _DATATYPES.get(info.dtype)
        if info.WhichOneof("encoding") != "name" or datatype is None:
            raise InvalidArgument(
                f"'{folder}' cannot be served: {kind} '{name}' of signature '{key}' is not a dense tensor of"
                " a supported type; export a signature without it"
            )
        if info.tensor_shape.unknown_rank and kind == "input":
            raise InvalidArgument(
                f"'{folder}' cannot be served: input '{name}' of signature '{key}' has no fixed number of"
                " dimensions; export the signature with a shape, such as [None, 4]"
            )
        shape = (
            () if info.tensor_shape.unknown_rank else tuple(int(dim.size) for dim in info.tensor_shape.dim)
        )
        specs.append(TensorSpec(name, datatype, shape))
    return tuple(specs)


def _array(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind in "OSU":
        return encode(array)
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _failure(model: str, error: Exception) -> BacklineError:
    reason = one_line(getattr(error, "message", None) or error)
    # For inputs that do not fit, the session raises ValueError and operations raise InvalidArgumentError.
    refused = isinstance(error, ValueError) or type(error).__name__ == "InvalidArgumentError"
    return failed_run(model, reason, refused=refused)
