"""Chooses the backend of a model: as configured, or by the format of its file.

The module of a backend is only imported when a model needs it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from backline.backends.plugin import BACKENDS, BackendPlugin
from backline.engine.config.model_config import Formats, ModelConfig, ModelFormat
from backline_client.values.errors import InvalidArgument
from backline_client.values.spelling import nearest

__all__ = ["FORMATS", "PLATFORMS", "choose", "choose_by_name", "describe_runtime", "find_backend"]


#: The formats of the built-in backends, to look for if a configuration names no backend, in this order. The
#: format of a folder precedes the formats of files in such folders.
FORMATS: Final = Formats(
    sorted(
        (format for plugin in BACKENDS.built_in for format in plugin.formats),
        key=lambda format: not (format.folder and format.filenames),
    )
)
FORMATS.further = lambda: tuple(format for plugin in BACKENDS.further for format in plugin.formats)
FORMATS.problem = lambda name: next((one.problem for one in BACKENDS.installed if one.name == name), "")


def find_backend(name: str) -> BackendPlugin | None:
    """Returns the backend with this name or platform: a built-in one, or else that of an installed plug-in.

    Raises InvalidArgument if the installed plug-in cannot be used.
    """
    return BACKENDS.find(name, lambda entry: name in (entry.name, entry.platform))


def choose(config: ModelConfig, path: Path) -> BackendPlugin:
    """Returns the backend for the model in the file or folder `path`: as configured, otherwise by its format.

    Imports no runtime. Raises InvalidArgument if no backend has that name or format.
    """
    entry = _configured(config)
    if entry is None and (format := _format_of(path)) is not None:
        entry = find_backend(format.backend)
        if entry is not None and entry.loaded_by:
            entry = find_backend(entry.loader(path))
    if entry is None:
        raise InvalidArgument(
            f"'{path}' has an unknown format; name its `backend` in the configuration: {_names()}"
        )
    return entry


def choose_by_name(config: ModelConfig, filename: str) -> BackendPlugin | None:
    """Returns the backend for a model that has a file with this name: as configured, otherwise by the format
    that such files have. Returns None if no format has such files.

    Does not access files. Raises InvalidArgument if the configuration names a backend that does not exist.
    """
    entry = _configured(config)
    if entry is None and (format := _format_named(filename)) is not None:
        entry = find_backend(format.backend)
    return entry


def describe_runtime(entry: BackendPlugin) -> str:
    """Returns the runtime of a backend for messages, with its version if installed: "LightGBM 4.7.0"."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and only errors need it

    for suffix in ("", "-gpu", "-cpu"):
        with suppress(PackageNotFoundError):
            if entry.package:
                return f"{entry.runtime} {version(entry.package + suffix)}"
    return entry.runtime


#: The values that `platform` may have in a configuration: the name or the platform of any backend.
PLATFORMS: Final = frozenset(name for entry in BACKENDS.built_in for name in (entry.name, entry.platform))


def _configured(config: ModelConfig) -> BackendPlugin | None:
    wanted = config.backend or config.platform
    if not wanted:
        return None
    if (entry := find_backend(wanted)) is not None:
        return entry
    near = nearest(wanted, [entry.name for entry in BACKENDS.all], 1)
    hint = f"did you mean '{near[0]}'?" if near else f"expected one of {_names()}"
    raise InvalidArgument(
        f"Invalid argument: unable to find backend library for backend '{wanted}',"
        f" try specifying runtime on the model configuration. {config.source or config.name}:"
        f" there is no backend '{wanted}', {hint}"
    )


def _names() -> str:
    return ", ".join(f"'{entry.name}'" for entry in BACKENDS.all)


def _is_in(folder: Path, filename: str) -> bool:
    """Returns whether a folder contains a file; `filename` may begin with the name of the folder itself."""
    return (folder / filename).is_file() or (folder / filename.rpartition("/")[2]).is_file()


def _format_of(path: Path) -> ModelFormat | None:
    """Returns the format of a file or folder, if known. Full names take precedence over suffixes."""
    if os.path.isdir(path):
        return _folder_format(path, FORMATS) or _folder_format(path, FORMATS.further())
    return _format_named(path.name)


def _folder_format(path: Path, formats: Sequence[ModelFormat]) -> ModelFormat | None:
    folders = (format for format in formats if format.folder)
    return next((one for one in folders if any(_is_in(path, name) for name in one.filenames)), None)


def _format_named(filename: str) -> ModelFormat | None:
    return _named(filename, FORMATS) or _named(filename, FORMATS.further())


def _named(filename: str, formats: Sequence[ModelFormat]) -> ModelFormat | None:
    # A name in a subfolder, such as onnx/model.onnx, comes after the same name without one.
    for format in formats:
        if filename in format.filenames:
            return format
    for format in formats:
        if any(filename == name.rpartition("/")[2] for name in format.filenames):
            return format
    suffix = os.path.splitext(filename)[1].lower()
    return next((format for format in formats if suffix in format.suffixes), None)
