"""config.pbtxt by its path, for the scan of folders."""

from __future__ import annotations

from pathlib import Path

from backline.engine.errors import InvalidArgument
from backline.engine.model_config import ModelConfig
from backline.repository import configuration
from backline.repository.listing import FileEntry, Listing


def read(path: Path, name: str) -> ModelConfig:
    """The configuration in the file `path` of the model whose folder is called `name`. Raises InvalidArgument as `configuration.read`."""
    if path.exists() and not path.is_file():  # it could wait for its writer
        raise InvalidArgument(f"{path}: is not a regular file")
    folder = path.parent
    config = configuration.read(Listing(str(folder), _files(folder), frozenset(), lambda file: _read(folder / file)), name)
    if config is None:
        raise InvalidArgument(f"{path}: cannot be read: No such file or directory")
    return config


def _files(folder: Path) -> dict[str, FileEntry]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): FileEntry(0, "") for file in files if file.resolve().is_relative_to(folder.resolve())}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot be read: {error.strerror}") from None
