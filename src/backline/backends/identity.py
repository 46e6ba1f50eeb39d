"""Triton's identity backend, which returns its inputs and needs no file, for trying out clients."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from backline.backends.backend import DEFAULT_OPTIONS, LoadOptions
from backline.backends.parameters import Parameters
from backline.engine.config.model_config import ModelConfig
from backline.engine.errors import InvalidArgument
from backline.engine.values.signature import Signature, TensorSpec

#: The parameter with the minimum duration of a run in milliseconds, as in Triton's identity backend.
_DELAY = "execute_delay_ms"
_KNOWN = (_DELAY,)
_MAX_DELAY_MS = 600_000


class Identity:
    """The backend `identity`, which must be named in the configuration, as its models have no file."""

    name: ClassVar[str] = "identity"

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> IdentityModel:
        """Loads a model that returns its n-th input as its n-th output, after `execute_delay_ms`.

        Raises InvalidArgument if the configuration does not pair inputs with outputs.
        """
        if not config.inputs or len(config.inputs) != len(config.outputs):
            raise InvalidArgument(
                f"model '{config.name}': the identity backend needs as many outputs as inputs, but"
                f" {config.source or 'its configuration'} names {len(config.inputs)} inputs and"
                f" {len(config.outputs)} outputs"
            )
        for given, answered in zip(config.inputs, config.outputs, strict=True):
            if given.datatype is not answered.datatype or given.shape != answered.shape:
                raise InvalidArgument(
                    f"model '{config.name}': the identity backend gives input '{given.name}' back as"
                    f" '{answered.name}', but they differ in datatype or dims"
                )
        parameters = Parameters(config, self.name, _KNOWN)
        return IdentityModel(config, _delay(config, parameters), parameters.warnings)


class IdentityModel:
    """Returns inputs as outputs. The delay occupies an instance, but no core."""

    threads_per_run = 1

    def __init__(self, config: ModelConfig, delay: float, warnings: tuple[str, ...]) -> None:
        self._sources = {
            output.name: spec.name for spec, output in zip(config.inputs, config.outputs, strict=True)
        }
        self._delay = delay
        self.signature = Signature(_full(config.inputs, config), _full(config.outputs, config))
        self.warnings = warnings

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        if self._delay:
            time.sleep(self._delay)
        return [inputs[self._sources[name]] for name in outputs]

    def close(self) -> None:
        """Does nothing: the model holds no memory. See LoadedModel."""


def _full(specs: Sequence[TensorSpec], config: ModelConfig) -> tuple[TensorSpec, ...]:
    first = (-1,) if config.max_batch_size else ()
    return tuple(
        TensorSpec(spec.name, spec.datatype, (*first, *spec.shape), spec.optional, spec.labels)
        for spec in specs
    )


def _delay(config: ModelConfig, parameters: Parameters) -> float:
    text = parameters.text(_DELAY, "0").strip()
    if not (text.isascii() and text.isdigit() and int(text) <= _MAX_DELAY_MS):
        raise InvalidArgument(
            f"parameter '{_DELAY}' of model '{config.name}' is '{text}', expected milliseconds from 0 to"
            f" {_MAX_DELAY_MS}"
        )
    return int(text) / 1000
