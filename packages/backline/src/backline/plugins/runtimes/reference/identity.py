"""Triton's identity backend, for trying out clients. Its models return their inputs and have no file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from backline.backends.backend import DEFAULT_OPTIONS, LoadOptions
from backline.backends.parameters import Parameters
from backline.engine.config.joining import SHAPES_OF, Joining
from backline.engine.config.model_config import ModelConfig
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import Signature, TensorSpec

#: Parameters of Triton's identity backend: the delay of each run in milliseconds, and that of the load in
#: seconds.
_DELAY = "execute_delay_ms"
_CREATION_DELAY = "creation_delay_sec"
_KNOWN = (_DELAY, _CREATION_DELAY)
_MAX_DELAY_SECONDS = 600


class Identity:
    """The backend `identity`. The configuration must name it, because its models have no file."""

    name: ClassVar[str] = "identity"

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> IdentityModel:
        """Loads a model that returns its n-th input as its n-th output, after `execute_delay_ms`.

        If an optional input is absent, its output is zeros or empty strings. Loading takes
        `creation_delay_sec`.

        Raises InvalidArgument if the configuration does not pair inputs with outputs.
        """
        inputs = _returned(config)
        if len(inputs) != len(config.outputs):
            raise InvalidArgument(
                f"model '{config.name}': the identity backend needs as many outputs as inputs, but"
                f" {config.source or 'its configuration'} names {len(inputs)} inputs and"
                f" {len(config.outputs)} outputs"
            )
        for given, answered in zip(inputs, config.outputs, strict=True):
            shapes_differ = given.shape != answered.shape and not _is_ragged(config, given.name)
            if given.datatype is not answered.datatype or shapes_differ:
                raise InvalidArgument(
                    f"model '{config.name}': the identity backend returns input '{given.name}' as output"
                    f" '{answered.name}', so both need the same datatype and dims"
                )
        parameters = Parameters(config, self.name, _KNOWN)
        delay = parameters.number(_DELAY, 0, _MAX_DELAY_SECONDS * 1000, "milliseconds", least=0) / 1000
        creation_delay = parameters.number(_CREATION_DELAY, 0, _MAX_DELAY_SECONDS, "seconds", least=0)
        if creation_delay:
            time.sleep(creation_delay)
        return IdentityModel(config, delay, parameters.warnings)


class IdentityModel:
    """A model that returns its inputs as outputs. The delay occupies the instance, but no core."""

    threads_per_run = 1

    def __init__(self, config: ModelConfig, delay: float, warnings: tuple[str, ...]) -> None:
        self._sources = {
            output.name: spec.name for spec, output in zip(_returned(config), config.outputs, strict=True)
        }
        self._delay = delay
        self.signature = Signature(_full(config.inputs, config), _full(config.outputs, config))
        self.warnings = warnings
        self._outputs = {spec.name: spec for spec in self.signature.outputs}
        self._batched = bool(config.max_batch_size)
        joining = config.joining or Joining()
        #: The inputs whose lengths say nothing about the number of rows.
        self._flat = {*joining.ragged, *joining.hidden_inputs} - {SHAPES_OF + name for name in joining.ragged}

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        if self._delay:
            time.sleep(self._delay)
        rows = self._rows(inputs) if self._batched else None
        return [
            inputs[source] if (source := self._sources[name]) in inputs else self._zeros(name, rows)
            for name in outputs
        ]

    def _rows(self, inputs: Mapping[str, np.ndarray]) -> int:
        return next((len(array) for name, array in inputs.items() if name not in self._flat), 1)

    def _zeros(self, output: str, rows: int | None) -> np.ndarray:
        """Returns the output for an absent input: zeros or empty strings. Variable dimensions other than the
        batch dimension become 1.
        """
        spec = self._outputs[output]
        dims = [abs(dim) for dim in spec.shape]
        if rows is not None:
            dims[0] = rows
        if spec.datatype is DataType.BYTES:
            return np.full(dims, b"", np.object_)
        return np.zeros(dims, spec.datatype.dtype)

    def close(self) -> None:
        """Does nothing, since the model has no memory to free. See LoadedModel."""


def _returned(config: ModelConfig) -> list[TensorSpec]:
    """Returns the inputs that the model returns: all but those that only describe others."""
    return [spec for spec in config.inputs if not spec.name.startswith(SHAPES_OF)]


def _full(specs: Sequence[TensorSpec], config: ModelConfig) -> tuple[TensorSpec, ...]:
    first = (-1,) if config.max_batch_size else ()
    return tuple(
        TensorSpec(spec.name, spec.datatype, (*first, *spec.shape), spec.optional, spec.labels)
        for spec in specs
    )


def _is_ragged(config: ModelConfig, name: str) -> bool:
    return config.joining is not None and name in config.joining.ragged
