"""The seam to the runtimes: how a model file is inspected, loaded and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from backline.engine.model_config import ModelConfig
from backline.engine.signature import Signature


class LoadedModel(Protocol):
    """A model in memory. `run` may be called from several threads at once and releases the GIL while the runtime computes."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs as the file declares them, every dimension included (also a leading batch dimension)."""

    @property
    def threads_per_run(self) -> int:
        """The cores that one run occupies."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What in the configuration has no effect, for the person who wrote it."""

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Runs one batch: arrays by input name in, arrays in the order of `outputs` out.

        Arrays have the numpy dtype of their DataType. Raises InvalidArgument when the runtime refuses the input, Internal when it fails.
        """

    def close(self) -> None:
        """Gives the memory back. No run is under way."""


class Backend(Protocol):
    """A runtime."""

    #: The name in configurations ("onnxruntime").
    name: ClassVar[str]
    #: The platform that clients see ("onnxruntime_onnx").
    platform: ClassVar[str]

    def load(self, path: Path, config: ModelConfig) -> LoadedModel:
        """Loads the model file, with the backend's own options from `config.parameters`.

        Raises BacklineError with the path and the runtime's reason when it cannot, or the extra to install when the runtime is missing.
        """
