"""Tensors whose shape in the model differs from the one that clients see (Triton's `reshape`)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from backline.backends.backend import Run
from backline.engine.messages import Parameter
from backline.engine.model_config import ModelConfig
from backline.engine.reshape import Reshape, Reshapes, reshape_arrays
from backline.engine.signature import Signature, TensorSpec
from backline.lifecycle.view.stage import Arrays, Stage, Stream


class ReshapeTensors(Stage):
    """Reshapes inputs for the model and outputs for clients."""

    def __init__(self, outer: ModelConfig, path: Path) -> None:
        super().__init__(outer, path)
        self._to_model = to_model(outer)
        self._inputs_seen = _to_clients(outer, outer.inputs)
        self._to_clients = _to_clients(outer, outer.outputs)

    @property
    def changes_runs(self) -> bool:
        return bool(self._to_model or self._to_clients)

    @property
    def inner(self) -> ModelConfig:
        return replace(self.outer, inputs=_in_model(self.outer.inputs), outputs=_in_model(self.outer.outputs))

    def fit(self, inner: Signature) -> Signature:
        """Raises Internal if the model has a tensor whose shape cannot be reshaped as configured."""
        return Signature(_seen(inner.inputs, self._inputs_seen), _seen(inner.outputs, self._to_clients))

    def run(self, run: Run, inputs: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        arrays = run(reshape_arrays(inputs, self._to_model), outputs)
        reshapes = self._to_clients
        # not a dict: a request may ask for an output twice
        return [
            reshapes[name].array(name, array) if name in reshapes else array
            for name, array in zip(outputs, arrays, strict=True)
        ]

    def stream(
        self, stream: Stream, inputs: Arrays, outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> Generator[Arrays, None, None]:
        responses = stream(reshape_arrays(inputs, self._to_model), outputs, parameters)
        try:
            for arrays in responses:
                yield reshape_arrays(arrays, self._to_clients)
        finally:
            responses.close()


def to_model(config: ModelConfig) -> dict[str, Reshape]:
    """Reshapes from the clients' to the model's shapes, batch included, by input."""
    batch = _batch(config)
    return {
        spec.name: Reshape((*batch, *spec.shape), (*batch, *spec.reshape))
        for spec in config.inputs
        if spec.reshape is not None
    }


def _to_clients(config: ModelConfig, specs: Sequence[TensorSpec]) -> dict[str, Reshape]:
    batch = _batch(config)
    return {
        spec.name: Reshape((*batch, *spec.reshape), (*batch, *spec.shape))
        for spec in specs
        if spec.reshape is not None
    }


def _batch(config: ModelConfig) -> tuple[int, ...]:
    return (-1,) if config.max_batch_size else ()


def _in_model(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(spec if spec.reshape is None else replace(spec, shape=spec.reshape) for spec in specs)


def _seen(specs: Sequence[TensorSpec], reshapes: Reshapes) -> tuple[TensorSpec, ...]:
    return tuple(
        replace(spec, shape=reshapes[spec.name].shape(spec.name, spec.shape))
        if spec.name in reshapes
        else spec
        for spec in specs
    )
