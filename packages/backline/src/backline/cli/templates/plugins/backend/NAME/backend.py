"""Loads and runs the models. Here, a model is JSON such as {"scale": 2.0}; replace it with your format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from backline.backends.agreement import agree
from backline.backends.backend import DEFAULT_OPTIONS, LoadOptions
from backline.engine.config.model_config import ModelConfig
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import Signature, TensorSpec

# -1 is a dimension of any size. The first one is the batch dimension.
_FILE = Signature((TensorSpec("x", DataType.FP32, (-1, 4)),), (TensorSpec("y", DataType.FP32, (-1, 4)),))


class NameModel:
    """A model in memory. Its runs may be called on several threads at once."""

    threads_per_run = 1
    warnings = ()

    def __init__(self, signature: Signature, scale: float) -> None:
        self.signature = signature
        self._scale = np.float32(scale)

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        results = {"y": inputs["x"] * self._scale}
        return [results[name] for name in outputs]

    def close(self) -> None:
        """Frees what the runtime holds."""


class NameBackend:
    """The backend. It is created once, and loads any number of models."""

    name: ClassVar[str] = "NAME"

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> NameModel:
        try:
            scale = float(json.loads(path.read_text())["scale"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgument(f"'{path}' is not a model of the NAME backend: {error}") from None
        return NameModel(agree(path, _FILE, config), scale)
