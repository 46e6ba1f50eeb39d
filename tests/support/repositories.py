"""Repositories on disk whose files are placeholders, since a scan never reads them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backline.engine.config.model_config import ModelFormat
from backline.lifecycle.wanted import select
from backline.repository.configuration import ConfigFiles
from backline.repository.local import LocalRepository
from backline.repository.repository import FoundModel

ONNX = ModelFormat("onnxruntime", ("model.onnx",), (".onnx",))
#: An unprivileged user, since file permissions do not bind the superuser.
_NOBODY = 65534


def put(path: Path, text: str = "model") -> Path:
    """Writes a file, creating its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def scan(path: Path, *, name: str = "", config_name: str = "") -> list[FoundModel]:
    """The models at a path, when ONNX is the only known format."""
    return LocalRepository(path, formats=[ONNX], name=name, configs=ConfigFiles(config_name)).scan_now()


def only(path: Path, *, name: str = "", config_name: str = "") -> FoundModel:
    """The only model at a path."""
    (model,) = scan(path, name=name, config_name=config_name)
    return model


def served(model: FoundModel) -> list[str]:
    """The versions that the model's policy selects."""
    return select([version.version for version in model.versions], model.config.version_policy)[0]


@contextmanager
def unprivileged_folder() -> Iterator[Path]:
    """A folder in which file permissions bind this process, even if the tests run as root.

    Root's own temporary folders will not do: other users cannot enter them.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        if os.geteuid() != 0:
            yield folder
            return
        os.chown(folder, _NOBODY, -1)
        os.seteuid(_NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(0)
