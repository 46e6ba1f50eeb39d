"""Triton's repeat backend: one response for each element of an input, for trying out clients of decoupled models."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from backline.backends.backend import DEFAULT_OPTIONS, LoadOptions
from backline.backends.declared import DeclaredModel, check_tensors
from backline.engine.datatypes import DataType
from backline.engine.errors import InvalidArgument
from backline.engine.messages import Parameter
from backline.engine.model_config import ModelConfig
from backline.engine.signature import TensorSpec

_INPUTS = (
    TensorSpec("IN", DataType.INT32, (-1,)),
    TensorSpec("DELAY", DataType.UINT32, (-1,)),
    TensorSpec("WAIT", DataType.UINT32, (1,)),
)
_OUTPUTS = (TensorSpec("OUT", DataType.INT32, (1,)), TensorSpec("IDX", DataType.UINT32, (1,)))


class Repeat:
    """The backend for `backend: "repeat"`; nothing is recognised by its files."""

    name: ClassVar[str] = "repeat"
    platform: ClassVar[str] = "repeat"

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> RepeatModel:
        """A model that gives the elements of IN, each as OUT with its place as IDX, DELAY milliseconds after the one before.

        Raises InvalidArgument where the configuration has other tensors, a batch, or no decoupled transaction policy.
        """
        check_tensors(config, self.name, _INPUTS, _OUTPUTS)
        return RepeatModel(config, self.name)


class RepeatModel(DeclaredModel):
    """No model at all. WAIT, after which Triton's backend takes the next request, has no effect: here others never wait for it."""

    #: Most of the time they sleep.
    streams_at_once = 16

    def stream(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> Generator[Mapping[str, np.ndarray], None, None]:
        """See StreamingModel."""
        values, delays = inputs["IN"], inputs["DELAY"]
        if values.shape != delays.shape:
            raise InvalidArgument(
                f"expected IN and DELAY shape to match, got {list(values.shape)} and {list(delays.shape)}"
            )
        for index in range(len(values)):
            if delays[index]:
                time.sleep(delays[index] / 1000)
            yield {"OUT": values[index : index + 1].copy(), "IDX": np.array([index], np.uint32)}
