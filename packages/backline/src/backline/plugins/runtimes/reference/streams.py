"""Triton's repeat and square backends, for trying out clients: their models send several responses."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from backline.backends.backend import DEFAULT_OPTIONS, LoadOptions
from backline.backends.parameters import Parameters
from backline.engine.config.model_config import ModelConfig
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import Parameter
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import fits


def check_tensors(
    config: ModelConfig, backend: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Raises InvalidArgument unless the configuration is decoupled, unbatched, and lists these tensors."""
    where = f"{config.source or config.name}: the {backend} backend"
    if not config.decoupled:
        raise InvalidArgument(
            f"{where} sends any number of responses: add model_transaction_policy {{ decoupled: true }}"
        )
    if config.max_batch_size:
        raise InvalidArgument(
            f"{where} does not support batching, but max_batch_size is {config.max_batch_size}: set it to 0"
        )
    for kind, expected, given in (("input", inputs, config.inputs), ("output", outputs, config.outputs)):
        known = {spec.name: spec for spec in given}
        if known.keys() != {spec.name for spec in expected}:
            raise InvalidArgument(f"{where} needs the {kind}s {_names(expected)}, got {_names(given)}")
        for spec in expected:
            found = known[spec.name]
            if found.datatype is not spec.datatype or not fits(spec.shape, found.shape):
                raise InvalidArgument(
                    f"{where} expects {kind} '{spec.name}' to be {spec.datatype.name} with dims"
                    f" {list(spec.shape)}, got {found.datatype.name} with dims {list(found.shape)}"
                )


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"'{spec.name}'" for spec in specs) or "none"


class DeclaredModel:
    """A model without a file. The configuration gives the signature."""

    def __init__(self, config: ModelConfig, backend: str) -> None:
        self.signature = Signature(config.inputs, config.outputs)
        self.warnings = Parameters(config, backend, ()).warnings

    def close(self) -> None:
        """Does nothing, since the model has no memory to free. See StreamingModel."""


_REPEAT_INPUTS = (
    TensorSpec("IN", DataType.INT32, (-1,)),
    TensorSpec("DELAY", DataType.UINT32, (-1,)),
    TensorSpec("WAIT", DataType.UINT32, (1,)),
)
_REPEAT_OUTPUTS = (TensorSpec("OUT", DataType.INT32, (1,)), TensorSpec("IDX", DataType.UINT32, (1,)))


class Repeat:
    """The backend `repeat`, which must be named in the configuration, as its models have no file."""

    name: ClassVar[str] = "repeat"

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> RepeatModel:
        """Loads a model that sends each element of IN as OUT, and its index as IDX, after DELAY ms.

        Raises InvalidArgument for other tensors, max_batch_size, or a configuration that is not decoupled.
        """
        check_tensors(config, self.name, _REPEAT_INPUTS, _REPEAT_OUTPUTS)
        return RepeatModel(config, self.name)


class RepeatModel(DeclaredModel):
    """A model that sends each element of its input IN in a separate response, after a delay given in DELAY.

    The input WAIT, which is another delay in Triton, is accepted but ignored.
    """

    #: The number of streams to compute at the same time. It is high because these streams mostly sleep.
    streams_at_once = 16

    def stream(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> Generator[Mapping[str, np.ndarray], None, None]:
        values, delays = inputs["IN"], inputs["DELAY"]
        if values.shape != delays.shape:
            raise InvalidArgument(
                f"expected IN and DELAY shape to match, got {list(values.shape)} and {list(delays.shape)}"
            )
        for index in range(len(values)):
            if delays[index]:
                time.sleep(delays[index] / 1000)
            yield {"OUT": values[index : index + 1].copy(), "IDX": np.array([index], np.uint32)}


_SQUARE_INPUTS = (TensorSpec("IN", DataType.INT32, (1,)),)
_SQUARE_OUTPUTS = (TensorSpec("OUT", DataType.INT32, (1,)),)


class Square:
    """The backend `square`, which must be named in the configuration, as its models have no file."""

    name: ClassVar[str] = "square"

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> SquareModel:
        """Loads a model that sends n responses with OUT = n for IN = n.

        Raises InvalidArgument for other tensors, max_batch_size, or a configuration that is not decoupled.
        """
        check_tensors(config, self.name, _SQUARE_INPUTS, _SQUARE_OUTPUTS)
        return SquareModel(config, self.name)


class SquareModel(DeclaredModel):
    """A model that sends its input, a number n, n times."""

    streams_at_once = 1

    def stream(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> Generator[Mapping[str, np.ndarray], None, None]:
        count = int(inputs["IN"][0])
        for _ in range(count):
            yield {"OUT": np.array([count], np.int32)}
