"""The stage that hides the tensors of sequences: controls, states and initial states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from backline.backends.backend import Run
from backline.engine.config.model_config import ModelConfig
from backline.engine.config.reshape import narrower
from backline.engine.config.sequence_batching import SequenceState
from backline.lifecycle.view.stage import Arrays, Stage
from backline.schedule.sequences.tensors import SequenceTensors, initial_state
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import SequenceStep
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Shape, Tensor, decode_tensor, element_count

#: The folder of initial states, below the model's folder (Triton's name).
FOLDER = "initial_state"


class HideStates(Stage):
    """The stage that hides the controls and states of sequences. A SequenceBatcher supplies them through
    `tensors`.

    `run`, which serves requests outside any batch, treats each item as a sequence of one request. Until
    `prepare` is called, the stage does not change runs, so trial runs also generate values for the hidden
    inputs.
    """

    per_request = True

    def __init__(self, outer: ModelConfig, path: Path) -> None:
        super().__init__(outer, path)
        self.tensors: SequenceTensors | None = None
        #: The inner signature, including hidden tensors.
        self.model = Signature((), ())
        self._batched = False

    @property
    def changes_runs(self) -> bool:
        return self.tensors is not None

    @property
    def inner(self) -> ModelConfig:
        """The configuration of the model itself: if it lists inputs or outputs, the hidden tensors are
        added.
        """
        config, batching = self.outer, self.outer.sequence
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

    def fit(self, inner: Signature) -> Signature:
        """Returns the signature without the hidden tensors. An output state remains only if the configuration
        lists it as an output.
        """
        self.model, batching = inner, self.outer.sequence
        if batching is None:
            return inner
        shown = {spec.name for spec in self.outer.outputs}
        hidden = {state.output for state in batching.states} - shown
        return Signature(
            tuple(spec for spec in inner.inputs if spec.name not in batching.hidden_inputs),
            tuple(spec for spec in inner.outputs if spec.name not in hidden),
        )

    def prepare(self, *, batched: bool, model_folder: Path) -> SequenceTensors | None:
        """Returns the hidden tensors, or None for a model without sequences. Call `fit` first.

        Raises InvalidArgument if the model lacks a hidden tensor or has it with another datatype or shape, or
        if a file with an initial state is unusable.
        """
        config, batching = self.outer, self.outer.sequence
        if batching is None:
            return None
        self._check(batched=batched)
        files = {
            state.input: _read(config, state, model_folder / FOLDER)
            for state in batching.states
            if state.initial_file
        }
        served = frozenset(spec.name for spec in self.fit(self.model).outputs)
        self._batched = batched
        initial = initial_state(batching, files, batched=batched)
        self.tensors = SequenceTensors(config.name, batching, initial, batched=batched, served=served)
        return self.tensors

    def run(self, run: Run, inputs: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        assert self.tensors is not None, "it was prepared"
        given: dict[str, Tensor] = {}
        self.tensors.add(given, SequenceStep(1, start=True, end=True), None)
        rows = next((len(array) for array in inputs.values()), 1)
        hidden = {
            name: np.repeat(tensor.data, rows, axis=0) if self._batched else tensor.data
            for name, tensor in given.items()
        }
        return run({**hidden, **inputs}, outputs)

    def _check(self, *, batched: bool) -> None:
        config, batching = self.outer, self.outer.sequence
        assert batching is not None, "it is a model of sequences"
        inputs = {spec.name: spec for spec in self.model.inputs}
        outputs = {spec.name: spec for spec in self.model.outputs}
        controls = (TensorSpec(control.name, control.datatype, (1,)) for control in batching.controls)
        wanted = [("input", inputs, control) for control in controls]
        for state in batching.states:
            wanted.append(("input", inputs, TensorSpec(state.input, state.datatype, state.shape)))
            wanted.append(("output", outputs, TensorSpec(state.output, state.datatype, state.shape)))
        for kind, there, spec in wanted:
            where = (
                f"model '{config.name}': sequence_batching of {config.source} names the {kind} '{spec.name}'"
            )
            actual = there.get(spec.name)
            if actual is None:
                names = ", ".join(f"'{name}'" for name in there) or "none"
                raise InvalidArgument(f"{where}, which the model does not have; it has {names}")
            if actual.datatype is not spec.datatype:
                raise InvalidArgument(
                    f"{where} as {spec.datatype.config_name}, but the model's is"
                    f" {actual.datatype.config_name}"
                )
            shape: Shape = (-1, *spec.shape) if batched else spec.shape
            if (actual.shape or kind == "input") and narrower(shape, actual.shape) is None:
                raise InvalidArgument(
                    f"{where} with shape {list(shape)}, but the model's is {list(actual.shape)}"
                )


def _read(config: ModelConfig, state: SequenceState, folder: Path) -> np.ndarray:
    file = folder / state.initial_file
    where = f"model '{config.name}': initial state of '{state.input}'"
    try:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise InvalidArgument(f"{where}: '{state.initial_file}' points outside '{folder}'")
        size = file.stat().st_size
        expected = element_count(state.initial_shape) * state.datatype.itemsize
        if state.datatype.itemsize and size != expected:
            text = f"expected {expected} for shape {list(state.initial_shape)} of {state.datatype.name}"
            raise InvalidArgument(f"{where}: '{file}' has {size} bytes, {text}")
        raw = file.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{where}: '{file}' cannot be read: {error.strerror}") from None
    return decode_tensor(state.input, state.datatype, state.initial_shape, raw).data
