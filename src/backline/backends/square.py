"""Triton's square backend: the n-fold response n, for trying out clients of decoupled models."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from backline.backends.backend import DEFAULT_OPTIONS, LoadOptions
from backline.backends.declared import DeclaredModel, check_tensors
from backline.engine.datatypes import DataType
from backline.engine.messages import Parameter
from backline.engine.model_config import ModelConfig
from backline.engine.signature import TensorSpec

_INPUTS = (TensorSpec("IN", DataType.INT32, (1,)),)
_OUTPUTS = (TensorSpec("OUT", DataType.INT32, (1,)),)


class Square:
    """The backend for `backend: "square"`; nothing is recognised by its files."""

    name: ClassVar[str] = "square"
    platform: ClassVar[str] = "square"

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> SquareModel:
        """A model that answers IN = n with n responses OUT = n.

        Raises InvalidArgument where the configuration has other tensors, a batch, or no decoupled transaction policy.
        """
        check_tensors(config, self.name, _INPUTS, _OUTPUTS)
        return SquareModel(config, self.name)


class SquareModel(DeclaredModel):
    """No model at all."""

    streams_at_once = 1

    def stream(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> Generator[Mapping[str, np.ndarray], None, None]:
        """See StreamingModel."""
        count = int(inputs["IN"][0])
        for _ in range(count):
            yield {"OUT": np.array([count], np.int32)}
