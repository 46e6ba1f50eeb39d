"""Lists the backends and the file formats that they load.

The module of a backend is only imported when a model needs it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Final

from msgspec import Struct, field

from backline.backends.backend import Backend
from backline.engine.config.model_config import ModelConfig, ModelFormat
from backline.engine.errors import InvalidArgument
from backline.engine.spelling import nearest

__all__ = ["BACKENDS", "FORMATS", "PLATFORMS", "BackendEntry", "choose", "choose_by_name", "describe_runtime"]


class BackendEntry(Struct, frozen=True):
    """A backend: its name and Triton platform in configurations, and the class that implements it."""

    name: str
    platform: str
    module: str
    class_name: str
    #: Whether the models run in worker processes, whose environments may have other packages.
    hosted: bool = False
    #: The name of the runtime that loads the models in the server's process, and the package from which the
    #: version of the runtime is read. Both are empty for a backend that reads no files in the server's
    #: process.
    runtime: str = ""
    package: str = ""
    #: The modules of the runtime that a process may import before it forks for trials, or functions
    #: ("module:function") that import the runtime with settings.
    imports: tuple[str, ...] = ()
    #: Further modules and functions to import before a fork, for files with a given suffix.
    imports_by_suffix: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: The extra that installs the runtime; empty if there is nothing to install.
    extra: str = ""

    def imports_for(self, path: Path) -> tuple[str, ...]:
        """Returns the modules and functions (see `imports`) for a process that forks for a trial of `path`.
        Only the file name is considered.
        """
        return self.imports + self.imports_by_suffix.get(path.suffix.lower(), ())

    def backend(self) -> Backend:
        return _backend(self.module, self.class_name)


@cache
def _backend(module: str, class_name: str) -> Backend:
    backend: Backend = getattr(import_module(f"backline.backends.{module}"), class_name)()
    return backend


BACKENDS: tuple[BackendEntry, ...] = (
    BackendEntry(
        "onnxruntime",
        "onnxruntime_onnx",
        "onnxruntime",
        "OnnxRuntime",
        runtime="ONNX Runtime",
        package="onnxruntime",
        imports=("backline.backends.onnxruntime:import_onnxruntime",),
        extra="onnx",
    ),
    BackendEntry(
        "pytorch",
        "pytorch_libtorch",
        "pytorch",
        "Pytorch",
        runtime="PyTorch",
        package="torch",
        imports=("torch",),
        imports_by_suffix={".pt2": ("backline.backends.pytorch_programs:import_exporter",)},
        extra="torch",
    ),
    BackendEntry(
        "tensorflow",
        "tensorflow_savedmodel",
        "tensorflow",
        "TensorFlow",
        runtime="TensorFlow",
        package="tensorflow",
        imports=("backline.backends.tensorflow:import_tensorflow",),
        extra="tensorflow",
    ),
    BackendEntry(
        "litert",
        "litert",
        "litert",
        "LiteRt",
        runtime="LiteRT",
        package="ai-edge-litert",
        imports=("ai_edge_litert.interpreter",),
        extra="litert",
    ),
    BackendEntry(
        "openvino",
        "openvino",
        "openvino",
        "OpenVino",
        runtime="OpenVINO",
        package="openvino",
        imports=("backline.backends.openvino:import_openvino",),
        extra="openvino",
    ),
    BackendEntry(
        "jax", "jax", "jax", "Jax", runtime="JAX", package="jax", imports=("jax", "jax.export"), extra="jax"
    ),
    BackendEntry(
        "xgboost",
        "xgboost",
        "xgboost",
        "XgBoost",
        runtime="XGBoost",
        package="xgboost",
        imports=("xgboost",),
        extra="xgboost",
    ),
    BackendEntry(
        "lightgbm",
        "lightgbm",
        "lightgbm",
        "LightGbm",
        runtime="LightGBM",
        package="lightgbm",
        imports=("lightgbm",),
        extra="lightgbm",
    ),
    BackendEntry(
        "catboost",
        "catboost",
        "catboost",
        "CatBoost",
        runtime="CatBoost",
        package="catboost",
        imports=("catboost",),
        extra="catboost",
    ),
    BackendEntry(
        "sklearn",
        "sklearn",
        "sklearn",
        "Sklearn",
        runtime="scikit-learn",
        package="scikit-learn",
        imports=("skops.io", "joblib"),
        extra="sklearn",
    ),
    BackendEntry(
        "mlflow", "mlflow", "mlflow", "MlFlow", runtime="the runtime of the MLflow model", extra="mlflow"
    ),
    BackendEntry("mlflow_pyfunc", "mlflow_pyfunc", "mlflow", "PyFunc", hosted=True, extra="mlflow"),
    BackendEntry("python", "python", "python", "Python", hosted=True),
    BackendEntry("torchserve", "torchserve", "torchserve", "TorchServe", hosted=True, extra="torchserve"),
    BackendEntry("remote", "remote", "remote", "Remote"),
    BackendEntry("identity", "identity", "identity", "Identity"),
    BackendEntry("repeat", "repeat", "streams", "Repeat"),
    BackendEntry("square", "square", "streams", "Square"),
)


_BY_NAME: Final = {entry.name: entry for entry in BACKENDS}


def choose(config: ModelConfig, path: Path) -> BackendEntry:
    """Returns the backend for the model in the file or folder `path`: as configured, otherwise by its format.

    Imports no runtime. Raises InvalidArgument if no backend has that name or format.
    """
    entry = _configured(config)
    if entry is None and (format := _format_of(path)) is not None:
        entry = _BY_NAME[format.backend]
        if entry.name == "mlflow":  # the flavours in the folder decide whether it runs in a worker process
            entry = _BY_NAME[import_module("backline.backends.mlflow").backend_for(path)]
    if entry is None:
        raise InvalidArgument(
            f"'{path}' has an unknown format; name its `backend` in the configuration: {_names()}"
        )
    return entry


def choose_by_name(config: ModelConfig, filename: str) -> BackendEntry | None:
    """Returns the backend for a model that has a file with this name: as configured, otherwise by the format
    that such files have. Returns None if no format has such files.

    Does not access files. Raises InvalidArgument if the configuration names a backend that does not exist.
    """
    entry = _configured(config)
    if entry is None and (format := _format_named(filename)) is not None:
        entry = _BY_NAME[format.backend]
    return entry


def describe_runtime(entry: BackendEntry) -> str:
    """Returns the runtime of a backend for messages, with its version if installed: "LightGBM 4.7.0"."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and only errors need it

    for suffix in ("", "-gpu", "-cpu"):
        with suppress(PackageNotFoundError):
            if entry.package:
                return f"{entry.runtime} {version(entry.package + suffix)}"
    return entry.runtime


