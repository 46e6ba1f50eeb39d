"""MLflow model folders. The backend of one of the flavours in a folder serves the model, without MLflow
itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from msgspec.structs import replace

from backline.backends.backend import DEFAULT_OPTIONS, Backend, LoadedModel, LoadOptions, gpus_of
from backline.backends.registry import find_backend
from backline.backends.runtime import read_start
from backline.backends.yaml_document import read_yaml
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Gpus
from backline.engine.document_limits import MAX_DOCUMENT
from backline_client.values.errors import InvalidArgument

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
_OBJECTS = (".skops", ".pkl", ".pickle", ".joblib")


class MlFlow:
    """The backend for folders that contain a file named MLmodel."""

    name: ClassVar[str] = "mlflow"

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        """Returns the GPUs that the flavour's backend can use. See GpuBackend."""
        backend, file = _served(path)
        return gpus_of(backend, file, replace(config, backend=backend.name))

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> LoadedModel:
        """Loads the model with its flavour's backend, which determines the names of tensors and the options.

        Raises InvalidArgument if no flavour in the folder can be served; pickles need `trust_pickle`.
        """
        backend, file = _served(path)
        config = replace(config, backend=backend.name)
        # All backends in _FLAVOURS return a LoadedModel.
        return backend.load(file, config, options)  # type: ignore[return-value]


def extras(path: Path) -> set[str]:
    """Returns the extra of the backend that serves an MLflow folder. Raises InvalidArgument if none can."""
    entry = find_backend(_served(path)[0].name)
    return {entry.extra} if entry is not None else set()


def _served(path: Path) -> tuple[Backend, Path]:
    """Returns the backend of the first flavour that can be served, and the model file of that flavour."""
    folder = next((f for f in (path, path / "model", path.parent) if (f / _FILE).is_file()), path)
    flavours = _read(folder / _FILE)
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
    flavours = content.get("flavors") if isinstance(content, Mapping) else None
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
