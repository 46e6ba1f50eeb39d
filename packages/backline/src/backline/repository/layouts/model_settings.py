"""Reads MLServer's layout, in which every folder with a model-settings.json is a version of a model.

MLServer's documentation of ModelSettings (reference/model-settings.md) describes the fields of a
model-settings.json.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from backline.engine.config.model_config import ModelConfig, ModelFormat
from backline.engine.document_limits import check_size
from backline.repository.configuration import ConfigFiles
from backline.repository.layouts.layouts import (
    FIRST_VERSION,
    has_config,
    is_model_folder,
    read_model,
    read_single,
)
from backline.repository.listing import Folder, check_name
from backline.repository.repository import FoundModel, FoundVersion
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.names import printable, version_order

SETTINGS_FILE = "model-settings.json"
#: The backend for each `implementation`.
_BACKENDS = {
    "mlserver_sklearn.SKLearnModel": "sklearn",
    "mlserver_xgboost.XGBoostModel": "xgboost",
    "mlserver_lightgbm.LightGBMModel": "lightgbm",
    "mlserver_catboost.CatboostModel": "catboost",
    "mlserver_mlflow.MLflowRuntime": "mlflow",
}


def has_settings(root: Folder) -> bool:
    """Returns whether any folder of the repository contains a model-settings.json."""
    return any(path.rpartition("/")[2] == SETTINGS_FILE for path in root.listing.files)


def read_settings(root: Folder, formats: Sequence[ModelFormat], configs: ConfigFiles) -> list[FoundModel]:
    """Returns the models of a repository that contains model-settings.json files. Folders with the same model
    name are versions of that model.

    A top-level folder without settings is read as in any other repository, if it is clearly a model. A
    configuration in a folder takes precedence over the folder's settings.
    """
    folders = sorted(
        {path.rpartition("/")[0] for path in root.listing.files if path.rpartition("/")[2] == SETTINGS_FILE}
    )
    by_name: dict[str, list[FoundModel]] = {}
    tops = {folder.partition("/")[0] for folder in folders}
    for name, place in root.folders().items():
        if name not in tops and is_model_folder(place, formats):
            by_name[name] = [read_model(place, name, formats, configs, root.problem(name))]
    for folder in folders:
        model = _read_folder(root.below(folder), formats, configs)
        by_name.setdefault(model.name, []).append(model)
    return [_join(by_name[name]) for name in sorted(by_name)]


class _Settings(Struct, frozen=True):
    """The fields of a model-settings.json that have an effect."""

    name: str
    version: str
    uri: str
    backend: str
    warnings: tuple[str, ...]


def _read_folder(place: Folder, formats: Sequence[ModelFormat], configs: ConfigFiles) -> FoundModel:
    if has_config(place):
        return read_model(place, place.name, formats, configs)
    try:
        settings = _parse(place)
    except BacklineError as error:
        return FoundModel(
            place.name, place.namespace, place.path, ModelConfig(place.name), problem=error.message
        )
    source = f"{place.location}/{SETTINGS_FILE}"
    config = ModelConfig(settings.name, backend=settings.backend, source=source, warnings=settings.warnings)
    try:
        check_name("model", settings.name, source)
        at, config = _follow_uri(place, settings.uri, config)
    except BacklineError as error:
        return FoundModel(
            settings.name,
            place.namespace,
            place.path,
            config,
            problem=error.message,
            warnings=settings.warnings,
        )
    return read_single(at, settings.name, formats, configs, config, settings.version)


def _follow_uri(place: Folder, uri: str, config: ModelConfig) -> tuple[Folder, ModelConfig]:
    """Returns the folder of the version to which `uri` refers, and the configuration of the version. Raises
    InvalidArgument if `uri` does not refer to a usable folder or file.
    """
    where = f"{place.location}/{SETTINGS_FILE}"
    path = posixpath.normpath(uri) if uri else "."
    if "://" in uri or path.startswith(("/", "..")) or not path.isprintable():
        raise InvalidArgument(
            f"{where}: parameters.uri '{printable(uri)}' must be the path of a file or folder below"
            f" '{place.location}'"
        )
    if path == ".":
        return place, config
    if path in place.listing.folders:
        return place.below(path), config
    if path not in place.listing.files:
        raise InvalidArgument(
            f"{where}: parameters.uri '{uri}' does not exist below '{place.location}'; correct it, or add the"
            " file"
        )
    return place, replace(config, default_model_filename=path)


def _parse(place: Folder) -> _Settings:
    where = f"{place.location}/{SETTINGS_FILE}"
    try:
        content = place.listing.read(SETTINGS_FILE)
        check_size(content, where)
        settings = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument(f"{where} is not valid JSON: {error}") from None
    if not isinstance(settings, dict):
        raise InvalidArgument(
            f"{where}: the file must hold an object, such as"
            f" {{'name': 'model', 'parameters': {{'uri': './model.onnx'}}}}"
        )
    parameters = settings.pop("parameters", None)
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise InvalidArgument(f"{where}: 'parameters' must be an object")
    implementation = _text(settings, "implementation", where)
    backend = _BACKENDS.get(implementation, "")
    name = _text(settings, "name", where) or place.name
    result = _Settings(
        name,
        _text(parameters, "version", where) or FIRST_VERSION,
        _text(parameters, "uri", where),
        backend,
        (),
    )
    warnings = []
    if implementation and not backend:
        warnings.append(
            f"{SETTINGS_FILE} of '{name}': implementation '{implementation}' has no effect: the model's file"
            " selects the backend"
        )
    settings.pop("$schema", None)
    unused = sorted([*settings, *(f"parameters.{key}" for key in parameters)])
    if unused:
        warnings.append(
            f"{SETTINGS_FILE} of '{name}': {', '.join(map(printable, unused))} is not supported and has no"
            " effect"
        )
    return replace(result, warnings=tuple(warnings))


def _text(section: dict[str, Any], key: str, where: str) -> str:
    value = section.pop(key, None)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}: '{key}' must be a string, not {value!r}")
    return value


def _join(models: list[FoundModel]) -> FoundModel:
    """Merges the models of one name, each read from a folder of its own, into one model. If some folders have
    problems and at least one folder is usable, the problems become warnings.
    """
    if len(models) == 1:
        return models[0]
    versions: dict[str, list[tuple[FoundModel, FoundVersion]]] = {}
    for model in models:
        for version in model.versions:
            versions.setdefault(version.version, []).append((model, version))
    warnings = tuple(warning for model in models for warning in model.warnings) + tuple(
        model.problem for model in models if model.problem
    )
    first = next((model for model in models if not model.problem), models[0])
    for name, same in versions.items():
        if len(same) > 1:
            folders = ", ".join(f"'{model.namespace.rstrip('/')}/{model.folder}'" for model, _ in same)
            problem = (
                f"version '{name}' of model '{first.name}' is in more than one folder: {folders}; set"
                " parameters.version"
            )
            return replace(first, versions=(), problem=problem, warnings=warnings)
    ordered = sorted(versions, key=version_order)
    return replace(first, versions=tuple(versions[version][0][1] for version in ordered), warnings=warnings)
