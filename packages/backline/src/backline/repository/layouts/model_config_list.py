"""Reads a TensorFlow Serving file with a `model_config_list`, which lists models by name and base path.

The message ModelServerConfig (tensorflow_serving/config/model_server_config.proto) defines the fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from backline.engine.config.model_config import ModelConfig, ModelFormat, VersionPolicy
from backline.repository.configuration import ConfigFiles
from backline.repository.layouts.layouts import read_config, read_model
from backline.repository.listing import Folder, check_name
from backline.repository.repository import FoundModel
from backline_client.values.errors import BacklineError, InvalidArgument

#: The platform of every SavedModel; the platform implies the backend.
_SAVED_MODEL_PLATFORM = "tensorflow"


class ListedModel(Struct, frozen=True):
    """An entry of the list. `base_path` is the folder with the versions, as written in the list."""

    name: str
    base_path: str
    platform: str
    policy: VersionPolicy
    labels: dict[str, str]
    warnings: tuple[str, ...] = ()


def is_list(text: str) -> bool:
    """Returns whether a file is clearly meant to be a list of models."""
    return "model_config_list" in text


def parse_list(text: str, source: str) -> list[ListedModel]:
    """Returns the models listed in `text`, the content of the file `source`. Raises InvalidArgument, with
    file and line, if the text is not valid.
    """
    # Imported late, because the import loads protobuf, and few repositories are lists.
    from backline.repository.configuration.text import parse_message

    models = [
        _listed(config, source)
        for config in parse_message(
            "tensorflow.serving.ModelServerConfig", text, source
        ).model_config_list.config
    ]
    names = [model.name for model in models]
    for name, count in Counter(names).items():
        if count > 1:
            raise InvalidArgument(
                f"{source}: model '{name}' is listed more than once; give each model its own name"
            )
    return models


def folder_of(model: ListedModel, source: Path) -> Path:
    """Returns the folder of a listed model. A relative base path is relative to the folder that contains the
    list, `source`.

    Raises InvalidArgument if the base path is empty or a URL.
    """
    if not model.base_path or "\0" in model.base_path:
        raise InvalidArgument(
            f"{source}: model '{model.name}' must have a base_path, the folder that holds its versions"
        )
    if "://" in model.base_path:
        raise InvalidArgument(
            f"{source}: base_path '{model.base_path}' of model '{model.name}' is not a path on local disk;"
            " serve the URL as a separate repository instead"
        )
    return source.parent / model.base_path


def read_listed(
    place: Folder, listed: ListedModel, formats: Sequence[ModelFormat], configs: ConfigFiles
) -> FoundModel:
    """Returns the model with its versions in `place`. The version policy and labels in the list override the
    version policy and labels in the folder's configuration.
    """
    try:
        check_name("model", listed.name, place.location)
        config = read_config(place.listing, listed.name, configs)
    except BacklineError as error:
        return FoundModel(
            listed.name, place.namespace, place.path, ModelConfig(listed.name), problem=error.message
        )
    config = replace(
        config,
        version_policy=listed.policy,
        labels=MappingProxyType({**config.labels, **listed.labels}),
        backend=config.backend
        or ("" if config.platform or listed.platform == _SAVED_MODEL_PLATFORM else listed.platform),
        source=config.source or place.namespace,
        warnings=config.warnings + listed.warnings,
    )
    return read_model(place, listed.name, formats, configs, given=config)


def _listed(config: Any, source: str) -> ListedModel:
    if not config.name:
        raise InvalidArgument(
            f"{source}: every config must have a name (this one has the base_path '{config.base_path}')"
        )
    warnings: tuple[str, ...] = ()
    if config.HasField("logging_config"):
        warnings = (f"{source}: logging_config of '{config.name}' is not supported and has no effect",)
    labels = {label: str(version) for label, version in sorted(config.version_labels.items())}
    return ListedModel(
        config.name, config.base_path, config.model_platform, _policy(config, source), labels, warnings
    )


def _policy(config: Any, source: str) -> VersionPolicy:
    policy = config.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(latest=None)
    if choice == "specific":
        if not policy.specific.versions:
            raise InvalidArgument(
                f"{source}: model_version_policy.specific of '{config.name}' names no version; add one, such"
                " as versions: 1"
            )
        return VersionPolicy(latest=None, specific=tuple(dict.fromkeys(map(str, policy.specific.versions))))
    return VersionPolicy(latest=policy.latest.num_versions or 1)
