"""Models whose files are not arranged as the server wants it: a batch that is not the first dimension, inputs that are always the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from backline.backends.backend import LoadedModel
from backline.engine.datatypes import DataType
from backline.engine.errors import InvalidArgument
from backline.engine.model_config import ModelConfig
from backline.engine.signature import Signature, TensorSpec


class ArrangedModel:
    """A loaded model as its configuration arranges it: `batch_axes` come first, `constant_inputs` are filled in and no longer asked for."""

    def __init__(self, model: LoadedModel, config: ModelConfig) -> None:
        self._model = model
        self._axes = {name: axis for name, axis in config.batch_axes.items() if axis}
        specs = {spec.name: spec for spec in model.signature.inputs}
        every = {*specs, *(spec.name for spec in model.signature.outputs)}
        where = f"model '{config.name}': {config.source}"
        for name in config.batch_axes:
            if name not in every:
                raise InvalidArgument(
                    f"{where} gives batch_axis of '{name}', but the model has {_list(every)}"
                )
        for name in config.constant_inputs:
            if name not in specs:
                raise InvalidArgument(
                    f"{where} gives a constant for input '{name}', but the model has {_list(set(specs))}"
                )
        self._constants = {
            name: _constant(where, specs[name], text) for name, text in config.constant_inputs.items()
        }
        asked = [spec for spec in model.signature.inputs if spec.name not in self._constants]
        self.signature = Signature(
            tuple(self._arranged(where, spec) for spec in asked),
            tuple(self._arranged(where, spec) for spec in model.signature.outputs),
        )
        self.threads_per_run = model.threads_per_run
        self.warnings = model.warnings

    def _arranged(self, where: str, spec: TensorSpec) -> TensorSpec:
        axis = self._axes.get(spec.name)
        if axis is None or not spec.shape:  # a file may leave the rank of an output open
            return spec
        if axis >= len(spec.shape):
            raise InvalidArgument(
                f"{where} gives batch_axis {axis} of '{spec.name}', whose shape is {list(spec.shape)}"
            )
        return replace(spec, shape=(spec.shape[axis], *spec.shape[:axis], *spec.shape[axis + 1 :]))

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """See LoadedModel."""
        arranged = dict(inputs)
        for name, axis in self._axes.items():
            if name in arranged:
                arranged[name] = np.ascontiguousarray(np.moveaxis(arranged[name], 0, axis))
        arranged.update(self._constants)
        arrays = self._model.run(arranged, outputs)
        return [
            np.moveaxis(array, self._axes[name], 0) if name in self._axes else array
            for name, array in zip(outputs, arrays, strict=True)
        ]

    def close(self) -> None:
        """See LoadedModel."""
        self._model.close()


def is_arranged(config: ModelConfig) -> bool:
    """Whether a configuration arranges its model in another way than the file."""
    return bool(config.batch_axes or config.constant_inputs)


def _constant(where: str, spec: TensorSpec, text: str) -> np.ndarray:
    """The value of a constant input, in the shape of the file with 1 for dimensions that vary."""
    shape = tuple(1 if dim < 0 else dim for dim in spec.shape)
    if spec.datatype is DataType.BYTES:
        return np.full(shape, text.encode(), np.object_)
    try:
        number = (
            {"true": 1, "false": 0}.get(text)
            if spec.datatype is DataType.BOOL
            else float(text)
            if "." in text
            else int(text)
        )
        if number is None or spec.datatype is DataType.BF16:
            raise ValueError
        return np.full(shape, np.array(number, spec.datatype.dtype))
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"{where} gives the constant '{text}' for input '{spec.name}', which is {spec.datatype.name}"
        ) from None


def _list(names: set[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "none"
