"""Python models: a `model.py` with a class or function, run in worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from backline.backends.backend import DEFAULT_OPTIONS, HostedModel, LoadOptions
from backline.backends.runtime import cuda_gpus, read_start, require_trust
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Gpus


class Python:
    """The backend for `model.py`."""

    name: ClassVar[str] = "python"

    def gpus(self, path: Path, config: ModelConfig) -> Gpus:
        """Returns all GPUs, because the model's code decides how to use them. See GpuBackend."""
        return cuda_gpus()

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> HostedModel:
        """Returns the data that workers need. The model's file is imported only in worker processes."""
        require_trust(path, config, options)
        read_start(path)
        return HostedModel(path, "python")
