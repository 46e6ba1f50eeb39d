"""Stages that change tensors between clients and the model: reshapes, batch axes and constant inputs."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from backline.backends.agreement import agree
from backline.backends.backend import Run
from backline.engine.config.model_config import ModelConfig
from backline.engine.config.reshape import Reshape, Reshapes, reshape_arrays
from backline.lifecycle.view.stage import Arrays, Stage, Stream
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import Parameter
from backline_client.values.signature import Signature, TensorSpec


class ReshapeTensors(Stage):
    """The stage that reshapes inputs for the model and outputs for clients."""

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
        if not self.changes_runs:
            return self.outer
        return replace(self.outer, inputs=_in_model(self.outer.inputs), outputs=_in_model(self.outer.outputs))

    def fit(self, inner: Signature) -> Signature:
        """Returns the reshaped signature. Raises Internal if a shape cannot be reshaped as configured."""
        return Signature(_seen(inner.inputs, self._inputs_seen), _seen(inner.outputs, self._to_clients))

    def run(self, run: Run, inputs: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        arrays = run(reshape_arrays(inputs, self._to_model), outputs)
        reshapes = self._to_clients
        # A list, not a dict, because a request may ask for an output twice.
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
    """Returns, by input, the reshape from the shape that clients send to the shape in the model. Both include
    the batch dimension.
    """
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


class Arrange(Stage):
    """The stage that moves the batch axis of tensors to the front, and supplies constant inputs that clients
    do not send.
    """

    _constants: dict[str, np.ndarray]

    @property
    def changes_runs(self) -> bool:
        return bool(self.outer.batch_axes or self.outer.constant_inputs)

    @property
    def inner(self) -> ModelConfig:
        if not self.changes_runs:
            return self.outer
        # The backend gets no signature to check; `fit` compares the rearranged signature with the
        # configuration.
        return replace(self.outer, inputs=(), outputs=(), max_batch_size=None)

    def refuse(self, kind: str) -> None:
        """Raises InvalidArgument if batch axes or constant inputs are configured. Models of this `kind`
        support neither.
        """
        if self.changes_runs:
            raise InvalidArgument(
                f"model '{self.outer.name}': {self.outer.source} sets batch_axis or constant_input, which"
                f" {kind} do not support: remove them"
            )

    def fit(self, inner: Signature) -> Signature:
        if not self.changes_runs:
            return inner
        config = self.outer
        where = f"model '{config.name}': {config.source}"
        inputs = {spec.name: spec for spec in inner.inputs}
        names = {*inputs, *(spec.name for spec in inner.outputs)}
        for name in config.batch_axes:
            if name not in names:
                raise InvalidArgument(
                    f"{where} sets batch_axis for '{name}', but the model only has {_list(names)}"
                )
        for name in config.constant_inputs:
            if name not in inputs:
                raise InvalidArgument(
                    f"{where} sets a constant for input '{name}', but the model only has {_list(inputs)}"
                )
        self._constants = {
            name: _constant(where, inputs[name], text) for name, text in config.constant_inputs.items()
        }
        arranged = Signature(
            tuple(self._arranged(where, spec) for spec in inner.inputs if spec.name not in self._constants),
            tuple(self._arranged(where, spec) for spec in inner.outputs),
        )
        return agree(self.path, arranged, config)

    def _arranged(self, where: str, spec: TensorSpec) -> TensorSpec:
        axis = self.outer.batch_axes.get(spec.name, 0)
        if not axis or not spec.shape:  # an empty shape may mean that the file does not specify the rank
            return spec
        if axis >= len(spec.shape):
            raise InvalidArgument(
                f"{where} sets batch_axis {axis} for '{spec.name}', but its shape {list(spec.shape)} has no"
                " such axis"
            )
        return replace(spec, shape=(spec.shape[axis], *spec.shape[:axis], *spec.shape[axis + 1 :]))

    def run(self, run: Run, inputs: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        axes = self.outer.batch_axes
        arranged = {**inputs, **self._constants}
        for name, axis in axes.items():
            if axis and name in inputs:
                arranged[name] = np.ascontiguousarray(np.moveaxis(inputs[name], 0, axis))
        return [
            np.moveaxis(array, axes[name], 0) if axes.get(name) else array
            for name, array in zip(outputs, run(arranged, outputs), strict=True)
        ]


def _constant(where: str, spec: TensorSpec, text: str) -> np.ndarray:
    """Returns the value of a constant input, in the model's shape, with size 1 for variable dimensions."""
    shape = tuple(1 if dim < 0 else dim for dim in spec.shape)
    if spec.datatype is DataType.BYTES:
        return np.full(shape, text.encode(), np.object_)
    try:
        number: float | None = {"true": 1, "false": 0}.get(text)
        if spec.datatype is not DataType.BOOL:
            number = float(text) if "." in text else int(text)
        if number is None or spec.datatype is DataType.BF16:
            raise ValueError
        return np.full(shape, np.array(number, spec.datatype.dtype))
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"{where} sets the constant '{text}' for input '{spec.name}', but it cannot be converted to"
            f" {spec.datatype.name}"
        ) from None


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "none"
