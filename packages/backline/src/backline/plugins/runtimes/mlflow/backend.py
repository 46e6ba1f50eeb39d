"""MLflow model folders. The backend of one of the flavours in a folder serves the model, without MLflow
itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from msgspec.structs import replace

from backline.backends.backend import (
    DEFAULT_OPTIONS,
    Backend,
    HostedModel,
    LoadedModel,
    LoadOptions,
    gpus_of,
    needs_worker,
)
from backline.backends.registry import find_backend
from backline.backends.runtime import cuda_gpus, read_start, require_trust
from backline.backends.yaml_document import read_yaml
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Gpus
from backline.engine.document_limits import MAX_DOCUMENT
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.signature import TensorSpec

_FILE = "MLmodel"
#: The flavours in order of preference, with the settings that may name the model's file, and the backends.
_FLAVOURS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("onnx", ("data",), "onnxruntime"),
    ("tensorflow", ("saved_model_dir",), "tensorflow"),
    ("pytorch", ("model_data",), "pytorch"),
    ("xgboost", ("data",), "xgboost"),
    ("lightgbm", ("data",), "lightgbm"),
    ("catboost", ("data",), "catboost"),
    ("sklearn", ("pickled_model",), "sklearn"),
)
#: The flavour of any Python code, with the name of the backend that serves it. It needs MLflow.
_ANY, PYFUNC = "python_function", "mlflow_pyfunc"
_ADAPTER = "backline.plugins.runtimes.mlflow.model"
#: MLflow's types of columns that have a datatype here.
_TYPES = {
    "boolean": DataType.BOOL,
    "integer": DataType.INT32,
    "long": DataType.INT64,
    "float": DataType.FP32,
    "double": DataType.FP64,
    "string": DataType.BYTES,
}
_OBJECTS = (".skops", ".pkl", ".pickle", ".joblib")


class MlFlow:
    """The backend for folders that contain a file named MLmodel."""

    name: ClassVar[str] = "mlflow"

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        """Returns the GPUs that the flavour's backend can use. See GpuBackend."""
        backend, file = _served(path)
        return gpus_of(backend, file, replace(config, backend=backend.name))

    def needs_worker(self, path: Path, config: ModelConfig) -> bool:
        """Returns whether the flavour's backend wants a worker process. See WorkerBackend."""
        backend, file = _served(path)
        return needs_worker(backend, file, config)

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> LoadedModel:
        """Loads the model with its flavour's backend, which determines the names of tensors and the options.
        For an estimator, the columns of the folder's signature are its inputs, with their types.

        Raises InvalidArgument if no flavour in the folder can be served; pickles need `trust_pickle`.
        """
        backend, file = _served(path)
        config = replace(config, backend=backend.name)
        if backend.name == "sklearn" and not config.inputs:
            config = replace(config, inputs=_columns(path, batched=bool(config.max_batch_size)))
        # All backends in _FLAVOURS return a LoadedModel.
        return backend.load(file, config, options)  # type: ignore[return-value]


class PyFunc:
    """The backend for folders whose only flavour is `python_function`, and for others if it is configured.
    The model runs in a worker process, with the packages of the folder's requirements.txt.
    """

    name: ClassVar[str] = PYFUNC

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        """Returns all GPUs, because the model's code decides how to use them. See GpuBackend."""
        return cuda_gpus()

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> HostedModel:
        """Returns the data that workers need. Raises InvalidArgument unless pickles are trusted, because such
        a model is a pickle or code.
        """
        require_trust(path, config, options)
        folder = _folder(path)
        if _ANY not in _flavours(folder / _FILE):
            raise InvalidArgument(f"'{folder / _FILE}' has no flavour '{_ANY}': save the model again")
        if not options.trust_pickle:
            raise InvalidArgument(
                f"'{folder}' is a model of MLflow's flavour '{_ANY}', which can execute anything when it is"
                f" loaded: serve with --trust-pickle-model {config.name} if you know where it comes from"
            )
        return HostedModel(folder, _ADAPTER)


