"""The models of this folder as a repository; the identity model is copied for each datatype."""

from __future__ import annotations

import shutil
from pathlib import Path

MODELS = Path(__file__).with_name("models")
_DATATYPES = (
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
)


def write_repository(folder: Path) -> Path:
    """Fills the folder `models` below `folder`."""
    repository = folder / "models"
    shutil.copytree(MODELS, repository, ignore=shutil.ignore_patterns("identity", "__pycache__"))
    for datatype in _DATATYPES:
        made = repository / f"identity_{datatype.lower()}"
        shutil.copytree(MODELS / "identity", made, ignore=shutil.ignore_patterns("__pycache__"))
        config = (made / "config.pbtxt").read_text()
        (made / "config.pbtxt").write_text(
            config.replace("TYPE_FP32", f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}")
        )
    for file in repository.glob("*/1/model.txt"):  # code that linters would reject
        file.rename(file.with_suffix(".py"))
    return repository
