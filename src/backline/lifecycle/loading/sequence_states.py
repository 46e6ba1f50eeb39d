"""The hidden side of a model of sequences: inputs that no client sends, outputs that none sees, and the states at the beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from backline.backends.backend import LoadedModel
from backline.engine.errors import InvalidArgument
from backline.engine.messages import SequenceStep
from backline.engine.model_config import ModelConfig
from backline.engine.sequence_batching import SequenceBatching, SequenceState
from backline.engine.signature import Signature, TensorSpec
from backline.engine.tensor import Shape, Tensor, decode_tensor, element_count
from backline.schedule.sequences.tensors import SequenceTensors, initial_state

#: Where the files of initial states are, below the model's folder (Triton's name).
FOLDER = "initial_state"


def with_hidden_tensors(config: ModelConfig) -> ModelConfig:
    """The configuration as the backend needs it, which knows nothing of sequences: the hidden tensors are named like any others."""
    batching = config.sequence
    if batching is None:
        return config
    inputs, outputs = config.inputs, config.outputs
    if inputs:
        named = {spec.name for spec in inputs}
        controls = (TensorSpec(control.name, control.datatype, (1,)) for control in batching.controls)
        states = (TensorSpec(state.input, state.datatype, state.shape) for state in batching.states)
        inputs += tuple(spec for spec in (*controls, *states) if spec.name not in named)
    if outputs:
        named = {spec.name for spec in outputs}
        given = (TensorSpec(state.output, state.datatype, state.shape) for state in batching.states)
        outputs += tuple(spec for spec in given if spec.name not in named)
    return replace(config, inputs=inputs, outputs=outputs)


def visible(signature: Signature, config: ModelConfig) -> Signature:
    """What clients send and see: a state is only among the outputs where the configuration names it there."""
    batching = config.sequence
    if batching is None:
        return signature
    shown = {spec.name for spec in config.outputs}
    hidden = {state.output for state in batching.states} - shown
    return Signature(
        tuple(spec for spec in signature.inputs if spec.name not in batching.hidden_inputs),
        tuple(spec for spec in signature.outputs if spec.name not in hidden),
    )


def sequence_tensors(
    config: ModelConfig, signature: Signature, *, batched: bool, model_folder: Path
) -> SequenceTensors:
    """The hidden tensors of a model, whose own `signature` has them. Raises InvalidArgument where it has not, or a file cannot be read."""
    batching = config.sequence
    assert batching is not None, "it is a model of sequences"
    _check(config, batching, signature, batched=batched)
    files = {
        state.input: _read(config, state, model_folder / FOLDER)
        for state in batching.states
        if state.initial_file
    }
    served = frozenset(spec.name for spec in visible(signature, config).outputs)
    return SequenceTensors(
        config.name, batching, initial_state(batching, files, batched=batched), batched=batched, served=served
    )


def _check(config: ModelConfig, batching: SequenceBatching, signature: Signature, *, batched: bool) -> None:
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    wanted = [
        ("input", inputs, TensorSpec(control.name, control.datatype, (1,))) for control in batching.controls
    ]
    for state in batching.states:
        wanted.append(("input", inputs, TensorSpec(state.input, state.datatype, state.shape)))
        wanted.append(("output", outputs, TensorSpec(state.output, state.datatype, state.shape)))
    for kind, there, spec in wanted:
        where = f"model '{config.name}': sequence_batching of {config.source} names the {kind} '{spec.name}'"
        actual = there.get(spec.name)
        if actual is None:
            names = ", ".join(f"'{name}'" for name in there) or "none"
            raise InvalidArgument(f"{where}, which the model does not have; it has {names}")
        if actual.datatype is not spec.datatype:
            raise InvalidArgument(
                f"{where} as {spec.datatype.config_name}, but the model's is {actual.datatype.config_name}"
            )
        shape: Shape = (-1, *spec.shape) if batched else spec.shape
        if (actual.shape or kind == "input") and not _fits(shape, actual.shape):
            raise InvalidArgument(
                f"{where} with shape {list(shape)}, but the model's is {list(actual.shape)}"
            )


def _fits(given: Shape, actual: Shape) -> bool:
    return len(given) == len(actual) and all(
        -1 in (g, a) or g == a for g, a in zip(given, actual, strict=True)
    )


def _read(config: ModelConfig, state: SequenceState, folder: Path) -> np.ndarray:
    file = folder / state.initial_file
    where = f"model '{config.name}': initial state of '{state.input}'"
    try:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise InvalidArgument(f"{where}: '{state.initial_file}' leads out of '{folder}'")
        size = file.stat().st_size
        expected = element_count(state.initial_shape) * state.datatype.itemsize
        if state.datatype.itemsize and size != expected:
            text = f"expected {expected} for shape {list(state.initial_shape)} of {state.datatype.name}"
            raise InvalidArgument(f"{where}: '{file}' has {size} bytes, {text}")
        raw = file.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{where}: '{file}' cannot be read: {error.strerror}") from None
    return decode_tensor(state.input, state.datatype, state.initial_shape, raw).data


class FirstSteps:
    """A model of sequences as warm-up runs it: each item is a sequence of one request."""

    def __init__(self, model: LoadedModel, tensors: SequenceTensors, *, batched: bool) -> None:
        self._model = model
        self._tensors = tensors
        self._batched = batched
        self.signature = model.signature
        self.threads_per_run = model.threads_per_run
        self.warnings = model.warnings

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """See LoadedModel."""
        given: dict[str, Tensor] = {}
        self._tensors.add(given, SequenceStep(1, start=True, end=True), None)
        rows = next((len(array) for array in inputs.values()), 1)
        hidden = {
            name: np.repeat(tensor.data, rows, axis=0) if self._batched else tensor.data
            for name, tensor in given.items()
        }
        return self._model.run({**hidden, **inputs}, outputs)

    def close(self) -> None:
        """See LoadedModel."""
        self._model.close()