def backend_for(path: Path) -> str:
    """Returns the name of the backend for an MLflow folder: PYFUNC if no other flavour can be served."""
    try:
        flavours = _flavours(_folder(path) / _FILE)
    except BacklineError:
        return MlFlow.name  # which reports the error when it loads the folder
    native = any(isinstance(flavours.get(name), Mapping) for name, _, _ in _FLAVOURS)
    return PYFUNC if _ANY in flavours and not native and _has_code(flavours[_ANY]) else MlFlow.name


def _has_code(settings: object) -> bool:
    return isinstance(settings, Mapping) and isinstance(settings.get("loader_module"), str)


def _folder(path: Path) -> Path:
    return next((f for f in (path, path / "model", path.parent) if (f / _FILE).is_file()), path)


def _columns(path: Path, *, batched: bool) -> tuple[TensorSpec, ...]:
    """Returns the named columns of a folder's signature; empty if it has none, or one of another type."""
    signature = _read(_folder(path) / _FILE).get("signature")
    text = signature.get("inputs") if isinstance(signature, Mapping) else None
    try:
        columns = json.loads(text) if isinstance(text, str) else []
        return tuple(
            TensorSpec(str(one["name"]), _TYPES[one["type"]], () if batched else (-1,), column=True)
            for one in columns
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


def extras(path: Path) -> set[str]:
    """Returns the extra of the backend that serves an MLflow folder. Raises InvalidArgument if none can."""
    entry = find_backend(_served(path)[0].name)
    return {entry.extra} if entry is not None else set()


def _served(path: Path) -> tuple[Backend, Path]:
    """Returns the backend of the first flavour that can be served, and the model file of that flavour."""
    folder = _folder(path)
    flavours = _flavours(folder / _FILE)
    for flavour, keys, backend_name in _FLAVOURS:
        settings = flavours.get(flavour)
        if isinstance(settings, Mapping):
            file = _model_file(folder, flavour, settings, keys)
            if file.suffix in _OBJECTS:  # a pickled estimator, such as XGBoost's wrapper for scikit-learn
                backend_name = "sklearn"
            return _backend(backend_name), file
    held = ", ".join(f"'{name}'" for name in flavours) or "none"
    served = ", ".join(f"'{name}'" for name, _, _ in _FLAVOURS)
    raise InvalidArgument(
        f"'{folder / _FILE}' has no flavour that can be served: it has {held}, expected one of {served}"
    )


def _read(path: Path) -> Mapping[str, Any]:
    start = read_start(path, MAX_DOCUMENT + 1)
    content = read_yaml(start, f"'{path}'", what="Model folders of MLflow need PyYAML", extra="mlflow")
    return content if isinstance(content, Mapping) else {}


def _flavours(path: Path) -> Mapping[str, Any]:
    flavours = _read(path).get("flavors")
    if not isinstance(flavours, Mapping):
        raise InvalidArgument(
            f"'{path}' is not an MLmodel file of MLflow: it has no 'flavors'; save the model again"
        )
    return flavours


def _model_file(folder: Path, flavour: str, settings: Mapping[str, Any], keys: tuple[str, ...]) -> Path:
    name: str | None = next((settings[key] for key in keys if isinstance(settings.get(key), str)), None)
    if name is None:
        raise InvalidArgument(
            f"'{folder / _FILE}' does not say where the model of flavour '{flavour}' is: {' or '.join(keys)}"
            " is missing; save the model again"
        )
    path: Path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidArgument(
            f"'{folder / _FILE}' names a file outside of its folder: '{name}'; copy the file into the folder,"
            " and correct the path"
        )
    # MLflow writes data/model.pth, or model.pt2 if the model was exported.
    if flavour == "pytorch" and path.is_dir():
        return next(
            (path / file for file in ("model.pt2", "model.pt", "model.pth") if (path / file).exists()),
            path / "model.pt2",
        )
    if not path.exists():
        raise InvalidArgument(
            f"'{folder / _FILE}' names '{name}', which does not exist; copy the whole folder of the model"
        )
    return path


def _backend(name: str) -> Backend:

    entry = find_backend(name)
    assert entry is not None, "_FLAVOURS names built-in backends"
    return entry.backend()