#: The values that `platform` may have in a configuration: the name or the platform of any backend.
PLATFORMS: Final = frozenset(name for entry in BACKENDS for name in (entry.name, entry.platform) if name)


def _configured(config: ModelConfig) -> BackendEntry | None:
    wanted = config.backend or config.platform
    if not wanted:
        return None
    for entry in BACKENDS:
        if wanted in (entry.name, entry.platform):
            return entry
    near = nearest(wanted, [entry.name for entry in BACKENDS], 1)
    hint = f"did you mean '{near[0]}'?" if near else f"expected one of {_names()}"
    raise InvalidArgument(
        f"Invalid argument: unable to find backend library for backend '{wanted}',"
        f" try specifying runtime on the model configuration. {config.source or config.name}:"
        f" there is no backend '{wanted}', {hint}"
    )


def _names() -> str:
    return ", ".join(f"'{entry.name}'" for entry in BACKENDS)


def _is_in(folder: Path, filename: str) -> bool:
    """Returns whether a folder contains a file; `filename` may begin with the name of the folder itself."""
    return (folder / filename).is_file() or (folder / filename.rpartition("/")[2]).is_file()


def _format_of(path: Path) -> ModelFormat | None:
    """Returns the format of a file or folder, if known. Full names take precedence over suffixes."""
    if os.path.isdir(path):
        return next((f for f in FORMATS if f.folder and any(_is_in(path, one) for one in f.filenames)), None)
    return _format_named(path.name)


def _format_named(filename: str) -> ModelFormat | None:
    return _BY_FILENAME.get(filename) or _BY_SUFFIX.get(os.path.splitext(filename)[1].lower())


ONNX = ModelFormat("onnxruntime", ("model.onnx",), (".onnx",))

#: The formats to look for if a configuration names no backend, in this order. The format of a folder precedes
#: the formats of files in such folders.
FORMATS: tuple[ModelFormat, ...] = (
    ModelFormat("torchserve", ("MAR-INF/MANIFEST.json",), folder=True),
    ModelFormat("mlflow", ("MLmodel", "model/MLmodel"), folder=True),
    ModelFormat("tensorflow", ("model.savedmodel/saved_model.pb", "saved_model.pb"), folder=True),
    ONNX,
    ModelFormat("pytorch", ("model.pt", "model.pt2", "model.jit"), (".pt", ".pt2", ".jit")),
    ModelFormat("litert", ("model.tflite",), (".tflite",)),
    ModelFormat("openvino", ("model.xml",), (".xml",)),
    ModelFormat("jax", ("model.jax",), (".jax",)),
    ModelFormat("xgboost", ("model.ubj", "model.json", "xgboost.ubj", "xgboost.json"), (".ubj",)),
    ModelFormat("lightgbm", ("model.txt", "lightgbm.txt")),
    ModelFormat("catboost", ("model.cbm",), (".cbm",)),
    ModelFormat(
        "sklearn", ("model.skops", "model.joblib", "model.pkl"), (".skops", ".joblib", ".pkl", ".pickle")
    ),
    ModelFormat("python", ("model.py",)),
    ModelFormat("torchserve", ("model.mar", "model.tar.gz", "model.tgz"), (".mar",)),
    # Formats without a file, where the version's folder is the model. They are used only if configured.
    ModelFormat("remote", (), folder=True),
    ModelFormat("identity", (), folder=True),
    ModelFormat("repeat", (), folder=True),
    ModelFormat("square", (), folder=True),
)
#: For each file name, and for each suffix, the first of the FORMATS that has it.
_BY_FILENAME: Final = {
    name.rpartition("/")[2]: format for format in reversed(FORMATS) for name in reversed(format.filenames)
}
_BY_SUFFIX: Final = {suffix: format for format in reversed(FORMATS) for suffix in format.suffixes}
