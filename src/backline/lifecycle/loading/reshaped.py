"""A model in this process whose clients see other shapes than it has, as its configuration's `reshape` says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import replace
from typing import overload

import numpy as np

from backline.backends.backend import CancellableModel, LoadedModel, Run, StreamingModel
from backline.engine.errors import BacklineError
from backline.engine.messages import Parameter
from backline.engine.model_config import ModelConfig
from backline.engine.reshape import Reshape, Reshapes, reshape_arrays
from backline.engine.signature import Signature, TensorSpec


def as_reshaped(config: ModelConfig) -> ModelConfig:
    """The configuration as the backend needs it, which knows no other shapes than the model's."""
    return replace(config, inputs=_in_model(config.inputs), outputs=_in_model(config.outputs))


def _in_model(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(spec if spec.reshape is None else replace(spec, shape=spec.reshape) for spec in specs)


def to_model(config: ModelConfig) -> dict[str, Reshape]:
    """What makes the model's shapes of the clients', by input, with the batch."""
    batch = (-1,) if config.max_batch_size else ()
    return {
        spec.name: Reshape((*batch, *spec.shape), (*batch, *spec.reshape))
        for spec in config.inputs
        if spec.reshape is not None
    }


@overload
def reshaped(model: LoadedModel, config: ModelConfig) -> LoadedModel: ...
@overload
def reshaped(model: LoadedModel | StreamingModel, config: ModelConfig) -> LoadedModel | StreamingModel: ...
def reshaped(model: LoadedModel | StreamingModel, config: ModelConfig) -> LoadedModel | StreamingModel:
    """The model as clients see it: itself, where the configuration reshapes nothing.

    Raises Internal, and closes the model, where its outputs are none that could be reshaped.
    """
    if not any(spec.reshape is not None for spec in (*config.inputs, *config.outputs)):
        return model
    try:
        shapes = _Shapes(model.signature, config)
    except BacklineError:
        model.close()
        raise
    if isinstance(model, StreamingModel):
        return _ReshapedStreams(model, shapes)
    return (
        _CancellableReshapedModel(model, model, shapes)
        if isinstance(model, CancellableModel)
        else _ReshapedModel(model, shapes)
    )


class _Shapes:
    """The shapes of a model by its configuration. What is laid end to end has one dimension in the model, whatever else is said."""

    def __init__(self, signature: Signature, config: ModelConfig) -> None:
        batch = (-1,) if config.max_batch_size else ()
        joining = config.joining
        ragged, scattered = ((), ()) if joining is None else (joining.ragged, joining.scattered)

        def to_clients(specs: Sequence[TensorSpec], flat: Collection[str]) -> dict[str, Reshape]:
            return {
                spec.name: Reshape((*batch, *spec.reshape), (*batch, *spec.shape))
                for spec in specs
                if spec.reshape is not None and spec.name not in flat
            }

        self.inputs = {name: reshape for name, reshape in to_model(config).items() if name not in ragged}
        self.outputs = to_clients(config.outputs, scattered)
        self.signature = Signature(
            _as_clients_see(signature.inputs, to_clients(config.inputs, ragged)),
            _as_clients_see(signature.outputs, self.outputs),
        )


def _as_clients_see(specs: Sequence[TensorSpec], reshapes: Reshapes) -> tuple[TensorSpec, ...]:
    return tuple(
        replace(spec, shape=reshapes[spec.name].shape(spec.name, spec.shape))
        if spec.name in reshapes
        else spec
        for spec in specs
    )


class _ReshapedModel:
    """See LoadedModel."""

    def __init__(self, model: LoadedModel, shapes: _Shapes) -> None:
        self._model = model
        self._shapes = shapes
        self.signature = shapes.signature
        self.threads_per_run = model.threads_per_run
        self.warnings = model.warnings

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """See LoadedModel."""
        return self._run_by(self._model.run, inputs, outputs)

    def _run_by(self, run: Run, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        arrays = run(reshape_arrays(inputs, self._shapes.inputs), outputs)
        reshapes = self._shapes.outputs
        return [
            reshapes[name].array(name, array) if name in reshapes else array
            for name, array in zip(outputs, arrays, strict=True)
        ]

    def close(self) -> None:
        """See LoadedModel."""
        self._model.close()


class _CancellableReshapedModel(_ReshapedModel):
    def __init__(self, model: LoadedModel, cancellable: CancellableModel, shapes: _Shapes) -> None:
        super().__init__(model, shapes)
        self._cancellable = cancellable

    def cancellable(self) -> tuple[Run, Callable[[], None]]:
        """See CancellableModel."""
        run, cancel = self._cancellable.cancellable()
        return lambda inputs, outputs: self._run_by(run, inputs, outputs), cancel


class _ReshapedStreams:
    """See StreamingModel."""

    def __init__(self, model: StreamingModel, shapes: _Shapes) -> None:
        self._model = model
        self._shapes = shapes
        self.signature = shapes.signature
        self.warnings = model.warnings
        self.streams_at_once = model.streams_at_once

    def stream(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> Generator[Mapping[str, np.ndarray], None, None]:
        """See StreamingModel."""
        responses = self._model.stream(reshape_arrays(inputs, self._shapes.inputs), outputs, parameters)
        try:
            for arrays in responses:
                yield reshape_arrays(arrays, self._shapes.outputs)
        finally:
            responses.close()

    def close(self) -> None:
        """See LoadedModel."""
        self._model.close()
