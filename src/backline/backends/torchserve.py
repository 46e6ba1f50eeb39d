"""TorchServe model archives (`.mar`): their handlers run in worker processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from backline.backends.backend import DEFAULT_OPTIONS, HostedModel, LoadOptions
from backline.backends.cuda import cuda_gpus
from backline.backends.mar_file import MANIFEST, MarFile
from backline.backends.runtime import one_line, read_start, require_trust
from backline.backends.yaml_document import read_yaml
from backline.engine.device import Gpus
from backline.engine.errors import InvalidArgument
from backline.engine.instance_group import InstanceGroup, Kind
from backline.engine.model_config import ModelConfig

#: The parameter with the contents of model-config.yaml, as JSON, for the worker.
SETTINGS = "model-config"


class TorchServe:
    """The backend for model archives: zip and gzipped tar files, and folders with MAR-INF/MANIFEST.json."""

    name: ClassVar[str] = "torchserve"

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        """See GpuBackend: any GPU of the machine, as handlers decide what they use."""
        return cuda_gpus()

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> HostedModel:
        """Reads manifest and settings; nothing in the archive is executed here.

        Raises InvalidArgument for a file that is not an archive, or that lacks files it names.
        """
        require_trust(path, config, options)
        if path.is_dir():
            path = path.parent if path.name == "MAR-INF" else path
        else:
            read_start(path)
        with MarFile.opened(path) as archive:
            model = _model_of(archive)
            settings = _settings(archive, model.get("configFile"))
            packed = None if path.is_dir() else archive.root
        return HostedModel(
            path,
            "torchserve",
            packed=packed,
            parameters={SETTINGS: json.dumps(settings)},
            groups=_groups(settings),
        )


def _groups(settings: Mapping[str, Any]) -> tuple[InstanceGroup, ...]:
    """The instance groups of model-config.yaml. Raises InvalidArgument."""
    kind, ids = settings.get("deviceType"), settings.get("deviceIds", [])
    if kind is None and not ids:
        return ()
    kinds: Mapping[Any, Kind] = {None: "gpu", "gpu": "gpu", "cpu": "cpu"}
    if kind not in kinds:
        raise InvalidArgument(f"model-config.yaml: deviceType is {kind!r}, expected cpu or gpu")
    if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
        raise InvalidArgument(f"model-config.yaml: deviceIds is {ids!r}, expected a list of numbers of GPUs")
    return (InstanceGroup(0, kind=kinds[kind], gpus=tuple(ids) if kinds[kind] == "gpu" else ()),)


def _model_of(archive: MarFile) -> Mapping[str, Any]:
    """The manifest's description of the model. Raises InvalidArgument."""
    try:
        manifest = json.loads(archive.read(MANIFEST))
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"'{archive.path}': {MANIFEST} is not JSON: {error}") from None
    model = manifest.get("model") if isinstance(manifest, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("handler"), str) or not model["handler"]:
        raise InvalidArgument(
            f"'{archive.path}': {MANIFEST} names no handler; expected {{'model': {{'handler': ...}}}}"
        )
    for key in ("serializedFile", "modelFile", "configFile"):
        name = model.get(key)
        if name is not None and not (isinstance(name, str) and archive.holds(name)):
            raise InvalidArgument(
                f"'{archive.path}': its {key} '{name}' is not in the archive; pack it again with"
                " torch-model-archiver"
            )
    return model


def _settings(archive: MarFile, name: str | None) -> dict[str, Any]:
    """The contents of model-config.yaml. Raises InvalidArgument."""
    if name is None:
        return {}
    what = "The settings of model archives need PyYAML"
    settings = read_yaml(archive.read(name), f"'{archive.path}': {name}", what=what, extra="torchserve")
    try:
        json.dumps(settings)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"'{archive.path}': {name} cannot be read: {one_line(error)}") from None
    if settings is not None and not isinstance(settings, dict):
        raise InvalidArgument(f"'{archive.path}': {name} must hold keys and values")
    return settings or {}
