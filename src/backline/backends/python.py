"""Python models: a `model.py` with a class, run in worker processes of its own."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from backline.backends.hosted import HostedModel
from backline.backends.model_file import read_start
from backline.engine.model_config import ModelConfig

#: What makes the model in the worker.
ADAPTER = "backline.workers.process.python_model:load"


class Python:
    """The backend for `model.py`."""

    name: ClassVar[str] = "python"
    platform: ClassVar[str] = "python"

    def load(self, path: Path, config: ModelConfig) -> HostedModel:
        """Only says how it is run: the file is imported in a worker, never here."""
        read_start(path)
        return HostedModel(path, ADAPTER)
